"""Verification of an instruction: a strict reading, in which nothing unreadable counts as a no."""

import json
from typing import Any

import pytest

from tjd import prompts
from tjd.prompts import Prompt
from tjd.teacher import Completion, once_more
from tjd.teacher.verification import VARIABLES, read, unreadable, verification_request

SOUND = {"why": "", "same_request": True, "contained": [True, True], "compatible": True}


def said(**change: Any) -> Completion:
    return Completion(json.dumps(SOUND | change), "teacher", "stop")


def test_what_the_verifier_reads() -> None:
    prompt = prompts.load("verify.v1", VARIABLES)
    constraints = [
        {"text": None, "checker": "keywords:existence", "kwargs": '{"keywords": ["moon"]}'},
        {"text": "Be warm.", "checker": None, "kwargs": None},
    ]
    request = verification_request(prompt, "Why $?", "Why $? Warmly.", constraints)
    text = request.messages[0]["content"]
    assert '1: keywords:existence {"keywords": ["moon"]}\n2: Be warm.\n' in text
    assert "<query>\nWhy $?\n</query>" in text
    assert "<instruction>\nWhy $? Warmly.\n</instruction>" in text
    assert "for each of the 2 constraints" in text
    assert (request.temperature, request.note) == (0.0, 2)


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({}, True, None),
        ({"why": "fine, though"}, True, None),
        (
            {"same_request": False, "why": "It asks\nabout wine."},
            False,
            "it asks for something else: It asks about wine.",
        ),
        ({"contained": [True, False]}, False, "it lacks a constraint"),
        ({"compatible": False, "why": 3}, False, "its constraints cannot be followed together"),
        (
            {"same_request": False, "contained": [False, False], "why": "No."},
            False,
            "it asks for something else and it lacks a constraint: No.",
        ),
        ({"contained": [True]}, None, "'contained' must be a list of 2 values, true or false"),
        ({"contained": True}, None, "'contained' must be a list of 2 values, true or false"),
        ({"contained": [True, "yes"]}, None, "'same_request', 'contained' and 'compatible' must be true or false"),
        ({"same_request": None}, None, "'same_request', 'contained' and 'compatible' must be true or false"),
        ({"compatible": 0}, None, "'same_request', 'contained' and 'compatible' must be true or false"),
    ],
)
def test_readings(change: dict[str, Any], verdict: bool | None, reason: str | None) -> None:
    assert read(said(**change), 2) == (verdict, reason)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (Completion(None, "t", error="the call failed: boom"), "the call failed: boom"),
        (Completion("I think so.", "t", "stop"), "not a JSON object"),
        (Completion('{"why": "it', "t", "length"), "cut at max_tokens"),
        (Completion("", "t", "stop"), "the model said nothing"),
    ],
)
def test_what_cannot_be_read_is_null(completion: Completion, reason: str) -> None:
    assert read(completion, 2) == (None, reason)


def test_only_what_cannot_be_read_is_asked_again() -> None:
    request = verification_request(prompts.load("verify.v1", VARIABLES), "a", "b", [{"text": "c"}, {"text": "d"}])
    again = once_more(unreadable, Prompt("again", "unreadable: $reason"))
    assert again(request, said()) is None
    assert again(request, said(compatible=False)) is None
    follow_up = again(request, Completion("Well.", "t", "stop"))
    assert follow_up is not None
    assert follow_up.messages[-1]["content"] == "unreadable: not a JSON object"
