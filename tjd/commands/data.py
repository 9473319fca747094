"""Commands that make data: synthesize, sample, label, import; and show, which looks at any table."""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tjd.commands.agreement import print_agreement
from tjd.commands.common import (
    AsJson,
    Checkers,
    DryRun,
    Limit,
    Out,
    ShardOption,
    Taxonomy,
    Where,
    open_models,
    own_checkers,
    provenance,
    rows_of,
    tell_plan,
    writable,
    write,
)
from tjd.commands.terminal import answers_to, print_grid, require_known, say
from tjd.config import AgreementConfig, BackendConfig, LabelConfig, SampleConfig, SynthesizeConfig, as_dict
from tjd.errors import ConfigError, DataError
from tjd.extras import need
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
    checkers: Checkers = None,
    dry_run: DryRun = False,
    rejected: Annotated[
        str | None,
        typer.Option(
            help="Parquet file for the rows that --dedup or --verify reject, with the reason.", callback=writable
        ),
    ] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Let the teacher write soft constraints for each query and weave them into an instruction.

    Categories are assigned in balance over the table; a column `category` fixes a row's own. Rule constraints that a
    query already has (column `constraints`) are checked and kept. Near-duplicates are rejected before anything is asked.
    """
    from tjd import prompts, shards, tables
    from tjd import taxonomy as categories
    from tjd.commands.pool import Screening
    from tjd.duplicates import Seen
    from tjd.stages import screen
    from tjd.stages import synthesize as stage
    from tjd.teacher.verification import VARIABLES

    tables.require_other_file(queries, out, rejected)
    if rejected == out:
        raise ConfigError(f"--out and --rejected are both {out}; name two files")
    if shard and (config.dedup or rejected):
        raise ConfigError(
            "--shard goes with neither --dedup nor --rejected: remove duplicates from the whole table first"
        )
    if config.dedup:
        need("synthesize --dedup", "teacher", "rensa")
    known = categories.load(taxonomy)
    own, digests = own_checkers(checkers)
    prompt, again = prompts.load("synthesize.v1", stage.VARIABLES), prompts.load("again.v1", ["reason"])
    templates = [prompt, again]
    table = tables.open_table(queries, "queries", need=("query", "query_id"), may_repeat=config.dedup > 0)
    like = table.schema
    names = [config.teacher, *({config.verifier} - {"", config.teacher})]
    models = open_models("synthesize", names, backend, dry_run=dry_run)
    teacher, verifier = models[0], models[-1]

    part = shards.part_of(table, where, limit, shard)
    for place, row in part.placed() if {"constraints", "category"} & set(table.schema.names) else ():
        stage.require_usable(place, row, known, own)  # before anything is paid for
    rows: Iterable[screen.Screened] = part.rows(earlier=True)
    if config.dedup:
        rows = screen.distinct(rows, "query", Seen(config.dedup, config.seed))
    weave = partial(stage.synthesize, n_before=part.n_before)
    rows = screen.passing(rows, lambda kept: weave(kept, prompt, again, teacher.ask, config, known), part.n_before)
    if config.dedup:
        rows = screen.distinct(rows, "instruction", Seen(config.dedup, config.seed))
    if config.verify:
        templates.append(verification := prompts.load("verify.v1", VARIABLES))
        rows = screen.verify(screen.foreseen(rows) if dry_run else rows, verification, again, verifier.ask, config)
        like = screen.with_verified(like)
    if dry_run:
        return tell_plan(rows, models, out)

    settings = as_dict(config) | {"verifier": verifier.name if config.verify else ""}
    inputs, chosen = {"queries": table}, (where, limit)
    source = provenance("synthesize", settings, inputs, templates, models, digests=digests, chosen=chosen)
    schema = partial(tables.output_schema, like=like, drop=["category"])
    with ExitStack() as stack:
        keep = stack.enter_context(tables.row_writer(rejected, schema("rejected"), source)) if rejected else None
        screening = Screening(lambda row, reason: keep(stage.rejected(row, reason)) if keep else None)
        written = write(
            screening.passed(rows),
            out,
            schema("instructions"),
            "synthesize",
            settings,
            inputs,
            templates,
            models,
            digests=digests,
            chosen=chosen,
            shard=shard,
            null="instruction",
            total=table.n_rows(where, limit),
        )
    if config.dedup or config.verify:
        screening.tell(rejected)
    written.require_valid(config.max_invalid)
    screening.require_verified(config.max_invalid)


@app.command("sample", rich_help_panel="Data")
@flags
def sample_command(
    instructions: Annotated[str, typer.Argument(help="Instructions: Parquet, JSONL, CSV or `-`.")],
    out: Out,
    config: SampleConfig,
    backend: BackendConfig,
    dry_run: DryRun = False,
    labels: Annotated[
        str | None, typer.Option(help="Labels of the rounds before, for --target-balance: one Parquet table.")
    ] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Sample a pool of responses from several models, with and without the constraints shown.

    Responses to the bare query mostly break the constraints, so that both verdicts occur in the labels. Where one is
    still rare, --labels and --target-balance plan a further round, whose table holds the new responses alone.
    """
    from tjd import tables
    from tjd.commands.pool import tell_acceptance, tell_round
    from tjd.pool import LABELLED, Acceptance, Plan
    from tjd.stages import sample as stage
    from tjd.teacher import in_turn

    for source in filter(None, (instructions, labels)):
        tables.require_other_file(source, out)
    if bool(labels) != bool(config.target_balance):
        raise ConfigError("--labels and --target-balance go together")
    table = tables.open_table(instructions, "instructions", need=stage.NEED)
    inputs, seeds = {"instructions": table}, None
    schema = tables.output_schema("responses", like=table.schema)
    models = open_models("sample", config.model, backend, dry_run=dry_run)
    if labels:
        inputs["labels"] = tables.open_table(labels, "labels", need=LABELLED)
        plan = Plan(inputs["labels"].rows(), rows_of(table, where, limit), [model.name for model in models], config)
        tell_round(plan, config)
        seeds = plan.seeds
    acceptance = Acceptance()
    rows = acceptance.of_rules(
        stage.sample(lambda: rows_of(table, where, limit, shard), in_turn(models), config, seeds)
    )
    if dry_run:
        return tell_plan(rows, models, out)
    n_rows = None if labels else table.n_rows(where, limit)
    written = write(
        rows,
        out,
        schema,
        "sample",
        config,
        inputs,
        [],
        models,
        chosen=(where, limit),
        shard=shard,
        null="response",
        total=None if n_rows is None else n_rows * len(models) * len(config.condition) * config.n,
    )
    tell_acceptance(acceptance, "responses")
    written.require_valid(config.max_invalid)


