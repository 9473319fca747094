"""Ask a teacher side by side: `tjd label` directly and through litellm, a bare loop of litellm, and data-designer.

    pip install '.[teacher]'
    python bench/teacher.py                      # or one of: ideal, rate, faults
    python bench/teacher.py --peer ANOTHER_VENV/bin/python    # which has data-designer

A server of OpenAI's protocol runs in a process of its own on loopback, and each contestant in another, on the same rows.

- ideal: `--calls` calls of 2 s, at most `--allowed` in flight: more are refused with 429. Ideal is calls x 2 s / allowed.
- rate: `--many` calls of 0.2 s, the same number in flight for all and none refused: what a call costs the client.
- faults: as `ideal`, and 1 call in 10 fails: 429 with and without `Retry-After: 1`, 500, a reset, no answer at all
  (`--timeout-s`), truncated JSON, an empty completion, one in another language.

tjd runs the stage `label` from Parquet to Parquet with an empty cache on disk; seconds are those of asking and writing,
imports not counted. Memory is the most that the client's process had resident.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

FAULTS = ("429", "429 Retry-After", "500", "reset", "no answer", "truncated", "empty", "other language")
TEXTS = {"empty": "", "other language": "Das kann man so nicht sagen."}
REASONS = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}
TEXT = "The lighthouse keeper wrote of storms and of ships that never came. " * 12  # about 170 tokens


class Serve(asyncio.Protocol):
    """One connection: requests one after the other, answered after `latency_s`."""

    seen: ClassVar[Counter[str]] = Counter()
    in_flight = 0

    def __init__(self, latency_s: float, allowed: int, share: float) -> None:
        self.latency_s, self.allowed, self.share = latency_s, allowed, share
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.release()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if end and len(rest) >= int(length or 0):
            self.buffer = b""
            self.answer(json.loads(rest or b"{}"))

    def answer(self, body: dict[str, Any]) -> None:
        cls = type(self)
        cls.seen["calls"] += 1
        if self.allowed and cls.in_flight >= self.allowed:
            cls.seen["above the allowed"] += 1
            return self.send(429, {"error": {"message": "too many in flight"}})
        self.busy = True
        cls.in_flight += 1
        cls.seen["most in flight"] = max(cls.seen["most in flight"], cls.in_flight)
        fault = RANDOM.choice(FAULTS) if RANDOM.random() < self.share else ""
        cls.seen[f"fault: {fault}" if fault else "good"] += 1
        if fault.startswith("429"):
            return self.send(429, {"error": {"message": "slow down"}}, "Retry-After: 1\r\n" if "After" in fault else "")
        if fault == "500":
            return self.send(500, {"error": {"message": "boom"}})
        if fault == "no answer":
            return None
        asyncio.get_running_loop().call_later(self.latency_s, self.finish, fault, body.get("model"))
        return None

    def finish(self, fault: str, model: str | None) -> None:
        if fault == "reset":
            self.transport.abort()
            return
        message = {"role": "assistant", "content": TEXTS.get(fault, "Yes")}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 200, "completion_tokens": 1, "total_tokens": 201}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": model}
        self.send(200, {**head, "choices": [choice], "usage": usage}, cut=30 if fault == "truncated" else 0)

    def send(self, status: int, reply: dict[str, Any], header: str = "", *, cut: int = 0) -> None:
        body = json.dumps(reply)
        body = body[: len(body) - cut]
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n{header}"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        self.release()

    def release(self) -> None:
        type(self).in_flight -= self.busy
        self.busy = False


RANDOM = random.Random(0)


def run_server(pipe: Connection, latency_s: float, allowed: int, share: float) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Serve(latency_s, allowed, share), "127.0.0.1", 0, backlog=2048)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        pipe.send((Serve.seen, time.process_time()))

    asyncio.run(run())


@contextmanager
def serving(*behaviour: float) -> Iterator[tuple[str, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(theirs, *behaviour), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{ours.recv()}/v1", ours
    process.join(5)
    process.kill()


def by_label(options: argparse.Namespace) -> Counter[str]:
    """The stage, from Parquet to Parquet."""
    from tjd import prompts, tables
    from tjd.checkers import verdict
    from tjd.config import BackendConfig, LabelConfig
    from tjd.stages import label as stage
    from tjd.teacher import open_teacher
    from tjd.teacher.verdicts import VARIABLES

    folder = Path(tempfile.mkdtemp(prefix="tjd_bench_"))
    source, out = str(folder / "responses.parquet"), str(folder / "labels.parquet")
    constraint = {
        "constraint_id": "c",
        "kind": "soft",
        "category": "style",
        "text": "Write as a keeper of a lighthouse.",
    }
    rows = (
        {"response_id": f"r{i}", "query": f"Tell story {i}.", "response": TEXT, "constraints": [constraint]}
        for i in range(options.n)
    )
    tables.write_rows(rows, source, tables.RESPONSES, {})
    table = tables.open_table(source, "responses", need=stage.NEED)
    config = LabelConfig(teacher=("hosted_vllm/m",))
    prompt, again = prompts.load("label.pointwise.v1", VARIABLES["pointwise"]), prompts.load("again.v1", ["reason"])
    backend = BackendConfig(
        timeout_s=options.timeout_s, **({"concurrency": options.ceiling} if options.ceiling else {})
    )
    model = open_teacher(config.teacher[0], backend, folder)
    start = time.perf_counter()
    labels = stage.label(table.rows(), prompt, again, model.ask, config, verdict)
    tables.write_rows(labels, out, tables.output_schema("labels", like=table.schema, drop=["constraints"]), {})
    seconds = time.perf_counter() - start
    model.close()
    found: Counter[str] = Counter(seconds=seconds)  # type: ignore[arg-type]
    for i, row in enumerate(tables.open_table(out, "labels").rows()):
        assert row["response_id"] == f"r{i}"
        assert row["followed"] in (True, None)
        assert (row["followed"] is None) == bool(row["error"])
        found["labelled" if row["followed"] else f"null: {row['error']}"] += 1
    return found


def by_litellm(options: argparse.Namespace) -> Counter[str]:
    """A semaphore, and nothing else."""
    import litellm

    async def run() -> float:
        slots = asyncio.Semaphore(options.ceiling)

        async def call(i: int) -> Any:
            async with slots:
                return await litellm.acompletion(
                    "hosted_vllm/m",
                    [{"role": "user", "content": f"Tell story {i}. {TEXT}"}],
                    max_tokens=16,
                    temperature=0,
                )

        start = time.perf_counter()
        await asyncio.gather(*(call(i) for i in range(options.n)))
        return time.perf_counter() - start

    return Counter(labelled=options.n, seconds=asyncio.run(run()))  # type: ignore[arg-type]


def by_data_designer(options: argparse.Namespace) -> Counter[str]:
    """One column of text, the rows as its seed."""
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    provider = dd.ModelProvider(name="bench", endpoint=options.url, api_key="none")
    settings = dd.ChatCompletionInferenceParams(
        max_parallel_requests=options.ceiling or options.allowed, max_tokens=16, temperature=0.0, timeout=120
    )
    model = dd.ModelConfig(
        alias="m", model="m", provider="bench", inference_parameters=settings, skip_health_check=True
    )
    designer = DataDesigner(artifact_path=tempfile.mkdtemp(prefix="tjd_bench_"), model_providers=[provider])
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(
        dd.DataFrameSeedSource(df=pd.DataFrame({"query": [f"Tell story {i}." for i in range(options.n)]}))
    )
    builder.add_column(dd.LLMTextColumnConfig(name="verdict", model_alias="m", prompt="{{ query }} " + TEXT))
    start = time.perf_counter()
    results = designer.create(builder, num_records=options.n)
    seconds = time.perf_counter() - start
    return Counter(labelled=len(results.load_dataset()), seconds=seconds)  # type: ignore[arg-type]


CLIENTS = {
    "tjd": by_label,
    "tjd through litellm": by_label,
    "litellm loop": by_litellm,
    "data-designer": by_data_designer,
}


def client(name: str, options: argparse.Namespace) -> None:
    found = CLIENTS[name](options)
    own = resource.getrusage(resource.RUSAGE_SELF)
    told = {**found, "cpu_s": own.ru_utime + own.ru_stime, "memory_mb": own.ru_maxrss / 1024}
    print("\n" + json.dumps(told))


def measure(name: str, options: argparse.Namespace, n: int, behaviour: tuple[float, int, float], ceiling: int) -> float:
    """Run one contestant against a server of its own, print, and give its seconds."""
    with serving(*behaviour) as (url, pipe):
        environment = {
            **os.environ, "HOSTED_VLLM_API_BASE": url,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NEMO_TELEMETRY_ENABLED": "false",
        }  # fmt: skip
        timeout_s = options.timeout_s if behaviour[2] else 120.0
        if name == "tjd through litellm":
            environment["SSL_VERIFY"] = "True"  # of certificates, which is left to litellm where somebody sets it
        own = {"n": n, "url": url, "ceiling": ceiling, "allowed": options.allowed, "timeout_s": timeout_s}
        python = options.peer if name == "data-designer" else sys.executable
        done = subprocess.run(
            [python, __file__, "--client", name, "--own", json.dumps(own)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        pipe.send("stop")
        seen, server_cpu_s = pipe.recv()
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    seconds, cpu_s, memory_mb = told.pop("seconds"), told.pop("cpu_s"), told.pop("memory_mb")
    print(
        f"  {name:>20}: {seconds:6.1f} s, {n / seconds:6.1f} rows/s; {memory_mb:.0f} MB; "
        f"CPU {1000 * cpu_s / n:.2f} ms a row (server {1000 * server_cpu_s / n:.2f})"
    )
    print(f"  {'':>20}  rows {told}; server {dict(seen)}", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="ideal, rate, faults; default: all")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--many", type=int, default=20000)
    parser.add_argument("--allowed", type=int, default=200)
    parser.add_argument("--latency-s", type=float, default=2.0, help="of ideal and faults")
    parser.add_argument("--timeout-s", type=float, default=8.0, help="of an attempt, where calls fail")
    parser.add_argument("--peer", help="interpreter that has data-designer")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--own", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        return client(options.client, argparse.Namespace(**json.loads(options.own)))
    parts = options.part or ["ideal", "rate", "faults"]
    peer = ["data-designer"] if options.peer else []
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    limited, free = (options.latency_s, options.allowed, 0.0), (0.2, 0, 0.0)
    calls, many, allowed = options.calls, options.many, options.allowed
    faultless = None
    if "ideal" in parts:
        ideal = calls * options.latency_s / allowed
        print(f"\n{calls} calls of {options.latency_s} s, {allowed} allowed in flight: ideal {ideal:.1f} s")
        for name in ["tjd", *peer]:
            seconds = measure(name, options, calls, limited, 0)
            faultless = faultless or seconds
            print(f"  {'':>20}  {ideal / seconds:.1%} of ideal")
    if "rate" in parts:
        print(f"\n{many} calls of 0.2 s, {allowed} in flight")
        taken = {name: measure(name, options, many, free, allowed) for name in [*list(CLIENTS)[:3], *peer]}
        print("  tjd's rate to that of", {n: round(s / taken["tjd"], 2) for n, s in taken.items() if n != "tjd"})
        print(f"  tjd through litellm to litellm's loop: {taken['litellm loop'] / taken['tjd through litellm']:.2f}")
    if "faults" in parts:
        print(f"\n{calls} calls of {options.latency_s} s, {allowed} allowed in flight, 1 in 10 fails")
        faultless = faultless or measure("tjd", options, calls, limited, 0)
        seconds = measure("tjd", options, calls, (options.latency_s, allowed, 0.1), 0)
        print(f"  {'':>20}  {seconds / faultless:.2f} times the time without faults")
    return None


if __name__ == "__main__":
    main()
