"""Multi-IF's revisions of IFEval's rule constraints, for responses in eight languages.

In and out as in `ifeval`. Sentences and words are counted by the rules of the language that langdetect names; curly
and corner quotes count as quotes; letters are counted by the old revision. Where the official code folds an
unreadable pattern into "not followed", ours says that it cannot be read.

Source: He et al., Multi-IF, arXiv:2410.15553.
"""

import re
from typing import Any

from tjd.checkers import ifeval, languages, punkt
from tjd.checkers.arguments import Checker, Count, Relation, is_relation_met
from tjd.checkers.optional import import_extra
from tjd.checkers.text import count_words, is_blank

_CHINESE_OR_JAPANESE = frozenset(("zh", "zh-cn", "zh-tw", "ja"))
_HINDI_STOP = re.compile(r"(?<=[\u0964!?])\s*")
_WIDE_SENTENCE = re.compile(r"[^!?.。！？．\n]+[!?.。！？．\n]?")  # noqa: RUF001
_WIDE_PUNCTUATION = re.compile(
    r"[\\.!?．/_,{}<>:;$%^&*(+\"'—！，。？、`~@#￥…（）：；《》“”)\[\]»〔〕\-「」]+"  # noqa: RUF001
)
_WIDE_CHARACTER = re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf\u3040-\u309f\u30a0-\u30ff\uac00-\ud7af]")
_QUOTES = ('""', "“”", "「」")


def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> bool:
    """Less than, or at least, so many sentences by the rules of the response's language."""
    return is_relation_met(_count_sentences(response), relation, num_sentences)


def number_words(response: str, *, num_words: Count, relation: Relation) -> bool:
    """Less than, or at least, so many words; in Chinese and Japanese every character and emoji is one."""
    return is_relation_met(_count_words(response), relation, num_words)


def quotation(response: str) -> bool:
    """Between straight, curly or corner quotes."""
    text = response.strip()
    return len(text) > 1 and text[0] + text[-1] in _QUOTES


def _thai() -> Any:
    import_extra("pycrfsuite")  # its sentence splitter needs it, and does not say so until it runs
    return import_extra("pythainlp.tokenize")


def _count_sentences(text: str) -> int:
    language = languages.detect(text)
    if language == "th":
        split = _thai().sent_tokenize
        return sum(len(split(line)) for line in text.split("\n"))
    if language == "hi":
        return sum(not is_blank(piece) for piece in _HINDI_STOP.split(text))
    if language in _CHINESE_OR_JAPANESE:
        return sum(len(_WIDE_SENTENCE.findall(line)) for line in text.split("\n"))
    return len(punkt.sentences(text))


def _count_words(text: str) -> int:
    language = languages.detect(text)
    if language == "th":
        return len(_thai().word_tokenize(text))
    if language in _CHINESE_OR_JAPANESE:
        emoji = import_extra("emoji")
        text = _WIDE_PUNCTUATION.sub("", text)
        pictures = emoji.emoji_count(text)
        rest, characters = _WIDE_CHARACTER.subn("", emoji.replace_emoji(text, ""))
        return characters + len(rest.split()) + pictures
    return count_words(text)


CHECKERS: dict[str, Checker] = ifeval.CHECKERS | {
    "keywords:letter_frequency": ifeval.old_letter_frequency,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "startend:quotation": quotation,
}
