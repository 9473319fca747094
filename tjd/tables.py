"""Tables: schemas, checked reads, atomic writes, and provenance inside the file.

In: Parquet (or JSONL or CSV, where a human starts or rates), from a path or from standard input (`-`).
Out: Parquet, to a path or to standard output. Rows flow in batches, so memory does not grow with the number of rows;
only a hash of each key (8 bytes) is held while a table is opened, to find duplicates before any work is paid for.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tjd import __version__
from tjd.errors import ConfigError, DataError

Row = dict[str, Any]

ROWS_PER_GROUP = 4096  # rows of a Parquet row group we write, and of a batch we read
STDIO = "-"
MAX_HELD = 8  # values of a column that a message names
NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

CONSTRAINT = pa.struct(
    {
        "constraint_id": pa.string(),
        "kind": pa.string(),  # "rule" (code can check) or "soft" (needs a judge)
        "category": pa.string(),  # of a soft constraint: a name of the taxonomy; null for a rule
        "text": pa.string(),  # the constraint in words
        "checker": pa.string(),  # of a rule: its name in tjd.checkers; null for a soft constraint
        "kwargs": pa.string(),  # of a rule: its arguments as a JSON object; null for a soft constraint
    }
)

QUERIES = pa.schema(
    {
        "query_id": pa.string(),  # unique; the unit of every split and interval
        "query": pa.string(),  # what the user asks, without the constraints
        "language": pa.string(),  # ISO 639-1 code, null if unknown
        "source": pa.string(),  # where the query comes from, null if unknown
    }
)
INSTRUCTIONS = pa.schema(
    [
        pa.field("instruction_id", pa.string()),  # unique
        *QUERIES,
        pa.field("instruction", pa.string()),  # the query with its constraints woven in; null if the teacher failed
        pa.field("constraints", pa.list_(CONSTRAINT)),  # empty if the teacher failed and the query had no rules
        pa.field("error", pa.string()),  # why `instruction` is null, or why it could not be verified
        pa.field("cost_usd", pa.float64()),  # of the calls that made this row, null if the price is unknown
        pa.field("n_prompt_tokens", pa.int64()),  # of the same calls, null if unknown; 0 where nothing was asked
        pa.field("n_completion_tokens", pa.int64()),  # likewise
    ]
)
REJECTED = pa.schema(
    [
        *INSTRUCTIONS,  # what was known when the row was rejected: of a query its own columns
        pa.field("reason", pa.string()),  # why; up to a colon what kind of reason it is
    ]
)
RESPONSES = pa.schema(
    [
        pa.field("response_id", pa.string()),  # unique
        *INSTRUCTIONS,
        pa.field("response", pa.string()),  # null if the model failed
        pa.field("model", pa.string()),  # who wrote the response
        pa.field("condition", pa.string()),  # "with_constraint" (saw the instruction), "without_constraint" (the query)
        pa.field("temperature", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("finish_reason", pa.string()),  # "stop", or "length" where the response was cut
        pa.field("n_tokens", pa.int64()),  # tokens of the response, null if unknown; travels along with it
    ]
)
LABELS = pa.schema(
    [
        pa.field("response_id", pa.string()),  # unique together with constraint_id
        pa.field("constraint_id", pa.string()),
        *(field for field in RESPONSES if field.name not in {"response_id", "constraints"}),
        pa.field("kind", pa.string()),  # "rule" or "soft"
        pa.field("category", pa.string()),  # null for a rule
        pa.field("constraint", pa.string()),  # the constraint in words
        pa.field("checker", pa.string()),  # null for a soft constraint
        pa.field("kwargs", pa.string()),  # JSON object, null for a soft constraint
        pa.field("followed", pa.bool_()),  # majority of the readable votes; null if none, or if they are tied
        pa.field(
            "votes", pa.list_(pa.bool_())
        ),  # one per asked vote (of a panel: the first of each teacher, then the second), null where unreadable
        pa.field("agreement", pa.float64()),  # share of the readable votes that agree with the majority, in [0.5, 1]
        pa.field("mode", pa.string()),  # "pointwise", "batch", or "rule" (decided by code)
        pa.field("teacher", pa.string()),  # who gave the verdict ("a + b" for a panel); null for a rule
        pa.field("teachers", pa.list_(pa.string())),  # who gave each of `votes`
        pa.field("rationale", pa.string()),  # reason of the first vote for `followed`; null if none was asked, or read
        pa.field("soft", pa.float64()),  # P(Yes) in [0, 1], mean over votes; null without log probabilities
    ]
)
SCORES = pa.schema(
    {
        "response_id": pa.string(),  # unique together with constraint_id
        "constraint_id": pa.string(),
        "judge": pa.string(),  # the specialist that gave the score, null if none covers the category
        "score": pa.float64(),  # P(followed) in [0, 1], null if the judge failed
        "followed": pa.bool_(),  # score >= threshold, null if the judge failed or abstained
        "threshold": pa.float64(),  # in [0, 1], the specialist's own for this category
        "error": pa.string(),  # why `followed` is null: "abstained", or why the judge failed
    }
)
CHECKS = pa.schema(
    {
        "response_id": pa.string(),  # unique together with constraint_id
        "constraint_id": pa.string(),
        "followed": pa.bool_(),  # of the response as it is; null if the checker could not decide
        "followed_loose": pa.bool_(),  # also accepts it less its first or last line, or less its asterisks
        "error": pa.string(),  # why a verdict is null
    }
)
METRICS = pa.schema(
    {
        "judge": pa.string(),
        "category": pa.string(),  # "all" pools the categories
        "metric": pa.string(),
        "group": pa.string(),  # "all", or what its rows share: "model=frontier"
        "value": pa.float64(),  # null where undefined (a single class, say)
        "low": pa.float64(),  # 95% bootstrap interval over queries
        "high": pa.float64(),
        "n": pa.int64(),  # rows with a ground truth and a score
        "n_invalid": pa.int64(),  # rows left out because one of the two is null
        "prevalence": pa.float64(),  # share of `followed` among the n rows
        "threshold": pa.float64(),
    }
)
AGREEMENT = pa.schema(
    {
        "raters": pa.string(),  # "all", one rater, or "a ~ b"
        "category": pa.string(),  # "all" pools the categories
        "metric": pa.string(),
        "value": pa.float64(),  # null where undefined (all ratings are of one class, say)
        "low": pa.float64(),  # 95% bootstrap interval over queries
        "high": pa.float64(),
        "n": pa.int64(),  # rows with the ratings that it takes
        "n_invalid": pa.int64(),  # rated rows left out because one is missing
        "prevalence": pa.float64(),  # share of passes among the ratings of the n rows
    }
)
ROLLOUTS = pa.schema(
    {
        "step": pa.int64(),  # optimiser step, from 1
        "group": pa.int64(),  # prompt within the step, from 0
        "sample": pa.int64(),  # response within the group, from 0
        "instruction_id": pa.string(),
        "instruction": pa.string(),
        "response": pa.string(),
        "finish_reason": pa.string(),  # "stop", or "length" where the response was cut
        "n_tokens": pa.int64(),
        "reward_rule": pa.float64(),  # mean over rule constraints, null if there is none or one failed
        "reward_soft": pa.float64(),  # mean over soft constraints, null if there is none or one failed
        "verdicts": pa.string(),  # JSON list of {constraint_id, kind, category, followed, score, error}
        "reward": pa.float64(),  # what the trainer was given; null (masked) if any part failed or abstained
        "advantage": pa.float64(),  # what the trainer used
        "judge_failed": pa.bool_(),  # a judge or checker failed, so `reward` is null (it is also where a judge abstained)
        "audit_followed": pa.bool_(),  # the teacher's opinion of the soft constraints, null if not audited
    }
)
VERDICT = pa.struct(
    {
        "constraint_id": pa.string(),
        "checker": pa.string(),  # of a rule; null for a soft constraint
        "followed": pa.bool_(),  # strict mode; null where that cannot be said
        "followed_loose": pa.bool_(),  # loose mode; for a soft constraint the same as `followed`
        "error": pa.string(),  # why `followed` is null
    }
)
BENCHMARK_INSTRUCTIONS = pa.schema(
    [
        *INSTRUCTIONS,
        pa.field("benchmark", pa.string()),  # "ifeval", "ifbench", "multi-if", "followbench" or "cfbench"
        pa.field("part", pa.string()),  # FollowBench: its category; CFBench: "easy" or "hard"; else null
        pa.field("turn", pa.int64()),  # Multi-IF: 1 to 3, where each turn follows the model's answer to the one before
        pa.field("level", pa.int64()),  # FollowBench: 1 to 5, the number of constraints
        pa.field("details", pa.string()),  # JSON: what else its judge or its metrics need; null if nothing
    ]
)
EVALUATIONS = pa.schema(
    [
        pa.field("model", pa.string()),  # unique together with instruction_id
        *BENCHMARK_INSTRUCTIONS,
        pa.field("response", pa.string()),  # null if the model failed
        pa.field("finish_reason", pa.string()),  # "stop", or "length" where the response was cut
        pa.field("n_tokens", pa.int64()),
        pa.field("verdicts", pa.list_(VERDICT)),  # one per constraint, in their order
        pa.field("judge", pa.string()),  # the model that judged; null where code did
        pa.field("judgement", pa.string()),  # what the judge said; null if it was not asked, or failed
    ]
)
BENCHMARK_SCORES = pa.schema(
    {
        "model": pa.string(),
        "benchmark": pa.string(),  # "average": over the five, where all were run
        "metric": pa.string(),
        "group": pa.string(),  # "all", or what its rows share: "turn=1", "category=style, level=2"
        "value": pa.float64(),  # a share in [0, 1]; CSL: levels, 0 to 5; null where undefined
        "low": pa.float64(),  # 95% bootstrap interval over prompts; null where they are all of one group
        "high": pa.float64(),
        "n": pa.int64(),  # prompts, or for constraint-level metrics constraints, that were decided
        "n_invalid": pa.int64(),  # those left out: the model, a checker or the judge failed
    }
)

FOREIGN = pa.schema([])  # nothing is promised of a table that another tool wrote
KEYS = {
    "queries": (QUERIES, ("query_id",)),
    "instructions": (INSTRUCTIONS, ("instruction_id",)),
    "rejected": (REJECTED, ("instruction_id",)),
    "responses": (RESPONSES, ("response_id",)),
    "labels": (LABELS, ("response_id", "constraint_id")),
    "scores": (SCORES, ("response_id", "constraint_id")),
    "checks": (CHECKS, ("response_id", "constraint_id")),
    "metrics": (METRICS, ("judge", "category", "metric", "group")),
    "agreement": (AGREEMENT, ("raters", "category", "metric")),
    "benchmark_instructions": (BENCHMARK_INSTRUCTIONS, ("instruction_id",)),
    "evaluations": (EVALUATIONS, ("model", "instruction_id")),
    "benchmark_scores": (BENCHMARK_SCORES, ("model", "benchmark", "metric", "group")),
    "rollouts": (ROLLOUTS, ("step", "group", "sample")),
    "foreign": (FOREIGN, ()),
    "ratings": (FOREIGN, ()),
}


@dataclass(frozen=True)
class Table:
    """An opened, checked table whose rows can be streamed more than once."""

    name: str  # as the user wrote it, for messages
    file: pq.ParquetFile
    schema: pa.Schema  # of the rows it yields: declared columns cast to their types, the others as they are
    digest: str  # SHA-256 of the bytes

    def __len__(self) -> int:
        """Number of rows."""
        return self.file.metadata.num_rows

    def batches(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream record batches of the rows `start` to `stop` in file order; row groups outside are not read."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        stop = len(self) if stop is None else stop
        try:
            first, groups = _groups(self.file.metadata, start, stop)
            for batch in self.file.iter_batches(ROWS_PER_GROUP, row_groups=groups, columns=wanted.names):
                skipped = max(start - first, 0)
                piece = batch.slice(skipped, max(stop - first - skipped, 0))
                first += len(batch)
                if len(piece):
                    yield piece.select(wanted.names).cast(wanted)
        except (pa.ArrowException, OSError) as exc:
            raise DataError(f"{self.name} cannot be read past its header ({_first_line(exc)}); write it anew") from exc

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Stream rows as dictionaries in file order."""
        for batch in self.batches(start=start, stop=stop):
            yield from batch.to_pylist()

    def n_rows(self, where: Sequence[str], limit: int, elements: str | None = None) -> int | None:
        """Rows that `--limit` takes, or elements of a column of lists in them; null where `--where` chooses."""
        if where:
            return None
        n = min(limit or len(self), len(self))
        if elements is None:
            return n
        n_elements = 0
        for batch in self.batches([elements]):
            n_elements += len(batch.column(0)[:n].flatten())
            n -= len(batch)
            if n <= 0:
                break
        return n_elements

    def read(self) -> pa.Table:
        """The whole table in memory."""
        return pa.Table.from_batches(self.batches(), self.schema)

    @cached_property
    def provenance(self) -> dict[str, Any] | None:
        """What wrote the file: stage, version, config, digests; null for a foreign file."""
        footer = (self.file.schema_arrow.metadata or {}).get(b"tjd")
        return json.loads(footer) if footer else None


