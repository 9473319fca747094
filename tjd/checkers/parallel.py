"""Verdicts of many rule constraints, over several processes.

In: questions, taken as they are needed. Out: both verdicts of each, in order, the same ones whatever the number of
processes. No more than a few thousand questions are held at once.
"""

import json
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tjd.checkers.arguments import Checker
from tjd.checkers.own import load_checkers
from tjd.checkers.verdicts import Verdict, strict_and_loose
from tjd.config import Suite
from tjd.errors import CheckerError

_AT_ONCE = 256  # questions handed to a process: enough to make the handing cheap
_AHEAD = 4  # how many such lots wait for each process

StrictAndLoose = tuple[Verdict, Verdict]


class Question(NamedTuple):
    """A rule constraint and a response, as they stand in a table."""

    checker: str | None
    kwargs: str | None  # JSON object
    response: str | None
    prompt: str | None = None  # what the model was asked


def decide(
    questions: Iterable[Question],
    *,
    suite: Suite = "ifeval",
    fixed: bool = False,
    own: str | None = None,
    workers: int = 0,
) -> Iterator[StrictAndLoose]:
    """Give the strict and the loose verdict of each question, in order.

    Args:
        questions: Those on one response should stand together: they share its sentences and tokens.
        suite: As in `check`.
        fixed: As in `check`.
        own: A Python file for `load_checkers`.
        workers: Processes; 0 takes one per core. A single lot of questions is decided in this process.

    Raises:
        CheckerError: A process died.
    """
    decide_lot = partial(_decide_lot, suite=suite, fixed=fixed, own=own)
    lots = _lots(iter(questions))
    first = list(islice(lots, 2))
    workers = workers or _cores()
    if workers == 1 or len(first) < 2:
        for lot in chain(first, lots):
            yield from decide_lot(lot)
        return
    # not forked: threads of the table reader may hold locks; deaf to Ctrl-C, which this process answers
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    waiting: deque[Future[list[StrictAndLoose]]] = deque()
    try:
        for lot in chain(first, lots):
            waiting.append(pool.submit(decide_lot, lot))
            if len(waiting) >= _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as exc:
        raise CheckerError(
            "a process that ran checkers died, perhaps for want of memory; try --workers 1, or mend your own checkers"
        ) from exc
    finally:
        pool.shutdown(cancel_futures=True)


def _lots(questions: Iterator[Question]) -> Iterator[list[Question]]:
    while lot := list(islice(questions, _AT_ONCE)):
        yield lot


def _decide_lot(lot: Sequence[Question], suite: Suite, fixed: bool, own: str | None) -> list[StrictAndLoose]:
    checkers = _own(own, Path(own).stat().st_mtime_ns) if own else None
    return [_decide_one(question, suite, fixed, checkers) for question in lot]


@cache
def _own(path: str, changed_ns: int) -> dict[str, Checker]:
    return load_checkers(path)


def _decide_one(question: Question, suite: Suite, fixed: bool, checkers: dict[str, Checker] | None) -> StrictAndLoose:
    name, source, response, prompt = question
    if response is None:
        return _undecided("there is no response")
    if name is None:
        return _undecided("the rule names no checker")
    try:
        kwargs = json.loads(source or "{}")
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        return _undecided(f"the kwargs of {name} are not a JSON object")
    return strict_and_loose(name, kwargs, response, prompt=prompt, suite=suite, fixed=fixed, checkers=checkers)


def _undecided(reason: str) -> StrictAndLoose:
    return Verdict(None, reason), Verdict(None, reason)


def _cores() -> int:
    """Cores this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
