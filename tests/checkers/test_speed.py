"""A megabyte of text, however hostile, is checked in seconds."""

import time
from typing import Any

import pytest

from tests.checkers.checker_cases import CHECKERS, valid_kwargs
from tjd.checkers import SUITES, multi_if, verdict
from tjd.checkers.arguments import read_signature

MEGABYTE = 1_000_000
HOSTILE = {
    "prose": "The river, Mr. Smith's old friend, ran on. Did it stop? No! It (really) didn't \"stop\".\n",
    "one long line": "The river, Mr. Smith's old friend, ran on. Did it stop? No! It (really) didn't \"stop\". ",
    "one word": "a",
    "newlines": "\n",
    "blank lines": " \n",
    "carriage returns": "a\r\n",
    "lone carriage returns": "\r",
    "spaces": "x" + " " * 999,
    "only spaces": " ",
    "tabs": "\t",
    "dots": ".",
    "spaced dots": ". ",
    "ellipses": "... ",
    "stops": "?!",
    "spaced stops": "?! ",
    "brackets": "[",
    "half brackets": "[a",
    "pairs of brackets": "[a]",
    "parentheses": "([{",
    "titles": "<<",
    "half titles": "<<a",
    "whole titles": "<<a>> ",
    "stars": "*",
    "spaced stars": "* ",
    "paragraph stars": "***",
    "answer stars": "a******",
    "lines of stars": "*\n",
    "bullets": "* \n",
    "dashes": "---\n",
    "markup": " *_#>",
    "quotes": "\"'",
    "spaced quotes": '" ',
    "curly quotes": "“a” ",
    "commas": ",",
    "hyphens": "-",
    "hyphenated": "a-b-",
    "phrase": "the  ",
    "whole phrases": "the x fox ",
    "half phrases": " fox",
    "keyword": "river",
    "postscripts": "p. p. s ",
    "sections": "Section ",
    "numbered sections": "Section 1 ",
    "marked sections": "**Section** : ",
    "questions": "Question 1",
    "italics": "<i>",
    "whole italics": "<em>a</em>",
    "chinese": "早晨的港口很安静。",
    "arabic": "مرحبا بالعالم. ",
    "hindi": "नमस्ते दुनिया। ",
    "emoji": "🙂",
    "joined emoji": "👩‍👩‍👧 ",
    "combining marks": "e\u0301 ",
    "zero width": "a\u200b",
    "no character": "\0",
    "letters that grow": "İ",
    "capitals": "RIVER ",
    "acronyms": "a.b.",
    "abbreviations": "Mr. Dr. Inc. Co. Ph.D. U.S. e.g. ",
    "initials": "A. B. ",
    "digits": "1",
    "dotted digits": "1.",
    "dates": "1800-01-01,",
    "addresses": "a.com ",
    "closers": "a.)]}\"' ",
    "contractions": "don't ",
    "csv": 'ProductID,Category,Brand,Price,Stock\n"!,',
    "urls": "http://a",
    "mail": "a@",
    "json": "[1,",
    "json objects": '{"a":',
    "fences": "```json",
    "countries": "Zimbabwe\n",
}
MENDED = [checker for checker in CHECKERS if read_signature(SUITES["ifbench"][checker]).can_be_fixed]
LONGEST_S = 60  # of CPU; quiet machines need less than 5 (docs/measurements.md), quadratic work takes many minutes
LONGEST_OF_TAGGERS_S = 120  # less than 10 on a quiet machine


def megabyte(seed: str) -> str:
    return (seed * (MEGABYTE // len(seed) + 1))[:MEGABYTE]


def seconds(checker: str, text: str, **options: Any) -> float:
    start = time.process_time()
    verdict(checker, valid_kwargs(checker), "Question" * (checker == "custom:mcq_count_length") + text + "x", **options)
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_takes_seconds(kind: str) -> None:
    text = megabyte(HOSTILE[kind])
    taken = {checker: seconds(checker, text) for checker in CHECKERS}
    taken |= {f"{checker} (fixed)": seconds(checker, text, suite="ifbench", fixed=True) for checker in MENDED}
    taken |= {f"{checker} (multi_if)": seconds(checker, text, suite="multi_if") for checker in multi_if.CHECKERS}
    assert {name: round(took, 1) for name, took in taken.items() if took > LONGEST_S} == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["สวัสดีชาวโลกวันนี้อากาศดีมาก ", "สวัสดีชาวโลกวันนี้อากาศดีมาก", "กก", "กา\n"])
@pytest.mark.parametrize("checker", ["length_constraints:number_sentences", "length_constraints:number_words"])
def test_a_megabyte_of_thai(checker: str, seed: str) -> None:
    """Its sentences and words take a tagger and a dictionary; a character is three bytes."""
    assert seconds(checker, megabyte(seed)[: MEGABYTE // 3], suite="multi_if") < LONGEST_OF_TAGGERS_S
