"""Commands about benchmarks: import their prompts, and evaluate models on them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.common import AsJson, DryRun, Limit, MetricsOut, Out, open_models, tell_plan, used, writable
from tjd.commands.data import import_app
from tjd.commands.terminal import (
    Line,
    advancing,
    answers_to,
    counted,
    needed,
    print_numbers,
    progress,
    require_known,
    room,
    say,
)
from tjd.config import BackendConfig, EvaluateConfig, Subset, as_dict
from tjd.errors import BackendError, ConfigError, DataError
from tjd.flags import flags

if TYPE_CHECKING:
    from rich.progress import Progress

    from tjd.benchmarks.responses import Responses
    from tjd.tables import Row
    from tjd.teacher import Again, Ask, Completion, Request, Teacher

app = typer.Typer()

# the keys of tjd.benchmarks.BENCHMARKS, which is not imported for --help
NAMES = {
    "ifeval": "IFEval",
    "ifbench": "IFBench",
    "multi-if": "Multi-IF",
    "followbench": "FollowBench",
    "cfbench": "CFBench",
}
KINDS = {"hard": "rule", "soft": "soft"}


def _importer(name: str) -> Callable[..., None]:
    def import_command(
        source: Annotated[str, typer.Argument(help="A file, a folder that holds it, or a name on the hub.")],
        out: Out,
        subset: Annotated[
            Subset, typer.Option(help="Constraints to keep: those code checks, those a judge must, or both.")
        ] = "mix",
        limit: Limit = 0,
    ) -> None:
        from tjd import tables
        from tjd.benchmarks import BENCHMARKS, sources

        tables.require_other_file(source, out)
        rows = BENCHMARKS[name].read(source)
        kept = _subset(rows, subset)[: limit or None]
        if not kept:
            raise ConfigError(f"--subset {subset}: {name} has no such constraints; leave it out")
        config = {"subset": subset, "limit": limit}
        origin = tables.provenance(f"import {name}", config, {"source": sources.source_digest(source)}, {})
        n = tables.write_rows(kept, out, tables.BENCHMARK_INSTRUCTIONS, origin)
        say(f"import {name}: {n} of {len(rows)} rows -> {'standard output' if out == tables.STDIO else out}")

    return import_command


for _name, _title in NAMES.items():
    import_app.command(_name, help=f"Bring in the prompts of {_title}, with their constraints, as instructions.")(
        _importer(_name)
    )


@app.command("evaluate", rich_help_panel="Benchmarks")
@flags
def evaluate_command(
    config: EvaluateConfig,
    backend: BackendConfig,
    benchmark: Annotated[
        list[str],
        typer.Option("--benchmark", "-b", help=f"NAME=SOURCE, or NAME with --data; repeatable: {', '.join(NAMES)}."),
    ] = [],  # noqa: B006
    data: Annotated[
        Path | None, typer.Option(help="Folder with a folder per benchmark; all that are there, unless --benchmark.")
    ] = None,
    out: MetricsOut = None,
    responses: Annotated[
        str | None, typer.Option(help="Parquet file for every response, judgement and verdict.", callback=writable)
    ] = None,
    limit: Annotated[
        int, typer.Option(help="A quick look: about so many prompts per benchmark, spread over it; 0 takes all.", min=0)
    ] = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate models on IFEval, IFBench, Multi-IF, FollowBench and CFBench, side by side.

    A model is asked (greedily, unless --temperature says otherwise), or is a file of responses: JSONL or Parquet with a
    `response` and a `prompt` or `instruction_id` a row; what --responses wrote is one. Rules are checked by code; where
    a judge is needed, its unreadable answers are null and counted. A killed run goes on where it stopped.
    """
    from tjd import prompts, tables
    from tjd.benchmarks import BENCHMARKS, sources
    from tjd.stages import evaluate as stage

    to = answers_to(out, responses)
    for path in config.model:
        tables.require_other_file(path, out, responses)
    named = _sources(benchmark, data)
    every = {name: BENCHMARKS[name].read(source) for name, source in named.items()}
    rows = [row for prompts_of in every.values() for row in stage.take(prompts_of, limit)]
    judgings = {name: BENCHMARKS[name].judging for name in named}
    templates = {name: prompts.load(j.prompt, j.variables) for name, j in judgings.items() if j is not None}
    again = prompts.load("again.v1", ["reason"])
    if templates and not config.judge:
        alone = [name for name in named if name not in templates]
        hint = f"; or evaluate on what code checks alone: {' '.join(f'-b {name}' for name in alone)}" if alone else ""
        told = f"--judge MODEL is missing: it decides what code cannot check of {' and '.join(templates)}"
        raise ConfigError(told + hint)
    with ExitStack() as stack:
        bars = stack.enter_context(progress())
        files = [name for name in config.model if Path(name).is_file()]
        names = [name for name in config.model if name not in files]
        asked = open_models("evaluate", [*names, *([config.judge] if templates else [])], backend, dry_run=dry_run)
        every_model = list(asked)
        judge = asked.pop() if templates else None
        models, read = _models(config, asked, files, every, rows, bars, dry_run=dry_run)
        if judge is not None:
            stack.enter_context(closing(judge))
            if config.judge == "hf:embedded" or config.judge.startswith("recorded:"):
                say(
                    f"note: figures that rest on {judge.name} as the judge mean nothing; it is for trying out", "yellow"
                )
        decides = None if judge is None else (judge.name, _with_bar(judge.ask, f"judge {judge.name}", bars))
        found = stage.evaluate(rows, models, decides, templates, again, config)
    if dry_run:
        return tell_plan([], every_model, out)
    metrics = stage.score(found, config.seed)

    settings = as_dict(config) | {"model": list(dict.fromkeys(row["model"] for row in found)), "limit": limit}
    settings["judge"] = judge.name if judge else ""
    digests = {name: sources.source_digest(source) for name, source in named.items()} | read
    digests |= {model.name: model.digest for model in every_model if model.digest}
    origin = tables.provenance("evaluate", settings, digests, {p.name: p.digest for p in (*templates.values(), again)})
    for path, table, schema in ((responses, found, tables.EVALUATIONS), (out, metrics, tables.BENCHMARK_SCORES)):
        if path:
            tables.write_rows(table, path, schema, origin)
    told = [f"{'judge ' if model is judge else ''}{model.name}: {used(model.usage)}" for model in every_model]
    say("; ".join([f"evaluate: {counted(len(found), 'response')}", *told]))
    _print_scores(metrics, to, as_json=as_json)
    _require_valid(found, config.max_invalid)


