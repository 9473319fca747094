"""Look after the completions on disk: what they came to, removing some, and exporting them as a recording."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tjd.errors import DataError
from tjd.teacher.cache import FILE, connect, told
from tjd.teacher.recorded import FINISH_REASON, RECORDING

DAY_S = 86_400
EXPORT = pa.schema(
    [
        *RECORDING,
        FINISH_REASON,
        pa.field("n_prompt_tokens", pa.int64()),
        pa.field("n_tokens", pa.int64()),
        pa.field("cost_usd", pa.float64()),  # when it was asked; null if the price was unknown
    ]
)
STATS = """
SELECT model, count(*) AS completions, sum(n_prompt_tokens) AS prompt_tokens, sum(n_tokens) AS tokens,
    sum(cost_usd) AS cost_usd, count(*) - count(cost_usd) AS unknown_prices, sum(length(CAST(text AS BLOB))) AS bytes,
    date(min(arrived_at), 'unixepoch') AS first, date(max(arrived_at), 'unixepoch') AS last
FROM completions WHERE {where} GROUP BY model ORDER BY model
"""
LAST_OF_EACH = """
SELECT prompt_sha256, seed, text AS completion, model, 'cache' AS source, finish_reason, n_prompt_tokens, n_tokens, cost_usd
FROM (
    SELECT *, row_number() OVER (PARTITION BY model, prompt_sha256, seed ORDER BY arrived_at DESC, rowid DESC) AS place
    FROM completions WHERE prompt_sha256 IS NOT NULL AND {where}
)
WHERE place = 1 ORDER BY prompt_sha256, seed, model
"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which completions are meant; by default all."""

    model: str | None = None
    older_than_days: float = 0.0

    @property
    def where(self) -> str:
        """The condition in SQL."""
        by_model = "model = :model" if self.model is not None else "true"
        return f"{by_model} AND arrived_at <= unixepoch() - :older_than_s"

    @property
    def values(self) -> dict[str, Any]:
        """Its parameters."""
        return {"model": self.model, "older_than_s": self.older_than_days * DAY_S}


def stats(folder: Path, chosen: Chosen) -> list[dict[str, Any]]:
    """Per model: how many completions, their tokens, cost, size in bytes, and the days of the first and the last."""
    with _opened(folder) as cache:
        return [dict(row) for row in cache.execute(STATS.format(where=chosen.where), chosen.values)]


def prune(folder: Path, chosen: Chosen) -> int:
    """Remove completions, and give their room back to the disk; returns how many they were."""
    with _opened(folder) as cache:
        with cache:
            n = cache.execute(f"DELETE FROM completions WHERE {chosen.where}", chosen.values).rowcount
        cache.execute("VACUUM")
        cache.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return n


def export(folder: Path, chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Stream the rows of a recording that `recorded:` reads, ordered by prompt, seed and model.

    Of completions that differ in their sampling parameters alone, the one that arrived last; without those of releases that
    did not note the prompt.
    """
    with _opened(folder) as cache:
        for row in cache.execute(LAST_OF_EACH.format(where=chosen.where), chosen.values):
            yield dict(row)


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"there is no cache {path}; no model was asked yet, or TJD_CACHE names another folder")
    with told(), closing(connect(path)) as cache:
        cache.row_factory = sqlite3.Row
        yield cache
