"""Ask a large model for verdicts: one constraint a request (`pointwise`), or all of a response at once (`batch`).

In: a response and constraints on it. Out: a request; and of its completion one ballot per constraint, or nulls and why.
An answer is text (Yes, or numbered lines), or JSON, which may hold a reason before each verdict.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tjd.config import Format, Mode
from tjd.prompts import Prompt
from tjd.teacher import Completion, Request, reading, user
from tjd.teacher.logprobs import p_yes

VARIABLES = {
    "pointwise": ("query", "constraint", "response"),
    "batch": ("n", "query", "constraints", "response"),
}


class Asked(NamedTuple):
    """What is to be read from a completion."""

    n: int | None  # numbered verdicts; null where there is a single one
    format: Format = "text"


class Ballot(NamedTuple):
    """What one completion says of one constraint."""

    followed: bool | None
    rationale: str | None = None  # the reason before the verdict; null if none was asked, or it cannot be read
    soft: float | None = None  # P(Yes) in [0, 1] at the verdict; null without log probabilities


def prompt_name(mode: Mode, format: Format = "text", rationale: bool = False) -> str:
    """The shipped prompt that asks in this form."""
    form = ".rationale" if rationale else ".json" if format == "json" else ""
    return f"label.{mode}{form}.v1"


def verdict_request(
    prompt: Prompt,
    mode: Mode,
    query: str,
    response: str,
    constraints: Sequence[str],
    format: Format = "text",
    rationale: bool = False,
) -> Request:
    """Ask about the constraints of one response; in mode `pointwise` there must be one."""
    values = {"query": query, "response": response}
    if mode == "pointwise":
        (values["constraint"],) = constraints
        asked = Asked(None, format)
    else:
        values["constraints"] = "\n".join(f"{i}: {text}" for i, text in enumerate(constraints, 1))
        values["n"] = str(len(constraints))
        asked = Asked(len(constraints), format)
    schema = json_schema(mode, rationale) if format == "json" else None
    return Request(user(prompt.render(**values)), schema=schema, note=asked)


def json_schema(mode: Mode, rationale: bool) -> dict[str, Any]:
    """What a JSON answer looks like; the reason stands before the verdict, so that it can still change it."""
    fields: dict[str, Any] = {"verdict": {"type": "string", "enum": ["Yes", "No"]}}
    if rationale:
        fields = {"reason": {"type": "string"}} | fields
    if mode == "pointwise":
        return _object(fields)
    return _object({"verdicts": {"type": "array", "items": _object({"number": {"type": "integer"}} | fields)}})


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read(completion: Completion, asked: Asked) -> tuple[list[Ballot], str | None]:
    """The ballots in a completion: one, or where `n` is given so many; nulls and the reason else."""
    n, text = asked.n, completion.text
    if text is None:
        return [Ballot(None)] * (n or 1), completion.error or "the call failed"
    reasons: Sequence[str | None] = [None] * (n or 1)
    if asked.format == "json":
        verdicts, reasons, error = reading.json_verdicts(text, n, completion.finish_reason)
    elif n is None:
        followed, error = reading.verdict(text, completion.finish_reason)
        verdicts = [followed]
    else:
        verdicts, error = reading.numbered_verdicts(text, n, completion.finish_reason)
    if error:
        return [Ballot(None)] * (n or 1), error
    softs: Sequence[float | None] = [None] * len(verdicts)
    places = reading.places_of_verdicts(text, n, asked.format) if completion.logprobs else []
    if len(places) == len(verdicts):
        softs = [
            p_yes(text, place, bool(said), completion.logprobs or ())
            for place, said in zip(places, verdicts, strict=True)
        ]
    return [Ballot(*ballot) for ballot in zip(verdicts, reasons, softs, strict=True)], None


def unreadable(request: Request, completion: Completion) -> str | None:
    """Why a completion of `verdict_request` cannot be read; null if it can."""
    return read(completion, request.note)[1]
