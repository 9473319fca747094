"""Commands about the policy: rl."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import Checkers, Limit, OutFolder, Where, own_checkers, rows_of
from tjd.commands.terminal import counted, progress, require_known, say
from tjd.config import RL_PRESETS, ProbeHacksConfig, RlConfig
from tjd.errors import ConfigError, DataError
from tjd.extras import need
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from tjd.judge.ensemble import Ensemble
    from tjd.tables import Row

app = typer.Typer()

MOSTLY = 0.5  # of a hack probe; who accepts more gets a warning
GATE_QUERIES = 8  # per category that the hack probes are tried on before training: seconds, not minutes


def _preset(ctx: typer.Context, name: str | None) -> str | None:
    """Make a preset's settings the defaults of this call, so that the config file and flags on the line still win."""
    if name is not None:
        require_known(name, RL_PRESETS, "--preset")
        ctx.default_map = {**RL_PRESETS[name], **(ctx.default_map or {})}
    return name


@app.command("rl", rich_help_panel="Policy")
@flags
def rl_command(
    instructions: Annotated[
        str, typer.Argument(help="Instructions with their constraints: Parquet, JSONL, CSV or `-`.")
    ],
    out: OutFolder,
    config: RlConfig,
    judges: Annotated[
        Path | None,
        typer.Option("--judges", "-j", help="Folder that `tjd train-judge` wrote; rules alone need none."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="`paper`: the settings of its Table 4.", callback=_preset, is_eager=True)
    ] = None,
    category: Annotated[
        list[str],
        typer.Option(
            "--category", "-c", help="Only instructions with soft constraints of these; repeatable.", metavar="<str>"
        ),
    ] = [],  # noqa: B006
    checkers: Checkers = None,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
) -> None:
    """Train a policy with GRPO; the reward is rules plus judges (Eq. 5), null where one of them failed.

    First the judges are tried on worthless responses to a few of the instructions, and what they accept is told. The
    folder holds the policy, `rollouts.parquet` (every response with the reward and advantage that were used) and
    `metrics.parquet`. The same command again goes on from the last checkpoint. A run per `--category`, each evaluated on
    all, is the paper's Figure 5.
    """
    need("rl", "rl", "torch", "transformers", "peft", "trl", "datasets")
    from tjd import tables
    from tjd.checkers import verdict
    from tjd.judge import ensemble
    from tjd.stages import rl as stage

    own, digests = own_checkers(checkers)
    table = tables.open_table(
        instructions, "instructions", need=("instruction_id", "query", "instruction", "constraints")
    )
    digests["instructions"] = tables.text_id(table.digest, *where, str(limit), *category)
    rows = list(rows_of(table, where, limit))
    if category:
        rows = [row for row in rows if _categories(row) and _categories(row) <= set(category)]
        if not rows:
            raise DataError(f"no instruction has soft constraints of {', '.join(category)} alone; see --category")
    if judges is not None:
        ensemble.read_manifest(judges)
        digests["judges"] = tables.file_digest(judges / ensemble.MANIFEST)
    stage.require_startable(config, out, digests)
    if judges is None:
        _require_rules_alone(rows)
        score, covered = (lambda softs: []), rows
    else:
        judge = ensemble.load(judges, device=config.judge_device, dtype=config.dtype, engine=config.engine)
        score, covered = judge.score, [row for row in rows if judge.covers(row["constraints"] or ())]
        try_hacks(judge, covered, config)
    if not covered:
        raise DataError(
            f"none of {counted(len(rows), 'instruction')} has constraints that {judges} cover; see --category"
        )
    if len(covered) < len(rows):
        say(f"rl: {len(rows) - len(covered)} of {len(rows)} instructions left out: no judge covers their category")
    with progress() as bars:
        metrics = stage.rl(
            covered,
            config,
            out,
            score=score,
            check=partial(verdict, checkers=own),
            inputs=digests,
            on_step=reward_lines(bars, config.steps),
        )
    say(f"rl: {counted(len(metrics), 'step')} -> {out} (policy, rollouts.parquet, metrics.parquet)")


def _categories(row: "Row") -> set[str]:
    """The categories of an instruction's soft constraints."""
    return {constraint["category"] for constraint in row["constraints"] or () if constraint["kind"] == "soft"}


def try_hacks(judge: "Ensemble", rows: "Sequence[Row]", config: RlConfig) -> None:
    """Tell which worthless responses the judges would reward, and refuse above `--max-false-accept`."""
    from tjd.judge import hacks
    from tjd.stages import probe_hacks as stage

    if not any(_categories(row) for row in rows):
        return
    sample = ProbeHacksConfig(split="all", per_category=GATE_QUERIES, seed=config.seed)
    probes = hacks.load()
    metrics = stage.probe_hacks(rows, judge.score, judge.seats, probes, sample, judge="judges").metrics
    for row in metrics:
        worst = stage.worst_probe(metrics, row["category"])
        if row["metric"] == stage.METRIC and row["category"] != "all" and worst is not None:
            name = worst["metric"].partition("/")[2]
            told = f"accepts {row['value']:.0%} of the hack probes, {worst['value']:.0%} of '{name}'"
            if worst["value"] > MOSTLY:
                told += ", and a policy may find that out; see train-judge --harden, and --max-false-accept to refuse"
            say(f"rl: the judge of {row['category']} {told}", style="yellow" if worst["value"] > MOSTLY else "")
    tried = {row["metric"].partition("/")[2] for row in metrics}
    untried = sorted({probe.name for probe in probes if probe.family == "test"} - tried)
    if untried:  # those that need answers to other queries
        say(f"rl: instructions have no responses to try {', '.join(untried)} with; tjd probe-hacks LABELS does")
    stage.require_few(metrics, config.max_false_accept)


def _require_rules_alone(rows: "Iterable[Row]") -> None:
    for row in rows:
        if any(constraint["kind"] == "soft" for constraint in row["constraints"] or ()):
            raise ConfigError(
                f"the instruction '{row['instruction_id']}' has soft constraints: give --judges FOLDER to decide them, "
                "or import it with --subset hard"
            )


def reward_lines(bars: "Progress", n_steps: int) -> Callable[[Mapping[str, Any]], None]:
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
