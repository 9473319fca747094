"""Check: whether each response follows its rule constraints, strictly and loosely, decided by code.

In: responses with their constraints, or any table with a checker, its kwargs and a response a row. Out: checks, one row per
rule constraint, with all the columns of the input; the first verdict that was there stays in `teacher_followed`. Soft
constraints are left out: judges decide them, see `tjd score`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import tee

import pyarrow as pa

from tjd import tables
from tjd.checkers import Verdict
from tjd.checkers.parallel import Question
from tjd.errors import DataError
from tjd.tables import Row

NEED = ("response",)

Decide = Callable[[Iterable[Question]], Iterable[tuple[Verdict, Verdict]]]  # strict and loose, in order, lazily


def check(rows: Iterable[Row], decide: Decide, *, may_be_empty: bool = False) -> Iterator[Row]:
    """Decide each rule constraint of each row, in order; null with a reason in `error` where that cannot be done.

    Raises:
        DataError: There is no rule constraint, as may be in a part of a table (`may_be_empty`), but not in a whole one.
    """
    rules, asked = tee(pair for pair in tables.pairs(rows) if _is_rule(pair))
    n = 0
    for rule, (strict, loose) in zip(rules, decide(map(_question, asked)), strict=True):
        verdict = {
            "followed": strict.followed,
            "followed_loose": loose.followed,
            "error": strict.reason or loose.reason,
        }
        n += 1
        yield rule | verdict
    if not n and not may_be_empty:
        raise DataError("no row has a rule constraint, so there is nothing to check; soft ones are for tjd score")


def schema(found: pa.Schema) -> pa.Schema:
    """The columns of the output, given those of the input."""
    return tables.schema_of_pairs("checks", found)


def _is_rule(pair: Row) -> bool:
    return pair["kind"] == "rule" if pair.get("kind") else pair.get("checker") is not None


def _question(rule: Row) -> Question:
    kwargs = rule.get("kwargs")
    if kwargs is not None and not isinstance(kwargs, str):  # a struct; what a row does not have is null in it
        kwargs = json.dumps(kwargs, default=str)
    return Question(rule.get("checker"), kwargs, rule["response"], rule.get("instruction") or rule.get("query"))
