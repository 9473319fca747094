"""IFEval's 25 rule constraints, as the latest revision of the official code decides them.

In: a response that is not blank, and the constraint's kwargs. Out: whether it is followed. Accidents of the official
code are kept, since published numbers depend on them; what `fixed=True` mends is said where it is.

Source: Zhou et al., Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911.
"""

import json
import re

from tjd.checkers import languages, patterns, punkt, treebank
from tjd.checkers.arguments import Checker, Count, Filled, FilledList, Positive, Relation, is_relation_met
from tjd.checkers.text import count_line_starts, count_words, inner_pieces, is_blank
from tjd.errors import CheckerError

_STARS = re.compile(r"\s?\*\*\*\s?")
_STAR_BULLET = re.compile(r"\*[^*]")
_DASH_BULLET = re.compile(r"-")
_BULLET = re.compile(r"^[ \t]*[*+•-][ \t]+(?![*_-][ \t]*[*_-])\S", re.MULTILINE)
_EMPHASIS = re.compile(r"\*[^\n*]*\*")
_BOLD = re.compile(r"\*\*[^\n*]*\*\*")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def existence(response: str, *, keywords: FilledList, fixed: bool = False) -> bool:
    """Every keyword occurs, inside a longer word too. Fixed: keywords are literal, not regular expressions."""
    return all(patterns.is_found(_source(keyword, fixed), response, ignore_case=True) for keyword in keywords)


def frequency(response: str, *, keyword: Filled, frequency: Count, relation: Relation, fixed: bool = False) -> bool:
    """A keyword occurs less than, or at least, so often. Fixed: it is literal, not a regular expression."""
    return is_relation_met(patterns.count(_source(keyword.strip(), fixed), response), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: FilledList, fixed: bool = False) -> bool:
    """No word occurs as a whole word. Fixed: words are literal, and may begin or end with a symbol ("C++")."""
    before, after = (r"(?<!\w)", r"(?!\w)") if fixed else (r"\b", r"\b")
    return not any(
        patterns.is_found(_source(word, fixed), response, before=before, after=after, ignore_case=True)
        for word in forbidden_words
    )


def letter_frequency(response: str, *, letter: Filled, let_frequency: Count, let_relation: Relation) -> bool:
    """A character, upper or lower case, occurs less than, or at least, so often."""
    if len(letter) > 1:
        raise CheckerError(f"letter must be one character, not {letter!r}")
    letter = Filled(letter.strip().lower())
    count = response.lower().count(letter) if len(letter) == 1 else 0  # some letters lower-case to two characters
    return is_relation_met(count, let_relation, let_frequency)


def old_letter_frequency(
    response: str, *, letter: Filled, let_frequency: Count, let_relation: Relation, fixed: bool = False
) -> bool:
    """The 2023 revision of `letter_frequency`, which draws another letter at random for any but a to z.

    Fixed: any character is counted.
    """
    if not fixed and (len(letter) > 1 or not "a" <= letter.lower() <= "z"):
        raise CheckerError(
            f"letter must be one of a to z, not {letter!r}; suite ifeval, or fixed=True, takes any character"
        )
    return letter_frequency(response, letter=letter, let_frequency=let_frequency, let_relation=let_relation)


def response_language(response: str, *, language: Filled) -> bool:
    """The language langdetect (seed 0) names is this one; a text it can say nothing about passes."""
    return languages.detect(response) in (language, None)


def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> bool:
    """Less than, or at least, so many Punkt sentences."""
    return is_relation_met(len(punkt.sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: Count) -> bool:
    """Exactly so many paragraphs between `***`; an empty one within fails."""
    paragraphs = inner_pieces(_STARS.split(response))
    return paragraphs is not None and len(paragraphs) == num_paragraphs


def number_words(response: str, *, num_words: Count, relation: Relation) -> bool:
    r"""Less than, or at least, so many runs of `\w`."""
    return is_relation_met(count_words(response), relation, num_words)


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: Count, nth_paragraph: Positive, first_word: Filled, fixed: bool = False
) -> bool:
    """So many paragraphs between two newlines, the n-th of which starts with a word.

    Paragraphs are counted without the blank ones but numbered with them. Fixed: numbered without, too.
    """
    if nth_paragraph > num_paragraphs:
        raise CheckerError(f"nth_paragraph is {nth_paragraph}, but num_paragraphs only {num_paragraphs}")
    pieces = response.split("\n\n")
    filled = [piece for piece in pieces if not is_blank(piece)]
    if nth_paragraph > len(filled):
        return False
    paragraph = (filled if fixed else pieces)[nth_paragraph - 1]
    if is_blank(paragraph):
        return False
    token = paragraph.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    word = re.split("[.,?!'\"]", token, maxsplit=1)[0]
    return len(filled) == num_paragraphs and word.lower() == first_word.lower()


