"""Ask a large model whether an instruction is sound: it asks for what the query asks, with constraints that go together.

In: a query, its constraints and the instruction that they were woven into. Out: a request; and of its completion true,
false with what is wrong, or null with why it cannot be read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tjd.prompts import Prompt
from tjd.teacher import Completion, Request, reading, user

VARIABLES = ("n", "query", "constraints", "instruction")


def verification_request(
    prompt: Prompt, query: str, instruction: str, constraints: Sequence[Mapping[str, Any]]
) -> Request:
    """Ask about one instruction and all of its constraints; a rule without words is told as it is checked."""
    texts = [constraint["text"] or f"{constraint['checker']} {constraint['kwargs']}" for constraint in constraints]
    numbered = "\n".join(f"{i}: {text}" for i, text in enumerate(texts, 1))
    text = prompt.render(n=str(len(texts)), query=query, constraints=numbered, instruction=instruction)
    return Request(user(text), note=len(texts))


def read(completion: Completion, n: int) -> tuple[bool | None, str | None]:
    """Whether an instruction with `n` constraints is sound; if it is not, or that cannot be read, also the reason."""
    if completion.text is None:
        return None, completion.error or "the call failed"
    found, unreadable = reading.json_object(completion.text, completion.finish_reason)
    if found is None:
        return None, unreadable
    contained = found.get("contained")
    if not isinstance(contained, list) or len(contained) != n:
        return None, f"'contained' must be a list of {n} values, true or false"
    if not all(isinstance(answer, bool) for answer in (*contained, found.get("same_request"), found.get("compatible"))):
        return None, "'same_request', 'contained' and 'compatible' must be true or false"
    wrong = [] if found["same_request"] else ["it asks for something else"]
    wrong += [] if all(contained) else ["it lacks a constraint"]
    wrong += [] if found["compatible"] else ["its constraints cannot be followed together"]
    if not wrong:
        return True, None
    why = found.get("why")
    return False, " and ".join(wrong) + (f": {' '.join(why.split())}" if isinstance(why, str) and why.strip() else "")


def unreadable(request: Request, completion: Completion) -> str | None:
    """Why a completion of `verification_request` cannot be read; null if it can."""
    sound, reason = read(completion, request.note)
    return reason if sound is None else None
