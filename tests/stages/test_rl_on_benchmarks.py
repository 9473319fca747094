"""The reward uses every rule constraint of an imported table."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.benchmarks.small import write_benchmarks
from tjd import checkers
from tjd.benchmarks import BENCHMARKS
from tjd.config import RlConfig
from tjd.stages.rl import rl


def test_every_rule_of_an_imported_table_is_rewarded(tiny_policy: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    rows = BENCHMARKS["ifeval"].read(str(write_benchmarks(tmp_path / "data") / "ifeval"))
    config = RlConfig(
        policy=str(tiny_policy), steps=2, prompts_per_step=len(rows), group_size=2, micro_batch=2,
        max_response_tokens=12, learning_rate=1e-2, full=True, dtype="float32", flat_steps=20,
    )  # fmt: skip
    rl(rows, config, tmp_path / "policy", score=lambda pairs: [], check=checkers.verdict)
    constraints = {row["instruction_id"]: [c["constraint_id"] for c in row["constraints"]] for row in rows}
    rollouts = pq.read_table(tmp_path / "policy" / "rollouts.parquet").to_pylist()
    assert {rollout["instruction_id"] for rollout in rollouts} == set(constraints)
    for rollout in rollouts:
        verdicts = json.loads(rollout["verdicts"])
        assert [v["constraint_id"] for v in verdicts] == constraints[rollout["instruction_id"]]
        known = [v["followed"] for v in verdicts]
        assert None not in known
        assert rollout["reward"] == pytest.approx(sum(known) / len(known))
