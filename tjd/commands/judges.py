"""Commands that make and use judges: train-judge, score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import Judges, Limit, Out, OutFolder, ShardOption, Taxonomy, Where, rows_of, write
from tjd.commands.terminal import counted, progress, require_known, say
from tjd.config import ENGINE_HELP, Engine, SweepConfig, TrainJudgeConfig, as_dict, require_used
from tjd.errors import ConfigError, DataError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from tjd.stages.sweep import Combination
    from tjd.tables import Row

app = typer.Typer()

FEW = 30  # held-out rows of a category, below which a threshold rests on chance


@app.command("train-judge", rich_help_panel="Judges")
@flags
def train_judge_command(
    labels: Annotated[str, typer.Argument(help="Labels: Parquet, JSONL, CSV or `-`.")],
    out: OutFolder,
    config: TrainJudgeConfig,
    sweep: SweepConfig,
    taxonomy: Taxonomy = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Train one tiny judge per category on the teacher's verdicts (Eq. 4), and choose its threshold.

    Rows are split by query: a column `split` wins, else a digest decides. A killed run keeps the judges it finished.
    """
    need("train-judge", "train", "torch", "transformers", "peft")
    from tjd import backbone, tables
    from tjd import taxonomy as categories
    from tjd.judge import ensemble
    from tjd.splits import usable
    from tjd.stages import sweep as choice
    from tjd.stages import train_judge as stage

    grid = _grid(sweep.sweep)
    if "head" not in grid:
        require_used(config)
    known = categories.load(taxonomy)
    prompt = ensemble.load_prompt(config.prompt)
    table = tables.open_table(labels, "labels", need=stage.NEED, not_null=("query_id", "query", "constraint"))
    rows = list(rows_of(table, where, limit))
    labelled = [row for row in rows if usable(row)]
    digest = tables.text_id(table.digest, *where, str(limit))

    def fingerprint(config: TrainJudgeConfig, specialist: str | None = None) -> str:
        return stage.fingerprint(config, prompt, digest, stage.specialists(labelled, known, config), specialist)

    points = choice.combinations(config, grid, fingerprint) if grid else []
    names = stage.specialists(labelled, known, config)
    stage.require_replaceable(out, None if points else {name: fingerprint(config, name) for name in names})

    def provenance(config: TrainJudgeConfig) -> "Row":
        settings = as_dict(config) | {"sweep": list(sweep.sweep), "where": where, "limit": limit}
        settings |= {"base": backbone.public_name(config.base), "prompt": prompt.name}  # no paths
        return tables.provenance("train-judge", settings, {"labels": table.digest}, {prompt.name: prompt.digest})

    with progress() as bars:

        def train(config: TrainJudgeConfig, out: Path, swept: "Row | None" = None) -> "Row":
            told = training_bars(bars)
            manifest = stage.train_judge(
                rows, known, prompt, config, out, data_digest=digest, on_step=told, sweep=swept
            )
            tables.write_rows(manifest["history"], str(out / "metrics.parquet"), stage.HISTORY, provenance(config))
            (out / "card.md").write_text(stage.card(manifest), encoding="utf-8")
            return manifest

        swept = None
        if points:

            def save(rows: "list[Row]") -> None:
                tables.write_rows(rows, str(out / choice.FILE), choice.SWEEP, provenance(config))

            def tell(point: "Combination") -> None:
                bars.console.print(f"combination {point.number} of {len(points)}: {point.label}", highlight=False)

            settings, swept = choice.sweep(points, out, train, save, keep=sweep.keep, on_start=tell)
            config = replace(config, **settings)
        manifest = train(config, out, swept)
    _tell_worth(manifest)
    say(f"{counted(len(manifest['specialists']), 'judge')} -> {out} (card.md says more)")


def _tell_worth(manifest: Mapping[str, Any]) -> None:
    """A line per category that is judged, and a warning where there was too little to choose its threshold by."""
    for category, seat in manifest["categories"].items():
        n, found = seat["n_validation"], seat["validation"].get("balanced_accuracy")
        told = f"{category}: {counted(n, 'held-out row')}"
        if found is not None:
            value, low, high = ("-" if number is None else f"{number:.2f}" for number in found)
            told += f", balanced accuracy {value} [{low}, {high}]"
        say(told)
        if n < FEW:
            say(
                f"warning: with fewer than {FEW} held-out rows, the threshold of {category} is a guess",
                style="yellow",
            )


@app.command("score", rich_help_panel="Judges")
def score_command(
    table: Annotated[
        str, typer.Argument(help="Responses with constraints, or a query, constraint and response a row.")
    ],
    out: Out,
    judges: Judges,
    dtype: Annotated[str, typer.Option(help="`auto`, `float32` or `bfloat16`.")] = "auto",
    engine: Annotated[Engine, typer.Option(help=ENGINE_HELP)] = "transformers",
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    shard: ShardOption = None,
) -> None:
    """Give every (response, constraint) the judges' P(followed) and verdict; a judge that fails gives null."""
    need("score", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.judge import ensemble
    from tjd.stages import score as stage

    tables.require_other_file(table, out)
    source = tables.open_table(table, "foreign", need=stage.NEED)
    tables.require_constraints(source)
    judge = ensemble.load(judges, dtype=dtype, engine=engine)
    rows = stage.score(rows_of(source, where, limit, shard, block=stage.WINDOW), judge.score)
    digests = {"judges": tables.file_digest(judges / ensemble.MANIFEST)}
    inputs, schema = {"table": source}, stage.schema(source.schema)
    chosen = (where, limit)
    written = write(
        rows,
        out,
        schema,
        "score",
        {"dtype": dtype, "engine": engine},
        inputs,
        digests=digests,
        chosen=chosen,
        shard=shard,
        null="score",
    )
    if written.n_null == written.n_rows:
        raise DataError(f"no row has a score; see the column 'error'{'' if out == tables.STDIO else f' of {out}'}")


def _grid(sweep: Sequence[str]) -> dict[str, list[str]]:
    """Names of settings and the values of each, from `NAME=V1,V2`."""
    from tjd.stages.sweep import NOT_SWEPT, sweepable

    grid: dict[str, list[str]] = {}
    for written in sweep:
        name, sign, values = written.partition("=")
        name = name.strip().replace("-", "_")
        if not sign:
            raise ConfigError(
                f"--sweep {written}: write NAME=V1,V2 with a flag of training that takes numbers or a choice"
            )
        if name in NOT_SWEPT:
            raise ConfigError(f"--sweep {name}: {NOT_SWEPT[name]}; leave it out of the grid")
        require_known(name, sweepable(), "setting to --sweep")
        if name in grid:
            raise ConfigError(f"--sweep names {name} twice; write all its values in one: {name}=V1,V2,V3")
        grid[name] = [value.strip() for value in values.split(",")]
    return grid


def training_bars(bars: "Progress") -> Callable[[str, Mapping[str, Any]], None]:
    """A bar per specialist; the validation loss of each epoch beside it."""
    tasks: dict[str, Any] = {}

    def on_step(specialist: str, row: Mapping[str, Any]) -> None:
        if specialist not in tasks:
            tasks[specialist] = bars.add_task(specialist, total=row["n_steps"])
        task = tasks[specialist]
        note = f"loss {row['loss']:.3f}" if "loss" in row else ""
        if row.get("validation_loss") is not None:
            note = f"epoch {row['epoch']}: validation loss {row['validation_loss']:.3f}"
        bars.update(task, completed=row["step"], note=note)

    return on_step
