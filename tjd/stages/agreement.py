"""Agreement: how far the raters of a table agree, and which rows someone has to decide (paper, appendix B).

In: labels with their votes, or any table with a column per rater. Out: agreement, long form; and the rows to adjudicate,
with the reason. The raters of labels are the teachers of a panel, each with the majority of its votes; of a single
teacher they are its votes. Kappa depends on prevalence, so that stands beside it.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import variance
from typing import Any

import numpy as np
import pyarrow as pa

from tjd import tables
from tjd.agreement import cohen, cohen_parts, fleiss, fleiss_parts, kappa_estimate, resampled_sums
from tjd.config import AgreementConfig
from tjd.errors import DataError
from tjd.metrics import Estimate, estimate, plain, share
from tjd.records import VERDICTS, verdict_in
from tjd.tables import Row

MISSING = -1
LIKERT = range(1, 6)
PASS = 4  # of a rating (paper, appendix B)
MOST_VARIANCE = 1.0  # of the ratings of a row; beyond it someone adjudicates (paper, appendix B)
REASON = "reason"  # the column of the queue


class Ratings:
    """Who rated which row how: a byte per rating, since a table may have millions of rows."""

    def __init__(self) -> None:
        """Nothing is rated yet."""
        self.query_N, self.category_N = array("q"), array("q")
        self.by_rater: dict[str, array[int]] = {}
        self.named: set[str] = set()  # raters that are somebody, and not the votes of one teacher
        self.categories: dict[str | None, int] = {}

    def add(self, query_id: str, category: str | None, ratings: Mapping[str, int | None], *, named: bool) -> None:
        """Add a row."""
        n = len(self.query_N)
        digest = hashlib.blake2b(query_id.encode(), digest_size=8).digest()  # in place of a dictionary of all queries
        self.query_N.append(int.from_bytes(digest, "big", signed=True))
        self.category_N.append(self.categories.setdefault(category, len(self.categories)))
        if named:
            self.named |= ratings.keys()
        for rater in ratings:
            self.by_rater.setdefault(rater, array("b", [MISSING]) * n)
        for rater, column in self.by_rater.items():
            rating = ratings.get(rater)
            column.append(MISSING if rating is None else rating)


def collected(rows: Iterable[Row], ratings: Ratings, config: AgreementConfig) -> Iterator[Row]:
    """Pass rows on, and keep their ratings; rows that nobody was asked to rate (rules, say) count nowhere.

    Raises:
        DataError: A value is no verdict, or with `config.likert` no rating from 1 to 5.
    """
    for number, row in enumerate(rows, 1):
        by_rater = _read(row, number, config)
        if by_rater:
            query = row.get(config.query_id) or row.get("query")
            rated = {rater: _one(votes) for rater, votes in by_rater.items()}
            category = row.get(config.category)
            ratings.add(str(query), None if category is None else str(category), rated, named=_named(row, config))
        yield row


def agreement(ratings: Ratings, config: AgreementConfig) -> list[Row]:
    """AGREEMENT, per category and over all.

    Of all raters: percent agreement (the share of pairs of ratings that agree) and Fleiss' kappa of passes, and with
    `config.likert` also of the ratings as five classes. Of each two raters with a name: percent agreement and Cohen's kappa
    of passes. Of each rater with a name: its share of passes, and how far that lies above the one of all raters (`bias`).
    Empty where no row has two ratings.
    """
    if not len(ratings.query_N):
        return []
    raw_N_J = np.stack([np.frombuffer(column, dtype=np.int8) for column in ratings.by_rater.values()], axis=1)
    if not ((raw_N_J != MISSING).sum(axis=1) > 1).any():
        return []
    query_N, category_N = (np.frombuffer(column, dtype=np.int64) for column in (ratings.query_N, ratings.category_N))
    found = _measured("all", raw_N_J, query_N, ratings, config)
    for category, code in sorted((name, code) for name, code in ratings.categories.items() if name is not None):
        of_N = category_N == code
        found += _measured(category, raw_N_J[of_N], query_N[of_N], ratings, config)
    return found


def to_adjudicate(rows: Iterable[Row], config: AgreementConfig) -> Iterator[Row]:
    """The rows whose ratings leave the verdict open, each with the reason."""
    for number, row in enumerate(rows, 1):
        by_rater = _read(row, number, config)
        reason = why_open([vote for votes in by_rater.values() for vote in votes], config.likert)
        if by_rater and reason:
            yield row | {REASON: reason}


def queue_schema(found: pa.Schema) -> pa.Schema:
    """The columns of the queue: those of the table, and the reason."""
    return tables.output_schema("foreign", like=found, drop=[REASON]).append(pa.field(REASON, pa.string()))


def why_open(ratings: Sequence[int | None], likert: bool) -> str | None:
    """Why a row has to be adjudicated; null if its ratings settle it.

    The variance is that of a sample (n - 1): the raters stand for all who might have rated.
    """
    given = [rating for rating in ratings if rating is not None]
    if len(given) < 2:
        return f"{len(given)} of {len(ratings)} ratings"
    if likert and (spread := variance(given)) > MOST_VARIANCE:
        return f"variance {spread:.2f}"
    n_pass = sum(rating >= (PASS if likert else 1) for rating in given)
    return f"split {n_pass}:{len(given) - n_pass}" if 0 < n_pass < len(given) else None


def _measured(
    category: str, raw_N_J: np.ndarray, query_N: np.ndarray, ratings: Ratings, config: AgreementConfig
) -> list[Row]:
    """The measures of the rows of one category."""
    names = list(ratings.by_rater)
    given_N_J = raw_N_J != MISSING
    pass_N_J = np.where(given_N_J, raw_N_J >= (PASS if config.likert else 1), MISSING)
    counts_N_2 = np.stack([(pass_N_J == 0).sum(axis=1), (pass_N_J == 1).sum(axis=1)], axis=1)
    parts = {("all", "fleiss"): fleiss_parts(counts_N_2)}
    if config.likert:
        counts_N_5 = np.stack([(raw_N_J == rating).sum(axis=1) for rating in LIKERT], axis=1)
        parts["all", "ratings"] = fleiss_parts(counts_N_5)
    named = [j for j, name in enumerate(names) if name in ratings.named]
    for a, b in combinations(named, 2):
        parts[f"{names[a]} ~ {names[b]}", "cohen"] = cohen_parts(pass_N_J[:, a], pass_N_J[:, b], (0, 1))
    for j in named:
        own_N_2 = np.stack([pass_N_J[:, j] == 1, given_N_J[:, j]], axis=1)
        panel_N_2 = np.stack([counts_N_2[:, 1], counts_N_2.sum(axis=1)], axis=1)
        parts[names[j], "bias"] = np.concatenate([own_N_2, panel_N_2 * given_N_J[:, [j]]], axis=1)
    sums_R_S = resampled_sums(np.concatenate(list(parts.values()), axis=1, dtype=float), query_N, seed=config.seed)
    out: list[Row] = []
    ends = np.cumsum([part_N_S.shape[1] for part_N_S in parts.values()])
    n_rated = int(given_N_J.any(axis=1).sum())
    for ((raters, kind), part_N_S), sums in zip(parts.items(), np.split(sums_R_S, ends[:-1], axis=1), strict=True):
        counted_N = part_N_S.any(axis=1)
        n = int(counted_N.sum())
        n_queries = len(np.unique(query_N[counted_N]))
        estimates, prevalence = _estimates(kind, sums, n_queries)
        shared = {"raters": raters, "category": category, "n": n, "n_invalid": n_rated - n}
        shared["prevalence"] = float(prevalence) if n else None
        out += [{"metric": metric, **plain(found), **shared} for metric, found in estimates.items()]
    return out


def _estimates(kind: str, sums_R_S: np.ndarray, n_queries: int) -> tuple[dict[str, Estimate], float]:
    """The metrics of a kind of sums, and the share of passes among the ratings they rest on."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "bias":
            own_R, all_R = sums_R_S[:, 0] / sums_R_S[:, 1], sums_R_S[:, 2] / sums_R_S[:, 3]
            return {"yes_rate": share(own_R, n_queries), "bias": estimate(own_R - all_R, n_queries)}, all_R[0]
        found_R = (cohen if kind == "cohen" else fleiss)(sums_R_S)
        plain_S = sums_R_S[0]
        if kind == "cohen":
            passes = (plain_S @ [0, 1, 1, 2]) / (2 * plain_S.sum())
        else:
            passes = plain_S[-1 if kind == "fleiss" else -2 :].sum() / plain_S[2:].sum()
    beyond = kappa_estimate(*found_R, n_queries)
    if kind == "ratings":
        return {"fleiss_kappa_of_ratings": beyond}, passes
    return {"percent_agreement": share(found_R[0], n_queries), f"{kind}_kappa": beyond}, passes


