"""Label: rules by code, soft constraints by a teacher that is an argument."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.server import Reply, serve
from tjd import prompts, tables
from tjd.config import LabelConfig
from tjd.prompts import Prompt
from tjd.stages.label import VARIABLES, label, majority
from tjd.tables import Row
from tjd.teacher import Again, Completion, Request, follow_up, merged

AGAIN = Prompt("again", "unreadable: $reason")


def soft(key: str, text: str | None = None) -> Row:
    text = text or f"be {key}"
    return {"constraint_id": key, "kind": "soft", "category": "style", "text": text, "checker": None, "kwargs": None}


def rule(key: str, checker: str = "at_most", kwargs: str | None = '{"n": 5}') -> Row:
    return {
        "constraint_id": key,
        "kind": "rule",
        "category": None,
        "text": "short",
        "checker": checker,
        "kwargs": kwargs,
    }


def response(key: str, *constraints: Row, text: str | None = "words", **more: Any) -> Row:
    return {"response_id": key, "query": "what?", "response": text, "constraints": list(constraints), **more}


def check(checker: str, kwargs: Mapping[str, Any], text: str, *, prompt: str | None) -> tuple[bool | None, str | None]:
    return (len(text) <= kwargs["n"], None) if checker == "at_most" else (None, f"no checker {checker}")


def answering(answer: Callable[[Request], str | Completion]) -> Any:
    """A teacher from a function; `asked` lists what it was asked."""
    asked: list[Request] = []

    def complete(request: Request) -> Completion:
        asked.append(request)
        said = answer(request)
        return said if isinstance(said, Completion) else Completion(said, "teacher", "stop", cost_usd=0.25)

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            first = complete(request)
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, complete(second))

    ask.asked = asked  # type: ignore[attr-defined]
    return ask


def labelled(rows: Iterable[Row], ask: Any, **settings: Any) -> list[Row]:
    config = LabelConfig(**settings)
    prompt = prompts.load(f"label.{config.mode}.v1", VARIABLES[config.mode])
    return list(label(rows, prompt, AGAIN, ask, config, check))


def test_one_row_per_constraint_in_order() -> None:
    ask = answering(lambda request: "Yes" if "be warm" in request.messages[0]["content"] else "No")
    rows = labelled(
        [response("a", soft("warm"), rule("short"), soft("cold"), mark=1), response("b", soft("warm"), mark=2)], ask
    )
    found = [(r["response_id"], r["constraint_id"], r["followed"], r["mode"], r["teacher"]) for r in rows]
    assert found == [
        ("a", "warm", True, "pointwise", "teacher"),
        ("a", "short", True, "rule", None),
        ("a", "cold", False, "pointwise", "teacher"),
        ("b", "warm", True, "pointwise", "teacher"),
    ]
    assert [r["mark"] for r in rows] == [1, 1, 1, 2]  # further columns travel along
    assert rows[1]["votes"] == []
    assert rows[1]["agreement"] is None
    assert rows[0]["votes"] == [True]
    assert [r["cost_usd"] for r in rows] == [0.25, 0.0, 0.25, 0.25]
    assert len(ask.asked) == 3


def test_the_teacher_sees_the_query_and_one_constraint() -> None:
    ask = answering(lambda request: "Yes")
    labelled([response("a", soft("warm"), soft("cold"), text="$dollars {braces}", instruction="what? be warm")], ask)
    first = ask.asked[0].messages[0]["content"]
    assert "<request>\nwhat?\n</request>" in first
    assert "<response>\n$dollars {braces}\n</response>" in first
    assert "be warm" in first
    assert "be cold" not in first


def test_rows_fit_the_table(tmp_path: Path) -> None:
    rows = labelled([response("a", soft("warm"), rule("short"), mark="x")], answering(lambda request: "Yes"))
    schema = tables.output_schema("labels", drop=["constraints"])
    tables.write_rows(rows, str(tmp_path / "labels.parquet"), schema, {})
    table = tables.open_table(str(tmp_path / "labels.parquet"), "labels")
    assert [row["followed"] for row in table.rows()] == [True, True]


def test_votes_differ_in_their_seed_and_the_majority_wins() -> None:
    ask = answering(lambda request: "No" if request.seed == 8 else "Yes")
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3, seed=7)
    assert [request.seed for request in ask.asked] == [7, 8, 9]
    assert row["votes"] == [True, False, True]
    assert (row["followed"], row["agreement"], row["error"]) == (True, pytest.approx(2 / 3), None)
    assert row["cost_usd"] == 0.75


def test_tied_votes_are_null() -> None:
    (row,) = labelled([response("a", soft("warm"))], answering(lambda r: "Yes" if r.seed else "No"), votes=2)
    assert (row["followed"], row["agreement"], row["error"]) == (None, 0.5, "votes are tied")


def test_unreadable_votes_do_not_count_but_are_told() -> None:
    ask = answering(lambda request: ["Yes", "Well", "Yes"][request.seed])
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3)
    assert row["votes"] == [True, None, True]
    assert (row["followed"], row["agreement"], row["error"]) == (True, 1.0, "neither Yes nor No")


def test_an_unreadable_answer_is_asked_again_once() -> None:
    ask = answering(lambda request: "Hmm" if len(request.messages) == 1 else "No")
    (row,) = labelled([response("a", soft("warm"))], ask)
    assert (row["followed"], row["error"], row["cost_usd"]) == (False, None, 0.5)
    assert [m["content"] for m in ask.asked[1].messages[1:]] == ["Hmm", "unreadable: neither Yes nor No"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("Hmm", "neither Yes nor No"),
        ("", "the model said nothing"),
        (Completion("I think", "teacher", "length", cost_usd=0.25), "cut at max_tokens"),
        (Completion(None, "teacher", error="the call failed: 500: boom"), "the call failed: 500: boom"),
    ],
)
def test_what_cannot_be_read_is_null_and_never_no(answer: str | Completion, error: str) -> None:
    for mode in ("pointwise", "batch"):
        ask = answering(lambda request: answer)
        (row,) = labelled([response("a", soft("warm"))], ask, mode=mode)
        assert (row["followed"], row["votes"], row["agreement"]) == (None, [None], None)
        expected = "not 1 numbered lines of Yes or No" if error.startswith("neither") and mode == "batch" else error
        assert row["error"] == expected
        assert len(ask.asked) == (1 if isinstance(answer, Completion) and answer.text is None else 2)


def test_a_missing_response_is_null_without_a_call() -> None:
    ask = answering(lambda request: "Yes")
    for mode in ("pointwise", "batch"):
        rows = labelled([response("a", soft("warm"), rule("short"), text=None, error="boom")], ask, mode=mode)
        assert [(row["followed"], row["error"]) for row in rows] == [(None, "there is no response: boom")] * 2
    assert ask.asked == []


def test_an_empty_response_is_judged() -> None:
    ask = answering(lambda request: "No")
    rows = labelled([response("a", soft("warm"), rule("short"), text="")], ask)
    assert [row["followed"] for row in rows] == [False, True]


def test_rules_that_fail_are_null_with_a_reason() -> None:
    rows = labelled(
        [response("a", rule("x", "unknown"), rule("y", kwargs="{"), {**rule("z"), "kind": "other"})],
        answering(lambda request: "Yes"),
    )
    assert [row["followed"] for row in rows] == [None, None, None]
    assert [row["error"] for row in rows] == [
        "no checker unknown",
        "the kwargs of the rule are not JSON",
        "the kind of a constraint is 'rule' or 'soft', not 'other'",
    ]


def test_a_response_without_constraints_has_no_rows() -> None:
    ask = answering(lambda request: "Yes")
    assert labelled([response("a"), {**response("b"), "constraints": None}], ask) == []


def test_batch_asks_for_all_soft_constraints_at_once() -> None:
    ask = answering(lambda request: "1: Yes\n2: No")
    rows = labelled([response("a", soft("warm"), rule("short"), soft("cold"))], ask, mode="batch")
    assert [(row["constraint_id"], row["followed"], row["mode"]) for row in rows] == [
        ("warm", True, "batch"),
        ("short", True, "rule"),
        ("cold", False, "batch"),
    ]
    assert [row["cost_usd"] for row in rows] == [0.125, 0.0, 0.125]  # the sum is what was paid
    (request,) = ask.asked
    assert "<constraints>\n1: be warm\n2: be cold\n</constraints>" in request.messages[0]["content"]
    assert "Answer with 2 lines" in request.messages[0]["content"]


def test_batch_is_asked_again_with_the_number_of_lines() -> None:
    ask = answering(lambda request: "1: Yes" if len(request.messages) == 1 else "1: Yes\n2: Yes")
    rows = labelled([response("a", soft("warm"), soft("cold"))], ask, mode="batch")
    assert [row["followed"] for row in rows] == [True, True]
    assert ask.asked[1].messages[2]["content"] == "unreadable: not 2 numbered lines of Yes or No"


def test_an_unknown_cost_stays_unknown() -> None:
    ask = answering(lambda r: Completion("Yes", "teacher", cost_usd=None if r.seed else 0.25))
    (row,) = labelled([response("a", soft("warm"))], ask, votes=2)
    assert row["cost_usd"] is None


def test_rows_are_taken_as_needed() -> None:
    taken = []

    def endless() -> Iterator[Row]:
        while True:
            taken.append(None)
            yield response(str(len(taken)), soft("warm"))

    config = LabelConfig()
    prompt = prompts.load("label.pointwise.v1", VARIABLES["pointwise"])
    rows = label(endless(), prompt, AGAIN, answering(lambda request: "Yes"), config, check)
    for _ in range(10):
        next(rows)
    assert len(taken) == 10


def test_majority() -> None:
    assert majority([]) == (None, None)
    assert majority([None]) == (None, None)
    assert majority([False, None, False, True]) == (False, pytest.approx(2 / 3))


DRIVER = """
import sys
from pathlib import Path
from tjd import prompts, tables
from tjd.config import BackendConfig, LabelConfig
from tjd.stages.label import VARIABLES, label
from tjd.teacher import open_teacher
source, out, cache = sys.argv[1:]
table = tables.open_table(source, "responses")
config = LabelConfig(teacher="openai/gpt-4o-mini", votes=2)
prompt, again = prompts.load("label.pointwise.v1", VARIABLES["pointwise"]), prompts.load("again.v1", ["reason"])
teacher = open_teacher(config.teacher, BackendConfig(concurrency=8), Path(cache))
rows = label(table.rows(), prompt, again, teacher.ask, config, lambda *_, **__: (True, None))
schema = tables.output_schema("labels", like=table.schema, drop=["constraints"])
tables.write_rows(rows, out, schema, tables.provenance("label", {}, {"responses": table.digest}, {}))
"""


def test_kill_9_loses_nothing_and_pays_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        """Sometimes unreadable at first; always the same to the same conversation."""
        luck = random.Random(json.dumps([body["messages"], body["seed"]]))
        readable = len(body["messages"]) > 1 or luck.random() > 0.2
        return Reply(luck.choice(["Yes", "No"]) if readable else "Perhaps", delay_s=0.02)

    def arguments(out: str, cache: str) -> list[str]:
        return [str(source), str(tmp_path / out), str(tmp_path / cache)]

    def run_here(out: str, cache: str) -> int:
        """Run to the end; returns the number of calls."""
        before = len(server.calls)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments(out, cache)])
        exec(DRIVER, {})
        return len(server.calls) - before

    source = tmp_path / "responses.parquet"
    rows = [response(f"r{i}", soft("warm"), rule("short"), text=f"response {i}") for i in range(60)]
    tables.write_rows(rows, str(source), tables.output_schema("responses"), {})
    with serve(script) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        n_whole = run_here("whole.parquet", "one")

        doomed = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments("resumed.parquet", "two")])
        moment = n_whole + random.Random(os.getpid()).randrange(1, n_whole - 30)
        while len(server.calls) < moment:
            assert doomed.poll() is None
            time.sleep(0.002)
        doomed.send_signal(signal.SIGKILL)
        assert doomed.wait(10) == -signal.SIGKILL
        assert not (tmp_path / "resumed.parquet").exists()

        with closing(sqlite3.connect(tmp_path / "two" / "completions.sqlite")) as kept:
            (n_arrived,) = kept.execute("SELECT count(*) FROM completions").fetchone()
        assert len(server.calls) - n_whole - n_arrived <= 16  # those on their way, in the worst case both ways
        assert run_here("resumed.parquet", "two") == n_whole - n_arrived
    assert (tmp_path / "resumed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
