"""The reward of a response: rules plus judges.

In: one verdict per constraint. Out: `R = mean over rule constraints + mean over soft constraints` (paper, Eq. 5), each
term absent where the instruction has no such constraint. Unlike the paper, a verdict can be missing: then the reward is
null, because a failed judge call is not a violation. A judge that abstains gives no verdict either: the reward is null
then too, but nothing failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ABSTAINED = "abstained"  # the `error` of a judge that is not sure enough: no failure, but no verdict either


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge or checker said of one (response, constraint)."""

    followed: bool | None  # null if it failed or abstained
    score: float | None = None  # P(followed) in [0, 1]; null for a checker, or if the judge failed
    threshold: float | None = None  # at or above which `score` counts as followed
    judge: str | None = None  # the specialist; null for a checker, or if none covers the category
    error: str | None = None  # why `followed` is null


@dataclass(frozen=True, slots=True)
class Reward:
    """The two halves of Eq. 5 and their sum."""

    rule: float | None  # in [0, 1]; null if there is no rule constraint, or one failed
    soft: float | None  # in [0, 1]; null if there is no soft constraint, or one failed
    total: float | None  # in [0, 2]; null if any part failed, or there is no constraint at all


def combine(rules: Sequence[float | None], softs: Sequence[float | None]) -> Reward:
    """Add the mean of the rule verdicts and the mean of the soft verdicts.

    Args:
        rules: 1 or 0 per rule constraint, null where the checker failed.
        softs: In [0, 1] per soft constraint (verdict or score), null where the judge failed.

    Source: paper, Eq. 5 (N rules, M specialists).
    """
    halves = [_mean(values) for values in (rules, softs) if values]
    total = None if not halves or None in halves else sum(half for half in halves if half is not None)
    return Reward(_mean(rules), _mean(softs), total)


def group_advantages(rewards_P_G: np.ndarray, *, scale: bool = True, eps: float = 1e-4) -> np.ndarray:
    """Turn rewards into advantages within each group.

    Args:
        rewards_P_G: Reward of each of G responses to each of P queries; NaN where there is none.
        scale: Divide by the group's standard deviation plus `eps` (in units of reward).
        eps: Keeps the quotient finite where rewards are equal.

    Returns:
        [P, G]; each row sums to 0, and is all 0 where the group's rewards are equal. A response without a reward has
        advantage 0 and does not count in the mean and deviation of the others.

    Source: GRPO, arXiv:2402.03300 section 4.1.2, as TRL computes it; `scale=False` is Dr. GRPO, arXiv:2503.20783. The
    paper's Eq. 3 differs: it has the population's variance (1/G, not 1/(G-1)) with epsilon under the root, which makes
    advantages larger by a factor of sqrt(G / (G-1)), 1.07 for G = 8.
    """
    known_P_G = ~np.isnan(rewards_P_G)
    n_P_1 = known_P_G.sum(axis=1, keepdims=True)
    mean_P_1 = np.where(known_P_G, rewards_P_G, 0.0).sum(axis=1, keepdims=True) / np.maximum(n_P_1, 1)
    centred_P_G = np.where(known_P_G, rewards_P_G - mean_P_1, 0.0)
    if not scale:
        return centred_P_G
    variance_P_1 = (centred_P_G**2).sum(axis=1, keepdims=True) / np.maximum(n_P_1 - 1, 1)
    return centred_P_G / (np.sqrt(variance_P_1) + eps)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if values and len(known) == len(values) else None
