"""How well a judge agrees with the ground truth, with 95% bootstrap intervals over queries.

In: verdicts and scores per row, and the query each row belongs to. Out: point values and intervals. Rows of one query
are drawn together, since they are not independent. A metric without a value (precision without a positive verdict, say)
is NaN, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

METRICS = ("precision", "recall", "f1", "balanced_accuracy", "auroc", "ece", "coverage")
SHARES = ("precision", "recall", "balanced_accuracy", "auroc")  # those that can be 0 or 1 in every resample
N_RESAMPLES = 1000
N_BINS = 10  # of the reliability table and the calibration error


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval; NaN where undefined, the interval also where a single query is behind it."""

    value: float
    low: float
    high: float


def resample_weights(query_ids: Sequence[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each row is drawn in each bootstrap resample of queries.

    Returns:
        [1 + n_resamples, N] counts; row 0 is all ones, for the point value.
    """
    queries, index_N = np.unique(np.asarray(query_ids, dtype=object), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=n_resamples)
    weights_RN = draws.astype(np.float32)[:, index_N]
    return np.concatenate([np.ones((1, len(index_N)), np.float32), weights_RN])


def judge_metrics(
    followed_N: np.ndarray,
    scores_N: np.ndarray,
    threshold: float | np.ndarray,
    weights_RN: np.ndarray,
    decided_N: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Each metric under each resample.

    Args:
        followed_N: The ground truth, boolean.
        scores_N: P(followed) in [0, 1].
        threshold: At or above which a score counts as followed; one, or one per row.
        weights_RN: From `resample_weights`.
        decided_N: Where the judge gave a verdict; by default everywhere. `coverage` is their share. Precision, recall, F1
            and balanced accuracy are of these rows alone, AUROC and the calibration error (`ece`) of all.

    Returns:
        For each of `METRICS` an array [R], in [0, 1] or NaN.
    """
    said_N = scores_N >= threshold
    decided_N = np.ones(len(scores_N), dtype=bool) if decided_N is None else decided_N
    mass = {
        (truth, said): weights_RN @ (decided_N & (followed_N == truth) & (said_N == said)).astype(np.float32)
        for truth in (True, False)
        for said in (True, False)
    }
    true_pos, false_neg = mass[True, True], mass[True, False]
    false_pos, true_neg = mass[False, True], mass[False, False]
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = true_pos / (true_pos + false_neg)
        return {
            "precision": true_pos / (true_pos + false_pos),
            "recall": recall,
            "f1": 2 * true_pos / (2 * true_pos + false_pos + false_neg),
            "balanced_accuracy": (recall + true_neg / (true_neg + false_pos)) / 2,
            "auroc": _auroc(followed_N, scores_N, weights_RN),
            "ece": _calibration_error(followed_N, scores_N, weights_RN),
            "coverage": weights_RN @ decided_N.astype(np.float32) / weights_RN.sum(axis=1),
        }


def contributing(
    followed_N: np.ndarray,
    scores_N: np.ndarray,
    threshold: float | np.ndarray,
    query_ids: Sequence[str],
    decided_N: np.ndarray | None = None,
) -> dict[str, int]:
    """How many queries each metric of `judge_metrics` rests on: precision on accepted rows, recall on followed ones.

    Balanced accuracy and AUROC rest on those of the verdict that has fewer.
    """
    ids_N = np.asarray(query_ids, dtype=object)
    decided_N = np.ones(len(ids_N), dtype=bool) if decided_N is None else decided_N
    of = {"precision": decided_N & (scores_N >= threshold), "recall": decided_N & followed_N}
    n = {metric: len(set(ids_N[of[metric]] if metric in of else ids_N)) for metric in METRICS}
    n_fewer = min(len(set(ids_N[decided_N & (followed_N == truth)])) for truth in (True, False))
    return n | {"balanced_accuracy": n_fewer, "auroc": n_fewer}


def judge_estimates(values: Mapping[str, np.ndarray], n_queries: Mapping[str, int]) -> dict[str, Estimate]:
    """An estimate per metric, from `judge_metrics` and `contributing`."""
    return {
        metric: (share if metric in SHARES else estimate)(values_R, n_queries[metric])
        for metric, values_R in values.items()
    }


def share(values_R: np.ndarray, n_queries: int) -> Estimate:
    """`estimate` of a share of so many queries' rows.

    At 0 or 1 resampling knows no doubt: there Clopper and Pearson's bound of 0 or n of n queries stands in.
    """
    found = estimate(values_R, n_queries)
    if n_queries < 2 or found.value not in (0, 1):
        return found
    unseen = 1 - 0.025 ** (1 / n_queries)
    return Estimate(0.0, 0.0, unseen) if found.value == 0 else Estimate(1.0, 1 - unseen, 1.0)


def estimate(values_R: np.ndarray, n_queries: int | None = None) -> Estimate:
    """The point value (row 0) and the 95% percentile interval of the resamples where the metric is defined.

    Of a single query there is no interval: its resamples all equal it.
    """
    defined = values_R[1:][np.isfinite(values_R[1:])]
    if not np.isfinite(values_R[0]) or len(defined) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    if n_queries == 1:
        return Estimate(float(values_R[0]), float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(float(values_R[0]), float(low), float(high))


def plain(value: Estimate) -> dict[str, float | None]:
    """`value`, `low` and `high` as the METRICS table holds them: null where undefined."""
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: None if np.isnan(number) else number for name, number in numbers.items()}


def equal_mass_bins(scores_N: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """The bin of each score, 0 to `n_bins` - 1: equally many rows in each, but equal scores stay together."""
    rank_N = np.searchsorted(np.sort(scores_N), scores_N, side="left")
    return rank_N * n_bins // max(1, len(scores_N))


def reliability(
    followed_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray, query_ids: Sequence[str]
) -> list[dict[str, float]]:
    """The reliability table: per bin its rows `n`, their mean `score`, and the share followed with its interval.

    A calibrated judge has `value` equal to `score` in every bin, but for chance.
    """
    bins_N, ids_N = equal_mass_bins(scores_N), np.asarray(query_ids, dtype=object)
    table = []
    for index in np.unique(bins_N):
        of_N = bins_N == index
        with np.errstate(invalid="ignore"):
            values_R = weights_RN[:, of_N] @ followed_N[of_N].astype(np.float32) / weights_RN[:, of_N].sum(axis=1)
        found = estimate(values_R, len(set(ids_N[of_N])))
        shown = {"score": float(scores_N[of_N].mean()), "value": found.value, "low": found.low, "high": found.high}
        table.append({"bin": int(index), "n": int(of_N.sum()), **shown})
    return table


def best_threshold(followed_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The threshold with the greatest balanced accuracy, midway between two scores; 0.5 if there is a single class.

    Among equals the one nearest to the middle of the plateau's scores is taken, so that one row cannot move it far.
    """
    if len(np.unique(followed_N)) < 2:
        return 0.5
    scores = np.unique(scores_N)
    cuts = np.concatenate([[scores[0]], (scores[1:] + scores[:-1]) / 2, [min(1.0, scores[-1] + 1e-6)]])
    pos, neg = np.sort(scores_N[followed_N]), np.sort(scores_N[~followed_N])
    n_refused_C = np.searchsorted(pos, cuts), np.searchsorted(neg, cuts)  # followed ones, and the others
    balanced_C = (len(pos) - n_refused_C[0]) / len(pos) + n_refused_C[1] / len(neg)  # recall + specificity
    best = np.flatnonzero(balanced_C >= balanced_C.max() - 1e-12)
    return float(cuts[best[len(best) // 2]])


def thresholds_by_category(
    categories: Sequence[str], followed_N: np.ndarray, scores_N: np.ndarray
) -> Mapping[str, float]:
    """`best_threshold` within each category."""
    names_N = np.asarray(categories, dtype=object)
    return {
        str(name): best_threshold(followed_N[names_N == name], scores_N[names_N == name]) for name in np.unique(names_N)
    }


def _auroc(followed_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Weighted area under the ROC curve: the mass of (positive, negative) pairs in the right order, ties counting half."""
    order = np.argsort(scores_N, kind="stable")
    _, starts = np.unique(scores_N[order], return_index=True)  # runs of equal scores
    pos_RK = np.add.reduceat(weights_RN[:, order] * followed_N[order], starts, axis=1)
    neg_RK = np.add.reduceat(weights_RN[:, order] * ~followed_N[order], starts, axis=1)
    below_RK = np.cumsum(neg_RK, axis=1) - neg_RK
    with np.errstate(divide="ignore", invalid="ignore"):
        return (pos_RK * (below_RK + neg_RK / 2)).sum(axis=1) / (pos_RK.sum(axis=1) * neg_RK.sum(axis=1))


def _calibration_error(followed_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Expected calibration error: the mean distance of a bin's mean score from its share followed, by the bin's mass.

    The bins are those of all rows, under every resample; chance alone makes it greater than 0, the more so the fewer rows.
    """
    in_bin_NK = equal_mass_bins(scores_N)[:, None] == np.arange(N_BINS)
    excess_NK = (in_bin_NK * (followed_N - scores_N)[:, None]).astype(np.float32)
    return np.abs(weights_RN @ excess_NK).sum(axis=1) / weights_RN.sum(axis=1)