def open_table(
    source: str,
    kind: str,
    need: Sequence[str] | None = None,
    not_null: Sequence[str] = (),
    *,
    may_be_empty: bool = False,
    may_repeat: bool = False,
) -> Table:
    """Open a table and check it before any work is done on it.

    Args:
        source: A Parquet file, JSONL or CSV, or `-` for one of them on standard input.
        kind: A name of `KEYS`.
        need: Columns that must be there; by default the key. Declared columns that are there must have their type.
        not_null: Those of them that must be filled where a row has a verdict on a soft constraint.
        may_be_empty: Accept a table without rows.
        may_repeat: Accept equal queries where JSONL or CSV gives no `query_id`; each gets one of its own.

    Raises:
        DataError: Not a table, truncated, empty, a column is missing or mistyped, a key is null or repeated, or a value
            of `not_null` is null.
    """
    declared, key = KEYS[kind]
    raw, digest = _source_bytes(source)
    name = "standard input" if source == STDIO else source
    file = _parquet_file(raw, name, kind, may_repeat)
    schema = _checked_schema(file.schema_arrow, declared, tuple(key if need is None else need), name)
    table = Table(name, file, schema, digest)
    if len(table) == 0 and not may_be_empty:
        raise DataError(f"{name} has no rows; check the command that wrote it")
    if key and set(key) <= set(schema.names):
        _require_unique(table, key)
    if not_null:
        _require_filled(table, not_null)
    return table


