import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd.config import TransferConfig
from tjd.errors import DataError
from tjd.rewards import Verdict
from tjd.splits import SPLITS
from tjd.stages.transfer import Cell, best_sets, categories_to_test, smallest, transfer

NAMES = ("style", "structure", "semantic")


def table(n=180):
    """The truth is whether a word stands in the response; style and structure go by the same word."""
    words = {"style": "warm", "structure": "warm", "semantic": "moon"}
    rows = []
    for i in range(n):
        category, followed = NAMES[i % 3], i % 2 == 0
        rows.append(
            {"query_id": f"q{i}", "query": "q", "constraint": "c", "category": category, "followed": followed,
             "split": SPLITS[i // 6 % 3], "response": words[category] if followed else "cold"}
        )  # fmt: skip
    return rows


def knows(word):
    return lambda rows: [Verdict(True, 0.9 if word in row["response"] else 0.2) for row in rows]


SPECIALISTS = {"style": knows("warm"), "structure": knows("warm"), "semantic": knows("moon")}


def test_the_matrix_says_what_carries_over():
    metrics = transfer(table(), SPECIALISTS, TransferConfig()).metrics
    auroc = {(row["judge"], row["category"]): row["value"] for row in metrics if row["metric"] == "auroc"}
    assert auroc["style", "structure"] == auroc["structure", "style"] == auroc["style", "style"] == 1
    assert auroc["style", "semantic"] == auroc["semantic", "style"] == 0.5
    assert all(row["low"] <= row["value"] <= row["high"] for row in metrics)
    assert {(row["n"], row["prevalence"]) for row in metrics} == {(20, 0.5)}


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_the_smallest_set_leaves_out_what_another_covers(metric):
    best = transfer(table(), SPECIALISTS, TransferConfig(metric=metric, target=0.9)).best
    assert [len(each.specialists) for each in best] == [1, 2, 3]
    least = smallest(best)
    assert least is not None
    assert least.specialists == ("style", "semantic")
    assert least.assigned == {"style": "style", "structure": "style", "semantic": "semantic"}
    assert least.test.value == 1
    assert smallest(transfer(table(), {"style": knows("warm")}, TransferConfig(target=0.9)).best) is None


def cell(value):
    return Cell({"auroc": value}, {"auroc": np.full(3, value)}, 0.5, 1, 1, 0, 0.5)


@given(st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), st.floats(0, 1)))
def test_more_specialists_never_do_worse_where_they_are_chosen(values):
    cells = {(name, c): cell(values.get((name, c), 0.5)) for name in "abcd" for c in "xyz"}
    best = list(best_sets(cells, "auroc", 0.8))
    worst = [each.validation for each in best]
    assert worst == sorted(worst)
    assert best[-1].validation == min(max(cells[name, c].validation["auroc"] for name in "abcd") for c in "xyz")
    for each in best:
        assert each.reached == (each.validation >= 0.8)
        assert set(each.assigned.values()) <= set(each.specialists)
        assert each.test.value == pytest.approx(each.validation)  # the same in this table


def test_a_category_must_be_testable():
    rows = [row for row in table() if row["category"] != "semantic" or row["followed"]]
    assert categories_to_test(rows, 0) == ["structure", "style"]
    untrained = [row for row in rows if row["split"] != "train" or row["category"] == "style"]
    assert categories_to_test(untrained, 0, SPLITS) == ["style"]
    with pytest.raises(DataError, match="no category has rows of both verdicts"):
        transfer([row for row in table() if row["split"] != "test"], SPECIALISTS, TransferConfig())


def test_what_a_specialist_fails_on_is_counted():
    broken = SPECIALISTS | {"style": lambda rows: [Verdict(None, error="lost") for _ in rows]}
    rows = transfer(table(), broken, TransferConfig()).metrics
    lost = [row for row in rows if row["judge"] == "style"]
    assert {(row["n"], row["n_invalid"], row["value"], row["prevalence"]) for row in lost} == {(0, 20, None, None)}
    assert {row["n_invalid"] for row in rows if row["judge"] != "style"} == {0}


def test_a_single_query_gives_no_interval():
    rows = [row | {"query_id": "one"} if row["split"] == "test" else row for row in table()]
    found = transfer(rows, SPECIALISTS, TransferConfig())
    assert {(row["low"], row["high"]) for row in found.metrics} == {(None, None)}
    assert all(row["value"] is not None for row in found.metrics)
    assert all(each.test.value >= 0.5 and np.isnan([each.test.low, each.test.high]).all() for each in found.best)


def test_the_sets_of_many_specialists_are_not_searched():
    found = transfer(table(), {f"category {k}": knows("warm") for k in range(13)}, TransferConfig())
    assert len({row["judge"] for row in found.metrics}) == 13
    assert found.best == []


def test_rules_are_not_for_judges():
    rules = [row | {"kind": "rule", "category": "layout"} for row in table()]
    assert categories_to_test([*table(), *rules], 0) == ["semantic", "structure", "style"]
