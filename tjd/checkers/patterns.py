"""Regular expressions that come from data: compiled once, and stopped when they run away.

The official checkers paste keywords into regular expressions unescaped. A keyword of plain characters runs in `re`;
one that could backtrack without end, or is very long, runs in the `regex` package under a time limit. The two engines
agree but for the odd corner (`regex` counts combining marks as word characters).
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tjd.checkers.optional import import_extra
from tjd.errors import CheckerError

TIMEOUT_S = 2.0
_CAN_RUN_AWAY = frozenset("*+?{([")
_LONG = 200  # characters from which on even a plain one takes its time on a long text


@lru_cache(maxsize=4096)
def _compile(source: str, before: str, after: str, flags: int) -> tuple[Any, bool]:
    """Compile before + source + after; the second value says whether it needs the time limit."""
    engine: Any = re
    if timed := len(source) > _LONG or not _CAN_RUN_AWAY.isdisjoint(source):
        engine = import_extra("regex")
    try:
        return engine.compile(before + source + after, flags), timed
    except (re.error, RecursionError, OverflowError, engine.error) as problem:
        hint = "escape it, or check with fixed=True, which takes it literally"
        raise CheckerError(f"{source!r} is not a regular expression ({problem}); {hint}") from problem


def find_all(
    source: str, text: str, *, before: str = "", after: str = "", ignore_case: bool = False, multiline: bool = False
) -> Iterator[Any]:
    """Yield the non-overlapping matches of a pattern that comes from data.

    Args:
        source: The part that comes from data, put between `before` and `after` as it is.
        text: Where to look.
        before: Our own pattern in front.
        after: Our own pattern behind.
        ignore_case: As `re.IGNORECASE`.
        multiline: As `re.MULTILINE`.

    Raises:
        CheckerError: It is no regular expression, or ran longer than `TIMEOUT_S`.
    """
    flags = (re.IGNORECASE if ignore_case else 0) | (re.MULTILINE if multiline else 0)
    pattern, timed = _compile(source, before, after, int(flags))
    if not timed:
        yield from pattern.finditer(text)
        return
    try:
        yield from pattern.finditer(text, timeout=TIMEOUT_S)
    except TimeoutError as timeout:
        raise CheckerError(f"the pattern {source!r} ran longer than {TIMEOUT_S:g} s; simplify it") from timeout


def is_found(source: str, text: str, *, before: str = "", after: str = "", ignore_case: bool = False) -> bool:
    """Whether a pattern that comes from data matches somewhere; arguments and errors as in `find_all`."""
    return any(True for _ in find_all(source, text, before=before, after=after, ignore_case=ignore_case))


def count(source: str, text: str, *, ignore_case: bool = True) -> int:
    """Count non-overlapping matches of a pattern that comes from data; errors as in `find_all`."""
    return sum(1 for _ in find_all(source, text, ignore_case=ignore_case))
