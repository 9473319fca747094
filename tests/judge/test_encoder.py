import json
import random
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.test_cli import fails, tjd
from tjd import backbone
from tjd.errors import ConfigError
from tjd.judge import encoder, ensemble
from tjd.judge.encoder import Classifier, Pairs
from tjd.judge.prompt import Encoded

WINDOW = 24
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghq?")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a one-layer random BERT that was never a classifier, and a tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))],
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=WINDOW, initializer_range=0.2, **sizes)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # of third parties, while building
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    return folder


def rows(n, seed, split):
    """Style is followed where the response has an `a`, structure where it has none."""
    rng = random.Random(seed)
    out = []
    for index in range(n):
        category = rng.choice(["style", "structure"])
        letters = [rng.choice("bcdefgh") for _ in range(rng.randrange(3, 8))]
        has = rng.random() < 0.5
        if has:
            letters[rng.randrange(len(letters))] = "a"
        key = f"{split}{index}"
        out.append(
            {"query_id": key, "response_id": key, "constraint_id": "c", "query": "q", "constraint": "?", "split": split,
             "category": category, "response": " ".join(letters), "followed": has == (category == "style")}
        )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    table = [*rows(400, 0, "train"), *rows(80, 1, "validation"), *rows(100, 2, "test")]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


