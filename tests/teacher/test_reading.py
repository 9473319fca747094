"""What a teacher said, read strictly."""

import pytest

from tjd.teacher import reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", True),
        ("no", False),
        ("  NO.\n", False),
        ("**Yes**", True),
        ("`No`", False),
        ('"Yes."', True),
        ("> Yes!", True),
        ("- No", False),
        ("Answer: yes", True),
        ("**Verdict:** No", False),
        ("Final answer: No.", False),
        ("It begins well, and keeps it up.\n\nYes", True),
        ("Reasons.\nVerdict: **No**\n\n", False),
        ("<think>No? No. Yes!</think>\nYes", True),
        ("so it does.</think> No", False),
        ("# Yes", True),
        ("Yes\n\nIt keeps the tone.\n\nFinal verdict: Yes", True),
        ("Is it warm? Yes. Is it short? No.\n\nNo", False),
        ("<think>\nYes\n</think>\nNo", False),
    ],
)
def test_verdicts_that_can_be_read(text: str, expected: bool) -> None:
    assert reading.verdict(text) == (expected, None)


@pytest.mark.parametrize(
    "text",
    [
        "Yes, it does",
        "Yes and no",
        "Yes/No",
        "Yes\nbecause it keeps the tone",
        "Not",
        "Nope",
        "Yeah",
        "true",
        "1",
        "It follows the constraint.",
        "Answer Yes or No",
        "The answer is Yes",
        "Ja",
    ],
)
def test_all_else_is_unreadable(text: str) -> None:
    assert reading.verdict(text) == (None, reading.UNREADABLE)


@pytest.mark.parametrize(
    "text",
    ["Yes\n\nNo", "No\nYes", "**Yes**\n- No.", "Answer: Yes\nWait, it breaks off.\nFinal answer: No", "Yes\nNo\nHm"],
)
def test_verdicts_that_contradict_each_other_are_none(text: str) -> None:
    assert reading.verdict(text) == (None, "both Yes and No")


@pytest.mark.parametrize("text", ["", " \n", "<think>hm</think>"])
def test_silence_is_unreadable(text: str) -> None:
    assert reading.verdict(text) == (None, "the model said nothing")
    assert reading.verdict(text, "content_filter") == (None, "the model said nothing (content_filter)")


def test_a_cut_answer_is_trusted_only_if_it_is_all_there_is() -> None:
    assert reading.verdict("Yes", "length") == (True, None)
    assert reading.verdict("It is partly so.\nNo", "length") == (None, "cut at max_tokens")  # "Not", perhaps
    assert reading.verdict("<think>let me see", "length") == (None, "cut at max_tokens")
    assert reading.verdict("", "length") == (None, "cut at max_tokens")


@pytest.mark.parametrize(
    "text",
    [
        "1: Yes\n2: No",
        "1. yes\n\n2. no",
        "**1:** Yes\n**2:** No.",
        "```\n2: No\n1: Yes\n```",
        "<think>1: No</think>1) Yes\n2) No",
    ],
)
def test_numbered_verdicts_that_can_be_read(text: str) -> None:
    assert reading.numbered_verdicts(text, 2) == ([True, False], None)


@pytest.mark.parametrize(
    "text",
    [
        "1: Yes",
        "1: Yes\n2: No\n3: Yes",
        "1: Yes\n1: No",
        "0: Yes\n1: No",
        "1: Yes\n2: perhaps",
        "Here you are:\n1: Yes\n2: No",
        "Yes\nNo",
        "1: Yes 2: No",
        "1" * 5000 + ": Yes",
    ],
)
def test_all_numbered_verdicts_are_null_if_one_is_unreadable(text: str) -> None:
    assert reading.numbered_verdicts(text, 2) == ([None, None], "not 2 numbered lines of Yes or No")


