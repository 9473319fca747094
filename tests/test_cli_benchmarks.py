"""`tjd evaluate` and `tjd import` of benchmarks, as a user meets them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.small import write_benchmarks
from tests.server import Reply, Server, serve
from tests.test_cli import fails, tjd
from tjd import tables
from tjd.benchmarks import BENCHMARKS

GOOD = {"ifeval:1": "Hello friend", "ifeval:2": "It falls softly down"}
BAD = {"ifeval:1": "Hello, friend", "ifeval:2": "Rain, then"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_benchmarks(tmp_path / "data")


def answer_or_judge(body: dict, before: int) -> Reply:
    """A policy and a judge in one: which of them is asked, the model's name says."""
    text = body["messages"][0]["content"]
    if body["model"] == "policy":
        return Reply("My river friend" if len(body["messages"]) == 1 else '"Elbe"')
    if "<step" in text:
        return Reply("hm\n" + str(["YES"] * (text.count("<step ") - 1)))
    return Reply(
        "是一首诗\t1\n\n主题是雨\t1\n\n不超过二十个字\t1" if "写一首" in text else "介绍了茶\t1\n\n正好两段\t0"
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Server]:
    with serve(answer_or_judge) as running:
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        yield running


def answers(path: Path, responses: dict[str, str | None]) -> Path:
    lines = [json.dumps({"instruction_id": key, "response": text}) for key, text in responses.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def scores(path: Path) -> dict[tuple[str, str, str, str], dict]:
    return {
        (row["model"], row["benchmark"], row["metric"], row["group"]): row
        for row in tables.open_table(str(path), "benchmark_scores").rows()
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_imported(name: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "instructions.parquet"
    result = tjd("import", name, data / name, "-o", out)
    rows = list(tables.open_table(str(out), "instructions").rows())
    assert rows == BENCHMARKS[name].read(str(data / name))
    assert f"import {name}: {len(rows)} of {len(rows)} rows" in result.stderr
    assert str(tmp_path) not in str(pq.read_schema(out).metadata)


def test_a_subset_keeps_one_kind_of_constraints(data: Path, tmp_path: Path) -> None:
    for subset, kind, n in (("hard", "rule", 20), ("soft", "soft", 20)):
        out = tmp_path / f"{subset}.parquet"
        tjd("import", "followbench", data / "followbench", "--subset", subset, "-o", out)
        rows = list(tables.open_table(str(out), "instructions").rows())
        assert {c["kind"] for row in rows for c in row["constraints"]} == {kind}
        assert len(rows) == n


def test_a_subset_that_is_empty_is_told(data: Path, tmp_path: Path) -> None:
    line = fails(2, "import", "ifeval", data / "ifeval", "--subset", "soft", "-o", tmp_path / "x.parquet")
    assert line == "--subset soft: ifeval has no such constraints; leave it out"
    assert not (tmp_path / "x.parquet").exists()


def test_files_of_responses_stand_side_by_side(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [answers(tmp_path / f"{name}.jsonl", held) for name, held in (("good", GOOD), ("bad", BAD))]
    out, kept = tmp_path / "scores.parquet", tmp_path / "responses.parquet"
    flags = ("-b", f"ifeval={data / 'ifeval'}", "-o", out, "--responses", kept)
    result = tjd("evaluate", "-m", models[0], "-m", models[1], *flags)
    assert result.exit_code == 0
    found = scores(out)
    assert found["good", "ifeval", "prompt_level_strict_acc", "all"]["value"] == 1.0
    assert found["bad", "ifeval", "ISR", "all"]["value"] == 0.0
    line = next(line for line in result.stdout.splitlines() if "inst_level_loose_acc" in line)
    assert "100.00 [100.0, 100.0] (n 3)" in line
    assert "0.00 [0.0, 0.0] (n 3)" in line
    monkeypatch.setenv("COLUMNS", "80")
    narrow = tjd("evaluate", "-m", models[0], "-m", models[1], *flags).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count(" [100.0, 100.0] ") == result.stdout.count(" [100.0, 100.0] ") > 0
    monkeypatch.delenv("COLUMNS")
    assert len(list(tables.open_table(str(kept), "evaluations").rows())) == 4
    assert str(tmp_path) not in str(pq.read_schema(out).metadata)

    again = tmp_path / "again.parquet"
    assert tjd("evaluate", "-m", kept, *flags[:2], "-o", again).exit_code == 0  # what was kept can be scored anew
    assert scores(again) == found


def test_a_file_that_is_not_of_these_prompts_is_told(data: Path, tmp_path: Path) -> None:
    flags = ("--data", data, "-b", "ifeval", "--max-invalid", 1)
    other = answers(tmp_path / "other.jsonl", {"ifbench:1": "Hm", "ifbench:2": "Ah"})
    line = fails(3, "evaluate", "-m", other, *flags)
    assert line == f"none of the 2 responses of {other} belongs to a prompt of ifeval; is it for another benchmark?"
    partial = answers(tmp_path / "partial.jsonl", {"ifeval:1": "Hello friend", "ifeval:2": None, "ifeval:9": "Ah"})
    result = tjd("evaluate", "-m", partial, *flags)
    told = f"1 of 2 prompts have a response; 1 response of {partial} matches no prompt"
    assert result.stderr.splitlines()[0] == f"warning: {partial}: {told}"
    whole = answers(tmp_path / "whole.jsonl", GOOD)
    for more in ((), ("--limit", 1)):  # a quick look at a whole file is no reason to warn
        assert "warning" not in tjd("evaluate", "-m", whole, *flags, *more).stderr
    lines = [
        {"prompt": f" {row['instruction']}", "response": "Ah"}
        for row in BENCHMARKS["ifeval"].read(str(data / "ifeval"))
    ]
    (tmp_path / "by_text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "warning" not in tjd("evaluate", "-m", tmp_path / "by_text.jsonl", *flags).stderr


def test_json_on_standard_output(data: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "good.jsonl", GOOD)
    result = tjd("evaluate", "-m", model, "--data", data, "-b", "ifeval", "--json")
    assert json.loads(result.stdout)[0] == {
        "model": "good", "benchmark": "ifeval", "metric": "ISR", "group": "all", "value": 1.0, "low": 1.0, "high": 1.0,
        "n": 2, "n_invalid": 0,
    }  # fmt: skip


def test_all_five_with_a_live_model_and_a_judge(
    data: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(name: str, *more: object) -> Path:
        out = tmp_path / f"{name}.parquet"
        flags = ("-m", "openai/policy", "--judge", "openai/judge", "--data", data, "-o", out, *more)
        result = tjd("evaluate", *flags)
        assert result.exit_code == 0, result.output
        return out

    monkeypatch.setenv("COLUMNS", "200")
    flags = ("-m", "openai/policy", "--judge", "openai/judge", "--data", data, "-o", tmp_path / "none.parquet")
    plan = tjd("evaluate", *flags, "--dry-run")
    assert plan.exit_code == 0, plan.output
    cells = [line.strip("│ ").split("│") for line in plan.stdout.splitlines() if "openai/" in line]
    planned = {cell[0].strip(): int(cell[1]) for cell in cells}
    assert not server.calls
    assert not (tmp_path / "none.parquet").exists()

    evaluate("quick", "--limit", 1)
    looked = len(server.calls)
    first = evaluate("first")
    asked = len(server.calls)
    assert 0 < looked < asked
    assert max(server.asked.values()) == 1  # what the quick look paid for was not paid for again
    found = scores(first)
    isr = {key[1]: row["value"] for key, row in found.items() if key[2:] == ("ISR", "all")}
    assert isr["ifeval"] == isr["multi-if"] == 1.0
    assert isr["cfbench"] == 0.5
    assert isr["average"] == pytest.approx(sum(isr[name] for name in BENCHMARKS) / 5)
    assert found["openai/policy", "followbench", "HSR", "category=style, level=5"]["value"] == 1.0
    assert found["openai/policy", "followbench", "HSR", "category=example, level=5"]["value"] == 0.0
    assert found["openai/policy", "multi-if", "average", "turn=2"]["value"] == 1.0  # '"Elbe"' is in quotes

    assert evaluate("second").read_bytes() == first.read_bytes()
    assert len(server.calls) == asked
    judged = [body for body in server.calls if body["model"] == "judge"]
    assert {body["temperature"] for body in server.calls} == {0.0}
    assert len(judged) == 20 + 2
    assert planned == {"openai/policy": asked - len(judged), "openai/judge": len(judged)}


def test_a_local_model_is_evaluated(data: Path, tmp_path: Path, tiny_model_dir: Path, cache: Path) -> None:
    out = tmp_path / "scores.parquet"
    flags = ("-b", "ifeval", "-b", "multi-if", "--data", data, "--max-tokens", 8, "-o", out)
    assert tjd("evaluate", "-m", f"hf:{tiny_model_dir}", *flags).exit_code == 0
    found = scores(out)
    assert found["tiny", "multi-if", "inst_level_strict_acc", "all"]["n"] == 4
    assert found["tiny", "ifeval", "ISR", "all"]["n_invalid"] == 0


def test_what_was_not_decided_ends_in_an_error_after_the_files_are_written(data: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "half.jsonl", {"ifeval:1": "Hello"})
    out = tmp_path / "scores.parquet"
    flags = ("evaluate", "-m", model, "--data", data, "-b", "ifeval", "-o", out)
    line = fails(5, *flags)
    assert line.startswith("1 of 2 prompts lack a verdict (mostly: there is no response)")
    isr = scores(out)["half", "ifeval", "ISR", "all"]
    assert (isr["value"], isr["n"], isr["n_invalid"]) == (1.0, 1, 1)
    result = tjd(*flags, "--max-invalid", 0.5)
    assert result.exit_code == 0
    assert "(n 1, 1 null)" in result.stdout


def test_a_judge_that_is_only_for_trying_out_is_told(data: Path, tmp_path: Path) -> None:
    recording = Path(__file__).parents[1] / "data" / "demo" / "recorded.parquet"
    model = answers(tmp_path / "good.jsonl", {"cfbench:0": "雨", "cfbench:1": "茶"})
    flags = ("-b", "cfbench", "--data", data, "--judge", f"recorded:{recording}", "--max-invalid", 1)
    result = tjd("evaluate", "-m", model, *flags)
    assert "as the judge mean nothing; it is for trying out" in result.stderr
    assert "- (n 0, 2 null)" in result.stdout


def test_what_is_missing_is_told_in_one_line(data: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "good.jsonl", GOOD)
    line = fails(2, "evaluate", "-m", model)
    assert line == "nothing to evaluate on: give --benchmark NAME=SOURCE, or --data FOLDER"
    assert fails(2, "evaluate", "--data", data).startswith("tjd evaluate needs at least one --model")
    line = fails(2, "evaluate", "-m", "nope.jsonl", "--data", data, "-b", "ifeval")
    assert line.startswith("nope.jsonl is not a file")
    line = fails(2, "evaluate", "-m", model, "-b", "ifevla")
    assert line == "unknown --benchmark: 'ifevla'; did you mean 'ifeval'?"
    line = fails(2, "evaluate", "-m", model, "-b", "multi-if")
    assert line == f"--benchmark multi-if: say where: --benchmark multi-if=SOURCE; {BENCHMARKS['multi-if'].howto}"
    line = fails(3, "evaluate", "-m", model, "-b", f"followbench={tmp_path / 'none'}", "--judge", "openai/x")
    assert line == f"there is no folder {tmp_path / 'none'}; {BENCHMARKS['followbench'].howto}"
    line = fails(2, "evaluate", "-m", model, "--data", data, "-b", "cfbench", "-b", "ifeval")
    told = "--judge MODEL is missing: it decides what code cannot check of cfbench"
    assert line == f"{told}; or evaluate on what code checks alone: -b ifeval"
    assert fails(2, "evaluate", "-m", model, "--data", data, "-b", "cfbench") == told
    nowhere = tjd("evaluate", "-m", model, "--data", tmp_path / "nowhere")
    assert nowhere.exit_code == 3
    assert nowhere.stderr.startswith(f"error: there is no folder {tmp_path / 'nowhere'}; give one with a folder per")
    line = fails(2, "evaluate", "-m", model, "-m", model, "--data", data, "-b", "ifeval")
    assert line.startswith("two models are called good")


def test_a_folder_with_some_of_the_five_says_which_are_left_out(data: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "good.jsonl", GOOD)
    for name in ("cfbench", "followbench", "multi-if", "ifbench"):
        (data / name).rename(tmp_path / name)
    result = tjd("evaluate", "-m", model, "--data", data)
    assert result.exit_code == 0
    assert f"cfbench is left out, {data} has no folder cfbench; {BENCHMARKS['cfbench'].howto}" in result.stderr


def test_metrics_on_standard_output_have_it_for_themselves(data: Path, tmp_path: Path) -> None:
    held = answers(tmp_path / "good.jsonl", GOOD)
    for as_json in ((), ("--json",)):
        result = tjd("evaluate", "-m", held, "-b", f"ifeval={data / 'ifeval'}", "-o", "-", *as_json)
        [model] = {row["model"] for row in pq.read_table(pa.BufferReader(result.stdout_bytes)).to_pylist()}
        assert model == "good"
        assert "prompt_level_strict_acc" in result.stderr
    line = fails(2, "evaluate", "-m", held, "-b", f"ifeval={data / 'ifeval'}", "-o", "-", "--responses", "-")
    assert line == "standard output (`-`) takes one table; write the other to a file"
