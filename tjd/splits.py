"""Train, validation and test: by query, never by row, so that no query is on two sides.

A table's own `split` column wins; otherwise a query's digest decides, the same in training and evaluation. Which rows can be
learnt from and measured on is said here too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from tjd.errors import DataError

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)


def soft(row: Mapping[str, Any]) -> bool:
    """Whether a row's constraint is for judges, not for checkers; tables without `kind` have only such."""
    return row.get("kind") in (None, "soft")


def usable(row: Mapping[str, Any]) -> bool:
    """Whether a judge can learn from a row, or be measured on it."""
    return soft(row) and all(row[name] is not None for name in ("category", "response", "followed"))


def split_of(row: Mapping[str, Any], seed: int = 0) -> str:
    """The split of a row: its `split` column, or a digest of its `query_id`.

    Raises:
        DataError: The column holds something that is not a split.
    """
    named = row.get("split")
    if named is not None:
        if named not in SPLITS:
            raise DataError(f"the column 'split' holds '{named}'; it may hold {', '.join(SPLITS)} or null")
        return named
    digest = hashlib.sha256(f"{seed}:{row['query_id']}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return SPLITS[0] if place < SHARES[0] else SPLITS[1] if place < SHARES[0] + SHARES[1] else SPLITS[2]


def split(rows: Iterable[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by split, in their order.

    Raises:
        DataError: The column `split` puts a query on two sides.
    """
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    sides: dict[str, str] = {}
    for row in rows:
        side = split_of(row, seed)
        if (other := sides.setdefault(row["query_id"], side)) != side:
            raise DataError(
                f"the query {row['query_id']} is in {other} and in {side}; give all its rows one value in the column 'split'"
            )
        parts[side].append(row)
    return parts
