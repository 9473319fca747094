"""Eval-judge: how far judges agree with the ground truth, per category, with intervals (paper, 5.3.3).

In: labels, and judges that score rows. Out: metrics, long form; for two judges also their paired difference, resampled
together over the same rows. A judge without thresholds of its own gets them from the validation rows, so that no
difference is merely the cut at 0.5.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tjd.config import EvalJudgeConfig
from tjd.errors import DataError
from tjd.metrics import Estimate, estimate, judge_metrics, resample_weights, thresholds_by_category
from tjd.prompts import Prompt
from tjd.rewards import Verdict
from tjd.splits import split_of
from tjd.tables import Row
from tjd.teacher import Request, Teacher, reading, user

log = logging.getLogger(__name__)

NEED = ("query_id", "query", "category", "constraint", "response", "followed")

Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]


@dataclass(frozen=True, slots=True)
class Judge:
    """A named way to score rows."""

    name: str
    score: Scorer
    categories: frozenset[str] | None  # the ones it covers; None: any
    choose_thresholds: bool  # on the validation rows; otherwise its verdicts carry their own


def eval_judge(rows: Sequence[Row], judges: Sequence[Judge], config: EvalJudgeConfig, split_seed: int = 0) -> list[Row]:
    """Score the rows of a split with every judge and compare with the ground truth.

    Args:
        rows: LABELS. Rows without a verdict of the teacher or without a response count as `n_invalid`.
        judges: One or more; the difference of the first and each other is measured too.
        config: Split and bootstrap seed.
        split_seed: The seed that the judges' training split was drawn with.

    Returns:
        METRICS, one row per judge, category (and "all") and metric.

    Raises:
        DataError: No row of the split belongs to a category that all judges cover.
    """
    covered = [row for row in rows if _covered(row, judges)]
    chosen = [row for row in covered if config.split == "all" or split_of(row, split_seed) == config.split]
    usable = [row for row in chosen if row["followed"] is not None and row["response"] is not None]
    if not usable:
        raise DataError(
            f"no labelled row of the split '{config.split}' has a category that the judges cover; see --split"
        )
    validation = [
        row
        for row in covered
        if split_of(row, split_seed) == "validation" and row["followed"] is not None and row["response"] is not None
    ]
    scored = {judge.name: _score(judge, usable, validation) for judge in judges}
    n_lost = len(chosen) - len(usable)
    out: list[Row] = []
    for category in ["all", *sorted({row["category"] for row in usable})]:
        of_N = np.array([category in ("all", row["category"]) for row in usable])
        out += _compare(category, [row for row, is_of in zip(usable, of_N, strict=True) if is_of], scored, of_N, config)
        for row in out:
            if row["category"] == category:
                row["n_invalid"] += n_lost if category == "all" else 0
    return out


def asked(teacher: Teacher, prompt: Prompt) -> Scorer:
    """A large model as the judge: asked with the judges' prompt for a verdict, which is its score, 1 or 0."""

    def score(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        texts = [
            prompt.render(
                instruction=row.get("instruction") or row["query"],
                response=row["response"],
                constraint=row["constraint"],
            )
            for row in rows
        ]
        verdicts = []
        for completion in teacher.ask(Request(user(text)) for text in texts):
            followed, error = None, completion.error
            if completion.text is not None:
                followed, error = reading.verdict(completion.text, completion.finish_reason)
            score = None if followed is None else float(followed)
            verdicts.append(Verdict(followed, score, 0.5, teacher.name, error))
        return verdicts

    return score


def _compare(
    category: str,
    rows: Sequence[Row],
    scored: Mapping[str, tuple[np.ndarray, np.ndarray]],
    of_N: np.ndarray,
    config: EvalJudgeConfig,
) -> list[Row]:
    truth_N = np.array([row["followed"] for row in rows], dtype=bool)
    query_ids = [row["query_id"] for row in rows]
    valid_N = np.logical_and.reduce([np.isfinite(scores_N[of_N]) for scores_N, _ in scored.values()])
    if not valid_N.any():
        return []
    weights_RN = resample_weights([q for q, ok in zip(query_ids, valid_N, strict=True) if ok], seed=config.seed)
    shared = {
        "category": category,
        "n": int(valid_N.sum()),
        "n_invalid": int((~valid_N).sum()),
        "prevalence": float(truth_N[valid_N].mean()),
    }
    out: list[Row] = []
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, (scores_N, thresholds_N) in scored.items():
        cut_N = thresholds_N[of_N][valid_N]
        values[name] = judge_metrics(truth_N[valid_N], scores_N[of_N][valid_N], cut_N, weights_RN)
        threshold = float(cut_N[0]) if len(set(cut_N.tolist())) == 1 else None
        out += [
            {"judge": name, "metric": metric, "threshold": threshold, **_plain(estimate(values_R)), **shared}
            for metric, values_R in values[name].items()
        ]
    first, *others = scored
    for other in others:
        for metric, values_R in values[first].items():
            difference = estimate(values_R - values[other][metric])
            out.append(
                {"judge": f"{first} - {other}", "metric": metric, "threshold": None, **_plain(difference), **shared}
            )
    return out


def _score(judge: Judge, usable: Sequence[Row], validation: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (NaN where the judge failed) and the threshold of each row."""
    verdicts = judge.score(usable)
    scores_N = np.array([np.nan if v.score is None else v.score for v in verdicts], dtype=float)
    if not judge.choose_thresholds:
        return scores_N, np.array([0.5 if v.threshold is None else v.threshold for v in verdicts])
    if not validation:
        log.warning("the table has no validation rows: the thresholds of %s stay at 0.5", judge.name)
        return scores_N, np.full(len(usable), 0.5)
    known = [(row, v) for row, v in zip(validation, judge.score(validation), strict=True) if v.score is not None]
    cuts = thresholds_by_category(
        [row["category"] for row, _ in known],
        np.array([row["followed"] for row, _ in known], dtype=bool),
        np.array([v.score for _, v in known], dtype=float),
    )
    return scores_N, np.array([cuts.get(row["category"], 0.5) for row in usable])


def _covered(row: Row, judges: Sequence[Judge]) -> bool:
    return row["category"] is not None and all(j.categories is None or row["category"] in j.categories for j in judges)


def _plain(value: Estimate) -> dict[str, float | None]:
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: None if np.isnan(number) else number for name, number in numbers.items()}
