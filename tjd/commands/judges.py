"""Commands about judges: train-judge, eval-judge, score."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import AsJson, Judges, Limit, Out, OutFolder, Taxonomy, Where, open_models, rows_of, write
from tjd.commands.terminal import WIDE, progress, say
from tjd.config import BackendConfig, EvalJudgeConfig, TrainJudgeConfig, as_dict
from tjd.errors import ConfigError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from tjd.tables import Row

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
        manifest = stage.train_judge(rows, known, prompt, config, out, data_digest=digest, on_step=_training(bars))
    history = manifest.pop("history")
    settings = as_dict(config) | {"base": manifest["base_name"], "where": where, "limit": limit}
    source = tables.provenance("train-judge", settings, {"labels": table.digest}, {prompt.name: prompt.digest})
    tables.write_rows(history, str(out / "metrics.parquet"), stage.HISTORY, source)
    (out / "card.md").write_text(stage.card(manifest), encoding="utf-8")
    say(f"{len(manifest['specialists'])} judges -> {out} (card.md says what they are worth)")


@app.command("eval-judge", rich_help_panel="Judges")
@flags
def eval_judge_command(
    labels: Annotated[str, typer.Argument(help="Labels to agree with: Parquet or `-`.")],
    config: EvalJudgeConfig,
    judges: Annotated[Path | None, typer.Option("--judges", "-j", help="Folder that `tjd train-judge` wrote.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Parquet file for the metrics.")] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Measure judges against the teacher's verdicts: precision, recall, F1, balanced accuracy, AUROC.

    Every figure has a 95% bootstrap interval over queries. `--teacher hf:embedded` puts an untrained model beside the
    judges: same prompt, same rows, its threshold chosen on the validation rows as theirs was.
    """
    need("eval-judge", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.stages import eval_judge as stage

    table = tables.open_table(labels, "labels", need=stage.NEED)
    rows = list(rows_of(table, where, limit))
    with progress() as bars:
        contestants, seed, digests = _contestants(judges, config, rows, bars)
        metrics = stage.eval_judge(rows, contestants, config, seed)
    settings = as_dict(config) | {"teacher": contestants[-1].name if config.teacher else "", "where": where}
    source = tables.provenance("eval-judge", settings | {"limit": limit}, {"labels": table.digest, **digests}, {})
    if out:
        tables.write_rows(metrics, out, tables.METRICS, source)
    _print_metrics(metrics, as_json=as_json)


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


def _contestants(
    judges: Path | None, config: EvalJudgeConfig, rows: "Sequence[Row]", bars: "Progress"
) -> tuple[list[Any], int, dict[str, str]]:
    """The judges to compare, the seed of the split, and digests of what was read."""
    from tjd import backbone, tables
    from tjd.judge import ensemble
    from tjd.stages.eval_judge import Judge, asked

    if judges is None and not config.teacher:
        raise ConfigError("nothing to measure: give --judges FOLDER, --teacher MODEL, or both")
    contestants: list[Judge] = []
    digests: dict[str, str] = {}
    train, seed, categories = TrainJudgeConfig(), 0, None
    if judges is not None:
        manifest = ensemble.read_manifest(judges)
        saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["config"].items()}
        train = TrainJudgeConfig(**saved)
        seed, categories = train.seed, frozenset(manifest["categories"])
        judge = ensemble.load(judges, dtype=config.dtype)
        contestants.append(Judge(manifest["layout"], _with_bar(judge.score, "judges", bars), categories, False))
        digests["judges"] = tables.file_digest(judges / ensemble.MANIFEST)
        leaked = ensemble.count_trained_on(judges, rows, config.split, seed)
        if leaked:
            say(f"warning: {leaked} of these rows are of queries the judges were trained on", style="yellow")
    if config.teacher:
        prompt = ensemble.load_prompt(train.prompt)
        if config.teacher.startswith("hf:"):
            base = config.teacher.removeprefix("hf:")
            name = f"zero-shot {backbone.public_name(base)}"
            scorer = ensemble.zero_shot(base, prompt, train, {str(row["category"]) for row in rows}).score
        else:
            model = open_models("eval-judge", [config.teacher], BackendConfig())[0]
            name, scorer = f"zero-shot {model.name}", asked(model, prompt)
        has_scores = config.teacher.startswith("hf:")
        contestants.append(Judge(name, _with_bar(scorer, name, bars), categories, choose_thresholds=has_scores))
    return contestants, seed, digests


def _with_bar(score: Callable[[Sequence[Any]], Sequence[Any]], name: str, bars: "Progress") -> Callable[..., list[Any]]:
    """Score in slices, so that the bar moves."""

    def scored(rows: Sequence[Any]) -> list[Any]:
        task = bars.add_task(name, total=len(rows))
        out: list[Any] = []
        for start in range(0, len(rows), 512):
            out += score(rows[start : start + 512])
            bars.update(task, completed=len(out))
        return out

    return scored


def _training(bars: "Progress") -> Callable[[str, Mapping[str, Any]], None]:
    """A bar per specialist; the validation loss of each epoch beside it."""
    tasks: dict[str, Any] = {}

    def on_step(specialist: str, row: Mapping[str, Any]) -> None:
        if specialist not in tasks:
            tasks[specialist] = bars.add_task(specialist, total=row["n_steps"])
        task = tasks[specialist]
        note = f"loss {row['loss']:.3f}"
        if row["validation_loss"] is not None:
            note = f"epoch {row['epoch']}: validation loss {row['validation_loss']:.3f}"
        bars.update(task, completed=row["step"], note=note)

    return on_step


def _print_metrics(metrics: "Sequence[Row]", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    if as_json:
        print(json.dumps(metrics))  # noqa: T201
        return
    names = list(dict.fromkeys(row["metric"] for row in metrics))
    grid = Grid(title="Agreement with the labels (95% bootstrap interval over queries)")
    for column in ("judge", "category", "n", "invalid", "prevalence"):
        grid.add_column(
            column, justify="left" if column in ("judge", "category") else "right", no_wrap=column != "judge"
        )
    for name in names:
        grid.add_column(name.replace("_", " "), justify="right")
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in metrics:
        lines.setdefault((row["category"], row["judge"]), {})[row["metric"]] = row
    previous = None
    for (category, judge), cells in lines.items():
        if previous not in (None, category):
            grid.add_section()
        previous = category
        any_row = next(iter(cells.values()))
        head = [judge, category, str(any_row["n"]), str(any_row["n_invalid"]), f"{any_row['prevalence']:.2f}"]
        grid.add_row(*head, *(_interval(cells[name], signed=" - " in judge) for name in names))
    console = Console()
    Console(width=None if console.is_terminal else WIDE).print(grid)


def _interval(row: Mapping[str, Any], *, signed: bool) -> str:
    if row["value"] is None:
        return "-"
    form = "{:+.3f}" if signed else "{:.3f}"
    return f"{form.format(row['value'])}\n[{row['low']:.2f}, {row['high']:.2f}]"