def output_schema(kind: str, *, like: pa.Schema | None = None, drop: Iterable[str] = ()) -> pa.Schema:
    """The declared columns of `kind`, then whatever further columns the input has: nothing is lost on the way."""
    declared, _ = KEYS[kind]
    dropped = {*declared.names, *drop}
    extra = [field.remove_metadata() for field in (like or []) if field.name not in dropped]
    return pa.schema([*declared, *extra])


def require_writable(out: str) -> None:
    """Raise DataError unless a table can be written there; a command asks before it works, not after."""
    folder = Path(out).parent
    if out == STDIO:
        if sys.stdout.isatty():
            raise DataError("standard output is a terminal; use -o FILE, or pipe into another command")
    elif not folder.is_dir():
        raise DataError(f"the folder of {out} does not exist; create it first")
    elif Path(out).is_dir():
        raise DataError(f"{out} is a folder; name a file in it")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder} cannot be written to; choose another place, or ask for the right to write there")


def require_other_file(source: str, *outs: str | None) -> None:
    """Raise ConfigError where a command would write over what it reads, and rows or columns be lost."""
    for out in outs:
        if out and Path(out).is_file() and Path(source).exists() and Path(out).samefile(source):
            raise ConfigError(f"{out} is read by this command; write to another file, so that nothing is lost")


