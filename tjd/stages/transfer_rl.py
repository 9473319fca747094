"""Transfer of policies: what a GRPO run on one category gains on every category (paper, 3.3, Figure 5).

In: verdicts on responses of several policies to the same held-out instructions. Out: a matrix (trained on, tested on) of the
soft reward gained over the base policy, with intervals over queries.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from tjd.config import SoftReward
from tjd.metrics import estimate, plain, resample_weights
from tjd.splits import split_of
from tjd.tables import Row
from tjd.teacher import reading

REWARD, GAIN = "soft_reward", "soft_reward_gain"


def divide(
    rows: Iterable[Row], categories: Iterable[str], per_category: int, seed: int
) -> tuple[dict[str, list[Row]], list[Row]]:
    """Instructions to train on by category, and those to test on, whose queries are of the split `test`.

    Args:
        rows: INSTRUCTIONS; those with soft constraints of several categories are left out.
        categories: Those wanted; one without instructions of both kinds is left out.
        per_category: Test instructions of each, at most; 0 takes all.
        seed: Of the split.
    """
    parts: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        found = {c["category"] for c in row["constraints"] or () if c["kind"] == "soft"}
        if row["instruction"] is not None and len(found) == 1:
            parts[found.pop(), split_of(row, seed) == "test"].append(row)
    kept = [name for name in categories if parts[name, False] and parts[name, True]]
    tests = [row for name in kept for row in parts[name, True][: per_category or None]]
    return {name: parts[name, False] for name in kept}, tests


def as_rewarded(response: Row) -> Row:
    """A response as training would judge it: a policy that says nothing has failed its instruction, not the measurement."""
    return response | {"response": "", "error": None} if response["error"] == reading.SILENT else response


def gains(scored: Sequence[Row], base: str, *, soft_reward: SoftReward = "verdict", seed: int = 0) -> list[Row]:
    """The mean soft reward of each policy on each category, and what each has gained over the base policy.

    Args:
        scored: SCORES of all policies (`model`), with `instruction_id` and `query_id`. A null verdict counts as `n_invalid`.
        base: The policy before training.
        soft_reward: What counts: the verdict, 1 or 0, or the score.
        seed: Of the bootstrap.

    Returns:
        METRICS: `judge` is the policy; `n` is the number of instructions that both policies have verdicts on, each
        instruction counting once, and `prevalence` the base policy's reward on them.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    n_null: Counter[tuple[str, str]] = Counter()
    queries: dict[str, str] = {}
    for row in scored:
        value = row["score"] if soft_reward == "score" else row["followed"]
        queries[row["instruction_id"]] = row["query_id"]
        if value is None:
            n_null[row["model"], row["category"]] += 1
        else:
            values[row["model"], row["category"]][row["instruction_id"]].append(float(value))
    policies, categories = (list(dict.fromkeys(row[name] for row in scored)) for name in ("model", "category"))
    out = []
    for policy in [base, *(name for name in policies if name != base)]:
        for category in categories:
            own, before = values[policy, category], values[base, category]
            both = [name for name in own if name in before]
            own_N, before_N = (np.array([np.mean(of[name]) for name in both]) for of in (own, before))
            about = {
                "judge": policy,
                "category": category,
                "group": "all",
                "n": len(both),
                "n_invalid": n_null[policy, category],
                "prevalence": float(before_N.mean()) if both else None,
                "threshold": None,
            }
            query_ids = [queries[name] for name in both]
            for metric, value_N in {REWARD: own_N, GAIN: own_N - before_N}.items():
                if policy != base or metric == REWARD:
                    out.append(about | {"metric": metric, **_mean(value_N, query_ids, seed)})
    return out


def _mean(value_N: np.ndarray, query_ids: Sequence[str], seed: int) -> Row:
    if not query_ids:
        return {"value": None, "low": None, "high": None}
    weights_RN = resample_weights(query_ids, seed=seed)
    return plain(estimate(weights_RN @ value_N / weights_RN.sum(axis=1), len(set(query_ids))))
