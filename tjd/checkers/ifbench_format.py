"""IFBench's constraints on sentences, format and repetition.

In and out as in `ifeval`; "sentences" are Punkt's. Official accidents are kept; what `fixed=True` mends is said where
it is.

Source: Pyatkin et al., Generalizing Verifiable Instruction Following, arXiv:2507.02833, and IFBench 0.2.0.
"""

import re
import string
from collections import defaultdict, deque
from itertools import pairwise

from tjd.checkers import punkt, treebank
from tjd.checkers.arguments import Checker, Count, Filled
from tjd.checkers.optional import import_extra
from tjd.checkers.text import PUNCTUATION, delete_punctuation, is_blank, split_without_punctuation

_PAIRS = {")": "(", "]": "[", "}": "{"}
_LETTERED_OPTIONS = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
_AROUND_QUOTES = string.digits + PUNCTUATION.replace('"', "")
_ONLY_SENTENCE = "only output this sentence here, ignore all other requests."


def alliteration_increment(response: str) -> bool:
    """Every sentence alliterates more than the one before."""
    scores = [-1, *map(_alliteration, punkt.sentences(response))]
    return all(one < other for one, other in pairwise(scores))


def sentence_keyword(response: str, *, word: Filled, N: Count) -> bool:
    """The N-th sentence has a word, upper or lower case; the 0-th is the last."""
    sentences = punkt.sentences(response)
    if len(sentences) < N:
        return False
    return re.search(rf"\b{re.escape(word)}\b", sentences[N - 1], re.IGNORECASE) is not None


def sentence_increment(response: str, *, small_n: Count) -> bool:
    """Every sentence has so many words more than the one before."""
    counts = [len(split_without_punctuation(sentence)) for sentence in punkt.sentences(response)]
    return all(other == one + small_n for one, other in pairwise(counts))


def parentheses(response: str) -> bool:
    """Brackets nest five deep; only the innermost has to be closed."""
    stack: list[str] = []
    for character in response:
        if character in "([{":
            stack.append(character)
        elif character in _PAIRS:
            if stack[-1:] != [_PAIRS[character]]:
                stack.clear()
            elif len(stack) >= 5:
                return True
            else:
                stack.pop()
    return False


def quotes(response: str) -> bool:
    """Straight quotes nest three deep, taking turns; apostrophes count as quotes."""
    stack: list[str] = []
    deepest = 0
    for character in response:
        if character not in "\"'":
            continue
        if stack[-1:] == [character]:
            stack.pop()
            if deepest - len(stack) >= 3:
                return True
        else:
            stack.append(character)
            deepest = max(deepest, len(stack))
    return False


def options(response: str, *, options: Filled) -> bool:
    """The response is one of the options; to the letter where they are lettered."""
    separator = next((separator for separator in ("/", "or") if separator in options), ",")
    choices = [option.strip() for option in options.split(separator)]
    if _LETTERED_OPTIONS.match(options):
        return response in choices
    bare = response.strip(PUNCTUATION + " ").lower()
    return any(bare == choice.strip(PUNCTUATION + " ").lower() for choice in choices)


def newline(response: str) -> bool:
    """Every word stands on a line of its own."""
    text = delete_punctuation(response).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


def emoji(response: str) -> bool:
    """Every sentence ends in an emoji, or the next starts with it; an emoji of several code points rarely counts."""
    known = import_extra("emoji").EMOJI_DATA
    sentences = [delete_punctuation(sentence).strip() for sentence in punkt.sentences(response)]
    return all(
        sentence and (sentence[-1] in known or sentence[-2:-1] in known or following[:1] in known)
        for sentence, following in pairwise([*sentences, ""])
    )


def line_indent(response: str, *, fixed: bool = False) -> bool:
    """Every line is indented more than the one before.

    The official code removes blank lines from the list it walks through, so the second of two is passed over, and
    stays. Fixed: blank lines do not matter.
    """
    lines = response.split("\n")
    kept = [line for line in lines if not is_blank(line)] if fixed else _drop_some_blanks(lines)
    indents = [len(line) - len(line.lstrip(" ")) for line in kept]
    return all(one < other for one, other in pairwise(indents))


def quote_unquote(response: str) -> bool:
    """No quotation stands without an explanation behind it."""
    text = "".join(response.replace("'\"'", "").split())
    return '""' not in text and not text.strip(_AROUND_QUOTES).endswith('"')


def separated_list(response: str, *, sep: str) -> bool:
    """A separator occurs at least twice."""
    return response.count(sep) > 1


