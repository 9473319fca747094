"""What a person sees: lines, bars and tables. Answers go to standard output, everything else to standard error."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, TYPE_CHECKING, Any, TypeVar

from tjd.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress


T = TypeVar("T")

WIDE = 160  # columns of a table that goes into a file or a pipe, unless COLUMNS says otherwise
LONGEST_NAME = 24  # characters of a line's name; longer ones are wrapped

Line = tuple[Sequence[str], Mapping[str, str]]
"""A line of a grid of numbers: its names, and its cells by column."""


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
    """Raise ConfigError for a name that is not known, naming the nearest, or all."""
    names = list(known)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        raise ConfigError(
            f"unknown {what}: '{name}'" + (f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}")
        )


def answers_to(*outs: str | None) -> IO[str]:
    """Where an answer is printed: standard output, or standard error where that carries one of the tables (`-`)."""
    if outs.count("-") > 1:
        raise ConfigError("standard output (`-`) takes one table; write the other to a file")
    return sys.stderr if "-" in outs else sys.stdout


def print_grid(grid: Any, to: IO[str] | None = None) -> None:
    """A table of rich on standard output, wide enough where that is a file or a pipe."""
    from rich.console import Console

    Console(file=to, width=room(to), markup=False, emoji=False).print(grid)


def room(to: IO[str] | None = None) -> int:
    """How many columns of text an answer may take."""
    from rich.console import Console

    is_known = (to or sys.stdout).isatty() or os.environ.get("COLUMNS")
    return Console(file=to).width if is_known else WIDE


def needed(head: Sequence[str], lines: Sequence[Line | None]) -> int:
    """How many columns of text `print_numbers` takes for one grid."""
    return 1 + sum(3 + width for width in (*_name_widths(head, lines), *_widths(lines).values()))


def print_numbers(title: str, head: Sequence[str], lines: Sequence[Line | None], to: IO[str] | None = None) -> None:
    """A grid of numbers, in several pieces where it is wider than the room: names may wrap, numbers are never cut.

    Args:
        title: Above each piece.
        head: What the names are; each piece repeats them.
        lines: From top to bottom; None rules off what is above it.
        to: Where it is printed; by default standard output.
    """
    from rich.table import Table as Grid

    names = _name_widths(head, lines)
    widths = _widths(lines, folded=needed(head, lines) > room(to))
    pieces: list[list[str]] = [[]]
    left = space = room(to) - 1 - sum(3 + width for width in names)
    for column, width in widths.items():
        if pieces[-1] and left < 3 + width:
            pieces.append([])
            left = space
        pieces[-1].append(column)
        left -= 3 + width
    for columns in pieces:
        grid = Grid(title=title)
        for name, width in zip(head, names, strict=True):
            grid.add_column(name, width=width, overflow="fold")
        for column in columns:
            grid.add_column(column, width=widths[column], overflow="fold", justify="right")
        for line in lines:
            if line is None:
                grid.add_section()
            else:
                grid.add_row(*line[0], *(line[1].get(column, "") for column in columns))
        print_grid(grid, to)


def _name_widths(head: Sequence[str], lines: Sequence[Line | None]) -> list[int]:
    columns = zip(head, *(line[0] for line in lines if line), strict=True)
    return [min(LONGEST_NAME, max(map(len, texts))) for texts in columns]


def _widths(lines: Sequence[Line | None], *, folded: bool = False) -> dict[str, int]:
    """The width of each column of numbers; where they are to be folded, the names above do not count."""
    widths: dict[str, int] = {}
    for _, cells in filter(None, lines):
        for column, cell in cells.items():
            texts = [*cell.split("\n"), *([] if folded else column.split("\n"))]
            widths[column] = max(widths.get(column, 1), *map(len, texts))
    return widths


def counted(n: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def interval(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval, where there is one, below it; a dash where it is null."""
    if row["value"] is None:
        return "-"
    shown = f"{row['value']:{'+' if signed else ''}.3f}"
    if row["low"] is None:
        return shown
    return f"{shown}\n[{row['low']:.2f}, {row['high']:.2f}]"