def write_rows(rows: Iterable[Row], out: str, schema: pa.Schema, provenance: Mapping[str, Any]) -> int:
    """Write rows as they come, in row groups; the file appears at once and whole, or not at all.

    Returns:
        The number of rows written.
    """
    n_rows = 0
    with row_writer(out, schema, provenance) as write:
        for row in rows:
            write(row)
            n_rows += 1
    return n_rows


@contextmanager
def row_writer(out: str, schema: pa.Schema, provenance: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """As `write_rows`, for rows that come up while another table is written: call what it yields with each."""
    group: list[Row] = []
    with _batch_writer(out, schema, provenance) as write_batch:

        def write(row: Row) -> None:
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                flush()

        def flush() -> None:
            write_batch(pa.RecordBatch.from_pylist(group, schema=schema))
            group.clear()

        yield write
        if group:
            flush()


def write_batches(batches: Iterable[pa.RecordBatch], out: str, schema: pa.Schema, provenance: Mapping[str, Any]) -> int:
    """Write batches as they come, a row group each; see `write_rows`."""
    n_rows = 0
    with _batch_writer(out, schema, provenance) as write:
        for batch in batches:
            write(batch)
            n_rows += len(batch)
    return n_rows


@contextmanager
def _batch_writer(
    out: str, schema: pa.Schema, provenance: Mapping[str, Any]
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    footer = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
    schema = schema.with_metadata({"tjd": footer})
    with _atomic(out) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        yield lambda batch: writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def provenance(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], prompts: Mapping[str, str]) -> Row:
    """What goes into the footer. Holds digests and no paths, clocks or hosts: same inputs, same bytes.

    Args:
        stage: The command.
        config: Every setting that can change the result.
        inputs: Name to SHA-256 of each table, model or recording that was read.
        prompts: Name to SHA-256 of each prompt.
    """
    return {
        "stage": stage,
        "version": __version__,
        "config": dict(config),
        "inputs": dict(inputs),
        "prompts": dict(prompts),
    }


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files in order of their names."""
    path = Path(path)
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "".join(f"{p.relative_to(path)}:{file_digest(p)}\n" for p in parts)
        return hashlib.sha256(listing.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_constraints(table: Table, need: Sequence[str] = ("text", "category")) -> None:
    """Raise DataError unless a table has constraints with these fields.

    They are a list a row (instructions, responses), or one a row (labels), whose text is in `constraint`.
    """
    if "constraints" in table.schema.names:
        kind = table.schema.field("constraints").type
        is_list = _is_list(kind) and pa.types.is_struct(kind.value_type)
        items = {field.name: field.type for field in kind.value_type} if is_list else {}
        if not all(name in items and castable(items[name], CONSTRAINT.field(name).type) for name in need):
            raise DataError(
                f"column 'constraints' of {table.name} has type {kind}, not a list of objects with {' and '.join(need)}"
            )
        return
    flat = ["constraint" if name == "text" else name for name in need]
    if not set(flat) <= set(table.schema.names):
        told = ("both " if len(flat) > 1 else "") + " and ".join(f"'{name}'" for name in flat)
        raise DataError(f"{table.name} has neither a column 'constraints' nor {told}; give labels")


def one_per_constraint(row: Row) -> Iterator[Row]:
    """Replace a row's list of constraints by one row per constraint; a row without a list is one already."""
    if "constraints" not in row:
        yield row
        return
    shared = {name: value for name, value in row.items() if name != "constraints"}
    for constraint in row["constraints"] or ():
        yield shared | {("constraint" if name == "text" else name): value for name, value in constraint.items()}


def kwargs_text(kwargs: Mapping[str, Any]) -> str:
    """Kwargs of a checker as JSON; nulls are left out: Arrow gives every struct of a column the fields of all others."""
    return json.dumps({name: value for name, value in kwargs.items() if value is not None}, ensure_ascii=False)


def pairs(rows: Iterable[Row]) -> Iterator[Row]:
    """One row per (response, constraint), with both keys as text; what `followed` held is in `teacher_followed` too.

    A foreign row gets the keys it lacks: digests of its texts. Where `teacher_followed` is there already, it stays.
    """
    for row in rows:
        for pair in one_per_constraint(row):
            before = {"teacher_followed": pair["followed"]} if "followed" in pair else {}
            prompt = pair.get("instruction") or pair.get("query") or ""
            rule = None if pair.get("checker") is None else (pair["checker"], pair.get("kwargs"))
            texts_of = {"response_id": (prompt, pair["response"]), "constraint_id": rule or (pair.get("constraint"),)}
            keys = {
                key: text_id(*map(str, texts)) if pair.get(key) in (None, "") else str(pair[key])
                for key, texts in texts_of.items()
            }
            yield before | pair | keys


def schema_of_pairs(kind: str, found: pa.Schema) -> pa.Schema:
    """The columns of `kind`, then those of `pairs` of a table."""
    fields = list(found)
    if "constraints" in found.names:
        items = found.field("constraints").type.value_type
        own = [field.with_name("constraint") if field.name == "text" else field for field in items]
        hidden = {"constraints", *(field.name for field in own)}
        fields = [*(field for field in fields if field.name not in hidden), *own]
    if "teacher_followed" not in found.names:
        fields = [field.with_name("teacher_followed") if field.name == "followed" else field for field in fields]
    return output_schema(kind, like=pa.schema(fields))


def text_id(*parts: str) -> str:
    """A short stable identifier of a text (16 hexadecimal digits)."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def where(table: Table, conditions: Sequence[str]) -> Callable[[Row], bool]:
    """Turn `COLUMN=VALUE` and `COLUMN!=VALUE` conditions into one test of a row; all must hold.

    Values are compared as text (`true` and `false` in any case for booleans, `null` for a missing value).
    """
    tests = [_test(table, condition) for condition in conditions]
    return lambda row: all(_holds(row, *test) for test in tests)


def columns_of(table: Table, conditions: Sequence[str]) -> list[str]:
    """The columns that conditions read."""
    return list(dict.fromkeys(_test(table, condition)[0] for condition in conditions))


def kept(table: Table, conditions: Sequence[str]) -> Iterator[Row]:
    """Stream the rows that `where` keeps.

    Raises:
        DataError: It keeps none; the message names what the column holds.
    """
    keep = where(table, conditions)

    def stream() -> Iterator[Row]:
        n = 0
        for row in table.rows():
            if keep(row):
                n += 1
                yield row
        if conditions and not n:
            raise DataError(why_none(table, conditions))

    return stream()


def why_none(table: Table, conditions: Sequence[str]) -> str:
    """Which condition keeps nothing, and what its column holds."""
    tests = [_test(table, condition) for condition in conditions]
    rows = [{column: row[column] for column, _, _ in tests} for row in table.rows()]
    for condition, (column, value, wanted) in zip(conditions, tests, strict=True):
        if not any(_holds(row, column, value, wanted) for row in rows):
            held = list(dict.fromkeys(as_text(row[column]) for row in rows))
            is_text = _is_text(table.schema.field(column).type)
            close = get_close_matches(value, held, n=1) if wanted and is_text else []
            hint = f"did you mean '{close[0]}'? " if close else ""
            some = f"{', '.join(text[:40] for text in held[:MAX_HELD])}{', ...' if len(held) > MAX_HELD else ''}"
            return f"--where {condition} keeps none of the {len(rows)} rows of {table.name}; {hint}{column} is {some}"
    return f"--where {' --where '.join(conditions)} together keep none of the {len(rows)} rows of {table.name}"


def _test(table: Table, condition: str) -> tuple[str, str, bool]:
    column, sign, value = condition.partition("=")
    wanted = not column.endswith("!")
    column, value = column.removesuffix("!").strip(), value.strip()
    if not sign or column not in table.schema.names:
        known = ", ".join(table.schema.names)
        raise DataError(f"--where {condition}: write COLUMN=VALUE or COLUMN!=VALUE with a column of {known}")
    is_boolean = pa.types.is_boolean(table.schema.field(column).type)
    return column, value.lower() if is_boolean else value, wanted


def _holds(row: Row, column: str, value: str, wanted: bool) -> bool:
    return (as_text(row[column]) == value) is wanted


def as_text(value: object) -> str:
    """A value as a condition on its column writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source_bytes(source: str) -> tuple[pa.NativeFile, str]:
    if source == STDIO:  # Parquet needs seeks
        with tempfile.NamedTemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.flush()
            if not spool.tell():
                raise DataError("standard input is empty; did the command before the pipe fail?")
            return pa.OSFile(spool.name), file_digest(spool.name)  # stays readable without its name
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source} is not a file; check the path")
    return pa.OSFile(str(path)), file_digest(path)


