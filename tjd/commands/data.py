"""Commands that make data: synthesize, sample, label, import; and show, which looks at any table."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tjd.commands.common import (
    AsJson,
    Checkers,
    Limit,
    Out,
    ShardOption,
    Taxonomy,
    Where,
    open_models,
    own_checkers,
    rows_of,
    write,
)
from tjd.commands.terminal import answers_to, print_grid, require_known
from tjd.config import BackendConfig, LabelConfig, SampleConfig, SynthesizeConfig
from tjd.errors import DataError
from tjd.flags import flags

app = typer.Typer()
import_app = typer.Typer(no_args_is_help=True)
app.add_typer(import_app, name="import", help="Bring foreign data into tjd's tables.", rich_help_panel="Data")


@app.command("synthesize", rich_help_panel="Data")
@flags
def synthesize_command(
    queries: Annotated[str, typer.Argument(help="Queries: Parquet, JSONL, CSV or `-`; only `query` is required.")],
    out: Out,
    config: SynthesizeConfig,
    backend: BackendConfig,
    taxonomy: Taxonomy = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Let the teacher write soft constraints for each query and weave them into an instruction.

    Categories are assigned in balance over the table; a column `category` fixes a row's own. Rule constraints that a
    query already has (column `constraints`) are kept.
    """
    from tjd import prompts, shards, tables
    from tjd import taxonomy as categories
    from tjd.stages import synthesize as stage

    known = categories.load(taxonomy)
    prompt, again = prompts.load("synthesize.v1", stage.VARIABLES), prompts.load("again.v1", ["reason"])
    table = tables.open_table(queries, "queries", need=("query", "query_id"))
    schema = tables.output_schema("instructions", like=table.schema, drop=["category"])
    [teacher] = open_models("synthesize", [config.teacher], backend)
    part = shards.part_of(table, where, limit, shard)
    rows = stage.synthesize(part.rows(earlier=True), prompt, again, teacher.ask, config, known, part.n_before)
    inputs, templates = {"queries": table}, [prompt, again]
    written = write(
        rows,
        out,
        schema,
        "synthesize",
        config,
        inputs,
        templates,
        [teacher],
        chosen=(where, limit),
        shard=shard,
        null="instruction",
    )
    written.require_valid(config.max_invalid)


