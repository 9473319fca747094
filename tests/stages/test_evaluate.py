"""Evaluate: conversations, judges, nulls, and the table of scores."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.small import write_benchmarks
from tjd import prompts
from tjd.benchmarks import BENCHMARKS
from tjd.benchmarks.responses import Responses
from tjd.config import EvaluateConfig
from tjd.stages.evaluate import AVERAGE, evaluate, live, recorded, score, take
from tjd.tables import Row
from tjd.teacher import Again, Ask, Completion, Request, follow_up, merged

Say = Callable[[Request], str | None]
CONFIG = EvaluateConfig(model=("m",), max_tokens=7, judge_max_tokens=9, seed=3)
AGAIN = prompts.load("again.v1", ("reason",))
JUDGINGS = {name: benchmark.judging for name, benchmark in BENCHMARKS.items() if benchmark.judging}
PROMPTS = {name: prompts.load(judging.prompt, judging.variables) for name, judging in JUDGINGS.items()}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    folder = write_benchmarks(tmp_path_factory.mktemp("benchmarks"))
    return {name: BENCHMARKS[name].read(str(folder / name)) for name in BENCHMARKS}


def asking(say: Say, seen: list[Request] | None = None, finish_reason: str = "stop") -> Ask:
    """A model that says what `say` says, as real backends ask again."""

    def one(request: Request) -> Completion:
        if seen is not None:
            seen.append(request)
        text = say(request)
        return Completion(text, "m", finish_reason, 1, 2, 0.5, None if text is not None else "the call failed: boom")

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            first = one(request)
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, one(second))

    return ask


def run(rows: list[Row], say: Say, judge: Ask | None = None, seen: list[Request] | None = None) -> list[Row]:
    models = [("m", live(asking(say, seen), CONFIG))]
    return evaluate(rows, models, None if judge is None else ("j", judge), PROMPTS, AGAIN, CONFIG)


def test_a_turn_sees_the_models_own_answers(benchmarks: dict[str, list[Row]]) -> None:
    seen: list[Request] = []
    rows = run(benchmarks["multi-if"], lambda r: f"<think>hm</think>answer {len(r.messages)}", seen=seen)
    assert [row["response"] for row in rows] == ["answer 1", "answer 3", "answer 1"]
    second = next(request for request in seen if len(request.messages) == 3)
    assert [(m["role"], m["content"]) for m in second.messages] == [
        ("user", "Name a river. No commas."), ("assistant", "answer 1"), ("user", "Say it in quotes."),
    ]  # fmt: skip
    assert {(r.temperature, r.max_tokens, r.seed) for r in seen} == {(0.0, 7, 3)}


def test_a_failed_turn_is_null_and_so_are_those_after_it(benchmarks: dict[str, list[Row]]) -> None:
    rows = run(benchmarks["multi-if"], lambda r: None if "river" in r.messages[0]["content"] else "Seine")
    assert [(row["response"], row["error"]) for row in rows] == [
        (None, "the call failed: boom"), (None, "an earlier turn has no answer"), ("Seine", None),
    ]  # fmt: skip
    assert [[v["followed"] for v in row["verdicts"]] for row in rows] == [[None], [None, None], [True]]
    isr = next(s for s in score(rows) if s["metric"] == "ISR")
    assert (isr["value"], isr["n"], isr["n_invalid"]) == (1.0, 1, 2)


def test_an_empty_answer_is_an_answer_that_follows_nothing(benchmarks: dict[str, list[Row]]) -> None:
    rows = run(benchmarks["ifeval"], lambda r: "<think>too long")
    assert [[v["followed"] for v in row["verdicts"]] for row in rows] == [[False], [False, False]]


def test_levels_of_followbench_are_asked_on_their_own(benchmarks: dict[str, list[Row]]) -> None:
    seen: list[Request] = []
    run(benchmarks["followbench"], lambda r: "x", asking(lambda r: "['NO']"), seen)
    assert {len(request.messages) for request in seen} == {1}


def test_the_judge_decides_what_code_cannot(benchmarks: dict[str, list[Row]]) -> None:
    seen: list[Request] = []

    def say(request: Request) -> str:
        text = request.messages[0]["content"]
        n = text.count("<step ") - 1
        return "so\n" + str(["YES"] * (n - 1) + ["NO"])

    rows = run(benchmarks["followbench"], lambda r: "name[The Mill]", asking(say, seen))
    by_id = {row["instruction_id"]: row for row in rows}
    judged = by_id["followbench:style:1:3"]
    assert [v["followed"] for v in judged["verdicts"]] == [True, True, False]
    assert (judged["judge"], judged["judgement"], judged["cost_usd"]) == ("j", "so\n['YES', 'YES', 'NO']", 1.0)
    ruled = by_id["followbench:content:14:3"]
    assert [v["followed"] for v in ruled["verdicts"]] == [True]
    assert (ruled["judge"], ruled["judgement"]) == (None, None)
    assert len(seen) == sum(row["details"] is not None for row in rows)
    assert {(request.temperature, request.max_tokens) for request in seen} == {(0.0, 9)}


def test_a_judgement_that_cannot_be_read_is_asked_for_again_and_else_null(benchmarks: dict[str, list[Row]]) -> None:
    seen: list[Request] = []

    def say(request: Request) -> str:
        if len(request.messages) == 1:
            return "I would say so"
        return (
            "是一首诗\t1\n\n主题是雨\t1\n\n不超过二十个字\t0" if "写一首" in request.messages[0]["content"] else "sorry"
        )

    first, second = run(benchmarks["cfbench"], lambda r: "雨", asking(say, seen))
    assert len(seen) == 4
    assert "not 3 lines of a criterion" in seen[1].messages[-1]["content"]
    assert "写一首关于雨的诗。" in seen[0].messages[0]["content"]
    assert [v["followed"] for v in first["verdicts"]] == [True, True, False]
    assert [v["followed"] for v in second["verdicts"]] == [None, None]
    assert second["verdicts"][0]["error"].startswith("not 2 lines of a criterion")


def test_a_judgement_that_was_cut_is_not_trusted(benchmarks: dict[str, list[Row]]) -> None:
    rows = run(benchmarks["followbench"], lambda r: "x", asking(lambda r: "YES", finish_reason="length"))
    judged = next(row for row in rows if row["instruction_id"] == "followbench:style:1:1")
    assert [(v["followed"], v["error"]) for v in judged["verdicts"]] == [(None, "cut at max_tokens")]


def test_a_judge_that_fails_leaves_nulls(benchmarks: dict[str, list[Row]]) -> None:
    rows = run(benchmarks["cfbench"], lambda r: "雨", asking(lambda r: None))
    assert {v["error"] for row in rows for v in row["verdicts"]} == {"the call failed: boom"}
    scores = score(rows)
    assert {(s["value"], s["n"]) for s in scores} == {(None, 0)}
    assert {s["n_invalid"] for s in scores} == {1, 2}


def test_a_file_of_responses_is_a_model(benchmarks: dict[str, list[Row]]) -> None:
    answers = Responses("file", {"ifeval:1": "Hello"}, {})
    rows = evaluate(benchmarks["ifeval"], [("file", recorded(answers))], None, {}, AGAIN, CONFIG)
    assert [row["response"] for row in rows] == ["Hello", None]
    assert rows[1]["verdicts"][0]["error"] == "there is no response"


def test_the_average_is_over_all_five_or_not_at_all(benchmarks: dict[str, list[Row]]) -> None:
    judge = asking(lambda r: "['YES']" if "<step" in r.messages[0]["content"] else "?")
    everything = [row for rows in benchmarks.values() for row in rows]
    scores = score(run(everything, lambda r: "Hello", judge))
    isr = {s["benchmark"]: s for s in scores if s["metric"] == "ISR" and s["group"] == "all"}
    assert set(isr) == {*BENCHMARKS, AVERAGE}
    assert isr["cfbench"]["value"] is None  # its judge was never readable
    assert isr[AVERAGE]["value"] is None  # and so neither is the average
    some = score(run(benchmarks["ifeval"], lambda r: "Hello"))
    assert AVERAGE not in {s["benchmark"] for s in some}


def test_the_average_is_the_mean_of_the_five(benchmarks: dict[str, list[Row]]) -> None:
    def judge(request: Request) -> str:
        text = request.messages[0]["content"]
        if "<step" in text:
            return str(["YES"] * (text.count("<step ") - 1))
        return "是一首诗\t1\n\n主题是雨\t1\n\n不超过二十个字\t1" if "写一首" in text else "介绍了茶\t1\n\n正好两段\t0"

    everything = [row for rows in benchmarks.values() for row in rows]
    scores = score(run(everything, lambda r: "Hello dear friend", asking(judge)))
    isr = {s["benchmark"]: s["value"] for s in scores if s["metric"] == "ISR" and s["group"] == "all"}
    assert isr["ifeval"] == 1.0
    assert isr["cfbench"] == 0.5
    assert isr[AVERAGE] == pytest.approx(sum(isr[name] for name in BENCHMARKS) / 5)
    bounds = next(s for s in scores if s["benchmark"] == AVERAGE)
    assert bounds["low"] <= bounds["value"] <= bounds["high"]
    assert bounds["n"] == len(everything)


def test_a_quick_look_keeps_groups_whole_and_spreads(benchmarks: dict[str, list[Row]]) -> None:
    rows = benchmarks["followbench"]
    looked = take(rows, 12)
    assert [row["query_id"] for row in looked[::5]] == [
        "followbench:content:1", "followbench:situation:1", "followbench:style:1",
    ]  # fmt: skip
    assert len(looked) == 15
    assert take(rows, 0) == rows
    assert [row["turn"] for row in take(benchmarks["multi-if"], 1)] == [1, 2]


def test_the_same_evaluation_gives_the_same_scores(benchmarks: dict[str, list[Row]], tmp_path: Path) -> None:
    rows: Any = [run(benchmarks["ifeval"], lambda r: "Hello, you") for _ in range(2)]
    assert json.dumps(score(rows[0], 1)) == json.dumps(score(rows[1], 1))