def _parquet_file(raw: pa.NativeFile, name: str, kind: str, may_repeat: bool) -> pq.ParquetFile:
    magic = raw.read(4)
    raw.seek(0)
    if magic == b"PAR1":
        try:
            return pq.ParquetFile(raw, pre_buffer=False)  # else all that was read stays in memory
        except (pa.ArrowException, OSError) as exc:
            raise DataError(f"{name} is a truncated or damaged Parquet file; write it anew") from exc
    if name.endswith(".parquet"):
        raise DataError(f"{name} is not a Parquet file; name JSONL .jsonl and CSV .csv")
    return pq.ParquetFile(_as_parquet(_read_text_table(raw, name, kind, may_repeat)))


def _read_text_table(raw: pa.NativeFile, name: str, kind: str, may_repeat: bool) -> pa.Table:
    """JSONL, a JSON array or CSV, whose empty cells are null but in queries; those get a missing `query_id`, a digest."""
    import pandas as pd

    try:
        text = raw.read().decode("utf-8-sig").lstrip()  # a byte order mark and blank lines come from editors
        if text.startswith(("{", "[")):
            rows = (
                json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.split("\n") if line.strip()]
            )
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a row is not an object")
            _encode_kwargs(rows)
            names = dict.fromkeys(column for row in rows for column in row)
            columns = {column: [row.get(column) for row in rows] for column in names}
        else:
            frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)  # "NA" is a text like any other
            columns = frame.to_dict("list")
            if kind != "queries":
                columns = {column: [value or None for value in values] for column, values in columns.items()}
        if "query_id" in columns:
            columns["query_id"] = [None if key is None else str(key) for key in columns["query_id"]]
        elif kind == "queries" and "query" in columns:
            columns = {"query_id": _ids_of_queries(columns["query"], name, may_repeat), **columns}
        return pa.table(columns)
    except (ValueError, pa.ArrowException) as exc:
        raise DataError(f"{name} is neither Parquet, JSON, JSONL nor CSV ({_first_line(exc)})") from exc


