"""Commands on the completions that are kept on disk: cache stats, prune, export."""

import json
from typing import Annotated, Any

import typer

from tjd.commands.common import AsJson, Out
from tjd.commands.terminal import answers_to, counted, print_grid, say
from tjd.errors import DataError

app = typer.Typer()
cache_app = typer.Typer(no_args_is_help=True)
app.add_typer(cache_app, name="cache", help="Completions kept on disk, in TJD_CACHE.", rich_help_panel="Look")

ModelOption = Annotated[str | None, typer.Option("--model", help="Only completions of this model.")]
OlderThan = Annotated[
    float, typer.Option("--older-than", help="Only completions that arrived so many days ago.", min=0, metavar="days")
]


@cache_app.callback()
def cache_callback() -> None:
    """Look at the completions that were paid for and are kept on disk, remove some, or take them elsewhere."""


@cache_app.command("stats")
def cache_stats_command(model: ModelOption = None, older_than: OlderThan = 0.0, as_json: AsJson = False) -> None:
    """Show per model how many completions are kept, their tokens, what they cost, their size, and since when."""
    from tjd.backbone import cache_folder
    from tjd.teacher import housekeeping

    lines = housekeeping.stats(cache_folder(), housekeeping.Chosen(model, older_than))
    if as_json:
        print(json.dumps(lines, ensure_ascii=False))  # noqa: T201
    else:
        _print_stats(lines)


@cache_app.command("prune")
def cache_prune_command(
    model: ModelOption = None,
    older_than: OlderThan = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it, say what would be removed.")] = False,
) -> None:
    """Remove completions, for good: whoever asks for them again pays again."""
    from tjd.backbone import cache_folder
    from tjd.teacher import housekeeping

    chosen = housekeeping.Chosen(model, older_than)
    lines = housekeeping.stats(cache_folder(), chosen)
    told = f"{counted(sum(line['completions'] for line in lines), 'completion')}, which cost {_cost(lines)}"
    if not yes:
        say(f"cache prune: would remove {told}; add --yes to do it")
        return
    n = housekeeping.prune(cache_folder(), chosen)
    say(f"cache prune: removed {counted(n, 'completion')} of {told}")


@cache_app.command("export")
def cache_export_command(out: Out, model: ModelOption = None, older_than: OlderThan = 0.0) -> None:
    """Write completions as a recording, which `-t recorded:FILE` reads: a run to share that costs nothing to repeat.

    For that, export one model. Of completions to one prompt and seed the last counts; the text of prompts is not kept.
    """
    from tjd import tables
    from tjd.backbone import cache_folder
    from tjd.teacher import housekeeping

    chosen = housekeeping.Chosen(model, older_than)
    kept = sum(line["completions"] for line in housekeeping.stats(cache_folder(), chosen))
    if not kept:
        raise DataError("no completion is kept" + (f" of {model}; see tjd cache stats" if model else ""))
    provenance = tables.provenance("cache export", {"model": model}, {}, {})
    n = tables.write_rows(housekeeping.export(cache_folder(), chosen), out, housekeeping.EXPORT, provenance)
    left = (
        f" ({kept - n} left out: an earlier one of the same prompt and seed, or of an older release)"
        if n < kept
        else ""
    )
    say(f"cache export: {counted(n, 'row')}{left} -> {'standard output' if out == tables.STDIO else out}")


def _print_stats(lines: list[dict[str, Any]]) -> None:
    from rich.table import Table as Grid

    grid = Grid(title="Completions kept", title_justify="left")
    for name in ("model", "completions", "tokens in", "tokens out", "cost", "MB", "first", "last"):
        grid.add_column(name, justify="left" if name in ("model", "first", "last") else "right", overflow="fold")
    for line in lines:
        tokens = (f"{line['prompt_tokens'] or 0:,}", f"{line['tokens'] or 0:,}")
        size = f"{line['bytes'] / 1e6:,.1f}"
        grid.add_row(
            line["model"], f"{line['completions']:,}", *tokens, _cost([line]), size, line["first"], line["last"]
        )
    print_grid(grid, answers_to())


def _cost(lines: list[dict[str, Any]]) -> str:
    """What completions cost, as far as their prices were known."""
    known = f"${sum(line['cost_usd'] or 0 for line in lines):.4f}"
    unknown = sum(line["unknown_prices"] for line in lines)
    return f"{known} and {unknown} of unknown price" if unknown else known
