"""Parts of a table: which rows `--shard i/n` works on.

Parts are contiguous, so that laid end to end they are the table again (`stages/concat.py`). They are cut from the rows
that `--where` and `--limit` leave, so that they are of one size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tjd import tables
from tjd.config import Shard
from tjd.errors import DataError
from tjd.tables import Row, Table


@dataclass(frozen=True)
class Part:
    """A stretch of a table; of its rows those count that `conditions` keep."""

    table: Table
    conditions: Sequence[str]
    start: int  # number of its first row in the table, from 0
    stop: int
    n_before: int  # rows kept before it

    def rows(self, *, earlier: bool = False) -> Iterator[Row]:
        """Stream its rows; with `earlier`, the `n_before` kept rows of other parts before them. No others are read."""
        keep = tables.where(self.table, self.conditions)
        return filter(keep, self.table.rows(0 if earlier else self.start, self.stop))

    def placed(self) -> Iterator[tuple[str, Row]]:
        """Stream its rows, each with its place in the table, for messages."""
        keep = tables.where(self.table, self.conditions)
        rows = enumerate(self.table.rows(self.start, self.stop), start=self.start + 1)
        return ((f"row {number} of {self.table.name}", row) for number, row in rows if keep(row))


def part_of(table: Table, conditions: Sequence[str], limit: int, shard: Shard | None, *, block: int = 1) -> Part:
    """Find a part of the rows that are kept; without `shard`, all of them.

    Args:
        table: What is cut.
        conditions: As in `tables.where`.
        limit: Only so many kept rows are cut; 0 takes all.
        shard: Which part. Where there are more parts than rows, some are empty.
        block: Parts are cut between blocks of so many kept rows.

    Raises:
        DataError: No row is kept at all.
    """
    shard = shard or Shard(1, 1)
    places = _places(table, conditions)
    n = min(len(places), limit or len(places))
    if n == 0:
        raise DataError(tables.why_none(table, conditions))
    n_blocks = -(-n // block)
    first, after = (min(block * (n_blocks * i // shard.of), n) for i in (shard.number - 1, shard.number))
    stop = int(places[after - 1]) + 1 if after else 0
    return Part(table, conditions, int(places[first]) if first < after else stop, stop, first)


def _places(table: Table, conditions: Sequence[str]) -> Sequence[int]:
    """The numbers of the rows that are kept; only the columns of the conditions are read."""
    if not conditions:
        return range(len(table))
    keep = tables.where(table, conditions)
    columns = tables.columns_of(table, conditions)
    rows = (row for batch in table.batches(columns) for row in batch.to_pylist())
    return np.fromiter((place for place, row in enumerate(rows) if keep(row)), dtype=np.int64)  # type: ignore[return-value]
