"""The command that joins what `--shard` parted."""

from typing import Annotated

import typer

from tjd.commands.common import Out
from tjd.commands.terminal import counted, say

app = typer.Typer()


@app.command("concat", rich_help_panel="Data")
def concat_command(
    parts: Annotated[list[str], typer.Argument(help="All parts, in any order.", metavar="PART...")],
    out: Out,
) -> None:
    """Join the parts that `--shard 1/n` to `--shard n/n` wrote: the table is that of one run, byte for byte."""
    from tjd import tables
    from tjd.stages import concat as stage

    for part in parts:
        tables.require_other_file(part, out)
    opened = stage.in_order([tables.open_table(part, "foreign", may_be_empty=True) for part in parts])
    n_rows = tables.write_batches(stage.concat(opened), out, stage.schema(opened), stage.provenance(opened))
    say(f"concat: {len(opened)} parts, {counted(n_rows, 'row')} -> {'standard output' if out == tables.STDIO else out}")
