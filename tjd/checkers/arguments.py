"""The kwargs of a checker, checked against its signature before it runs.

A checker is a function `(response, *, kwargs...) -> bool`; its annotations say what a kwarg must be. Data is loose
about numbers (5 arrives as 5.0) and pads with None; both are put right here. A missing kwarg is an error: the
official code draws a random one instead.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, NewType

from tjd.errors import CheckerError

Checker = Callable[..., bool]
Relation = Literal["less than", "at least"]
Count = NewType("Count", int)  # 0 or more
Positive = NewType("Positive", int)  # 1 or more
Amount = NewType("Amount", float)  # 0 or more
Filled = NewType("Filled", str)  # not empty
FilledList = NewType("FilledList", list[str])  # at least one string, none of them empty
FirstOf = NewType("FirstOf", str)  # a string, or the first of a list of strings; not empty


def is_relation_met(count: int, relation: Relation, threshold: int) -> bool:
    """Whether a count is less than, or at least, a threshold."""
    return count < threshold if relation == "less than" else count >= threshold


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value >= 0 else None


def _at_least(low: int) -> Callable[[object], int | None]:
    def convert(value: object) -> int | None:
        number = _whole(value)
        return number if number is not None and number >= low else None

    return convert


def _filled(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _filled_list(value: object) -> list[str] | None:
    return list(value) if isinstance(value, list | tuple) and value and all(map(_filled, value)) else None


def _first_of(value: object) -> str | None:
    return _filled(value[0]) if isinstance(value, list | tuple) and value else _filled(value)


# annotation -> (what the message says it must be, conversion; None means it is not)
_KINDS: dict[object, tuple[str, Callable[[object], object | None]]] = {
    int: ("a whole number", _whole),
    Count: ("a whole number, 0 or more", _at_least(0)),
    Positive: ("a whole number, 1 or more", _at_least(1)),
    Amount: ("a number, 0 or more", _amount),
    str: ("a string", lambda value: value if isinstance(value, str) else None),
    Filled: ("a string that is not empty", _filled),
    FilledList: ("a list of strings that are not empty", _filled_list),
    FirstOf: ("a string that is not empty, or a list of such strings", _first_of),
    Relation: ('"less than" or "at least"', lambda value: value if value in ("less than", "at least") else None),
}


@dataclass(frozen=True, slots=True)
class Signature:
    """What a checker takes besides the response."""

    kinds: dict[str, object]  # kwarg -> annotation
    required: frozenset[str]
    takes_any: bool  # it has **kwargs
    can_be_fixed: bool


@cache
def read_signature(checker: Checker) -> Signature:
    """Read the signature of a checker; `fixed` is a switch of ours, not a kwarg."""
    parameters = list(inspect.signature(checker).parameters.values())[1:]
    hints = typing.get_type_hints(checker)
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    kwargs = [parameter for parameter in named if parameter.name != "fixed"]
    return Signature(
        kinds={parameter.name: hints.get(parameter.name, Any) for parameter in kwargs},
        required=frozenset(parameter.name for parameter in kwargs if parameter.default is parameter.empty),
        takes_any=len(named) < len(parameters),
        can_be_fixed=len(kwargs) < len(named),
    )


def bind(name: str, checker: Checker, kwargs: Mapping[str, Any], *, fixed: bool) -> dict[str, Any]:
    """Check the kwargs of a checker and put them in the types it expects.

    Args:
        name: The checker's id, for messages.
        checker: The function.
        kwargs: As they stand in the data; None entries are dropped, 0, False and "" are values.
        fixed: Passed on to checkers that have a mended variant.

    Raises:
        CheckerError: A kwarg is unknown, missing or not what it must be.
    """
    signature = read_signature(checker)
    bound: dict[str, Any] = {"fixed": True} if fixed and signature.can_be_fixed else {}
    for key, value in kwargs.items():
        if value is None:
            continue
        if key not in signature.kinds:
            if signature.takes_any:
                bound[key] = value
                continue
            raise CheckerError(f"{name} takes no kwarg {key!r}; {_known(key, signature)}")
        kind = _KINDS.get(signature.kinds[key])
        if kind is None:
            bound[key] = value
        elif (converted := kind[1](value)) is not None:
            bound[key] = converted
        else:
            raise CheckerError(f"{name}: {key} must be {kind[0]}, not {_shown(value)}")
    if missing := signature.required - bound.keys():
        raise CheckerError(f"{name} needs the kwarg {', '.join(sorted(missing))}; it is missing or null")
    return bound


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """Suggest the closest known word, as the end of a message."""
    close = get_close_matches(str(word), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _known(key: str, signature: Signature) -> str:
    return nearest(key, signature.kinds) or f"it takes {', '.join(signature.kinds) or 'none'}"


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
