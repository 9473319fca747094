"""Completions recorded before: the demo's teacher, and what makes tests of the teacher stages exact.

A recording is a Parquet file, one row per (prompt, seed). It costs nothing and is never cached. In memory are 12 bytes a
row, which say where in the file a completion stands, and the row groups that were read last: whoever asks in the order of
the recording reads each once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
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
FINISH_REASON = pa.field("finish_reason", pa.string())  # "stop", or "length" where it was cut; need not be there
MISSING = "not in the recording"
ADVICE = "a recorded teacher answers only what it was recorded on; for your own queries name a live model with -t"
MISSING_AT_FIRST = 20  # so many misses before any hit: the recording belongs to other prompts
GROUPS_HELD = 16


class Recorded:
    """A teacher that repeats what was recorded."""

    price = FREE

    def __init__(self, path: str) -> None:
        """Read where each completion stands.

        Raises:
            DataError: It is no recording, or has two completions for one prompt and seed.
        """
        self._path = path
        self._file = _open(path)
        self._digest = tables.file_digest(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)  # rows up to and with each group
        self._group = lru_cache(GROUPS_HELD)(self._read_group)
        self._hashes, self._rows = self._index()
        self._require_unique()
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
        """Free what was read; asking again reads it anew."""
        self._group.cache_clear()

    def _find(self, request: Request) -> Completion:
        key = (request.prompt_digest, request.seed)
        text, finish_reason = next(
            (said for found, said in self._candidates(_hash(*key)) if found == key), (None, None)
        )
        error = MISSING if text is None else None
        completion = Completion(text, self.name, finish_reason, cost_usd=0.0, error=error)
        self.usage.add(completion)
        return completion

    def _candidates(self, hashed: int) -> Iterator[tuple[tuple[str, int], tuple[str | None, str | None]]]:
        """Key and content of the rows whose key has this hash: nearly always one or none."""
        place = int(np.searchsorted(self._hashes, np.uint64(hashed)))
        while place < len(self._hashes) and self._hashes[place] == hashed:
            row = int(self._rows[place])
            group = int(np.searchsorted(self._ends, row, side="right"))
            columns = self._group(group)
            digest, seed, text, finish_reason = (column[row - int(self._ends[group])].as_py() for column in columns)
            yield (digest.lower(), seed), (text, finish_reason)
            place += 1

    def _read_group(self, group: int) -> list[pa.ChunkedArray]:
        """The columns of a row group. A place counted from the end of the group is a negative index."""
        has_reason = FINISH_REASON.name in self._file.schema_arrow.names
        schema = pa.schema(
            [*(RECORDING.field(name) for name in ("prompt_sha256", "seed", "completion")), FINISH_REASON]
        )
        wanted = schema if has_reason else schema.remove(3)
        found = self._file.read_row_group(group, columns=wanted.names).select(wanted.names).cast(wanted)
        nulls = pa.chunked_array([pa.nulls(len(found), pa.string())])
        return [*found.columns, *([] if has_reason else [nulls])]

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all keys in order, and which row each belongs to."""
        n = self._file.metadata.num_rows
        hashes = np.empty(n, dtype=np.uint64)
        start = 0
        wanted = pa.schema([RECORDING.field("prompt_sha256"), RECORDING.field("seed")])
        try:
            for batch in self._file.iter_batches(tables.ROWS_PER_GROUP, columns=wanted.names):
                columns = batch.select(wanted.names).cast(wanted).columns
                keys = zip(*(column.to_pylist() for column in columns), strict=True)
                hashes[start : start + len(batch)] = [_hash(digest, seed) for digest, seed in keys]
                start += len(batch)
        except (pa.ArrowException, OSError, AttributeError, TypeError, ValueError) as exc:
            raise DataError(
                f"the recording {self._path} has a prompt_sha256 or a seed that is none ({exc}); write it anew"
            ) from exc
        rows = np.argsort(hashes, kind="stable").astype(np.uint32 if n < 2**32 else np.int64)
        hashes.sort()
        return hashes, rows

    def _require_unique(self) -> None:
        for hashed in np.unique(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]]):
            keys = [key for key, _ in self._candidates(int(hashed))]
            for digest, seed in keys:
                if keys.count((digest, seed)) > 1:
                    raise DataError(
                        f"the recording {self._path} has two completions for the prompt {digest[:12]}... and seed {seed}, "
                        "perhaps of two models; keep one (tjd cache export --model)"
                    )


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


def _hash(prompt_sha256: str, seed: int) -> int:
    """64 bits of a key; which key it was is compared when a row is read."""
    seed_bytes = seed.to_bytes(8, "big", signed=True)
    return int.from_bytes(hashlib.blake2b(bytes.fromhex(prompt_sha256) + seed_bytes, digest_size=8).digest(), "big")


def _open(path: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # else all that was read stays in memory
    except FileNotFoundError as exc:
        raise DataError(f"there is no recording {path}; check the path after 'recorded:'") from exc
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"the recording {path} is not a readable Parquet file; write it anew") from exc
    found = file.schema_arrow
    missing = [name for name in RECORDING.names if name not in found.names]
    if missing:
        raise DataError(f"the recording {path} lacks the column '{missing[0]}'; it needs {', '.join(RECORDING.names)}")
    for field in (*RECORDING, *([FINISH_REASON] if FINISH_REASON.name in found.names else [])):
        if not tables.castable(found.field(field.name).type, field.type):
            raise DataError(f"the recording {path} has a column of another type ({field.name}); write it anew")
    return file
