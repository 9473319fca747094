"""Eval-judge: how far judges agree with the ground truth, per category, with intervals (paper, 3.2 and 5.3.3).

In: labels, and judges that score rows. Out: metrics, long form, and the reliability table of each judge. Every judge has
the same rows; the difference between the first and each other is paired, resampled together. A judge without thresholds
of its own gets them from the validation rows, so that no difference is merely the cut at 0.5.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tjd.config import EvalJudgeConfig, Mode
from tjd.errors import DataError
from tjd.metrics import (
    contributing,
    estimate,
    judge_estimates,
    judge_metrics,
    plain,
    reliability,
    resample_weights,
    thresholds_by_category,
)
from tjd.prompts import Prompt
from tjd.rewards import Verdict
from tjd.splits import SPLITS, soft, split_of, usable
from tjd.tables import Row, as_text, text_id
from tjd.teacher import Ask, once_more
from tjd.teacher.verdicts import Asked, read, unreadable, verdict_request

log = logging.getLogger(__name__)

NEED = ("query_id", "query", "category", "constraint", "response")

MAX_GROUPS = 50  # values of a column that --by measures apart

Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]
Group = tuple[str, str] | None  # rows with this value in this column; null: all rows


@dataclass(frozen=True, slots=True)
class Judge:
    """A named way to score rows."""

    name: str
    score: Scorer
    categories: frozenset[str] | None  # the ones it covers; None: any
    choose_thresholds: bool  # on the validation rows; otherwise its verdicts carry their own


class Evaluation(NamedTuple):
    """What was measured."""

    metrics: list[Row]  # METRICS, one row per judge, category (and "all"), metric and group
    reliability: list[Row]  # per judge, category and bin, as `tjd.metrics.reliability` gives it


class Scored(NamedTuple):
    """What a judge said of N rows."""

    scores_N: np.ndarray  # NaN where it failed
    thresholds_N: np.ndarray
    decided_N: np.ndarray  # false where it failed or abstained

    def of(self, mask_N: np.ndarray) -> "Scored":
        """The same of some rows."""
        return Scored(*(values_N[mask_N] for values_N in self))


def with_truth(rows: Iterable[Row], column: str, min_agreement: float = 0.0) -> Iterator[Row]:
    """Put the ground truth into `followed`: a verdict, a share that counts from 0.5, or votes whose mean does.

    Args:
        rows: With that column: true, false, a number in [0, 1] or a list of these; null where there is no truth.
        column: Its name.
        min_agreement: Leave out rows whose voters agree less: the share of the larger side in the votes, or the column
            `agreement` where the truth is no list.

    Raises:
        DataError: The column holds something else, or `min_agreement` is wanted of rows without votes and `agreement`.
    """
    for row in rows:
        votes = row[column] if isinstance(row[column], list) else [row[column]]
        readable = [vote for vote in votes if vote is not None]
        if not all(isinstance(vote, bool | int | float) and 0 <= vote <= 1 for vote in readable):
            raise DataError(f"--truth {column}: {readable!r} is neither true, false, in [0, 1], nor a list of these")
        total = sum(readable)
        mean = total / len(readable) if readable else None
        if min_agreement and mean is not None:
            larger = max(total, len(readable) - total) / len(readable)
            agreement = larger if isinstance(row[column], list) else row.get("agreement")
            if agreement is None:
                raise DataError("--min-agreement needs votes: give --truth votes, or a table with a column 'agreement'")
            if agreement < min_agreement:
                continue
        yield row | {"followed": None if mean is None else mean >= 0.5}


def of_split(rows: Iterable[Row], judges: Sequence[Judge], config: EvalJudgeConfig, split_seed: int = 0) -> list[Row]:
    """Rows of the split whose category all judges cover; those that are usable are what each judge is asked about."""
    return [row for row in rows if _covered(row, judges) and config.split in ("all", split_of(row, split_seed))]


def eval_judge(
    rows: Sequence[Row], judges: Sequence[Judge], config: EvalJudgeConfig, split_seed: int = 0
) -> Evaluation:
    """Score the rows of a split with every judge and compare with the ground truth.

    Args:
        rows: LABELS; `followed` is the truth. Rows without it or without a response count as `n_invalid`.
        judges: One or more; the difference of the first and each other is measured too.
        config: Split, bootstrap seed, and columns to measure by.
        split_seed: The seed that the judges' training split was drawn with.

    Raises:
        DataError: No row of the split belongs to a category that all judges cover, or a column has too many values.
    """
    covered = [row for row in rows if _covered(row, judges)]
    chosen = of_split(covered, judges, config, split_seed)
    labelled = [row for row in chosen if usable(row)]
    if not labelled:
        raise DataError(_why_none(covered, config.split, split_seed))
    groups = _groups(labelled, config.by)
    validation = [row for row in covered if split_of(row, split_seed) == "validation" and usable(row)]
    scored = {judge.name: _score(judge, labelled, validation) for judge in judges}
    valid_N = np.logical_and.reduce([np.isfinite(each.scores_N) for each in scored.values()])
    out = Evaluation([], [])
    for group in groups:
        for category in ["all", *sorted({row["category"] for row in labelled})]:

            def belongs(row: Row, group: Group = group, category: str = category) -> bool:
                return category in ("all", row["category"]) and (group is None or as_text(row[group[0]]) == group[1])

            both_N = valid_N & np.array([belongs(row) for row in labelled])
            if not both_N.any():
                continue
            kept = [row for row, keep in zip(labelled, both_N, strict=True) if keep]
            shared = {
                "category": category,
                "group": "all" if group is None else "=".join(group),
                "n": len(kept),
                "n_invalid": sum(map(belongs, chosen)) - len(kept),
                "prevalence": sum(row["followed"] for row in kept) / len(kept),
            }
            found = _compare(shared, kept, {name: each.of(both_N) for name, each in scored.items()}, config.seed)
            out.metrics.extend(found.metrics)
            out.reliability.extend(found.reliability if group is None else ())
    if not out.metrics:
        raise DataError("some judge failed on every row; score the rows with `tjd score` to see why")
    return out


def asked(ask: Ask, name: str, prompt: Prompt, again: Prompt, mode: Mode, table: Iterable[Row]) -> Scorer:
    """A large model as the judge, asked as `tjd label` asks it, but greedily; its verdict is its score, 1 or 0.

    In mode `batch` it is asked about all soft constraints that a response has in `table`, whichever of them are scored.
    """
    together: dict[Any, list[str]] = {}
    for row in table if mode == "batch" else ():
        if soft(row) and row["constraint"] and row["response"] is not None:
            texts = together.setdefault(_response_key(row), [])
            texts += [row["constraint"]] if row["constraint"] not in texts else []

    def score(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        asked_about: dict[Any, list[str]] = {}  # what is asked, and about which constraints
        keys = list(range(len(rows))) if mode == "pointwise" else [_response_key(row) for row in rows]
        shown = dict(zip(keys, rows, strict=True))
        for key, row in shown.items():
            asked_about[key] = together[key] if mode == "batch" else [row["constraint"]]
        requests = (
            verdict_request(prompt, mode, row["query"], row["response"], asked_about[key]) for key, row in shown.items()
        )
        said: dict[Any, tuple[list[bool | None], str | None]] = {}
        for key, completion in zip(shown, ask(requests, once_more(unreadable, again)), strict=True):
            ballots, error = read(completion, Asked(None if mode == "pointwise" else len(asked_about[key])))
            said[key] = [ballot.followed for ballot in ballots], error
        verdicts = []
        for key, row in zip(keys, rows, strict=True):
            votes, error = said[key]
            followed = votes[asked_about[key].index(row["constraint"])]
            verdicts.append(Verdict(followed, None if followed is None else float(followed), 0.5, name, error))
        return verdicts

    return score


def _response_key(row: Mapping[str, Any]) -> str:
    return row.get("response_id") or text_id(row["query"], row["response"])


def _groups(rows: Sequence[Row], columns: Sequence[str]) -> list[Group]:
    """All rows, then those of each value of each column; a null is no value."""
    groups: list[Group] = [None]
    for column in columns:
        values = {as_text(row[column]) for row in rows if row[column] is not None}
        if len(values) > MAX_GROUPS:
            raise DataError(f"--by {column}: it has {len(values)} values in the rows to measure; {MAX_GROUPS} at most")
        groups += [(column, value) for value in sorted(values)]
    return groups


def _compare(shared: Row, rows: Sequence[Row], scored: Mapping[str, Scored], seed: int) -> Evaluation:
    """The metrics of each judge on rows that all of them scored, and the paired differences from the first."""
    truth_N = np.array([row["followed"] for row in rows], dtype=bool)
    query_ids = [row["query_id"] for row in rows]
    weights_RN = resample_weights(query_ids, seed=seed)
    out = Evaluation([], [])
    values: dict[str, dict[str, np.ndarray]] = {}
    n_queries: dict[str, dict[str, int]] = {}
    for name, (scores_N, cut_N, decided_N) in scored.items():
        values[name] = judge_metrics(truth_N, scores_N, cut_N, weights_RN, decided_N)
        n_queries[name] = contributing(truth_N, scores_N, cut_N, query_ids, decided_N)
        threshold = float(cut_N[0]) if len(set(cut_N.tolist())) == 1 else None
        out.metrics.extend(
            {"judge": name, "metric": metric, "threshold": threshold, **plain(found), **shared}
            for metric, found in judge_estimates(values[name], n_queries[name]).items()
        )
        bins = reliability(truth_N, scores_N, weights_RN, query_ids)
        out.reliability.extend({"judge": name, "category": shared["category"], **row} for row in bins)
    first, *others = scored
    for other in others:
        for metric, values_R in values[first].items():
            n_least = min(n_queries[name][metric] for name in (first, other))
            difference = estimate(values_R - values[other][metric], n_least)
            out.metrics.append(
                {"judge": f"{first} - {other}", "metric": metric, "threshold": None, **plain(difference), **shared}
            )
    return out


def _score(judge: Judge, labelled: Sequence[Row], validation: Sequence[Row]) -> Scored:
    verdicts = judge.score(labelled)
    scores_N = np.array([np.nan if v.score is None else v.score for v in verdicts], dtype=float)
    decided_N = np.array([v.followed is not None for v in verdicts])
    if not judge.choose_thresholds:
        return Scored(scores_N, np.array([0.5 if v.threshold is None else v.threshold for v in verdicts]), decided_N)
    if not validation:
        log.warning("the table has no validation rows: the thresholds of %s stay at 0.5", judge.name)
        return Scored(scores_N, np.full(len(labelled), 0.5), decided_N)
    known = [(row, v) for row, v in zip(validation, judge.score(validation), strict=True) if v.score is not None]
    cuts = thresholds_by_category(
        [row["category"] for row, _ in known],
        np.array([row["followed"] for row, _ in known], dtype=bool),
        np.array([v.score for _, v in known], dtype=float),
    )
    return Scored(scores_N, np.array([cuts.get(row["category"], 0.5) for row in labelled]), decided_N)


def _why_none(covered: Sequence[Row], split: str, seed: int) -> str:
    """Why a split has no row to measure on."""
    n = Counter(split_of(row, seed) for row in covered if usable(row))
    if not n:
        return "no row with a verdict and a response has a category that all judges cover"
    others = ", ".join(f"{name} {n[name]}" for name in SPLITS if name != split)
    return f"0 of {n.total()} rows are in split '{split}' ({others}): use --split all, if the judges never saw these queries"


def uncovered(rows: Iterable[Row], judges: Sequence[Judge]) -> list[Row]:
    """Rows whose category some judge does not cover, so that they are left out."""
    return [row for row in rows if row["category"] is not None and not _covered(row, judges)]


def _covered(row: Row, judges: Sequence[Judge]) -> bool:
    known = soft(row) and row["category"] is not None
    return known and all(j.categories is None or row["category"] in j.categories for j in judges)