def test_numbered_verdicts_that_were_cut() -> None:
    assert reading.numbered_verdicts("1: Yes\n2:", 2, "length") == ([None, None], "cut at max_tokens")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '```json\n{"a": 1}\n```',
        'Here:\n```\n{"a": 1}\n```\nDone.',
        '<think>{"a": 2}</think>\n{"a": 1}',
        'Sure! {"a": 1} I hope it helps.',
    ],
)
def test_json_objects_that_can_be_read(text: str) -> None:
    assert reading.json_object(text) == ({"a": 1}, None)


@pytest.mark.parametrize(
    "text", ["[1]", "{'a': 1}", '{"a": 1', "none", '{"a": 1} {"a": 2}', '{"a":' * 10**5 + "1" + "}" * 10**5]
)
def test_json_that_cannot_be_read(text: str) -> None:
    assert reading.json_object(text) == (None, "not a JSON object")


def test_json_of_a_cut_or_silent_answer() -> None:
    assert reading.json_object('{"a": "b', "length") == (None, "cut at max_tokens")
    assert reading.json_object("") == (None, "the model said nothing")


def test_an_escaped_half_surrogate_is_replaced() -> None:
    assert reading.json_object('{"a": "\\ud83d"}') == ({"a": "?"}, None)


def test_text_without_reasoning_is_left_alone() -> None:
    assert reading.without_thinking("  a\n") == "  a\n"
    assert reading.without_thinking("<think>x</think>\n a ") == "a"


@pytest.mark.parametrize(
    "text",
    [
        '{"verdict": "Yes"}',
        ' {"verdict":"YES"}\n',
        '```json\n{"verdict": "yes"}\n```',
        '<think>{"verdict": "No"}</think>{"verdict": "Yes"}',
        '{"verdict": "Yes", "confidence": 0.9}',
    ],
)
def test_json_verdicts_that_can_be_read(text: str) -> None:
    assert reading.json_verdicts(text, None) == ([True], [None], None)


@pytest.mark.parametrize(
    "text",
    [
        "Yes",
        '"Yes"',
        '["Yes"]',
        '{"verdict": true}',
        '{"verdict": "Yes."}',
        '{"verdict": null}',
        '{"Verdict": "Yes"}',
        '{"verdict": "Yes"} {"verdict": "No"}',
        '{"verdict": "Yes", "verdict": "No"}',
        'Sure: {"verdict": "Yes"}',
        '{"verdict": "Yes"',
        "[" * 100_000,
    ],
)
def test_json_verdicts_that_cannot_be_read(text: str) -> None:
    told = "no JSON object with a verdict of Yes or No"
    assert reading.json_verdicts(text, None) == ([None], [None], told)


@pytest.mark.parametrize(
    "items",
    [
        '{"number": 1, "verdict": "Yes"}',
        '{"number": 1, "verdict": "Yes"}, {"number": 1, "verdict": "No"}',
        '{"verdict": "Yes"}, {"verdict": "No"}',
        '{"number": 1, "verdict": "Yes"}, {"number": 2, "verdict": "perhaps"}',
        '"Yes", "No"',
    ],
)
def test_all_json_verdicts_are_null_if_one_is_unreadable(items: str) -> None:
    told = "no JSON object with 2 numbered verdicts"
    assert reading.json_verdicts(f'{{"verdicts": [{items}]}}', 2) == ([None, None], [None, None], told)


def test_json_verdicts_may_stand_in_any_order() -> None:
    items = '{"number": 2, "reason": "b", "verdict": "No"}, {"number": 1, "reason": "a", "verdict": "Yes"}'
    assert reading.json_verdicts(f'{{"verdicts": [{items}]}}', 2) == ([True, False], ["a", "b"], None)


def test_reasons_beside_json_verdicts() -> None:
    items = '{"number": 1, "reason": " so\\ud83d ", "verdict": "No"}, {"number": 2, "reason": 5, "verdict": "Yes"}'
    text = f'{{"verdicts": [{items}]}}'
    assert reading.json_verdicts(text, 2) == ([False, True], ["so?", None], None)
    assert reading.json_verdicts('{"reason": "it is', None, "length") == ([None], [None], "cut at max_tokens")
    assert reading.json_verdicts("", None) == ([None], [None], "the model said nothing")
