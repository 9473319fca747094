"""Completions on disk: the means of resume, and why nothing is paid twice.

One SQLite file, `completions.sqlite`, in WAL mode; several processes may share it. A completion is committed as it
arrives, so it survives `kill -9`. A commit waits for the disk (fsync) once a second at most: a power cut can lose the
completions that arrived in the second after the last of these, and never damages the file. A full disk ends the run with
an error and leaves the file whole. Failed calls are not kept: they are asked again.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tjd.errors import BackendError
from tjd.teacher import Again, Completion, Request, Spoken, Usage, follow_up

FILE = "completions.sqlite"
COLUMNS = "text, finish_reason, n_prompt_tokens, n_tokens, cost_usd, logprobs"
SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    key BLOB PRIMARY KEY,       -- SHA-256 of model, messages and sampling parameters
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT,
    n_prompt_tokens INTEGER,
    n_tokens INTEGER,
    cost_usd REAL,              -- when it was asked; null if the price was unknown
    arrived_at INTEGER NOT NULL DEFAULT (unixepoch())
)
"""
ADDED = {  # null in older rows
    "logprobs": "TEXT",  # JSON list of [start, token, {token: log probability}]; null if none were returned
    "prompt_sha256": "TEXT",  # of the request, as is its seed, for recordings; null where only its key was known
    "seed": "INTEGER",
}
WAIT_S = 60.0  # for another process that is writing
SYNC_EVERY_S = 1.0


class Ledger:
    """What one model has answered before (on disk), and what it is asked now (`usage`)."""

    def __init__(self, model: str, identity: str, folder: Path | None, usage: Usage, tag: str = "") -> None:
        """Nothing is opened yet.

        Args:
            model: Its public name.
            identity: What tells it from other models: for local weights their digest, for a remote model its server.
            folder: Of the cache; null keeps nothing.
            usage: Where to count.
            tag: What tells it from itself at another time; the user knows.
        """
        self.usage = usage
        self._model, self._folder = model, folder
        self.identity = f"{identity}\x1f{tag}" if tag else identity
        self._connection: sqlite3.Connection | None = None
        self._synced_at = -SYNC_EVERY_S  # time.monotonic
        self._forgotten: set[bytes] = set()  # by `forget_unusable`

    def key(self, request: Request) -> bytes:
        """What a completion is found by."""
        sampling = (request.temperature, request.top_p, request.max_tokens, request.seed)
        # left out where they are not used, so that keys of plain requests stay as they were
        form = {"schema": request.schema, "logprobs": request.logprobs}
        form = [form] if any(form.values()) else []
        parts = json.dumps([self.identity, request.messages, *sampling, *form], ensure_ascii=False)
        return hashlib.sha256(parts.encode()).digest()

    def find(self, request: Request) -> Completion | None:
        """The completion that arrived before, if one did."""
        completion = self._look_up(request)
        if completion is not None:
            self.usage.cached += 1
            self.usage.saved_usd += completion.cost_usd or 0.0
        return completion

    def forget_unusable(self, request: Request, again: Again | None) -> None:
        """Forget the answer to a request, and to asking again, if an earlier run could use neither."""
        first = self._look_up(request)
        second = first and follow_up(request, first, again)
        answer = second and self._look_up(second)
        keys = {self.key(each) for each in (request, second) if each}
        if second and answer and follow_up(second, answer, again) and keys.isdisjoint(self._forgotten):
            self._forgotten |= keys  # once: what comes now stands, also for equal requests
            with self.connection() as cache, cache:
                cache.executemany("DELETE FROM completions WHERE key = ?", ((key,) for key in keys))

    def _look_up(self, request: Request) -> Completion | None:
        if self._folder is None:
            return None
        with self.connection() as cache:
            found = cache.execute(f"SELECT {COLUMNS} FROM completions WHERE key = ?", (self.key(request),)).fetchone()
        if found is None:
            return None
        text, *rest, logprobs = found
        tokens = None if logprobs is None else tuple(Spoken(*token) for token in json.loads(logprobs))
        return Completion(text, self._model, *rest, logprobs=tokens)

    def enter(self, arrived: Iterable[tuple[Request, Completion]]) -> None:
        """Count calls that were made, and keep those that were answered; all of them or, if killed here, none."""
        self._enter([(self.key(request), request.prompt_digest, request.seed, c) for request, c in arrived])

    def enter_keyed(self, arrived: Iterable[tuple[bytes, Completion]], known: Mapping[bytes, Request]) -> None:
        """The same by key; a request that is not `known`, since another command asked it, is in no recording."""
        requests = ((key, known.get(key), completion) for key, completion in arrived)
        self._enter([(key, r and r.prompt_digest, r and r.seed, completion) for key, r, completion in requests])

    def _enter(self, arrived: Sequence[tuple[bytes, str | None, int | None, Completion]]) -> None:
        for *_, completion in arrived:
            self.usage.add(completion)
        if self._folder is None:
            return
        rows = [
            (key, self._model, c.text, c.finish_reason, c.n_prompt_tokens, c.n_tokens, c.cost_usd,
             None if c.logprobs is None else json.dumps(c.logprobs), digest, seed)
            for key, digest, seed, c in arrived
            if c.text is not None
        ]  # fmt: skip
        with self.connection() as cache:
            now = time.monotonic()
            sync = now - self._synced_at >= SYNC_EVERY_S
            cache.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            with cache:
                cache.executemany(
                    f"INSERT OR IGNORE INTO completions (key, model, {COLUMNS}, prompt_sha256, seed) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
            if sync:
                self._synced_at = now

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The open file; what goes wrong with it becomes one line."""
        with told():
            if self._connection is None:
                assert self._folder is not None
                self._folder.mkdir(parents=True, exist_ok=True)
                self._connection = connect(self._folder / FILE)
            yield self._connection


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or make it; a file of an older release gets the columns it lacks."""
    # used by one thread at a time: the event loop's, or the caller's
    connection = sqlite3.connect(path, timeout=WAIT_S, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(SCHEMA)
    for name in ADDED.keys() - _columns(connection):
        try:
            connection.execute(f"ALTER TABLE completions ADD COLUMN {name} {ADDED[name]}")
        except sqlite3.OperationalError:
            if name not in _columns(connection):  # else another process was faster
                raise
    return connection


def _columns(connection: sqlite3.Connection) -> set[str]:
    return {name for _, name, *_ in connection.execute("PRAGMA table_info(completions)")}


@contextmanager
def told() -> Iterator[None]:
    """Turn what SQLite says into one line.

    Raises:
        BackendError: The file is damaged, the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise BackendError(f"the cache {FILE} cannot be used ({exc}); {_advice(exc)}") from exc


def _advice(exc: Exception) -> str:
    if getattr(exc, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return "move it away, or point TJD_CACHE to another folder: what it holds is asked anew"
    return (
        "free space, or point TJD_CACHE to a folder you can write to, then run the same command again: what had arrived "
        "is kept"
    )
