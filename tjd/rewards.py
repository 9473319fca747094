"""The reward of a response: rules plus judges.

In: one verdict per constraint. Out: `R = mean over rule constraints + mean over soft constraints` (paper, Eq. 5), each
term absent where the instruction has no such constraint. Unlike the paper, a verdict can be missing: then the reward is
null, because a failed judge call is not a violation. A judge that abstains gives no verdict either: the reward is null
then too, but nothing failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if values and len(known) == len(values) else None
