"""Commands that make and use judges: train-judge, score."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import Judges, Limit, Out, OutFolder, Taxonomy, Where, rows_of, write
from tjd.commands.terminal import progress, say
from tjd.config import TrainJudgeConfig, as_dict
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer()


@app.command("train-judge", rich_help_panel="Judges")
@flags
def train_judge_command(
    labels: Annotated[str, typer.Argument(help="Labels: Parquet or `-`.")],
    out: OutFolder,
    config: TrainJudgeConfig,
    taxonomy: Taxonomy = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Train one tiny judge per category on the teacher's verdicts (Eq. 4), and choose its threshold.

    Rows are split by query: a column `split` wins, else a digest decides. A killed run keeps the judges it finished.
    """
    need("train-judge", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd import taxonomy as categories
    from tjd.judge import ensemble
    from tjd.stages import train_judge as stage

    known = categories.load(taxonomy)
    prompt = ensemble.load_prompt(config.prompt)
    table = tables.open_table(labels, "labels", need=stage.NEED)
    rows = list(rows_of(table, where, limit))
    digest = tables.text_id(table.digest, *where, str(limit))
    with progress() as bars:
        manifest = stage.train_judge(rows, known, prompt, config, out, data_digest=digest, on_step=training_bars(bars))
    history = manifest.pop("history")
    settings = as_dict(config) | {"base": manifest["base_name"], "where": where, "limit": limit}
    source = tables.provenance("train-judge", settings, {"labels": table.digest}, {prompt.name: prompt.digest})
    tables.write_rows(history, str(out / "metrics.parquet"), stage.HISTORY, source)
    (out / "card.md").write_text(stage.card(manifest), encoding="utf-8")
    say(f"{len(manifest['specialists'])} judges -> {out} (card.md says what they are worth)")


@app.command("score", rich_help_panel="Judges")
def score_command(
    table: Annotated[
        str, typer.Argument(help="Responses with constraints, or a query, constraint and response a row.")
    ],
    out: Out,
    judges: Judges,
    dtype: Annotated[str, typer.Option(help="`auto`, `float32` or `bfloat16`.")] = "auto",
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Give every (response, constraint) the judges' P(followed) and verdict; a judge that fails gives null."""
    need("score", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.judge import ensemble
    from tjd.stages import score as stage

    source = tables.open_table(table, "foreign", need=stage.NEED)
    judge = ensemble.load(judges, dtype=dtype)
    rows = stage.score(rows_of(source, where, limit), judge.score)
    digests = {"judges": tables.file_digest(judges / ensemble.MANIFEST)}
    inputs, schema = {"table": source}, stage.schema(source.schema)
    chosen = (where, limit)
    write(rows, out, schema, "score", {"dtype": dtype}, inputs, digests=digests, chosen=chosen, null="score")


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
