"""What commands share: their common options, and how they read rows, open models and write tables."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tjd.commands.terminal import answers_to, counted, print_numbers, progress, say
from tjd.config import TAXONOMY_HELP, BackendConfig, Shard, as_dict
from tjd.errors import BackendError, BudgetError, ConfigError, DataError
from tjd.extras import need

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.progress import Progress

    from tjd.checkers import Checker
    from tjd.prompts import Prompt
    from tjd.tables import Row, Table
    from tjd.teacher import Teacher, Usage
    from tjd.teacher.budget import Budget


def writable(out: Any) -> Any:
    """Check a file to write as the command line is read: before any work is done or paid for."""
    from tjd import tables

    if out is not None:
        tables.require_writable(str(out))
    return out


def writable_folder(out: Path) -> Path:
    """Check a folder to write."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder")
    return out


Out = Annotated[
    str,
    typer.Option("--out", "-o", help="Parquet file to write, or `-`.", show_default=False, callback=writable),
]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False, callback=writable_folder)
]
Where = Annotated[
    list[str],
    typer.Option("--where", help="Keep rows with COLUMN=VALUE or COLUMN!=VALUE; repeatable.", metavar="<str>"),
]
Limit = Annotated[int, typer.Option("--limit", help="Take only the first rows; 0 takes all.", min=0, metavar="n")]
ShardOption = Annotated[
    Shard | None,
    typer.Option(
        "--shard", help="Work on part i of n alone; `tjd concat` joins the parts.", metavar="i/n", parser=Shard.parse
    ),
]
Taxonomy = Annotated[str | None, typer.Option("--taxonomy", help=TAXONOMY_HELP)]
Judges = Annotated[
    Path, typer.Option("--judges", "-j", help="Folder that `tjd train-judge` wrote.", show_default=False)
]
Figure = Annotated[Path | None, typer.Option("--figure", help="Draw it too: a file that ends in .svg, .png or .pdf.")]
MetricsOut = Annotated[str | None, typer.Option("--out", "-o", help="Parquet file for the metrics.", callback=writable)]
Checkers = Annotated[
    Path | None, typer.Option("--checkers", help="Python file with checkers of your own: CHECKERS = {name: function}.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Tell what would be asked and what it would cost; ask and write nothing.")
]
FILES = (".parquet", ".jsonl", ".json", ".csv", ".gguf", ".safetensors")  # how the names of models do not end
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Written:
    """What became of a table that was written: how many rows, how many null, and where."""

    def __init__(self, out: str, null: str | None, asked: "Sequence[Teacher]" = ()) -> None:
        from tjd.teacher.remote import Remote

        self.out, self.null = out, null
        self.asked = bool(asked)
        self.remote = any(isinstance(model, Remote) for model in asked)  # servers, whose answers are kept
        self.n_rows, self.n_null = 0, 0
        self.n_votes, self.n_lost, self.n_short = 1, 0, 0  # asked for a row, unusable, and rows that lack some
        self.cost_usd: float | None = 0.0  # of the rows, whenever they were paid for; null if one is unknown
        self.lost: dict[str, int] = {}
        self.reasons: dict[str, int] = {}

    def count(self, rows: "Iterable[Row]") -> "Iterator[Row]":
        """Pass rows on, counting."""
        from tjd.stages.label import LOST

        for row in rows:
            self.n_rows += 1
            cost_usd = row.get("cost_usd")
            self.cost_usd = None if self.cost_usd is None or cost_usd is None else self.cost_usd + cost_usd
            if self.null is not None and row.get(self.null) is None:
                self.n_null += 1
                reason = str(row.get("error"))[:120]
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
            votes = (self.asked and row.get("votes")) or []  # else they were cast before
            if n_lost := votes.count(None):
                self.n_lost += n_lost
                self.n_short += row.get("followed") is not None
                reason = str(row.get("error")).rpartition(LOST)[2][:120]  # of the votes, not of a tie that they led to
                self.lost[reason] = self.lost.get(reason, 0) + n_lost
            self.n_votes = max(self.n_votes, len(votes))
            yield row

    def told_of_votes(self) -> list[str]:
        """What became of votes where there are several a row; one that failed need not cost a verdict."""
        if self.n_votes == 1 or not self.n_lost:
            return []
        told = f"{counted(self.n_lost, 'vote')} failed (mostly: {max(self.lost, key=lambda reason: self.lost[reason])})"
        verdicts = "every row has a verdict" if not self.n_null else f"{self.n_rows - self.n_null} rows have a verdict"
        return [f"{told}; {verdicts}, {self.n_short} of them with fewer than {self.n_votes} votes"]

    def require_valid(self, max_invalid: float) -> None:
        """Raise if too many rows are null; they are written already."""
        if self.n_null > max_invalid * self.n_rows:
            common = max(self.reasons, key=lambda reason: self.reasons[reason])
            from tjd.teacher.recorded import ADVICE, MISSING

            of_out = "" if self.out == "-" else f" of {self.out}"
            advice = f"{ADVICE}; " if MISSING in common else ""
            if self.remote:
                advice += "run it again with --retry-unusable to ask for these anew; "
            raise BackendError(
                f"{self.n_null} of {counted(self.n_rows, 'row')} have no {self.null} (mostly: {common}); "
                f"{advice}see the column 'error'{of_out}, or raise --max-invalid"
            )


