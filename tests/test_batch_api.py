"""`--batch-api`: the real command line against a server that speaks OpenAI's batch protocol.

What a user sees is in the first tests: requests travel as a job, the job is looked at until it has ended, its results
make the table. The others kill, break and expire things: nothing is submitted twice, and every row has a verdict or a reason.
"""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.batch_server import Job, serve_batches
from tests.server import Reply, last_user
from tests.test_cli import fails, tjd
from tjd import tables
from tjd.teacher import Usage
from tjd.teacher.cache import Ledger
from tjd.teacher.jobs import Jobs

# litellm opens a client for each call, and leaves it to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]

SERVED = "openai/gpt-4o-mini"
WARM = {
    "constraint_id": "warm", "kind": "soft", "category": "style", "text": "Be warm.", "checker": None, "kwargs": None
}  # fmt: skip
CLI = [sys.executable, "-m", "tjd.cli"]


@pytest.fixture
def server(monkeypatch, cache):
    with serve_batches(lambda body, before: Reply("Yes")) as running:
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
        yield running


@pytest.fixture(scope="module")
def collected():
    yield
    gc.collect()


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.parquet"
    rows = [
        {"response_id": f"r{i}", "query": "what?", "response": f"response {i}.", "constraints": [WARM]}
        for i in range(9)
    ]
    tables.write_rows(rows, str(path), tables.output_schema("responses"), {})
    return path


def label(responses, out, *more, teacher=SERVED):
    return ["label", responses, "-t", teacher, "--batch-api", "--poll-s", "0.01", "-o", out, *more]


def number(body):
    """Which of the responses a request is about."""
    return int(re.search(r"response (\d)\.", body["messages"][0]["content"])[1])


def verdicts(out):
    return [(row["followed"], row["error"]) for row in tables.open_table(str(out), "labels").read().to_pylist()]


def n_posts(server, path):
    return server.calls.count(f"POST {path}")


def test_a_table_is_labelled_by_one_job_at_half_the_price(server, responses, tmp_path):
    server.script = lambda body, before: Reply("Yes" if number(body) < 5 else "No")
    server.patience = 2
    out = tmp_path / "labels.parquet"
    told = tjd(*label(responses, out)).stderr

    assert server.calls == [
        "POST /files", "GET /batches", "POST /batches",
        "GET /batches/batch_0", "GET /batches/batch_0", "GET /batches/batch_0",  # validating, in_progress, completed
        "GET /files/batch_0-out/content",
    ]  # fmt: skip
    line = server.lines()[0]
    assert line["body"].keys() == {"model", "messages", "temperature", "max_tokens", "seed"}
    assert (line["method"], line["url"], line["body"]["model"]) == ("POST", "/v1/chat/completions", "gpt-4o-mini")
    assert verdicts(out) == [(True, None)] * 5 + [(False, None)] * 4  # in the order of the table
    [row, *_] = tables.open_table(str(out), "labels").read().to_pylist()
    n_prompt = len(last_user(line["body"]).split())
    assert row["cost_usd"] == pytest.approx(n_prompt * 0.075e-6 + 1 * 0.3e-6)  # live: 0.15 and 0.6
    assert f"9 calls (0 more from the cache), {9 * n_prompt}+9 tokens, ${9 * row['cost_usd']:.4f}" in told

    asked = len(server.calls)
    again = tmp_path / "again.parquet"
    assert "0 calls (9 more from the cache)" in tjd(*label(responses, again)).stderr
    assert "0 calls (9 more" in tjd("label", responses, "-t", SERVED, "-o", again).stderr  # nor without --batch-api
    assert len(server.calls) == asked
    assert again.read_bytes() == out.read_bytes()


def test_what_a_job_brought_can_be_exported_and_repeated(server, responses, tmp_path):
    server.script = lambda body, before: Reply("Yes" if number(body) < 5 else "No")
    out, recording, again = (tmp_path / f"{name}.parquet" for name in ("labels", "recording", "again"))
    tjd(*label(responses, out))
    assert tjd("cache", "export", "--model", SERVED, "-o", recording).stderr.startswith("cache export: 9 rows -> ")
    tjd("label", responses, "-t", f"recorded:{recording}", "-o", again)
    assert verdicts(again) == verdicts(out)


