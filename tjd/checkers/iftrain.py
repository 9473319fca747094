"""IFTrain's 29 training constraints.

In and out as in `ifeval`; "sentences" are those of `text.heuristic_sentences`. Official accidents are kept; what
`fixed=True` mends is said where it is.

Source: Pyatkin et al., Generalizing Verifiable Instruction Following, arXiv:2507.02833.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tjd.checkers import ifeval, patterns, treebank
from tjd.checkers.arguments import Checker, Count, Filled, FirstOf, Positive, Relation
from tjd.checkers.text import heuristic_sentences, inner_pieces, strip_punctuation
from tjd.errors import CheckerError

_PARAGRAPH_STARS = re.compile(r"\s?\*\*\*\s?")
_LOWERCASE_WORD = re.compile(r"\b[a-z]+\b")
_ASCII_LETTER = re.compile(r"[a-zA-Z]")
_NO_WORD_CHARACTER = re.compile(r"[^\w\s]")


def repeat_phrase(response: str, *, phrase: Filled, small_n: Positive, fixed: bool = False) -> bool:
    """Exactly so many variations of a phrase: its first and last word stand, exactly one word differs.

    Fixed: these two words are literal, not regular expressions.
    """
    words = phrase.split()
    if not words:
        raise CheckerError("phrase must have a word")
    found = [text for line in response.split("\n") for text in _between(words[0], words[-1], line, fixed)]
    return len(found) == small_n and all(_differs_in_one_word(text.split(), words) for text in found)


def copy(response: str, *, prompt_to_repeat: Filled) -> bool:
    """Repeats the request, upper or lower case."""
    return _same(response, prompt_to_repeat)


def copying_multiple(response: str, *, prompt_to_repeat: Filled, N: Positive) -> bool:
    """Repeats the request so many times, six asterisks between."""
    copies = response.split("******")
    return len(copies) == N and all(_same(piece, prompt_to_repeat) for piece in copies)


def copy_span_idx(
    response: str, *, prompt_to_repeat: Filled, n_start: Count, n_end: Positive, fixed: bool = False
) -> bool:
    """Repeats the characters from n_start up to, not including, n_end. Fixed: including, and n_start may be 0."""
    if n_start == 0 and not fixed:
        raise CheckerError("n_start must be 1 or more: the official code draws another start for 0; or use fixed=True")
    return _same(response, prompt_to_repeat[n_start : n_end + fixed])


def sentence_hyphens(response: str) -> bool:
    """Sentences joined by hyphens, no space around."""
    sentences = heuristic_sentences(response.replace("-", " "))
    return all(piece == sentence for piece, sentence in zip(response.split("-"), sentences, strict=False))


def square_brackets(response: str) -> bool:
    """Every token stands in square brackets."""
    return all(token.startswith("[") and token.endswith("]") for token in response.split())


def bigram_wrapping(response: str) -> bool:
    """Every two tokens stand in double angular brackets; an odd last one may do without."""
    tokens = response.split()
    pairs = zip(tokens[::2], tokens[1::2], strict=False)
    return all(first.startswith("<<") and second.endswith(">>") for first, second in pairs)


def no_adjacent_consecutive(response: str) -> bool:
    """No token starts with the letter after that of the token before."""
    initials = [token[0].lower() for token in response.split()]
    if len(initials) > 1 and any(len(initial) > 1 for initial in initials):
        return False
    return all(ord(second) - ord(first) != 1 for first, second in pairwise(initials))


def word_once(response: str, *, keyword: Filled, fixed: bool = False) -> bool:
    """A keyword occurs exactly once, inside a longer word too. Fixed: it is literal, not a regular expression."""
    return _count(keyword.strip(), response, fixed) == 1


def exclude_word_harder(response: str, *, keyword: Filled, fixed: bool = False) -> bool:
    """A keyword does not occur between two spaces. Fixed: nor as a whole word anywhere, upper or lower case."""
    if fixed:
        return re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", response, re.IGNORECASE) is None
    return f" {keyword} " not in response


def palindrome(response: str) -> bool:
    """Some token reads the same backwards; one character is enough."""
    return any(token == token[::-1] for token in response.split())


def keyword_specific_position(
    response: str, *, keyword: FirstOf, n: Positive, m: Positive, fixed: bool = False
) -> bool:
    """The m-th Treebank token of the n-th sentence is the keyword. Fixed: punctuation is no word."""
    sentences = heuristic_sentences(response)
    if n > len(sentences):
        return False
    tokens = _words(sentences[n - 1], fixed)
    return m <= len(tokens) and tokens[m - 1] == keyword


def start_end(response: str, *, fixed: bool = False) -> bool:
    """The first and last of at least two Treebank tokens are the same. Fixed: punctuation is no word."""
    tokens = _words(response, fixed)
    return len(tokens) > 1 and tokens[0].lower() == tokens[-1].lower()


def paragraphs(response: str) -> bool:
    """Two paragraphs between `***`."""
    return ifeval.number_paragraphs(response, num_paragraphs=Count(2))


def paragraphs2(response: str) -> bool:
    """Two paragraphs between two newlines."""
    pieces = inner_pieces(response.split("\n\n"))
    return pieces is not None and len(pieces) == 2


def first_word_sent(response: str, *, first_word: FirstOf, fixed: bool = False) -> bool:
    """Every sentence starts with a word, upper or lower case. Fixed: punctuation around it is no part of it."""
    return all(_first(sentence, fixed) == first_word.lower() for sentence in heuristic_sentences(response))


def first_word_answer(response: str, *, first_word: FirstOf, fixed: bool = False) -> bool:
    """The response starts with a word, upper or lower case. Fixed: punctuation around it is no part of it."""
    return _first(response, fixed) == first_word.lower()


def last_word_sent(response: str, *, last_word: FirstOf, fixed: bool = False) -> bool:
    """Every sentence ends with a word, upper or lower case. Fixed: the word may have punctuation within."""
    return all(_ends_with(sentence, last_word, fixed) for sentence in heuristic_sentences(response))


def last_word_answer(response: str, *, last_word: FirstOf, fixed: bool = False) -> bool:
    """The response ends with a word, upper or lower case. Fixed: the word may have punctuation within."""
    return _ends_with(response, last_word, fixed)


def punctuation_dot(response: str) -> bool:
    """No ASCII full stop."""
    return "." not in response


def punctuation_exclamation(response: str) -> bool:
    """No ASCII exclamation mark."""
    return "!" not in response


def lowercase_counting(response: str, *, N: Positive) -> bool:
    """At most so many words of ASCII small letters."""
    return len(_LOWERCASE_WORD.findall(response)) <= N


def counting_composition(response: str, *, n_sent: Positive, n_words: Positive, fixed: bool = False) -> bool:
    """Three paragraphs of so many sentences of so many Treebank tokens. Fixed: punctuation is no word."""
    pieces = _PARAGRAPH_STARS.split(response)
    return len(pieces) == 3 and all(
        len(sentences) == n_sent and all(len(_words(sentence, fixed)) == n_words for sentence in sentences)
        for sentences in map(heuristic_sentences, pieces)
    )


def count_unique(response: str, *, fixed: bool = False) -> bool:
    """No Treebank token occurs twice. Fixed: punctuation may."""
    tokens = _words(response, fixed)
    return len(tokens) == len(set(tokens))


def count_increment_word(response: str, *, keyword1: Filled, keyword2: Filled, fixed: bool = False) -> bool:
    """One keyword occurs once, another twice, inside longer words too. Fixed: they are literal."""
    return _count(keyword1.strip(), response, fixed) == 1 and _count(keyword2.strip(), response, fixed) == 2


def letter_counting(response: str, *, N: Positive, relation: Relation) -> bool:
    """Less than, or at least, so many ASCII letters."""
    return ifeval.is_relation_met(len(_ASCII_LETTER.findall(response)), relation, N)


def _same(text: str, wanted: str) -> bool:
    return text.strip().lower() == wanted.strip().lower()


def _between(first: str, last: str, line: str, literal: bool) -> Iterator[str]:
    """Yield the shortest stretches `first ... last` of a line, one after the other; both may be regular expressions."""
    if not literal and not (first + last).isalnum():
        yield from (found[0] for found in patterns.find_all(f"{first} .*? {last}", line))
        return
    end = 0  # the same by plain search, which does not slow down where the last word is missing
    while (start := line.find(f"{first} ", end)) >= 0 and (at := line.find(f" {last}", start + len(first) + 1)) >= 0:
        end = at + 1 + len(last)
        yield line[start:end]


def _differs_in_one_word(words: Sequence[str], phrase: Sequence[str]) -> bool:
    return len(words) == len(phrase) and sum(map(str.__ne__, words, phrase)) == 1


def _count(keyword: str, text: str, literal: bool) -> int:
    return patterns.count(re.escape(keyword) if literal else keyword, text)


def _words(text: str, fixed: bool) -> Sequence[str]:
    tokens = treebank.tokens(text)
    return [token for token in tokens if any(map(str.isalnum, token))] if fixed else tokens


def _first(text: str, fixed: bool) -> str:
    token = next(iter(text.split(maxsplit=1)), "")
    return (strip_punctuation(token) if fixed else token).lower()


def _ends_with(text: str, word: str, fixed: bool) -> bool:
    token = next(iter(text.rsplit(maxsplit=1)[-1:]), "")
    if fixed:
        return strip_punctuation(token).lower() == strip_punctuation(word).lower()
    return _NO_WORD_CHARACTER.sub("", token).lower() == word.lower()


CHECKERS: dict[str, Checker] = {
    "copy:repeat_phrase": repeat_phrase,
    "copy:copy": copy,
    "copy:copying_simple": copy,
    "copy:copying_multiple": copying_multiple,
    "new:copy_span_idx": copy_span_idx,
    "detectable_format:sentence_hyphens": sentence_hyphens,
    "detectable_format:square_brackets": square_brackets,
    "detectable_format:bigram_wrapping": bigram_wrapping,
    "keywords:no_adjacent_consecutive": no_adjacent_consecutive,
    "keywords:word_once": word_once,
    "keywords:word_count_different_numbers": ifeval.frequency,
    "keywords:exclude_word_harder": exclude_word_harder,
    "keywords:palindrome": palindrome,
    "keywords:keyword_specific_position": keyword_specific_position,
    "keywords:start_end": start_end,
    "paragraphs:paragraphs": paragraphs,
    "paragraphs:paragraphs2": paragraphs2,
    "first_word:first_word_sent": first_word_sent,
    "first_word:first_word_answer": first_word_answer,
    "last_word:last_word_sent": last_word_sent,
    "last_word:last_word_answer": last_word_answer,
    "punctuation:punctuation_dot": punctuation_dot,
    "punctuation:punctuation_exclamation": punctuation_exclamation,
    "count:lowercase_counting": lowercase_counting,
    "count:counting_composition": counting_composition,
    "count:count_unique": count_unique,
    "count:count_increment_word": count_increment_word,
    "letters:letter_counting": letter_counting,
    "letters:letter_counting2": ifeval.old_letter_frequency,
}
