"""Import jsonl and verinstruct: foreign records become instructions, or an error that names the line."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_cli import fails, tjd
from tjd import tables, taxonomy
from tjd.checkers import load_checkers, verdict
from tjd.tables import Row
from tjd.taxonomy import verinstruct_category

RULE = {"checker": "length_constraints:number_words", "kwargs": {"num_words": 3, "relation": "at least"}}
SOFT = {"text": "Be kind.", "category": "style"}
SHORT = """
def words(text):
    return text.replace("🙂", " ").split()

def check_following(instruction, response):
    print({"'": len(words(response))})
    return len(words(response)) <= 3
"""
ECHO = (
    "import re\ndef check_following(instruction, response):\n    return re.search(instruction, response) is not None\n"
)
BROKEN = "from nowhere_at_all import x\ndef check_following(instruction, response):\n    return True\n"
ASKED = "from llm_call import llm_judge\ndef check_following(instruction, response):\n    return llm_judge()\n"


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def imported(out: Path) -> list[Row]:
    return tables.open_table(str(out), "instructions").read().to_pylist()


def foreign(*pairs: tuple[str, str], **more: Any) -> Row:
    return {
        "id": 7, "prompt": "Tell a tale.", "checkers": [checker for checker, _ in pairs],
        "functions": [function for _, function in pairs], **more,
    }  # fmt: skip


def test_jsonl(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "in.jsonl",
        {
            "query": "Why?",
            "instruction": "Why? Be kind.",
            "constraints": [SOFT, RULE | {"kind": "rule"}],
            "split": "test",
        },
        {"query": "Where?", "constraints": [SOFT, {"text": "Be brief."}, RULE]},
        {"instruction": "How? Use no commas.", "constraints": [{"checker": "punctuation:no_comma"}], "query_id": "q"},
        {"query": "Who?", "constraints": []},
    )
    out = tmp_path / "out.parquet"
    result = tjd("import", "jsonl", source, "-o", out)
    assert result.exit_code == 0
    assert "constraints: 3 rule, 2 style, 1 without a category" in result.stderr
    rows = imported(out)
    assert [row["query"] for row in rows] == ["Why?", "Where?", "How? Use no commas."]  # the last has no constraint
    assert [row["instruction"] for row in rows] == ["Why? Be kind.", "Where?\nBe kind.\nBe brief.", rows[2]["query"]]
    assert [row["split"] for row in rows] == ["test", None, None]
    assert rows[2]["query_id"] == "q"
    soft, rule = rows[0]["constraints"]
    assert (soft["kind"], soft["category"], soft["text"], soft["checker"]) == ("soft", "style", "Be kind.", None)
    assert (rule["kind"], rule["checker"], json.loads(rule["kwargs"])) == ("rule", RULE["checker"], RULE["kwargs"])
    assert len({each["constraint_id"] for row in rows for each in row["constraints"]}) == 6


def test_subsets(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "in.jsonl",
        {"query": "a", "constraints": [SOFT, RULE]},
        {"query": "b", "constraints": [SOFT]},
        {"query": "c", "constraints": [RULE]},
        {"query": "a", "constraints": [SOFT, RULE]},  # an exact repetition
    )
    found = {}
    for subset in ("hard", "soft", "mix"):
        out = tmp_path / f"{subset}.parquet"
        assert tjd("import", "jsonl", source, "--subset", subset, "-o", out).exit_code == 0
        found[subset] = [(row["query"], [each["kind"] for each in row["constraints"]]) for row in imported(out)]
    assert found == {
        "hard": [("a", ["rule"]), ("c", ["rule"])],
        "soft": [("a", ["soft"]), ("b", ["soft"])],
        "mix": [("a", ["soft", "rule"]), ("b", ["soft"]), ("c", ["rule"])],
    }
    only_soft = jsonl(tmp_path / "soft.jsonl", {"query": "b", "constraints": [SOFT]})
    line = fails(3, "import", "jsonl", only_soft, "--subset", "hard", "-o", tmp_path / "none.parquet")
    assert line == "no record has a constraint for --subset hard; nothing is written"
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "line 2 of {} is not an object but [1]; write {{...}}"),
        ({"constraints": []}, "line 2 of {} lacks both 'query' and 'instruction'; it has constraints"),
        ({"query": 3, "constraints": []}, "'query' of line 2 of {} must be a text, not 3"),
        ({"query": "a"}, "line 2 of {} lacks 'constraints'; it has query"),
        ({"query": "a", "contraints": [RULE]}, "line 2 of {} lacks 'constraints'; did you mean 'contraints'?"),
        ({"query": "a", "constraints": "x"}, "'constraints' of line 2 of {} must be a list, not 'x'"),
        ({"query": "a", "constraints": ["x"]}, "a constraint of line 2 of {} is not an object but 'x'"),
        (
            {"query": "a", "constraints": [RULE | {"kwarg": {}}]},
            "a constraint of line 2 of {} has the key 'kwarg'; did you mean 'kwargs'?",
        ),
        (
            {"query": "a", "constraints": [RULE | {"kind": "hard"}]},
            "the kind of a constraint of line 2 of {} is 'hard'; it must be 'rule' or 'soft'",
        ),
        (
            {"query": "a", "constraints": [SOFT | {"text": 3}]},
            "'text' of a constraint of line 2 of {} must be a text, not 3",
        ),
        ({"query": "a", "constraints": [{"category": "style"}]}, "a soft constraint of line 2 of {} has no text"),
        (
            {"query": "a", "constraints": [SOFT | {"category": "stile"}]},
            "a soft constraint of line 2 of {} has the unknown category 'stile'; did you mean 'style'?",
        ),
        ({"query": "a", "constraints": [{"kind": "rule", "text": "x"}]}, "line 2 of {}: a rule names no checker"),
        (
            {"query": "a", "constraints": [RULE | {"checker": "length_constraints:number_word"}]},
            "line 2 of {}: unknown checker 'length_constraints:number_word'; "
            "did you mean 'length_constraints:number_words'?",
        ),
        (
            {"query": "a", "constraints": [RULE | {"kwargs": {"num_words": 3}}]},
            "line 2 of {}: length_constraints:number_words needs the kwarg relation; it is missing or null",
        ),
        (
            {"query": "a", "constraints": [{"checker": "keywords:existence", "kwargs": {"keywords": ["(a"]}}]},
            "line 2 of {}: '(a' is not a regular expression (missing ) at position 2); "
            "escape it, or check with fixed=True, which takes it literally",
        ),
        (
            {"query": "a", "constraints": [RULE | {"kwargs": "[1]"}]},
            "the kwargs of a rule of line 2 of {} must be an object, not '[1]'",
        ),
        (
            {"query": "a", "constraints": [SOFT], "instruction_id": "1"},
            "line 2 of {} repeats the instruction_id '1'; keys",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, record: Any, message: str) -> None:
    good = {"query": "fine", "constraints": [RULE], "instruction_id": "1"}
    source = jsonl(tmp_path / "in.jsonl", good, record)
    line = fails(3, "import", "jsonl", source, "-o", tmp_path / "out.parquet")
    assert line.startswith(message.format(source))
    assert not (tmp_path / "out.parquet").exists()


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"query": "a", "constraints": []}\n\n{"query": \n')
    line = fails(3, "import", "jsonl", tmp_path / "in.jsonl", "-o", tmp_path / "out.parquet")
    assert line.startswith(f"line 3 of {tmp_path / 'in.jsonl'} is not JSON (")


def test_own_checkers_are_known(tmp_path: Path) -> None:
    own = tmp_path / "my_rules.py"
    own.write_text("def at_most(response, *, n):\n    return 1 / 0\nCHECKERS = {'my:at_most': at_most}\n")
    source = jsonl(
        tmp_path / "in.jsonl", {"query": "a", "constraints": [{"checker": "my:at_most", "kwargs": {"n": 1}}]}
    )
    assert tjd("import", "jsonl", source, "--checkers", own, "-o", tmp_path / "out.parquet").exit_code == 0
    assert "unknown checker 'my:at_most'" in fails(3, "import", "jsonl", source, "-o", tmp_path / "out.parquet")


def test_json_parquet_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    records = [{"query": f"q{i}", "constraints": [SOFT | {"text": f"t{i}"}, RULE]} for i in range(3)]
    flat = [
        record | {"constraints": [{"kwargs": None, "checker": None, "text": None, "category": None} | each
                                  | {"kwargs": json.dumps(each["kwargs"]) if "kwargs" in each else None}
                                  for each in record["constraints"]]}
        for record in records
    ]  # fmt: skip
    jsonl(tmp_path / "a.jsonl", *records)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1))
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "c.parquet")
    found = []
    for source in ("a.jsonl", "b.json", "c.parquet"):
        assert tjd("import", "jsonl", tmp_path / source, "-o", tmp_path / "out.parquet").exit_code == 0
        found.append(imported(tmp_path / "out.parquet"))
    assert found[0] == found[1] == found[2]


def test_verinstruct(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "in.jsonl",
        foreign(
            ("[llm] Desired_Writing_Style: Be wistful: and slow.", ASKED),
            ("[rule] At most three words.", SHORT),
            ("[llm]3. Specific_Grammatical_Structure: No passive voice.", ASKED),
            ("[llm] Key_Formatting: NULL", ASKED),
            ("[llm] Unheard_Of: Something.", ASKED),
        ),
        foreign(
            ("[rule] Repeat the request.", ECHO),
            ("[rule] At most three words.", SHORT),
            id=None,
            prompt=[{"role": "user", "content": "Hi"}],
        ),
    )
    out, functions = tmp_path / "out.parquet", tmp_path / "functions.py"
    result = tjd("import", "verinstruct", source, "--functions", functions, "-o", out)
    assert result.exit_code == 0
    assert "constraints: 1 linguistic, 3 rule, 1 style, 1 without a category" in result.stderr
    first, second = imported(out)
    assert (first["query"], first["source"], first["source_id"], second["source_id"]) == (
        "Tell a tale.",
        "verinstruct",
        "7",
        None,
    )
    assert [(each["kind"], each["category"], each["text"]) for each in first["constraints"]] == [
        ("soft", "style", "Be wistful: and slow."),
        ("rule", None, "At most three words."),
        ("soft", "linguistic", "No passive voice."),
        ("soft", None, "Unheard_Of: Something."),
    ]
    # the code runs where it is asked for, and only there
    responses = [
        {"response_id": text, "instruction": row["instruction"], "constraints": row["constraints"], "response": text}
        for row, text in ((first, "far too many words"), (second, "Hi there"))
    ]
    schema = pa.schema([tables.RESPONSES.field(name) for name in responses[0]])
    pq.write_table(pa.Table.from_pylist(responses, schema=schema), tmp_path / "responses.parquet")
    check = ("check", tmp_path / "responses.parquet", "-o", tmp_path / "checks.parquet")
    result = tjd(*check, "--checkers", functions)
    assert result.exit_code == 0
    assert result.stdout == ""  # what the data's code prints does not get into a pipe
    rows = pq.read_table(tmp_path / "checks.parquet").to_pylist()
    assert [row["followed"] for row in rows] == [False, True, True]
    assert "unknown checker 'verinstruct:" in fails(5, *check)


def test_verinstruct_code_that_cannot_run_is_null(tmp_path: Path) -> None:
    source, functions = jsonl(tmp_path / "in.jsonl", foreign(("[rule] Anything.", BROKEN))), tmp_path / "functions.py"
    assert tjd("import", "verinstruct", source, "-f", functions, "-o", tmp_path / "out.parquet").exit_code == 0
    [row] = imported(tmp_path / "out.parquet")
    flat = [{"response": "text", "query": "q", "checker": row["constraints"][0]["checker"], "kwargs": "{}"}]
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "flat.parquet")
    line = fails(5, "check", tmp_path / "flat.parquet", "--checkers", functions, "-o", tmp_path / "checks.parquet")
    assert "ModuleNotFoundError: No module named 'nowhere_at_all'" in line


def test_verinstruct_soft_needs_no_file_of_functions(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "in.jsonl", foreign(("[llm] Desired_Writing_Style: Be wry.", ASKED), ("[rule] Short.", SHORT))
    )
    out = tmp_path / "out.parquet"
    line = fails(2, "import", "verinstruct", source, "-o", out)
    assert line.startswith("VerInstruct's hard constraints are code: give --functions FILE")
    line = fails(3, "import", "verinstruct", source, "-f", tmp_path / "no" / "where.py", "-o", out)
    assert line == f"the folder of {tmp_path / 'no' / 'where.py'} does not exist; create it first"
    assert not out.exists()
    assert tjd("import", "verinstruct", source, "--subset", "soft", "-o", out).exit_code == 0
    assert [each["kind"] for row in imported(out) for each in row["constraints"]] == ["soft"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"checkers": [], "functions": []}, "line 1 of {} lacks 'prompt'; it has checkers, functions"),
        (
            {"prompt": [], "checkers": [], "functions": []},
            "'prompt' of line 1 of {} must be a text or a list of messages, not []",
        ),
        ({"prompt": "a", "checkers": []}, "line 1 of {} lacks 'functions'; it has prompt, checkers"),
        (
            {"prompt": "a", "checkers": "x", "functions": []},
            "'checkers' of line 1 of {} must be a list of texts, not x",
        ),
        (
            {"prompt": "a", "checkers": ["[rule] x"], "functions": []},
            "line 1 of {} has 1 checkers but 0 functions; fetch the data anew",
        ),
    ],
)
def test_a_verinstruct_record_without_a_field(tmp_path: Path, record: Row, message: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", record)
    line = fails(3, "import", "verinstruct", source, "--subset", "soft", "-o", tmp_path / "out.parquet")
    assert line == message.format(source)


def test_a_data_set_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder for a name, which is how this runs without a hub."""
    folder = tmp_path / "THU-KEG" / "VerInstruct"
    folder.mkdir(parents=True)
    jsonl(folder / "train.jsonl", foreign(("[llm] Hierarchical_Instructions: First things first.", ASKED)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        out = tmp_path / f"{name}.parquet"
        result = tjd("import", "verinstruct", "THU-KEG/VerInstruct", "--subset", "soft", "-o", out)
        assert result.exit_code == 0
    [row] = imported(out)
    assert [each["category"] for each in row["constraints"]] == ["structure"]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_source_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    line = fails(3, "import", "jsonl", "no/such-data", "-o", tmp_path / "out.parquet")
    assert line.startswith("no/such-data is no file, and no data set that can be loaded (")


@pytest.mark.parametrize(
    ("key", "category"),
    [
        ("Desired_Writing_Style", "style"), ("Hierarchical_Instructions", "structure"), ("Semantic_Elements", "semantic"),
        ("Semantic_elements", "semantic"), ("Specific_Literary_Devices", "semantic"),
        ("Specific_Grammatical_Structure", "linguistic"), ("Morphological_Constraints", "linguistic"),
        ("Multi-lingual_Constraints", "language"), ("Paragraphs_Constraints", "layout"), ("Item_Listing_Details", "layout"),
        ("Specific_Sentence", "spatial"), ("Special_Output_Format", "spatial"), ("Special_Format", "spatial"),
        ("KeyFormatting", "spatial"), ("Key_Formatting", "spatial"), ("Length", None),
    ],
)  # fmt: skip
def test_the_papers_categories(key: str, category: str | None) -> None:
    assert verinstruct_category(key, taxonomy.load()) == category


def test_the_documentations_examples_run(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    python, example = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "json"))
    assert python
    assert example
    (tmp_path / "my_rules.py").write_text(python[1])
    own = load_checkers(tmp_path / "my_rules.py")
    assert verdict("my:at_most", {"n": 4}, "text", checkers=own).followed
    assert verdict("my:quotes_the_request", {}, "Why? So.", prompt="Why?", checkers=own).followed
    source = jsonl(tmp_path / "in.jsonl", json.loads(example[1]))
    assert tjd("import", "jsonl", source, "-o", tmp_path / "out.parquet").exit_code == 0
    [row] = imported(tmp_path / "out.parquet")
    assert row["instruction"] == "Describe a harbour.\nBe wistful.\nUse no commas.\nAt least 50 words."


@pytest.mark.parametrize("lines", ['\n{"query": "a"}\n', '[\n{"query": "a"}\n]\n'])
def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path, lines: str) -> None:
    soft = '"constraints": [{"text": "Be kind."}]'
    (tmp_path / "in").write_text("\ufeff" + lines.replace("}", f", {soft}}}"), encoding="utf-8")
    assert tjd("import", "jsonl", tmp_path / "in", "-o", tmp_path / "out.parquet").exit_code == 0
    assert [row["query"] for row in imported(tmp_path / "out.parquet")] == ["a"]
