"""Kill -9 at random moments: is anything that arrived asked again, and is the table the same in the end?

    pip install '.[teacher]'
    python bench/interruptions.py               # 100 kills over synthesize, sample and label; some minutes

Each stage runs once undisturbed, then again with an empty cache through the real command line, in processes of their own that
are killed at random moments and started anew until the table is there. They ask the scripted server of the tests over HTTP.

Calls in flight at a kill are asked again, at most as many as --concurrency. Of them the table counts those whose answer the
server had sent in full before the kill, but which was on its way through the sockets and the client; and those whose answer
had arrived, that is, was committed to the cache, which after each kill is read from the cache itself: there must be none.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.server import Reply, Server, serve
from tjd import tables

MODEL = "openai/gpt-4o-mini"
CONCURRENCY = 8
LONGEST_S = 300.0
CONSTRAINT = {
    "constraint_id": "warm",
    "kind": "soft",
    "category": "style",
    "text": "Be warm.",
    "checker": None,
    "kwargs": None,
}
STAGES = {
    "synthesize": ("queries", ["-t", MODEL, "--category", "style"], 300),
    "sample": ("instructions", ["-m", MODEL, "--n", "2"], 90),
    "label": ("responses", ["-t", MODEL, "--votes", "3"], 120),
}
Key = tuple[str, int]  # digest of the messages, and seed


def moody(body: dict[str, Any], before: int) -> Reply:
    """A fifth of the first answers is unreadable; the same conversation always gets the same answer."""
    luck = random.Random(json.dumps([body["messages"], body["seed"]]))
    delay_s = luck.uniform(0.0, 0.06)
    if len(body["messages"]) == 1 and luck.random() < 0.2:
        return Reply("Perhaps", delay_s=delay_s)
    if "Answer with one JSON object" in body["messages"][0]["content"]:
        constraints = [{"category": "style", "text": "Be warm."}]
        return Reply(json.dumps({"constraints": constraints, "instruction": "What? Be warm."}), delay_s=delay_s)
    return Reply(luck.choice(["Yes", "No"]), delay_s=delay_s)


def command_line(arguments: list[str], environment: dict[str, str]) -> None:
    """What a process runs: the command line and nothing else."""
    os.environ |= environment
    sys.argv = ["tjd", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from tjd.cli import main as tjd

    tjd()


class Bench:
    """Runs commands against one server."""

    def __init__(self, server: Server, folder: Path, luck: random.Random) -> None:
        self.server, self.folder, self.luck = server, folder, luck
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tjd.cli", "litellm", "tjd.teacher.remote", "pyarrow.parquet", "numpy"])

    def start(self, arguments: list[str], cache: Path) -> BaseProcess:
        """Start the command line."""
        environment = {"OPENAI_API_BASE": self.server.url, "OPENAI_API_KEY": "sk-test", "TJD_CACHE": str(cache)}
        process = self.context.Process(target=command_line, args=(arguments, environment))
        process.start()
        return process

    def finish(self, arguments: list[str], cache: Path) -> None:
        """Run the command line to its end."""
        process = self.start(arguments, cache)
        process.join(LONGEST_S)
        if process.exitcode != 0:
            raise SystemExit(f"tjd {arguments[0]} ended with {process.exitcode}")

    def kill(self, process: BaseProcess, n_more: int) -> set[Key] | None:
        """Kill a process a moment after it made so many calls: what the server had sent it; null if it was done before."""
        goal = len(self.server.calls) + n_more
        while len(self.server.calls) < goal and process.is_alive():
            time.sleep(0.001)
        time.sleep(self.luck.uniform(0.0, 0.08))
        if not process.is_alive():
            return None
        with self.server.lock:
            sent, self.server.answered = self.server.answered, Counter()
            process.kill()
        process.join()
        time.sleep(0.1)  # calls that were under way
        return {key_of(*json.loads(pair)) for pair in sent}

    def interrupt(self, stage: str, kills: int) -> dict[str, Any]:
        """Run a stage whole, then in pieces; what came of it."""
        kind, flags, n_rows = STAGES[stage]
        source = self.folder / f"{kind}.parquet"
        tables.write_rows(map(row, range(n_rows)), str(source), tables.output_schema(kind), {})
        whole, pieces = (self.folder / f"{stage}-{name}.parquet" for name in ("whole", "pieces"))

        def arguments(out: Path) -> list[str]:
            more = ["--concurrency", str(CONCURRENCY), "--max-invalid", "1", "-o", str(out)]
            return [stage, str(source), *flags, *more]

        self.finish(arguments(whole), self.folder / f"{stage}-cache-whole")
        n_whole = len(self.server.calls)
        self.server.calls.clear()
        self.server.answered.clear()

        cache = self.folder / f"{stage}-cache-pieces"
        done = again = lost = 0
        stored: set[Key] = set()
        asked: set[Key] = set()
        began = 0
        while done < kills:
            left = max(n_whole - len(stored), 0) / (kills - done + 1)
            sent = self.kill(self.start(arguments(pieces), cache), round(self.luck.uniform(0.0, 2 * left)))
            if sent is None:
                break
            done += 1
            again += sum(key_of(body["messages"], body["seed"]) in stored for body in self.server.calls[began:])
            began = len(self.server.calls)
            stored = stored_in(cache)
            asked |= {key_of(body["messages"], body["seed"]) for body in self.server.calls}
            assert stored <= asked, "the bench cannot tell which answer is which"
            lost += len(sent - stored)
        self.finish(arguments(pieces), cache)
        again += sum(key_of(body["messages"], body["seed"]) in stored for body in self.server.calls[began:])
        return {
            "stage": stage, "kills": done, "calls undisturbed": n_whole, "asked again": len(self.server.calls) - n_whole,
            "of them sent": lost, "of them arrived": again,
            "same bytes": "yes" if whole.read_bytes() == pieces.read_bytes() else "NO",
        }  # fmt: skip


def row(i: int) -> dict[str, Any]:
    """A row of whichever table a stage reads."""
    about = {"query_id": f"q{i}", "instruction_id": f"i{i}", "response_id": f"r{i}", "query": f"What {i}?"}
    return about | {"instruction": f"What {i}? Be warm.", "response": f"Response {i}.", "constraints": [CONSTRAINT]}


def key_of(messages: list[dict[str, str]], seed: int) -> Key:
    """What tells one question from another."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest(), seed


def stored_in(cache: Path) -> set[Key]:
    """The questions whose answers have arrived."""
    path = cache / "completions.sqlite"
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        exists = file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'completions'").fetchone()[0]
        return set(file.execute("SELECT prompt_sha256, seed FROM completions")) if exists else set()


def main() -> None:
    """Interrupt each stage and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # before the processes' common ancestor imports it
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, stage in enumerate(STAGES):
            kills = options.kills // len(STAGES) + (number < options.kills % len(STAGES))
            with serve(moody) as server:
                lines.append(Bench(server, Path(folder), random.Random(options.seed + number)).interrupt(stage, kills))
            print(lines[-1], flush=True)
    print(" | ".join(lines[0]))
    for line in lines:
        print(" | ".join(str(value) for value in line.values()))
    bad = [line["stage"] for line in lines if line["of them arrived"] or line["same bytes"] != "yes"]
    raise SystemExit(f"not so in {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
