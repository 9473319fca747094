import json
import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM, LlamaConfig

from tjd import backbone, prompts
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError, DataError
from tjd.judge import ensemble, probe
from tjd.judge.prompt import VARIABLES, Encoded
from tjd.judge.score import Specialist, score, score_plain
from tjd.stages.train_judge import train_judge
from tjd.taxonomy import load as load_taxonomy


def rows(n, seed, split):
    """Style is followed where the response has an `a`, structure where it has none: one probe cannot do both."""
    rng = random.Random(seed)
    out = []
    for index in range(n):
        category = rng.choice(["style", "structure"])
        letters = [rng.choice("bcdefgh") for _ in range(rng.randrange(4, 12))]
        has = rng.random() < 0.5
        if has:
            letters[0] = "a"
        key = f"{split}{index}"
        out.append(
            {"query_id": key, "response_id": key, "constraint_id": "c", "query": "q", "constraint": "?", "split": split,
             "category": category, "response": "".join(letters), "followed": has == (category == "style")}
        )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def judges(tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("judges")
    config = TrainJudgeConfig(base=str(tiny_model_dir), head="probe", dtype="float32")
    table = [*rows(300, 0, "train"), *rows(60, 1, "validation")]
    prompt = prompts.load("judge.v1", VARIABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(ensemble, "raw_scores")  # the states are read once
        manifest = train_judge(table, load_taxonomy(), prompt, config, out, data_digest="x")
    return out, manifest


def test_probes_learn_and_are_scored_as_they_were_fitted(judges):
    out, manifest = judges
    ensemble_ = ensemble.load(out, dtype="float32")
    assert manifest["head"] == "probe"
    assert manifest["first_layers"] == {"style": 1, "structure": 1}
    test = rows(200, 2, "test")
    verdicts = ensemble_.score(test)
    assert np.mean([v.followed == row["followed"] for v, row in zip(verdicts, test, strict=True)]) >= 0.9
    judgements = [ensemble_.encoder(row) for row in test[:10]]
    alone = dict(score_plain(ensemble_.specialists[0], judgements))
    assert dict(score(ensemble_.specialists, judgements, [0] * 10)) == pytest.approx(alone, abs=1e-4)


def test_probes_are_calibrated_by_the_scores_that_they_give(judges):
    out, _ = judges
    loaded = ensemble.load(out, dtype="float32")
    for place, judge in enumerate(loaded.specialists):
        table = [row for row in rows(60, 1, "validation") if row["category"] == judge.name]
        whose = [place] * len(table)
        scores = dict(ensemble.raw_scores(loaded.specialists, [loaded.encoder(row) for row in table], whose))
        known = [row["score"] for row in json.loads((out / judge.name / ensemble.RECORD).read_text())["validation"]]
        n_train = sum(row["category"] == judge.name for row in rows(300, 0, "train"))
        assert len(known) == n_train + len(table)  # those of training come first, by probes that had not seen them
        assert [scores[index] for index in range(len(table))] == pytest.approx(known[n_train:], abs=1e-4)


def test_every_layer_and_strength_tried_is_in_the_history(judges):
    _, manifest = judges
    tried = [row for row in manifest["history"] if row["specialist"] == "style"]
    assert [row["strength"] for row in tried] == list(probe.STRENGTHS)
    assert max(row["auroc"] for row in tried) > 0.9


def test_a_folded_probe_is_the_regression_on_standardised_features():
    rng = np.random.default_rng(0)
    features = rng.normal(5, [1, 100], (200, 2))
    truth = features[:, 0] + rng.normal(0, 0.1, 200) > 5
    part = probe.Part(np.arange(200), truth, np.ones(200))
    weak, found = (each["a"] for each in probe.fit([3], torch.tensor(features), {"a": part}, (1e-4, 1.0), 0.0))
    assert abs(weak.weight_F[0]) < abs(found.weight_F[0])
    said = found.logits(features) > 0
    assert (said == truth).mean() > 0.95
    assert abs(found.weight_F[0]) > 50 * abs(found.weight_F[1])


@pytest.mark.parametrize("n_features", [5, 400])
def test_a_fit_of_one_specialist_is_scikit_learns(n_features):
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (300, n_features)).astype(np.float32)
    truth = features[:, 0] - features[:, 1] + rng.normal(0, 1, 300) > 0
    weights = rng.uniform(0.5, 2, 300)
    part = probe.Part(np.arange(300), truth, weights)
    own = probe.fit([1], torch.tensor(features), {"a": part}, [0.1], 0.0)[0]["a"]
    standard = StandardScaler().fit(features)
    known = LogisticRegression(C=0.1, tol=1e-8).fit(standard.transform(features), truth, sample_weight=weights)
    said = known.decision_function(standard.transform(features))
    np.testing.assert_allclose(own.logits(features), said, atol=2e-3)


def test_a_specialist_of_few_rows_learns_from_the_others():
    rng = np.random.default_rng(2)
    features = rng.normal(0, 1, (620, 50)).astype(np.float32)
    truth = features[:, :5].sum(1) > 0
    many, few = (probe.Part(np.arange(*of), truth[slice(*of)], np.ones(of[1] - of[0])) for of in ((0, 300), (300, 312)))

    def right(share):
        [probes] = probe.fit([1], torch.tensor(features), {"many": many, "few": few}, [0.1], share)
        return ((probes["few"].logits(features[320:]) > 0) == truth[320:]).mean()

    assert right(1.0) > right(0.0) + 0.1


@pytest.mark.parametrize("by_query", [True, False])
def test_what_probes_are_chosen_by_is_of_queries_that_they_have_not_seen(by_query):
    rng = np.random.default_rng(3)
    query, answer = rng.normal(0, 1, (100, 40)), rng.normal(0, 0.1, (300, 40))
    features = torch.tensor(
        query.repeat(3, 0) + answer, dtype=torch.float32
    )  # a query's three rows are nearly the same
    truth = (rng.random(100) < 0.5).repeat(3)  # and nothing tells whether they followed
    fold = (np.arange(100).repeat(3) if by_query else np.arange(300)) % probe.N_FOLDS
    real = np.arange(300) < 240
    weights = (np.arange(probe.N_FOLDS)[:, None] != fold).astype(float)
    train = {"a": probe.Part(np.arange(300), truth, np.ones(300), weights, real)}
    validation = {"a": probe.Part(np.arange(0), truth[:0], np.ones(0))}
    _, tried, logits = probe.choose([1], features, train, validation, 1.0)
    assert len(logits["a"]) == 240
    assert len(tried) == len(probe.STRENGTHS)
    assert (roc_auc_score(truth[real], logits["a"]) < 0.65) == by_query


def test_probes_of_several_layers_are_read_alike_with_and_without_trees():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    decoder = AutoModelForCausalLM.from_config(LlamaConfig(**size, **heads)).eval().get_decoder()
    nothing, as_it_is = torch.nn.ModuleList(), torch.nn.Identity()
    judges = [
        Specialist(
            name, decoder, top, nothing, as_it_is, torch.randn((len(below) + 1) * 64), 0.1, ("last", "response"), below
        )
        for name, top, below in (("a", 3, (1, 2)), ("b", 3, (1, 2)), ("c", 2, ()))
    ]
    judgements = [Encoded((5, 6, 7), (8, 9, n), (m, 11)) for n in (12, 13) for m in (14, 15, 16)]
    packed = dict(score(judges, judgements, [0, 1, 2] * 2))
    for index, judgement in enumerate(judgements):
        [(_, alone)] = score_plain(judges[index % 3], [judgement])
        assert packed[index] == pytest.approx(alone, abs=1e-4)


def test_default_layers_lie_inside_the_model():
    assert probe.default_layers(30) == (10, 14, 18)
    assert probe.default_layers(2) == (1,)


def test_a_layer_that_is_not_there_is_an_error(tiny_model_dir):
    decoder = backbone.load_model(str(tiny_model_dir), dtype="float32").get_decoder()
    with pytest.raises(ConfigError, match="--layer must lie between 1 and 1 for this model, not 0"):
        probe.read(decoder, [], [1, 0, 3])
    with pytest.raises(ConfigError, match="--layer must be at least 1, not 0"):
        TrainJudgeConfig(layer=(1, 0))


def test_weights_of_probes_that_read_something_else_are_an_error(judges, tmp_path):
    out, _ = judges
    decoder = ensemble.load(out, dtype="float32").specialists[0].decoder
    probe.Probe((1,), np.zeros(4 * decoder.config.hidden_size, np.float32), 0.0, 1.0).save(tmp_path / "old")
    with pytest.raises(
        DataError, match="old is of another release of tjd or another base; remove the judges and train"
    ):
        probe.load(tmp_path / "old", "old", decoder)


def test_features_go_where_their_judgement_stands(tiny_model_dir):
    decoder = backbone.load_model(str(tiny_model_dir), dtype="float32").get_decoder()
    config = TrainJudgeConfig(base=str(tiny_model_dir))
    encoder = ensemble.make_encoder(config.base, prompts.load("judge.v1", VARIABLES), config)
    judgements = [encoder(row) for row in rows(12, 3, "train")]
    whole = probe.read(decoder, [*judgements, judgements[0]], [1], budget=400)
    np.testing.assert_allclose(whole[0], whole[-1])
    np.testing.assert_allclose(whole[5], probe.read(decoder, [judgements[5]], [1])[0], atol=1e-4)


def test_features_take_as_much_memory_as_the_states(tiny_model_dir):
    config = TrainJudgeConfig(base=str(tiny_model_dir))
    encoder = ensemble.make_encoder(config.base, prompts.load("judge.v1", VARIABLES), config)
    judgements = [encoder(row) for row in rows(12, 3, "train")]
    exact, half = (
        probe.read(backbone.load_model(config.base, dtype=dtype).get_decoder(), judgements, [1])
        for dtype in ("float32", "bfloat16")
    )
    assert (exact.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
