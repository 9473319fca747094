"""Records of a foreign source: a JSONL, JSON or Parquet file, a folder of them, or a data set on the hub.

Out: one dictionary per record, with the place it stands at, for messages. JSONL and Parquet are streamed.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tjd import tables
from tjd.errors import DataError
from tjd.extras import need
from tjd.tables import Row

TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
VERDICTS = "1 or 0, true or false, yes or no, or null"  # for messages
BOM = b"\xef\xbb\xbf"  # some editors put it first


@dataclass(frozen=True)
class Records:
    """Records in order, each with its place."""

    placed: Iterator[tuple[str, Row]]
    digest: str  # SHA-256 of the file; for a data set, of the fingerprints of its splits


def open_records(source: str) -> Records:
    """Open a source.

    Raises:
        DataError: It does not exist or cannot be read; while reading, a record is not an object.
        MissingExtraError: It is not a file, and the package `datasets` is not installed.
    """
    path = Path(source)
    if not path.is_file():
        return _open_data_set(source)
    with path.open("rb") as file:
        start = file.read(64).removeprefix(BOM).lstrip()
    if start.startswith(b"PAR1"):
        placed = _parquet(path)
    elif start.startswith(b"["):
        placed = _json(path)
    else:
        placed = _jsonl(path)
    return Records(placed, tables.file_digest(path))


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                place = f"line {number} of {path}"
                try:
                    yield place, _object(json.loads(line), place)
                except ValueError as exc:
                    raise DataError(f"{place} is not JSON ({exc}); write one object a line") from exc


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        records = json.loads(path.read_bytes().removeprefix(BOM))
    except ValueError as exc:
        raise DataError(f"{path} is not JSON ({exc}); write a list of objects, or one object a line") from exc
    for number, record in enumerate(records, start=1):
        place = f"record {number} of {path}"
        yield place, _object(record, place)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = (row for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number} of {path}", row
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"{path} is a truncated or damaged Parquet file; write it anew") from exc


def _open_data_set(name: str) -> Records:
    need("import", "train", "datasets")
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, DatasetsError) as exc:
        told = str(exc).strip().partition("\n")[0]
        raise DataError(f"{name} is no file, and no data set that can be loaded ({told}); check the name") from exc
    fingerprints = "\n".join(f"{split} {data._fingerprint}" for split, data in splits.items())
    placed = (
        (f"row {number} of {name} ({split})", dict(row))
        for split, data in splits.items()
        for number, row in enumerate(data, start=1)
    )
    return Records(placed, hashlib.sha256(fingerprints.encode()).hexdigest())


def _object(record: object, place: str) -> Row:
    if not isinstance(record, dict):
        raise DataError(f"{place} is not an object but {json.dumps(record)[:60]}; write {{...}}")
    return record


def verdict_in(value: object) -> bool | None:
    """Read a foreign verdict, one of `VERDICTS`.

    Raises:
        ValueError: It is something else.
    """
    if value is None:
        return None
    text = str(value).strip().lower()
    if text not in TRUE | FALSE:
        raise ValueError(value)
    return text in TRUE
