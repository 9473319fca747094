"""The command that measures how far raters agree: agreement."""

import json
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Annotated

import typer

from tjd.commands.common import AsJson, Limit, MetricsOut, Where, rows_of, writable
from tjd.commands.terminal import Line, answers_to, counted, interval, print_numbers, say
from tjd.config import AgreementConfig, as_dict
from tjd.errors import DataError
from tjd.flags import flags

if TYPE_CHECKING:
    from tjd.tables import Row

app = typer.Typer()

HEADINGS = {
    "percent_agreement": "agreement",
    "fleiss_kappa": "Fleiss' kappa",
    "fleiss_kappa_of_ratings": "Fleiss' kappa of ratings",
    "cohen_kappa": "Cohen's kappa",
    "yes_rate": "yes rate",
    "bias": "bias",
}


@app.command("agreement", rich_help_panel="Look")
@flags
def agreement_command(
    table: Annotated[
        str,
        typer.Argument(
            help="Labels with votes, or any table with a column per rater: Parquet, JSONL, CSV (empty where a rating is "
            "missing) or `-`."
        ),
    ],
    config: AgreementConfig,
    out: MetricsOut = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", help="Parquet file for the rows to adjudicate, with the reason.", callback=writable),
    ] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how far votes, teachers or people agree: percent agreement, Fleiss' and Cohen's kappa.

    Each has a 95% bootstrap interval over queries and the prevalence beside it: where nearly all verdicts are yes, raters
    agree often and kappa is low all the same. Of teachers and raters the yes rate is shown, and its distance from that of
    all (bias).

    Rows to adjudicate are those with split votes; with `--likert` also those whose ratings have a variance (n - 1) above
    1; and those with fewer than two ratings. The paper's annotation protocol is
    `tjd agreement ratings.parquet --likert --rater a --rater b --rater c --queue adjudicate.parquet`.
    """
    from tjd import tables
    from tjd.stages import agreement as stage

    to = answers_to(out, queue)
    tables.require_other_file(table, out, queue)
    needed = [config.query_id, *(config.rater or ["votes"])]
    source = tables.open_table(table, "ratings", need=needed, not_null=[config.query_id])
    if config.category != AgreementConfig().category and config.category not in source.schema.names:
        raise DataError(f"{source.name} lacks the column '{config.category}' of --category")
    ratings = stage.Ratings()
    for _ in stage.collected(rows_of(source, where, limit), ratings, config):
        pass
    found = stage.agreement(ratings, config)
    if not found:
        raise DataError(f"no row of {source.name} has two ratings; label with --votes 3, or name columns with --rater")
    settings = as_dict(config) | {"where": where, "limit": limit}
    provenance = tables.provenance("agreement", settings, {"table": source.digest}, {})
    if queue:
        rows = stage.to_adjudicate(rows_of(source, where, limit), config)
        n_open = tables.write_rows(rows, queue, stage.queue_schema(source.schema), provenance)
        say(f"agreement: {counted(n_open, 'row')} of {len(ratings.query_N)} to adjudicate -> {queue}")
    if out:
        tables.write_rows(found, out, tables.AGREEMENT, provenance)
    if as_json:
        print(json.dumps(found), file=to)
    else:
        print_agreement(found, to)


def print_agreement(found: "Sequence[Row]", to: IO[str]) -> None:
    """A block per raters, in it a line per category, and a column per measure."""
    blocks: dict[str, dict[str, dict[str, str]]] = {}
    for row in found:
        share = "-" if row["prevalence"] is None else f"{row['prevalence']:.2f}"
        block = blocks.setdefault(row["raters"], {})
        line = block.setdefault(row["category"], {"n": str(row["n"]), "prevalence": share})
        line[HEADINGS[row["metric"]]] = interval(row, signed=row["metric"] == "bias")
    lines: list[Line | None] = []
    for raters, block in blocks.items():
        lines += [((raters, category), cells) for category, cells in block.items()] + [None]
    title = "Agreement of the raters (95% bootstrap interval over queries)"
    print_numbers(title, ("raters", "category"), lines[:-1], to)
