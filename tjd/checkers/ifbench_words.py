"""IFBench's constraints on counts, shares and words.

In and out as in `ifeval`; "sentences" are Punkt's. Official accidents are kept; what `fixed=True` mends is said where
it is.

Source: Pyatkin et al., Generalizing Verifiable Instruction Following, arXiv:2507.02833, and IFBench 0.2.0.
"""

import re
from collections import Counter
from itertools import pairwise
from string import ascii_lowercase

from tjd.checkers import punkt, tagger, treebank
from tjd.checkers.arguments import Amount, Checker, Count, Filled, Positive
from tjd.checkers.optional import import_extra
from tjd.checkers.text import (
    PUNCTUATION,
    count_words,
    delete_punctuation,
    split_without_punctuation,
    strip_punctuation,
    word_list,
    words,
)

_CONJUNCTIONS = frozenset(word_list("and but for nor or so yet"))
_PRONOUNS = frozenset(
    word_list("""
    i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself
    ourselves yourself yourselves himself herself itself themselves this that these those who whom whose which
    what whoever whomever whatever whichever anybody anyone anything everybody everyone everything nobody
    nothing somebody someone something each either neither both all some any none
""")
)
# English function words, and what is left of contractions once apostrophes split them
_STOP_WORDS = frozenset(
    word_list("""
    a about above after again against all am an and any are as at be because been before being below between
    both but by can did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just me more most my myself no nor not now of off
    on once only or other our ours ourselves out over own same she should so some such than that the their
    theirs them themselves then there these they this those through to too under until up very was we were what
    when where which while who whom why will with you your yours yourself yourselves ain aren couldn d didn
    doesn don hadn hasn haven isn ll m ma mightn mustn needn o re s shan shouldn t ve wasn weren won wouldn y
""")
)
_NAMES = re.compile(
    r"\b(?:Emma|Liam|Sophia|Jackson|Olivia|Noah|Ava|Lucas|Isabella|Mason|Mia|Ethan|Charlotte|Alexander|Amelia|Benjamin"
    r"|Harper|Leo|Zoe|Daniel|Chloe|Samuel|Lily|Matthew|Grace|Owen|Abigail|Gabriel|Ella|Jacob|Scarlett|Nathan|Victoria"
    r"|Elijah|Layla|Nicholas|Audrey|David|Hannah|Christopher|Penelope|Thomas|Nora|Andrew|Aria|Joseph|Claire|Ryan|Stella"
    r"|Jonathan)\b"
)
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_TWO_CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
_PRIMES = frozenset(n for n in range(2, 100) if all(n % divisor for divisor in range(2, n)))
_CLOSERS = "\"')]}”\u2019»"


def word_count_range(response: str, *, min_words: Count, max_words: Count) -> bool:
    r"""Between so many and so many runs of `\w`."""
    return min_words <= count_words(response) <= max_words


def unique_word_count(response: str, *, N: Count) -> bool:
    """At least so many different tokens, punctuation around them and case aside."""
    return len({strip_punctuation(token) for token in response.lower().split()}) >= N


def conjunctions(response: str, *, small_n: Count, fixed: bool = False) -> bool:
    """At least so many different coordinating conjunctions; "and", "And" and "and," differ. Fixed: they do not."""
    found = {token for token in response.split() if strip_punctuation(token).lower() in _CONJUNCTIONS}
    return len({strip_punctuation(token).lower() for token in found} if fixed else found) >= small_n


def person_names(response: str, *, N: Count) -> bool:
    """At least so many of the fifty names."""
    return len(set(_NAMES.findall(response))) >= N


def numbers(response: str, *, N: Count) -> bool:
    """Exactly so many numbers; punctuation joins ("1,000", "1-2")."""
    return len(re.findall(r"\d+", delete_punctuation(response))) == N


def words_japanese(response: str, *, N: Positive) -> bool:
    """Every N-th token has a Japanese character, or is a number or punctuation."""
    tokens = map(strip_punctuation, response.split()[N - 1 :: N])
    return all(not token or token.isdigit() or _JAPANESE.search(token) for token in tokens)


