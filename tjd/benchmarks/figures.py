"""Figures of a benchmark: shares of prompts and of constraints, each under every bootstrap resample of prompts.

In: evaluated rows (a response and its verdicts a row) and how often each resample draws each row. Out: figures. A row
that could not be decided is left out and counted, never taken for a failure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tjd.tables import Row

Strictness = Literal["followed", "followed_loose"]

ALL = "all"


class Tally(NamedTuple):
    """What a row adds to a share: `hits` of `of`, and how many more could not be decided."""

    hits: float = 0.0
    of: float = 0.0
    invalid: int = 0


NOTHING = Tally()


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a group of rows."""

    metric: str
    group: str  # "all", or what its rows share: "turn=1", "category=style, level=2"
    values_R: np.ndarray  # a share in [0, 1] (CSL: levels, 0 to 5) under each resample; 0 is the point value
    n: int  # prompts, or for constraint-level metrics constraints, that were decided
    n_invalid: int  # those that were not


def share(metric: str, group: str, tallies: Iterable[Tally], weights_RN: np.ndarray) -> Figure:
    """Pool the tallies of N rows; NaN where nothing was decided.

    Where all decided rows are drawn together (one conversation, one group of levels), resamples say nothing and are NaN.
    """
    hits_N, of_N, invalid_N = np.array(list(tallies), dtype=np.float64).reshape(-1, 3).T
    rows = of_N > 0
    weights = weights_RN[:, rows].astype(np.float64)
    with np.errstate(invalid="ignore"):
        values_R = (weights @ hits_N[rows]) / (weights @ of_N[rows])
    if (weights[1:] == weights[1:, :1]).all():
        values_R[1:] = np.nan
    return Figure(metric, group, values_R, int(of_N.sum()), int(invalid_N.sum()))


def mean(metric: str, group: str, figures: Sequence[Figure]) -> Figure:
    """The plain mean of figures over the same rows; counts are those of the first."""
    values_R = np.mean([figure.values_R for figure in figures], axis=0)
    return Figure(metric, group, values_R, figures[0].n, figures[0].n_invalid)


def prompt_level(row: Row, name: Strictness = "followed") -> Tally:
    """Whether all constraints of a row are followed; undecided as soon as one is."""
    verdicts = [verdict[name] for verdict in row["verdicts"]]
    if None in verdicts:
        return Tally(invalid=1)
    return Tally(float(all(verdicts)), 1.0)


def constraint_level(
    row: Row, name: Strictness = "followed", keep: Callable[[str], bool] = lambda checker: True
) -> Tally:
    """How many constraints of a row are followed, of those whose checker is kept."""
    verdicts = [verdict[name] for verdict in row["verdicts"] if keep(verdict["checker"])]
    known = [verdict for verdict in verdicts if verdict is not None]
    return Tally(float(sum(known)), float(len(known)), len(verdicts) - len(known))


def isr(rows: Sequence[Row], weights_RN: np.ndarray) -> Figure:
    """The paper's instruction satisfaction rate: the share of instructions with all their constraints followed.

    Source: section 5.1, after CFBench. For IFEval's family this is prompt-level strict accuracy, for FollowBench HSR
    over all levels.
    """
    return share("ISR", ALL, map(prompt_level, rows), weights_RN)


def accuracies(rows: Sequence[Row], weights_RN: np.ndarray, group: str = ALL) -> list[Figure]:
    """IFEval's four accuracies: of prompts and of their constraints, in strict and in loose mode."""
    levels = (("prompt_level", prompt_level), ("inst_level", constraint_level))
    modes: tuple[tuple[str, Strictness], ...] = (("strict", "followed"), ("loose", "followed_loose"))
    return [
        share(f"{level}_{mode}_acc", group, [tally(row, name) for row in rows], weights_RN)
        for mode, name in modes
        for level, tally in levels
    ]


def accuracies_by_checker(rows: Sequence[Row], weights_RN: np.ndarray) -> list[Figure]:
    """Instruction-level accuracy of each category (the id before its colon) and of each checker."""
    ids = sorted({verdict["checker"] for row in rows for verdict in row["verdicts"]})
    groups: dict[str, Callable[[str], bool]] = {}
    for category in sorted({checker.partition(":")[0] for checker in ids}):
        groups[f"category={category}"] = lambda checker, c=category: checker.partition(":")[0] == c
    for own in ids:
        groups[f"checker={own}"] = lambda checker, own=own: checker == own
    modes: tuple[tuple[str, Strictness], ...] = (("strict", "followed"), ("loose", "followed_loose"))
    return [
        share(f"inst_level_{mode}_acc", group, [constraint_level(row, name, keep) for row in rows], weights_RN)
        for group, keep in groups.items()
        for mode, name in modes
    ]


def chosen(rows: Sequence[Row], weights_RN: np.ndarray, keep: Callable[[Row], bool]) -> tuple[list[Row], np.ndarray]:
    """The rows to keep, and their weights."""
    places = [place for place, row in enumerate(rows) if keep(row)]
    return [rows[place] for place in places], weights_RN[:, places]
