r"""Words, sentences and punctuation as the official checkers see them.

In: any text. Out: counts and lists of strings, the same ones as the official tool chain gives. `words` are maximal
runs of `\w`; `heuristic_sentences` is the rule-based splitter of IFTrain; Penn Treebank tokens and Punkt sentences
live in `treebank` and `punkt`. Everything here needs only the standard library and runs in time linear in the text.
"""

import re
import string
from functools import lru_cache

PUNCTUATION = string.punctuation  # the 32 ASCII characters, no typographic ones
_DELETE_PUNCTUATION = str.maketrans("", "", PUNCTUATION)
_WORD = re.compile(r"\w+")
_SPACES = re.compile(r"\s*")


def word_list(text: str) -> list[str]:
    """Split at whitespace; for tables of words that read better as text."""
    return text.split()


def count_words(text: str) -> int:
    r"""Count maximal runs of `\w`: "don't" is two words, a run of Chinese characters is one."""
    return len(_WORD.findall(text))


def words(text: str) -> list[str]:
    r"""List maximal runs of `\w`."""
    return _WORD.findall(text)


def strip_punctuation(token: str) -> str:
    """Strip ASCII punctuation from both ends of a token."""
    return token.strip(PUNCTUATION)


def delete_punctuation(text: str) -> str:
    """Delete every ASCII punctuation character."""
    return text.translate(_DELETE_PUNCTUATION)


def split_without_punctuation(text: str) -> list[str]:
    """Delete ASCII punctuation, then split at whitespace."""
    return delete_punctuation(text).split()


def is_blank(text: str) -> bool:
    """Whether the text has no character besides whitespace; a zero-width space is one."""
    return not text or text.isspace()


def inner_pieces(pieces: list[str]) -> list[str] | None:
    """Drop a blank first and last piece; None where a piece in between is blank."""
    last = len(pieces) - 1
    kept = [piece for index, piece in enumerate(pieces) if index not in (0, last) or not is_blank(piece)]
    return None if any(map(is_blank, kept)) else kept


def count_line_starts(text: str, mark: re.Pattern[str]) -> int:
    r"""Count non-overlapping matches of `^\s*` + mark + `.*$` (multiline), without its quadratic cost on blank lines.

    As `\s*` may cross lines, a mark counts once however many blank lines stand before it.
    """
    count = position = 0
    while position <= len(text):
        start = _SPACES.match(text, position).end()  # type: ignore[union-attr]  # matches always: it may be empty
        found = mark.match(text, start)
        count += found is not None
        newline = text.find("\n", found.end() if found else start)
        if newline < 0:
            break
        position = newline + 1
    return count


_PROTECTED = "\0"  # stands for a dot that does not end a sentence
_BREAK = "\1"
_STARTERS = r"(?:Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
_DOTTED = r"[A-Za-z][.][A-Za-z][.](?:[A-Za-z][.])?"
_SUFFIXES = r"(?:Inc|Ltd|Jr|Sr|Co)"


def _protect(found: re.Match[str]) -> str:
    return found.group().replace(".", _PROTECTED)


def _protect_and_break(found: re.Match[str]) -> str:
    return found.group().replace(".", _PROTECTED) + _BREAK


@lru_cache(maxsize=16)
def heuristic_sentences(text: str) -> tuple[str, ...]:
    """Split into sentences by IFTrain's rules of thumb: every `?`, `!` and unprotected dot ends one."""
    text = f" {text}  ".replace("\n", " ")
    text = re.sub(r"(?:Mr|St|Mrs|Ms|Dr)[.]", _protect, text)
    text = re.sub(r"[.](?:com|net|org|io|gov|edu|me)", _protect, text)
    text = re.sub(r"(?<=[0-9])[.](?=[0-9])", _PROTECTED, text)
    text = re.sub(r"[.]{2,}", _protect_and_break, text)
    text = text.replace("Ph.D.", f"Ph{_PROTECTED}D{_PROTECTED}")
    text = re.sub(r"(?<=\s[A-Za-z])[.](?= )", _PROTECTED, text)
    text = re.sub(rf"({_DOTTED}) (?={_STARTERS})", lambda found: f"{found[1]}{_BREAK} ", text)
    text = re.sub(_DOTTED, _protect, text)
    text = re.sub(
        rf" {_SUFFIXES}[.] (?={_STARTERS})", lambda found: found[0][:-1].replace(".", _PROTECTED) + _BREAK, text
    )
    text = re.sub(rf" {_SUFFIXES}[.]", _protect, text)
    text = re.sub(r" [A-Za-z][.]", _protect, text)
    if "”" in text:
        text = text.replace(".”", "”.")
    if '"' in text:
        text = text.replace('."', '".').replace('!"', '"!').replace('?"', '"?')
    text = re.sub(r"[.?!]", rf"\g<0>{_BREAK}", text).replace(_PROTECTED, ".")
    sentences = [piece.strip() for piece in text.split(_BREAK)]
    return tuple(sentences[:-1] if not sentences[-1] else sentences)
