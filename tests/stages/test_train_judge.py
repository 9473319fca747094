"""What a run trains, keeps and leaves behind when it is resumed, stopped or damaged."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.test_cli import DEMO, fails
from tjd import prompts
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError, DataError
from tjd.judge import ensemble, probe
from tjd.judge.prompt import VARIABLES, Encoded
from tjd.judge.train import Example
from tjd.stages import sweep
from tjd.stages.train_judge import _part, card, train_judge
from tjd.taxonomy import load as load_taxonomy

PROMPT = prompts.load("judge.v1", VARIABLES)
CATEGORIES = ("style", "structure", "semantic")


def rows(n=120, **changes):
    """Followed if and only if the response has an `a`."""
    rng = random.Random(0)
    return [
        {"query_id": f"q{i}", "response_id": f"r{i}", "constraint_id": "c", "query": "q", "constraint": "?", "kind": "soft",
         "split": "validation" if i // 3 % 3 == 0 else "train", "category": CATEGORIES[i % 3], "followed": i % 2 == 0,
         "response": ("a" if i % 2 == 0 else "b") + rng.choice("cdefgh") * rng.randrange(4, 12)} | changes
        for i in range(n)
    ]  # fmt: skip


def settings(base, **changes):
    return TrainJudgeConfig(**{"base": str(base), "head": "probe", "dtype": "float32", **changes})


def train(config, out, table=None, **options):
    """Train, and tell which specialists were written."""
    known = options.pop("categories", load_taxonomy())
    before = {path: path.stat().st_mtime_ns for path in out.glob(f"*/{ensemble.RECORD}")}
    manifest = train_judge(table or rows(), known, PROMPT, config, out, data_digest="x", **options)
    after = {path: path.stat().st_mtime_ns for path in out.glob(f"*/{ensemble.RECORD}")}
    return manifest, {path.parent.name for path in after if after[path] != before.get(path)}


def weights(folder):
    return {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}


def test_a_specialist_of_other_categories_is_another(tiny_model_dir, tmp_path):
    config = settings(tiny_model_dir, layout="1-for-all", head="verdict", epochs=1)
    known = load_taxonomy()
    fewer = {name: known[name] for name in ("style", "structure")}
    few = [row for row in rows() if row["category"] in fewer]
    assert train(config, tmp_path, few, categories=fewer)[1] == {"all"}
    assert train(config, tmp_path, few, categories=fewer)[1] == set()
    assert train(config, tmp_path)[1] == {"all"}


@pytest.mark.parametrize("lora_layers", [0, 1])
def test_a_specialist_without_others_has_the_base_itself(tiny_model_dir, tmp_path, lora_layers):
    only = {"layout": "1-for-all", "head": "verdict", "epochs": 1, "learning_rate": 1e-2, "lora_layers": lora_layers}
    train(settings(tiny_model_dir, **only), tmp_path)
    loaded = ensemble.load(tmp_path, dtype="float32")
    [judge] = loaded.specialists
    assert judge.layers[-1] is judge.decoder.layers[-1]  # no copy
    table = [row for row in rows() if row["split"] == "validation"]
    scores = dict(ensemble.raw_scores([judge], [loaded.encoder(row) for row in table], [0] * len(table)))
    known = json.loads((tmp_path / "all" / ensemble.RECORD).read_text())["validation"]
    assert [scores[index] for index in range(len(table))] == pytest.approx([row["score"] for row in known], abs=1e-5)


def test_probes_are_calibrated_on_real_rows_of_training_too_unless_rows_were_left_out(tiny_model_dir, tmp_path):
    n_train, n_validation = ({c: sum(r["category"] == c and r["split"] == s for r in rows()) for c in CATEGORIES}
                             for s in ("train", "validation"))  # fmt: skip
    told = {}
    for name, settings_ in {"harden": {"harden": 0.5}, "rows": {"balance": "rows"}}.items():
        manifest, _ = train(settings(tiny_model_dir, **settings_), tmp_path / name)
        told[name] = {c: manifest["categories"][c]["n_validation"] for c in CATEGORIES}
    assert told == {"harden": {c: n_train[c] + n_validation[c] for c in CATEGORIES}, "rows": n_validation}


def test_rows_are_judged_only_by_fits_that_know_nothing_of_their_query_and_both_verdicts():
    def example(query_id, followed, real=True, donor=None):
        return Example(Encoded((1,), (2,), (3,)), followed, "style", query_id, real, donor)

    rows_ = [example(f"q{i}", i % 2 == 0) for i in range(40)] + [example("q0", False, False, "q7")]
    part = _part(rows_, 5, folds=True)
    assert part.index_N.tolist() == list(range(5, 46))
    assert part.judged_N.tolist() == [True] * 40 + [False]
    assert ((part.weight_KN[:, :40] == 0).sum(0) == 1).all()
    held_out = [set(np.flatnonzero(part.weight_KN[:, index] == 0)) for index in (0, 7, 40)]
    assert held_out[2] == held_out[0] | held_out[1]
    for weight_N in part.weight_KN:  # either verdict weighs the same in every fit
        assert weight_N[part.followed_N].sum() == pytest.approx(weight_N[~part.followed_N].sum())
    one_negative = _part([example("q0", False), *(example(f"q{i}", True) for i in range(1, 40))], 0, folds=True)
    fold = one_negative.weight_KN[:, 0] == 0
    assert (one_negative.judged_N == (one_negative.weight_KN[fold][0] > 0)).all()  # none of the negative's own fold
    assert not _part(rows_, 0, folds=False).judged_N.any()


def test_probes_that_read_something_else_are_not_kept(tiny_model_dir, tmp_path, monkeypatch):
    config = settings(tiny_model_dir)
    train(config, tmp_path)
    assert train(config, tmp_path)[1] == set()
    monkeypatch.setattr(probe, "POOLS", probe.POOLS[:-1])
    assert train(config, tmp_path)[1] == set(CATEGORIES)


def test_a_base_folder_with_other_weights_or_another_template_is_another(tiny_model_dir, tmp_path):
    from tests.conftest import build_model

    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    assert train(settings(base), tmp_path / "judges")[1] == set(CATEGORIES)
    assert train(settings(base), tmp_path / "judges")[1] == set()
    build_model(base, seed=1)
    assert train(settings(base), tmp_path / "judges")[1] == set(CATEGORIES)
    (base / "README.md").touch()
    assert train(settings(base), tmp_path / "judges")[1] == set()
    with (base / "chat_template.jinja").open("a") as template:
        template.write("{# asks as before #}")
    assert train(settings(base), tmp_path / "judges")[1] == set(CATEGORIES)


def test_a_retraining_that_is_stopped_leaves_nothing_to_load(tiny_model_dir, tmp_path):
    config = settings(tiny_model_dir, head="verdict", epochs=1)
    train(config, tmp_path)
    before = (tmp_path / ensemble.MANIFEST).read_text()

    def stop(specialist, metrics):
        if specialist == "structure":
            raise KeyboardInterrupt

    other = settings(tiny_model_dir, head="verdict", epochs=1, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(other, tmp_path, on_step=stop)
    with pytest.raises(DataError, match="holds no judges"):
        ensemble.load(tmp_path)
    (tmp_path / ensemble.MANIFEST).write_text(before)  # as an older version would have left it
    with pytest.raises(DataError, match=r"half trained \('.*'\); run tjd train-judge again"):
        ensemble.load(tmp_path)
    assert train(other, tmp_path)[1] == {"structure", "semantic"}
    ensemble.load(tmp_path)


def test_a_layer_that_is_not_there_costs_no_judges(tiny_model_dir, tmp_path):
    train(settings(tiny_model_dir), tmp_path)
    with pytest.raises(ConfigError, match="--layer must lie between 1 and 1 for this model, not 7"):
        train(settings(tiny_model_dir, layer=(1, 7)), tmp_path)
    ensemble.load(tmp_path)


def test_the_threshold_that_is_told_is_the_one_that_is_stored(tiny_model_dir, tmp_path, caplog):
    table = [row for row in rows() if row["split"] == "train" or row["followed"]]
    manifest, _ = train(settings(tiny_model_dir, target_precision=0.5, balance="rows"), tmp_path, table)
    told = [record.getMessage() for record in caplog.records if "one class only" in record.getMessage()]
    thresholds = [seat["threshold"] for seat in manifest["categories"].values()]
    assert [line.rpartition(" ")[2] for line in told] == [f"{threshold:.3g}" for threshold in thresholds]
    assert set(thresholds) != {0.5}


def test_a_sweep_leaves_no_manifest_over_the_weights_it_copies(tiny_model_dir, tmp_path):
    out, config = tmp_path / "judges", settings(tiny_model_dir)
    train(config, out)
    points = sweep.combinations(config, {"harden": ["0.5"]}, lambda each: "x")
    sweep.sweep(points, out, lambda each, folder: train(each, folder)[0], lambda rows: None)
    with pytest.raises(DataError, match="holds no judges"):
        ensemble.load(out)


@pytest.mark.parametrize("changes", [{"head": "verdict", "epochs": 1, "lora_layers": 1}, {}], ids=["lora", "probe"])
def test_a_resumed_run_trains_what_an_uninterrupted_one_does(tiny_model_dir, tmp_path, changes):
    config = settings(tiny_model_dir, **changes)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "structure")
    torch.manual_seed(7)  # as another process may start
    trained = train(config, tmp_path / "parts")[1]
    assert trained == ({"structure"} if changes else set(CATEGORIES))  # the layer of probes is chosen for all together
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("head", ["verdict", "probe"])
def test_damaged_judges_are_one_line(tiny_model_dir, tmp_path, head):
    train(settings(tiny_model_dir, head=head, epochs=1), tmp_path)
    record = (tmp_path / "style" / ensemble.RECORD).read_text()
    [file] = (tmp_path / "style").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"the weights in .*style cannot be loaded \("):
        ensemble.load(tmp_path)
    shutil.rmtree(tmp_path / "style")
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / ensemble.RECORD).write_text(record)
    with pytest.raises(DataError, match="lacks the weights of the specialist 'style'"):
        ensemble.load(tmp_path)
    (tmp_path / ensemble.MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json lacks 'base', so it is not of judges"):
        ensemble.load(tmp_path)


def test_settings_of_another_version_are_named(tiny_model_dir, tmp_path):
    manifest = train(settings(tiny_model_dir), tmp_path)[0]
    assert ensemble.settings_of(manifest).head == "probe"
    manifest["config"]["wings"] = 2
    with pytest.raises(DataError, match="with a setting 'wings' that"):
        ensemble.settings_of(manifest)


def test_judges_need_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    labels = DEMO / "pool.parquet"  # not looked at
    for command in (("train-judge", labels, "-o"), ("transfer", labels, "-j")):
        assert fails(3, *command, tmp_path / "out").endswith("out is a file; name a folder")


def test_rows_are_evened_out_in_training_alone(tiny_model_dir, tmp_path):
    table = [row | {"followed": row["query_id"] not in ("q1", "q4", "q16")} for row in rows()]
    table = [row | {"category": "style"} for row in table]
    plain, even = (
        train(settings(tiny_model_dir, balance=how), tmp_path / how, table)[0] for how in ("weights", "rows")
    )
    assert even["data"]["n"]["train"] == 4 < plain["data"]["n"]["train"]
    assert even["data"]["n"]["validation"] == plain["data"]["n"]["validation"] == 42
    validation = [row["followed"] for row in table if row["split"] == "validation"]
    assert even["categories"]["style"]["prevalence"] == sum(validation) / len(validation)


def test_a_query_on_two_sides_is_named(tiny_model_dir, tmp_path):
    table = [*rows(), rows()[0] | {"response_id": "other", "split": "train"}]
    with pytest.raises(DataError, match="the query q0 is in validation and in train; give all its rows one value"):
        train(settings(tiny_model_dir), tmp_path, table)


def test_the_card_counts_what_the_judges_were_trained_on(tiny_model_dir, tmp_path):
    other, rules = ([row | {"query_id": f"{how} {row['query_id']}"} for row in rows(30)] for how in ("other", "rule"))
    other = [row | {"category": "layout"} for row in other]
    rules = [row | {"kind": "rule"} for row in rules]
    lost = [*rows(3, followed=None), *rows(2, response=None), *rows(1, category="layout", followed=None)]
    manifest = train(settings(tiny_model_dir), tmp_path, [*rows(), *other, *rules, *lost])[0]
    data = manifest["data"]
    assert (data["n"], data["n_rules"], data["n_invalid"]) == ({"train": 78, "validation": 42, "test": 0}, 30, 5)
    assert len((tmp_path / ensemble.QUERIES).read_text().split()) == 78
    told = card(manifest)
    assert "78 rows in train, 42 in validation, 0 in test (by query); 5 without a verdict and 30 rules" in told
