"""What a person sees: lines, bars and tables. Answers go to standard output, everything else to standard error."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, TYPE_CHECKING, Any, TypeVar

from tjd.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress


T = TypeVar("T")

WIDE = 160  # columns of a table that goes into a file or a pipe


def say(text: str, style: str = "") -> None:
    """One line on standard error."""
    from rich.console import Console

    Console(stderr=True).print(text, style=style or None, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress() -> "Iterator[Progress]":
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
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        add = bars.add_task
        bars.add_task = lambda *args, **kwargs: add(*args, **{"note": "", **kwargs})  # type: ignore[method-assign]
        yield bars


def advancing(items: Iterable[T], bars: "Progress", task: Any) -> Iterator[T]:
    """Pass items on, moving a bar."""
    for item in items:
        yield item
        bars.advance(task)


def require_known(name: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError for a name that is not known, naming the nearest."""
    names = list(known)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        raise ConfigError(f"unknown {what}: '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))


def answers_to(*outs: str | None) -> IO[str]:
    """Where an answer is printed: standard output, or standard error where that carries one of the tables (`-`)."""
    if outs.count("-") > 1:
        raise ConfigError("standard output (`-`) takes one table; write the other to a file")
    return sys.stderr if "-" in outs else sys.stdout


def print_grid(grid: Any, to: IO[str]) -> None:
    """A table of rich, wide enough where it goes into a file or a pipe; cells are text, whatever brackets they hold."""
    from rich.console import Console

    Console(file=to, width=None if to.isatty() else WIDE, markup=False, emoji=False).print(grid)


def interval(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval, where there is one, below it; a dash where it is null."""
    if row["value"] is None:
        return "-"
    shown = f"{row['value']:{'+' if signed else ''}.3f}"
    if row["low"] is None:
        return shown
    return f"{shown}\n[{row['low']:.2f}, {row['high']:.2f}]"
