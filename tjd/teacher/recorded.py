"""Completions recorded before: the demo's teacher, and what makes tests of the teacher stages exact.

A recording is a Parquet file, one row per (prompt, seed). It costs nothing and is never cached.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tjd import tables
from tjd.errors import BackendError, DataError
from tjd.teacher import Again, Completion, Request, Usage, follow_up, merged
from tjd.teacher.budget import FREE

RECORDING = pa.schema(
    {
        "prompt_sha256": pa.string(),  # Request.prompt_digest; unique together with seed
        "seed": pa.int64(),  # of the request: the index of a vote, plus --seed
        "completion": pa.string(),
        "model": pa.string(),  # who wrote the completion
        "source": pa.string(),  # how it came about
    }
)
MISSING = "not in the recording"
ADVICE = "a recorded teacher answers only what it was recorded on; for your own queries name a live model with -t"
MISSING_AT_FIRST = 20  # so many misses before any hit: the recording belongs to other prompts


class Recorded:
    """A teacher that repeats what was recorded."""

    price = FREE

    def __init__(self, path: str) -> None:
        """Read a recording.

        Raises:
            DataError: It is no recording.
        """
        self._table = _read(path)
        self._digest = tables.file_digest(path)
        self._row = {key: row for row, key in enumerate(_keys(self._table))}
        self._completions = self._table["completion"]
        self.name = f"recorded:{self._digest[:12]}"
        self.usage = Usage()
        self._hits = self._misses = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return self._digest

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Look each request up by its messages and its seed.

        Raises:
            BackendError: The recording belongs to other prompts.
        """
        for request in requests:
            first = self._find(request)
            self._hits, self._misses = self._hits + (first.text is not None), self._misses + (first.text is None)
            if self._hits == 0 and self._misses == MISSING_AT_FIRST:
                raise BackendError(
                    f"{self.name} holds none of the first {MISSING_AT_FIRST} prompts; it was recorded for other rows, "
                    f"prompts or seeds: {ADVICE}"
                )
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, self._find(second))

    def find(self, request: Request) -> Completion | None:
        """Nothing is on disk: to look up the recording is the call."""

    def close(self) -> None:
        """Nothing to free."""

    def _find(self, request: Request) -> Completion:
        row = self._row.get((bytes.fromhex(request.prompt_digest), request.seed))
        text = None if row is None else self._completions[row].as_py()
        error = MISSING if text is None else None
        completion = Completion(text, self.name, cost_usd=0.0, error=error)
        self.usage.add(completion)
        return completion


def entry(request: Request, completion: str, *, model: str, source: str) -> dict[str, Any]:
    """A row of a recording."""
    return {
        "prompt_sha256": request.prompt_digest,
        "seed": request.seed,
        "completion": completion,
        "model": model,
        "source": source,
    }


def write_recording(entries: Iterable[dict[str, Any]], out: str, provenance: Mapping[str, Any]) -> int:
    """Write rows made by `entry`; returns how many."""
    return tables.write_rows(entries, out, RECORDING, provenance)


def _read(path: str) -> pa.Table:
    try:
        found = pq.read_table(path)
    except FileNotFoundError as exc:
        raise DataError(f"there is no recording {path}; check the path after 'recorded:'") from exc
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"the recording {path} is not a readable Parquet file; write it anew") from exc
    missing = [name for name in RECORDING.names if name not in found.column_names]
    if missing:
        raise DataError(f"the recording {path} lacks the column '{missing[0]}'; it needs {', '.join(RECORDING.names)}")
    try:
        return found.select(RECORDING.names).cast(RECORDING)
    except pa.ArrowException as exc:
        raise DataError(f"the recording {path} has a column of another type ({exc}); write it anew") from exc


def _keys(table: pa.Table) -> Iterator[tuple[bytes, int]]:
    for batch in table.select(["prompt_sha256", "seed"]).to_batches():
        for digest, seed in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield bytes.fromhex(digest), seed
