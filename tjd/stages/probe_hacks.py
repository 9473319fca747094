"""Probe-hacks: how many worthless responses a judge accepts, before a policy finds out.

In: labels or instructions, and the judges as a scoring function. Out: the probes with their scores, and the share accepted
per category and probe, with intervals over queries. A judge that fails or abstains accepts nothing; failures are counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tjd import tables
from tjd.config import ProbeHacksConfig
from tjd.errors import DataError, TrainingError
from tjd.judge import hacks
from tjd.metrics import Estimate, plain, resample_weights, share
from tjd.rewards import Verdict
from tjd.splits import soft, split_of
from tjd.tables import Row

NEED = ("query",)

PROBES = pa.schema(
    [
        *tables.SCORES,
        pa.field("query_id", pa.string()),
        pa.field("query", pa.string()),
        pa.field("instruction", pa.string()),  # null if the table has none
        pa.field("category", pa.string()),
        pa.field("constraint", pa.string()),
        pa.field("response", pa.string()),  # what was probed
        pa.field("probe", pa.string()),
        pa.field("text", pa.string()),  # the probe's template
    ]
)
METRIC = "false_accept"  # all probes together; `false_accept/PROBE` is one

Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]


class Probed(NamedTuple):
    """What was found."""

    probes: list[Row]  # PROBES
    metrics: list[Row]  # METRICS, per category (and "all") and probe


def probe_hacks(
    rows: Iterable[Row],
    score: Scorer,
    categories: Iterable[str],
    probes: Sequence[hacks.Probe],
    config: ProbeHacksConfig,
    *,
    judge: str,
    split_seed: int = 0,
) -> Probed:
    """Have the judges score the test probes on a sample of queries.

    Args:
        rows: LABELS or INSTRUCTIONS.
        score: The judges.
        categories: Those that they cover.
        probes: Only the family `test` is used.
        config: Split, sample and seed.
        judge: A name for the metrics.
        split_seed: The seed that the judges' training split was drawn with.

    Raises:
        DataError: No soft constraint of the split has a category that the judges cover, or there is no probe for them.
    """
    covered = set(categories)
    pairs = [pair for row in rows for pair in _soft(row) if pair["category"] in covered]
    of_split = [row for row in pairs if config.split == "all" or split_of(row, split_seed) == config.split]
    if not of_split:
        raise DataError(
            f"no soft constraint of the split '{config.split}' has a category that the judges cover; see --split"
        )
    chosen = hacks.sample(of_split, config.per_category, seed=config.seed)
    built = hacks.build(chosen, [probe for probe in probes if probe.family == "test"], seed=config.seed)
    if not built:
        raise DataError("no probe could be built: all need a followed response to another query; give labels")
    shown = [
        {name: row[name] for name in ("query", "instruction", "response", "constraint", "category")} for row in built
    ]
    scored = [
        row | {name: getattr(verdict, name) for name in ("judge", "score", "followed", "threshold", "error")}
        for row, verdict in zip(built, score(shown), strict=True)
    ]
    return Probed(scored, list(_metrics(scored, judge, config.seed)))


def require_few(metrics: Sequence[Row], max_false_accept: float) -> None:
    """The gate before RL: raise if some judge accepts more than this share of some probe."""
    worst = worst_probe(metrics)
    if worst is not None and worst["value"] > max_false_accept:
        name = worst["metric"].partition("/")[2]
        raise TrainingError(
            f"the judge of '{worst['category']}' accepts {worst['value']:.0%} of the probe '{name}', more than "
            f"--max-false-accept {max_false_accept:g}; train it with --harden, or with a higher --target-precision"
        )


def worst_probe(metrics: Sequence[Row], category: str | None = None) -> Row | None:
    """The row of the probe that a category's judge accepts most often; of all categories by default."""
    single = [
        row
        for row in metrics
        if row["metric"] != METRIC and row["value"] is not None and row["category"] == (category or row["category"])
        if row["category"] != "all"
    ]
    return max(single, key=lambda row: row["value"], default=None)


def _soft(row: Row) -> Iterable[Row]:
    """The soft constraints of a row of either kind of table, with the keys that foreign tables lack."""
    for pair in tables.one_per_constraint(row):
        if soft(pair) and pair.get("constraint") and row["query"] is not None:
            yield pair | {"query_id": row.get("query_id") or tables.text_id(row["query"])}


def _metrics(scored: Sequence[Row], judge: str, seed: int) -> Iterable[Row]:
    """The share accepted, per category and probe, and pooled over either and both."""
    categories, names = (list(dict.fromkeys(row[name] for row in scored)) for name in ("category", "probe"))
    for category in [*categories, "all"] if len(categories) > 1 else categories:
        for name in [None, *names]:
            rows = [row for row in scored if category in ("all", row["category"]) and name in (None, row["probe"])]
            valid = [row for row in rows if row["score"] is not None]
            accepted = _share([bool(row["followed"]) for row in valid], [row["query_id"] for row in valid], seed)
            thresholds = {row["threshold"] for row in valid}
            yield {
                "judge": judge,
                "category": category,
                "metric": METRIC if name is None else f"{METRIC}/{name}",
                "group": "all",
                **plain(accepted),
                "n": len(valid),
                "n_invalid": len(rows) - len(valid),
                "prevalence": 0.0,
                "threshold": thresholds.pop() if len(thresholds) == 1 else None,
            }


def _share(accepted: Sequence[bool], query_ids: Sequence[str], seed: int) -> Estimate:
    """The share accepted."""
    if not accepted:
        return Estimate(float("nan"), float("nan"), float("nan"))
    weights_RN = resample_weights(query_ids, seed=seed)
    accepted_R = weights_RN @ np.array(accepted, dtype=np.float32) / weights_RN.sum(axis=1)
    return share(accepted_R, len(set(query_ids)))