def number_placeholders(response: str, *, num_placeholders: Count) -> bool:
    """At least so many pairs of square brackets, each within one line."""
    return sum(map(_count_brackets, response.split("\n"))) >= num_placeholders


def postscript(response: str, *, postscript_marker: Filled, fixed: bool = False) -> bool:
    """The postscript marker occurs anywhere, upper or lower case. Fixed: it starts a line, markup aside."""
    marker, text = postscript_marker.strip(), response.lower()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker)
    if fixed:
        return re.search(rf"^[ \t*_#>]*{known or re.escape(marker.lower())}", text, re.MULTILINE) is not None
    return re.search(known, text) is not None if known else patterns.is_found(marker.lower(), text)


def number_bullet_lists(response: str, *, num_bullets: Count, fixed: bool = False) -> bool:
    """Exactly so many lines that start with `*` (but not `**`) or `-`.

    Fixed: only list items, so neither rules (`---`) nor negative numbers nor emphasised lines; `+` and `•` count.
    """
    if fixed:
        return len(_BULLET.findall(response)) == num_bullets
    return count_line_starts(response, _STAR_BULLET) + count_line_starts(response, _DASH_BULLET) == num_bullets


def constrained_response(response: str, *, fixed: bool = False) -> bool:
    """Contains one of the three answers. Fixed: is one of them."""
    return response.strip() in _ANSWERS if fixed else any(answer in response for answer in _ANSWERS)


def number_highlighted_sections(response: str, *, num_highlights: Count) -> bool:
    """At least so many stretches between asterisks within one line; `***three***` count as two."""
    emphasised = sum(1 for found in _EMPHASIS.findall(response) if found.strip("*").strip())
    bold = sum(1 for found in _BOLD.findall(response) if found[2:-2].strip())
    return emphasised + bold >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: Count, fixed: bool = False) -> bool:
    """At least so many section marks: the splitter and a number, at most one space between.

    Fixed: marks that start a line, with markup, a colon or a Roman number.
    """
    splitter = section_spliter.strip()
    if fixed:
        mark = rf"^[ \t*_#>]*{re.escape(splitter)}[\s:*_.#]{{0,6}}(?:\d+|[IVXLC]+)\b"
        return len(re.findall(mark, response, re.MULTILINE)) >= num_sections
    found = list(patterns.find_all(splitter, response, before=r"\s?", after=r"\s?\d+\s?"))
    groups = found[0].re.groups if found else 0  # a split keeps the groups of its pattern as pieces
    return len(found) * (1 + groups) >= num_sections


def json_format(response: str) -> bool:
    """Parses as JSON, a fence around it aside."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except ValueError:
        return False
    except RecursionError as deep:
        raise CheckerError("the JSON nests too deeply to be read") from deep
    return True


def title(response: str) -> bool:
    """A line contains something between `<<` and `>>`."""
    return any(_has_title(line) for line in response.split("\n"))


def two_responses(response: str) -> bool:
    """Two different answers between six asterisks."""
    answers = inner_pieces(response.split("******"))
    return answers is not None and len(answers) == 2 and answers[0].strip() != answers[1].strip()


def repeat_prompt(response: str, *, prompt_to_repeat: Filled, fixed: bool = False) -> bool:
    """Starts with the request, upper or lower case. Fixed: an answer follows."""
    text, request = response.strip().lower(), prompt_to_repeat.strip().lower()
    return text.startswith(request) and not (fixed and is_blank(text[len(request) :]))


def end_checker(response: str, *, end_phrase: str) -> bool:
    """Ends with a phrase, upper or lower case; quotes around the response aside."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """Less than, or at least, so many Treebank tokens in capitals."""
    capitals = sum(map(str.isupper, treebank.tokens(response)))
    return is_relation_met(capitals, capital_relation, capital_frequency)


def english_capital(response: str, *, fixed: bool = False) -> bool:
    """English, all in capitals. Fixed: its language is that of the same text in small letters, which langdetect knows."""
    return response.isupper() and languages.detect(response.lower() if fixed else response) in ("en", None)


def english_lowercase(response: str) -> bool:
    """English, without any capital."""
    return response.islower() and languages.detect(response) in ("en", None)


def no_comma(response: str) -> bool:
    """No ASCII comma."""
    return "," not in response


def quotation(response: str) -> bool:
    """Between straight double quotes."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _source(keyword: str, literal: bool) -> str:
    return re.escape(keyword) if literal else keyword


def _count_brackets(line: str) -> int:
    count = 0
    end = -1
    while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
        count += 1
    return count


def _has_title(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return start >= 0 and end >= start + 3 and bool(line[start:end].lstrip("<").rstrip(">").strip())


CHECKERS: dict[str, Checker] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
}