def pronouns(response: str, *, N: Count) -> bool:
    """At least so many pronouns, repetitions included."""
    return sum(token in _PRONOUNS for token in treebank.tokens(response.replace("/", " ").lower())) >= N


def punctuation(response: str) -> bool:
    """All of `. , ! ? ; :`, and an interrobang besides."""
    if not any(mark in response for mark in ("?!", "!?", "\u203d")):
        return False
    mark = "?!" if "?!" in response else "!?"
    rest = response.replace(mark, "", 1)
    return all(mark in rest for mark in ".,!?;:")


def keywords_multiple(
    response: str,
    *,
    keyword1: Filled,
    keyword2: Filled,
    keyword3: Filled,
    keyword4: Filled,
    keyword5: Filled,
    fixed: bool = False,
) -> bool:
    """Five keywords occur 1, 2, 3, 5 and 7 times, inside longer words too. Fixed: as whole words."""
    text = response.lower()
    wanted = zip((keyword1, keyword2, keyword3, keyword4, keyword5), (1, 2, 3, 5, 7), strict=True)
    return all(_occurrences(keyword.strip().lower(), text, fixed) == times for keyword, times in wanted)


def stop_words(response: str, *, percentage: Amount) -> bool:
    """At most so large a share of stop words."""
    tokens = words(response.lower())
    return bool(tokens) and sum(token in _STOP_WORDS for token in tokens) / len(tokens) * 100 <= percentage


def sentence_type(response: str, *, fixed: bool = False) -> bool:
    """Twice as many sentences end in "." as in "?". Fixed: stops before quotes count, and there is one at least."""
    ends = _count_ends(response, fixed)
    return ends["."] == 2 * ends["?"] and not (fixed and not ends["."])


def sentence_balance(response: str, *, fixed: bool = False) -> bool:
    """As many sentences end in "." as in "?" and in "!". Fixed: stops before quotes count, and there are some."""
    ends = _count_ends(response, fixed)
    return ends["."] == ends["?"] == ends["!"] and not (fixed and not ends["."])


def overlap(response: str, *, reference_text: str, percentage: Amount, fixed: bool = False) -> bool:
    """The share of character trigrams that the reference has too, give or take 2 percent. Fixed: of word trigrams."""
    ours, theirs = _trigrams(response, fixed), _trigrams(reference_text, fixed)
    if not ours:
        return False
    return percentage - 2 <= len(ours & theirs) / len(ours) * 100 <= percentage + 2


def sentence_words(response: str, *, fixed: bool = False) -> bool:
    """Three sentences of the same number of characters. Fixed: no word occurs twice."""
    sentences = punkt.sentences(response)
    if len(sentences) != 3 or len({len(sentence.strip()) for sentence in sentences}) != 1:
        return False
    return not fixed or max(Counter(words(response.lower())).values(), default=1) == 1


def alphabet(response: str) -> bool:
    """Every word starts with the letter after that of the word before."""
    initials = [token[0].lower() for token in split_without_punctuation(response)]
    if not initials or initials[0] not in ascii_lowercase:
        return False
    start = ascii_lowercase.index(initials[0])
    return all(initial == ascii_lowercase[(start + index) % 26] for index, initial in enumerate(initials))


def vowel(response: str) -> bool:
    """One line with at most three different vowels."""
    return "\n" not in response.strip() and sum(letter in response.lower() for letter in "aeiou") <= 3


def consonants(response: str) -> bool:
    """Every token has two consonants in a row."""
    return all(_TWO_CONSONANTS.search(token) for token in response.lower().split())


def palindrome(response: str) -> bool:
    """At least ten palindromes of five letters or more, repetitions included."""
    tokens = split_without_punctuation(response.lower())
    return sum(len(token) >= 5 and token == token[::-1] for token in tokens) >= 10


def prime_lengths(response: str) -> bool:
    """The length of every word is a prime number."""
    return all(len(token) in _PRIMES for token in split_without_punctuation(response))


def repeats(response: str, *, small_n: Count) -> bool:
    """No word occurs more often than this."""
    return max(Counter(split_without_punctuation(response.lower())).values(), default=0) <= small_n


