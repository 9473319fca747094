"""The command line: one thin command per stage; the only module that prints, prompts or exits.

Each command checks its extras, reads, calls its stage and writes. Answers go to standard output, everything else to
standard error, so that commands can be piped. Heavy imports live in the commands, so that `tjd --help` stays instant.
"""

import json
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from tjd.config import (
    RL_PRESETS,
    TAXONOMY_HELP,
    BackendConfig,
    EvalJudgeConfig,
    LabelConfig,
    RlConfig,
    SampleConfig,
    SynthesizeConfig,
    TrainJudgeConfig,
    as_dict,
)
from tjd.errors import BackendError, ConfigError, TjdError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.progress import Progress

    from tjd.prompts import Prompt
    from tjd.tables import Row, Table
    from tjd.teacher import Teacher, Usage

T = TypeVar("T")

WIDE = 140  # columns of a table that goes into a file or a pipe


class Boundary(TyperGroup):
    """Turns a TjdError into one line on standard error and its exit code; anything else is a bug."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command inside the boundary."""
        try:
            return super().invoke(ctx)
        except TjdError as error:
            _say(f"error: {error}", style="red")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            _say("interrupted; run the same command again to go on from what is done", style="yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold keys
    add_completion=False,
    rich_markup_mode="markdown",
)
import_app = typer.Typer(no_args_is_help=True)
app.add_typer(import_app, name="import", help="Bring foreign data into tjd's tables.", rich_help_panel="Data")

