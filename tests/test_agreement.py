"""Kappa against published worked examples and scikit-learn, and its bootstrap against the one of all other metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from tjd.agreement import cohen, cohen_parts, fleiss, fleiss_parts, kappa, kappa_estimate, resampled_sums
from tjd.metrics import resample_weights

# Fleiss 1971, table 1: 30 patients, 6 psychiatrists, 5 diagnoses
FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
# the worked example of the encyclopedia's article: 10 subjects, 14 raters, 5 grades
WORKED = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def fleiss_kappa(counts) -> float:
    sums = fleiss_parts(np.array(counts)).sum(axis=0, keepdims=True)
    return float(kappa(*fleiss(sums))[0])


def test_fleiss_kappa_of_published_tables() -> None:
    psychiatrists = [[int(digit) for digit in row] for row in FLEISS_1971.split()]
    assert len(psychiatrists) == 30
    assert {sum(row) for row in psychiatrists} == {6}
    assert fleiss_kappa(psychiatrists) == pytest.approx(0.430, abs=5e-4)
    assert fleiss_kappa(WORKED) == pytest.approx(0.210, abs=5e-4)


def test_rows_with_fewer_than_two_ratings_add_nothing() -> None:
    assert fleiss_kappa([*WORKED, [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]) == fleiss_kappa(WORKED)


@given(st.lists(st.tuples(st.sampled_from([0, 1, -1]), st.sampled_from([0, 1, -1])), min_size=1, max_size=40))
def test_cohen_kappa_is_that_of_scikit_learn(pairs) -> None:
    first, second = np.array(pairs).T
    sums = cohen_parts(first, second, (0, 1)).sum(axis=0, keepdims=True)
    found = kappa(*cohen(sums))[0]
    both = (first != -1) & (second != -1)
    single = len({*first[both], *second[both]}) < 2
    if not both.any() or single:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(first[both], second[both], labels=[0, 1]), abs=1e-12)


def test_sums_are_resampled_as_all_other_metrics_are() -> None:
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 30, 200)
    parts = rng.random((200, 3))
    mine = resampled_sums(parts, queries, seed=3)
    others = resample_weights([str(query) for query in queries]) @ parts
    assert mine[0] == pytest.approx(others[0])
    assert mine.mean(axis=0) == pytest.approx(others.mean(axis=0), rel=0.02)
    assert mine.std(axis=0) == pytest.approx(others.std(axis=0), rel=0.1)
    assert np.corrcoef(mine.T) == pytest.approx(np.corrcoef(others.T), abs=0.05)


def test_an_interval_covers_the_truth_and_shrinks_with_queries() -> None:
    widths = []
    for n_queries in (40, 640):
        rng = np.random.default_rng(1)
        query_N = np.repeat(np.arange(n_queries), 3)
        truth_N = rng.random(len(query_N)) < 0.5
        votes_N_3 = truth_N[:, None] ^ (rng.random((len(query_N), 3)) < 0.1)
        yes_N = votes_N_3.sum(axis=1)
        sums = resampled_sums(fleiss_parts(np.stack([3 - yes_N, yes_N], axis=1)), query_N)
        found = kappa_estimate(*fleiss(sums), n_queries)
        assert found.low < 0.64 < found.high  # 1 - 4 * 0.1 * 0.9
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_perfect_agreement_is_not_certainty() -> None:
    query_N = np.arange(20)
    sums = resampled_sums(fleiss_parts(np.array([[3, 0], [0, 3]] * 10)), query_N)
    found = kappa_estimate(*fleiss(sums), 20)
    assert (found.value, found.high) == (1, 1)
    assert 0.6 < found.low < 0.7  # 0.83 of pairs agree, at the least
    one_class = resampled_sums(fleiss_parts(np.array([[3, 0]] * 20)), query_N)
    assert np.isnan(kappa_estimate(*fleiss(one_class), 20).value)
