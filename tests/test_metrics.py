import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tjd.metrics import (
    METRICS,
    N_BINS,
    best_threshold,
    equal_mass_bins,
    estimate,
    judge_metrics,
    reliability,
    resample_weights,
    thresholds_by_category,
)

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 10), st.integers(0, 5)), min_size=4, max_size=60)


def split(rows):
    followed, scores, queries = zip(*rows, strict=True)
    return np.array(followed), np.array(scores) / 10, [str(q) for q in queries]


@given(rows)
def test_point_values_agree_with_scikit_learn(rows):
    followed, scores, queries = split(rows)
    values = judge_metrics(followed, scores, 0.5, resample_weights(queries, n_resamples=1))
    said = scores >= 0.5
    if len(set(followed)) == 2:
        assert values["auroc"][0] == pytest.approx(reference.roc_auc_score(followed, scores), abs=1e-6)
        assert values["recall"][0] == pytest.approx(reference.recall_score(followed, said), abs=1e-6)
        assert values["balanced_accuracy"][0] == pytest.approx(
            reference.balanced_accuracy_score(followed, said), abs=1e-6
        )
    else:
        assert np.isnan(values["auroc"][0])
    if said.any():
        assert values["precision"][0] == pytest.approx(reference.precision_score(followed, said), abs=1e-6)
    else:
        assert np.isnan(values["precision"][0])


@given(rows, st.randoms())
def test_row_order_changes_nothing(rows, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (
        judge_metrics(f, s, 0.5, resample_weights(q, n_resamples=20)) for f, s, q in (split(rows), split(shuffled))
    )
    for name in METRICS:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5)


def test_a_resample_weighs_all_rows_of_a_query_alike():
    weights = resample_weights(["a", "b", "a", "c"], n_resamples=50)
    assert weights.shape == (51, 4)
    assert (weights[0] == 1).all()
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[1:, [0, 1, 3]].sum(axis=1), 3)


def test_the_interval_covers_the_value_and_narrows_with_more_queries():
    rng = np.random.default_rng(0)
    widths = []
    for n in (50, 2000):
        followed = rng.random(n) < 0.5
        scores = np.clip(followed * 0.3 + rng.random(n) * 0.7, 0, 1)
        values = judge_metrics(followed, scores, 0.5, resample_weights([str(i) for i in range(n)]))
        found = estimate(values["auroc"])
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_best_threshold_separates_what_can_be_separated():
    followed = np.array([False, False, True, True])
    cut = best_threshold(followed, np.array([0.1, 0.2, 0.6, 0.9]))
    assert 0.2 < cut < 0.6


@given(st.lists(st.tuples(st.booleans(), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))), min_size=2))
def test_best_threshold_is_that_of_trying_every_cut_on_every_row(rows):
    followed, scores = (np.array(column) for column in zip(*rows, strict=True))
    if followed.all() or not followed.any():
        return
    distinct = np.unique(scores)
    cuts = np.concatenate([[distinct[0]], (distinct[1:] + distinct[:-1]) / 2, [min(1.0, distinct[-1] + 1e-6)]])
    worth = [(scores >= cut)[followed].mean() + (scores < cut)[~followed].mean() for cut in cuts]
    best = np.flatnonzero(np.array(worth) >= max(worth) - 1e-12)
    assert best_threshold(followed, scores) == cuts[best[len(best) // 2]]


def test_best_threshold_needs_little_memory():
    rng = np.random.default_rng(0)
    tracemalloc.start()
    best_threshold(rng.random(20_000) < 0.5, rng.random(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # bytes; a matrix of all cuts and rows has 400e6


def test_a_single_class_leaves_the_threshold_at_one_half():
    assert best_threshold(np.array([True, True]), np.array([0.1, 0.2])) == 0.5


def test_each_category_has_its_own_threshold():
    cuts = thresholds_by_category(["a", "a", "b", "b"], np.array([True, False] * 2), np.array([0.9, 0.8, 0.2, 0.1]))
    assert 0.8 < cuts["a"] < 0.9
    assert 0.1 < cuts["b"] < 0.2


@given(rows)
def test_the_calibration_error_is_the_mean_distance_of_a_bin_from_the_diagonal(rows):
    followed, scores, queries = split(rows)
    weights = resample_weights(queries, n_resamples=3)
    table = reliability(followed, scores, weights, queries)
    expected = sum(row["n"] * abs(row["value"] - row["score"]) for row in table) / len(rows)
    assert judge_metrics(followed, scores, 0.5, weights)["ece"][0] == pytest.approx(expected, abs=1e-6)
    assert sum(row["n"] for row in table) == len(rows)
    assert judge_metrics(followed, followed.astype(float), 0.5, weights)["ece"] == pytest.approx(np.zeros(4))


def test_a_bin_of_a_single_query_has_no_interval():
    scores = np.repeat([0.1, 0.9], 10)
    queries = [*"abcdefghij", *("z" * 10)]
    low, high = reliability(scores > 0.5, scores, resample_weights(queries), queries)
    assert (low["value"], low["low"], low["high"]) == (0, 0, 0)
    assert high["value"] == 1
    assert np.isnan([high["low"], high["high"]]).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_bins_hold_equally_many_rows_and_never_part_equal_scores(scores):
    scores = np.array(scores)
    bins = equal_mass_bins(scores)
    assert bins.min() == 0
    assert bins.max() < N_BINS
    for score in scores:
        assert len(set(bins[scores == score])) == 1
    if len(set(scores)) == len(scores):
        counts = np.bincount(bins, minlength=N_BINS)
        assert counts.max() - counts.min() <= 1


def test_what_was_not_decided_counts_in_the_coverage_alone():
    followed, scores = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1])
    weights = resample_weights([*"abcd"], n_resamples=2)
    sure = judge_metrics(followed, scores, 0.5, weights, np.array([True, False, False, True]))
    every = judge_metrics(followed, scores, 0.5, weights)
    assert (sure["coverage"][0], sure["precision"][0], sure["recall"][0]) == (0.5, 1.0, 1.0)
    assert (every["coverage"][0], every["precision"][0], every["recall"][0]) == (1.0, 0.5, 0.5)
    assert sure["auroc"][0] == every["auroc"][0] == 0.75
