"""The command line as a user meets it: one clear line and an exit code per kind of error, and no stray file."""

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tjd import tables
from tjd.cli import app
from tjd.commands.common import Written
from tjd.config import (
    BackendConfig,
    EvalJudgeConfig,
    EvaluateConfig,
    LabelConfig,
    RlConfig,
    SampleConfig,
    TrainJudgeConfig,
)
from tjd.resources import folder
from tjd.teacher import open_teacher

DEMO = folder("data") / "demo"
RECORDED = f"recorded:{DEMO / 'recorded.parquet'}"


def tjd(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(code, *arguments):
    """Run a command that must fail with one line on standard error; return the line."""
    result = tjd(*arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0].removeprefix("error: ")


def write(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


LABEL = {
    "response_id": "r", "constraint_id": "c", "query_id": "q", "query": "Hello?", "category": "style",
    "constraint": "Be kind.", "response": "Hi.", "followed": True, "split": "train",
}  # fmt: skip


def labels(path, *changes):
    return write(path, [LABEL | {"response_id": f"r{i}"} | change for i, change in enumerate(changes)])


def test_help_is_instant_in_what_it_imports():
    code = (
        "import sys; from tjd.cli import app; from typer.main import get_command; get_command(app); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "litellm", "pandas", "pyarrow", "sklearn"} & set(loaded)


def test_every_command_explains_itself():
    for command in ("synthesize", "sample", "label", "train-judge", "eval-judge", "probe-hacks", "transfer",
                    "score", "rl", "check", "show", "evaluate", "agreement"):  # fmt: skip
        result = tjd(command, "--help")
        assert result.exit_code == 0
        assert len(result.output) > 500


def test_the_demo_is_labelled_by_its_recorded_teacher(tmp_path):
    out = tmp_path / "labels.parquet"
    result = tjd("label", DEMO / "pool.parquet", "-t", RECORDED, "--votes", 3, "--limit", 40, "-o", out)
    assert result.exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 40
    digest = tables.file_digest(DEMO / "recorded.parquet")
    assert {row["teacher"] for row in rows} == {f"recorded:{digest[:12]}"}
    assert all(row["followed"] is not None and row["agreement"] >= 0.5 for row in rows)
    assert str(tmp_path) not in str(pq.read_schema(out).metadata)
    assert str(DEMO) not in str(pq.read_schema(out).metadata)


def test_a_panel_is_compared_at_the_end(tmp_path):
    other, out = tmp_path / "other.parquet", tmp_path / "labels.parquet"
    recording = pq.read_table(DEMO / "recorded.parquet")
    turned = [{"Yes": "No", "No": "Yes"}.get(text, text) if i % 5 == 0 else text
              for i, text in enumerate(recording["completion"].to_pylist())]  # fmt: skip
    pq.write_table(recording.set_column(2, "completion", pa.array(turned)), other)
    panel = ("label", DEMO / "pool.parquet", "-t", RECORDED, "-t", f"recorded:{other}", "--limit", 200)
    done = tjd(*panel, "--max-invalid", 1, "-o", out)
    names = [f"recorded:{tables.file_digest(path)[:12]}" for path in (DEMO / "recorded.parquet", other)]
    assert all(f"{name}: 200 calls (0 more from the cache)" in done.stderr for name in names)
    assert "Cohen's" in done.stderr
    assert "bias" in done.stderr
    rows = pq.read_table(out).to_pylist()
    assert all(row["teachers"] == names and row["teacher"] == " + ".join(names) for row in rows)
    assert {row["error"] for row in rows if row["followed"] is None} == {"votes are tied"}
    provenance = json.loads(pq.read_schema(out).metadata[b"tjd"])
    assert provenance["config"]["teacher"] == names
    assert set(names) < set(provenance["inputs"])
    found = json.loads(tjd("agreement", out, "--json").stdout)
    [kappa] = [r["value"] for r in found if r["category"] == "all" and r["metric"] == "cohen_kappa"]
    tied = sum(row["followed"] is None for row in rows)
    [share] = [
        r["value"] for r in found if (r["raters"], r["category"], r["metric"]) == ("all", "all", "percent_agreement")
    ]
    assert share == pytest.approx(1 - tied / 200)
    assert 0 < kappa < share


def test_labels_of_rules_may_come_from_ones_own_checkers(tmp_path):
    own = tmp_path / "my_rules.py"
    own.write_text("def asks(response, *, prompt):\n    return prompt in response\nCHECKERS = {'my:asks': asks}\n")
    rule = {"constraint_id": "c", "kind": "rule", "category": None, "text": None, "checker": "my:asks", "kwargs": None}
    rows = [
        {"response_id": text, "query": "Why?", "instruction": "Why? Ask back.", "constraints": [rule], "response": text}
        for text in ("Why? Ask back. Yes.", "Why?")
    ]
    schema = pa.schema([tables.RESPONSES.field(name) for name in rows[0]])
    table, out = write(tmp_path / "in.parquet", rows, schema), tmp_path / "out.parquet"
    assert tjd("label", table, "-t", RECORDED, "--checkers", own, "-o", out).exit_code == 0
    assert [row["followed"] for row in pq.read_table(out).to_pylist()] == [True, False]
    assert json.loads(pq.read_schema(out).metadata[b"tjd"])["inputs"]["checkers"] == tables.file_digest(own)
    assert "unknown checker 'my:asks'" in fails(5, "label", table, "-t", RECORDED, "-o", out)


def test_the_same_command_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        arguments = ("synthesize", DEMO / "queries.parquet", "-t", RECORDED, "-o", tmp_path / f"{name}.parquet")
        assert tjd(*arguments).exit_code == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    kinds = {constraint["kind"] for row in rows for constraint in row["constraints"]}
    assert kinds == {"rule", "soft"}
    assert all(row["instruction"] for row in rows)


def test_stages_can_be_piped(tmp_path):
    command = (
        f"{sys.executable} -m tjd.cli synthesize {DEMO / 'queries.parquet'} -t {RECORDED} --limit 5 -o - "
        f"| {sys.executable} -m tjd.cli show - --json"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["n_rows"] == 5
    assert summary["provenance"]["stage"] == "synthesize"


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("hello")
    line = fails(3, "label", tmp_path / "x.parquet", "-o", tmp_path / "out.parquet")
    assert line == f"{tmp_path / 'x.parquet'} is not a Parquet file; name JSONL .jsonl and CSV .csv"
    assert not (tmp_path / "out.parquet").exists()


def test_a_truncated_file(tmp_path):
    whole = (DEMO / "pool.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    line = fails(3, "label", tmp_path / "x.parquet", "-o", tmp_path / "out.parquet")
    assert line == f"{tmp_path / 'x.parquet'} is a truncated or damaged Parquet file; write it anew"


def test_a_missing_column(tmp_path):
    rows = [{k: v for k, v in LABEL.items() if k != "constraint"}]
    line = fails(3, "train-judge", write(tmp_path / "x.parquet", rows), "-o", tmp_path / "judges")
    assert "lacks the column 'constraint'" in line
    assert not (tmp_path / "judges").exists()


def test_queries_without_a_query(tmp_path):
    for name, text in (("q.csv", "prompt\nWhy?\n"), ("q.jsonl", '{"prompt": "Why?"}\n')):
        (tmp_path / name).write_text(text)
        line = fails(3, "synthesize", tmp_path / name, "-t", RECORDED, "-o", tmp_path / "out.parquet")
        assert line == f"{tmp_path / name} lacks the column 'query'; it has prompt"


def test_a_mistyped_column(tmp_path):
    line = fails(3, "train-judge", labels(tmp_path / "x.parquet", {"followed": "yes"}), "-o", tmp_path / "judges")
    assert "column 'followed'" in line
    assert "has type string, not bool" in line


def test_a_repeated_key(tmp_path):
    table = labels(tmp_path / "x.parquet", {"response_id": "r"}, {"response_id": "r"})
    assert "row 2" in (line := fails(3, "train-judge", table, "-o", tmp_path / "judges"))
    assert "repeats the key response_id 'r', constraint_id 'c'" in line


@pytest.mark.parametrize(
    "command", ["label", "score -j x", "eval-judge -j x", "eval-judge -j x --figure f.svg", "probe-hacks -j x", "check",
                "transfer -j x", "evaluate -m x", "bench judge", "import jsonl", "import labels", "import ifeval"],
)  # fmt: skip
def test_where_to_write_is_checked_before_anything_is_read(tmp_path, command):
    source = [] if command.startswith(("bench", "evaluate")) else [tmp_path / "not read yet"]
    line = fails(3, *command.split(), *source, "-o", tmp_path / "no" / "out.parquet")
    assert line == f"the folder of {tmp_path / 'no' / 'out.parquet'} does not exist; create it first"
    assert fails(3, *command.split(), *source, "-o", tmp_path) == f"{tmp_path} is a folder; name a file in it"


@pytest.mark.parametrize(
    "command",
    ["check", "score -j judges", "eval-judge -t hf:embedded", "agreement", "probe-hacks -j judges", "transfer -j judges",
     "import labels", "import jsonl", "concat", "synthesize", f"label -t {RECORDED}"],
)  # fmt: skip
def test_what_is_read_is_not_written_over(tmp_path, command, cache):
    table = labels(tmp_path / "x.parquet", {}, {})
    before = table.read_bytes()
    (tmp_path / "y.parquet").symlink_to(table)
    line = fails(2, *command.split(), table, "-o", tmp_path / "y.parquet")
    assert line == f"{tmp_path / 'y.parquet'} is read by this command; write to another file, so that nothing is lost"
    assert table.read_bytes() == before


def test_a_folder_to_write_may_not_be_a_file(tmp_path):
    file = labels(tmp_path / "x.parquet", {})
    for command in ("train-judge", "rl"):
        assert fails(3, command, file, "-o", file) == f"{file} is a file; name a folder"


def test_no_rows(tmp_path):
    empty = write(tmp_path / "x.parquet", [], tables.RESPONSES)
    assert "has no rows" in fails(3, "label", empty, "-o", tmp_path / "out.parquet")


@pytest.mark.parametrize("column", ["query_id", "query", "constraint"])
@pytest.mark.parametrize("command", ["train-judge", "eval-judge", "transfer -j judges"])
def test_a_null_where_a_judge_reads(tmp_path, command, column):
    table = labels(tmp_path / "x.parquet", {}, {column: None})
    out = ("-o", tmp_path / "out") if command != "train-judge" else ("-o", tmp_path / "judges")
    line = fails(3, *command.split(), table, *out)
    assert line == f"row 2 of {table} has no '{column}'; fill it, or leave the row out"


def test_one_class_only(tmp_path, tiny_model_dir):
    table = labels(tmp_path / "x.parquet", {}, {})
    line = fails(3, "train-judge", table, "-b", tiny_model_dir, "-o", tmp_path / "judges")
    assert line.startswith("all 2 training rows of 'style' are followed; sample more responses")


def test_an_unknown_category(tmp_path, tiny_model_dir):
    table = labels(tmp_path / "x.parquet", {"category": "styel"}, {})
    command = ("train-judge", table, "-b", tiny_model_dir, "-o", tmp_path / "judges")
    advice = "leave it out with --where category!=styel, or define it in a file for --taxonomy"
    assert fails(3, *command) == f"the labels have the unknown category 'styel' (did you mean 'style'?); {advice}"
    assert fails(3, *command, "--where", "category!=styel").startswith("all 1 training rows of 'style'")
    assert fails(2, *command, "--where", "category=style", "-c", "tone").startswith("unknown category 'tone'; known: ")
    table = labels(tmp_path / "y.parquet", {"category": None}, {"category": None})
    assert fails(3, "train-judge", table, *command[2:]).startswith("no row has a category, a verdict and a response; ")


def test_a_model_that_does_not_exist(tmp_path):
    table = labels(tmp_path / "x.parquet", {}, {"followed": False})
    line = fails(2, "train-judge", table, "-b", "./nowhere", "-o", tmp_path / "judges")
    assert line.startswith("there is no model folder ./nowhere")


def test_no_api_key(tmp_path, monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    line = fails(5, "label", DEMO / "pool.parquet", "-t", "gemini/gemini-3-pro-preview", "-o", tmp_path / "out.parquet")
    assert "GEMINI_API_KEY" in line
    assert not (tmp_path / "out.parquet").exists()


def test_a_path_in_place_of_a_model(tmp_path):
    out = tmp_path / "out.parquet"
    code = "import sys; from tests.test_cli import *; fails(2, *sys.argv[1:]); assert 'litellm' not in sys.modules"
    recording = DEMO / "recorded.parquet"
    for name in (str(recording), "nope.jsonl", str(DEMO)):
        command = ("label", DEMO / "pool.parquet", "-t", name, "-o", out)
        subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True)
        line = fails(2, *command)
        told = {
            "nope.jsonl": "nope.jsonl is not a file, and no model; ",
            str(DEMO): f"'{DEMO}' is a folder; did you mean 'hf:{DEMO}'?",
            str(recording): f"'{recording}' is a file, not a model; did you mean 'recorded:{recording}'?",
        }
        assert line.startswith(told[name])


def test_the_embedded_model_may_be_named_in_either_way():
    for name in ("embedded", "hf:embedded"):
        assert (
            LabelConfig(teacher=(name,)).teacher[0] == EvaluateConfig(model=("m",), judge=name).judge == "hf:embedded"
        )
        assert (
            SampleConfig(model=(name, "m")).model
            == EvalJudgeConfig(teacher=(name, "m")).teacher
            == ("hf:embedded", "m")
        )
        assert TrainJudgeConfig(base=name).base == RlConfig(policy=name).policy == "embedded"


def test_a_flag_out_of_range(tmp_path):
    label = ("label", DEMO / "pool.parquet", "-o", tmp_path / "out.parquet")
    assert fails(2, *label, "--votes", 0) == "--votes must be at least 1, not 0"
    assert fails(2, *label, "--temperature", "nan") == "--temperature must be at least 0, not nan"


def test_too_many_unreadable_verdicts_still_write_the_table(tmp_path):
    recording = tmp_path / "garbage.parquet"
    answers = pq.read_table(DEMO / "recorded.parquet").to_pylist()
    answers = [row | {"completion": "maybe"} if i % 2 else row for i, row in enumerate(answers)]
    pq.write_table(pa.Table.from_pylist(answers, schema=pq.read_schema(DEMO / "recorded.parquet")), recording)
    out = tmp_path / "out.parquet"
    line = fails(5, "label", DEMO / "pool.parquet", "-t", f"recorded:{recording}", "-o", out)
    assert "rows have no followed" in line
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 1750
    assert all(row["error"] for row in rows if row["followed"] is None)
    assert any(row["followed"] is not None for row in rows)


def test_a_config_file_gives_defaults_and_flags_win(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f"[label]\nteacher = '{RECORDED}'\nvotes = 3\nlimit = 5\n")
    out = tmp_path / "out.parquet"
    assert tjd("--config", config, "label", DEMO / "pool.parquet", "--limit", 7, "-o", out).exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 7
    assert len(rows[0]["votes"]) == 3


def test_a_config_file_may_name_one_value_of_a_repeatable_flag(tmp_path):
    config, out = tmp_path / "run.toml", tmp_path / "labels.parquet"
    config.write_text(f'[label]\nteacher = "{RECORDED}"\nlimit = 3\n')
    assert tjd("--config", config, "label", DEMO / "pool.parquet", "-o", out).exit_code == 0
    assert pq.read_metadata(out).num_rows == 3


def test_a_config_file_wins_over_a_preset_and_flags_over_both(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[rl]\nmicro_batch = 0\n")
    rl = ("rl", DEMO / "pool.parquet", "--preset", "paper", "-o", tmp_path / "policy")
    assert fails(2, "--config", config, *rl) == "--micro-batch must be at least 1, not 0"
    assert fails(2, "--config", config, *rl, "--micro-batch", -1) == "--micro-batch must be at least 1, not -1"


def test_a_config_file_may_name_commands_of_a_group(tmp_path):
    config, out = tmp_path / "run.toml", tmp_path / "labels.parquet"
    config.write_text("[import.labels]\nquery = 'ask'\n\n[bench.judge]\nrounds = 0\n")
    foreign = write(tmp_path / "f.parquet", [{"ask": "a", "constraint": "b", "response": "c", "followed": 1}])
    assert tjd("--config", config, "import", "labels", foreign, "-o", out).exit_code == 0
    assert pq.read_table(out).to_pylist()[0]["query"] == "a"
    assert fails(2, "--config", config, "bench", "judge") == "--rounds must be at least 1, not 0"
    for text, told in (("[import.labels]\nquerry = 'a'", f"unknown flag under [import.labels] in {config}: 'querry'"),
                       ("[import.lables]", f"unknown command under [import] in {config}: 'lables'"),
                       ("label = 3", f"'label' in {config} is a command; write a table of its flags")):  # fmt: skip
        config.write_text(text)
        assert fails(2, "--config", config, "bench", "judge").startswith(told)


def test_an_unknown_key_of_a_config_file_names_the_nearest(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[label]\nvoets = 3\n")
    line = fails(2, "--config", config, "label", DEMO / "pool.parquet", "-o", tmp_path / "out.parquet")
    assert line.endswith("'voets'; did you mean 'votes'?")


@pytest.mark.parametrize("written", [b"\xff\xfe[\x00", b"[label"])
def test_a_config_file_that_cannot_be_read(tmp_path, written):
    config = tmp_path / "run.toml"
    config.write_bytes(written)
    line = fails(2, "--config", config, "show", DEMO / "pool.parquet")
    assert line.startswith(f"--config {config} cannot be read (")


def test_a_config_file_behind_the_command(tmp_path):
    line = fails(2, "label", "--config", tmp_path / "run.toml", DEMO / "pool.parquet", "-o", tmp_path / "out.parquet")
    assert line == "--config goes before the command: tjd --config FILE COMMAND ..."
    assert "No such option: --cnofig" in tjd("label", "--cnofig", "x").output


@pytest.mark.parametrize("command", ["train-judge", "transfer", "rl", "eval-judge", "synthesize", "evaluate"])
def test_help_names_every_option_whole_in_a_terminal_of_80_columns(command):
    text = subprocess.run(
        [sys.executable, "-m", "tjd.cli", command, "--help"],
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not re.findall(r"--[a-z-]*…", text)
    assert len(re.findall(r"^│[ *]+--[a-z-]+ ", text, re.MULTILINE)) > 5


def test_show_puts_what_is_asked_for_first(tmp_path):
    rows = [LABEL | {"response_id": f"r{i}", "split": None, "followed": bool(i), "model": None} for i in range(3)]
    table = tmp_path / "labels.parquet"
    origin = tables.provenance("label", {"seed": 0}, {"responses": "ab" * 32}, {})
    tables.write_rows(rows, str(table), pa.Table.from_pylist(rows).schema, origin)
    sections = json.loads(tjd("show", table, "--json").stdout)["sections"]
    titles = list(sections)
    assert titles[0] == f"{table}: 3 rows, 10 columns"
    assert titles[1:] == ["verdicts", "category", "row 1", "row 2", "row 3", "columns", "provenance"]
    assert sections["verdicts"]["rows"] == [["style", 2, 1, 0, "0.67"]]
    assert sections["provenance"]["rows"][0] == ["digest", tables.file_digest(table)[:12]]
    assert ["inputs", {"responses": "abababababab"}] in sections["provenance"]["rows"]
    line = fails(2, "show", table, "--only", "x")
    assert line.endswith(", verdicts, category, row 1, row 2, row 3, columns, provenance")
    assert fails(3, "show", tmp_path) == f"{tmp_path} is a folder, not a table; name a file in it"
    (tmp_path / "card.md").touch()
    assert fails(3, "show", tmp_path) == f"{tmp_path} is a folder, not a table; read {tmp_path / 'card.md'}"


def test_an_unknown_column_in_where(tmp_path):
    line = fails(3, "show", DEMO / "pool.parquet", "--where", "colour=red")
    assert line.startswith("--where colour=red: write COLUMN=VALUE")


def test_where_that_keeps_nothing(tmp_path):
    out = tmp_path / "out.parquet"
    line = fails(3, "label", DEMO / "pool.parquet", "-t", RECORDED, "--where", "model=nobody", "--limit", 5, "-o", out)
    assert line.startswith(f"--where model=nobody keeps none of the 1750 rows of {DEMO / 'pool.parquet'}; model is ")
    assert not out.exists()


def test_votes_that_fail_are_told_apart_from_verdicts(tmp_path):
    answers = pq.read_table(DEMO / "recorded.parquet").to_pylist()
    recording, out = tmp_path / "fewer.parquet", tmp_path / "out.parquet"
    kept = [row for row in answers if row["seed"] == 0]
    pq.write_table(pa.Table.from_pylist(kept, schema=pq.read_schema(DEMO / "recorded.parquet")), recording)
    command = ("label", DEMO / "pool.parquet", "--limit", 40, "--votes", 3, "-o", out)
    result = tjd(*command, "-t", f"recorded:{recording}")
    assert result.exit_code == 0
    told = "80 votes failed (mostly: not in the recording); every row has a verdict, 40 of them with fewer than 3 votes"
    assert f", {told} -> {out}" in result.stderr
    assert "80 failed" not in result.stderr
    assert "failed" not in tjd(*command, "-t", RECORDED, "--votes", 1).stderr


def test_votes_that_only_repeat_each_other_are_warned_of(tmp_path):
    command = (
        "label",
        DEMO / "pool.parquet",
        "-t",
        RECORDED,
        "--limit",
        5,
        "--dry-run",
        "-o",
        tmp_path / "out.parquet",
    )
    greedy = tjd(*command, "--temperature", 0, "--votes", 3)
    assert greedy.exit_code == 0
    told = "warning: at --temperature 0 the 3 votes of a teacher repeat each other, and each is paid for; "
    assert greedy.stderr.count(told) == 1
    for sound in (("--votes", 3), ("--temperature", 0)):
        assert "warning" not in tjd(*command, *sound).stderr


def test_votes_that_fail_are_told_with_their_own_reason_where_the_others_are_tied():
    written = Written("out.parquet", "followed", [open_teacher(RECORDED, BackendConfig(), None)])
    tied = {"followed": None, "votes": [None, False, True], "error": "votes are tied; 1 of 3 votes unreadable: no JSON"}
    even = {"followed": None, "votes": [False, True], "error": "votes are tied"}
    kept = {"followed": True, "votes": [True, None, True], "error": "cut at max_tokens"}
    assert len(list(written.count([tied, tied, even, kept]))) == 4
    [told] = written.told_of_votes()
    assert told == "3 votes failed (mostly: no JSON); 1 rows have a verdict, 1 of them with fewer than 3 votes"


def test_queries_may_be_jsonl(tmp_path):
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"query": "Why is the sky blue?"}\n{"query": "Who was Ada Lovelace?"}\n')
    line = fails(5, "synthesize", queries, "-t", RECORDED, "-o", tmp_path / "out.parquet")
    advice = "answers only what it was recorded on; for your own queries name a live model with -t; see the column"
    assert f"(mostly: not in the recording); a recorded teacher {advice} 'error' of {tmp_path}" in line
    line = fails(5, "label", DEMO / "pool.parquet", "-t", RECORDED, "--seed", 99, "-o", tmp_path / "labels.parquet")
    assert line.endswith("name a live model with -t")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["query"] for row in rows] == ["Why is the sky blue?", "Who was Ada Lovelace?"]
    assert rows[0]["query_id"] != rows[1]["query_id"]


def test_a_foreign_table_is_imported(tmp_path):
    foreign = [
        {"id": i, "group": f"g{i // 2}", "ask": "Why?", "history": "A: hi" if i else None, "rule": "Be kind.",
         "answer": f"Since {i}.", "ok": i % 2, "kind_of": "style"}
        for i in range(4)
    ]  # fmt: skip
    source, out = write(tmp_path / "f.parquet", foreign), tmp_path / "labels.parquet"
    flags = {"query": "ask", "constraint": "rule", "response": "answer", "followed": "ok", "context": "history",
             "query-id": "group", "response-id": "id", "category": "kind_of"}  # fmt: skip
    arguments = [part for name, column in flags.items() for part in (f"--{name}", column)]
    assert tjd("import", "labels", source, *arguments, "-o", out).exit_code == 0
    rows = tables.open_table(str(out), "labels").read().to_pylist()
    assert [row["followed"] for row in rows] == [False, True, False, True]
    assert rows[0]["query"] == "Why?"
    assert rows[1]["query"] == "A: hi\n\nWhy?"
    assert [row["query_id"] for row in rows] == ["g0", "g0", "g1", "g1"]


def test_foreign_types_are_turned_into_ours_or_kept_apart(tmp_path):
    foreign = [
        {"query": 1, "constraint": "Be kind.", "response": "a", "followed": 1, "category": 7, "model": 8, "seed": 9,
         "kwargs": {"n": 3}, "temperature": "hot", "votes": "yes", "note": [1]}
    ]  # fmt: skip
    out = tmp_path / "labels.parquet"
    assert tjd("import", "labels", write(tmp_path / "f.parquet", foreign), "-o", out).exit_code == 0
    [row] = tables.open_table(str(out), "labels").rows()
    assert (row["query"], row["category"], row["model"], row["seed"]) == ("1", "7", "8", 9)
    assert (row["kwargs"], row["source_kwargs"], row["note"]) == (None, {"n": 3}, [1])
    assert (row["temperature"], row["source_temperature"]) == (None, "hot")
    assert (row["votes"], row["source_votes"]) == ([True], "yes")


def test_foreign_columns_in_whose_place_ours_are_filled_are_kept_apart(tmp_path):
    foreign = [{"query": "Why?", "constraint": "Be kind.", "response": "a", "human": 1, "followed": False, "kind": "hard",
                "query_id": "q", "group": "g", "instruction": "Why? Be kind.", "split": "test"}]  # fmt: skip
    source, out = write(tmp_path / "f.parquet", foreign), tmp_path / "labels.parquet"
    assert tjd("import", "labels", source, "--followed", "human", "--query-id", "group", "-o", out).exit_code == 0
    [row] = tables.open_table(str(out), "labels").rows()
    assert (row["followed"], row["kind"], row["query_id"], row["instruction"]) == (True, "soft", "g", "Why?")
    kept = {name: value for name, value in row.items() if name.startswith("source_")}
    assert kept == {
        "source_followed": False, "source_kind": "hard", "source_query_id": "q", "source_instruction": "Why? Be kind.",
    }  # fmt: skip
    assert row["split"] == "test"


def test_a_foreign_constraint_that_is_null(tmp_path):
    rows = [{"query": "a", "constraint": text, "response": "c", "followed": 1} for text in ("b", None)]
    source, out = write(tmp_path / "f.parquet", rows), tmp_path / "labels.parquet"
    line = fails(3, "import", "labels", source, "-o", out)
    assert line == "row 2 has no constraint; leave it out with --where 'constraint!=null'"
    assert tjd("import", "labels", source, "--where", "constraint!=null", "-o", out).exit_code == 0


def test_a_foreign_verdict_that_is_neither_yes_nor_no(tmp_path):
    source = write(tmp_path / "f.parquet", [{"query": "a", "constraint": "b", "response": "c", "followed": "perhaps"}])
    line = fails(3, "import", "labels", source, "-o", tmp_path / "labels.parquet")
    assert line.startswith("row 1 has the verdict 'perhaps'")
    assert not (tmp_path / "labels.parquet").exists()


@pytest.fixture(scope="module")
def toy_labels(tmp_path_factory):
    """Followed if and only if the response contains an `a`; three rows per query."""
    rows = []
    for i in range(240):
        followed = i % 2 == 0
        rows.append(
            LABEL
            | {
                "response_id": f"r{i}",
                "query_id": f"q{i // 3}",
                "query": f"q{i // 3}",
                "followed": followed,
                "split": None,
            }
            | {"response": ("bca" if followed else "bcd") * (1 + i % 4), "category": ("style", "semantic")[i % 3 == 0]}
        )
    return write(tmp_path_factory.mktemp("toy") / "labels.parquet", rows)


def test_judges_are_trained_measured_and_used(tmp_path, toy_labels, tiny_model_dir, monkeypatch):
    judges, metrics, scores = tmp_path / "judges", tmp_path / "metrics.parquet", tmp_path / "scores.parquet"
    train = ("train-judge", toy_labels, "-b", tiny_model_dir, "--full", "--learning-rate", 3e-3, "--epochs", 12,
             "--patience", 12, "-o", judges)  # fmt: skip
    told = tjd(*train)
    assert told.exit_code == 0
    worth = [line for line in told.stderr.splitlines() if "held-out row" in line]
    assert len(worth) == 4  # style and semantic, each with its warning
    assert re.fullmatch(
        r"style: \d+ held-out rows, balanced accuracy 0\.\d\d \[[01]\.\d\d, [01]\.\d\d\]|.* 1\.00 .*", worth[0]
    )
    assert worth[1] == "warning: with fewer than 30 held-out rows, the threshold of style is a guess"
    assert f"2 judges -> {judges}" in told.stderr
    weights = {path: path.stat().st_mtime_ns for path in judges.glob("*/*.safetensors")}
    assert len(weights) == 2
    assert tjd(*train).exit_code == 0  # the specialists that are there are kept
    assert weights == {path: path.stat().st_mtime_ns for path in judges.glob("*/*.safetensors")}
    assert "| style | style |" in (judges / "card.md").read_text()
    result = tjd("eval-judge", toy_labels, "-j", judges, "--teacher", f"hf:{tiny_model_dir}", "-o", metrics, "--json")
    assert result.exit_code == 0
    rows = pq.read_table(metrics).to_pylist()
    assert json.loads(result.stdout) == rows
    accuracy = {row["judge"]: row for row in rows if (row["category"], row["metric"]) == ("all", "balanced_accuracy")}
    assert accuracy["3-for-3"]["value"] >= 0.95
    assert accuracy[f"3-for-3 - zero-shot {tiny_model_dir.name}"]["value"] > 0.2
    monkeypatch.setenv("COLUMNS", "80")
    shown = tjd("eval-judge", toy_labels, "-j", judges, "--teacher", f"hf:{tiny_model_dir}").stdout
    assert "…" not in shown
    for row in rows:
        if row["metric"] != "coverage" and row["low"] is not None:
            assert f" [{row['low']:.2f}, {row['high']:.2f}] " in shown
    assert tjd("score", toy_labels, "-j", judges, "-o", scores).exit_code == 0
    scored = pq.read_table(scores).to_pylist()
    assert len(scored) == 240
    assert sum(row["followed"] == row["teacher_followed"] for row in scored) >= 228


@pytest.mark.parametrize("missing", ["constraint", "category"])
def test_scoring_without_constraints_is_told_before_judges_are_loaded(tmp_path, missing):
    table = write(tmp_path / "x.parquet", [{k: v for k, v in LABEL.items() if k != missing}])
    line = fails(3, "score", table, "-j", tmp_path / "no judges", "-o", tmp_path / "scores.parquet")
    assert line == f"{table} has neither a column 'constraints' nor both 'constraint' and 'category'; give labels"


def test_scoring_constraints_that_are_no_objects(tmp_path):
    table = write(tmp_path / "x.parquet", [{"query": "q", "response": "r", "constraints": ["Be kind."]}])
    line = fails(3, "score", table, "-j", tmp_path / "no judges", "-o", tmp_path / "scores.parquet")
    assert line.endswith("not a list of objects with text and category")


def test_the_first_verdict_stays_where_a_table_is_scored_again(tmp_path):
    from tjd.rewards import Verdict
    from tjd.stages import score as stage

    source = labels(tmp_path / "labels.parquet", {})
    for _ in range(2):
        table, source = tables.open_table(str(source), "foreign"), tmp_path / "scores.parquet"
        rows = list(stage.score(table.rows(), lambda pairs: [Verdict(False, 0.1, 0.5, "style") for _ in pairs]))
        tables.write_rows(rows, str(source), stage.schema(table.schema), {})
    [row] = tables.open_table(str(source), "scores").rows()
    assert (row["followed"], row["teacher_followed"]) == (False, True)


def test_a_null_constraint_or_category_gets_a_null_verdict(tmp_path):
    from tjd.rewards import Verdict
    from tjd.stages.score import score

    rows = [LABEL, LABEL | {"constraint": None}, LABEL | {"category": None}, LABEL | {"query": None}, LABEL]
    scored = list(score(rows, lambda pairs: [Verdict(True, 0.9, 0.5, "style") for _ in pairs]))
    assert [row["error"] for row in scored] == [None, "no constraint", "no category", "no query", None]
    assert [row["followed"] for row in scored] == [True, None, None, None, True]


def test_a_prompt_of_ones_own_is_known_by_its_name(tmp_path, toy_labels, tiny_model_dir):
    prompt, judges = tmp_path / "mine.md", tmp_path / "judges"
    prompt.write_text("$instruction\n$response\n$constraint\nYes or No?")
    train = ("train-judge", toy_labels, "-b", tiny_model_dir, "-c", "style", "--head", "probe", "--prompt", prompt)
    assert tjd(*train, "-o", judges).exit_code == 0
    footer = pq.read_schema(judges / "metrics.parquet").metadata[b"tjd"].decode()
    assert json.loads(footer)["config"]["prompt"] == "mine"
    assert str(tmp_path) not in footer


def test_judges_of_other_settings_and_policies_are_not_replaced(tmp_path, toy_labels, tiny_model_dir, caplog):
    judges = tmp_path / "judges"
    train = ("train-judge", toy_labels, "-b", tiny_model_dir, "--head", "probe", "-o", judges)
    tjd(*train)
    assert sorted(path.name for path in judges.iterdir() if path.is_dir()) == ["semantic", "style"]
    assert not caplog.records
    before = {path: path.read_bytes() for path in judges.rglob("*") if path.is_file()}
    told = (
        f"{judges} holds judges that were trained with other settings or rows; give another folder, or remove this one"
    )
    for other in (("--layout", "1-for-3"), ("--limit", 200), ("--sweep", "share=0,1")):
        assert fails(2, *train, *other) == told
    assert {path: path.read_bytes() for path in judges.rglob("*") if path.is_file()} == before
    assert "2 judges -> " in tjd(*train, "--abstain", 0.1).stderr  # another calibration of the same weights
    assert not caplog.records
    (judges / "manifest.json").write_text('{"stage": "rl"}')  # as a policy's
    assert fails(2, *train) == f"{judges} holds a manifest.json that is not of judges; give another folder"
    (judges / "manifest.json").rename(judges / "run.json")
    assert fails(2, *train) == f"{judges} holds a run of tjd rl; give another folder"


def test_settings_that_a_head_does_not_read_are_refused(tmp_path, toy_labels, tiny_model_dir):
    train = ("train-judge", toy_labels, "-b", tiny_model_dir, "-o", tmp_path / "judges")
    for head, flag in (("probe", ("--epochs", 5)), ("verdict", ("--layer", 1)), ("encoder", ("--full",))):
        line = fails(2, *train, "--head", head, *flag)
        assert line == f"{flag[0]} changes nothing with --head {head}; leave it out"


def test_a_category_without_a_specialist_gets_a_null_score(tmp_path, toy_labels, tiny_model_dir):
    judges = tmp_path / "judges"
    train = ("train-judge", toy_labels, "-b", tiny_model_dir, "-c", "style", "--epochs", 1, "-o", judges)
    assert tjd(*train).exit_code == 0
    table = pq.read_table(toy_labels)
    table = table.append_column("votes", pa.array([[True, None]] * len(table)))  # cast before, and no business of score
    pq.write_table(table, tmp_path / "labels.parquet")
    scored = tjd("score", tmp_path / "labels.parquet", "-j", judges, "-o", tmp_path / "scores.parquet")
    assert scored.exit_code == 0
    assert "vote" not in scored.stderr
    nothing = ("--where", "category=semantic", "-o", tmp_path / "none.parquet")
    assert fails(3, "score", toy_labels, "-j", judges, *nothing).startswith(
        "no row has a score; see the column 'error'"
    )
    for row in pq.read_table(tmp_path / "scores.parquet").to_pylist():
        assert (row["score"] is None) == (row["category"] == "semantic")
        assert row["error"] == ("no specialist for the category 'semantic'" if row["score"] is None else None)


def test_cells_are_shown_as_they_are_written(tmp_path):
    table = labels(tmp_path / "x.parquet", {"response": "see [/INST] end :smile: [your name]", "category": "[bold]"})
    shown = tjd("show", table)
    assert shown.exit_code == 0
    assert "see [/INST] end :smile: [your name]" in shown.stdout
    assert "[bold]" in shown.stdout


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"a": None, "b": None}, "all of it"),
        ({"category": ["style", "semantic"], "followed": True}, "['style', 'semantic']"),
        ({"advantage": 0.5, "reward": 1.0}, "advantage"),
        ({"constraints": ["Be kind."]}, "Be kind."),
        ({"constraints": [{"text": "Be kind."}]}, "Be kind."),
        ({"constraints": "Be kind.", "followed": "yes", "error": 3}, "Be kind."),
    ],
)
def test_a_foreign_table_is_shown_too(tmp_path, row, seen):
    assert seen in tjd("show", write(tmp_path / "x.parquet", [row])).stdout
