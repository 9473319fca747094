"""Read a benchmark's own files: from a file, a folder that holds it, or the hub. Rows of `instructions` come out."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tjd import records, tables
from tjd.errors import DataError
from tjd.tables import Row

MOST_OF_A_CELL = 2**31 - 1
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def read_rows(source: str, pattern: str, columns: Sequence[str], howto: str) -> list[Row]:
    """Read the rows of a benchmark whose data is one table.

    Args:
        source: A JSON, JSONL, CSV or Parquet file, a folder that holds one of that name, or a name on the hub.
        pattern: Glob of the file's name in a folder.
        columns: Those every row must have.
        howto: Where the data can be got, for the message.

    Raises:
        DataError: There is no such data, or it has another form.
    """
    path = Path(source)
    if path.is_dir():
        path = find(path, pattern, howto)
    if path.is_file():
        rows = read_file(path)
    elif _HUB_NAME.fullmatch(source):
        try:
            rows = [row for _, row in records.open_records(source).placed]
        except DataError as exc:
            raise DataError(f"{exc}; {howto}") from exc
    else:
        raise DataError(f"there is no {source}; {howto}")
    return checked(rows, columns, source, howto)


def checked(rows: list[Row], columns: Sequence[str], source: str, howto: str) -> list[Row]:
    """The rows, if there are any and all have the columns."""
    if not rows:
        raise DataError(f"{source} has no rows; {howto}")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in columns if name not in row]
        if missing:
            raise DataError(f"row {number} of {source} lacks '{missing[0]}'; it has {', '.join(row)}; {howto}")
    return rows


def find(folder: Path, pattern: str, howto: str) -> Path:
    """The one file of that name in a folder or below it."""
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if len(found) != 1:
        told = f"{len(found)} files" if found else "no file"
        raise DataError(f"{folder} has {told} named {pattern}; {howto}")
    return found[0]


def read_file(path: Path) -> list[Row]:
    """Read a table from CSV, if the name says so, or from JSON (a list of objects), JSONL or Parquet."""
    if path.suffix != ".csv":
        return [row for _, row in records.open_records(str(path)).placed]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(MOST_OF_A_CELL)
            return list(csv.DictReader(file))
    except (ValueError, OSError, csv.Error) as exc:
        raise DataError(f"{path} cannot be read as CSV ({exc}); give JSON, JSONL, CSV or Parquet") from exc


def source_digest(source: str) -> str:
    """SHA-256 of the file or folder; of the name, for data from the hub."""
    return tables.file_digest(source) if Path(source).exists() else tables.text_id("hub", source)


def instruction_row(instruction_id: str, text: str, constraints: Iterable[Mapping[str, Any]], **more: Any) -> Row:
    """One row of BENCHMARK_INSTRUCTIONS; `more` fills further columns."""
    listed = [{"constraint_id": f"{instruction_id}/{place}", **c} for place, c in enumerate(constraints)]
    row = {
        "instruction_id": instruction_id,
        "query_id": instruction_id,
        "query": text,
        "language": None,
        "source": instruction_id.partition(":")[0],
        "instruction": text,
        "constraints": listed,
        "benchmark": instruction_id.partition(":")[0],
        "part": None,
        "turn": None,
        "level": None,
        "details": None,
        "error": None,
        "cost_usd": 0.0,
        "n_prompt_tokens": 0,
        "n_completion_tokens": 0,
    }
    return row | more


def rule(checker: str, kwargs: Mapping[str, Any]) -> Row:
    """A constraint that code decides; null kwargs, with which hub copies are padded, are dropped."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    return {
        "kind": "rule",
        "category": None,
        "text": None,
        "checker": checker,
        "kwargs": json.dumps(given, ensure_ascii=False, sort_keys=True),
    }


def soft(text: str, category: str | None) -> Row:
    """A constraint that a judge decides."""
    return {"kind": "soft", "category": category, "text": text, "checker": None, "kwargs": None}


def rules(ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]], where: str) -> Iterator[Row]:
    """The rule constraints of a prompt in IFEval's form: two lists of equal length."""
    if len(ids) != len(kwargs):
        raise DataError(f"{where} has {len(ids)} instruction ids but {len(kwargs)} kwargs; fetch the data anew")
    return (rule(checker, given) for checker, given in zip(ids, kwargs, strict=True))
