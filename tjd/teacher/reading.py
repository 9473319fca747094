"""Read what a teacher said: verdicts, numbered verdicts, JSON. Strict, since a guess would become a label.

Reasoning in `<think>` tags, markdown and punctuation are set aside first.
"""

import json
import re
from typing import Any

UNREADABLE = "neither Yes nor No"
TORN = "both Yes and No"
CUT = "cut at max_tokens"
SILENT = "the model said nothing"

_THINKING = re.compile(r"^.*</think>|<think>.*$", re.DOTALL)
_MARKUP = re.compile(r"[*_`#>~\"'“”\u2018\u2019]|^\s*[-•]\s+", re.MULTILINE)
_VERDICT = re.compile(r"(?:(?:final\s+)?(?:verdict|answer)\s*:\s*)?(yes|no)[\s.!]*", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,9})\s*[:.)]\s*(yes|no)[\s.!]*", re.IGNORECASE)
_NUMBERED_WORD = re.compile(r"(?<!\d)(\d{1,9})[\W_]+(yes|no)(?![^\W_])", re.IGNORECASE)
_WORD = re.compile(r"(?<![^\W_])(?:yes|no)(?![^\W_])", re.IGNORECASE)
_JSON_NUMBER = re.compile(r'"number"\s*:\s*(\d{1,9})')
_JSON_WORD = re.compile(r'"verdict"\s*:\s*"(yes|no)"', re.IGNORECASE)  # neither within a string: its quotes are escaped
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def without_thinking(text: str) -> str:
    """The text after a model's reasoning; empty if it was cut while reasoning, unchanged if there is none."""
    return _THINKING.sub("", text).strip() if "think>" in text else text


def verdict(text: str, finish_reason: str | None = None) -> tuple[bool | None, str | None]:
    """Read Yes or No: the whole text, or its last line, and nothing but that.

    Reasoning may stand before it, but no line that is another verdict. A last line that was cut is not trusted: "No" may
    be the start of "Not only".

    Returns:
        The verdict, or null and the reason.
    """
    lines = _lines(text)
    cut = finish_reason == "length"
    found = [_VERDICT.fullmatch(line) for line in lines]
    said = {_is_yes(match[1]) for match in found if match}
    if found and found[-1] and len(said) == 1 and not (cut and len(lines) > 1):
        return said.pop(), None
    return None, _reason(text, finish_reason, TORN if len(said) > 1 else UNREADABLE)


def numbered_verdicts(text: str, n: int, finish_reason: str | None = None) -> tuple[list[bool | None], str | None]:
    """Read `n` lines such as `1: Yes`, each number once, and nothing else.

    Returns:
        The verdicts by number, or `n` nulls and the reason.
    """
    found = [_NUMBERED.fullmatch(line) for line in _lines(text)]
    verdicts = {int(match[1]): _is_yes(match[2]) for match in found if match}
    if len(found) == n and sorted(verdicts) == list(range(1, n + 1)):
        return [verdicts[number] for number in range(1, n + 1)], None
    return [None] * n, _reason(text, finish_reason, f"not {n} numbered lines of Yes or No")


def json_object(text: str, finish_reason: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """Read one JSON object, bare or in a code fence, whatever stands around it.

    Returns:
        The object, or null and the reason.
    """
    text = without_thinking(text)
    fenced = _FENCED.search(text)
    candidate = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    try:
        found = json.loads(candidate)
        # an escaped half of a surrogate pair would break every table
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None, _reason(text, finish_reason, "not a JSON object")
    return (found, None) if isinstance(found, dict) else (None, "not a JSON object")


def json_verdicts(
    text: str, n: int | None, finish_reason: str | None = None
) -> tuple[list[bool | None], list[str | None], str | None]:
    """Read `{"verdict": "Yes"}`; or `{"verdicts": [...]}`, a list of `n` such objects, numbered from 1 in any order.

    Nothing may stand around the object but a code fence, and no key may be repeated.

    Returns:
        The verdicts by number, and the `reason` beside each (null where there is none); or nulls and why.
    """
    body = without_thinking(text).strip()
    fenced = _FENCED.fullmatch(body)
    try:
        found = json.loads(fenced[1] if fenced else body, object_pairs_hook=_unrepeated)
        items = [found] if n is None else sorted(found["verdicts"], key=lambda item: item["number"])
        if n is not None and [item["number"] for item in items] != list(range(1, n + 1)):
            raise ValueError("other numbers")
        words = [item["verdict"].lower() for item in items]
        if not set(words) <= {"yes", "no"}:
            raise ValueError("another word")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        told = (
            "no JSON object with a verdict of Yes or No" if n is None else f"no JSON object with {n} numbered verdicts"
        )
        return [None] * (n or 1), [None] * (n or 1), _reason(text, finish_reason, told)
    return [_is_yes(word) for word in words], [_reason_given(item) for item in items], None


def places_of_verdicts(text: str, n: int | None, format: str) -> list[int]:
    """Where each verdict that was read begins, by number, as an index into the text; empty where that is not clear."""
    start = text.rfind("</think>") + 1
    if format == "json":
        places = [match.start(1) for match in _JSON_WORD.finditer(text, start)]
        numbers = [int(match[1]) for match in _JSON_NUMBER.finditer(text, start)]
        if n is None:
            return places
        return [place for _, place in sorted(zip(numbers, places, strict=True))] if len(numbers) == len(places) else []
    if n is None:
        return [match.start() for match in _WORD.finditer(text, start)][-1:]
    numbered = {int(match[1]): match.start(2) for match in _NUMBERED_WORD.finditer(text, start)}
    return [numbered[number] for number in sorted(numbered)]


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _reason_given(item: dict[str, Any]) -> str | None:
    given = item.get("reason")
    # an escaped half of a surrogate pair would break every table
    return given.encode("utf-8", "replace").decode().strip() or None if isinstance(given, str) else None


def _lines(text: str) -> list[str]:
    plain = _MARKUP.sub("", without_thinking(text))
    return [line.strip() for line in plain.splitlines() if line.strip()]


def _reason(text: str, finish_reason: str | None, otherwise: str) -> str:
    if finish_reason == "length":
        return CUT
    if without_thinking(text).strip():
        return otherwise
    return SILENT if finish_reason in (None, "stop") else f"{SILENT} ({finish_reason})"


def _is_yes(word: str) -> bool:
    return word.lower() == "yes"
