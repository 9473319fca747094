"""Concat: the parts that `--shard` made, joined into the table that one run would have written, to the byte.

In: every part of one table, in any order. Out: their rows in the order of the whole, in the same row groups, and under the
same provenance: what tells a part from the whole is its number alone.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tjd.errors import DataError
from tjd.tables import ROWS_PER_GROUP, Table

OUTER_LOOPS = {"sample": "model"}  # of a stage that goes over its rows once per value: the column of that value


def in_order(parts: Sequence[Table]) -> list[Table]:
    """The parts by their numbers.

    Raises:
        DataError: One is not a part, is of another table, or comes twice; or one is missing.
    """
    by_number: dict[int, Table] = {}
    first = parts[0]
    for part in parts:
        if "shard" not in (part.provenance or {}):
            raise DataError(f"{part.name} is not a part of a table; give the files that tjd wrote with --shard")
        if other := _difference(first, part):
            raise DataError(f"{part.name} is no part of the same table as {first.name}: they differ in {other}")
        number = _shard(part)["number"]
        if number in by_number:
            raise DataError(f"{by_number[number].name} and {part.name} are both part {number}; leave one out")
        by_number[number] = part
    n = _shard(first)["of"]
    missing = [str(number) for number in range(1, n + 1) if number not in by_number]
    if missing:
        which = f"part {missing[0]} is" if len(missing) == 1 else f"parts {', '.join(missing)} are"
        raise DataError(f"{which} missing of {n}; run the command with --shard {missing[0]}/{n}")
    if not any(len(part) for part in parts):
        raise DataError(f"none of the {n} parts has a row; check the command that wrote them")
    return [by_number[number] for number in range(1, n + 1)]


def concat(parts: Sequence[Table]) -> Iterator[pa.RecordBatch]:
    """Stream the rows of parts that are `in_order`, in full row groups."""
    columns = schema(parts)
    return _regrouped(batch.cast(columns) for part in _turns(parts) for batch in part)


def schema(parts: Sequence[Table]) -> pa.Schema:
    """The columns as they were written; as they are read, Parquet has renamed the items of lists."""
    written = base64.b64decode(parts[0].file.metadata.metadata[b"ARROW:schema"])
    return pa.ipc.read_schema(pa.py_buffer(written)).remove_metadata()


def provenance(parts: Sequence[Table]) -> dict[str, Any]:
    """What the footer of the whole says."""
    return {name: value for name, value in (parts[0].provenance or {}).items() if name != "shard"}


def _turns(parts: Sequence[Table]) -> Iterator[Iterable[pa.RecordBatch]]:
    """The batches of each part in the order of the whole: once, or once per turn of the stage's outer loop."""
    whole = provenance(parts)
    column = OUTER_LOOPS.get(whole["stage"])
    turns = whole["config"][column] if column else []
    if len(turns) < 2:
        yield from (part.batches() for part in parts)
        return
    for turn in turns:
        for part in parts:
            yield (batch.filter(pc.field(column) == turn) for batch in part.batches())


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    held: list[pa.RecordBatch] = []
    n = 0
    for batch in batches:
        while len(batch):
            piece, batch = batch[: ROWS_PER_GROUP - n], batch[ROWS_PER_GROUP - n :]
            held.append(piece)
            n += len(piece)
            if n == ROWS_PER_GROUP:
                yield pa.concat_batches(held)
                held, n = [], 0
    if held:
        yield pa.concat_batches(held)


def _shard(part: Table) -> dict[str, int]:
    return (part.provenance or {})["shard"]


def _difference(one: Table, other: Table) -> str | None:
    """The first thing that should be the same in two parts and is not."""
    a, b = _flat(one), _flat(other)
    differing = next((name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)), None)
    return differing or (None if one.schema == other.schema else "their columns")


def _flat(part: Table) -> dict[str, Any]:
    """Provenance by path, such as `config.seed`, but for the number of the part."""
    flat: dict[str, Any] = {"n of i/n": _shard(part)["of"]}
    for name, value in provenance([part]).items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat
