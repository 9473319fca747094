"""Sample: order, conditions, seeds, and what cannot be shown or came back empty."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tjd import tables
from tjd.config import BackendConfig, SampleConfig
from tjd.stages.sample import sample
from tjd.tables import Row
from tjd.teacher import Again, Ask, Completion, Request, open_teacher


def echoing(name: str) -> tuple[str, Ask]:
    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            text = request.messages[0]["content"]
            said = {"silence": "", "thought": "<think>hm</think>\nwell"}.get(text, f"{name} on {text} {request.seed}")
            if text == "trouble":
                yield Completion(None, name, error="the call failed: boom")
            else:
                yield Completion(said, name, "stop", 1, 3, 0.5)

    return name, ask


def instruction(key: str, text: str | None = None, **more: Any) -> Row:
    return {"instruction_id": key, "query": f"q-{key}", "instruction": text or f"i-{key}", **more}


def sampled(rows: list[Row], *models: str, **settings: Any) -> list[Row]:
    config = SampleConfig(model=models or ("m",), **settings)
    return list(sample(lambda: rows, map(echoing, config.model), config))


def test_by_model_then_row_then_condition_then_seed() -> None:
    rows = sampled([instruction("a", mark=1), instruction("b", mark=2)], "m", "other", n=2, seed=5)
    assert len(rows) == 2 * 2 * 2 * 2
    assert [row["response"] for row in rows[:5]] == [
        "m on i-a 5", "m on i-a 6", "m on q-a 5", "m on q-a 6", "m on i-b 5",
    ]  # fmt: skip
    assert [row["model"] for row in rows] == ["m"] * 8 + ["other"] * 8
    assert [row["condition"] for row in rows[:4]] == ["with_constraint"] * 2 + ["without_constraint"] * 2
    assert {row["seed"] for row in rows} == {5, 6}
    assert [row["mark"] for row in rows[:8]] == [1] * 4 + [2] * 4
    assert len({row["response_id"] for row in rows}) == len(rows)
    first = {name: rows[0][name] for name in ("temperature", "finish_reason", "n_tokens", "cost_usd", "error")}
    assert first == {"temperature": 1.0, "finish_reason": "stop", "n_tokens": 3, "cost_usd": 0.5, "error": None}


def test_ids_do_not_hang_on_the_order_of_the_rows() -> None:
    there = sampled([instruction("a"), instruction("b")])
    back = sampled([instruction("b"), instruction("a")])
    assert {r["response_id"]: r["response"] for r in there} == {r["response_id"]: r["response"] for r in back}


def test_a_missing_instruction_is_null_with_a_reason() -> None:
    missing = {**instruction("a"), "instruction": None, "error": "not a JSON object", "cost_usd": 0.1}
    shown, bare = sampled([missing])
    assert (shown["response"], shown["error"]) == (None, "there is no instruction: not a JSON object")
    assert shown["cost_usd"] == 0.0
    assert (bare["response"], bare["error"]) == ("m on q-a 0", None)


@pytest.mark.parametrize(
    ("text", "response", "error"),
    [
        ("silence", None, "the model said nothing"),
        ("trouble", None, "the call failed: boom"),
        ("thought", "well", None),
    ],
)
def test_what_comes_back(text: str, response: str | None, error: str | None) -> None:
    (row,) = sampled([instruction("a", text)], condition=("with_constraint",))
    assert (row["response"], row["error"]) == (response, error)


def test_a_local_model_fills_the_table(tiny_model_dir: Path, cache: Path, tmp_path: Path) -> None:
    config = SampleConfig(model=("tiny",), n=3, max_tokens=6)
    rows = [instruction("a"), instruction("b")]
    schema = tables.output_schema("responses", drop=["constraints"])

    def write(out: str) -> bytes:
        teacher = open_teacher(f"hf:{tiny_model_dir}", BackendConfig(batch_size=4), cache)
        tables.write_rows(sample(lambda: rows, [(teacher.name, teacher.ask)], config), str(tmp_path / out), schema, {})
        teacher.close()
        return (tmp_path / out).read_bytes()

    assert write("one.parquet") == write("two.parquet")
    table = tables.open_table(str(tmp_path / "one.parquet"), "responses").read().to_pandas()
    assert len(table) == 12
    assert set(table["model"]) == {"tiny"}
    assert table.groupby(["instruction_id", "condition"])["response"].nunique().min() > 1  # seeds differ
