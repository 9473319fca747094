"""Commands about constraints: check those that are rules; import instructions that have some."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tjd.commands.common import (
    Checkers,
    Limit,
    Out,
    ShardOption,
    Taxonomy,
    Where,
    own_checkers,
    rows_of,
    writable,
    write,
)
from tjd.commands.data import import_app
from tjd.commands.terminal import say
from tjd.config import CheckConfig, Subset, as_dict
from tjd.errors import ConfigError, DataError
from tjd.flags import flags

if TYPE_CHECKING:
    from tjd.tables import Row

app = typer.Typer()

Source = Annotated[str, typer.Argument(help="JSONL, JSON or Parquet file, or the name of a data set on the hub.")]
SubsetOption = Annotated[
    Subset,
    typer.Option("--subset", help="Constraints to keep: those that code checks, those that a judge must, or both."),
]


@app.command("check", rich_help_panel="Rules")
@flags
def check_command(
    table: Annotated[
        str,
        typer.Argument(
            help="Responses with constraints, or a checker, kwargs and a response a row: Parquet, JSONL, CSV or `-`."
        ),
    ],
    out: Out,
    config: CheckConfig,
    checkers: Checkers = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Decide every rule constraint by code: followed strictly, followed loosely, or null with a reason in `error`."""
    from tjd import tables
    from tjd.checkers import parallel
    from tjd.stages import check as stage

    tables.require_other_file(table, out)
    own, digests = own_checkers(checkers)
    source = tables.open_table(table, "foreign", need=stage.NEED)
    tables.require_constraints(source, ["checker"])
    schema = stage.schema(source.schema)
    decide = partial(
        parallel.decide,
        suite=config.suite,
        fixed=config.fixed,
        own=str(checkers) if own else None,
        workers=config.workers,
    )
    tally = _Tally()
    rows = tally.count(stage.check(rows_of(source, where, limit, shard), decide, may_be_empty=shard is not None))
    settings = {name: value for name, value in as_dict(config).items() if name != "workers"}
    written = write(
        rows,
        out,
        schema,
        "check",
        settings,
        {"table": source},
        digests=digests,
        chosen=(where, limit),
        shard=shard,
        null="followed",
    )
    say(f"check: {tally}")
    written.require_valid(config.max_invalid)


@import_app.command("jsonl")
def import_jsonl_command(
    source: Source,
    out: Out,
    subset: SubsetOption = "mix",
    taxonomy: Taxonomy = None,
    checkers: Checkers = None,
    limit: Limit = 0,
) -> None:
    """Bring in instructions of your own, one JSON object a line.

    It has `query`, `instruction` or both, and `constraints`, a list of objects: `{"text": "...", "category": "style"}` for
    a soft one, `{"checker": "punctuation:no_comma", "kwargs": {}, "text": "..."}` for a rule. Without an `instruction`
    the constraints' texts are put behind the query. Checkers, kwargs and categories are validated.
    """
    from tjd import records, tables
    from tjd import taxonomy as categories
    from tjd.stages import import_instructions as stage

    tables.require_other_file(source, out)
    known = categories.load(taxonomy)
    own, digests = own_checkers(checkers)
    found = records.open_records(source)
    rows = stage.from_jsonl(found.placed, known, own)
    _write_instructions(rows, out, "import jsonl", subset, limit, {"source": found.digest} | digests)


@import_app.command("verinstruct")
def import_verinstruct_command(
    source: Source,
    out: Out,
    functions: Annotated[
        Path | None,
        typer.Option(
            "--functions",
            "-f",
            help="Python file to write the hard constraints' code to, for --checkers.",
            callback=writable,
        ),
    ] = None,
    subset: SubsetOption = "mix",
    taxonomy: Taxonomy = None,
    limit: Limit = 0,
) -> None:
    """Bring in VerInstruct (THU-KEG/VerInstruct): its keys become categories (the paper's table 7).

    Its hard constraints are Python code. It is not run, but written to --functions: read it, then pass that file as
    --checkers to `tjd check`, `tjd label` or `tjd rl`.
    """
    from tjd import records, tables
    from tjd import taxonomy as categories
    from tjd.stages import import_instructions as stage

    if functions is None and subset != "soft":
        raise ConfigError(
            "VerInstruct's hard constraints are code: give --functions FILE to write it to, or --subset soft"
        )
    tables.require_other_file(source, out, functions and str(functions))
    sources: dict[str, str] = {}
    found = records.open_records(source)
    rows = stage.from_verinstruct(found.placed, categories.load(taxonomy), sources.__setitem__)
    _write_instructions(rows, out, "import verinstruct", subset, limit, {"source": found.digest})
    if functions is not None:
        functions.write_text(stage.checkers_file(sources), encoding="utf-8")
        say(f"import verinstruct: {len(sources)} functions -> {functions} (read them before you run them)")


def _write_instructions(
    rows: "Iterable[Row]", out: str, stage_name: str, subset: Subset, limit: int, digests: dict[str, str]
) -> None:
    from tjd.stages import import_instructions as stage

    kept = islice(stage.keep(rows, subset), limit or None)
    first = list(islice(kept, 1))
    if not first:
        raise DataError(f"no record has a constraint for --subset {subset}; nothing is written")
    tally = _Kinds()
    counted, settings = tally.count(chain(first, kept)), {"subset": subset}
    write(counted, out, stage.SCHEMA, stage_name, settings, {}, digests=digests, chosen=((), limit))
    say(f"{stage_name}: {tally}")


class _Kinds:
    """How many constraints there are, by kind and category."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, rows: "Iterable[Row]") -> "Iterator[Row]":
        for row in rows:
            for constraint in row["constraints"]:
                name = "rule" if constraint["kind"] == "rule" else constraint["category"] or "without a category"
                self.counts[name] = self.counts.get(name, 0) + 1
            yield row

    def __str__(self) -> str:
        return "constraints: " + (", ".join(f"{n} {name}" for name, n in sorted(self.counts.items())) or "none")


class _Tally:
    """How many rules were followed."""

    def __init__(self) -> None:
        self.n = self.strict = self.loose = self.failed = 0

    def count(self, rows: "Iterable[Row]") -> "Iterator[Row]":
        for row in rows:
            self.n += 1
            self.strict += row["followed"] is True
            self.loose += row["followed_loose"] is True
            self.failed += row["followed"] is None or row["followed_loose"] is None
            yield row

    def __str__(self) -> str:
        decided = self.n - self.failed
        if not decided:
            return f"none of {self.n} rule constraints decided"
        return (
            f"{self.strict / decided:.2%} followed strictly, {self.loose / decided:.2%} loosely, "
            f"of {decided} rule constraints; {self.failed} failed"
        )
