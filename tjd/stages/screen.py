"""Screen: reject what would be paid for twice or teach wrong: near-duplicates, and instructions that are not sound.

In: rows on their way into instructions. Out: the same rows in the same order, some of them rejected, with the reason.
The paper (section 4.1) has no such step. A check that fails rejects nothing: `verified` is null, and `error` says why.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, tee
from typing import TypeGuard

import pyarrow as pa

from tjd.config import SynthesizeConfig
from tjd.duplicates import Seen
from tjd.prompts import Prompt
from tjd.tables import Row
from tjd.teacher import Ask, Completion, once_more
from tjd.teacher.plan import UNASKED
from tjd.teacher.verification import read, unreadable, verification_request

VERIFIED = pa.field("verified", pa.bool_())  # the instruction is sound; null if nobody could say


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out."""

    row: Row
    reason: str  # what kind, and after a colon the particulars


Screened = Row | Rejected


def with_verified(schema: pa.Schema) -> pa.Schema:
    """The columns of a table, and `verified`."""
    return pa.schema([*(field for field in schema if field.name != VERIFIED.name), VERIFIED])


def distinct(rows: Iterable[Screened], column: str, seen: Seen) -> Iterator[Screened]:
    """Reject a row whose text is a near-duplicate of one before it; one without a text passes."""
    for row in rows:
        if isinstance(row, Rejected) or not row[column]:
            yield row
        else:
            first = seen.like(row["query_id"], row[column])
            yield row if first is None else Rejected(row, f"near-duplicate {column}: like that of {first}")


def passing(
    rows: Iterable[Screened], stage: Callable[[Iterator[Row]], Iterator[Row]], n_before: int = 0
) -> Iterator[Screened]:
    """Run a stage that gives one row for each on the rows that are not rejected; the others pass it by, in order.

    Of the first `n_before` rows the stage gives none.
    """
    ahead, behind = tee(rows)
    done = stage(row for row in ahead if not isinstance(row, Rejected))
    for row in islice(behind, n_before, None):
        yield row if isinstance(row, Rejected) else next(done)


def foreseen(rows: Iterable[Screened]) -> Iterator[Screened]:
    """In a dry run: the query stands in for an instruction that was not asked for, so that its check is planned too."""
    for row in rows:
        if not isinstance(row, Rejected) and row["error"] == UNASKED:
            row = {**row, "instruction": row["query"]}
        yield row


def verify(
    rows: Iterable[Screened], prompt: Prompt, again: Prompt, ask: Ask, config: SynthesizeConfig
) -> Iterator[Screened]:
    """Reject an instruction that is not sound.

    Args:
        rows: INSTRUCTIONS; those without an instruction pass unasked.
        prompt: Its variables are `teacher.verification.VARIABLES`.
        again: Its variable is `reason`; asked once where a completion cannot be read.
        ask: The verifier. It is asked at temperature 0.
        config: See `SynthesizeConfig`.

    Yields:
        The rows with `verified`: true, or null where nothing was asked, or what came cannot be read; then `error` says
        why. `cost_usd` covers the check.

    Raises:
        BackendError: The verifier failed past its retries.
    """

    def is_asked(row: Screened) -> TypeGuard[Row]:
        return not isinstance(row, Rejected) and bool(row["instruction"])

    ahead, behind = tee(rows)
    requests = (
        replace(
            verification_request(prompt, row["query"], row["instruction"], row["constraints"]),
            max_tokens=config.max_tokens,
            seed=config.seed,
        )
        for row in ahead
        if is_asked(row)
    )
    completions = ask(requests, once_more(unreadable, again))
    for row in behind:
        yield _verified(row, next(completions)) if is_asked(row) else row


def _verified(row: Row, completion: Completion) -> Screened:
    sound, reason = read(completion, len(row["constraints"]))
    used = {
        "cost_usd": (row["cost_usd"], completion.cost_usd),
        "n_prompt_tokens": (row["n_prompt_tokens"], completion.n_prompt_tokens),
        "n_completion_tokens": (row["n_completion_tokens"], completion.n_tokens),
    }
    row = {**row, "verified": sound} | {name: None if None in both else sum(both) for name, both in used.items()}
    if sound is False:
        return Rejected(row, reason or "")
    return {**row, "error": None if sound else f"could not be verified: {reason}"}