Out = Annotated[str, typer.Option("--out", "-o", help="Parquet file to write, or `-`.", show_default=False)]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]
Where = Annotated[list[str], typer.Option("--where", help="Keep rows with COLUMN=VALUE or COLUMN!=VALUE; repeatable.")]
Limit = Annotated[int, typer.Option("--limit", help="Take only the first rows; 0 takes all.", min=0)]
Taxonomy = Annotated[str | None, typer.Option("--taxonomy", help=TAXONOMY_HELP)]
Judges = Annotated[
    Path, typer.Option("--judges", "-j", help="Folder that `tjd train-judge` wrote.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def main_callback(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="TOML file: a table of flags per command.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Distil a frontier model's judgement into tiny judges, and use them as the reward of a GRPO run.

    Every command reads and writes Parquet, and `-` is standard input or output:

    `tjd synthesize queries.jsonl -o - | tjd sample - -m hf:embedded -o - | tjd label - -o labels.parquet`
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever shares the cores
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s: %(message)s")
    logging.getLogger("tjd").setLevel(logging.INFO if verbose else logging.WARNING)
    if config is not None:
        ctx.default_map = _default_map(config)


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
) -> None:
    """Let the teacher write soft constraints for each query and weave them into an instruction.

    Categories are assigned in balance over the table; a column `category` fixes a row's own. Rule constraints that a
    query already has (column `constraints`) are kept.
    """
    from tjd import prompts, tables
    from tjd import taxonomy as categories
    from tjd.stages import synthesize as stage

    known = categories.load(taxonomy)
    prompt, again = prompts.load("synthesize.v1", stage.VARIABLES), prompts.load("again.v1", ["reason"])
    table = tables.open_table(queries, "queries", need=("query_id", "query"))
    schema = tables.output_schema("instructions", like=table.schema, drop=["category"])
    [teacher] = open_models("synthesize", [config.teacher], backend)
    rows = stage.synthesize(_rows(table, where, limit), prompt, again, teacher.ask, config, known)
    inputs, templates = {"queries": table}, [prompt, again]
    written = _write(
        rows, out, schema, "synthesize", config, inputs, templates, [teacher], chosen=(where, limit), null="instruction"
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
    rows = stage.sample(lambda: _rows(table, where, limit), in_turn(models), config)
    written = _write(
        rows, out, schema, "sample", config, {"instructions": table}, [], models, chosen=(where, limit), null="response"
    )
    written.require_valid(config.max_invalid)


@app.command("label", rich_help_panel="Data")
@flags
def label_command(
    responses: Annotated[str, typer.Argument(help="Responses with their constraints: Parquet or `-`.")],
    out: Out,
    config: LabelConfig,
    backend: BackendConfig,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Ask the teacher whether each response follows each of its constraints; rules are decided by code.

    A verdict that cannot be read is null with a reason in `error`, never a "no".
    """
    from tjd import checkers, prompts, tables
    from tjd.stages import label as stage

    prompt = prompts.load(f"label.{config.mode}.v1", stage.VARIABLES[config.mode])
    again = prompts.load("again.v1", ["reason"])
    table = tables.open_table(responses, "responses", need=stage.NEED)
    schema = tables.output_schema("labels", like=table.schema, drop=["constraints"])
    [teacher] = open_models("label", [config.teacher], backend)
    rows = stage.label(_rows(table, where, limit), prompt, again, teacher.ask, config, checkers.verdict)
    inputs, templates = {"responses": table}, [prompt, again]
    written = _write(
        rows, out, schema, "label", config, inputs, templates, [teacher], chosen=(where, limit), null="followed"
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
    rows = stage.import_labels(_rows(table, where, limit), columns)
    inputs, schema = {"source": table}, stage.schema(table.schema, columns)
    _write(rows, out, schema, "import labels", columns, inputs, chosen=(where, limit), null="followed")


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
    rows = list(_rows(table, where, limit))
    digest = tables.text_id(table.digest, *where, str(limit))
    with _progress() as bars:
        manifest = stage.train_judge(rows, known, prompt, config, out, data_digest=digest, on_step=_training(bars))
    history = manifest.pop("history")
    settings = as_dict(config) | {"base": manifest["base_name"], "where": where, "limit": limit}
    source = tables.provenance("train-judge", settings, {"labels": table.digest}, {prompt.name: prompt.digest})
    tables.write_rows(history, str(out / "metrics.parquet"), stage.HISTORY, source)
    (out / "card.md").write_text(stage.card(manifest), encoding="utf-8")
    _say(f"{len(manifest['specialists'])} judges -> {out} (card.md says what they are worth)")


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
    rows = list(_rows(table, where, limit))
    with _progress() as bars:
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
    rows = stage.score(_rows(source, where, limit), judge.score)
    digests = {"judges": tables.file_digest(judges / ensemble.MANIFEST)}
    inputs, schema = {"table": source}, stage.schema(source.schema)
    chosen = (where, limit)
    _write(rows, out, schema, "score", {"dtype": dtype}, inputs, digests=digests, chosen=chosen, null="score")


def _preset(ctx: typer.Context, name: str | None) -> str | None:
    """Make a preset's settings the defaults of this call, so that flags on the line still win."""
    if name is not None:
        _require_known(name, RL_PRESETS, "--preset")
        ctx.default_map = {**(ctx.default_map or {}), **RL_PRESETS[name]}
    return name


@app.command("rl", rich_help_panel="Policy")
@flags
def rl_command(
    instructions: Annotated[str, typer.Argument(help="Instructions with their constraints: Parquet or `-`.")],
    out: OutFolder,
    judges: Judges,
    config: RlConfig,
    preset: Annotated[
        str | None, typer.Option(help="`paper`: the settings of its Table 4.", callback=_preset, is_eager=True)
    ] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Train a policy with GRPO; the reward is rules plus judges (Eq. 5), null where one of them failed.

    The folder holds the policy, `rollouts.parquet` (every response with the reward and advantage that were used) and
    `metrics.parquet`. The same command again goes on from the last checkpoint.
    """
    need("rl", "rl", "torch", "transformers", "peft", "trl", "datasets")
    from tjd import checkers, tables
    from tjd.judge import ensemble
    from tjd.stages import rl as stage

    table = tables.open_table(
        instructions, "instructions", need=("instruction_id", "query", "instruction", "constraints")
    )
    judge = ensemble.load(judges, dtype=config.dtype)
    digests = {
        "instructions": tables.text_id(table.digest, *where, str(limit)),
        "judges": tables.file_digest(judges / ensemble.MANIFEST),
    }
    rows = list(_rows(table, where, limit))
    covered = [row for row in rows if judge.covers(row["constraints"] or ())]
    if len(covered) < len(rows):
        _say(f"rl: {len(rows) - len(covered)} of {len(rows)} instructions left out: no judge covers their category")
    with _progress() as bars:
        metrics = stage.rl(
            covered,
            config,
            out,
            score=judge.score,
            check=checkers.verdict,
            inputs=digests,
            on_step=_rewards(bars, config.steps),
        )
    _say(f"rl: {len(metrics)} steps -> {out} (policy, rollouts.parquet, metrics.parquet)")


@app.command("show", rich_help_panel="Look")
def show_command(
    table: Annotated[str, typer.Argument(help="Any Parquet table of tjd, or `-`.")],
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to show.", min=0)] = 3,
    only: Annotated[str | None, typer.Option(help="Show one section, by its title.")] = None,
    where: Where = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show what a table holds: provenance, columns, counts per category and verdict, and some rows."""
    from tjd import tables
    from tjd.stages import show as stage

    source = tables.open_table(table, "foreign")
    summary = stage.summarise(_rows(source, where, 0), source, n_rows=rows)
    if only is not None:
        _require_known(only, summary["sections"], "section")
        summary["sections"] = {only: summary["sections"][only]}
    if as_json:
        print(json.dumps(summary, ensure_ascii=False, default=str))  # noqa: T201
    else:
        _print_summary(summary)


def main() -> None:
    """Entry point: a reader that goes away (`| head`) is not an error worth a traceback."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


# ---------------------------------------------------------------------------------------------- reading and writing


class Written:
    """What became of a table that was written: how many rows, how many null, and where."""

    def __init__(self, out: str, null: str | None) -> None:
        self.out, self.null = out, null
        self.n_rows, self.n_null = 0, 0
        self.reasons: dict[str, int] = {}

    def count(self, rows: "Iterable[Row]") -> "Iterator[Row]":
        """Pass rows on, counting."""
        for row in rows:
            self.n_rows += 1
            if self.null is not None and row.get(self.null) is None:
                self.n_null += 1
                reason = str(row.get("error"))[:120]
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
            yield row

    def require_valid(self, max_invalid: float) -> None:
        """Raise if too many rows are null; they are written already."""
        if self.n_null > max_invalid * self.n_rows:
            common = max(self.reasons, key=lambda reason: self.reasons[reason])
            raise BackendError(
                f"{self.n_null} of {self.n_rows} rows have no {self.null} (mostly: {common}); "
                f"see the column 'error' of {self.out}, or raise --max-invalid"
            )


def _rows(table: "Table", where: Sequence[str], limit: int) -> "Iterator[Row]":
    from tjd import tables

    keep = tables.where(table, where)
    rows = (row for row in table.rows() if keep(row))
    return islice(rows, limit) if limit else rows


def _write(
    rows: "Iterable[Row]",
    out: str,
    schema: "pa.Schema",
    stage: str,
    config: Any,
    inputs: "Mapping[str, Table]",
    prompts: "Sequence[Prompt]" = (),
    models: "Sequence[Teacher]" = (),
    *,
    digests: Mapping[str, str] | None = None,
    chosen: tuple[Sequence[str], int] = ((), 0),
    null: str | None = None,
) -> Written:
    """Write a table with its provenance and say in one line what it holds."""
    from tjd import tables

    settings = dict(config) if isinstance(config, Mapping) else as_dict(config)
    settings |= {"where": list(chosen[0]), "limit": chosen[1]}
    if "teacher" in settings and models:
        settings["teacher"] = models[0].name
    if "model" in settings and models:
        settings["model"] = [model.name for model in models]
    read = {name: table.digest for name, table in inputs.items()} | dict(digests or {})
    read |= {model.name: model.digest for model in models if model.digest}
    source = tables.provenance(stage, settings, read, {prompt.name: prompt.digest for prompt in prompts})
    written = Written(out, null)
    total = max((len(table) for table in inputs.values()), default=None)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(closing(model))  # calls in flight are paid: they may still arrive and be kept
        bars = stack.enter_context(_progress())
        task = bars.add_task(stage, total=total)
        tables.write_rows(_advancing(written.count(rows), bars, task), out, schema, source)
    told = [f"{written.n_rows} rows"]
    if written.n_null:
        common = max(written.reasons, key=lambda reason: written.reasons[reason])
        told.append(f"{written.n_null} without {null} (mostly: {common})")
    told += [_used(model.usage) for model in models]
    _say(f"{stage}: {', '.join(told)} -> {'standard output' if out == tables.STDIO else out}")
    return written


def open_models(command: str, names: Sequence[str], backend: BackendConfig) -> "list[Teacher]":
    """Open models to ask, after checking that their packages are there."""
    if any(name.startswith("hf:") for name in names):
        need(command, "train", "torch", "transformers")
    if any(not name.startswith(("hf:", "recorded:")) for name in names):
        need(command, "teacher", "litellm")
    from tjd.backbone import cache_folder
    from tjd.teacher import open_teacher

    return [open_teacher(name, backend, cache_folder()) for name in names]


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
            _say(f"warning: {leaked} of these rows are of queries the judges were trained on", style="yellow")
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


def _default_map(path: Path) -> dict[str, Any]:
    """Read defaults from a TOML file; an unknown command or flag is an error that names the nearest."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"--config {path} cannot be read ({exc})") from exc
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, table in tables.items():
        _require_known(name, commands, f"command in {path}")
        flags_of = {parameter.name for parameter in commands[name].params}
        for key in table:
            _require_known(key.replace("-", "_"), flags_of, f"flag under [{name}] in {path}")
    return {name: {key.replace("-", "_"): v for key, v in table.items()} for name, table in tables.items()}


def _require_known(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        raise ConfigError(f"unknown {what}: '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))


# ------------------------------------------------------------------------------------------------------- terminal


def _used(usage: "Usage") -> str:
    """What the calls of a model came to."""
    cost = "price unknown" if usage.cost_usd is None else f"${usage.cost_usd:.4f}"
    told = (
        f"{usage.calls} calls ({usage.cached} more from the cache), {usage.prompt_tokens}+{usage.tokens} tokens, {cost}"
    )
    return told + (f", {usage.failed} failed" if usage.failed else "")


def _say(text: str, style: str = "") -> None:
    """One line on standard error."""
    from rich.console import Console

    Console(stderr=True).print(text, style=style or None, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Bars on standard error; silent off a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        add = bars.add_task
        bars.add_task = lambda *args, **kwargs: add(*args, **{"note": "", **kwargs})  # type: ignore[method-assign]
        yield bars


def _advancing(items: Iterable[T], bars: "Progress", task: Any) -> Iterator[T]:
    for item in items:
        yield item
        bars.advance(task)


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


def _rewards(bars: "Progress", n_steps: int) -> Callable[[Mapping[str, Any]], None]:
    """The reward by component, a line per step; the bar says how far the run is."""
    task = bars.add_task("rl", total=n_steps)

    def shown(row: Mapping[str, Any], name: str, form: str = ".3f") -> str:
        return "-" if row.get(name) is None else format(row[name], form)

    def on_step(row: Mapping[str, Any]) -> None:
        seconds = sum(row.get(name) or 0 for name in ("generation_s", "scoring_s", "training_s"))
        line = (
            f"step {row['step']:>4}  reward {shown(row, 'reward')}  rule {shown(row, 'reward_rule')}  "
            f"soft {shown(row, 'reward_soft')}  kl {shown(row, 'kl', '.4f')}  "
            f"tokens {shown(row, 'n_tokens', '.0f')}  flat groups {shown(row, 'flat_groups', '.2f')}  "
            f"judge failed {shown(row, 'judge_failed', '.2f')}  {seconds:.0f} s"
        )
        bars.update(task, completed=row["step"])
        bars.console.print(line, highlight=False, markup=False, soft_wrap=True)

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


def _print_summary(summary: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    for title, lines in summary["sections"].items():
        grid = Grid(title=title, title_justify="left", show_header=bool(lines["header"]))
        for name in lines["header"] or [""] * len(lines["rows"][0]):
            grid.add_column(str(name), overflow="fold")
        for line in lines["rows"]:
            grid.add_row(*(str(cell) for cell in line))
        console.print(grid)


if __name__ == "__main__":
    main()
