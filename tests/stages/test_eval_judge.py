"""What is compared, what is left out, and how sure the figures are."""

from dataclasses import replace

import pytest

from tjd.config import EvalJudgeConfig
from tjd.errors import DataError
from tjd.rewards import Verdict
from tjd.stages.eval_judge import Judge, eval_judge

CONFIG = EvalJudgeConfig(split="all")


def table(n=40, **changes):
    return [
        {"query_id": f"q{i}", "query": "q", "constraint": "c", "category": ("style", "semantic")[i % 2], "kind": "soft",
         "followed": i % 4 < 2, "response": "warm" if i % 4 < 2 else "cold"} | changes
        for i in range(n)
    ]  # fmt: skip


def knows(rows):
    return [Verdict("warm" in row["response"], 0.9 if "warm" in row["response"] else 0.2, 0.5) for row in rows]


def measured(rows, *scorers):
    judges = [Judge(f"judge {k}", score, None, choose_thresholds=False) for k, score in enumerate(scorers or (knows,))]
    found = eval_judge(rows, judges, CONFIG).metrics
    return {(row["judge"], row["category"], row["metric"]): row for row in found}


def test_rules_are_no_work_for_judges_whatever_their_category():
    rows = [*table(), *table(8, kind="rule", response="cold", followed=True)]
    found = measured(rows)["judge 0", "style", "recall"]
    assert (found["value"], found["n"], found["n_invalid"]) == (1.0, 20, 0)
    del rows[0]["kind"]
    rows[1]["kind"] = None
    assert measured(rows)["judge 0", "all", "recall"]["n"] == 40


def test_what_has_no_verdict_counts_in_its_category():
    rows = [*table(), *table(6, followed=None), *table(1, response=None)]
    found = measured(rows)
    assert [found["judge 0", category, "auroc"]["n_invalid"] for category in ("all", "style", "semantic")] == [7, 4, 3]


def test_a_share_of_one_is_not_certain_and_a_single_query_says_nothing_of_others():
    for n in (4, 40):
        precision = measured(table(n))["judge 0", "all", "precision"]
        assert (precision["value"], precision["high"]) == (1.0, 1.0)
        assert precision["low"] == pytest.approx(0.025 ** (2 / n))  # half of the queries have an accepted row
    wrong = measured(table(), lambda rows: [Verdict(False, 0.1, 0.5) for _ in rows])
    assert wrong["judge 0", "all", "recall"]["high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    one = measured(table(query_id="q"), knows, lambda rows: [Verdict(True, 0.6, 0.5) for _ in rows])
    assert {(row["low"], row["high"]) for row in one.values()} == {(None, None)}
    assert one["judge 0 - judge 1", "all", "precision"]["value"] == 0.5


def test_rows_of_each_value_of_a_column_are_measured_by_themselves_with_one_scoring():
    rows = [*table(40, model="a"), *table(20, model="b", followed=False), *table(4, model=None)]
    rows[40]["followed"] = None
    asked = []

    def counts(some):
        asked.extend(some)
        return knows(some)

    found = eval_judge(rows, [Judge("judge", counts, None, choose_thresholds=False)], replace(CONFIG, by=("model",)))
    assert len(asked) == 63
    of = {(row["group"], row["category"]): row for row in found.metrics if row["metric"] == "precision"}
    assert {group for group, _ in of} == {"all", "model=a", "model=b"}
    shown = ("value", "n", "n_invalid", "prevalence")
    assert [of["model=a", "all"][name] for name in shown] == [1.0, 40, 0, 0.5]
    assert [of["model=b", "all"][name] for name in shown] == [0.0, 19, 1, 0.0]
    assert (of["all", "all"]["n"], of["all", "style"]["n"], of["model=b", "style"]["n"]) == (63, 31, 9)
    assert len(found.reliability) == len({(row["category"], row["bin"]) for row in found.reliability})


def test_a_column_of_many_values_is_none_to_measure_by():
    with pytest.raises(DataError, match="--by model: it has 60 values in the rows to measure; 50 at most"):
        eval_judge(
            [row | {"model": f"m{index}"} for index, row in enumerate(table(60))],
            [Judge("judge", knows, None, choose_thresholds=False)],
            replace(CONFIG, by=("model",)),
        )
