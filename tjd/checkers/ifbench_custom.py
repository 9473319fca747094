"""IFBench's constraints made for one prompt each. They take no kwargs, and look at none they are given.

In and out as in `ifeval`. Official accidents are kept; what `fixed=True` mends is said where it is. Where the
official code crashes, so that no verdict is known, these raise `CheckerError`; fixed, they say no.

Source: Pyatkin et al., Generalizing Verifiable Instruction Following, arXiv:2507.02833, and IFBench 0.2.0.
"""

import csv
import io
import re
import string
import unicodedata
from datetime import date
from itertools import pairwise

from tjd.checkers import punkt
from tjd.checkers.arguments import Checker
from tjd.checkers.text import PUNCTUATION, is_blank, split_without_punctuation, word_list
from tjd.errors import CheckerError

_CAPITALS = word_list("""
    Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam
    Warsaw London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana
    Zagreb
""")
_QUESTION = re.compile(r"Question \d+[.|):;]?\s*")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOST_DAYS = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
_PRODUCT_HEADER = re.compile(
    r",[ \t]*".join(f'"?{name}"?' for name in word_list("ProductID Category Brand Price Stock"))
)
_STUDENT_HEADER = re.compile(
    r"\t *".join(f'"?{name}"?' for name in word_list("StudentID Subject Grade Semester Score"))
)


def multiples(response: str, **_: object) -> bool:
    """The multiples of 7 from 14 to 49, and no other number."""
    return re.findall(r"\d+", response) == ["14", "21", "28", "35", "42", "49"]


def mcq_count_length(response: str, **_: object) -> bool:
    """Four questions of five options, each question longer than the one before."""
    if not response.startswith("Question"):
        return False
    questions = [piece for piece in _QUESTION.split(response) if not is_blank(piece)]
    lengths = [_question_length(question) for question in questions]
    return len(lengths) == 4 and all(
        one is not None and other is not None and one < other for one, other in pairwise(lengths)
    )


def reverse_newline(response: str, *, fixed: bool = False, **_: object) -> bool:
    """From Zimbabwe on, at least 52 lines in descending order. Fixed: 54, as there are countries."""
    lines = [line for line in (line.strip(PUNCTUATION + " ") for line in response.split("\n")) if not is_blank(line)]
    start = next((index for index, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    countries = [_to_ascii(line) for line in lines[start:]]
    return len(countries) >= (54 if fixed else 52) and all(one >= other for one, other in pairwise(countries))


def word_reverse(response: str, **_: object) -> bool:
    """The words, read backwards, say "bald eagle"."""
    return "bald eagle" in " ".join(reversed(split_without_punctuation(response.lower())))


def character_reverse(response: str, **_: object) -> bool:
    """Has "bald eagle" letter by letter backwards."""
    return "elgae dlab" in response.lower()


def sentence_alphabet(response: str, *, fixed: bool = False, **_: object) -> bool:
    """Twenty-six sentences, the first starting with A, the last with Z. Fixed: opening quotes aside."""
    sentences = punkt.sentences(response)
    if fixed:
        sentences = tuple(re.sub(r"^\W+", "", sentence) for sentence in sentences)
    return "".join(sentence.lstrip()[:1].lower() for sentence in sentences) == string.ascii_lowercase


def european_capitals_sort(response: str, **_: object) -> bool:
    """The capitals from north to south, with commas between."""
    return [entry.strip() for entry in _to_ascii(response).split(",") if not is_blank(entry)] == _CAPITALS


def csv_city(response: str, *, fixed: bool = False, **_: object) -> bool:
    """Eight rows of five fields under the header asked for."""
    rows = _read_csv(response, ",", fixed)
    return (
        len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and all(len(row) == 5 for row in rows)
    )


def csv_special_character(response: str, *, fixed: bool = False, **_: object) -> bool:
    """Fifteen rows; a quoted field with a special character comes before any row that is not five fields wide."""
    if not _PRODUCT_HEADER.fullmatch(response.split("\n", 1)[0].strip()):
        return False
    rows = _read_csv(response.replace('"', '"""'), ",", fixed)
    if len(rows) != 15:
        return False
    for row in rows:
        if len(row) != 5:
            return False
        if any(map(_is_special, row)):
            return True
    return False


def csv_quotes(response: str, *, fixed: bool = False, **_: object) -> bool:
    """Four rows of five fields between tabs, every field in quotes."""
    if not _STUDENT_HEADER.fullmatch(response.split("\n", 1)[0].strip()):
        return False
    rows = _read_csv(response.replace('"', '"""'), "\t", fixed)
    if len(rows) != 4:
        return False
    for row in rows:
        if len(row) != 5:
            return False
        for field in map(str.strip, row):
            if not field and not fixed:
                raise CheckerError("custom:csv_quotes cannot decide on an empty field; use fixed=True")
            if not (field.startswith('"') and field.endswith('"')):
                return False
    return True


def date_format_list(response: str, *, fixed: bool = False, **_: object) -> bool:
    """Dates from 1769 to 1821 with commas between. Fixed: days that there were, so no month or day 00."""
    return all(_is_date(entry.strip(), fixed) for entry in response.strip().split(","))


def _question_length(question: str) -> int | None:
    """Length of a question without its options; None unless there are five."""
    lines = [line.strip() for line in question.split("\n")]
    options = [index for index, line in enumerate(lines) if _OPTION.match(line)]
    return len(" ".join(lines[: options[0]]).strip()) if len(options) == 5 else None


def _to_ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def _read_csv(text: str, delimiter: str, fixed: bool) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        if fixed:
            return []
        raise CheckerError(f"the response cannot be read as a table ({error}); use fixed=True") from error


def _is_special(field: str) -> bool:
    r"""Whether the field's start matches `".*[^\d\w\s].*"`."""
    line = field.split("\n", 1)[0]
    return line.startswith('"') and re.search(r"[^\w\s]", line[1 : line.rfind('"')]) is not None


def _is_date(entry: str, fixed: bool) -> bool:
    if not _DATE.fullmatch(entry):
        return False
    year, month, day = map(int, entry.split("-"))
    if not 1769 <= year <= 1821 or month > 12 or day > _MOST_DAYS.get(month, 31):
        return False
    if fixed:
        try:
            date(year, month, day)
        except ValueError:
            return False
    return True


CHECKERS: dict[str, Checker] = {
    "custom:multiples": multiples,
    "custom:mcq_count_length": mcq_count_length,
    "custom:reverse_newline": reverse_newline,
    "custom:word_reverse": word_reverse,
    "custom:character_reverse": character_reverse,
    "custom:sentence_alphabet": sentence_alphabet,
    "custom:european_capitals_sort": european_capitals_sort,
    "custom:csv_city": csv_city,
    "custom:csv_special_character": csv_special_character,
    "custom:csv_quotes": csv_quotes,
    "custom:date_format_list": date_format_list,
}
