"""A megabyte of text, however hostile, is checked in seconds."""

import time

import pytest

from tests.checkers.checker_cases import CHECKERS, valid_kwargs
from tjd.checkers import verdict

MEGABYTE = 1_000_000
HOSTILE = {
    "prose": "The river, Mr. Smith's old friend, ran on. Did it stop? No! It (really) didn't \"stop\".\n",
    "one word": "a",
    "newlines": "\n",
    "blank lines": " \n",
    "spaces": "x" + " " * 999,
    "only spaces": " ",
    "dots": ".",
    "spaced dots": ". ",
    "stops": "?!",
    "brackets": "[",
    "parentheses": "([{",
    "titles": "<<",
    "stars": "*",
    "spaced stars": "* ",
    "bullets": "* \n",
    "quotes": "\"'",
    "commas": ",",
    "hyphens": "-",
    "phrase": "the  ",
    "questions": "Question 1",
    "italics": "<i>",
    "chinese": "早晨的港口很安静。",
    "capitals": "RIVER ",
    "acronyms": "a.b.",
    "closers": "a.)]}\"' ",
    "csv": 'ProductID,Category,Brand,Price,Stock\n"!,',
    "urls": "http://a",
    "mail": "a@",
    "json": "[1,",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_takes_seconds(kind: str) -> None:
    seed = HOSTILE[kind]
    text = (seed * (MEGABYTE // len(seed) + 1))[:MEGABYTE]
    slow = {}
    for checker in CHECKERS:
        start = time.process_time()
        verdict(checker, valid_kwargs(checker), "Question" * (checker == "custom:mcq_count_length") + text + "x")
        if (took := time.process_time() - start) > 5:
            slow[checker] = round(took, 1)
    assert not slow