@app.command("label", rich_help_panel="Data")
@flags
def label_command(
    responses: Annotated[str, typer.Argument(help="Responses with their constraints: Parquet, JSONL, CSV or `-`.")],
    out: Out,
    config: LabelConfig,
    backend: BackendConfig,
    checkers: Checkers = None,
    dry_run: DryRun = False,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Ask the teacher whether each response follows each of its constraints; rules are decided by code.

    A verdict that cannot be read is null with a reason in `error`, never a "no". Of several votes, agreement and Fleiss'
    kappa are shown at the end; of a panel also Cohen's kappa of each two teachers, and how much more often than the panel
    each says yes.
    """
    from tjd import prompts, tables
    from tjd.checkers import verdict
    from tjd.commands.pool import tell_acceptance
    from tjd.pool import Acceptance
    from tjd.stages import agreement
    from tjd.stages import label as stage
    from tjd.teacher import panel
    from tjd.teacher.verdicts import VARIABLES, prompt_name

    tables.require_other_file(responses, out)
    if config.votes > 1 and config.temperature == 0:
        say(
            f"warning: at --temperature 0 the {config.votes} votes of a teacher repeat each other, and each is paid for; "
            "leave out --votes, or raise --temperature",
            style="yellow",
        )
    own, digests = own_checkers(checkers)
    prompt = prompts.load(prompt_name(config.mode, config.format, config.rationale), VARIABLES[config.mode])
    again = prompts.load("again.v1", ["reason"])
    table = tables.open_table(responses, "responses", need=stage.NEED)
    schema = tables.output_schema("labels", like=table.schema, drop=["constraints"])
    teachers = open_models("label", config.teacher, backend, dry_run=dry_run)
    check = partial(verdict, checkers=own)
    acceptance = Acceptance()
    rows = stage.label(rows_of(table, where, limit, shard), prompt, again, panel(teachers), config, check)
    if dry_run:
        return tell_plan(rows, teachers, out)
    rows = acceptance.of_labels(rows)
    ratings = agreement.Ratings()
    if config.n_votes > 1:
        rows = agreement.collected(rows, ratings, AgreementConfig(seed=config.seed))
    inputs, templates, chosen = {"responses": table}, [prompt, again], (where, limit)
    written = write(
        rows,
        out,
        schema,
        "label",
        config,
        inputs,
        templates,
        teachers,
        digests=digests,
        chosen=chosen,
        shard=shard,
        null="followed",
        total=table.n_rows(where, limit, "constraints"),
    )
    if found := agreement.agreement(ratings, AgreementConfig(seed=config.seed)):
        print_agreement(found, sys.stderr)
    tell_acceptance(acceptance, "verdicts")
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
    tables.require_other_file(source, out)
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
