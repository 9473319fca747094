"""Ask a large model for verdicts: one constraint a request (`pointwise`), or all of a response at once (`batch`).

In: a response and constraints on it. Out: a request; and of its completion one verdict per constraint, or nulls and why.
"""

from collections.abc import Sequence

from tjd.config import Mode
from tjd.prompts import Prompt
from tjd.teacher import Again, Completion, Request, asked_again, reading, user

VARIABLES = {
    "pointwise": ("query", "constraint", "response"),
    "batch": ("n", "query", "constraints", "response"),
}


def verdict_request(prompt: Prompt, mode: Mode, query: str, response: str, constraints: Sequence[str]) -> Request:
    """Ask about the constraints of one response; in mode `pointwise` there must be one."""
    values = {"query": query, "response": response}
    if mode == "pointwise":
        (text,) = constraints
        return Request(user(prompt.render(**values, constraint=text)))
    numbered = "\n".join(f"{i}: {text}" for i, text in enumerate(constraints, 1))
    n = len(constraints)
    return Request(user(prompt.render(**values, n=str(n), constraints=numbered)), note=n)


def read(completion: Completion, n: int | None) -> tuple[list[bool | None], str | None]:
    """The verdicts in a completion: one, or where `n` is given so many numbered ones; nulls and the reason else."""
    if completion.text is None:
        return [None] * (n or 1), completion.error or "the call failed"
    if n is None:
        followed, reason = reading.verdict(completion.text, completion.finish_reason)
        return [followed], reason
    return reading.numbered_verdicts(completion.text, n, completion.finish_reason)


def once_more(again: Prompt) -> Again:
    """What to ask where a completion of `verdict_request` cannot be read; the variable of `again` is `reason`."""

    def unreadable(request: Request, completion: Completion) -> Request | None:
        _, reason = read(completion, request.note)
        return asked_again(request, completion, again.render(reason=reason)) if reason else None

    return unreadable
