"""IFEval: 541 English prompts with 834 rule constraints of 25 types.

Source: Zhou et al., arXiv:2311.07911. Strict and loose accuracy, per prompt and per instruction.
"""

from collections.abc import Sequence

import numpy as np

from tjd.benchmarks import sources
from tjd.benchmarks.figures import Figure, accuracies, accuracies_by_checker, isr
from tjd.tables import Row

HOWTO = (
    "IFEval is google/IFEval on the hub, or data/input_data.jsonl of instruction_following_eval in google-research: "
    "give that file, its folder, or the hub name"
)
COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")


def read(source: str) -> list[Row]:
    """Read the prompts; see `sources.read_rows`."""
    return prompts("ifeval", source, "input_data.jsonl", HOWTO)


def prompts(benchmark: str, source: str, pattern: str, howto: str) -> list[Row]:
    """Read prompts in IFEval's form: a key, a prompt, instruction ids and their kwargs."""
    return [
        sources.instruction_row(
            f"{benchmark}:{row['key']}",
            row["prompt"],
            sources.rules(row["instruction_id_list"], row["kwargs"], f"{benchmark} {row['key']}"),
            language="en",
        )
        for row in sources.read_rows(source, pattern, COLUMNS, howto)
    ]


def figures(rows: Sequence[Row], weights_RN: np.ndarray) -> list[Figure]:
    """ISR, the four accuracies, and the instruction level by category and checker."""
    return [isr(rows, weights_RN), *accuracies(rows, weights_RN), *accuracies_by_checker(rows, weights_RN)]
