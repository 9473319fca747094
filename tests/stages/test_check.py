"""Check: a table with rule constraints in, one row per rule with both verdicts out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_cli import fails, tjd, write
from tjd import tables
from tjd.config import CheckConfig
from tjd.errors import ConfigError
from tjd.tables import Row

OWN = """
import os, re

def asked(response, *, prompt):
    return prompt in response

def endless(response):
    return re.search("(a|aa)+$", "a" * 90 + "b") is not None

def deadly(response):
    os._exit(1)

CHECKERS = {"my:asked": asked, "my:endless": endless, "my:deadly": deadly}
"""


def rule(key: str, checker: str, text: str | None = None, **kwargs: Any) -> Row:
    return {
        "constraint_id": key, "kind": "rule", "category": None, "text": text, "checker": checker,
        "kwargs": json.dumps(kwargs),
    }  # fmt: skip


SOFT = {"constraint_id": "s", "kind": "soft", "category": "style", "text": "be kind", "checker": None, "kwargs": None}
NO_COMMA = rule("c", "punctuation:no_comma", "no commas")
WORDS = rule("w", "length_constraints:number_words", num_words=3, relation="at least")


def responses(path: Path, *rows: tuple[str | None, list[Row]]) -> Path:
    names = ("response_id", "query", "instruction", "constraints", "response", "error")
    schema = pa.schema([tables.RESPONSES.field(name) for name in names])
    full = [
        dict(zip(names, (f"r{i}", "why?", "why? no commas", constraints, response, None), strict=True))
        for i, (response, constraints) in enumerate(rows)
    ]
    return write(path, full, schema)


def checked(out: Path) -> list[Row]:
    return tables.open_table(str(out), "checks").read().to_pylist()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough rules for several lots."""
    rows = [(f"word {'x, ' * (i % 5)}\n{'word ' * (i % 4)}", [NO_COMMA, SOFT, WORDS]) for i in range(400)]
    return responses(tmp_path / "many.parquet", *rows)


def test_one_row_per_rule_with_both_verdicts(tmp_path: Path) -> None:
    table = responses(
        tmp_path / "in.parquet",
        ("Sure, here it is:\nplain words only", [NO_COMMA, SOFT, WORDS]),
        ("a, b", [WORDS, NO_COMMA]),
        ("soft alone", [SOFT]),
        ("nothing", []),
    )
    out = tmp_path / "out.parquet"
    result = tjd("check", table, "-o", out)
    assert result.exit_code == 0
    assert "check: 25.00% followed strictly, 50.00% loosely, of 4 rule constraints; 0 failed" in result.stderr
    rows = checked(out)
    assert [(r["response_id"], r["constraint_id"], r["followed"], r["followed_loose"]) for r in rows] == [
        ("r0", "c", False, True), ("r0", "w", True, True), ("r1", "w", False, False), ("r1", "c", False, False),
    ]  # fmt: skip
    assert rows[0]["constraint"] == "no commas"
    assert rows[0]["checker"] == "punctuation:no_comma"
    assert rows[0]["instruction"] == "why? no commas"
    assert "constraints" not in rows[0]


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, many: Path) -> None:
    outs = []
    for workers in (1, 1, 2, 3):
        outs.append(tmp_path / f"{len(outs)}.parquet")
        assert tjd("check", many, "--workers", workers, "-o", outs[-1]).exit_code == 0
    first, *others = (out.read_bytes() for out in outs)
    assert all(other == first for other in others)
    assert len(checked(outs[0])) == 800
    assert str(tmp_path) not in str(pq.read_schema(outs[0]).metadata)


def test_a_table_without_rules_is_told(tmp_path: Path) -> None:
    table, out = responses(tmp_path / "in.parquet", ("soft alone", [SOFT]), ("nothing", [])), tmp_path / "out.parquet"
    line = fails(3, "check", table, "-o", out)
    assert line == "no row has a rule constraint, so there is nothing to check; soft ones are for tjd score"
    assert not out.exists()


def test_a_flat_table_needs_no_keys(tmp_path: Path) -> None:
    flat = [
        {"query": "q", "response": "one two", "checker": WORDS["checker"], "kwargs": WORDS["kwargs"], "followed": True},
        {"query": "q", "response": "one two", "checker": NO_COMMA["checker"], "kwargs": None, "followed": False},
        {"query": "q", "response": "one two", "checker": None, "kwargs": None, "followed": None},
    ]
    out = tmp_path / "out.parquet"
    assert tjd("check", write(tmp_path / "in.parquet", flat), "-o", out).exit_code == 0
    rows = checked(out)
    assert [(row["followed"], row["teacher_followed"]) for row in rows] == [(False, True), (True, False)]
    assert rows[0]["response_id"] == rows[1]["response_id"]
    numbered = write(tmp_path / "numbered.parquet", [row | {"response_id": i} for i, row in enumerate(flat)])
    assert tjd("check", numbered, "-o", out).exit_code == 0
    assert [row["response_id"] for row in checked(out)] == ["0", "1"]


def test_the_first_verdict_stays_where_a_table_is_checked_again(tmp_path: Path) -> None:
    flat = [{"query": "q", "response": "a, b", "checker": NO_COMMA["checker"], "kwargs": None, "followed": True}]
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    assert tjd("check", write(tmp_path / "in.parquet", flat), "-o", once).exit_code == 0
    assert tjd("check", once, "-o", twice).exit_code == 0
    assert checked(twice) == checked(once)
    assert [(row["followed"], row["teacher_followed"]) for row in checked(twice)] == [(False, True)]


