"""FollowBench's rule-checked instructions: what code says of an answer to a level as a whole.

In: the level (1 to 5), the record's target and the answer, which is compared exactly, without stripping. Out: whether
every constraint up to that level is followed. Accidents of the official checks are kept, since published figures have
them; section 6 of the specification lists them.
"""

import ast
import re
import string
from collections.abc import Callable

LevelCheck = Callable[[str, int, str], bool]
"""Answer, level, target."""

_STOPS = re.compile(r"[.!?]")
_SENTENCE_GAP = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s")


def _sentences(text: str) -> list[str]:
    return [piece for piece in _STOPS.split(text) if piece]


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def _n_spaced(text: str) -> int:
    return len(text.split(" "))


def _equals(answer: str, level: int, target: str) -> bool:
    return answer == target


def _lines_of(answer: str, level: int, target: str) -> bool:
    return set(answer.split("\n")) <= set(target.split("\n"))


def _element_of(answer: str, level: int, target: str) -> bool:
    return answer in ast.literal_eval(target)


def _last_match(pattern: str) -> LevelCheck:
    compiled = re.compile(pattern)

    def check(answer: str, level: int, target: str) -> bool:
        found = compiled.findall(answer)
        return bool(found) and found[-1] == target

    return check


def _contains(answer: str, level: int, target: str) -> bool:
    return target in answer


def _cumulative(*steps: Callable[[str], bool]) -> LevelCheck:
    """The first `level` steps, all of them."""
    return lambda answer, level, target: all(step(answer) for step in steps[:level])


def _third_has_participle(answer: str) -> bool:
    return re.search(r"\b(has|have)\s+\w+", _sentences(answer)[2]) is not None


def _names_in_order(answer: str) -> bool:
    return all(_has(s, w) for s, w in zip(_sentences(answer), ("Potter", "actor", "films"), strict=False))


_CNN_DAILYMAIL = _cumulative(
    lambda answer: len(_sentences(answer)) == 3,
    lambda answer: all(len(sentence.split()) < 15 for sentence in _sentences(answer)),
    _names_in_order,
    lambda answer: not _has(_sentences(answer)[1], "lavish"),
    _third_has_participle,
)
_XSUM = _cumulative(
    lambda answer: len(_sentences(answer)) == 1,
    lambda answer: _n_spaced(answer) < 20,
    lambda answer: not _has(answer, "Newton Stewart"),
    lambda answer: re.search(r"\b(am|is|are)\s+\w+ing\b", answer) is not None,
    lambda answer: _has(answer, "operation"),
)
_SAMSUM = _cumulative(
    lambda answer: len(_sentences(answer)) == 1,
    lambda answer: _n_spaced(answer) < 15,
    lambda answer: _has(answer, "stuff"),
    lambda answer: "procrast" not in answer.lower(),
    lambda answer: sum(character in string.punctuation for character in answer) == 1,
)
_GIGAWORD = _cumulative(
    lambda answer: _n_spaced(answer) == 8,
    lambda answer: not any(character in string.punctuation for character in answer),
    str.islower,
    lambda answer: not _has(answer, "bus"),
    lambda answer: _has(answer, "in"),
)
_ARXIV = _cumulative(
    lambda answer: len(_sentences(answer)) == 1,
    lambda answer: _n_spaced(answer) <= 20,
    lambda answer: answer.startswith("We"),
    lambda answer: _has(answer, "activations"),
    lambda answer: not _has(answer, "transformer"),
)


def _format_22(answer: str, level: int, target: str) -> bool:
    """Three (at level 5: four) blocks, short, of long sentences, numbered, with a fixed last line."""
    blocks = answer.split("\n\n")
    if len(blocks) != (4 if level == 5 else 3):
        return False
    if level >= 2 and any(len(_sentences(block)) >= 3 for block in blocks[:3]):
        return False
    if level >= 3 and any(len(sentence.split()) <= 20 for sentence in _sentences(answer)):
        return False
    if level >= 4 and not all(re.match(r"\d+\.", block.lstrip()) for block in blocks if block.strip()):
        return False
    return level < 5 or answer.endswith("Those are suggestions")


def _format_30(answer: str, level: int, target: str) -> bool:
    """Bold headings, five numbered ones, short items of medium length, and no word that ends in a literal "-ly"."""
    pieces = _SENTENCE_GAP.split(answer)
    steps: tuple[Callable[[], bool], ...] = (
        lambda: "**" in answer,
        lambda: len(re.findall(r"\*\*[\d].+?:", answer)) == 5,
        lambda: all(
            len(piece.split(".")) < 3 for piece in pieces if any(f"{number}." in piece for number in range(1, 6))
        ),
        lambda: all(10 <= len(piece.split()) <= 15 for piece in pieces),
        lambda: not any(word.endswith("-ly") for word in answer.split()),
    )
    return all(step() for step in steps[:level])


def _example(answer: str, level: int, target: str) -> bool:
    """The answer fits the template of the shots, whatever stands at `{answer}`."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}").replace("{answer}", ".*")
    pattern = ".*".join(re.escape(part) for part in template.split(".*"))
    return re.fullmatch(pattern, answer) is not None


CHECKS: dict[str, LevelCheck] = {
    "E2E": _equals,
    "text_editing": _equals,
    "WIKIEVENTS": _lines_of,
    "CONLL2003": _element_of,
    "cnn_dailymail": _CNN_DAILYMAIL,
    "xsum": _XSUM,
    "samsum": _SAMSUM,
    "gigaword": _GIGAWORD,
    "arxiv": _ARXIV,
    "BBH_logical": _last_match(r"\([A-Z]\)"),
    "BBH_time": _last_match(r"\d{2}/\d{2}/\d{4}"),
    "gsm_8k": _last_match(r"\$\d+"),
    "self_made_space": _contains,
    "format_22": _format_22,
    "format_30": _format_30,
    "example": _example,
}


def check_name(category: str, example_id: int, source: str) -> str | None:
    """Which check decides a record; null where a judge does."""
    if category == "example":
        return "example"
    if category == "format" and example_id in (22, 30):
        return f"format_{example_id}"
    return source if source in CHECKS else None
