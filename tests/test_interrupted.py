"""Commands that are killed, interrupted, or served badly: nothing that arrived is lost or paid for twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from tests.server import Reply, serve
from tests.test_cli import fails, tjd
from tjd import tables

FEW_WORDS = {
    "constraint_id": "few", "kind": "rule", "category": None, "text": "few words",
    "checker": "length_constraints:number_words", "kwargs": '{"relation": "less than", "num_words": 9}',
}  # fmt: skip
WARM = {
    "constraint_id": "warm",
    "kind": "soft",
    "category": "style",
    "text": "Be warm.",
    "checker": None,
    "kwargs": None,
}


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.parquet"
    rows = [
        {"response_id": f"r{i}", "query": "what?", "response": f"response {i}", "constraints": [WARM, FEW_WORDS]}
        for i in range(60)
    ]
    tables.write_rows(rows, str(path), tables.output_schema("responses"), {})
    return path


@pytest.fixture
def served(monkeypatch):
    """Serve a script as OpenAI."""

    def start(script):
        running = serve(script)
        server = running.__enter__()
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        running_ones.append(running)
        return server

    running_ones = []
    yield start
    for running in running_ones:
        running.__exit__(None, None, None)


# a process that is started in the background may inherit that Ctrl-C is ignored
CLI = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tjd.cli import main; main()",
]
SERVED = "openai/gpt-4o-mini"
COMMANDS = {
    "synthesize": ["-t", SERVED],
    "sample": ["-m", SERVED, "--n", "2"],
    "label": ["-t", SERVED, "--votes", "3"],
}


def label(responses, out, *more):
    return ["label", responses, *COMMANDS["label"], "--concurrency", "8", "-o", out, *more]


def moody(body, before):
    """Sometimes unreadable at first; always the same to the same conversation."""
    luck = random.Random(json.dumps([body["messages"], body["seed"]]))
    readable = len(body["messages"]) > 1 or luck.random() > 0.2
    wanted = body["messages"][0]["content"]
    if "Answer with one JSON object" in wanted:
        category = next(name for name in ("style", "structure", "semantic") if f"{name}:" in wanted or name in wanted)
        told = {"constraints": [{"category": category, "text": "Be warm."}], "instruction": "What? Be warm."}
        return Reply(json.dumps(told) if readable else "Perhaps", delay_s=0.02)
    return Reply(luck.choice(["Yes", "No"]) if readable else "Perhaps", delay_s=0.02)


@pytest.mark.parametrize(
    ("command", "how"),
    [
        pytest.param("label", signal.SIGKILL, id="label-kill -9"),
        pytest.param("label", signal.SIGINT, id="label-Ctrl-C", marks=pytest.mark.slow),
        pytest.param("label", signal.SIGTERM, id="label-SIGTERM", marks=pytest.mark.slow),
        *(
            pytest.param(command, how, id=f"{command}-{name}", marks=pytest.mark.slow)
            for command in ("synthesize", "sample")
            for how, name in ((signal.SIGKILL, "kill -9"), (signal.SIGINT, "Ctrl-C"))
        ),
    ],
)
def test_a_run_that_is_stopped_loses_nothing_and_pays_nothing_twice(
    command, how, responses, served, tmp_path, monkeypatch
):
    source = responses
    if command != "label":
        source = tmp_path / "instructions.parquet"
        rows = [
            {
                "query_id": f"q{i}",
                "instruction_id": f"i{i}",
                "query": f"what {i}?",
                "instruction": f"What {i}? Be warm.",
            }
            for i in range(90)
        ]
        if command == "synthesize":
            rows = [{name: row[name] for name in ("query_id", "query")} for row in rows]
        tables.write_rows(
            rows, str(source), tables.output_schema("queries" if command == "synthesize" else "instructions"), {}
        )

    def arguments(out):
        return [command, str(source), *COMMANDS[command], "--concurrency", "8", "--max-invalid", "1", "-o", str(out)]

    server = served(moody)
    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "one"))
    whole = tjd(*arguments(tmp_path / "whole.parquet"))
    assert whole.exit_code == 0, whole.output
    n_whole = len(server.calls)
    assert n_whole > 80

    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "two"))
    out = tmp_path / "resumed.parquet"
    doomed = subprocess.Popen([*CLI, *arguments(out)], stderr=subprocess.PIPE, text=True)
    moment = n_whole + random.Random(os.getpid()).randrange(1, n_whole - 40)
    while len(server.calls) < moment:
        assert doomed.poll() is None
        time.sleep(0.002)
    doomed.send_signal(how)
    _, told = doomed.communicate(timeout=20)
    assert not out.exists()
    if how != signal.SIGKILL:
        assert doomed.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
        assert told.splitlines()[-1].startswith("interrupted; run the same command again")

    with closing(sqlite3.connect(tmp_path / "two" / "completions.sqlite")) as kept:
        (n_arrived,) = kept.execute("SELECT count(*) FROM completions").fetchone()
        if how != signal.SIGKILL:  # calls in flight are waited for
            assert n_arrived == len(server.calls) - n_whole
    before = len(server.calls)
    assert before - n_whole - n_arrived <= 16  # those on their way, in the worst case both ways
    assert tjd(*arguments(out)).exit_code == 0
    assert len(server.calls) - before == n_whole - n_arrived
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("slow down", status=429), "429"),
        (Reply("broken", status=500), "500"),
        (Reply(raw=b"<html>oops</html>"), ""),
        (Reply(hang_up=True), ""),
        (Reply("Hm, hard to say."), "neither Yes nor No"),
        (Reply(None), "said nothing"),
    ],
    ids=["429", "500", "no JSON", "no reply", "unreadable", "no text"],
)
def test_a_teacher_that_fails_gives_nulls_with_reasons_and_exit_code_5(
    reply, reason, responses, served, tmp_path, cache
):
    served(lambda body, before: reply)
    out = tmp_path / "labels.parquet"
    line = fails(5, *label(responses, out, "--limit", "3", "--retries", "0"))
    assert line.startswith("3 of 6 rows have no followed (mostly: ")
    assert line.endswith("run it again with --retry-unusable to ask for these anew; see the column 'error' of "
                         f"{out}, or raise --max-invalid")  # fmt: skip
    rows = tables.open_table(str(out), "labels").read().to_pylist()
    soft = [row for row in rows if row["kind"] == "soft"]
    assert [row["followed"] for row in soft] == [None] * 3
    assert all(row["error"] and reason in row["error"] for row in soft), soft[0]["error"]
    assert all(row["followed"] for row in rows if row["kind"] == "rule")  # what was done is kept


@pytest.mark.slow
def test_calls_in_flight_of_eval_judge_are_kept_on_ctrl_c(served, tmp_path, cache):
    server = served(lambda body, before: Reply("Yes", delay_s=2.0))
    rows = [
        {"response_id": f"r{i}", "constraint_id": "warm", "query_id": f"q{i}", "query": f"q{i}", "kind": "soft",
         "category": "style", "constraint": "Be warm.", "response": "Hi.", "followed": i % 2 == 0}
        for i in range(9)
    ]  # fmt: skip
    tables.write_rows(rows, str(tmp_path / "labels.parquet"), tables.output_schema("labels"), {})
    command = ["eval-judge", str(tmp_path / "labels.parquet"), "-t", "openai/gpt-4o-mini", "--split", "all"]
    doomed = subprocess.Popen([*CLI, *command], stderr=subprocess.PIPE, text=True)
    while not server.calls:
        assert doomed.poll() is None
        time.sleep(0.01)
    doomed.send_signal(signal.SIGINT)
    doomed.communicate(timeout=20)
    assert doomed.returncode == 130
    with closing(sqlite3.connect(cache / "completions.sqlite")) as kept:
        (n_arrived,) = kept.execute("SELECT count(*) FROM completions").fetchone()
    assert n_arrived > 0
