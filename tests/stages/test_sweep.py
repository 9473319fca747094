import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_cli import fails, tjd
from tjd.config import TrainJudgeConfig
from tjd.errors import DataError, TrainingError
from tjd.stages import sweep


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Followed if and only if the response has an `a`."""
    rows = [
        {"response_id": f"r{i}", "constraint_id": "c", "query_id": f"q{i // 3}", "query": f"q{i // 3}",
         "category": ("style", "semantic")[i % 3 == 0], "constraint": "Be kind.", "followed": i % 2 == 0,
         "response": ("bca" if i % 2 == 0 else "bcd") * (1 + i % 4)}
        for i in range(240)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(folder):
    return pq.read_table(folder / sweep.FILE).to_pylist()


def trained(result):
    return [line for line in result.stderr.splitlines() if line.startswith("combination ")]


@pytest.mark.slow
def test_the_best_combination_becomes_the_judges(labels, tiny_model_dir, tmp_path):
    train = ("train-judge", labels, "-b", tiny_model_dir, "--full", "--epochs", 8, "--patience", 8, "--abstain", 0.1)
    rates = ("--sweep", "learning-rate=1e-7,3e-3,1e30")
    result = tjd(*train, *rates, "-o", tmp_path / "judges")
    assert result.exit_code == 0
    assert trained(result)[1] == "combination 2 of 3: learning_rate 0.003"
    rows = rows_of(tmp_path / "judges")
    assert [(row["combination"], row["category"]) for row in rows] == [
        (1, "style"), (1, "semantic"), (2, "style"), (2, "semantic"), (3, None),
    ]  # fmt: skip
    assert [row["chosen"] for row in rows] == [False, False, True, True, False]
    assert [json.loads(row["settings"]) for row in rows[1:3]] == [{"learning_rate": 1e-7}, {"learning_rate": 3e-3}]
    assert min(row["auroc"] for row in rows[2:4]) > 0.9
    assert max(row["validation_loss"] for row in rows[2:4]) < min(row["validation_loss"] for row in rows[:2])
    assert rows[4]["error"].endswith("lower --learning-rate")
    assert rows[4]["auroc"] is None
    manifest = json.loads((tmp_path / "judges" / "manifest.json").read_text())
    assert (manifest["config"]["learning_rate"], manifest["config"]["abstain"]) == (3e-3, 0.1)
    assert manifest["categories"]["style"]["band"] is not None
    card = (tmp_path / "judges" / "card.md").read_text()
    assert (
        "- learning_rate 0.003: chosen by the mean AUROC on held-out rows among 3 combinations of learning_rate" in card
    )
    assert not (tmp_path / "judges" / sweep.FOLDER).exists()
    assert tjd("score", labels, "-j", tmp_path / "judges", "-o", tmp_path / "scores.parquet").exit_code == 0
    assert tjd(*train, "--learning-rate", 3e-3, "-o", tmp_path / "alone").exit_code == 0
    assert pq.read_table(tmp_path / "alone" / "metrics.parquet") == pq.read_table(
        tmp_path / "judges" / "metrics.parquet"
    )


@pytest.fixture
def probes(labels, tiny_model_dir):
    return ("train-judge", labels, "-b", tiny_model_dir, "--head", "probe", "-c", "style")


def test_a_resumed_sweep_trains_what_is_missing_and_ends_the_same(probes, tmp_path):
    grid = ("--sweep", "harden=0,0.5", "--sweep", "share=1,0.5")
    assert len(trained(tjd(*probes, *grid, "-o", tmp_path / "whole"))) == 4
    assert trained(tjd(*probes, "--sweep", "harden=0.5", "-o", tmp_path / "parts"))
    resumed = tjd(*probes, *grid, "-o", tmp_path / "parts")
    assert [line.partition(":")[0] for line in trained(resumed)] == [f"combination {n} of 4" for n in (1, 2, 4)]
    for name in (sweep.FILE, "manifest.json", "metrics.parquet", "card.md"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.safetensors")}
    again = tjd(*probes, *grid, "--target-precision", 0.9, "-o", tmp_path / "parts")
    assert (trained(again), len(weights)) == ([], 1)
    assert weights == {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.safetensors")}


def test_the_judges_of_all_combinations_may_be_kept(probes, labels, tmp_path):
    out = tmp_path / "judges"
    sweeping = (*probes, "--sweep", "harden=0,0.5", "-o", out)
    assert tjd(*sweeping).exit_code == 0
    assert len(trained(tjd(*sweeping, "--keep"))) == 2  # they were removed
    assert trained(tjd(*sweeping, "--keep")) == []
    for row in rows_of(out):
        manifest = json.loads((out / sweep.FOLDER / row["fingerprint"] / "manifest.json").read_text())
        assert manifest["config"]["harden"] == json.loads(row["settings"])["harden"]
    command = ("score", labels, "-j", out / sweep.FOLDER / rows_of(out)[0]["fingerprint"])
    assert tjd(*command, "-o", tmp_path / "scores.parquet").exit_code == 0


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (["epochs"], "--sweep epochs: write NAME=V1,V2 with a flag of training that takes numbers or a choice"),
        (["learning-rat=1"], "unknown setting to --sweep: 'learning_rat'; did you mean 'learning_rate'?"),
        (["seed=1,2"], "--sweep seed: with another seed other rows are in validation; leave it out of the grid"),
        (["base=a,b"], f"unknown setting to --sweep: 'base'; known: {', '.join(sweep.sweepable())}"),
        (["epochs=1,two"], "--sweep epochs: 'two' is none of its values, which are whole numbers"),
        (["learning-rate=nan"], "--sweep learning_rate: 'nan' is none of its values, which are numbers"),
        (["full=yes"], "--sweep full: 'yes' is none of its values, which are true and false"),
        (["balance=row"], "--sweep balance: 'row' is none of its values, which are weights and rows"),
        (
            ["balance=weights,rows"],
            "--sweep cannot compare these: probes without --balance rows are measured on their training rows too, others on "
            "validation alone; sweep them one after the other",
        ),
        (["epochs=0,1"], "--epochs must be at least 1, not 0"),
        (["epochs=1", "epochs=2"], "--sweep names epochs twice; write all its values in one: epochs=V1,V2,V3"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(probes, grid, told, tmp_path):
    line = fails(2, *probes, *(part for each in grid for part in ("--sweep", each)), "-o", tmp_path / "judges")
    assert line == told
    assert not (tmp_path / "judges").exists()


def test_without_both_verdicts_in_validation_nothing_can_be_chosen(labels, tiny_model_dir, tmp_path):
    rows = [row | {"split": "train"} for row in pq.read_table(labels).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    train = ("train-judge", tmp_path / "labels.parquet", "-b", tiny_model_dir, "--head", "probe")
    line = fails(3, *train, "--balance", "rows", "--sweep", "harden=0,0.5", "-o", tmp_path / "judges")
    assert line == "no category has both verdicts in validation, so --sweep cannot choose; label more"


def row(combination, category, auroc, loss=None, error=None):
    return {"combination": combination, "category": category, "auroc": auroc, "validation_loss": loss, "error": error}


def test_the_choice_is_by_mean_auroc_then_loss_then_order():
    one, two = row(1, "style", 0.7, 0.6), row(2, "style", 0.8, 0.9)
    assert sweep.choose([one, two]) == 2
    assert sweep.choose([one, row(1, "semantic", 0.9, 0.6), two, row(2, "semantic", 0.6, 0.9)]) == 1
    assert sweep.choose([one, row(2, "style", 0.7, 0.5)]) == 2
    assert sweep.choose([one, row(2, "style", 0.7, 0.6)]) == 1
    assert sweep.choose([row(1, "style", 0.7), row(2, "style", 0.7)]) == 1
    assert sweep.choose([row(1, None, None, error="nan"), one | {"combination": 2}]) == 2
    unequal = [one, row(1, "semantic", None), two, row(2, "semantic", 0.1, 0.9)]
    assert sweep.choose(unequal) == 2  # by style, which both have
    with pytest.raises(DataError, match="no category has both verdicts"):
        sweep.choose([row(1, "style", None), row(2, "style", 0.8)])
    with pytest.raises(TrainingError, match="training failed with every combination of --sweep; the first: nan"):
        sweep.choose([row(1, None, None, error="nan")])


def test_the_grid_has_every_combination_once():
    grid = {"epochs": ["1", "2", "1"], "full": ["true", "false"]}
    points = sweep.combinations(TrainJudgeConfig(abstain=0.5), grid, lambda config: f"{config.epochs}{config.full}")
    assert [point.settings for point in points] == [
        {"epochs": epochs, "full": full} for epochs in (1, 2) for full in (True, False)
    ]
    assert [point.number for point in points] == [1, 2, 3, 4]
    assert {point.config.abstain for point in points} == {0}
    assert points[2].label == "epochs 2, full true"
