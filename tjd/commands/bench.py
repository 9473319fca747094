"""Commands that time: bench judge."""

import json
from collections.abc import Mapping
from typing import IO, Annotated, Any

import typer

from tjd.commands.common import AsJson, writable
from tjd.commands.terminal import answers_to, print_grid, progress
from tjd.config import BenchJudgeConfig, as_dict
from tjd.extras import need
from tjd.flags import flags

app = typer.Typer()
bench_app = typer.Typer(no_args_is_help=True)
app.add_typer(bench_app, name="bench", help="Time tjd beside other ways, in one run.", rich_help_panel="Look")


@bench_app.callback()
def bench_callback() -> None:
    """Time tjd beside other ways, in one run, on the same work."""


@bench_app.command("judge")
@flags
def bench_judge_command(
    config: BenchJudgeConfig,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Parquet file for every round's time.", callback=writable)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time verdicts: token trees against plain batches, TRL's reward model path, a CrossEncoder and a generative judge.

    Weights and tokens are random, so no model is needed. Contestants take turns within each round; quote ratios.
    """
    need("bench judge", "train", "torch", "transformers")
    from tjd import tables
    from tjd.stages import bench_judge as stage

    with progress() as bars:
        task = bars.add_task("bench judge", total=None)
        rows = stage.bench_judge(config, lambda row: bars.update(task, advance=1, note=row["contestant"]))
    if out:
        tables.write_rows(rows, out, stage.SCHEMA, tables.provenance("bench judge", as_dict(config), {}, {}))
    summary, to = stage.summary(rows), answers_to(out)
    if as_json:
        print(json.dumps(summary), file=to)
    else:
        _print(summary, to)


def _print(summary: list[Mapping[str, Any]], to: IO[str]) -> None:
    from rich.table import Table as Grid

    grid = Grid(title="Median over the rounds")
    names = list(summary[0])
    for name in names:
        grid.add_column(name.replace("_", " "), justify="left" if name == "contestant" else "right")
    for line in summary:
        grid.add_row(*(f"{line[name]:.3g}" if isinstance(line[name], float) else str(line[name]) for name in names))
    print_grid(grid, to)
