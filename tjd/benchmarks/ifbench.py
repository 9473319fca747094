"""IFBench: 300 English prompts with 344 rule constraints of 58 types that training data does not have.

Source: Pyatkin et al., arXiv:2507.02833. Form and figures are IFEval's; its headline is prompt-level loose accuracy.
"""

from tjd.benchmarks import ifeval
from tjd.tables import Row

HOWTO = (
    "IFBench is allenai/IFBench_test on the hub, or data/IFBench_test.jsonl of allenai/IFBench: "
    "give that file, its folder, or the hub name"
)


def read(source: str) -> list[Row]:
    """Read the prompts; see `sources.read_rows`."""
    return ifeval.prompts("ifbench", source, "IFBench_test.jsonl", HOWTO)