def _subset(rows: "Sequence[Row]", subset: Subset) -> "list[Row]":
    """Keep the constraints of a kind, and the rows that have any."""
    if subset == "mix":
        return list(rows)
    kept = [row | {"constraints": [c for c in row["constraints"] if c["kind"] == KINDS[subset]]} for row in rows]
    return [row for row in kept if row["constraints"]]


def _sources(benchmark: Sequence[str], data: Path | None) -> dict[str, str]:
    """Benchmark to where its data is.

    Raises:
        DataError: There is no folder `data`.
        ConfigError: Nothing is asked for, a name is unknown, or its data is not said; the message tells how to get it.
    """
    from tjd.benchmarks import BENCHMARKS

    if data is not None and not data.is_dir():
        raise DataError(f"there is no folder {data}; give one with a folder per benchmark: {', '.join(NAMES)}")
    named: dict[str, str] = {}
    for entry in benchmark:
        name, given, source = entry.partition("=")
        require_known(name, NAMES, "--benchmark")
        if not given and (data is None or not (data / name).is_dir()):
            where = f"{data} has no folder {name}" if data else f"say where: --benchmark {name}=SOURCE"
            raise ConfigError(f"--benchmark {name}: {where}; {BENCHMARKS[name].howto}")
        named[name] = source if given else str(data / name) if data else ""
    if not named and data is not None:
        named = {name: str(data / name) for name in NAMES if (data / name).is_dir()}
        for name in NAMES.keys() - named.keys():
            say(f"note: {name} is left out, {data} has no folder {name}; {BENCHMARKS[name].howto}")
    if not named:
        raise ConfigError("nothing to evaluate on: give --benchmark NAME=SOURCE, or --data FOLDER")
    return named


def _models(
    config: EvaluateConfig,
    asked: "Sequence[Teacher]",
    files: Sequence[str],
    every: "Mapping[str, Sequence[Row]]",
    rows: "Sequence[Row]",
    bars: "Progress",
    *,
    dry_run: bool,
) -> "tuple[Iterator[tuple[str, Any]], dict[str, str]]":
    """Who answers, with how: those that are asked, then what files of responses hold; and the digests of the files."""
    from tjd import tables
    from tjd.benchmarks import responses
    from tjd.stages import evaluate as stage

    recorded: list[Responses] = []
    for path in files:
        entries = responses.read(path, list(every))
        _tell_coverage(path, entries, every, rows)
        recorded += entries
    names = [*(model.name for model in asked), *(entry.model for entry in recorded)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name}; rename a file or folder, or leave one out")

    def in_turn() -> Iterator[tuple[str, Any]]:
        for model in asked:
            with closing(model):
                ask = _with_bar(model.ask, model.name, bars)
                yield model.name, stage.live(stage.foreseen(ask) if dry_run else ask, config)
        yield from ((entry.model, stage.recorded(entry)) for entry in recorded)

    return in_turn(), {f"responses {Path(path).name}": tables.file_digest(path) for path in files}