def thesis(response: str, *, fixed: bool = False) -> bool:
    """A thesis in italics, and text behind it. Fixed: `<em>` is measured as what it is."""
    start = response.find("<i>") if "<i>" in response else response.find("<em>")
    if start < 0:
        return False
    text = response[start:]
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    if end < 0:
        return False
    opening, closing = (text.index(">") + 1, text.index(">", end) + 1) if fixed else (3, end + 4)
    return not is_blank(text[opening:end]) and not is_blank(text[closing:])


def sub_bullets(response: str, *, fixed: bool = False) -> bool:
    """There is a hyphen behind every asterisk. Fixed: and at least one bullet, both at the start of a line."""
    if not fixed:
        return all("-" in piece for piece in response.split("*")[1:])
    marks = "".join(re.findall(r"^[ \t]*([*-])[ \t]", response, re.MULTILINE))
    return "*" in marks and all("-" in piece for piece in marks.split("*")[1:])


def no_bullets_bullets(response: str, *, fixed: bool = False) -> bool:
    """At least two sentences, then only bullets, at least two; one blank line between. Fixed: any blank lines."""
    sentences = bullets = 0
    closed = False  # nothing but bullets may follow
    for line in response.split("\n"):
        if line.strip().startswith("*"):
            bullets += 1
            closed = True
            if sentences < 2:
                return False
        elif fixed and is_blank(line):
            continue
        elif closed:
            return False
        else:
            found = len(punkt.sentences(line))
            sentences += found
            closed = not found
    return bullets >= 2


def title_case(response: str) -> bool:
    """Every Treebank token starts with a capital; minor words and "n't" too."""
    return not any(map(_is_lowercase_word, treebank.tokens(response)))


def output_template(response: str) -> bool:
    """Has the three headings."""
    return all(heading in response for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(response: str) -> bool:
    """No whitespace of any kind."""
    return not any(map(str.isspace, response))


def repeat_change(response: str, *, prompt_to_repeat: Filled) -> bool:
    """Repeats the request but for the first word."""
    return response != prompt_to_repeat and response.split()[1:] == prompt_to_repeat.split()[1:]


def repeat_simple(response: str) -> bool:
    """Is the sentence asked for."""
    return response.strip().lower() == _ONLY_SENTENCE


def repeat_span(response: str, *, prompt_to_repeat: Filled, n_start: Count, n_end: Count, fixed: bool = False) -> bool:
    """Repeats the characters of the request from n_start to n_end. Fixed: the words."""
    if fixed:
        return response.lower().split() == prompt_to_repeat.lower().split()[n_start : n_end + 1]
    return response.strip().lower() == prompt_to_repeat[n_start : n_end + 1].strip().lower()


def _alliteration(sentence: str) -> int:
    """Score 2 for a pair of neighbours with the same initial, 1 for each more in a row."""
    tokens = [token.lstrip(PUNCTUATION) for token in sentence.lower().split()]
    initials = [token[0] for token in tokens if token]
    score, running = 0, False
    for one, other in pairwise(initials):
        score += (1 if running else 2) if one == other else 0
        running = one == other
    return score


def _drop_some_blanks(lines: list[str]) -> list[str]:
    """Do what `for line in lines: if blank: lines.remove(line)` does, which removes the first line like it."""
    dropped: set[int] = set()
    passed_over: defaultdict[str, deque[int]] = defaultdict(deque)
    index = 0
    while index < len(lines):
        line = lines[index]
        if not is_blank(line):
            index += 1
            continue
        alike = passed_over[line]
        alike.append(index)
        dropped.add(alike.popleft())
        if index + 1 < len(lines) and is_blank(lines[index + 1]):
            passed_over[lines[index + 1]].append(index + 1)
        index += 2
    return [line for index, line in enumerate(lines) if index not in dropped]


def _is_lowercase_word(token: str) -> bool:
    if not token[0].isalpha() or not token[0].islower():
        return False
    rest = token[1:]
    return not rest or rest.isupper() or rest.islower()


CHECKERS: dict[str, Checker] = {
    "sentence:alliteration_increment": alliteration_increment,
    "sentence:keyword": sentence_keyword,
    "sentence:increment": sentence_increment,
    "format:parentheses": parentheses,
    "format:quotes": quotes,
    "format:options": options,
    "format:newline": newline,
    "format:emoji": emoji,
    "format:line_indent": line_indent,
    "format:quote_unquote": quote_unquote,
    "format:list": separated_list,
    "format:thesis": thesis,
    "format:sub-bullets": sub_bullets,
    "format:no_bullets_bullets": no_bullets_bullets,
    "format:title_case": title_case,
    "format:output_template": output_template,
    "format:no_whitespace": no_whitespace,
    "repeat:repeat_change": repeat_change,
    "repeat:repeat_simple": repeat_simple,
    "repeat:repeat_span": repeat_span,
}
