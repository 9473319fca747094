"""From a judge's raw scores to verdicts that can be relied on: temperature, threshold, abstain band.

In: the truth and the raw scores of one category's held-out rows. Out: a `Calibration`, which the manifest holds and every
later score goes through. Everything is chosen on the rows it is given, so what it is worth is measured on others.
"""

from dataclasses import dataclass
from typing import overload

import numpy as np
from scipy.special import betaincinv

from tjd.metrics import best_threshold

EPS = 1e-6  # scores are held this far from 0 and 1: a logit must be finite
LEAST, MOST = 0.1, 10.0  # temperatures
DOUBT = 0.2  # a target precision may be missed in so many cases of choosing a threshold


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a raw score of one category becomes a score and a verdict."""

    temperature: float  # the logit is divided by it: above 1 the judge was too sure of itself
    threshold: float  # at or above which a tempered score counts as followed
    band: tuple[float, float] | None  # a tempered score strictly between has no verdict
    target_recall: float | None  # share of followed rows that the target precision keeps; null without, or not reached


def calibrate(followed_N: np.ndarray, raw_N: np.ndarray, *, target_precision: float, abstain: float) -> Calibration:
    """Fit everything on held-out rows.

    Args:
        followed_N: The truth, boolean.
        raw_N: P(followed) as the model gives it.
        target_precision: The precision that the threshold must reach; 0 takes the greatest balanced accuracy. Where none
            is found to reach it the same is taken, and `target_recall` is null.
        abstain: Share of the rows to leave without a verdict, at most.
    """
    temperature = fit_temperature(followed_N, raw_N)
    scores_N = tempered(raw_N, temperature)
    found = threshold_at_precision(followed_N, scores_N, target_precision) if target_precision else None
    threshold = found[0] if found else best_threshold(followed_N, scores_N)
    return Calibration(temperature, threshold, abstain_band(scores_N, threshold, abstain), found[1] if found else None)


@overload
def tempered(scores: float, temperature: float) -> float: ...
@overload
def tempered(scores: np.ndarray, temperature: float) -> np.ndarray: ...
def tempered(scores: float | np.ndarray, temperature: float) -> float | np.ndarray:
    """Divide the logits of scores by a temperature; their order stays. At 1 they are left as they are."""
    if temperature == 1:
        return scores
    out = _sigmoid(_logit(scores) / temperature)
    return out if isinstance(scores, np.ndarray) else float(out)


def fit_temperature(followed_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The temperature with the least cross-entropy (Guo et al., arXiv:1706.04599); 1 where there is a single class.

    Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0, as in Platt scaling: without them a few rows
    that happen to be separated would ask for scores of 0 and 1. One number cannot move the mean score, so where a judge
    was trained on evened-out classes the error from the other prevalence stays.
    """
    n_pos, n_neg = int(followed_N.sum()), int((~followed_N).sum())
    if not n_pos or not n_neg:
        return 1.0
    logits_N = _logit(scores_N)
    target_N = np.where(followed_N, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    low, high = 1 / MOST, 1 / LEAST  # of the inverse temperature, in which the loss is convex
    for _ in range(60):
        middle = np.sqrt(low * high)
        slope = ((_sigmoid(middle * logits_N) - target_N) * logits_N).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(1 / np.sqrt(low * high))


def threshold_at_precision(followed_N: np.ndarray, scores_N: np.ndarray, target: float) -> tuple[float, float] | None:
    """A low threshold at which precision is `target` or better, and the recall that it keeps.

    What must reach the target is not the share that was seen but its one-sided 80% lower bound (Clopper and Pearson's). The
    best of many cuts would reach it by luck, so they are tested in a fixed order, from the strictest with enough rows
    downwards, until one fails: then a threshold whose precision is lower is chosen in at most 20 of 100 cases however many
    cuts there are (rows of one query count as if they were independent). Enough are so many that the bound can be reached, 10
    for 0.85; or that it can be with one wrong, 19, where those are a fifth of all rows at most: a single mistake among the
    surest verdicts then does not end the search (and a judge that is right on fewer rows only gets no threshold). The 20 of
    100 hold for the judge that gave the scores; probes of cross-validation are fitted anew on all rows, so for them nearly.

    Returns:
        Threshold and recall, or None if no threshold reaches it.
    """
    if not followed_N.any():
        return None
    order = np.argsort(-scores_N, kind="stable")
    cuts, first = np.unique(-scores_N[order], return_index=True)  # strictest first; equal scores are accepted together
    n_C = np.append(first[1:], len(scores_N))
    n_right_C = followed_N[order].cumsum()[n_C - 1]  # accepted and followed, per cut
    one_wrong_C = _least_share(n_C - 1, n_C) >= target
    spared = bool((one_wrong_C & (n_C <= len(scores_N) / 5)).any())
    enough = np.flatnonzero(one_wrong_C if spared else _least_share(n_C, n_C) >= target)
    if not len(enough):
        return None
    reached = _least_share(n_right_C, n_C)[enough] >= target
    last = enough[np.logical_and.accumulate(reached)][-1:]
    return (float(-cuts[last[0]]), float(n_right_C[last[0]] / followed_N.sum())) if len(last) else None


def abstain_band(scores_N: np.ndarray, threshold: float, share: float) -> tuple[float, float] | None:
    """The band around a threshold, of equal width in logits on both sides, that holds at most this share of the scores.

    Returns:
        Its two ends, which themselves get a verdict; None if it would hold no score.
    """
    middle = _logit(threshold)
    distances = np.concatenate([np.sort(np.abs(_logit(scores_N) - middle)), [np.inf]])
    ends = np.flatnonzero(np.diff(distances) > EPS) + 1  # so many scores can be inside: equal ones are together
    ends = ends[ends <= int(share * len(scores_N))]
    if not len(ends):
        return None
    nearest_out = distances[ends[-1]]
    inside = distances[ends[-1] - 1]
    reach = (inside + nearest_out) / 2 if np.isfinite(nearest_out) else inside + 1
    return float(_sigmoid(middle - reach)), float(_sigmoid(middle + reach))


def _least_share(n_right: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Clopper and Pearson's lower bound of a share: any lower one shows so many right in at most 20 of 100 cases."""
    return np.where(n_right > 0, betaincinv(np.maximum(n_right, 1), n - n_right + 1, DOUBT), 0.0)


def _logit(scores: float | np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, EPS, 1 - EPS)
    return np.log(clipped / (1 - clipped))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
