"""Tables: checked reads, atomic writes, provenance, streaming."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tjd import tables
from tjd.errors import DataError
from tjd.tables import Row

ROWS: list[Row] = [{"query_id": f"q{i}", "query": f"what is {i}?", "language": "en", "source": None} for i in range(3)]


def write(path: Path, rows: list[Row] = ROWS, kind: str = "queries", **provenance: Any) -> str:
    tables.write_rows(rows, str(path), tables.output_schema(kind), provenance)
    return str(path)


def raw(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def told(source: Path | str, kind: str = "queries", need: tuple[str, ...] | None = None) -> str:
    """The one line with which a table is refused."""
    with pytest.raises(DataError) as caught:
        list(tables.open_table(str(source), kind, need).rows())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_come_back(tmp_path: Path) -> None:
    table = tables.open_table(write(tmp_path / "q.parquet"), "queries")
    assert list(table.rows()) == ROWS
    assert list(table.rows()) == ROWS  # more than once
    assert len(table) == 3
    assert table.digest == tables.file_digest(tmp_path / "q.parquet")


def test_every_schema_starts_with_its_key_and_has_no_column_twice() -> None:
    for schema, key in tables.KEYS.values():
        assert schema.names[: len(key)] == list(key)
        assert len(set(schema.names)) == len(schema.names)


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", {"query_id": ["a"], "queries": ["b"]})
    assert told(path, need=("query_id", "query")).endswith(
        "t.parquet lacks the column 'query'; did you mean to rename 'queries'?"
    )
    path = raw(tmp_path / "u.parquet", {"id": ["a"], "text": ["b"]})
    assert told(path).endswith("u.parquet lacks the column 'query_id'; it has id, text")


def test_a_mistyped_column_is_told(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", {"query_id": ["a"], "query": [3]})
    assert "column 'query' of " in told(path)
    assert told(path).endswith("has type int64, not string; cast it and write it anew")


@pytest.mark.parametrize("kind", ["large", "dictionary", "null"])
def test_another_encoding_of_a_type_is_cast(tmp_path: Path, kind: str) -> None:
    query = {
        "large": pa.array(["b"], pa.large_string()),
        "dictionary": pa.array(["b"]).dictionary_encode(),
        "null": pa.nulls(1),
    }[kind]
    table = tables.open_table(raw(tmp_path / "t.parquet", {"query_id": ["a"], "query": query}), "queries")
    assert table.schema.field("query").type == pa.string()
    assert next(table.rows())["query"] in ("b", None)


def test_a_repeated_key_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [*ROWS, ROWS[1]])
    assert told(path).startswith("row 4 of ")
    assert told(path).endswith("t.parquet repeats the key query_id 'q1'; keys must be unique")


def test_a_null_key_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{**ROWS[0], "query_id": None}])
    assert "has a null key (query_id None); every row needs one" in told(path)


def test_a_key_of_two_columns(tmp_path: Path) -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "x")]
    rows = [{"response_id": r, "constraint_id": c} for r, c in pairs]
    assert len(tables.open_table(write(tmp_path / "l.parquet", rows, "labels"), "labels")) == 3
    again = write(tmp_path / "m.parquet", [*rows, rows[0]], "labels")
    assert "repeats the key response_id 'a', constraint_id 'x'" in told(again, "labels")


def test_no_rows_are_told(tmp_path: Path) -> None:
    assert told(write(tmp_path / "t.parquet", [])).endswith("has no rows; check the command that wrote it")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert told(tmp_path / "t.parquet").endswith("t.parquet is not a file; check the path")
    assert told(tmp_path).endswith("is not a file; check the path")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_truncated_file_is_told(tmp_path: Path, kept: float) -> None:
    path = Path(write(tmp_path / "t.parquet"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert told(path).endswith("t.parquet is a truncated or damaged Parquet file; write it anew")


def test_damage_behind_the_header_is_told(tmp_path: Path) -> None:
    path = Path(raw(tmp_path / "t.parquet", {"query_id": [f"{i:09d}" for i in range(5000)]}))
    data = bytearray(path.read_bytes())
    data[4:2000] = os.urandom(1996)
    path.write_bytes(data)
    assert "cannot be read past its header" in told(path)


def test_labels_may_be_jsonl(tmp_path: Path) -> None:
    rows = [
        {"response_id": "r", "constraint_id": str(i), "followed": followed, "votes": [True]}
        for i, followed in enumerate((True, None))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(tables.open_table(str(tmp_path / "t.jsonl"), "labels").rows()) == rows
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0] | {"followed": "yes"}))
    assert "column 'followed' of" in (line := told(tmp_path / "t.jsonl", "labels"))
    assert line.endswith("has type string, not bool; cast it and write it anew")


def test_an_empty_cell_of_a_csv_is_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("response,constraint\n,Be warm.\nNA,Be warm.\n")
    rows = list(tables.open_table(str(tmp_path / "t.csv"), "foreign").rows())
    assert [row["response"] for row in rows] == [None, "NA"]


def test_text_that_is_called_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text('{"query": "x"}\n')
    assert told(tmp_path / "t.parquet").endswith("t.parquet is not a Parquet file; name JSONL .jsonl and CSV .csv")


def test_queries_may_be_jsonl(tmp_path: Path) -> None:
    lines = '{"query": "001", "more": {"a": 1}}\n{"query": "zwei 二"}\n'
    (tmp_path / "q.jsonl").write_text(lines, encoding="utf-8")
    first, second = tables.open_table(str(tmp_path / "q.jsonl"), "queries", ("query_id", "query")).rows()
    assert (first["query"], first["more"]) == ("001", {"a": 1})
    assert second["query_id"] == tables.text_id("zwei 二")


@pytest.mark.parametrize("kwargs", [[{}, {}], [{"n": 1}, {"n": "two", "words": ["a"]}], [None, '{"n": 1}']])
def test_kwargs_of_rules_in_jsonl_may_be_of_any_kind(tmp_path: Path, kwargs: list[Any]) -> None:
    rows = [{"query": str(i), "constraints": [{"checker": "c", "kwargs": each}]} for i, each in enumerate(kwargs)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(tables.open_table(str(tmp_path / "q.jsonl"), "queries").rows())
    assert [row["constraints"][0]["kwargs"] for row in found] == [
        each if each is None or isinstance(each, str) else json.dumps(each) for each in kwargs
    ]


def test_queries_may_be_csv(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('query_id,query\n007,"one, two"\n008,NA\n')
    rows = list(tables.open_table(str(tmp_path / "q.csv"), "queries").rows())
    assert [row["query_id"] for row in rows] == ["007", "008"]  # text stays text
    assert [row["query"] for row in rows] == ["one, two", "NA"]


@pytest.mark.parametrize("text", ["", "{broken", '{"query": 1}\n{"query"', "\x00\x01\x02"])
def test_what_is_no_table_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "q").write_text(text)
    assert told(tmp_path / "q")


def test_equal_queries_without_ids_are_told(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query": "x"}\n{"query": "x"}\n')
    advice = "remove it, give each a query_id, or let --dedup reject it"
    assert told(tmp_path / "q.jsonl").endswith(f"row 2 of {tmp_path / 'q.jsonl'} repeats the query of row 1; {advice}")
    rows = list(tables.open_table(str(tmp_path / "q.jsonl"), "queries", may_repeat=True).rows())
    assert [row["query"] for row in rows] == ["x", "x"]
    assert rows[0]["query_id"] == tables.text_id("x") != rows[1]["query_id"]


def test_further_columns_travel_along(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", {"query_id": ["a"], "mark": [1], "query": ["b"]})
    table = tables.open_table(path, "queries")
    schema = tables.output_schema("instructions", like=table.schema, drop=["nothing"])
    assert schema.names == [*tables.INSTRUCTIONS.names, "mark"]
    assert "mark" not in tables.output_schema("instructions", like=table.schema, drop=["mark"]).names


def test_the_footer_says_where_a_table_comes_from(tmp_path: Path) -> None:
    source = tables.provenance("label", {"seed": 0}, {"responses": "abc"}, {"p": "def"})
    tables.write_rows(ROWS, str(tmp_path / "t.parquet"), tables.QUERIES, source)
    assert tables.open_table(str(tmp_path / "t.parquet"), "queries").provenance == source
    assert tables.open_table(raw(tmp_path / "f.parquet", {"query_id": ["a"]}), "queries").provenance is None


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (Path(write(tmp_path / name, a=1, b=2)) for name in ("one.parquet", "two.parquet"))
    other = Path(write(tmp_path / "other.parquet", b=2, a=1))
    assert one.read_bytes() == two.read_bytes() == other.read_bytes()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "t.parquet"))
    before = path.read_bytes()

    def failing() -> Iterator[Row]:
        yield ROWS[0]
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        tables.write_rows(failing(), str(path), tables.QUERIES, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; create it first"):
        tables.write_rows(ROWS, str(tmp_path / "no" / "t.parquet"), tables.QUERIES, {})


def test_many_rows_are_streamed_in_groups(tmp_path: Path) -> None:
    n = 2 * tables.ROWS_PER_GROUP + 1
    rows = ({"query_id": str(i), "query": "x"} for i in range(n))
    assert tables.write_rows(rows, str(tmp_path / "t.parquet"), tables.QUERIES, {}) == n
    table = tables.open_table(str(tmp_path / "t.parquet"), "queries")
    assert [batch.num_rows for batch in table.batches()] == [tables.ROWS_PER_GROUP] * 2 + [1]
    assert [row["query_id"] for row in table.rows()] == [str(i) for i in range(n)]


def test_tables_flow_through_pipes(tmp_path: Path) -> None:
    code = """