def test_kwargs_may_be_a_struct_padded_with_nulls(tmp_path: Path) -> None:
    kwargs = {"num_words": 2, "relation": "at least", "keyword": None}
    flat = [{"response": "one two", "checker": WORDS["checker"], "kwargs": kwargs}]
    assert tjd("check", write(tmp_path / "in.parquet", flat), "-o", tmp_path / "out.parquet").exit_code == 0
    assert [row["followed"] for row in checked(tmp_path / "out.parquet")] == [True]


def test_what_cannot_be_decided_is_null_with_a_reason(tmp_path: Path) -> None:
    rules = [rule("a", "punctuation:no_coma"), rule("b", WORDS["checker"]), NO_COMMA | {"kwargs": "{"}]
    rules += [NO_COMMA | {"kwargs": "[1]"}, NO_COMMA | {"checker": None}, NO_COMMA]
    rules = [each | {"constraint_id": str(i)} for i, each in enumerate(rules)]
    table = responses(tmp_path / "in.parquet", ("text", rules), (None, [NO_COMMA]))
    out = tmp_path / "out.parquet"
    line = fails(5, "check", table, "-o", out)
    assert line.startswith("6 of 7 rows have no followed")
    rows = checked(out)
    assert [row["error"] for row in rows] == [
        "unknown checker 'punctuation:no_coma'; did you mean 'punctuation:no_comma'?",
        "length_constraints:number_words needs the kwarg num_words, relation; it is missing or null",
        "the kwargs of punctuation:no_comma are not a JSON object",
        "the kwargs of punctuation:no_comma are not a JSON object",
        "the rule names no checker",
        None,
        "there is no response",
    ]
    assert all((row["followed"] is None) == (row["error"] is not None) for row in rows)
    assert tjd("check", table, "--max-invalid", 1, "-o", out).exit_code == 0


def test_suite_and_fixed_reach_the_checkers(tmp_path: Path) -> None:
    curly = rule("q", "startend:quotation")
    answer = rule("a", "detectable_format:constrained_response")
    table = responses(tmp_path / "in.parquet", ("\u201cMy answer is yes.\u201d", [curly, answer]))
    found = {}
    for name, flags in {"ifeval": (), "multi_if": ("--suite", "multi_if"), "fixed": ("--fixed",)}.items():
        assert tjd("check", table, *flags, "-o", tmp_path / "out.parquet").exit_code == 0
        found[name] = [row["followed"] for row in checked(tmp_path / "out.parquet")]
    assert found == {"ifeval": [False, True], "multi_if": [True, True], "fixed": [False, False]}


def test_own_checkers_see_the_prompt_and_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tjd.checkers.own.TIMEOUT_S", 0.2)
    own = tmp_path / "my_rules.py"
    own.write_text(OWN)
    rules = [rule("p", "my:asked"), rule("e", "my:endless"), NO_COMMA]
    table = responses(tmp_path / "in.parquet", ("why? no commas: here", rules), ("here", rules))
    out = tmp_path / "out.parquet"
    assert tjd("check", table, "--checkers", own, "--max-invalid", 1, "-o", out).exit_code == 0
    rows = checked(out)
    assert [row["followed"] for row in rows] == [True, None, True, False, None, True]
    assert rows[1]["error"] == "my:endless: it ran longer than 0.2 s"
    inputs = json.loads(pq.read_schema(out).metadata[b"tjd"])["inputs"]
    assert inputs["checkers"] == tables.file_digest(own)
    assert tjd("check", table, "--max-invalid", 1, "-o", out).exit_code == 0
    assert checked(out)[0]["error"].startswith("unknown checker 'my:asked'")


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    own = tmp_path / "my_rules.py"
    own.write_text(OWN)
    table = responses(tmp_path / "in.parquet", *[("text", [rule("d", "my:deadly")])] * 600)
    line = fails(3, "check", table, "--checkers", own, "--workers", 2, "-o", tmp_path / "out.parquet")
    assert line.startswith("a process that ran checkers died")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--suite", "ifevil"], 2, "Invalid value for '--suite'"),
        (["--workers", -1], 2, "--workers must be at least 0, not -1"),
        (["--checkers", "nowhere.py"], 3, "no Python file at nowhere.py; --checkers takes one with a dict CHECKERS"),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: list[Any], code: int, message: str) -> None:
    table = responses(tmp_path / "in.parquet", ("text", [NO_COMMA]))
    result = tjd("check", table, *flags, "-o", tmp_path / "out.parquet")
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_an_unknown_suite() -> None:
    with pytest.raises(ConfigError, match="--suite must be one of ifeval, ifbench, iftrain, multi_if, not 'ifevil'"):
        CheckConfig(suite="ifevil")  # type: ignore[arg-type]


def test_a_table_that_cannot_have_rules(tmp_path: Path) -> None:
    table, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    write(table, [{"query": "q", "response": "text"}])
    line = fails(3, "check", table, "-o", out)
    assert line == f"{table} has neither a column 'constraints' nor 'checker'; give labels"
    for constraints in ("no commas", ["no commas"], NO_COMMA, [{"text": "no commas"}], [{"checker": 3}]):
        write(table, [{"query": "q", "response": "text", "constraints": constraints}])
        assert fails(3, "check", table, "-o", out).endswith(", not a list of objects with checker")
