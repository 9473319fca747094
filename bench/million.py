"""Label a million rows with a recorded teacher: is memory flat, and how many rows a second?

    python bench/million.py                      # 100,000 and 1,000,000 rows; a few minutes, 1 GB of disk
    python bench/million.py --rows 10000 100000

For each size it writes a table of responses (a soft constraint each) and a recording of the verdicts on them, and runs
`tjd label --teacher recorded:` in a process of its own. Printed are its time, its peak of resident memory, and what that
grows by per row between sizes, beside the bytes that a row takes as text. With --shuffled the recording is in another order
than the rows.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tjd import prompts, tables
from tjd.teacher import recorded
from tjd.teacher.verdicts import VARIABLES, verdict_request

WORDS = ("the", "sea", "was", "calm", "nobody", "on", "pier", "said", "a", "word", "until", "light", "came", "back")
CONSTRAINT = {
    "kind": "soft",
    "category": "style",
    "text": "Speak as an old harbour pilot.",
    "checker": None,
    "kwargs": None,
}


def responses(n: int) -> Iterator[dict[str, Any]]:
    """Rows of about 450 characters of text, each unlike all others."""
    luck = random.Random(0)
    for i in range(n):
        query = f"Question {i}: {' '.join(luck.choices(WORDS, k=12))}?"
        response = " ".join(luck.choices(WORDS, k=60))
        yield {
            "response_id": f"r{i:07}", "instruction_id": f"i{i:07}", "query_id": f"q{i:07}", "query": query,
            "instruction": query, "response": response, "model": "m", "constraints": [{"constraint_id": "c", **CONSTRAINT}],
        }  # fmt: skip


def verdicts(n: int) -> Iterator[dict[str, Any]]:
    """The recording's rows."""
    prompt = prompts.load("label.pointwise.v1", VARIABLES["pointwise"])
    for i, row in enumerate(responses(n)):
        request = verdict_request(prompt, "pointwise", row["query"], row["response"], [CONSTRAINT["text"]])
        yield recorded.entry(request, "No" if i % 3 else "Yes", model="m", source="a benchmark")


def measure(folder: Path, n: int, *, shuffled: bool) -> dict[str, float]:
    """Label `n` rows in a process of its own."""
    source, recording, out = (folder / f"{name}-{n}.parquet" for name in ("responses", "recording", "labels"))
    tables.write_rows(responses(n), str(source), tables.output_schema("responses"), {})
    entries = verdicts(n)
    if shuffled:
        entries = iter(random.Random(1).sample(list(entries), n))
    recorded.write_recording(entries, str(recording), {})
    command = [sys.executable, "-m", "tjd.cli", "label", str(source), "-t", f"recorded:{recording}", "-o", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = status
    if status:
        raise SystemExit(f"tjd label failed with status {status}")
    labelled = tables.open_table(str(out), "labels")
    assert len(labelled) == n
    assert all(row["followed"] is not None for row in labelled.rows())
    text_bytes = (
        sum(len(row["query"]) + len(row["instruction"]) + len(row["response"]) for row in responses(1000)) / 1000
    )
    return {"rows": n, "seconds": seconds, "peak_bytes": used.ru_maxrss * 1024, "text_bytes": text_bytes}


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--shuffled", action="store_true", help="the recording in another order than the rows")
    options = parser.parse_args()
    before: dict[str, float] | None = None
    for n in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            now = measure(Path(folder), n, shuffled=options.shuffled)
        told = f"{n:>9,} rows: {now['seconds']:6.1f} s, {n / now['seconds']:6,.0f} rows/s, "
        told += f"peak {now['peak_bytes'] / 1e6:4.0f} MB"
        if before:
            growth = (now["peak_bytes"] - before["peak_bytes"]) / (now["rows"] - before["rows"])
            told += f", {growth:.0f} bytes more per row (its text: {now['text_bytes']:.0f})"
        print(told, flush=True)
        before = now


if __name__ == "__main__":
    main()
