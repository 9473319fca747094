"""Screen: rejected rows keep their place, cost no call, and a check that fails rejects nothing."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tjd import prompts
from tjd.config import SynthesizeConfig
from tjd.duplicates import Seen
from tjd.prompts import Prompt
from tjd.stages.screen import Rejected, Screened, distinct, passing, verify
from tjd.tables import Row
from tjd.teacher import Again, Completion, Request, follow_up, merged
from tjd.teacher.verification import VARIABLES

PROMPT = prompts.load("verify.v1", VARIABLES)
AGAIN = Prompt("again", "unreadable: $reason")
WARM = {"constraint_id": "w", "kind": "soft", "category": "style", "text": "Be warm.", "checker": None, "kwargs": None}


def instruction(key: str, text: str | None, **more: Any) -> Row:
    query = f"what is {key}?"
    used = {"n_prompt_tokens": 50, "n_completion_tokens": 9}
    return {"query_id": key, "query": query, "instruction": text, "constraints": [WARM], "error": None, **used, **more}


def verified(rows: list[Screened], answers: dict[str, str | None]) -> tuple[list[Screened], list[Request]]:
    """What becomes of rows whose verifier answers by what it finds in the instruction."""
    asked: list[Request] = []

    def complete(request: Request) -> Completion:
        asked.append(request)
        text = request.messages[0]["content"].partition("<instruction>")[2]
        answer = next(said for part, said in answers.items() if part in text)
        return Completion(answer, "v", "stop", 40, 8, 0.25, error=None if answer else "the call failed: boom")

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            first = complete(request)
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, complete(second))

    return list(verify(rows, PROMPT, AGAIN, ask, SynthesizeConfig(verify=True, seed=7, max_tokens=99))), asked


def answer(**change: Any) -> str:
    return json.dumps({"why": "", "same_request": True, "contained": [True], "compatible": True} | change)


def test_sound_rows_pass_unsound_ones_are_rejected_and_the_unreadable_are_kept() -> None:
    before = Rejected({"query_id": "z"}, "near-duplicate query: like that of y")
    rows: list[Screened] = [
        instruction("a", "sound", cost_usd=1.0),
        before,
        instruction("b", "a clash", cost_usd=1.0),
        instruction("c", None, cost_usd=1.0, error="not a JSON object"),
        instruction("d", "mumbling", cost_usd=1.0),
        instruction("e", "dead", cost_usd=None),
    ]
    said = {"sound": answer(), "clash": answer(compatible=False, why="JSON."), "mumbling": "Hm.", "dead": None}
    (a, z, b, c, d, e), asked = verified(rows, said)
    assert isinstance(a, dict)
    assert (a["verified"], a["error"], a["cost_usd"]) == (True, None, 1.25)
    assert (a["n_prompt_tokens"], a["n_completion_tokens"]) == (90, 17)
    assert z is before
    assert isinstance(b, Rejected)
    assert b.reason == "its constraints cannot be followed together: JSON."
    assert (b.row["query_id"], b.row["verified"], b.row["cost_usd"]) == ("b", False, 1.25)
    assert c is rows[3]
    assert isinstance(d, dict)
    assert isinstance(e, dict)
    assert (d["verified"], d["error"], d["cost_usd"]) == (None, "could not be verified: not a JSON object", 1.5)
    assert (e["verified"], e["error"], e["cost_usd"]) == (None, "could not be verified: the call failed: boom", None)
    assert e["instruction"] == "dead"
    assert len(asked) == 5  # once more for the mumbling one alone
    assert {(request.temperature, request.seed, request.max_tokens) for request in asked} == {(0.0, 7, 99)}


def test_near_duplicates_are_rejected_and_texts_that_are_missing_pass() -> None:
    rows = [instruction(key, text) for key, text in (("a", "Say it warmly."), ("b", None), ("c", "say it WARMLY"))]
    a, b, c = distinct(rows, "instruction", Seen(0.8, 0))
    assert (a, b) == (rows[0], rows[1])
    assert c == Rejected(rows[2], "near-duplicate instruction: like that of a")
    assert list(distinct([c, rows[0]], "instruction", Seen(0.8, 0))) == [c, rows[0]]


def test_rejected_rows_pass_a_stage_by_in_their_place() -> None:
    rows: list[Screened] = [{"n": 1}, Rejected({"n": 2}, "no"), Rejected({"n": 3}, "no"), {"n": 4}, {"n": 5}]
    seen: list[Row] = []

    def stage(kept: Iterator[Row]) -> Iterator[Row]:
        ahead = list(kept)  # as a teacher with many calls in flight reads ahead
        seen.extend(ahead)
        return ({**row, "done": True} for row in ahead)

    out = list(passing(rows, stage))
    assert out == [{"n": 1, "done": True}, rows[1], rows[2], {"n": 4, "done": True}, {"n": 5, "done": True}]
    assert seen == [{"n": 1}, {"n": 4}, {"n": 5}]
