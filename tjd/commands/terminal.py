"""What a person sees: lines, bars and tables. Answers go to standard output, everything else to standard error."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
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


def print_grid(grid: Any) -> None:
    """A table of rich on standard output, wide enough where that is a file or a pipe."""
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else WIDE).print(grid)


def interval(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval, where there is one, below it; a dash where it is null."""
    if row["value"] is None:
        return "-"
    shown = f"{row['value']:{'+' if signed else ''}.3f}"
    if row["low"] is None:
        return shown
    return f"{shown}\n[{row['low']:.2f}, {row['high']:.2f}]"