def test_files_are_of_bounded_size_and_equal_requests_go_out_once(server, responses, tmp_path):
    out = tmp_path / "labels.parquet"
    rows = tables.open_table(str(responses), "responses").read().to_pylist()
    twice = [row | {"response_id": f"{row['response_id']} {i}"} for i in range(2) for row in rows]
    tables.write_rows(twice, str(responses), tables.output_schema("responses"), {})
    told = tjd(*label(responses, out, "--votes", "2", "--job-size", "8")).stderr
    assert [len(server.files[job.file]) for job in server.jobs] == [8, 8, 2]  # votes differ in their seed
    assert "18 calls (18 more from the cache)" in told
    tjd(*label(responses, tmp_path / "more.parquet", "--votes", "3"))
    assert len(server.lines()) == 27  # the third votes alone


def test_what_cannot_be_read_is_asked_again_in_a_second_job(server, responses, tmp_path):
    server.script = lambda body, before: Reply("Yes" if len(body["messages"]) > 1 or number(body) else "Perhaps")
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out))
    assert [len(server.files[job.file]) for job in server.jobs] == [9, 1]
    assert verdicts(out) == [(True, None)] * 9


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow)],
)
def test_a_command_that_dies_while_it_waits_finds_its_job_again(how, server, responses, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole.parquet", tmp_path / "resumed.parquet"
    tjd(*label(responses, whole))
    server.jobs.clear()
    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "another"))

    server.ending.clear()
    cli = [
        sys.executable,
        "-c",  # a process that is started in the background may inherit that Ctrl-C is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tjd.cli import main; main()",
    ]
    doomed = subprocess.Popen([*cli, *map(str, label(responses, resumed))], stderr=subprocess.PIPE)
    while not server.jobs or server.jobs[0].looks < 3:
        assert doomed.poll() is None
        time.sleep(0.01)
    doomed.send_signal(how)
    doomed.communicate(timeout=20)
    assert not resumed.exists()
    server.ending.set()

    assert "9 calls" in tjd(*label(responses, resumed)).stderr
    assert len(server.jobs) == 1  # in spite of two commands
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("status", "n_files"),
    [
        pytest.param(0, 1, id="taken, but the answer is lost"),
        pytest.param(500, 2, id="down"),
        pytest.param(400, 2, id="refused"),
    ],
)
def test_a_command_that_ends_while_it_submits_neither_loses_nor_doubles_the_job(
    status, n_files, server, responses, tmp_path
):
    out = tmp_path / "labels.parquet"
    server.trouble = lambda method, path: status if (method, path) == ("POST", "/batches") else None
    error = fails(5, *label(responses, out, "--retries", "0"))
    assert error.startswith(f"{SERVED}: a batch job cannot be submitted: ")
    server.trouble = lambda method, path: None
    tjd(*label(responses, out))
    assert (len(server.files), len(server.jobs)) == (n_files, 1)
    assert verdicts(out) == [(True, None)] * 9


@pytest.mark.slow
def test_what_no_provider_took_is_forgotten_and_submitted_only_as_far_as_it_is_wanted(server, responses, tmp_path):
    out = tmp_path / "labels.parquet"
    server.trouble = lambda method, path: 500 if (method, path) == ("POST", "/batches") else None
    fails(5, *label(responses, out, "--retries", "0"))
    server.trouble = lambda method, path: None
    tjd(*label(responses, out, "--limit", "1"))
    [job] = server.jobs
    assert len(server.files[job.file]) == 1


def test_a_number_of_a_job_is_never_that_of_another(tmp_path):
    books = Jobs("m", Ledger("m", "m", tmp_path, Usage()), tmp_path)
    old = books.enter("file-1", [b"a"])
    books.close(old)
    new = books.enter("file-2", [b"a"])
    books.close(old)  # another process that was still waiting for it
    books.submitted(old, "batch-1")
    assert [(job.file, job.job, job.keys) for job in books.open()] == [("file-2", None, new.keys)]


def test_a_job_that_was_taken_is_not_submitted_again_by_a_retry(server, responses, tmp_path):
    for i in range(5):  # other jobs of this account, on later pages of its list
        server.jobs.append(Job(f"another_{i}", "file_x", 2_000_000_000))
    server.files["file_x"] = []
    heard = []

    def trouble(method, path):
        if (method, path) == ("POST", "/batches") and not heard:
            heard.append(path)
            return 0
        return None

    server.trouble = trouble
    tjd(*label(responses, tmp_path / "labels.parquet"))
    assert n_posts(server, "/batches") == 1
    assert len(server.jobs) == 6


def test_what_could_not_be_used_is_asked_anew_in_a_batch_too(server, responses, tmp_path):
    well = False
    server.script = lambda body, before: Reply("Yes" if well or number(body) != 4 else "Perhaps")
    command = label(responses, tmp_path / "labels.parquet", "--max-invalid", "1")
    assert tjd(*command).exit_code == 0
    well = True
    assert tjd(*command).exit_code == 0
    assert verdicts(tmp_path / "labels.parquet")[4][0] is None
    n_asked = len(server.lines())
    assert tjd(*command, "--retry-unusable").exit_code == 0
    assert [followed for followed, _ in verdicts(tmp_path / "labels.parquet")] == [True] * 9
    assert len(server.lines()) == n_asked + 1


