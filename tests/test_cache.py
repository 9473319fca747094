"""The completions on disk, as a user and a hostile world meet them: looked at, pruned, exported; shared, full, damaged."""

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tests.server import Reply, serve
from tests.test_cli import fails, tjd
from tests.test_interrupted import FEW_WORDS, WARM
from tjd import tables
from tjd.errors import DataError
from tjd.teacher import Completion, Request, Usage, user
from tjd.teacher import cache as cache_module
from tjd.teacher.cache import FILE, Ledger
from tjd.teacher.recorded import Recorded

DAY_S = 86_400
OLD_SCHEMA = """
CREATE TABLE completions (key BLOB PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT,
    n_prompt_tokens INTEGER, n_tokens INTEGER, cost_usd REAL, arrived_at INTEGER NOT NULL DEFAULT (unixepoch()))
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Three completions of `a`, one of them old and one of unknown price, and one of `b`."""
    monkeypatch.setenv("TJD_CACHE", str(tmp_path))
    for model, prompt, cost in [("a", "q1", 0.5), ("a", "q2", None), ("a", "q3", 0.25), ("b", "q1", 1.0)]:
        book = Ledger(model, model, tmp_path, Usage())
        book.enter(
            [(Request(user(prompt), seed=3), Completion(f"{model} on {prompt} — ja", model, "length", 10, 4, cost))]
        )
        book.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute("UPDATE completions SET arrived_at = unixepoch() - ? WHERE text LIKE 'a on q3%'", [40 * DAY_S])
    return tmp_path


def n_kept(folder):
    with closing(sqlite3.connect(folder / FILE)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return file.execute("SELECT count(*) FROM completions").fetchone()[0]


def test_stats_per_model(kept):
    found = json.loads(tjd("cache", "stats", "--json").stdout)
    a, b = found
    assert (a["model"], a["completions"], a["prompt_tokens"], a["tokens"]) == ("a", 3, 30, 12)
    assert (a["cost_usd"], a["unknown_prices"], a["bytes"]) == (0.75, 1, 3 * len("a on q1 — ja".encode()))
    assert a["first"] < a["last"] == b["first"] == b["last"]
    shown = tjd("cache", "stats", "--model", "a").stdout
    assert "$0.7500 and 1 of unknown price" in shown
    assert "$1.0000" not in shown


@pytest.mark.parametrize(
    ("chosen", "n", "cost"),
    [
        ((), 4, "$1.7500 and 1 of unknown price"),
        (("--model", "b"), 1, "$1.0000"),
        (("--older-than", "30"), 1, "$0.2500"),
        (("--older-than", "30", "--model", "b"), 0, "$0.0000"),
    ],
)
def test_prune_says_what_it_would_remove_and_removes_it_with_yes(chosen, n, cost, kept):
    noun = "completion" if n == 1 else "completions"
    told = tjd("cache", "prune", *chosen)
    assert told.stderr == f"cache prune: would remove {n} {noun}, which cost {cost}; add --yes to do it\n"
    assert n_kept(kept) == 4
    assert tjd("cache", "prune", *chosen, "--yes").stderr.startswith(f"cache prune: removed {n} {noun} of ")
    assert n_kept(kept) == 4 - n


def test_what_is_pruned_is_gone_from_the_disk(kept):
    assert tjd("cache", "prune", "--model", "a", "--yes").exit_code == 0
    assert not any(b"a on q1" in path.read_bytes() for path in kept.iterdir())


def test_an_export_is_a_recording_that_answers_as_the_model_did(tmp_path, monkeypatch):
    rows = [{"instruction_id": f"i{i}", "query": f"what {i}?", "instruction": f"What {i}?"} for i in range(5)]
    source, live, again, recording = (tmp_path / f"{name}.parquet" for name in ("in", "live", "again", "recording"))
    tables.write_rows(rows, str(source), tables.output_schema("instructions"), {})
    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "cache"))
    with serve(lambda body, before: Reply(body["messages"][0]["content"].upper(), finish_reason="length")) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        for temperature in ("1", "0.5"):
            assert (
                tjd(
                    "sample", source, "-m", "openai/gpt-4o-mini", "--n", "2", "--temperature", temperature, "-o", live
                ).exit_code
                == 0
            )
    done = tjd("cache", "export", "--model", "openai/gpt-4o-mini", "-o", recording)
    assert done.stderr.startswith("cache export: 20 rows (20 left out: an earlier one of the same prompt and seed, ")
    assert (
        tjd("sample", source, "-m", f"recorded:{recording}", "--n", "2", "--temperature", "0.5", "-o", again).exit_code
        == 0
    )
    said = [
        [(r["response"], r["finish_reason"]) for r in tables.open_table(str(p), "responses").rows()]
        for p in (live, again)
    ]
    assert said[0] == said[1]
    assert said[0][0] == ("WHAT 0?", "length")


def test_an_export_of_two_models_is_no_recording_and_says_so(kept, tmp_path):
    recording = tmp_path / "both.parquet"
    assert tjd("cache", "export", "-o", recording).stderr.startswith("cache export: 4 rows -> ")
    with pytest.raises(
        DataError, match=r"two completions for the prompt \w{12}\.\.\. and seed 3, perhaps of two models"
    ):
        Recorded(str(recording))


