import random

import numpy as np
import pytest
import torch

from tjd import backbone, prompts
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError
from tjd.judge import ensemble, probe
from tjd.judge.prompt import VARIABLES
from tjd.judge.score import score, score_plain
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


def test_every_layer_and_strength_tried_is_in_the_history(judges):
    _, manifest = judges
    tried = [row for row in manifest["history"] if row["specialist"] == "style"]
    assert [row["strength"] for row in tried] == list(probe.STRENGTHS)
    assert max(row["auroc"] for row in tried) > 0.9


def test_a_folded_probe_is_the_regression_on_standardised_features():
    rng = np.random.default_rng(0)
    features = rng.normal(5, [1, 100], (200, 2))
    truth = features[:, 0] + rng.normal(0, 0.1, 200) > 5
    weak, found = probe.fit(3, features, truth, np.ones(200), (1e-4, 1.0))
    assert abs(weak.weight_F[0]) < abs(found.weight_F[0])
    said = found.logits(features) > 0
    assert (said == truth).mean() > 0.95
    assert abs(found.weight_F[0]) > 50 * abs(found.weight_F[1])


def test_candidate_layers_lie_inside_the_model():
    assert probe.candidate_layers(30) == [8, 12, 16, 20, 24]
    assert probe.candidate_layers(2) == [1]


def test_a_layer_that_is_not_there_is_an_error(tiny_model_dir):
    decoder = backbone.load_model(str(tiny_model_dir), dtype="float32").get_decoder()
    with pytest.raises(ConfigError, match="--layer must lie between 1 and 1"):
        probe.read(decoder, [], [2])


def test_features_go_where_their_judgement_stands(tiny_model_dir):
    decoder = backbone.load_model(str(tiny_model_dir), dtype="float32").get_decoder()
    config = TrainJudgeConfig(base=str(tiny_model_dir))
    encoder = ensemble.make_encoder(config.base, prompts.load("judge.v1", VARIABLES), config)
    judgements = [encoder(row) for row in rows(12, 3, "train")]
    whole = probe.read(decoder, [*judgements, judgements[0]], [1], budget=400)[1]
    np.testing.assert_allclose(whole[0], whole[-1])
    np.testing.assert_allclose(whole[5], probe.read(decoder, [judgements[5]], [1])[1][0], atol=1e-4)


def test_features_take_as_much_memory_as_the_states(tiny_model_dir):
    config = TrainJudgeConfig(base=str(tiny_model_dir))
    encoder = ensemble.make_encoder(config.base, prompts.load("judge.v1", VARIABLES), config)
    judgements = [encoder(row) for row in rows(12, 3, "train")]
    exact, half = (
        probe.read(backbone.load_model(config.base, dtype=dtype).get_decoder(), judgements, [1])[1]
        for dtype in ("float32", "bfloat16")
    )
    assert (exact.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
