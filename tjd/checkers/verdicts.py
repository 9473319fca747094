"""Verdicts of rule constraints: a checker's id, its kwargs and a response in; followed, or why not decidable, out."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from tjd.checkers import ifbench_custom, ifbench_format, ifbench_words, ifeval, iftrain, multi_if
from tjd.checkers.arguments import Checker, bind, nearest, read_signature
from tjd.checkers.loose import loose_variants
from tjd.checkers.text import is_blank
from tjd.config import Suite
from tjd.errors import CheckerError, TjdError

Mode = Literal["strict", "loose"]

_OLD_IFEVAL = ifeval.CHECKERS | {"keywords:letter_frequency": ifeval.old_letter_frequency}
_OTHERS = ifbench_words.CHECKERS | ifbench_format.CHECKERS | ifbench_custom.CHECKERS | iftrain.CHECKERS
SUITES: dict[Suite, dict[str, Checker]] = {
    "ifeval": ifeval.CHECKERS | _OTHERS,
    "ifbench": _OLD_IFEVAL | _OTHERS,
    "iftrain": _OLD_IFEVAL | _OTHERS,
    "multi_if": multi_if.CHECKERS | _OTHERS,
}


class Verdict(NamedTuple):
    """Whether a constraint is followed; None where that cannot be said, and then `reason` says why."""

    followed: bool | None
    reason: str | None = None


def check(
    checker: str,
    kwargs: Mapping[str, Any],
    response: str,
    *,
    prompt: str | None = None,
    mode: Mode = "strict",
    suite: Suite = "ifeval",
    fixed: bool = False,
    checkers: Mapping[str, Checker] | None = None,
) -> bool:
    """Check one rule constraint on one response.

    Args:
        checker: Its id, such as "keywords:existence".
        kwargs: Its kwargs; None entries are dropped, 0, False and "" are values.
        response: The response as it is. A blank one follows nothing (in Multi-IF's strict mode it is checked, unless fixed).
        prompt: What the model was asked, for a checker that has a kwarg of this name; none of ours has.
        mode: "loose" also accepts the response less its first or last line, or less its asterisks.
        suite: Every suite knows every checker; it selects whose revision of IFEval's 25 decides.
        fixed: Mend what is known to be wrong with the official checkers.
        checkers: More checkers by name, from `load_checkers`; they go before ours.

    Raises:
        CheckerError: The checker is unknown, its kwargs are wrong, or it cannot decide.
        MissingExtraError: The checker needs packages that are not installed.
    """
    decide = _prepare(checker, kwargs, prompt, suite=suite, fixed=fixed, checkers=checkers)
    return _strict(decide, response, suite, fixed) if mode == "strict" else _loose(decide, response)


def verdict(
    checker: str,
    kwargs: Mapping[str, Any],
    response: str,
    *,
    prompt: str | None = None,
    mode: Mode = "strict",
    suite: Suite = "ifeval",
    fixed: bool = False,
    checkers: Mapping[str, Checker] | None = None,
) -> Verdict:
    """Check as `check` does, but turn whatever goes wrong into a null with its reason; never into a false."""
    try:
        return Verdict(
            check(checker, kwargs, response, prompt=prompt, mode=mode, suite=suite, fixed=fixed, checkers=checkers)
        )
    except Exception as error:  # a checker that crashes is a null too, whoever wrote it
        return Verdict(None, _reason(checker, error))


def strict_and_loose(
    checker: str,
    kwargs: Mapping[str, Any],
    response: str,
    *,
    prompt: str | None = None,
    suite: Suite = "ifeval",
    fixed: bool = False,
    checkers: Mapping[str, Checker] | None = None,
) -> tuple[Verdict, Verdict]:
    """Give both verdicts at the cost of little more than one: a response that passes as it is passes loosely too."""
    try:
        decide = _prepare(checker, kwargs, prompt, suite=suite, fixed=fixed, checkers=checkers)
        strict = _strict(decide, response, suite, fixed)
        if strict and not is_blank(response):
            return Verdict(True), Verdict(True)
    except Exception as error:
        undecided = Verdict(None, _reason(checker, error))
        return undecided, undecided
    try:
        return Verdict(strict), Verdict(_loose(decide, response))
    except Exception as error:
        return Verdict(strict), Verdict(None, _reason(checker, error))


def validate(checker: str | None, kwargs: Mapping[str, Any], *, checkers: Mapping[str, Checker] | None = None) -> None:
    """See that a checker exists and takes its kwargs, by trying it on a word; a user's own checker is not run.

    Raises:
        CheckerError: It does not exist, or does not take them.
        MissingExtraError: The checker needs packages that are not installed.
    """
    if not isinstance(checker, str):
        raise CheckerError("a rule names no checker")
    decide = _prepare(checker, kwargs, "", suite="ifeval", fixed=False, checkers=checkers)
    if checker not in (checkers or {}):
        decide("word")


def _prepare(
    name: str,
    kwargs: Mapping[str, Any],
    prompt: str | None,
    *,
    suite: Suite,
    fixed: bool,
    checkers: Mapping[str, Checker] | None,
) -> Checker:
    """Find the checker and fill in its kwargs."""
    if suite not in SUITES:
        raise CheckerError(f"unknown suite {suite!r}; take one of {', '.join(SUITES)}")
    function = (checkers or {}).get(name) or SUITES[suite].get(name)
    if function is None:
        known = [*(checkers or {}), *SUITES[suite]]
        hint = nearest(name, known) or "see tjd.checkers.SUITES, or add your own with --checkers"
        raise CheckerError(f"unknown checker {name!r}; {hint}")
    if prompt is not None and "prompt" in read_signature(function).kinds:
        kwargs = {**kwargs, "prompt": prompt}
    return partial(function, **bind(name, function, kwargs, fixed=fixed))


def _strict(decide: Checker, response: str, suite: Suite, fixed: bool) -> bool:
    if is_blank(response) and (suite != "multi_if" or fixed or not response):
        return False
    return _as_bool(decide(response))


def _loose(decide: Checker, response: str) -> bool:
    return any(_as_bool(decide(variant)) for variant in loose_variants(response))


def _as_bool(followed: object) -> bool:
    if isinstance(followed, bool):
        return followed
    raise CheckerError(f"a checker must return True or False, not {followed!r}")


def _reason(checker: str, error: Exception) -> str:
    message = str(error) if isinstance(error, TjdError) else f"{type(error).__name__}: {error}"
    return message if checker in message else f"{checker}: {message}"