def test_results_are_read_row_by_row(server, responses, tmp_path):
    replies = {
        0: lambda before: Reply("No"),
        1: lambda before: Reply("too long for sk-test-0123456789", 400),  # this row's own fault: null
        2: lambda before: Reply("busy", 503) if before == 0 else Reply("Yes"),
        3: lambda before: Reply("broken", 500),  # past all retries: null
        4: lambda before: None if before == 0 else Reply("Yes"),  # missing
        5: lambda before: Reply(raw=b'{"custom_id": "tru') if before == 0 else Reply("Yes"),
        6: lambda before: None,
        7: lambda before: Reply("slow down", 429) if before < 2 else Reply("No"),
        8: lambda before: Reply("Perhaps"),
    }
    server.script = lambda body, before: replies[number(body)](before)
    out = tmp_path / "labels.parquet"
    told = tjd("-v", *label(responses, out, "--retries", "2", "--max-invalid", "1")).stderr
    assert verdicts(out) == [
        (False, None),
        (None, "the call failed: 400: too long for ***"),
        (True, None),
        (None, "the call failed: 500: broken"),
        (True, None),
        (True, None),
        (None, "the batch job completed without this request"),
        (False, None),
        (None, "neither Yes nor No"),
    ]
    assert [len(server.files[job.file]) for job in server.jobs] == [9, 6, 3, 1]  # the last: the question once more
    assert "3 failed" in told


def test_a_reply_without_an_answer_is_asked_again_and_never_kept(server, responses, tmp_path):
    answer = server.answer

    def without_choices(job, status):
        answer(job, status)
        if job is server.jobs[0]:
            whole = server.results[f"{job.id}-out"]
            server.results[f"{job.id}-out"] = [line.replace('"choices"', '"chosen"') for line in whole]

    server.answer = without_choices
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out))
    assert verdicts(out) == [(True, None)] * 9
    assert [line["body"]["messages"][1:] for line in server.lines()] == [[]] * 18  # anew, not as a follow-up


def test_a_job_that_expires_keeps_what_it_did_and_the_rest_goes_into_another(server, responses, tmp_path):
    server.end = lambda number: "expired" if number == 0 else "completed"
    server.script = lambda body, before: None if before == 0 and number(body) % 2 else Reply("Yes")
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out))
    assert [len(server.files[job.file]) for job in server.jobs] == [9, 4]
    assert verdicts(out) == [(True, None)] * 9


@pytest.mark.parametrize(
    ("end", "retries", "reason"),
    [
        ("expired", 0, "the call failed: batch_expired: This request could not be executed in time."),
        ("cancelled", 5, "the batch job was cancelled"),
        ("failed", 5, "the batch job failed: no such model for ***"),
    ],
)
def test_a_job_that_ends_badly_gives_nulls_with_the_reason(end, retries, reason, server, responses, tmp_path):
    server.end = lambda number: end
    server.errors = {
        "object": "list",
        "data": [{"code": "model_not_found", "message": "no such\nmodel for sk-test-0123456789"}],
    }
    server.script = lambda body, before: None if number(body) else Reply("Yes")
    out = tmp_path / "labels.parquet"
    error = fails(5, *label(responses, out, "--retries", retries))
    n_null = 9 if end == "failed" else 8
    assert error.startswith(f"{n_null} of 9 rows have no followed (mostly: {reason})")
    assert verdicts(out)[-n_null:] == [(None, reason)] * n_null
    assert len(server.jobs) == 1

    server.end, server.script = lambda number: "completed", lambda body, before: Reply("Yes")
    tjd(*label(responses, out))
    assert len(server.lines()) == 9 + n_null  # what was answered is not asked again
    assert verdicts(out) == [(True, None)] * 9


@pytest.mark.slow
def test_a_full_queue_is_waited_for(server, responses, tmp_path):
    server.errors = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit"}]}
    server.end = lambda number: "failed" if number in (1, 2) else "completed"
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out, "--job-size", "3"))
    assert verdicts(out) == [(True, None)] * 9
    assert len(server.jobs) == 5


def test_looks_that_fail_are_repeated(server, responses, tmp_path):
    looks = []

    def trouble(method, path):
        if path.startswith("/batches/"):
            looks.append(path)
            return 503 if len(looks) % 2 else None
        return None

    server.trouble = trouble
    tjd(*label(responses, tmp_path / "labels.parquet", "--retries", "0"))
    assert len(looks) == 2


