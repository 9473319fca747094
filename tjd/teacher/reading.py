"""Read what a teacher said: verdicts, numbered verdicts, JSON. Strict, since a guess would become a label.

Reasoning in `<think>` tags, markdown and punctuation are set aside first.
"""

import json
import re
from typing import Any

UNREADABLE = "neither Yes nor No"
CUT = "cut at max_tokens"
SILENT = "the model said nothing"

_THINKING = re.compile(r"^.*</think>|<think>.*$", re.DOTALL)
_MARKUP = re.compile(r"[*_`#>~\"'“”\u2018\u2019]|^\s*[-•]\s+", re.MULTILINE)
_VERDICT = re.compile(r"(?:(?:final\s+)?(?:verdict|answer)\s*:\s*)?(yes|no)[\s.!]*", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d+)\s*[:.)]\s*(yes|no)[\s.!]*", re.IGNORECASE)
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def without_thinking(text: str) -> str:
    """The text after a model's reasoning; empty if it was cut while reasoning, unchanged if there is none."""
    return _THINKING.sub("", text).strip() if "think>" in text else text


def verdict(text: str, finish_reason: str | None = None) -> tuple[bool | None, str | None]:
    """Read Yes or No: the whole text, or its last line, and nothing but that.

    A last line that was cut is not trusted: "No" may be the start of "Not only".

    Returns:
        The verdict, or null and the reason.
    """
    lines = _lines(text)
    cut = finish_reason == "length"
    found = _VERDICT.fullmatch(lines[-1]) if lines and not (cut and len(lines) > 1) else None
    if found:
        return _is_yes(found[1]), None
    return None, _reason(text, finish_reason, UNREADABLE)


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
    except ValueError:
        return None, _reason(text, finish_reason, "not a JSON object")
    if not isinstance(found, dict):
        return None, "not a JSON object"
    # an escaped half of a surrogate pair would break every table
    return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")), None


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