def _encode_kwargs(rows: Iterable[Row]) -> None:
    """Put JSON text in the place of the kwargs of constraints: each checker has its own, so they fit no common type."""
    for row in rows:
        constraints = row.get("constraints")
        for constraint in constraints if isinstance(constraints, list) else ():
            if isinstance(constraint, dict) and isinstance(constraint.get("kwargs"), dict):
                constraint["kwargs"] = kwargs_text(constraint["kwargs"])


def _ids_of_queries(queries: Sequence[object], name: str, may_repeat: bool) -> list[str]:
    """A digest of each query; of one that may repeat another, with the number of its row."""
    first: dict[str, int] = {}
    ids = []
    for number, query in enumerate(map(str, queries), start=1):
        is_new = first.setdefault(query, number) == number
        if not is_new and not may_repeat:
            raise DataError(
                f"row {number} of {name} repeats the query of row {first[query]}; remove it, give each a query_id, or "
                "let --dedup reject it"
            )
        ids.append(text_id(query) if is_new else text_id(query, str(number)))
    return ids


def _as_parquet(table: pa.Table) -> io.BytesIO:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    buffer.seek(0)
    return buffer


def _checked_schema(found: pa.Schema, declared: pa.Schema, need: Sequence[str], name: str) -> pa.Schema:
    for column in need:
        if column not in found.names:
            close = get_close_matches(column, [name for name in found.names if name not in declared.names], n=1)
            hint = f"did you mean to rename '{close[0]}'?" if close else f"it has {', '.join(found.names)}"
            raise DataError(f"{name} lacks the column '{column}'; {hint}")
    fields = []
    for field in found:
        expected = declared.field(field.name) if field.name in declared.names else field
        if not castable(field.type, expected.type):
            raise DataError(
                f"column '{field.name}' of {name} has type {field.type}, not {expected.type}; cast it and write it anew"
            )
        fields.append(expected.remove_metadata())
    return pa.schema(fields)