def _tell_coverage(
    path: str, entries: "Sequence[Responses]", every: "Mapping[str, Sequence[Row]]", rows: "Sequence[Row]"
) -> None:
    """Warn where a file of responses and the prompts are not the same; raise if they have nothing in common."""
    prompts = [row for each in every.values() for row in each]
    strangers = {entry.model: entry.strangers(prompts) for entry in entries}
    n_responses = sum(len(entry.names) for entry in entries)
    if sum(strangers.values()) == n_responses:
        raise DataError(
            f"none of the {counted(n_responses, 'response')} of {path} belongs to a prompt of {' or '.join(every)}; "
            "is it for another benchmark?"
        )
    for entry in entries:
        n_found = sum(entry.find(row)[0] is not None for row in rows)
        who, n_strange = path if len(entries) == 1 else f"{entry.model} in {path}", strangers[entry.model]
        if n_found < len(rows) or n_strange:
            told = f"{n_found} of {len(rows)} prompts have a response"
            if n_strange:
                match = "matches" if n_strange == 1 else "match"
                told += f"; {counted(n_strange, 'response')} of {who} {match} no prompt"
            say(f"warning: {who}: {told}", style="yellow")


def _with_bar(ask: "Ask", name: str, bars: "Progress") -> "Ask":
    def shown(requests: "Any", again: "Again | None" = None) -> "Iterator[Completion]":
        listed: Sequence[Request] = list(requests)
        return advancing(ask(listed, again), bars, bars.add_task(name, total=len(listed)))

    return shown


def _print_scores(scores: "Sequence[Row]", to: IO[str], *, as_json: bool) -> None:
    """A line per figure, a column per model; what is finer than a turn, level or split is in the file alone."""
    if as_json:
        print(json.dumps(scores), file=to)
        return
    cells_of: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in scores:
        if row["group"].startswith(("all", "turn=", "level=", "split=", "weighted")):
            cells_of.setdefault((row["benchmark"], row["metric"], row["group"]), {})[row["model"]] = row

    def lines(between: str) -> list[Line | None]:
        out: list[Line | None] = []
        previous = None
        for (benchmark, metric, group), cells in cells_of.items():
            out += [None] if previous not in (None, benchmark) else []
            names = ("" if previous == benchmark else benchmark, metric, group)
            out.append((names, {model: _cell(row, between) for model, row in cells.items()}))
            previous = benchmark
        return out

    head = ("benchmark", "metric", "of")
    between = " " if needed(head, lines(" ")) <= room(to) else "\n"
    print_numbers("Scores in percent, CSL in levels (95% bootstrap interval over prompts)", head, lines(between), to)


def _cell(row: "Mapping[str, Any]", between: str = " ") -> str:
    n = f"n {row['n']}" + (f", {row['n_invalid']} null" if row["n_invalid"] else "")
    if row["value"] is None:
        return f"-{between}({n})"
    scale, digits = (1, 2) if row["metric"] == "CSL" else (100, 1)
    bounds = [row[name] for name in ("low", "high")]
    interval = ", ".join("-" if bound is None else f"{scale * bound:.{digits}f}" for bound in bounds)
    return between.join([f"{scale * row['value']:.2f}", f"[{interval}]", f"({n})"])


def _require_valid(rows: "Sequence[Row]", max_invalid: float) -> None:
    """Raise if too many prompts lack a verdict; the files are written already."""
    reasons = [next((str(v["error"]) for v in row["verdicts"] if v["followed"] is None), None) for row in rows]
    null = [reason for reason in reasons if reason is not None]
    if len(null) > max_invalid * len(rows):
        common = max(set(null), key=null.count)
        raise BackendError(
            f"{len(null)} of {len(rows)} prompts lack a verdict (mostly: {common[:120]}); they are left out of the "
            "metrics, see 'verdicts' in the file of --responses, or raise --max-invalid"
        )
