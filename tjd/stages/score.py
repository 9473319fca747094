"""Score: a judge's P(followed) and verdict for every (response, constraint).

In: responses with their constraints, or any table with a query, a constraint and a response a row. Out: scores, with all
the columns of the input; the first verdict that was there, a teacher's, stays in `teacher_followed`. Rules are left out:
code decides them, see `tjd label`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from tjd import tables
from tjd.rewards import Verdict
from tjd.splits import soft
from tjd.tables import Row

WINDOW = 1024  # rows whose pairs go to the judges together: enough to sort by length, few enough to keep memory flat

NEED = ("query", "response")

Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]


def score(rows: Iterable[Row], scorer: Scorer) -> Iterator[Row]:
    """Score each soft constraint of each row, in order; where a query, constraint or category is null, so is the verdict.

    The last bits of a score hang on what is batched with it, so windows are cut by rows: a part of a table that begins
    with a window (`tjd score --shard`) gets the scores of the whole.
    """
    rows = iter(rows)
    while taken := list(islice(rows, WINDOW)):
        window = [pair for pair in tables.pairs(taken) if soft(pair)]
        verdicts = iter(scorer([pair for pair in window if _missing(pair) is None]))
        for pair in window:
            missing = _missing(pair)
            verdict = Verdict(None, error=f"no {missing}") if missing else next(verdicts)
            yield pair | {
                "judge": verdict.judge,
                "score": verdict.score,
                "followed": verdict.followed,
                "threshold": verdict.threshold,
                "error": verdict.error,
            }


def schema(found: pa.Schema) -> pa.Schema:
    """The columns of the output, given those of the input."""
    return tables.schema_of_pairs("scores", found)


def _missing(pair: Row) -> str | None:
    """The first of a judge's inputs that is null, but for the response, of which judges tell themselves."""
    if pair["query"] is None and not pair.get("instruction"):
        return "query"
    return next((name for name in ("constraint", "category") if pair[name] is None), None)