def castable(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether two types differ only in width or encoding (or the column is all null)."""
    if found == expected or pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return castable(found.value_type, expected)
    if _is_list(found) and _is_list(expected):
        return castable(found.value_type, expected.value_type)
    if pa.types.is_struct(found) and pa.types.is_struct(expected):
        names = {field.name for field in found}
        return all(f.name in names and castable(found.field(f.name).type, f.type) for f in expected)
    if pa.types.is_integer(found) and pa.types.is_floating(expected):
        return True
    families = (_is_text, pa.types.is_integer, pa.types.is_floating)
    return any(family(found) and family(expected) for family in families)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _groups(metadata: Any, start: int, stop: int) -> tuple[int, list[int]]:
    """The row groups that hold the rows `start` to `stop`, and the number of the first row of the first of them."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=int)
    groups = [
        group for group, end in enumerate(ends) if end > start and end - metadata.row_group(group).num_rows < stop
    ]
    return (int(ends[groups[0] - 1]) if groups and groups[0] else 0), groups


def _require_unique(table: Table, key: Sequence[str]) -> None:
    """Raise for a null or repeated key; a hash of each is held (8 bytes), and only those that are equal are compared."""
    hashes = np.empty(len(table), dtype=np.int64)
    row_number = 0
    for keys in _keys(table, key):
        for place, values in enumerate(keys):
            if None in values:
                shown = _shown(key, values)
                raise DataError(
                    f"row {row_number + place + 1} of {table.name} has a null key ({shown}); every row needs one"
                )
        hashes[row_number : row_number + len(keys)] = [hash(values) for values in keys]
        row_number += len(keys)
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    seen, row_number = set(), 0
    for keys in _keys(table, key):
        for values in keys:
            row_number += 1
            if hash(values) in repeated:
                if values in seen:
                    shown = _shown(key, values)
                    raise DataError(f"row {row_number} of {table.name} repeats the key {shown}; keys must be unique")
                seen.add(values)


def _keys(table: Table, key: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    for batch in table.batches(key):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _shown(key: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in zip(key, values, strict=True))


def _require_filled(table: Table, columns: Sequence[str]) -> None:
    """Raise for a null; rules and rows without a verdict may have any: nobody reads them."""
    read = [*columns, *({"kind", "followed"} & set(table.schema.names))]
    row_number = 0
    for batch in table.batches(read):
        for row in batch.to_pylist():
            row_number += 1
            missing = next((name for name in columns if row[name] is None), None)
            if missing and row.get("kind") != "rule" and row.get("followed", True) is not None:
                raise DataError(f"row {row_number} of {table.name} has no '{missing}'; fill it, or leave the row out")


@contextmanager
def _atomic(out: str) -> Iterator[IO[bytes]]:
    require_writable(out)
    try:
        with _sent_when_whole() if out == STDIO else _put_when_whole(Path(out)) as sink:
            yield sink
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        name = "the temporary file of standard output" if out == STDIO else out
        raise DataError(
            f"{name} cannot be written ({exc.strerror}); free space and run the same command again: answers that "
            "arrived are kept"
        ) from exc


@contextmanager
def _sent_when_whole() -> Iterator[IO[bytes]]:
    """A Parquet writer ends in a valid footer also where its rows failed; the next command shall not take that for all."""
    with tempfile.TemporaryFile() as spool:
        yield spool
        spool.seek(0)
        shutil.copyfileobj(spool, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def _put_when_whole(path: Path) -> Iterator[IO[bytes]]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