def start_verb(response: str) -> bool:
    """The first Treebank token is a verb."""
    return "VB" in tagger.first_tag(treebank.tokens(response))


def odd_even_syllables(response: str) -> bool:
    """Words with odd and even numbers of syllables take turns."""
    count = import_extra("syllapy").count
    parities = [count(token) % 2 for token in split_without_punctuation(response.lower())]
    return all(one != other for one, other in pairwise(parities))


def last_first(response: str) -> bool:
    """Every sentence starts with the last word of the sentence before."""
    for one, other in pairwise(punkt.sentences(response)):
        before, after = one.rstrip(PUNCTUATION + " ").split(), other.lstrip(PUNCTUATION + " ").split()
        if not before or not after or before[-1].lower() != after[0].lower():
            return False
    return True


def paragraph_last_first(response: str) -> bool:
    """Every line starts and ends with the same word."""
    lines = (line.strip().strip(PUNCTUATION + " ").split() for line in response.lower().split("\n"))
    return all(tokens[0] == tokens[-1] for tokens in lines if tokens)


def no_consecutive(response: str) -> bool:
    """No two neighbouring words start with the same letter."""
    tokens = split_without_punctuation(response.lower())
    return all(one[0] != other[0] for one, other in pairwise(tokens))


def keywords_specific_position(response: str, *, keyword: Filled, n: Positive, m: Positive) -> bool:
    """The m-th word of the n-th sentence is the keyword, upper or lower case."""
    sentences = punkt.sentences(response)
    if n > len(sentences):
        return False
    tokens = _words(treebank.tokens(sentences[n - 1]))
    return m <= len(tokens) and tokens[m - 1].lower() == keyword.strip().lower()


def words_position(response: str, *, keyword: Filled, fixed: bool = False) -> bool:
    """The second and the second-last Treebank token are the keyword; one final mark of ASCII punctuation aside.

    Fixed: no punctuation is a word.
    """
    tokens = [token.lower() for token in treebank.tokens(response)]
    if fixed:
        tokens = _words(tokens)
    elif tokens and tokens[-1] in PUNCTUATION:
        tokens.pop()
    return len(tokens) > 1 and tokens[1] == tokens[-2] == keyword.strip().lower()


def _words(tokens: tuple[str, ...] | list[str]) -> list[str]:
    return [token for token in tokens if any(map(str.isalnum, token))]


def _occurrences(keyword: str, text: str, whole: bool) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text)) if whole else text.count(keyword)


def _count_ends(text: str, past_quotes: bool) -> Counter[str]:
    sentences = punkt.sentences(text)
    return Counter((sentence.rstrip(_CLOSERS) if past_quotes else sentence)[-1:] for sentence in sentences)


def _trigrams(text: str, of_words: bool) -> set[str]:
    if of_words:
        tokens = words(text.lower())
        return {" ".join(tokens[index : index + 3]) for index in range(len(tokens) - 2)}
    return {text[index : index + 3] for index in range(len(text) - 2)}


CHECKERS: dict[str, Checker] = {
    "count:word_count_range": word_count_range,
    "count:unique_word_count": unique_word_count,
    "count:conjunctions": conjunctions,
    "count:person_names": person_names,
    "count:numbers": numbers,
    "count:words_japanese": words_japanese,
    "count:pronouns": pronouns,
    "count:punctuation": punctuation,
    "count:keywords_multiple": keywords_multiple,
    "ratio:stop_words": stop_words,
    "ratio:sentence_type": sentence_type,
    "ratio:sentence_balance": sentence_balance,
    "ratio:overlap": overlap,
    "ratio:sentence_words": sentence_words,
    "words:alphabet": alphabet,
    "words:vowel": vowel,
    "words:consonants": consonants,
    "words:palindrome": palindrome,
    "words:prime_lengths": prime_lengths,
    "words:repeats": repeats,
    "words:start_verb": start_verb,
    "words:odd_even_syllables": odd_even_syllables,
    "words:last_first": last_first,
    "words:paragraph_last_first": paragraph_last_first,
    "words:no_consecutive": no_consecutive,
    "words:keywords_specific_position": keywords_specific_position,
    "words:words_position": words_position,
}
