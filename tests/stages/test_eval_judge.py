"""What is compared, what is left out, and how sure the figures are."""

import pytest

from tjd.config import EvalJudgeConfig
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