@app.command("sample", rich_help_panel="Data")
@flags
def sample_command(
    instructions: Annotated[str, typer.Argument(help="Instructions: Parquet or `-`.")],
    out: Out,
    config: SampleConfig,
    backend: BackendConfig,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Sample a pool of responses from several models, with and without the constraints shown.

    Responses to the bare query mostly break the constraints, so that both verdicts occur in the labels.
    """
    from tjd import tables
    from tjd.stages import sample as stage
    from tjd.teacher import in_turn

    table = tables.open_table(instructions, "instructions", need=stage.NEED)
    schema = tables.output_schema("responses", like=table.schema)
    models = open_models("sample", config.model, backend)
    rows = stage.sample(lambda: rows_of(table, where, limit, shard), in_turn(models), config)
    written = write(
        rows,
        out,
        schema,
        "sample",
        config,
        {"instructions": table},
        [],
        models,
        chosen=(where, limit),
        shard=shard,
        null="response",
    )
    written.require_valid(config.max_invalid)


@app.command("label", rich_help_panel="Data")
@flags
def label_command(
    responses: Annotated[str, typer.Argument(help="Responses with their constraints: Parquet or `-`.")],
    out: Out,
    config: LabelConfig,
    backend: BackendConfig,
    checkers: Checkers = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Ask the teacher whether each response follows each of its constraints; rules are decided by code.

    A verdict that cannot be read is null with a reason in `error`, never a "no".
    """
    from tjd import prompts, tables
    from tjd.checkers import verdict
    from tjd.stages import label as stage
    from tjd.teacher.verdicts import VARIABLES

    own, digests = own_checkers(checkers)
    prompt = prompts.load(f"label.{config.mode}.v1", VARIABLES[config.mode])
    again = prompts.load("again.v1", ["reason"])
    table = tables.open_table(responses, "responses", need=stage.NEED)
    schema = tables.output_schema("labels", like=table.schema, drop=["constraints"])
    [teacher] = open_models("label", [config.teacher], backend)
    check = partial(verdict, checkers=own)
    rows = stage.label(rows_of(table, where, limit, shard), prompt, again, teacher.ask, config, check)
    inputs, templates, chosen = {"responses": table}, [prompt, again], (where, limit)
    written = write(
        rows,
        out,
        schema,
        "label",
        config,
        inputs,
        templates,
        [teacher],
        digests=digests,
        chosen=chosen,
        shard=shard,
        null="followed",
    )
    written.require_valid(config.max_invalid)


@import_app.command("labels")
def import_labels_command(
    source: Annotated[str, typer.Argument(help="A Parquet table with a verdict a row, under whatever column names.")],
    out: Out,
    query: Annotated[str, typer.Option(help="Column of the query.")] = "query",
    constraint: Annotated[str, typer.Option(help="Column of the constraint.")] = "constraint",
    response: Annotated[str, typer.Option(help="Column of the response.")] = "response",
    followed: Annotated[
        str, typer.Option(help="Column of the verdict: 1 or 0, true or false, yes or no.")
    ] = "followed",
    context: Annotated[str | None, typer.Option(help="Column of the dialogue so far; put before the query.")] = None,
    query_id: Annotated[str | None, typer.Option(help="Column that groups rows for splits and intervals.")] = None,
    response_id: Annotated[str | None, typer.Option(help="Column of the response's key.")] = None,
    constraint_id: Annotated[str | None, typer.Option(help="Column of the constraint's key.")] = None,
    category: Annotated[str | None, typer.Option(help="Column of the category.")] = None,
    model: Annotated[str | None, typer.Option(help="Column of the model that responded.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Column of who gave the verdict.")] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Bring in a foreign table of verdicts: map its columns to those of `labels`."""
    from tjd import tables
    from tjd.stages import import_labels as stage

    given = {
        "query": query, "constraint": constraint, "response": response, "followed": followed, "context": context,
        "query_id": query_id, "response_id": response_id, "constraint_id": constraint_id, "category": category,
        "model": model, "teacher": teacher,
    }  # fmt: skip
    table = tables.open_table(source, "foreign")
    columns = stage.columns_of(table.schema, given)
    kept = stage.kept_of(table.schema, columns)
    rows = stage.import_labels(rows_of(table, where, limit), columns, kept)
    inputs, schema = {"source": table}, stage.schema(table.schema, kept)
    write(rows, out, schema, "import labels", columns, inputs, chosen=(where, limit), null="followed")


@app.command("show", rich_help_panel="Look")
def show_command(
    table: Annotated[str, typer.Argument(help="Any Parquet table of tjd, or `-`.")],
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to show.", min=0)] = 3,
    only: Annotated[str | None, typer.Option(help="Show one section, by its title.")] = None,
    where: Where = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show what a table holds: verdicts per category, counts, some rows, columns, and where it comes from."""
    from tjd import tables
    from tjd.stages import show as stage

    if Path(table).is_dir():
        card = Path(table) / "card.md"
        raise DataError(
            f"{table} is a folder, not a table; " + (f"read {card}" if card.is_file() else "name a file in it")
        )
    source = tables.open_table(table, "foreign")
    summary = stage.summarise(rows_of(source, where, 0), source, n_rows=rows)
    if only is not None:
        require_known(only, summary["sections"], "section")
        summary["sections"] = {only: summary["sections"][only]}
    if as_json:
        print(json.dumps(summary, ensure_ascii=False, default=str))  # noqa: T201
    else:
        _print_summary(summary)


def _print_summary(summary: Mapping[str, Any]) -> None:
    from rich.table import Table as Grid

    for title, lines in summary["sections"].items():
        grid = Grid(title=title, title_justify="left", show_header=bool(lines["header"]))
        for name in lines["header"] or [""] * len(lines["rows"][0]):
            grid.add_column(str(name), overflow="fold")
        for line in lines["rows"]:
            grid.add_row(*(str(cell) for cell in line))
        print_grid(grid, answers_to())
