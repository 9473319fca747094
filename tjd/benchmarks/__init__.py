"""The five benchmarks: what their own files hold, what code or a judge says of an answer, and their official metrics.

Pure functions; `BENCHMARKS` is the way in by name. Nothing here asks a model or is downloaded unless a hub name is read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tjd import checkers
from tjd.benchmarks import cfbench, followbench, ifbench, ifeval, multi_if
from tjd.benchmarks.figures import Figure
from tjd.checkers import Verdict
from tjd.tables import Row

Check = Callable[[str, Mapping[str, Any], str], tuple[Verdict, Verdict]]
"""Checker, kwargs and response; the strict and the loose verdict."""


class Judging(NamedTuple):
    """How a judge is asked about the soft constraints of one response."""

    prompt: str  # name of its prompt
    variables: tuple[str, ...]
    ask: Callable[[Row, str], dict[str, str]]  # the variables' values, from the row and the response
    read: Callable[[Row, str], tuple[list[bool | None], str | None]]  # a verdict per constraint; nulls and the reason


class Benchmark(NamedTuple):
    """One benchmark."""

    read: Callable[[str], list[Row]]  # from its files: BENCHMARK_INSTRUCTIONS
    figures: Callable[[Sequence[Row], np.ndarray], list[Figure]]  # from EVALUATIONS and the weights of resamples
    howto: str  # where its data can be got
    check: Check | None = None
    judging: Judging | None = None


def _followbench_check(checker: str, kwargs: Mapping[str, Any], response: str) -> tuple[Verdict, Verdict]:
    return followbench.check(checker, response, **kwargs)


BENCHMARKS: dict[str, Benchmark] = {
    "ifeval": Benchmark(ifeval.read, ifeval.figures, ifeval.HOWTO, partial(checkers.strict_and_loose, suite="ifeval")),
    "multi-if": Benchmark(
        multi_if.read, multi_if.figures, multi_if.HOWTO, partial(checkers.strict_and_loose, suite="multi_if")
    ),
    "ifbench": Benchmark(
        ifbench.read, ifeval.figures, ifbench.HOWTO, partial(checkers.strict_and_loose, suite="ifbench")
    ),
    "cfbench": Benchmark(
        cfbench.read,
        cfbench.figures,
        cfbench.HOWTO,
        judging=Judging(cfbench.PROMPT, cfbench.VARIABLES, cfbench.ask, cfbench.read_judgement),
    ),
    "followbench": Benchmark(
        followbench.read,
        followbench.figures,
        followbench.HOWTO,
        _followbench_check,
        Judging(followbench.PROMPT, followbench.VARIABLES, followbench.ask, followbench.read_judgement),
    ),
}


def rule_verdicts(row: Row, response: str | None) -> list[Row]:
    """What code says of each constraint of a row, in their order; null with a reason where a judge must say it.

    Args:
        row: BENCHMARK_INSTRUCTIONS.
        response: As the model gave it; null if it failed, which decides nothing.
    """
    check = BENCHMARKS[row["benchmark"]].check
    found = []
    for constraint in row["constraints"]:
        strict = loose = Verdict(None, "there is no response" if response is None else "not judged")
        if response is not None and constraint["kind"] == "rule" and check is not None:
            strict, loose = check(constraint["checker"], json.loads(constraint["kwargs"]), response)
        found.append(verdict_row(constraint, strict.followed, loose.followed, strict.reason))
    return found


def verdict_row(constraint: Row, followed: bool | None, loose: bool | None, error: str | None) -> Row:
    """An entry of the list `verdicts` of EVALUATIONS."""
    about = {name: constraint[name] for name in ("constraint_id", "checker")}
    return {**about, "followed": followed, "followed_loose": loose, "error": error}