def _named(row: Row, config: AgreementConfig) -> bool:
    return bool(config.rater) or (not config.likert and len(set(row.get("teachers") or ())) > 1)


def _read(row: Row, number: int, config: AgreementConfig) -> dict[str, list[int | None]]:
    """The ratings of a row by rater; none where nobody was asked."""
    if config.rater:
        return {rater: [_rating(row[rater], number, rater, config.likert)] for rater in config.rater}
    votes = [_rating(vote, number, "votes", config.likert) for vote in _list(row, number, "votes")]
    teachers = _list(row, number, "teachers")
    if not _named(row, config):
        return {f"vote {i}": [vote] for i, vote in enumerate(votes, 1)}
    if len(teachers) != len(votes):
        raise DataError(f"row {number} has {len(votes)} votes and {len(teachers)} teachers; give each vote its teacher")
    by_teacher: dict[str, list[int | None]] = defaultdict(list)
    for teacher, vote in zip(teachers, votes, strict=True):
        by_teacher[teacher].append(vote)
    return by_teacher


def _list(row: Row, number: int, column: str) -> list[Any]:
    found = [] if row.get(column) is None else row[column]
    if not isinstance(found, list):
        raise DataError(
            f"row {number} has {found!r} in the column '{column}'; it must be a list (--rater names a column per rater)"
        )
    return found


def _one(votes: Sequence[int | None]) -> int | None:
    """The rating of a rater who voted several times: the side of most votes; null where there is none."""
    if len(votes) == 1:
        return votes[0]
    n_yes, n_no = votes.count(1), votes.count(0)
    return None if n_yes == n_no else int(n_yes > n_no)


def _rating(value: object, number: int, column: str, likert: bool) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) and not likert:  # votes of ours, by the million
        return int(value)
    try:
        if not likert:
            return int(bool(verdict_in(value)))
        if (rating := float(str(value))) not in LIKERT:
            raise ValueError(value)
        return int(rating)
    except ValueError as exc:
        wanted = "a whole number from 1 to 5, or null" if likert else f"{VERDICTS} (with --likert: 1 to 5)"
        raise DataError(f"row {number} has {value!r} in the column '{column}'; it must be {wanted}") from exc