@pytest.mark.slow
def test_a_job_of_another_account_is_not_paid_again_in_silence(server, responses, tmp_path):
    server.trouble = lambda method, path: 503 if path.startswith("/batches/") else None
    out = tmp_path / "labels.parquet"
    error = fails(5, *label(responses, out))
    assert error.endswith("UTC is kept: run the same command again when the server is well")
    server.trouble = lambda method, path: 404 if path.startswith("/batches/") else None
    error = fails(5, *label(responses, out))
    assert "batch job batch_0 of 20" in error
    assert "set the key it was submitted with, or leave out --batch-api to ask anew" in error
    assert len(server.jobs) == 1


def test_a_job_fits_a_cap_of_what_the_dry_run_tells(server, responses, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = label(responses, tmp_path / "labels.parquet", "--price-in", "3", "--price-out", "15")
    usd = float(re.search(r"cost \(at most\).*?\$(\d+\.\d+)", tjd(*command, "--dry-run").stdout, re.DOTALL)[1])
    line = fails(7, *command, "--max-cost", usd - 0.0002)
    assert "0 of 9 rows are done" in line
    assert "and the next batch of 9 requests can cost $" in line
    assert "(a smaller --job-size sends fewer at once); nothing is lost" in line
    assert server.jobs == []
    assert tjd(*command, "--max-cost", usd).exit_code == 0
    assert len(server.jobs) == 1


def test_rows_that_are_there_are_done_when_a_job_does_not_fit_the_cap(server, responses, tmp_path):
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out, "--limit", "4"))
    assert "4 of 9 rows are done, 5 remain" in fails(7, *label(responses, out, "--max-cost", "0"))


def test_given_prices_are_not_halved(server, responses, tmp_path):
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out, "--price-in", "3", "--price-out", "15"))
    [row, *_] = tables.open_table(str(out), "labels").read().to_pylist()
    assert row["cost_usd"] == pytest.approx(row["n_prompt_tokens"] * 3e-6 + 15e-6)


@pytest.mark.parametrize(
    ("model", "key"),
    [("gemini/gemini-3-pro-preview", "GEMINI_API_KEY"), ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY")],
)
def test_a_provider_without_a_batch_api_is_told_before_any_work(model, key, server, responses, tmp_path, monkeypatch):
    monkeypatch.setenv(key, "a-key-0123456789")
    error = fails(2, *label(responses, tmp_path / "labels.parquet", teacher=model))
    assert error == (
        f"--batch-api is there for openai/... and hosted_vllm/..., not for {model}; leave it out to ask call by call"
    )


def test_a_server_of_ones_own_gets_its_own_key_and_may_lack_a_batch_api(server, responses, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.url)
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "own-key-0123456789")
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9/v1")
    out = tmp_path / "labels.parquet"
    tjd(*label(responses, out, teacher="hosted_vllm/some/model"))
    assert verdicts(out) == [(True, None)] * 9
    assert server.keys == {"Bearer own-key-0123456789"}
    assert server.lines()[0]["body"]["model"] == "some/model"
    server.trouble = lambda method, path: 404
    error = fails(5, *label(responses, out, teacher="hosted_vllm/another"))
    assert "a batch file cannot be uploaded: 404" in error
    assert error.endswith("if this server takes no such batches, leave out --batch-api to ask call by call")


@pytest.mark.slow
def test_two_commands_at_once_submit_each_request_once(server, responses, tmp_path):
    server.patience = 10
    outs = [tmp_path / f"{i}.parquet" for i in range(2)]
    both = [
        subprocess.Popen([*CLI, *map(str, label(responses, out))], env=os.environ, stderr=subprocess.DEVNULL)
        for out in outs
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(server.lines()) == 9
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_sample_and_synthesize_take_it_too(server, tmp_path):
    instructions = [{"query_id": "q", "instruction_id": "i", "query": "what?", "instruction": "What? Be warm."}]
    table = tmp_path / "instructions.parquet"
    tables.write_rows(instructions, str(table), tables.output_schema("instructions"), {})
    batch = ["--batch-api", "--poll-s", "0.01", "-o", tmp_path / "out.parquet"]
    assert "2 calls" in tjd("sample", table, "-m", SERVED, *batch).stderr
    told = {"constraints": [{"category": "style", "text": "Be warm."}], "instruction": "What? Be warm."}
    server.script = lambda body, before: Reply(json.dumps(told))
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query": "what?"}\n')
    assert "1 calls" in tjd("synthesize", queries, "-t", SERVED, "-c", "style", *batch).stderr
    assert len(server.jobs) == 2
