"""Commands that say what judges will not hold out against, and where they reach: probe-hacks, transfer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from tjd.commands.common import (
    AsJson,
    Figure,
    Judges,
    Limit,
    MetricsOut,
    Taxonomy,
    Where,
    require_figure,
    rows_of,
    warn_of_leaks,
    with_bar,
    writable,
    writable_folder,
)
from tjd.commands.judges import training_bars
from tjd.commands.terminal import answers_to, interval, print_grid, print_numbers, progress, say
from tjd.config import ProbeHacksConfig, TrainJudgeConfig, TransferConfig, TransferRlConfig, as_dict, require_used
from tjd.errors import ConfigError, DataError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from tjd.stages.transfer import Scorer, Transfer
    from tjd.tables import Row

app = typer.Typer()

METRIC_NAMES = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy"}


@app.command("probe-hacks", rich_help_panel="Judges")
@flags
def probe_hacks_command(
    table: Annotated[str, typer.Argument(help="Labels or instructions: Parquet, JSONL, CSV or `-`.")],
    config: ProbeHacksConfig,
    judges: Judges,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Parquet file for the probes and their scores.", callback=writable)
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Parquet file for the shares accepted.", callback=writable)
    ] = None,
    probes: Annotated[
        str | None, typer.Option("--probes", help="TOML file with your own probes; see data/hacks.toml for the form.")
    ] = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Try judges on responses that deserve no reward: nothing, a colon, the constraint echoed, a claim, an injection.

    A policy finds in days what a judge lets pass; this takes a minute. Each share accepted has a 95% bootstrap interval over
    queries. What `tjd train-judge --harden` trains on has other texts and other queries, so this stays a test.
    """
    need("probe-hacks", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.judge import ensemble, hacks
    from tjd.stages import probe_hacks as stage

    to = answers_to(out, metrics)
    tables.require_other_file(table, out, metrics)
    known = hacks.load(probes)
    source = tables.open_table(table, "foreign", need=stage.NEED)
    tables.require_constraints(source)
    manifest = ensemble.read_manifest(judges)
    judge = ensemble.load(judges, dtype=config.dtype)
    rows = list(rows_of(source, where, limit))
    with progress() as bars:
        score = with_bar(judge.score, "probe-hacks", bars)
        found = stage.probe_hacks(
            rows, score, judge.seats, known, config, judge=manifest["layout"], split_seed=manifest["config"]["seed"]
        )
    digests = {"table": source.digest, "judges": tables.file_digest(judges / ensemble.MANIFEST)}
    digests |= {"probes": tables.text_id(*(probe.text for probe in known))}
    provenance = tables.provenance("probe-hacks", as_dict(config) | {"where": where, "limit": limit}, digests, {})
    if out:
        tables.write_rows(found.probes, out, stage.PROBES, provenance)
    if metrics:
        tables.write_rows(found.metrics, metrics, tables.METRICS, provenance)
    _print_probes(found.metrics, to, as_json=as_json)
    stage.require_few(found.metrics, config.max_false_accept)


def _folder(out: Path | None) -> Path | None:
    return out if out is None else writable_folder(out)


@app.command("transfer", rich_help_panel="Judges")
@flags
def transfer_command(
    labels: Annotated[str, typer.Argument(help="Labels, or with --rl instructions: Parquet, JSONL, CSV or `-`.")],
    judges: Annotated[
        Path,
        typer.Option(
            "--judges",
            "-j",
            help="Specialists, one per category; trained from these labels if the folder has none.",
            show_default=False,
        ),
    ],
    config: TransferConfig,
    training: TrainJudgeConfig,
    policies: TransferRlConfig,
    rl: Annotated[
        Path | None,
        typer.Option("--rl", help="Folder of a GRPO run per category, to be compared instead.", callback=_folder),
    ] = None,
    out: MetricsOut = None,
    figure: Figure = None,
    taxonomy: Taxonomy = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Find out which specialists are worth having: each one judges every category, and the fewest that suffice are named.

    The matrix has a row per category trained on and a column per category tested on (the paper's Figure 5, for judges). Of
    every number of specialists, where there are at most 12, the best set is searched exactly: each category takes its best
    specialist in the set, chosen on validation; what is shown is measured on the test split. All categories with both
    verdicts are taken, or those of `--category`. The flags of training count where specialists are trained.

    `--rl FOLDER` does as the paper did: a policy is trained on the instructions of each category alone (`tjd rl`, resumed
    where it was stopped), each responds to held-out instructions of all categories, and the matrix has the soft reward that
    it gained over the base policy.
    """
    if rl is not None:
        _transfer_policies(labels, judges, rl, policies, training, out, figure, where, limit, as_json=as_json)
        return
    need("transfer", "train", "torch", "transformers", "peft")
    from tjd import tables
    from tjd.judge import ensemble
    from tjd.stages import train_judge
    from tjd.stages import transfer as stage

    if figure:
        require_figure("transfer", figure)
    writable_folder(judges)
    tables.require_other_file(labels, out)
    table = tables.open_table(labels, "labels", need=train_judge.NEED, not_null=("query_id", "query", "constraint"))
    wanted = training.category
    rows = [row for row in rows_of(table, where, limit) if not wanted or row["category"] in wanted]
    digest = tables.text_id(table.digest, *where, str(limit), *wanted)
    if not (judges / ensemble.MANIFEST).is_file():
        _train_specialists(judges, rows, training, taxonomy, digest)
    manifest = ensemble.read_manifest(judges)
    shared = [category for category, seat in manifest["categories"].items() if seat["specialist"] != category]
    if shared:
        raise ConfigError(f"{judges} has no specialist of '{shared[0]}' alone; train it with --layout 3-for-3")
    judge = ensemble.load(judges, dtype=training.dtype)
    split_seed = manifest["config"]["seed"]
    warn_of_leaks(ensemble.count_trained_on(judges, rows, "test", split_seed), manifest["layout"])
    with progress() as bars:
        names = list(manifest["categories"])
        specialists = {name: with_bar(_as_if(judge.score, name), name, bars) for name in names}
        found = stage.transfer(rows, specialists, config, split_seed=split_seed)
    inputs = {"labels": table.digest, "judges": tables.file_digest(judges / ensemble.MANIFEST)}
    if out:
        settings = as_dict(config) | {"category": list(wanted), "where": where, "limit": limit}
        source = tables.provenance("transfer", settings, inputs, {})
        tables.write_rows(found.metrics, out, tables.METRICS, source)
    if figure:
        from tjd import figures

        values = {
            (row["judge"], row["category"]): row["value"] for row in found.metrics if row["metric"] == config.metric
        }
        title = f"{METRIC_NAMES[config.metric]} on the test split"
        figures.heat_map(values, figure, title=title, rows="trained on", columns="tested on")
    _print_transfer(found, config, answers_to(out), as_json=as_json)


def _transfer_policies(
    instructions: str,
    judges: Path,
    runs: Path,
    config: TransferRlConfig,
    training: TrainJudgeConfig,
    out: str | None,
    figure: Path | None,
    where: list[str],
    limit: int,
    *,
    as_json: bool,
) -> None:
    """The same question, put to policies."""
    need("transfer --rl", "rl", "torch", "transformers", "peft", "trl", "datasets")
    from tjd import tables
    from tjd.commands.transfer_rl import print_gains, transfer_by_rl
    from tjd.stages.transfer_rl import GAIN

    to = answers_to(out)
    tables.require_other_file(instructions, out)
    if figure:
        require_figure("transfer", figure)
    known = ("instruction_id", "query_id", "query", "instruction", "constraints")
    table = tables.open_table(instructions, "instructions", need=known)
    rows = list(rows_of(table, where, limit))
    chosen = {"category": list(training.category), "where": where, "limit": limit}
    metrics, source = transfer_by_rl(runs, table, rows, judges, config, chosen)
    if out:
        tables.write_rows(metrics, out, tables.METRICS, source)
    if figure:
        from tjd import figures

        values = {(row["judge"], row["category"]): row["value"] for row in metrics if row["metric"] == GAIN}
        title = "Soft reward gained over the base policy"
        figures.heat_map(values, figure, title=title, rows="trained on", columns="tested on", middle=0.0)
    print_gains(metrics, to, as_json=as_json)


def _train_specialists(
    out: Path, rows: "Sequence[Row]", config: TrainJudgeConfig, taxonomy: str | None, digest: str
) -> None:
    """One specialist per category; by default of every category that has enough to be tested too."""
    from tjd import taxonomy as categories
    from tjd.judge import ensemble
    from tjd.splits import SPLITS
    from tjd.stages import train_judge, transfer

    require_used(config)
    if config.layout != "3-for-3":
        raise ConfigError(
            f"tjd transfer trains a specialist per category: --layout must be 3-for-3, not {config.layout}"
        )
    chosen = config.category or tuple(transfer.categories_to_test(rows, config.seed, SPLITS))
    if not chosen:
        raise DataError("no category has rows of both verdicts in the train, validation and test split; label more")
    say(f"transfer: trains {len(chosen)} specialists ({', '.join(chosen)}) -> {out}")
    prompt = ensemble.load_prompt(config.prompt)
    config = replace(config, category=chosen)
    known = categories.load(taxonomy)
    with progress() as bars:
        told = training_bars(bars)
        manifest = train_judge.train_judge(rows, known, prompt, config, out, data_digest=digest, on_step=told)
    (out / "card.md").write_text(train_judge.card(manifest), encoding="utf-8")


def _as_if(score: "Scorer", category: str) -> "Scorer":
    """Score rows of any category with the specialist of this one."""
    return lambda rows: score([{**row, "category": category} for row in rows])


def _print_transfer(found: "Transfer", config: TransferConfig, to: IO[str], *, as_json: bool) -> None:
    """The matrix, then the best set of every size, and which is the smallest that reaches the target."""
    from rich.table import Table as Grid

    from tjd.metrics import plain
    from tjd.stages.transfer import MOST_SEARCHED, smallest

    if as_json:
        best = [asdict(each) | {"test": plain(each.test)} for each in found.best]
        print(json.dumps({"metrics": found.metrics, "best": best}), file=to)
        return
    name = METRIC_NAMES[config.metric]
    cells = {(row["judge"], row["category"]): row for row in found.metrics if row["metric"] == config.metric}
    trained, tested = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    columns: dict[str, str] = {}
    for category in tested:
        some = max((cells[row, category] for row in trained), key=lambda row: row["n"])
        share = "-" if some["prevalence"] is None else f"{some['prevalence']:.2f}"
        columns[category] = f"{category}\nn = {some['n']}, prevalence {share}"
    lines = [((row,), {told: interval(cells[row, c]) for c, told in columns.items()}) for row in trained]
    print_numbers(f"{name} on the test split (95% bootstrap interval over queries)", ("trained on",), lines, to)
    if not found.best:
        say(f"{len(trained)} specialists are too many to search every set of; at most {MOST_SEARCHED} are")
        return
    sets = Grid(title=f"The best set of every size, by the {name} of its worst category")
    for column in ("specialists", "validation (chosen by)", "test"):
        sets.add_column(column, justify="left" if column == "specialists" else "right")
    for each in found.best:
        sets.add_row(" + ".join(each.specialists), f"{each.validation:.3f}", interval(plain(each.test)))
    print_grid(sets, to)
    least = smallest(found.best)
    if least is None:
        say(f"no set of these specialists reaches {config.target:g} on every category (on validation)")
    else:
        judged = ", ".join(f"{category} by {name}" for category, name in least.assigned.items())
        say(
            f"the smallest set that reaches {config.target:g} on validation: {' + '.join(least.specialists)} ({judged})"
        )


def _print_probes(metrics: "Sequence[Row]", to: IO[str], *, as_json: bool) -> None:
    """The share accepted, and of how many: a line per probe, a column per category."""
    if as_json:
        print(json.dumps(metrics), file=to)
        return
    cells = {(row["metric"].partition("/")[2], row["category"]): row for row in metrics}
    names, categories = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))

    def shown(row: "Row") -> str:
        return interval(row).replace("\n", f" of {row['n']}\n")

    ordered = [*names[1:], names[0]]  # all together come last
    lines = [((name or "all",), {c: shown(cells[name, c]) for c in categories}) for name in ordered]
    title = "Share of worthless responses that are accepted (95% bootstrap interval over queries)"
    print_numbers(title, ("probe",), lines, to)
