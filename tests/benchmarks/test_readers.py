"""Readers: each benchmark's own files become instructions, and data that is not there is told in one line."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.small import CFBENCH, IFEVAL, MULTI_IF, write_benchmarks
from tests.benchmarks.test_published import shared_data
from tjd import checkers, tables, taxonomy
from tjd.benchmarks import BENCHMARKS, cfbench, followbench, responses
from tjd.errors import DataError

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def read(name: str, folder: Path) -> dict[str, Row]:
    return {row["instruction_id"]: row for row in BENCHMARKS[name].read(str(folder / name))}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_fit_their_schema_and_have_their_key(name: str, folder: Path, tmp_path: Path) -> None:
    rows = BENCHMARKS[name].read(str(folder / name))
    out = tmp_path / "instructions.parquet"
    tables.write_rows(rows, str(out), tables.BENCHMARK_INSTRUCTIONS, {})
    assert tables.open_table(str(out), "instructions").read().to_pylist() == rows  # also for any other stage
    assert {row["benchmark"] for row in rows} == {name}
    ids = [constraint["constraint_id"] for row in rows for constraint in row["constraints"]]
    assert len(set(ids)) == len(ids)


def test_ifeval_drops_the_nulls_of_the_hub(folder: Path) -> None:
    rows = read("ifeval", folder)
    assert list(rows) == ["ifeval:1", "ifeval:2"]
    assert [(c["checker"], c["kwargs"]) for c in rows["ifeval:2"]["constraints"]] == [
        ("punctuation:no_comma", "{}"),
        ("length_constraints:number_words", '{"num_words": 3, "relation": "at least"}'),
    ]
    assert rows["ifeval:1"]["instruction"] == IFEVAL[0]["prompt"]


def test_multi_if_has_a_row_per_turn_and_skips_those_that_are_not_there(folder: Path) -> None:
    rows = read("multi-if", folder)
    assert [(row["turn"], row["language"], row["query_id"]) for row in rows.values()] == [
        (1, "en", "multi-if:7:0:en"), (2, "en", "multi-if:7:0:en"), (1, "fr", "multi-if:8:0:fr"),
    ]  # fmt: skip
    second = rows["multi-if:7:0:en:t2"]
    assert second["instruction"] == "Say it in quotes."
    assert [c["checker"] for c in second["constraints"]] == ["punctuation:no_comma", "startend:quotation"]


def test_multi_if_may_be_csv_or_parquet(tmp_path: Path, folder: Path) -> None:
    rows = [{name: row.get(name) for name in MULTI_IF[0]} for row in MULTI_IF]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join('"' + (value or "").replace('"', '""') + '"' for value in row.values()))
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="utf-8")
    expected = BENCHMARKS["multi-if"].read(str(folder / "multi-if"))
    for name in ("x.parquet", "x.csv"):
        assert BENCHMARKS["multi-if"].read(str(tmp_path / name)) == expected


def test_followbench_is_told_apart_into_rules_and_judged_levels(folder: Path) -> None:
    rows = read("followbench", folder)
    assert Counter(row["part"] for row in rows.values()) == {
        "content": 10, "situation": 5, "style": 5, "format": 10, "mixed": 5, "example": 5,
    }  # fmt: skip
    assert {row["level"] for row in rows.values()} == {1, 2, 3, 4, 5}
    checked = {key.rsplit(":", 1)[0]: row["constraints"][0]["checker"] for key, row in rows.items()}
    assert {key: checker for key, checker in checked.items() if checker} == {
        "followbench:content:14": "followbench:E2E",
        "followbench:situation:1": "followbench:BBH_logical",
        "followbench:format:22": "followbench:format_22",
        "followbench:example:1": "followbench:example",
    }
    third = rows["followbench:mixed:1:3"]
    assert [constraint["category"] for constraint in third["constraints"]] == ["layout", "style", "semantic"]
    assert json.loads(third["details"])["path"][0] == "mixed 1: do it"  # from the seed, which is no row of its own
    assert third["constraints"][0]["text"].endswith("1. mixed 1: do it\n\n2. mixed 1: do it, and 1")
    rule = rows["followbench:content:14:4"]["constraints"]
    assert len(rule) == 1
    assert json.loads(rule[0]["kwargs"]) == {"level": 4, "target": "name[The Mill]"}


def test_cfbench_keeps_criteria_priorities_and_reference(folder: Path) -> None:
    first, second = read("cfbench", folder).values()
    assert [(c["text"], c["category"]) for c in first["constraints"]] == [
        ("是一首诗", "style"), ("主题是雨", "semantic"), ("不超过二十个字", None),
    ]  # fmt: skip
    assert json.loads(second["details"]) == {"gold": CFBENCH[1]["gold"], "primary": [True, False]}
    assert (first["part"], second["part"], second["constraints"][1]["category"]) == ("easy", "hard", "layout")


def test_categories_are_those_of_the_taxonomy() -> None:
    known = set(taxonomy.load())
    assert set(followbench.TAXONOMY.values()) | set(cfbench.TAXONOMY.values()) <= known


@pytest.mark.parametrize(
    ("name", "rows", "constraints"),
    [("ifeval", 541, 834), ("ifbench", 300, 344), ("followbench", 820, 1760), ("cfbench", 1000, 4237)],
)
def test_the_real_files_are_read_whole(name: str, rows: int, constraints: int) -> None:
    found = BENCHMARKS[name].read(str(shared_data() / "benchmarks" / name))
    assert len({row["instruction_id"] for row in found}) == len(found) == rows
    assert sum(len(row["constraints"]) for row in found) == constraints


@pytest.mark.parametrize("name", ["ifeval", "ifbench"])
def test_every_rule_of_the_real_files_can_be_decided(name: str) -> None:
    for row in BENCHMARKS[name].read(str(shared_data() / "benchmarks" / name)):
        for constraint in row["constraints"]:
            verdict = checkers.verdict(constraint["checker"], json.loads(constraint["kwargs"]), "Hello there.")
            assert verdict.followed is not None, (row["instruction_id"], verdict)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_where_the_data_is_not_at_hand_one_line_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as told:
            BENCHMARKS[name].read(str(source))
        assert str(told.value).endswith(BENCHMARKS[name].howto)
        assert "\n" not in str(told.value)


def test_a_name_on_the_hub_that_cannot_be_fetched_is_told() -> None:
    code = "from tjd.benchmarks import ifeval; ifeval.read('google/IFEval')"
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline, check=False)
    assert "DataError: google/IFEval is no file, and no data set that can be loaded (" in done.stderr
    assert done.stderr.strip().endswith(BENCHMARKS["ifeval"].howto)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"key": 1, "prompt": "x"}', "row 1 of .* lacks 'instruction_id_list'; it has key, prompt; IFEval is"),
        ("{", "line 1 of .* is not JSON"),
        ("[1]", "record 1 of .* is not an object"),
        ("", "has no rows; IFEval is"),
        (json.dumps(IFEVAL[0] | {"kwargs": []}), "ifeval 1 has 1 instruction ids but 0 kwargs"),
    ],
)
def test_data_of_another_form_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "input_data.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        BENCHMARKS["ifeval"].read(str(tmp_path))


def test_a_gap_in_the_levels_is_told(folder: Path, tmp_path: Path) -> None:
    copy = write_benchmarks(tmp_path) / "followbench" / "style_constraints.json"
    records = json.loads(copy.read_text(encoding="utf-8"))
    copy.write_text(json.dumps([record for record in records if record["level"] != 2]), encoding="utf-8")
    with pytest.raises(DataError, match="followbench style 1 has no level 2"):
        BENCHMARKS["followbench"].read(str(copy.parent))


def responses_of(tmp_path: Path, rows: list[Row], *benchmarks: str) -> list[responses.Responses]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return responses.read(str(path), benchmarks or ("ifeval",))


def test_responses_are_found_by_id_by_text_and_by_the_benchmarks_own_key(folder: Path, tmp_path: Path) -> None:
    first, second = read("ifeval", folder).values()
    (by_id,) = responses_of(tmp_path, [{"instruction_id": "ifeval:1", "response": "a"}])
    assert (by_id.model, by_id.find(first)) == ("answers", ("a", None))
    assert by_id.find(second) == (None, "the file holds no response to this prompt")
    (by_text,) = responses_of(tmp_path, [{"prompt": f" {second['instruction']}", "response": None}])
    assert by_text.find(second) == (None, "the file holds a null response")
    (by_key,) = responses_of(tmp_path, [{"key": 2, "response": "b"}])
    assert by_key.find(second) == ("b", None)
    turn = read("multi-if", folder)["multi-if:7:0:en:t2"]
    said = [{"key": f"{n}:0:en", "turn": 2, "prompt": "Say it in quotes.", "response": f"c{n}"} for n in (7, 9)]
    (by_turn,) = responses_of(tmp_path, said, "multi-if", "ifeval")
    (by_float,) = responses_of(tmp_path, [row | {"turn": float(row["turn"])} for row in said], "multi-if", "ifeval")
    assert by_float == by_turn
    assert by_turn.find(turn) == ("c7", None)


def test_a_file_may_hold_several_models(tmp_path: Path) -> None:
    rows = [{"model": model, "instruction_id": "ifeval:1", "response": model} for model in ("m", "n")]
    assert [(entry.model, entry.by_id) for entry in responses_of(tmp_path, rows)] == [
        ("m", {"ifeval:1": "m"}), ("n", {"ifeval:1": "n"}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "benchmarks", "told"),
    [
        ({"prompt": "x"}, ("ifeval",), "row 1 of .* has no 'response'; it has prompt"),
        ({"response": "x"}, ("ifeval",), "row 1 of .* names no prompt; give it one of instruction_id, prompt"),
        ({"key": 1, "response": "x"}, ("ifeval", "ifbench"), "has a key but neither prompt nor benchmark"),
    ],
)
def test_responses_that_cannot_be_placed_are_told(
    row: Row, benchmarks: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        responses_of(tmp_path, [row], *benchmarks)


def test_two_responses_to_one_prompt_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "response": text} for text in ("a", "b")]
    with pytest.raises(DataError, match=r"row 2 of .* repeats a prompt with another response"):
        responses_of(tmp_path, rows)
