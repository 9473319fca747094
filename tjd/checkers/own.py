"""A user's own checkers, from a Python file with `CHECKERS = {"name": function}`.

A function takes the response and its kwargs by name, and returns a bool; one that has a kwarg `prompt` is given what the
model was asked. What runs away in it, a regular expression say, is stopped after `TIMEOUT_S`, except where the system
cannot do that: off the main thread, and on Windows.
"""

import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path

from tjd.checkers.arguments import Checker
from tjd.errors import CheckerError

TIMEOUT_S = 10.0


def load_checkers(path: str | Path) -> dict[str, Checker]:
    """Load the checkers of a file, to be passed to `check`.

    Raises:
        CheckerError: The file does not load, or has no such dict.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"tjd_user_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise CheckerError(f"no Python file at {path}; --checkers takes one with a dict CHECKERS")
    module = importlib.util.module_from_spec(spec)
    try:
        with redirect_stdout(sys.stderr):  # standard output is for tables
            spec.loader.exec_module(module)
    except Exception as error:
        raise CheckerError(f"{path} does not load: {type(error).__name__}: {error}") from error
    found = getattr(module, "CHECKERS", None)
    if not isinstance(found, dict) or not found:
        raise CheckerError(f'{path} has no dict CHECKERS; add CHECKERS = {{"name": function}}')
    for name, function in found.items():
        if not isinstance(name, str) or not callable(function):
            raise CheckerError(f"{path}: CHECKERS[{name!r}] must be a function with a string for its name")
    return {name: _guarded(function) for name, function in found.items()}


def _guarded(function: Checker) -> Checker:
    @wraps(function)
    def run(response: str, **kwargs: object) -> bool:
        with redirect_stdout(sys.stderr), _time_limit():
            return function(response, **kwargs)

    return run


@contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stop(*_: object) -> None:
    raise CheckerError(f"it ran longer than {TIMEOUT_S:g} s")
