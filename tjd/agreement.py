"""How far raters agree, and how far beyond chance, with 95% bootstrap intervals over queries.

In: ratings of rows by raters, where some may be missing. Out: estimates. Every measure here is a function of sums over
rows, and a resample of queries only weighs what each query adds to them; so a million rows take little memory. A
measure that is undefined (kappa, where all ratings are of one class) is NaN, never 0 or 1.
"""

from collections.abc import Sequence

import numpy as np

from tjd.metrics import N_RESAMPLES, Estimate, estimate, share


def resampled_sums(parts_N_S: np.ndarray, query_N: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Sums over rows under each resample of queries.

    Args:
        parts_N_S: What each row adds to S sums.
        query_N: An integer per row; equal ones are drawn together.
        seed: Of the draws.

    Returns:
        [1 + N_RESAMPLES, S]; row 0 is the plain sum.
    """
    _, index_N = np.unique(query_N, return_inverse=True)
    n_queries = int(index_N.max()) + 1
    sums_Q_S = np.stack([np.bincount(index_N, weights=part_N, minlength=n_queries) for part_N in parts_N_S.T], axis=1)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(n_queries, size=n_queries) for _ in range(N_RESAMPLES))
    resamples = [np.bincount(drawn, minlength=n_queries) @ sums_Q_S for drawn in draws]
    return np.stack([sums_Q_S.sum(axis=0), *resamples])


def fleiss_parts(counts_N_K: np.ndarray) -> np.ndarray:
    """What each row adds to Fleiss' kappa.

    Args:
        counts_N_K: How many of a row's ratings are of each of K classes. Rows may have different numbers of ratings;
            those with fewer than two add nothing.

    Returns:
        [N, 2 + K]: the share of its pairs of ratings that agree, 1 for the row, and its ratings by class.
    """
    n_N = counts_N_K.sum(axis=1)
    counted_N = n_N > 1
    pairs_N = np.where(counted_N, n_N * (n_N - 1), 1)
    agreeing_N = (counts_N_K * (counts_N_K - 1)).sum(axis=1) / pairs_N
    return np.column_stack([agreeing_N, np.ones(len(n_N)), counts_N_K]) * counted_N[:, None]


def fleiss(sums_R_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed agreement (the mean share of a row's pairs that agree) and that by chance, each [R], of `fleiss_parts`.

    Source: Fleiss, Measuring nominal scale agreement among many raters, 1971; for a constant number of ratings the same.
    """
    ratings_R_K = sums_R_S[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares_R_K = ratings_R_K / ratings_R_K.sum(axis=1, keepdims=True)
        return sums_R_S[:, 0] / sums_R_S[:, 1], (shares_R_K**2).sum(axis=1)


def cohen_parts(first_N: np.ndarray, second_N: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """What each row adds to Cohen's kappa of two raters: [N, K * K], 1 at the classes they gave; 0 where one is missing."""
    return np.column_stack([(first_N == one) & (second_N == other) for one in classes for other in classes]).astype(
        float
    )


def cohen(sums_R_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed agreement and that by chance, each [R], of `cohen_parts`."""
    k = round(sums_R_S.shape[1] ** 0.5)
    table_R_K_K = sums_R_S.reshape(-1, k, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        table_R_K_K = table_R_K_K / table_R_K_K.sum(axis=(1, 2), keepdims=True)
    agreement_R = np.trace(table_R_K_K, axis1=1, axis2=2)
    return agreement_R, (table_R_K_K.sum(axis=1) * table_R_K_K.sum(axis=2)).sum(axis=1)


def kappa(agreement_R: np.ndarray, chance_R: np.ndarray) -> np.ndarray:
    """The agreement beyond chance, as a share of what there is room for; NaN where chance alone leaves no room."""
    room_R = 1 - chance_R
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room_R > 1e-12, (agreement_R - chance_R) / room_R, np.nan)


def kappa_estimate(agreement_R: np.ndarray, chance_R: np.ndarray, n_queries: int) -> Estimate:
    """Kappa with its interval.

    Where all agree, resampling knows no doubt: there the bound of the agreement (`metrics.share`) gives that of kappa.
    """
    found = estimate(kappa(agreement_R, chance_R), n_queries)
    if found.value < 1 or n_queries < 2 or np.isnan(found.value):
        return found
    least = np.array([share(agreement_R, n_queries).low])
    return Estimate(1.0, float(kappa(least, chance_R[:1])[0]), 1.0)
