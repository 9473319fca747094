"""Completions on disk: the means of resume, and why nothing is paid twice.

One SQLite file, `completions.sqlite`. A completion is committed as it arrives, so it survives `kill -9`; in WAL mode
without an fsync per commit a power cut can lose the last few, but never damages the file. Several processes may share
it. Failed calls are not kept: they are asked again.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tjd.errors import BackendError
from tjd.teacher import Completion, Request, Spoken, Usage

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
    arrived_at INTEGER NOT NULL DEFAULT (unixepoch()),
    logprobs TEXT               -- JSON list of [start, token, {token: log probability}]; null if none were returned
)
"""
WAIT_S = 60.0  # for another process that is writing


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
        if self._folder is None:
            return None
        with self.connection() as cache:
            found = cache.execute(f"SELECT {COLUMNS} FROM completions WHERE key = ?", (self.key(request),)).fetchone()
        if found is None:
            return None
        self.usage.cached += 1
        text, *rest, logprobs = found
        tokens = None if logprobs is None else tuple(Spoken(*token) for token in json.loads(logprobs))
        completion = Completion(text, self._model, *rest, logprobs=tokens)
        self.usage.saved_usd += completion.cost_usd or 0.0
        return completion

    def enter(self, arrived: Iterable[tuple[Request, Completion]]) -> None:
        """Count calls that were made, and keep those that were answered; all of them or, if killed here, none."""
        self.enter_keyed([(self.key(request), completion) for request, completion in arrived])

    def enter_keyed(self, arrived: Sequence[tuple[bytes, Completion]]) -> None:
        """The same where all that is known of a request is its key."""
        for _, completion in arrived:
            self.usage.add(completion)
        if self._folder is None:
            return
        rows = [
            (key, self._model, c.text, c.finish_reason, c.n_prompt_tokens, c.n_tokens, c.cost_usd,
             None if c.logprobs is None else json.dumps(c.logprobs))
            for key, c in arrived
            if c.text is not None
        ]  # fmt: skip
        with self.connection() as cache, cache:
            cache.executemany(
                f"INSERT OR IGNORE INTO completions (key, model, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The open file; what goes wrong with it becomes one line."""
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except (sqlite3.Error, OSError) as exc:
            raise BackendError(
                f"the cache {FILE} cannot be used ({exc}); free space, or point TJD_CACHE to a folder you can write to"
            ) from exc

    def _open(self) -> sqlite3.Connection:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        # used by one thread at a time: the event loop's, or the caller's
        connection = sqlite3.connect(self._folder / FILE, timeout=WAIT_S, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(SCHEMA)
        _add_missing_column(connection)
        return connection


def _add_missing_column(connection: sqlite3.Connection) -> None:
    """Give a file that an earlier version made the column it lacks; nothing else of it changes."""
    if "logprobs" not in {row[1] for row in connection.execute("PRAGMA table_info(completions)")}:
        with suppress(sqlite3.OperationalError):  # another process was faster
            connection.execute("ALTER TABLE completions ADD COLUMN logprobs TEXT")
