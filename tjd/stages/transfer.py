"""Transfer: how well a specialist judges categories it was not trained on, and the fewest specialists that suffice.

In: labels, and specialists that each score any row. Out: a matrix (trained on, tested on), measured on the test split, and
for every number of specialists the best set. The paper asks which categories carry over by a GRPO run on each (3.3, Figure
5) and leaves the number of specialists open (its limitations 1 and 3); here judges alone answer, at a small part of the cost.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from tjd.config import TransferConfig
from tjd.errors import DataError
from tjd.metrics import Estimate, best_threshold, estimate, judge_metrics, plain, resample_weights
from tjd.rewards import Verdict
from tjd.splits import split_of, usable
from tjd.tables import Row

SHOWN = ("auroc", "balanced_accuracy")
MOST_SEARCHED = 12  # specialists: every further one doubles the number of sets
MEASURED = ("validation", "test")

Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]


@dataclass(frozen=True, slots=True)
class Best:
    """The best set of so many specialists."""

    specialists: tuple[str, ...]
    assigned: dict[str, str]  # category -> its specialist
    validation: float  # the worst category's value, by which the set was chosen
    reached: bool  # whether that is at least the target
    test: Estimate  # the worst category's value on the test split


class Transfer(NamedTuple):
    """What was found."""

    metrics: list[Row]  # METRICS: `judge` is the category trained on, `category` the one tested on
    best: list[Best]  # for one specialist, two, ... all; none where they are more than `MOST_SEARCHED`


class Cell(NamedTuple):
    """What a specialist is worth on a category."""

    validation: dict[str, float]  # metric -> value
    test: dict[str, np.ndarray]  # metric -> [R], see `judge_metrics`
    threshold: float  # chosen on validation rows of the category tested on
    n: int
    n_queries: int  # that these rows belong to
    n_invalid: int
    prevalence: float | None  # null where it failed on every row


def categories_to_test(rows: Iterable[Row], seed: int, splits: Sequence[str] = MEASURED) -> list[str]:
    """The categories with both verdicts in each of the splits, in alphabetical order."""
    found: dict[str, set[tuple[str, bool]]] = {}
    for row in rows:
        if usable(row) and split_of(row, seed) in splits:
            found.setdefault(row["category"], set()).add((split_of(row, seed), row["followed"]))
    return sorted(category for category, cells in found.items() if len(cells) == 2 * len(splits))


def transfer(
    rows: Sequence[Row], specialists: Mapping[str, Scorer], config: TransferConfig, *, split_seed: int = 0
) -> Transfer:
    """Have every specialist judge every category that has both verdicts in validation and test.

    Args:
        rows: LABELS. A row that a specialist fails on counts as `n_invalid` in its cell.
        specialists: Category trained on, and how to score a row of any category with its specialist.
        config: Target and its metric.
        split_seed: The seed that the specialists' split was drawn with; also that of the bootstrap.

    Raises:
        DataError: No category has both verdicts in the validation and in the test split.
    """
    labelled = [row for row in rows if usable(row)]
    found = categories_to_test(labelled, split_seed)
    categories = [
        *(name for name in specialists if name in found),
        *(name for name in found if name not in specialists),
    ]
    if not categories:
        raise DataError("no category has rows of both verdicts in the validation and in the test split; label more")
    parts = {
        part: [row for row in labelled if row["category"] in categories and split_of(row, split_seed) == part]
        for part in MEASURED
    }
    weights_RN = resample_weights([row["query_id"] for row in parts["test"]], seed=split_seed)
    cells: dict[tuple[str, str], Cell] = {}
    for name, score in specialists.items():
        scores = {part: _scores(score, of_part) for part, of_part in parts.items()}
        for category in categories:
            cells[name, category] = _cell(category, parts, scores, weights_RN)
    metrics = [row for key, cell in cells.items() for row in _rows(*key, cell)]
    few = len(specialists) <= MOST_SEARCHED
    return Transfer(metrics, list(best_sets(cells, config.metric, config.target)) if few else [])


def best_sets(cells: Mapping[tuple[str, str], Cell], metric: str, target: float) -> Iterable[Best]:
    """Search all sets of each size, exactly: the best has the greatest worst category on validation, then mean."""
    names, categories = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    for size in range(1, len(names) + 1):
        candidates = []
        for chosen in combinations(names, size):
            assigned = {
                c: max(chosen, key=lambda name, c=c: _on_validation(cells[name, c], metric)) for c in categories
            }
            values = [_on_validation(cells[name, category], metric) for category, name in assigned.items()]
            candidates.append((min(values), sum(values), chosen, assigned))
        worst, _, chosen, assigned = max(candidates, key=lambda candidate: candidate[:2])
        taken = [cells[name, category] for category, name in assigned.items()]
        worst_R = np.array([cell.test[metric] for cell in taken]).min(axis=0)
        found = estimate(worst_R, min(cell.n_queries for cell in taken))
        yield Best(chosen, assigned, worst, worst >= target, found)


def smallest(best: Sequence[Best]) -> Best | None:
    """The smallest set that reaches the target; null if even all specialists do not."""
    return next((each for each in best if each.reached), None)


def _on_validation(cell: Cell, metric: str) -> float:
    value = cell.validation[metric]
    return value if np.isfinite(value) else 0.0  # the specialist failed on all rows of a verdict


def _scores(score: Scorer, rows: Sequence[Row]) -> np.ndarray:
    return np.array([np.nan if verdict.score is None else verdict.score for verdict in score(rows)], dtype=float)


def _cell(
    category: str, parts: Mapping[str, Sequence[Row]], scores: Mapping[str, np.ndarray], weights_RN: np.ndarray
) -> Cell:
    of = {part: np.array([row["category"] == category for row in rows]) for part, rows in parts.items()}
    valid = {part: of_N & np.isfinite(scores[part]) for part, of_N in of.items()}
    truth = {part: np.array([row["followed"] for row in rows], dtype=bool)[valid[part]] for part, rows in parts.items()}
    values = {part: scores[part][valid[part]] for part in parts}
    threshold = best_threshold(truth["validation"], values["validation"])
    ones = np.ones((1, len(truth["validation"])), dtype=np.float32)
    chosen = judge_metrics(truth["validation"], values["validation"], threshold, ones)
    return Cell(
        {metric: float(chosen[metric][0]) for metric in SHOWN},
        judge_metrics(truth["test"], values["test"], threshold, weights_RN[:, valid["test"]]),
        threshold,
        int(valid["test"].sum()),
        len({row["query_id"] for row, kept in zip(parts["test"], valid["test"], strict=True) if kept}),
        int(of["test"].sum() - valid["test"].sum()),
        float(truth["test"].mean()) if len(truth["test"]) else None,
    )


def _rows(trained: str, tested: str, cell: Cell) -> Iterable[Row]:
    for metric in SHOWN:
        yield {
            "judge": trained,
            "category": tested,
            "metric": metric,
            "group": "all",
            **plain(estimate(cell.test[metric], cell.n_queries)),
            "n": cell.n,
            "n_invalid": cell.n_invalid,
            "prevalence": cell.prevalence,
            "threshold": cell.threshold,
        }
