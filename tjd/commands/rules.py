"""Commands about rule constraints: check."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tjd.commands.common import Checkers, Limit, Out, Where, own_checkers, rows_of, write
from tjd.commands.terminal import say
from tjd.config import CheckConfig, as_dict
from tjd.flags import flags

if TYPE_CHECKING:
    from tjd.tables import Row

app = typer.Typer()


@app.command("check", rich_help_panel="Rules")
@flags
def check_command(
    table: Annotated[
        str,
        typer.Argument(help="Responses with constraints, or a checker, kwargs and a response a row: Parquet or `-`."),
    ],
    out: Out,
    config: CheckConfig,
    checkers: Checkers = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Decide every rule constraint by code: followed strictly, followed loosely, or null with a reason in `error`."""
    from tjd import tables
    from tjd.checkers import parallel
    from tjd.stages import check as stage

    own, digests = own_checkers(checkers)
    source = tables.open_table(table, "foreign", need=stage.NEED)
    schema = stage.schema(source.schema)
    decide = partial(
        parallel.decide,
        suite=config.suite,
        fixed=config.fixed,
        own=str(checkers) if own else None,
        workers=config.workers,
    )
    tally = _Tally()
    rows = tally.count(stage.check(rows_of(source, where, limit), decide))
    settings = {name: value for name, value in as_dict(config).items() if name != "workers"}
    written = write(
        rows, out, schema, "check", settings, {"table": source}, digests=digests, chosen=(where, limit), null="followed"
    )
    say(f"check: {tally}")
    written.require_valid(config.max_invalid)


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