class Models(list["Teacher"]):
    """Models to ask, and what they may spend together."""

    def __init__(self, models: "Iterable[Teacher]", budget: "Budget") -> None:
        super().__init__(models)
        self.budget = budget


class Waiting:
    """What models are waiting for, whenever a bar is drawn."""

    def __init__(self, models: "Sequence[Teacher]") -> None:
        self._models = models

    def __str__(self) -> str:
        return "; ".join(model.usage.waiting for model in self._models if model.usage.waiting)


def rows_of(
    table: "Table", where: Sequence[str], limit: int, shard: Shard | None = None, *, block: int = 1
) -> "Iterator[Row]":
    """The rows that `--where` keeps, as many as `--limit` allows, and of those `--shard`; to keep none is an error."""
    from tjd import shards, tables

    if shard is not None:
        return shards.part_of(table, where, limit, shard, block=block).rows()
    rows = tables.kept(table, where)
    return islice(rows, limit) if limit else rows


def write(
    rows: "Iterable[Row]",
    out: str,
    schema: "pa.Schema",
    stage: str,
    config: Any,
    inputs: "Mapping[str, Table]",
    prompts: "Sequence[Prompt]" = (),
    models: Models | None = None,
    *,
    digests: Mapping[str, str] | None = None,
    chosen: tuple[Sequence[str], int] = ((), 0),
    shard: Shard | None = None,
    null: str | None = None,
    total: int | None = None,
) -> Written:
    """Write a table with its provenance and say in one line what it holds.

    Args:
        rows: What to write.
        out: Where.
        schema: Of the rows.
        stage: The command.
        config: Its settings.
        inputs: Tables it read.
        prompts: Prompts it used.
        models: Who is asked; closed at the end.
        digests: Of what else it read.
        chosen: `--where` and `--limit`.
        shard: `--shard`.
        null: The column that is null where a row failed.
        total: How many rows there will be, where known.

    Raises:
        BudgetError: `--max-cost` is reached; nothing is written, and the same command goes on from the cache.
    """
    from tjd import tables

    asked = models or ()
    source = provenance(stage, config, inputs, prompts, asked, digests=digests, chosen=chosen)
    written = Written(out, null, asked)
    if shard is not None:
        source |= {"shard": {"number": shard.number, "of": shard.of}}  # beside the config: `tjd concat` takes it out
        total = total and total // shard.of
    with ExitStack() as stack:
        for model in asked:
            stack.enter_context(closing(model))  # calls in flight are paid: they may still arrive and be kept
        bars = stack.enter_context(progress())
        task = bars.add_task(stage, total=total)
        waiting = Waiting(asked)

        def shown() -> "Iterator[Row]":
            for row in written.count(rows):
                yield row
                note = money(written, total, models, models.budget) if models and not bars.disable else ""
                bars.update(task, advance=1, note=note or waiting)

        bars.update(task, note=waiting)
        try:
            tables.write_rows(shown(), out, schema, source)
        except BudgetError as exc:
            done = f"{counted(written.n_rows, 'row')} done"
            if total and shard is None:  # of a part the total is an estimate, for the bar alone
                done = f"{written.n_rows} of {total} rows are done, {total - written.n_rows} remain"
            raise BudgetError(f"{stage}: {done}; {exc}") from exc
    told = [counted(written.n_rows, "row")]
    if written.n_null:
        common = max(written.reasons, key=lambda reason: written.reasons[reason])
        told.append(f"{written.n_null} without {null} (mostly: {common})")
    votes = written.told_of_votes()
    several = len(asked) > 1
    told += [(f"{model.name}: " if several else "") + used(model.usage, failed=not votes) for model in asked] + votes
    part = f" (part {shard.number} of {shard.of})" if shard else ""
    say(f"{stage}{part}: {', '.join(told)} -> {'standard output' if out == tables.STDIO else out}")
    return written


