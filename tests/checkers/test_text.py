"""Sentences, tokens, languages and tags as the official tool chain gives them."""

import json
from pathlib import Path

import pytest

from tjd.checkers import languages, punkt, tagger, text, treebank

RESPONSES = {
    json.loads(line)["response"]
    for line in (Path(__file__).parents[1] / "golden" / "checkers.jsonl").read_text(encoding="utf-8").splitlines()
}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Mr. Smith left. He ran!", ["Mr. Smith left.", "He ran!"]),
        ("He came at 5 p.m. yesterday. It rained.", ["He came at 5 p.m. yesterday.", "It rained."]),
        ("See J. Bach play. No. 5 is good.", ["See J. Bach play.", "No.", "5 is good."]),
        ('"Go." (Now.) Then stop.', ['"Go."', "(Now.)", "Then stop."]),
        ("Wow!!! Yes?", ["Wow!!!", "Yes?"]),
        ("Wow!!!", ["Wow!!", "!"]),
        ("one\ntwo", ["one\ntwo"]),
        ("  ", []),
    ],
)
def test_punkt_sentences(given: str, wanted: list[str]) -> None:
    assert list(punkt.sentences(given)) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Don't stop, it's Ann's.", "Do n't stop , it 's Ann 's ."),
        ('He said "no" (twice).', "He said `` no '' ( twice ) ."),
        ("I cannot, 'tis gonna cost $3,000.", "I can not , 't is gon na cost $ 3,000 ."),
        ("A well-known and/or e.g. ratio 3:1...", "A well-known and/or e.g. ratio 3:1 ..."),
        ("U.S. dogs' -- 'a' note", "U.S. dogs ' -- ' a ' note"),
    ],
)
def test_treebank_tokens(given: str, wanted: str) -> None:
    assert " ".join(treebank.sentence_tokens(given)) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Dr. Lee owns 3.5 acres. See x.com!", ["Dr. Lee owns 3.5 acres.", "See x.com!"]),
        ("Well... yes. No!!", ["Well...", "yes.", "No!", "!"]),
        ('He said "go." Then left.', ['He said "go".', "Then left."]),
        ("Acme Inc. He works there", ["Acme Inc.", "He works there"]),
        (" \n ", []),
    ],
)
def test_heuristic_sentences(given: str, wanted: list[str]) -> None:
    assert list(text.heuristic_sentences(given)) == wanted


def test_languages_are_those_of_langdetect_at_seed_0() -> None:
    package = pytest.importorskip("langdetect.detector_factory")
    factory = package.DetectorFactory()
    factory.seed = 0
    factory.load_profile(package.PROFILES_DIRECTORY)

    def official(response: str) -> str | None:
        detector = factory.create()
        detector.append(response)
        try:
            return detector.detect()
        except package.LangDetectException:
            return None

    mixed = [
        "Привет, мир",
        "HELLO THERE",
        "a@b.cc https://x.yz",
        "Tiếng Việt là ngôn ngữ",
        "안녕하세요 여러분",
        "12 + 3",
    ]
    for response in [*sorted(RESPONSES)[::4], *mixed]:
        assert languages.detect(response) == official(response), response


@pytest.mark.parametrize(
    ("given", "wanted"), [("Write it down .", "VB"), ("The end", "DT"), ("1999 was", "CD"), ("", "")]
)
def test_first_tag(given: str, wanted: str) -> None:
    assert tagger.first_tag(given.split()) == wanted


def test_counts_words_by_runs_of_word_characters() -> None:
    assert text.count_words("don't well-known 3.14 a_b") == 7
    assert text.count_words("早晨的港口") == 1
    assert text.count_words("कॉशी श्वार्ज असमानता") == 8
