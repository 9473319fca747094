"""Penn Treebank tokens: punctuation apart, contractions split, straight double quotes as `` and ''.

In: a text. Out: its tokens, sentence by sentence (a final stop is told from the dot of an abbreviation by Punkt). The
steps put spaces where tokens part, then split; neighbouring steps of the usual tool were merged where no text can
tell.
"""

import re
from functools import lru_cache

from tjd.checkers import punkt

_OPENING = re.compile(r"^\"|[«“\u2018„]|``|`")
_OPENING_AFTER_SPACE = re.compile(r"(?<=[ (\[{<])(?:\"|'')")
_QUOTED_LETTER = re.compile(r"'(?!re|ve|ll|m|t|s|d|n)(?=\w\b)", re.IGNORECASE)
_CLOSERS = "])}>\"'»”\u2019 "  # may stand between the final stop and the end
_COMMA_OR_COLON = re.compile(r"([:,])(\D|$)")
_APART = re.compile(r"\.{2,}|[;@#$%&?!]")
_APOSTROPHE = re.compile(r"(?<=[^'])'(?= )")
_APART_LATER = re.compile(r"''|--|[*\]\[(){}<>»”\u2019]")
# One after the other: each parts what the one before has bared.
_CLITICS = [re.compile(rf"(?<=[^' ])({ending})(?= )") for ending in ("'[sSmMdD]|'", "'(?:ll|LL|re|RE|ve|VE)|n't|N'T")]
_FUSED = re.compile(r"\b(?:(can)(not)|(d)('ye)|(gim|lem)(me)|(gon)(na)|(got)(ta)|(more)('n))\b|\b(wan)(na)(?=\s)", re.I)
_FUSED_IT = [re.compile(rf" ('t)({verb})\b", re.IGNORECASE) for verb in ("is", "was")]


def _space_opening(found: re.Match[str]) -> str:
    return " `` " if found[0] == '"' else f" {found[0]} "


def _split_final_stop(text: str) -> str:
    end = text.rstrip()
    body = end.rstrip(_CLOSERS)
    if body[-1:] != "." or len(body) < 2 or body[-2] == ".":
        return text
    return f"{body[:-1]} . {end[len(body) :]} "


def _split_fused(found: re.Match[str]) -> str:
    first, second = (part for part in found.groups() if part)
    return f" {first} {second} "


@lru_cache(maxsize=256)  # loose variants share their sentences
def sentence_tokens(sentence: str) -> tuple[str, ...]:
    """Split one sentence into tokens."""
    text = _OPENING.sub(_space_opening, sentence)
    text = _OPENING_AFTER_SPACE.sub(" `` ", text)
    text = _QUOTED_LETTER.sub("' ", text)
    text = _split_final_stop(text)
    text = _COMMA_OR_COLON.sub(r" \1 \2", text)
    text = _APOSTROPHE.sub(" ' ", _APART.sub(r" \g<0> ", text))
    text = _APART_LATER.sub(r" \g<0> ", text).replace('"', " '' ")
    text = f" {' '.join(text.split())} "
    for clitic in _CLITICS:
        text = clitic.sub(r" \1", text)
    text = _FUSED.sub(_split_fused, text)
    for fused in _FUSED_IT:
        text = fused.sub(r" \1 \2 ", text)
    return tuple(text.split())


@lru_cache(maxsize=16)
def tokens(text: str) -> tuple[str, ...]:
    """Split a text into sentences, and those into tokens.

    Raises:
        MissingExtraError: The package with Punkt's model is not installed.
    """
    return tuple(token for sentence in punkt.sentences(text) for token in sentence_tokens(sentence))