def provenance(
    stage: str,
    config: Any,
    inputs: "Mapping[str, Table]",
    prompts: "Sequence[Prompt]",
    models: "Sequence[Teacher]",
    *,
    digests: Mapping[str, str] | None = None,
    chosen: tuple[Sequence[str], int] = ((), 0),
) -> "Row":
    """What the footer of a table says, with the public names of models; see `write`."""
    from tjd import tables

    settings = dict(config) if isinstance(config, Mapping) else as_dict(config)
    settings |= {"where": list(chosen[0]), "limit": chosen[1]}
    read = {name: table.digest for name, table in inputs.items()} | dict(digests or {})
    if models:
        names = [model.name for model in models]
        if "teacher" in settings:
            settings["teacher"] = names if isinstance(settings["teacher"], list) else names[0]
        if "model" in settings:
            settings["model"] = names
        read |= {model.name: model.digest for model in models if model.digest}
    return tables.provenance(stage, settings, read, {prompt.name: prompt.digest for prompt in prompts})


def require_figure(command: str, path: Path) -> None:
    """Raise unless a figure can be drawn, before any work is done."""
    need(f"{command} --figure", "report", "matplotlib")
    from tjd import figures

    figures.require_format(path)


def warn_of_leaks(n_leaked: int, name: str) -> None:
    """Tell of rows to measure on whose queries a judge was trained on."""
    if n_leaked:
        say(f"warning: {n_leaked} of these rows are of queries that {name} was trained on", style="yellow")


def with_bar(
    score: Callable[[Sequence[Any]], Sequence[Any]], name: str, bars: "Progress", slice_rows: int = 512
) -> Callable[[Sequence[Any]], list[Any]]:
    """Score in slices, so that the bar moves."""

    def scored(rows: Sequence[Any]) -> list[Any]:
        task = bars.add_task(name, total=len(rows))
        out: list[Any] = []
        for start in range(0, len(rows), slice_rows):
            out += score(rows[start : start + slice_rows])
            bars.update(task, completed=len(out))
        return out

    return scored


def open_models(
    command: str,
    names: Sequence[str],
    backend: BackendConfig,
    *,
    dry_run: bool = False,
) -> Models:
    """Open all models that a command asks (in a dry run, plans for), after checking names, packages and prices."""
    for name in names:
        _require_model(name)
    if any(name.startswith("hf:") for name in names):
        need(command, "train", "torch", "transformers")
    if any(not name.startswith(("hf:", "recorded:")) for name in names):
        need(command, "teacher", "litellm")
    from tjd.backbone import cache_folder
    from tjd.teacher import open_teacher
    from tjd.teacher.budget import Budget, require_priced
    from tjd.teacher.plan import Planned
    from tjd.teacher.remote import Remote

    require_priced(backend, names)
    budget = Budget(backend.max_cost)
    models = [open_teacher(name, backend, cache_folder(), budget) for name in names]
    if dry_run:
        renews = [backend.retry_unusable and isinstance(model, Remote) for model in models]
        models = [Planned(model, retry_unusable=renew) for model, renew in zip(models, renews, strict=True)]
    return Models(models, budget)


