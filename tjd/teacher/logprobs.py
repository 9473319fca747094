"""Soft labels: P(Yes) at the token that says a verdict, where a provider returns log probabilities.

In: a completion's tokens with the likeliest alternatives to each. Kept of them: those that may begin a verdict, since a
reason of a hundred tokens need not fill the cache. Out: per verdict a probability, normalised over Yes and No, or null.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tjd.teacher import Spoken

TOP = 5  # alternatives per token; several servers refuse more


def spoken(tokens: Iterable[tuple[bytes, Mapping[str, float]]]) -> tuple[Spoken, ...]:
    """The tokens that may begin a verdict.

    Args:
        tokens: All tokens of a completion in order, as bytes, since one may hold half a character; and the log
            probabilities of the likeliest tokens in its place.
    """
    kept, start = [], 0
    for raw, top in tokens:
        token = raw.decode(errors="replace")
        if _side(token) is not None:
            kept.append(Spoken(start, token, dict(top)))
        start += len(raw)
    return tuple(kept)


def of_choice(choice: Any) -> tuple[Spoken, ...] | None:
    """`spoken` of a choice in OpenAI's form; null where the server sent no log probabilities."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    if not content:
        return None
    return spoken(
        (
            bytes(each.bytes) if getattr(each, "bytes", None) else each.token.encode(errors="replace"),
            _alternatives(each),
        )
        for each in content
    )


def _alternatives(token: Any) -> dict[str, float]:
    """The likeliest tokens and the one that was drawn; empty where the server told of no other, since 1 is no estimate."""
    others = {other.token: other.logprob for other in token.top_logprobs or ()}
    return {token.token: token.logprob} | others if others else {}


def p_yes(text: str, place: int, followed: bool, tokens: Sequence[Spoken]) -> float | None:
    """P(Yes) in [0, 1] at the verdict that begins at a character of a text; null where no token there says `followed`.

    What is not among the alternatives counts as impossible.
    """
    at = len(text[:place].encode(errors="replace"))
    token = next((t for t in tokens if t.start <= at < t.start + len(t.token.encode())), None)
    if token is None or _side(token.token) is not followed:
        return None
    mass = {True: 0.0, False: 0.0}
    for other, logprob in token.top.items():
        if (side := _side(other)) is not None:
            mass[side] += math.exp(logprob)
    total = mass[True] + mass[False]
    return mass[True] / total if total > 0 else None


def _side(token: str) -> bool | None:
    """Whether a token begins Yes (true) or No (false), in any case, with a quote or a space at its sides."""
    letters = re.sub(r"[\W\d_]", "", token).lower()
    return None if not letters else True if "yes".startswith(letters) else False if "no".startswith(letters) else None