@pytest.fixture(scope="module")
def judges(labels, tiny_bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("judges") / "encoders"
    train = ("train-judge", labels, "-b", tiny_bert, "--head", "encoder", "--learning-rate", 3e-3, "--epochs", 20,
             "--patience", 20, "-o", out)  # fmt: skip
    result = tjd(*train)
    assert result.exit_code == 0
    assert "LOAD REPORT" not in result.output
    return out


def test_an_encoder_learns_and_scores_as_it_did_in_training(judges):
    manifest = json.loads((judges / "manifest.json").read_text())
    assert (manifest["head"], manifest["verdict_ids"]) == ("encoder", None)
    trained = ensemble.load(judges, dtype="float32")
    test = rows(100, 2, "test")
    verdicts = trained.score(test)
    assert np.mean([v.followed == row["followed"] for v, row in zip(verdicts, test, strict=True)]) >= 0.95
    validation = [row for row in rows(80, 1, "validation") if row["category"] == "style"]
    before = json.loads((judges / "style" / "specialist.json").read_text())["validation"]
    now = dict(encoder.score([trained.specialists[0]], [trained.encoder(row) for row in validation], [0] * len(before)))
    assert [now[i] for i in range(len(before))] == pytest.approx([row["score"] for row in before], abs=1e-5)


def test_encoders_are_kept_measured_and_used_like_other_judges(judges, labels, tiny_bert, tiny_model_dir, tmp_path):
    history = pq.read_table(judges / "metrics.parquet").to_pylist()
    assert {row["specialist"] for row in history} == {"style", "structure"}
    assert sum(row["validation_loss"] is not None for row in history) == 2 * 20
    assert "trained by tjd 0.1.0: all weights of an encoder with one logit" in (judges / "card.md").read_text()
    weights = {path: path.stat().st_mtime_ns for path in judges.glob("*/*.safetensors")}
    train = ("train-judge", labels, "-b", tiny_bert, "--head", "encoder", "--learning-rate", 3e-3, "--epochs", 20,
             "--patience", 20, "--abstain", 0.1, "-o", judges)  # fmt: skip
    assert tjd(*train).exit_code == 0
    assert weights == {path: path.stat().st_mtime_ns for path in judges.glob("*/*.safetensors")}
    result = tjd("eval-judge", labels, "-j", judges, "--teacher", f"hf:{tiny_model_dir}", "--json")
    aurocs = {row["judge"]: row["value"] for row in json.loads(result.stdout)
              if (row["metric"], row["category"]) == ("auroc", "all")}  # fmt: skip
    assert aurocs["3-for-3"] > 0.95
    assert tjd("score", labels, "-j", judges, "-o", tmp_path / "scores.parquet").exit_code == 0


def test_padding_and_batches_change_no_score_and_equal_rows_are_read_once(tiny_bert):
    pairs = Pairs(backbone.load_tokenizer(str(tiny_bert)), backbone.load_config(str(tiny_bert)),
                  max_instruction_tokens=8, max_response_tokens=8)  # fmt: skip
    torch.manual_seed(0)
    classifiers = [Classifier(name, backbone.load_classifier(str(tiny_bert), dtype="float32"), pairs) for name in "xy"]
    judgements = [pairs(row) for row in rows(20, 4, "test")] * 2
    whose = [i % 2 for i in range(40)]
    seen = []
    for classifier in classifiers:
        classifier.model.register_forward_pre_hook(
            lambda model, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
        )
    together = dict(encoder.score(classifiers, judgements, whose, budget=100))
    assert sum(shape[0] for shape in seen) == len({(k, j) for k, j in zip(whose, judgements, strict=True)}) < 40
    assert all(n_rows * n_tokens <= 100 for n_rows, n_tokens in seen)
    alone = [dict(encoder.score([classifiers[k]], [j], [0]))[0] for k, j in zip(whose, judgements, strict=True)]
    assert [together[i] for i in range(40)] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 1e-3


@pytest.mark.parametrize(
    ("instruction", "response", "kept"),
    [("q", "b c", (1, 2)), ("q", "b " * 40, (1, 17)), ("q " * 40, "b", (17, 1)), ("q " * 40, "b " * 40, (9, 9))],
)
def test_what_is_longer_than_the_window_is_cut(tiny_bert, instruction, response, kept):
    pairs = Pairs(backbone.load_tokenizer(str(tiny_bert)), backbone.load_config(str(tiny_bert)),
                  max_instruction_tokens=30, max_response_tokens=30)  # fmt: skip
    row = {"query": instruction, "response": response, "constraint": "? ?"}
    encoded = pairs(row)
    q, b, cls, sep, asked = (WORDS.index(word) for word in ("q", "b", "[CLS]", "[SEP]", "?"))
    assert len(encoded) <= WINDOW
    assert encoded.instruction == (cls, *[q] * kept[0])
    assert [encoded.response[0], encoded.response[-1], len(encoded.response)] == [sep, sep, kept[1] + 2]
    assert encoded.response.count(b) >= 1
    assert encoded.constraint == (asked, asked, sep)


def test_the_constraint_is_the_second_text(tiny_bert):
    pairs = Pairs(backbone.load_tokenizer(str(tiny_bert)), backbone.load_config(str(tiny_bert)),
                  max_instruction_tokens=8, max_response_tokens=8)  # fmt: skip
    classifier = Classifier("x", backbone.load_classifier(str(tiny_bert), dtype="float32"), pairs)
    given = {}
    classifier.model.register_forward_pre_hook(lambda model, args, kwargs: given.update(kwargs), with_kwargs=True)
    classifier.logits([pairs({"query": "q", "response": "b c", "constraint": "? ?"}), Encoded((2, 4), (3, 3), (5, 3))])
    assert given["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0, 0]]
    assert given["attention_mask"].tolist() == [[1] * 9, [1] * 6 + [0] * 3]


def test_a_base_that_cannot_have_the_head_is_one_line(labels, tiny_bert, tiny_model_dir, tmp_path):
    out = tmp_path / "judges"
    line = fails(2, "train-judge", labels, "-b", tiny_model_dir, "--head", "encoder", "-o", out)
    assert line == "tiny is not an encoder such as ModernBERT; choose another --base, or --head verdict"
    for head in ("verdict", "probe"):
        line = fails(2, "train-judge", labels, "-b", tiny_bert, "--head", head, "-o", out)
        assert line == "tiny-bert is an encoder, which cannot write a verdict; take --head encoder, or another --base"
    assert not out.exists()


def test_a_tokenizer_that_does_not_separate_texts_is_an_error(tiny_model_dir, tiny_bert):
    with pytest.raises(ConfigError, match="does not separate a pair"):
        Pairs(backbone.load_tokenizer(str(tiny_model_dir)), backbone.load_config(str(tiny_bert)),
              max_instruction_tokens=8, max_response_tokens=8)  # fmt: skip
