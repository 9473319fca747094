"""Synthesize: balance, kept rules, and a teacher's output that is checked before it is believed."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd import prompts, tables, taxonomy
from tjd.config import SynthesizeConfig
from tjd.errors import ConfigError, DataError
from tjd.prompts import Prompt
from tjd.stages.synthesize import VARIABLES, synthesize
from tjd.tables import Row
from tjd.teacher import Again, Completion, Request, follow_up, merged

TAXONOMY = taxonomy.load()
PROMPT = prompts.load("synthesize.v1", VARIABLES)
AGAIN = Prompt("again", "unusable: $reason")


def written(categories: Iterable[str], instruction: str = "do it so") -> str:
    constraints = [{"category": name, "text": f"be {name}"} for name in categories]
    return json.dumps({"constraints": constraints, "instruction": instruction})


def obedient(request: Request) -> str:
    categories, _ = request.note
    return written(categories)


def synthesized(rows: Iterable[Row], answer: Callable[[Request], str | None] = obedient, **settings: Any) -> list[Row]:
    return list(run(rows, answer, [], **settings))


def run(
    rows: Iterable[Row], answer: Callable[[Request], str | None], asked: list[Request], **settings: Any
) -> Iterator[Row]:
    def complete(request: Request) -> Completion:
        asked.append(request)
        text = answer(request)
        return Completion(text, "teacher", "stop", 10, 3, 0.5, error=None if text is not None else "boom")

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            first = complete(request)
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, complete(second))

    return synthesize(rows, PROMPT, AGAIN, ask, SynthesizeConfig(**settings), TAXONOMY)


def queries(n: int, **more: Any) -> list[Row]:
    return [{"query_id": f"q{i}", "query": f"what is {i}?", **more} for i in range(n)]


def test_an_instruction_per_query() -> None:
    (row,) = synthesized(queries(1, mark="x"), category=("style",))
    assert row == {
        "query_id": "q0",
        "query": "what is 0?",
        "mark": "x",
        "instruction_id": "q0",
        "instruction": "do it so",
        "constraints": [
            {
                "constraint_id": "q0/soft-0",
                "kind": "soft",
                "category": "style",
                "text": "be style",
                "checker": None,
                "kwargs": None,
            }
        ],
        "error": None,
        "cost_usd": 0.5,
        "n_prompt_tokens": 10,
        "n_completion_tokens": 3,
    }


def test_the_teacher_reads_categories_query_and_rules() -> None:
    asked: list[Request] = []
    rules = [{"checker": "length", "text": "at most 5 words"}]
    list(run(queries(1, constraints=rules), obedient, asked, category=("style", "semantic"), per_query=2))
    text = asked[0].messages[0]["content"]
    assert "Write 2 of them" in text
    assert all(TAXONOMY[name].definition in text for name in ("style", "semantic"))
    assert "<query>\nwhat is 0?\n</query>" in text
    assert "<already_required>\n- at most 5 words\n</already_required>" in text
    list(run(queries(1), obedient, asked))
    assert "<already_required>\n(none)\n</already_required>" in asked[-1].messages[0]["content"]


@given(n=st.integers(0, 40), per_query=st.integers(1, 5), seed=st.integers(0, 5))
def test_categories_are_in_balance(n: int, per_query: int, seed: int) -> None:
    rows = synthesized(queries(n), per_query=per_query, seed=seed)
    used = Counter(c["category"] for row in rows for c in row["constraints"])
    assert not used or set(used) <= {"style", "structure", "semantic"}
    assert max(used.values(), default=0) - min((used[c] for c in ("style", "structure", "semantic")), default=0) <= 1
    for row in rows:
        names = [c["category"] for c in row["constraints"]]
        assert len(names) == per_query
        assert len(set(names)) == min(per_query, 3)
        assert len({c["constraint_id"] for c in row["constraints"]}) == per_query


def test_the_seed_decides_who_gets_what() -> None:
    def assigned(seed: int) -> list[str]:
        return [row["constraints"][0]["category"] for row in synthesized(queries(30), seed=seed)]

    assert assigned(0) == assigned(0)
    assert assigned(0) != assigned(1)


def test_a_row_can_fix_its_category() -> None:
    rows = synthesized(
        [*queries(6, category="language"), *queries(1, category=None), *queries(2, category=" ")], per_query=2
    )
    assert [row["constraints"][0]["category"] for row in rows[:6]] == ["language"] * 6
    assert all(row["constraints"][1]["category"] in ("style", "structure", "semantic") for row in rows[:6])


def test_unknown_categories_are_told() -> None:
    with pytest.raises(ConfigError, match="unknown category 'styles'; did you mean 'style'"):
        synthesized(queries(1), category=("styles",))
    with pytest.raises(DataError, match="query q0 has the unknown category 'mood'; known: style, "):
        synthesized(queries(1, category="mood"))


def test_given_constraints_are_kept_and_completed() -> None:
    given_ = [
        {"checker": "length", "text": "short", "kwargs": {"n": 0, "relation": None}},
        {"constraint_id": "mine", "kind": "soft", "category": "style", "text": "be kind"},
    ]
    (row,) = synthesized(queries(1, constraints=given_), category=("semantic",))
    assert [c["constraint_id"] for c in row["constraints"]] == ["q0/rule-0", "mine", "q0/soft-1"]
    assert [c["kind"] for c in row["constraints"]] == ["rule", "soft", "soft"]
    assert row["constraints"][0]["kwargs"] == '{"n": 0}'
    (failed,) = synthesized(queries(1, constraints=given_), lambda request: "no JSON")
    assert [c["constraint_id"] for c in failed["constraints"]] == ["q0/rule-0", "mine"]
    given_ = [
        {"text": "short"},
        {"constraint_id": "q0/soft-0", "text": "kind"},
        {"constraint_id": "q0/soft-3", "text": "x"},
    ]
    (row,) = synthesized(queries(1, constraints=given_), per_query=2)
    assert [c["constraint_id"][-1] for c in row["constraints"]] == ["1", "0", "3", "4", "5"]
    assert failed["instruction"] is None


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        [1],
        [{"kind": "rule"}],
        [{"kind": "soft"}],
        [{"kind": "odd", "text": "x"}],
        [{"text": 3}],
        [{"checker": "c", "kwargs": [1]}],
        [{"text": "x", "category": 1}],
    ],
)
def test_constraints_that_are_none_are_told(bad: object) -> None:
    with pytest.raises(DataError, match="query q0: "):
        synthesized(queries(1, constraints=bad))


@pytest.mark.parametrize(
    "wrap", ["{}", "```json\n{}\n```", "<think>hm {{}}</think>{}", "Here it is:\n{}\nI hope it helps."]
)
def test_json_is_found_where_it_stands(wrap: str) -> None:
    (row,) = synthesized(queries(1), lambda request: wrap.format(obedient(request)))
    assert row["error"] is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", "the model said nothing"),
        ("I cannot.", "not a JSON object"),
        ('{"constraints": [], "instruction": "x"}', "'constraints' must have the categories style, in this order"),
        (written(["style", "style"]), "'constraints' must have the categories style, in this order"),
        (written(["semantic"]), "'constraints' must have the categories style, in this order"),
        ('{"constraints": "style", "instruction": "x"}', "'constraints' must be a list of objects with"),
        ('{"constraints": [{"category": "style", "text": " "}], "instruction": "x"}', "'constraints' must be a list"),
        ('{"constraints": [{"category": "style", "text": 3}], "instruction": "x"}', "'constraints' must be a list"),
        (written(["style"], " "), "'instruction' must be a text that is not empty"),
        ('{"constraints": [{"category": "style", "text": "x"}]}', "'instruction' must be a text that is not empty"),
        (written(["style"], "What  is 0?"), "'instruction' is the query alone; it must contain the constraints"),
        (None, "boom"),
    ],
)
def test_bad_output_is_asked_again_then_null(answer: str | None, error: str) -> None:
    asked: list[Request] = []
    (row,) = run(queries(1), lambda request: answer, asked, category=("style",))
    assert (row["instruction"], row["constraints"]) == (None, [])
    assert row["error"].startswith(error)
    if answer is not None:
        assert asked[1].messages[2]["content"] == f"unusable: {row['error']}"
        assert (row["cost_usd"], row["n_prompt_tokens"], row["n_completion_tokens"]) == (1.0, 20, 6)
    assert len(asked) == (2 if answer is not None else 1)


def test_a_second_answer_can_mend_the_first() -> None:
    (row,) = synthesized(queries(1), lambda r: obedient(r) if len(r.messages) > 1 else "sorry")
    assert (row["instruction"], row["error"], row["cost_usd"]) == ("do it so", None, 1.0)


def test_an_empty_query_is_null_without_a_call() -> None:
    asked: list[Request] = []
    rows = list(run([{"query_id": "a", "query": None}, *queries(1)], obedient, asked))
    assert [row["error"] for row in rows] == ["the query is empty", None]
    assert len(asked) == 1


def test_rows_fit_the_table(tmp_path: Path) -> None:
    rows = synthesized(queries(3, constraints=[{"checker": "length", "text": "short"}]))
    tables.write_rows(rows, str(tmp_path / "i.parquet"), tables.output_schema("instructions"), {})
    table = tables.open_table(str(tmp_path / "i.parquet"), "instructions")
    assert [row["instruction"] for row in table.rows()] == ["do it so"] * 3
