"""Responses that a file holds: of our own evaluations, or in the forms the benchmarks' own tools write.

A row names its prompt by `instruction_id` (ours), by its text (`prompt`, `instruction` or `query`), or by the benchmark's
own key (`key`, `id` or `idx`; for Multi-IF always, with `turn`). A column `model` tells several models apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tjd.benchmarks.sources import read_file
from tjd.errors import DataError
from tjd.tables import Row

TEXTS = ("prompt", "instruction", "query")
KEYS = ("key", "id", "idx")


@dataclass(slots=True)
class Responses:
    """What one model answered, by `instruction_id` and by prompt; null where it failed."""

    model: str
    by_id: dict[str, str | None] = field(default_factory=dict)
    by_text: dict[str, str | None] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of each row, by which it is entered

    def find(self, row: Row) -> tuple[str | None, str | None]:
        """The response to a prompt, or null and why there is none.

        The text of a prompt is looked up as it is, then without spaces around it, as IFBench's script does.
        """
        for found, name in (
            (self.by_id, row["instruction_id"]),
            (self.by_text, row["instruction"]),
            (self.by_text, row["instruction"].strip()),
        ):
            if name in found:
                response = found[name]
                return response, None if response is not None else "the file holds a null response"
        return None, "the file holds no response to this prompt"

    def strangers(self, rows: Sequence[Row]) -> int:
        """How many of the file's rows answer none of these prompts."""
        known = {name for row in rows for name in (row["instruction_id"], row["instruction"].strip())}
        return sum(name not in known for name in self.names)


def read(path: str, benchmarks: Sequence[str]) -> list[Responses]:
    """Read a file of responses, one entry per model.

    Args:
        path: JSONL, JSON, CSV or Parquet.
        benchmarks: Those that are evaluated: with one alone, a benchmark's own key is enough.

    Raises:
        DataError: The file has another form, or holds two different responses to one prompt.
    """
    rows = read_file(Path(path))
    models: dict[str, Responses] = {}
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {path}"
        if "response" not in row:
            raise DataError(f"{where} has no 'response'; it has {', '.join(row)}")
        model = str(row.get("model") or Path(path).stem)
        entry = models.setdefault(model, Responses(model))
        if row.get("instruction_id") is not None:
            name = str(row["instruction_id"])
            _enter(entry.by_id, name, row["response"], where)
        elif row.get("turn") is None and (name := _first(row, TEXTS)) is not None:  # turns repeat their words
            for form in dict.fromkeys((name, name.strip())):
                _enter(entry.by_text, form, row["response"], where)
        else:
            name = _own_key(row, benchmarks, where)
            _enter(entry.by_id, name, row["response"], where)
        entry.names.append(name.strip())
    if not models:
        raise DataError(f"{path} has no rows; check the command that wrote it")
    return list(models.values())


def _own_key(row: Row, benchmarks: Sequence[str], where: str) -> str:
    key = _first(row, KEYS)
    if key is None:
        raise DataError(f"{where} names no prompt; give it one of instruction_id, {', '.join((*TEXTS, *KEYS))}")
    if row.get("turn") is not None:
        try:
            return f"multi-if:{key}:t{int(float(row['turn']))}"  # a table with gaps has 1.0 for 1
        except ValueError as exc:
            raise DataError(f"{where} has the turn {row['turn']!r}; it must be a number") from exc
    benchmark = row.get("benchmark") or (benchmarks[0] if len(benchmarks) == 1 else None)
    if benchmark is None:
        raise DataError(f"{where} has a key but neither prompt nor benchmark; add a column 'benchmark'")
    return f"{benchmark}:{key}"


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((str(row[name]) for name in names if row.get(name) is not None), None)


def _enter(found: dict[str, str | None], name: str, response: str | None, where: str) -> None:
    if found.get(name, response) != response:
        raise DataError(f"{where} repeats a prompt with another response ({name[:60]!r}); name it by instruction_id")
    found[name] = response