def _require_model(name: str) -> None:
    """Raise for a path where the name of a model is wanted, before a package that takes seconds to import is."""
    if name.startswith(("hf:", "recorded:")):
        return
    if Path(name).is_file():
        raise ConfigError(f"'{name}' is a file, not a model; did you mean 'recorded:{name}'?")
    if Path(name).is_dir():
        raise ConfigError(f"'{name}' is a folder; did you mean 'hf:{name}'?")
    if name.endswith(FILES):
        raise ConfigError(f"{name} is not a file, and no model; check the path, or write provider/model, hf:NAME")


def own_checkers(path: Path | None) -> "tuple[dict[str, Checker] | None, dict[str, str]]":
    """The checkers of a user's file, and its digest for the provenance."""
    if path is None:
        return None, {}
    from tjd import tables
    from tjd.checkers import load_checkers

    return load_checkers(path), {"checkers": tables.file_digest(path)}


def money(written: Written, total: int | None, models: "Sequence[Teacher]", budget: "Budget") -> str:
    """What is spent, what the whole run will have spent if its rows go on as they did, and what remains of the cap."""
    spent = budget.spent_usd
    if not spent and budget.cap_usd is None:
        return ""
    told = [f"${spent:.4f} spent"]
    if total and written.n_rows and written.cost_usd is not None:
        whole = written.cost_usd / written.n_rows * total - sum(model.usage.saved_usd for model in models)
        told.append(f"${max(whole, spent):.4f} projected")
    if budget.cap_usd is not None:
        told.append(f"${max(budget.cap_usd - spent, 0):.4f} of ${budget.cap_usd:g} left")
    return ", ".join(told)


def tell_plan(rows: "Iterable[object]", models: "Sequence[Teacher]", out: str | None) -> None:
    """Run a stage through with models that are not asked, and print what they would have been asked."""
    from tjd.teacher.plan import Planned

    with ExitStack() as stack:
        for model in models:
            stack.enter_context(closing(model))
        for _ in rows:
            pass
    lines = []
    for model in models:
        assert isinstance(model, Planned)
        totals, likely = model.totals, model.likely_usd
        cells = {
            "calls": str(totals.calls),
            "from the cache": str(model.usage.cached),
            "prompt tokens (about)": str(totals.prompt_tokens),
            "completion tokens (at most)": str(totals.most_tokens),
            "cost (at most)": "price unknown" if totals.most_usd is None else f"${_rounded_up(totals.most_usd):.4f}",
            "cost (likely)": "-" if likely is None else f"${likely:.4f}",
        }
        lines.append(((model.name,), cells))
    print_numbers("Dry run", ("model",), lines, answers_to(out))
    say("nothing was asked or written; answers that have to be asked for again, and failed attempts, come on top")


def _rounded_up(usd: float) -> float:
    """To what is shown of it, so that a cap of what is shown suffices."""
    return math.ceil(usd * 10_000) / 10_000


def used(usage: "Usage", *, failed: bool = True) -> str:
    """What the calls of a model came to."""
    cost = "price unknown" if usage.cost_usd is None else f"${usage.cost_usd:.4f}"
    tokens = f"{usage.prompt_tokens}+{usage.tokens} tokens"
    if usage.untold:
        n_answers = usage.calls - usage.failed
        tokens = "tokens unknown" if usage.untold == n_answers else tokens
        cost = f"cost unknown (the server told no token counts for {usage.untold} of {counted(n_answers, 'answer')})"
    told = f"{usage.calls} calls ({usage.cached} more from the cache), {tokens}, {cost}"
    return told + (f", {usage.failed} failed" if usage.failed and failed else "")