def test_without_a_cache_there_is_one_line(cache, tmp_path):
    for command in (["stats"], ["prune", "--yes"], ["export", "-o", tmp_path / "out.parquet"]):
        line = fails(3, "cache", *command)
        assert line == f"there is no cache {cache / FILE}; no model was asked yet, or TJD_CACHE names another folder"
    assert not cache.exists()


def test_a_file_of_an_older_release_goes_on_working(tmp_path, monkeypatch):
    monkeypatch.setenv("TJD_CACHE", str(tmp_path))
    book = Ledger("m", "m", tmp_path, Usage())
    with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute(OLD_SCHEMA)
        file.execute(
            "INSERT INTO completions (key, model, text) VALUES (?, 'm', 'old')", [book.key(Request(user("q")))]
        )
    found = book.find(Request(user("q")))
    assert found is not None
    assert found.text == "old"
    book.enter([(Request(user("new")), Completion("new", "m"))])
    book.close()
    out = tmp_path / "recording.parquet"
    assert "1 row (1 left out: " in tjd("cache", "export", "-o", out).stderr
    assert [row["completion"] for row in tables.open_table(str(out), "foreign").rows()] == ["new"]


WRITER = """
import sys
from pathlib import Path
from tjd.teacher import Completion, Request, Usage, user
from tjd.teacher.cache import Ledger
folder, me = Path(sys.argv[1]), sys.argv[2]
book = Ledger("m", "m", folder, Usage())
for i in range(200):
    for prompt in (f"{me} {i}", f"shared {i}"):
        book.enter([(Request(user(prompt)), Completion(prompt, "m"))])
        assert book.find(Request(user(prompt))).text == prompt
print("done")
"""


def test_four_processes_write_at_once_beginning_with_an_old_file(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute(OLD_SCHEMA)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, f"w{i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(4)]
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert (out, err) == (b"done\n", b"")
    assert n_kept(tmp_path) == 5 * 200


@pytest.fixture
def labelling(tmp_path, monkeypatch):
    """A command to label 40 rows whose answers are long, in a process of its own."""
    rows = [
        {"response_id": f"r{i}", "query": f"what {i}?", "response": "so", "constraints": [WARM, FEW_WORDS]}
        for i in range(40)
    ]
    source, out = tmp_path / "responses.parquet", tmp_path / "labels.parquet"
    tables.write_rows(rows, str(source), tables.output_schema("responses"), {})
    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with serve(lambda body, before: Reply("because " * 4000 + "\nYes")) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)

        def run(**more):
            code = "from tjd.cli import main; main()"
            command = [
                sys.executable,
                "-c",
                code,
                "label",
                source,
                "-t",
                "openai/gpt-4o-mini",
                "--concurrency",
                "2",
                "-o",
                out,
            ]
            return subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)

        run.server, run.out, run.cache = server, out, tmp_path / "cache"
        yield run


def small_files():
    """As on a disk that is full after 300 kB: the system call that writes fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_goes_on(labelling):
    done = labelling(preexec_fn=small_files)
    assert done.returncode == 5, done.stderr
    told = r"error: the cache completions.sqlite cannot be used \((disk I/O error|database or disk is full)\); free space, "
    assert re.fullmatch(told + r".* run the same command again: what had arrived is kept\n", done.stderr)
    assert not labelling.out.exists()
    n_before, n_asked = n_kept(labelling.cache), len(labelling.server.calls)
    assert 0 < n_before < 40
    assert labelling().returncode == 0
    assert len(labelling.server.calls) - n_asked == 40 - n_before
    assert len(tables.open_table(str(labelling.out), "labels")) == 80


def test_no_room_for_the_table_is_told_in_one_line(tmp_path):
    rows = [
        {"response_id": os.urandom(600).hex(), "query": "q", "response": "r", "constraints": [FEW_WORDS]}
        for _ in range(900)
    ]
    source, out = tmp_path / "responses.parquet", tmp_path / "checks.parquet"
    tables.write_rows(rows, str(source), tables.output_schema("responses"), {})
    command = [sys.executable, "-c", "from tjd.cli import main; main()", "check", source, "--workers", "1", "-o", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: {out} cannot be written (File too large); free space and run the same command again: answers that arrived "
        "are kept\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.parquet"]


@pytest.mark.parametrize("damage", ["no database", "torn pages"])
def test_a_damaged_cache_is_told_in_one_line(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("TJD_CACHE", str(tmp_path))
    book = Ledger("m", "m", tmp_path, Usage())
    book.enter((Request(user(f"q{i}")), Completion("x" * 500, "m")) for i in range(200))
    book.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    start = 0 if damage == "no database" else 4096
    content[start:] = b"\xa5" * (len(content) - start)
    (tmp_path / FILE).write_bytes(content)
    line = fails(5, "cache", "stats")
    assert re.fullmatch(
        r"the cache completions.sqlite cannot be used \((file is not a database|database disk image is malformed)\); "
        r"move it away, or point TJD_CACHE to another folder: what it holds is asked anew",
        line,
    )


def test_commits_wait_for_the_disk_at_intervals(tmp_path, monkeypatch):
    book = Ledger("m", "m", tmp_path, Usage())
    synced = []

    def enter(prompt):
        book.enter([(Request(user(prompt)), Completion("a", "m"))])
        synced.append(book._connection.execute("PRAGMA synchronous").fetchone()[0] == 2)  # FULL

    enter("first")
    enter("at once")
    monkeypatch.setattr(cache_module, "SYNC_EVERY_S", 0.0)
    enter("later")
    assert synced == [True, False, True]
