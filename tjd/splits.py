"""Train, validation and test: by query, never by row, so that no query is on two sides.

A table's own `split` column wins; otherwise a query's digest decides, the same in training and evaluation.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from tjd.errors import DataError

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)


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
