"""The command that compares judges with the truth and each other: eval-judge."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import (
    AsJson,
    DryRun,
    Figure,
    Limit,
    MetricsOut,
    Where,
    open_models,
    require_figure,
    rows_of,
    tell_plan,
    used,
    warn_of_leaks,
    with_bar,
)
from tjd.commands.terminal import (
    Line,
    answers_to,
    counted,
    interval,
    needed,
    print_numbers,
    progress,
    room,
    say,
)
from tjd.config import BackendConfig, EvalJudgeConfig, TrainJudgeConfig, as_dict
from tjd.errors import ConfigError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from tjd.prompts import Prompt
    from tjd.stages.eval_judge import Judge, Scorer
    from tjd.tables import Row
    from tjd.teacher import Teacher

app = typer.Typer()


@app.command("eval-judge", rich_help_panel="Judges")
@flags
def eval_judge_command(
    labels: Annotated[str, typer.Argument(help="Labels to agree with: Parquet, JSONL, CSV or `-`.")],
    config: EvalJudgeConfig,
    backend: BackendConfig,
    judges: Annotated[
        list[Path], typer.Option("--judges", "-j", help="Folder that `tjd train-judge` wrote; repeatable.")
    ] = [],  # noqa: B006
    out: MetricsOut = None,
    figure: Figure = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure judges against the ground truth: precision, recall, F1, balanced accuracy, AUROC, calibration error.

    All judges get the same rows; what is named first is compared with each other one. Every figure has a 95% bootstrap
    interval over queries, and the prevalence beside it: at a prevalence of 0.8, a judge that accepts everything has a
    precision of 0.8.

    `-j three -j one -t hf:embedded` sets two ensembles beside the model they came from, untrained, asked for its verdict
    with the judges' prompt, its threshold chosen on validation. Other teachers, and any in mode `batch`, are
    asked as `tjd label` asks them.
    """
    need("eval-judge", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.splits import usable
    from tjd.stages import eval_judge as stage

    if figure:
        require_figure("eval-judge", figure)
    tables.require_other_file(labels, out)
    needed = ("query_id", "query", "constraint")
    table = tables.open_table(labels, "labels", need=(*stage.NEED, config.truth, *config.by), not_null=needed)
    found = list(rows_of(table, where, limit))
    rows = list(stage.with_truth(found, config.truth, config.min_agreement))
    if len(rows) < len(found):
        say(f"eval-judge: {len(found) - len(rows)} of {len(found)} rows left out, whose voters agree less")
    with ExitStack() as stack:
        bars = stack.enter_context(progress())
        field = _contestants(judges, config, backend, found, rows, bars, stack, dry_run=dry_run)
        if left_out := stage.uncovered(rows, field.judges):
            names = ", ".join(sorted({row["category"] for row in left_out}))
            what = f"{len(left_out)} of {counted(len(rows), 'row')} left out"
            say(f"eval-judge: {what}: not all judges cover their category ({names})")
        if dry_run:
            chosen = [row for row in stage.of_split(rows, field.judges, config, field.split_seed) if usable(row)]
            for judge in field.judges:
                if judge.name in field.planned:
                    judge.score(chosen)
            return tell_plan([], field.teachers, out)
        measured = stage.eval_judge(rows, field.judges, config, field.split_seed)
    for teacher in field.teachers:
        say(f"{teacher.name}: {used(teacher.usage)}")
    settings = as_dict(config) | {"teacher": field.asked, "where": where, "limit": limit}
    prompts = {prompt.name: prompt.digest for prompt in field.prompts}
    source = tables.provenance("eval-judge", settings, {"labels": table.digest, **field.digests}, prompts)
    if out:
        tables.write_rows(measured.metrics, out, tables.METRICS, source)
    if figure:
        from tjd import figures

        figures.judges_figure(measured.metrics, measured.reliability, figure)
    coverage = [row["value"] for row in measured.metrics if row["metric"] == "coverage" and " - " not in row["judge"]]
    title = "Agreement with the labels (95% bootstrap interval over queries)"
    _print_metrics(
        measured.metrics, title, answers_to(out), as_json=as_json, hide=["coverage"] if min(coverage) == 1 else []
    )


@dataclass(slots=True)
class Field:
    """Who is compared, and what was read for it."""

    judges: "list[Judge]"
    split_seed: int  # of the judges' own split
    digests: dict[str, str]
    prompts: list[Any]
    teachers: "list[Teacher]"  # those that are asked for completions
    planned: list[str]  # how these are called here
    asked: list[str]  # names of all teachers, without paths


def _contestants(
    folders: Sequence[Path],
    config: EvalJudgeConfig,
    backend: BackendConfig,
    table: "Sequence[Row]",
    rows: "Sequence[Row]",
    bars: "Progress",
    stack: ExitStack,
    *,
    dry_run: bool,
) -> Field:
    """Open the judges and teachers to compare on `rows`, which are among those of `table`; the stack closes them."""
    from tjd import tables
    from tjd.judge import ensemble
    from tjd.stages.eval_judge import Judge

    if not folders and not config.teacher:
        raise ConfigError("nothing to measure: give --judges FOLDER, --teacher MODEL, or both")
    manifests = {folder: ensemble.read_manifest(folder) for folder in folders}
    trained = [ensemble.settings_of(manifest) for manifest in manifests.values()]
    seeds = {train.seed for train in trained}
    if len(seeds) > 1 and config.split != "all" and any(row.get("split") is None for row in rows):
        raise ConfigError(
            "the judges split their rows with different seeds, so they have no test rows in common; give the labels a "
            "column 'split', or train the judges with one --seed"
        )
    pairs = [(teacher, mode) for teacher in config.teacher for mode in dict.fromkeys(config.teacher_mode)]
    told = [teacher for teacher, mode in pairs if not _is_zero_shot(teacher, mode)]
    opened = iter(open_models("eval-judge", told, backend, dry_run=dry_run))
    field = Field([], seeds.pop() if seeds else 0, {}, [], [], [], [])
    for (folder, manifest), name in zip(manifests.items(), _names(manifests), strict=True):
        judge = ensemble.load(folder, dtype=config.dtype, engine=config.engine)
        scorer = with_bar(judge.score, name, bars)
        field.judges.append(Judge(name, scorer, frozenset(manifest["categories"]), choose_thresholds=False))
        field.digests[name] = tables.file_digest(folder / ensemble.MANIFEST)
        warn_of_leaks(ensemble.count_trained_on(folder, rows, config.split, field.split_seed), name)
    covered = [judge.categories for judge in field.judges if judge.categories is not None]
    categories = frozenset.intersection(*covered) if covered else None
    train = replace(trained[0] if trained else TrainJudgeConfig(), dtype=config.dtype)
    shown = [ensemble.prompt_of(manifest) for manifest in manifests.values()] or [ensemble.load_prompt(train.prompt)]
    for teacher, mode in pairs:
        if _is_zero_shot(teacher, mode):
            name, score = _zero_shot(field, teacher.removeprefix("hf:"), train, shown[0], rows)
            choose, slice_rows = True, 512
        else:
            name, score = _asked(field, next(opened), mode, table, stack)
            choose, slice_rows = False, max(1, len(rows))  # a response's constraints are asked about together
        score = with_bar(score, name, bars, slice_rows)
        field.judges.append(Judge(name, score, categories, choose_thresholds=choose))
    names = [judge.name for judge in field.judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two judges are called {name}; rename one folder or leave one out")
    return field


def _is_zero_shot(teacher: str, mode: str) -> bool:
    """Whether a teacher's verdict is read off its next token; any other is asked in words."""
    return teacher.startswith("hf:") and mode == "pointwise"


def _zero_shot(
    field: Field, base: str, train: TrainJudgeConfig, prompt: "Prompt", rows: "Sequence[Row]"
) -> "tuple[str, Scorer]":
    """A local model as it is, asked with the judges' prompt; its score is the probability of its verdict token."""
    from tjd import backbone
    from tjd.judge import ensemble

    field.prompts.append(prompt)
    name = f"zero-shot {backbone.public_name(base)}"
    field.asked.append(name)
    return name, ensemble.zero_shot(base, prompt, train, {str(row["category"]) for row in rows}).score


def _asked(
    field: Field, teacher: "Teacher", mode: Any, table: "Sequence[Row]", stack: ExitStack
) -> "tuple[str, Scorer]":
    """A model that is asked in words, as `tjd label` asks it."""
    from tjd import prompts
    from tjd.stages.eval_judge import asked
    from tjd.teacher.verdicts import VARIABLES

    stack.enter_context(closing(teacher))  # calls in flight are paid: they may still arrive and be kept
    prompt, again = prompts.load(f"label.{mode}.v1", VARIABLES[mode]), prompts.load("again.v1", ["reason"])
    field.prompts += [prompt, again]
    field.teachers.append(teacher)
    label = f"zero-shot {teacher.name}" + (" batch" if mode == "batch" else "")
    field.asked.append(label)
    field.planned.append(label)
    if teacher.digest:
        field.digests[teacher.name] = teacher.digest
    return label, asked(teacher.ask, teacher.name, prompt, again, mode, table)


def _names(manifests: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """A name per ensemble: its layout, and where two share it the folder's name too."""
    layouts = [manifest["layout"] for manifest in manifests.values()]
    return [
        layout if layouts.count(layout) == 1 else f"{layout} ({folder.resolve().name})"
        for folder, layout in zip(manifests, layouts, strict=True)
    ]


def _print_metrics(
    metrics: "Sequence[Row]", title: str, to: IO[str], *, as_json: bool, hide: Sequence[str] = ()
) -> None:
    """A line per category and judge, a column per metric; in a narrow terminal a table per category, a column per judge."""
    if as_json:
        print(json.dumps(metrics), file=to)
        return
    names = [name for name in dict.fromkeys(row["metric"] for row in metrics) if name not in hide]
    found: dict[tuple[str, ...], dict[str, dict[str, Row]]] = {}
    for row in metrics:
        about = (row["category"],) if row["group"] == "all" else (row["category"], row["group"])
        found.setdefault(about, {}).setdefault(row["judge"], {})[row["metric"]] = row

    def shown(judge: str, row: "Row") -> str:
        return interval(row, signed=" - " in judge)

    head = ("judge", "category", "n", "invalid", "prevalence")
    lines: list[Line | None] = []
    for about, judges in found.items():
        lines += [None] if lines else []
        for judge, cells in judges.items():
            row = next(iter(cells.values()))
            told = (judge, ", ".join(about), str(row["n"]), str(row["n_invalid"]), f"{row['prevalence']:.2f}")
            lines.append((told, {name.replace("_", " "): shown(judge, cells[name]) for name in names}))
    if needed(head, lines) <= room(to):
        print_numbers(title, head, lines, to)
        return
    for about, judges in found.items():
        row = next(iter(next(iter(judges.values())).values()))
        rows = f"{', '.join(about)}: n {row['n']}, invalid {row['n_invalid']}, prevalence {row['prevalence']:.2f}"
        tall = [
            ((name.replace("_", " "),), {j: shown(j, cells[name]) for j, cells in judges.items()}) for name in names
        ]
        print_numbers(f"{title}\n{rows}", ("metric",), tall, to)