from tjd import tables
table = tables.open_table("-", "queries")
tables.write_rows(table.rows(), "-", tables.output_schema("queries", like=table.schema), table.provenance or {})
"""
    sent = Path(write(tmp_path / "t.parquet", stage="x")).read_bytes()
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout == sent
    assert done.stderr == b""


def test_a_command_that_fails_sends_nothing_down_the_pipe() -> None:
    code = """
from tjd import tables

def rows():
    yield from [{"query_id": str(i), "query": "x"} for i in range(tables.ROWS_PER_GROUP)]
    raise RuntimeError("boom")

tables.write_rows(rows(), "-", tables.QUERIES, {})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert b"boom" in done.stderr
    assert done.stdout == b""


def test_an_empty_pipe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert told("-") == "standard input is empty; did the command before the pipe fail?"


def test_where(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", {"query_id": ["a", "b", "c"], "n": [1, 2, None], "ok": [True, False, None]})
    table = tables.open_table(path, "queries")

    def kept(*conditions: str) -> str:
        return "".join(row["query_id"] for row in table.rows() if tables.where(table, conditions)(row))

    assert [kept(), kept("n=1"), kept("n!=1"), kept("ok=true"), kept("n=null"), kept("n!=null", "ok!=true")] == [
        "abc", "a", "bc", "a", "c", "b",
    ]  # fmt: skip
    assert [kept("ok=True"), kept("ok!=TRUE"), kept("ok=NULL")] == ["a", "bc", "c"]
    for condition in ("m=1", "n"):
        with pytest.raises(DataError, match=r"write COLUMN=VALUE or COLUMN!=VALUE with a column of query_id, n, ok"):
            tables.where(table, [condition])


def test_where_that_keeps_nothing_names_what_there_is(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", {"category": ["style", "tone", None] * 5, "n": list(range(15))})
    table = tables.open_table(path, "foreign")

    def told(*conditions: str) -> str:
        with pytest.raises(DataError) as caught:
            list(tables.kept(table, conditions))
        return str(caught.value).replace(path, "FILE")

    assert told("n!=3", "category=styel") == (
        "--where category=styel keeps none of the 15 rows of FILE; did you mean 'style'? category is style, tone, null"
    )
    assert told("n=99") == "--where n=99 keeps none of the 15 rows of FILE; n is 0, 1, 2, 3, 4, 5, 6, 7, ..."
    assert (
        told("n=1", "category=style") == "--where n=1 --where category=style together keep none of the 15 rows of FILE"
    )
    assert len(list(tables.kept(table, ["category=tone"]))) == 5


def test_text_ids_tell_parts_apart() -> None:
    assert len(tables.text_id("a")) == 16
    assert tables.text_id("a", "bc") != tables.text_id("ab", "c")


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "f").write_text("x")
    before = tables.file_digest(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert tables.file_digest(tmp_path / "two") == before
    (tmp_path / "two" / "f").rename(tmp_path / "two" / "g")
    assert tables.file_digest(tmp_path / "two") != before


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
constraint = st.fixed_dictionaries(
    {name: st.none() | text for name in ("constraint_id", "kind", "category", "text", "checker", "kwargs")}
)
instruction = st.fixed_dictionaries(
    {
        "instruction_id": text,
        **{name: st.none() | text for name in ("query_id", "query", "language", "source", "instruction", "error")},
        "constraints": st.none() | st.lists(constraint, max_size=3),
        "cost_usd": st.none() | st.floats(allow_nan=False),
        "n_prompt_tokens": st.none() | st.integers(0, 2**40),
        "n_completion_tokens": st.none() | st.integers(0, 2**40),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(instruction, min_size=1, max_size=20, unique_by=lambda row: row["instruction_id"]))
def test_round_trip(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as where:
        first, second = Path(where) / "1.parquet", Path(where) / "2.parquet"
        table = tables.open_table(write(first, rows, "instructions"), "instructions")
        assert list(table.rows()) == rows
        write(second, list(table.rows()), "instructions")
        assert first.read_bytes() == second.read_bytes()


HAND_WRITTEN = {
    "a byte order mark": '\ufeff{"query": "one"}\n{"query": "zwei"}\n',
    "blank lines": '\n \n{"query": "one"}\n\n{"query": "zwei"}\n',
    "an array over several lines": '[\n  {"query": "one"},\n  {"query": "zwei"}\n]\n',
    "numbers as ids": '{"query_id": 1, "query": "one"}\n{"query_id": "b", "query": "zwei"}\n',
    "further keys later": '{"query": "one"}\n{"query": "zwei", "language": "de"}\n',
    "CSV with a byte order mark": "\ufeffquery\none\nzwei\n",
}


@pytest.mark.parametrize("text", HAND_WRITTEN.values(), ids=HAND_WRITTEN)
def test_queries_as_a_person_writes_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "q").write_text(text, encoding="utf-8")
    rows = list(tables.open_table(str(tmp_path / "q"), "queries", ("query_id", "query")).rows())
    assert [row["query"] for row in rows] == ["one", "zwei"]
    if '"query_id"' in text:
        assert [row["query_id"] for row in rows] == ["1", "b"]


def test_rows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    constraint = dict.fromkeys(("constraint_id", "kind", "category", "text", "checker", "kwargs"))
    rows = [{"response_id": str(i), "constraints": [constraint] * i if i else None} for i in range(5)]
    table = tables.open_table(write(tmp_path / "r.parquet", rows, "responses"), "responses")
    assert [table.n_rows([], limit) for limit in (0, 3, 9)] == [5, 3, 5]
    assert [table.n_rows([], limit, "constraints") for limit in (0, 3, 9)] == [10, 3, 10]
    assert table.n_rows(["response_id=1"], 0) is None


def test_a_null_that_is_needed_is_told(tmp_path: Path) -> None:
    rows = [
        {
            "response_id": str(i),
            "constraint_id": "c",
            "query_id": "q",
            "query": query,
            "kind": kind,
            "followed": followed,
        }
        for i, (query, kind, followed) in enumerate(
            [("x", "soft", True), (None, "rule", True), (None, "soft", None), (None, "soft", False)]
        )
    ]
    path = write(tmp_path / "l.parquet", rows, "labels")
    with pytest.raises(DataError, match=r"^row 4 of .* has no 'query'; fill it, or leave the row out$"):
        tables.open_table(path, "labels", not_null=("query_id", "query"))
    write(tmp_path / "l.parquet", rows[:3], "labels")
    assert len(tables.open_table(path, "labels", not_null=("query_id", "query"))) == 3


def test_reading_text_takes_time_in_proportion_to_its_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"query_id": i, "query": "x", "language": "en", "source": "y"}) for i in range(8000)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    start = time.perf_counter()
    assert len(tables.open_table(str(tmp_path / "q.jsonl"), "queries")) == 8000
    assert time.perf_counter() - start < 3


def test_pairs_of_a_foreign_table_have_keys_of_text() -> None:
    row = {"query": "q", "response": "r", "constraint": "c"}
    nameless, named = tables.pairs([row, row | {"response_id": 0, "constraint_id": 7}])
    assert (nameless["response_id"], nameless["constraint_id"]) == (tables.text_id("q", "r"), tables.text_id("c"))
    assert (named["response_id"], named["constraint_id"]) == ("0", "7")
