"""Batch jobs on disk: which requests are on their way in which job, beside the completions that have arrived.

A file is uploaded, entered here, and only then submitted; so at every moment a job that may cost something is known here
by its file, and the provider's list of batches says what became of it. Requests are held by their keys: whichever command
wants one of them finds the job, whether it is the command that submitted it or not.
"""

import fcntl
import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tjd.errors import BackendError
from tjd.teacher.cache import Ledger

LOCK = "batch.lock"
SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: another process may still hold an old job
    teacher BLOB NOT NULL,      -- SHA-256 of model, server address and cache tag
    model TEXT NOT NULL,
    file TEXT NOT NULL,         -- the provider's id of the uploaded requests
    job TEXT,                   -- the provider's id; null if the process ended while submitting
    entered_at INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS batch_requests (
    key BLOB PRIMARY KEY,       -- as in `completions`
    number INTEGER NOT NULL REFERENCES batch_jobs
);
CREATE INDEX IF NOT EXISTS batch_requests_of ON batch_requests (number);
"""


@dataclass(slots=True)
class Job:
    """One uploaded file of requests, and the job that answers it."""

    number: int
    file: str
    job: str | None
    entered_at: int  # seconds since 1970
    keys: frozenset[bytes]


class Jobs:
    """The jobs of one model that are on their way."""

    def __init__(self, model: str, ledger: Ledger, folder: Path) -> None:
        """Nothing is opened yet."""
        self._model, self._ledger, self._folder = model, ledger, folder
        self._teacher = hashlib.sha256(ledger.identity.encode()).digest()  # an address may hold a password

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """One process at a time. It is freed when its holder dies, so whoever holds it sees what was left half done."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / LOCK).open("w")
        except OSError as exc:
            raise BackendError(f"the cache folder cannot be written ({exc}); point TJD_CACHE to one you can") from exc
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def open(self) -> list[Job]:
        """All that are on their way, whichever process submitted them."""
        with self._durable() as cache:
            rows = cache.execute(
                "SELECT number, file, job, entered_at FROM batch_jobs WHERE teacher = ?", (self._teacher,)
            ).fetchall()
            of_job = "SELECT key FROM batch_requests WHERE number = ?"
            return [
                Job(number, file, job, entered_at, frozenset(key for (key,) in cache.execute(of_job, (number,))))
                for number, file, job, entered_at in rows
            ]

    def enter(self, file: str, keys: Sequence[bytes]) -> Job:
        """A file that is uploaded, and will be submitted next."""
        now = int(time.time())
        with self._durable() as cache, cache:
            number = cache.execute(
                "INSERT INTO batch_jobs (teacher, model, file, entered_at) VALUES (?, ?, ?, ?)",
                (self._teacher, self._model, file, now),
            ).lastrowid
            assert number is not None
            cache.executemany("INSERT INTO batch_requests (key, number) VALUES (?, ?)", ((key, number) for key in keys))
        return Job(number, file, None, now, frozenset(keys))

    def submitted(self, job: Job, identifier: str) -> None:
        """The provider took it, and calls it so."""
        job.job = identifier
        with self._durable() as cache, cache:
            cache.execute(
                "UPDATE batch_jobs SET job = ? WHERE number = ? AND file = ?", (identifier, job.number, job.file)
            )

    def close(self, job: Job) -> None:
        """Forget a job that has ended and was read."""
        with self._durable() as cache, cache:
            # another process may have forgotten it already
            if cache.execute("DELETE FROM batch_jobs WHERE number = ? AND file = ?", (job.number, job.file)).rowcount:
                cache.execute("DELETE FROM batch_requests WHERE number = ?", (job.number,))

    @contextmanager
    def _durable(self) -> Iterator[sqlite3.Connection]:
        with self._ledger.connection() as cache:
            cache.execute("PRAGMA synchronous = FULL")  # a job's id must survive a power cut; there are few
            cache.executescript(SCHEMA)
            yield cache
