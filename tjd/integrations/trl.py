"""The reward as TRL's GRPOTrainer takes it, and the rollouts as that trainer used them.

In: a scoring function (the judges) and a checking function (the rules). Out: one reward function for rules and judges
together. It has to be one: TRL adds up several with a nan-sum, so that a judge which failed would count as 0 inside its
group. The only null that TRL masks is a null of every function.

The dataset needs the columns `prompt` (conversational), `instruction_id`, `instruction`, `query` and `constraints` (the
list of the instructions table, as JSON: a Parquet-backed dataset would fill missing keys of nested structs with nulls).
"""

import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tjd.config import SoftReward
from tjd.errors import TrainingError
from tjd.rewards import ABSTAINED, Reward, Verdict, combine
from tjd.tables import Row

Score = Callable[[Sequence[Mapping[str, Any]]], Sequence[Verdict]]  # rows in; verdicts out, in the same order
# checker, kwargs, response, and `prompt=` what the model was asked; followed or null, and why it is null
Check = Callable[..., tuple[bool | None, str | None]]

ASKED: tuple[str, ...] = ("query", "instruction", "constraints")  # columns that say what a response was asked for
RECENT = 1024  # responses over which the share of failures is taken: one step of the paper
GRACE = 64  # a share is taken of at least so many, that one early failure does not end a run

log = logging.getLogger(__name__)


def reward_function(
    score: Score, check: Check, *, soft_reward: SoftReward = "verdict", max_failed: float = 0.1
) -> Callable[..., list[float | None]]:
    """Build the reward function of Eq. 5 for TRL.

    Args:
        score: Judges soft constraints. Called once per batch with its distinct rows (`query`, `instruction`, `response`,
            `constraint`, `category`, `constraint_id`); not called when there is none.
        check: Decides a rule constraint, as `tjd.checkers.verdict` does: followed or null, and why it is null.
        soft_reward: What a soft constraint gives: 1 or 0 by its `verdict`, or its `score`, abstain band or not.
        max_failed: Largest share of the last `RECENT` responses that may be without a reward.

    Returns:
        A function that gives, per completion, its reward in [0, 2], or None where a judge or checker failed, a judge
        abstained, or there is no constraint. Abstaining alone is no failure. It logs the columns and metrics that
        `rollout_rows` and the step metrics are made of, and raises TrainingError past `max_failed`.
    """
    recent: deque[bool] = deque(maxlen=RECENT)

    def reward(
        *,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_extra: Callable[[str, list[Any]], None],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float | None]:
        started = time.perf_counter()
        asked_B = [
            dict(zip(ASKED, values, strict=True)) for values in zip(*(columns[name] for name in ASKED), strict=True)
        ]
        rows_B_C = [_constraint_rows(_text(each), asked) for each, asked in zip(completions, asked_B, strict=True)]
        verdicts_B_C = _decide(rows_B_C, score, check)
        rewards_B = [
            _reward(rows_C, verdicts_C, soft_reward) for rows_C, verdicts_C in zip(rows_B_C, verdicts_B_C, strict=True)
        ]
        log_extra("instruction_id", list(columns["instruction_id"]))
        log_extra("verdicts", [_as_json(*pair) for pair in zip(rows_B_C, verdicts_B_C, strict=True)])
        log_extra("reward_rule", [each.rule for each in rewards_B])
        log_extra("reward_soft", [each.soft for each in rewards_B])
        failed_B = [
            reward.total is None and not _abstained(verdicts_C)
            for reward, verdicts_C in zip(rewards_B, verdicts_B_C, strict=True)
        ]
        log_extra("failed", failed_B)
        log_extra("n_tokens", [len(ids) for ids in completion_ids])
        log_extra("last_token", [ids[-1] if len(ids) else None for ids in completion_ids])
        for name, value in _means(rewards_B, rows_B_C, verdicts_B_C, soft_reward).items():
            log_metric(name, value)
        n_null = sum(each.total is None for each in rewards_B)
        log_metric("judge_failed", sum(failed_B) / len(failed_B))
        log_metric("abstained", (n_null - sum(failed_B)) / len(failed_B))
        log_metric("scoring_s", time.perf_counter() - started)
        _count_failures(failed_B, verdicts_B_C, recent, max_failed)
        return [each.total for each in rewards_B]

    return reward


def rollout_rows(logs: Mapping[str, Any], *, step: int, group_size: int, ends: Collection[int]) -> list[Row]:
    """Turn the trainer's log of its last generation batch into rows of ROLLOUTS.

    Args:
        logs: `GRPOTrainer._logs`, which `log_completions` would show: what all processes generated, in order, with the
            very rewards and advantages (float32) that the loss is computed from.
        step: The optimiser step that used them.
        group_size: Responses per instruction; the log holds whole groups, one after another.
        ends: Token ids that end a response; one that ends otherwise was cut.
    """
    extra = logs["extra"]
    rewards = logs["rewards"]["reward"]
    samples = zip(logs["prompt"], logs["completion"], rewards, logs["advantages"], strict=True)
    return [
        {
            "step": step,
            "group": index // group_size,
            "sample": index % group_size,
            "instruction_id": extra["instruction_id"][index],
            "instruction": prompt[-1]["content"],
            "response": _text(completion),
            "finish_reason": "stop" if extra["last_token"][index] in ends else "length",
            "n_tokens": extra["n_tokens"][index],
            "reward_rule": extra["reward_rule"][index],
            "reward_soft": extra["reward_soft"][index],
            "verdicts": extra["verdicts"][index],
            "reward": None if math.isnan(reward) else reward,
            "advantage": advantage,
            "judge_failed": extra["failed"][index],
            "audit_followed": None,
        }
        for index, (prompt, completion, reward, advantage) in enumerate(samples)
    ]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0].get("content") or ""


def _constraint_rows(response: str, asked: Mapping[str, Any]) -> list[Row]:
    """One row per constraint of a response to a row of the dataset."""
    return [
        {
            "query": asked["query"],
            "instruction": asked["instruction"],
            "response": response,
            "constraint": constraint["text"],
            "category": constraint["category"],
            "constraint_id": constraint["constraint_id"],
            "kind": constraint["kind"],
            "checker": constraint["checker"],
            "kwargs": constraint["kwargs"],
        }
        for constraint in json.loads(asked["constraints"])
    ]


def judged_rows(response: str, asked: Mapping[str, Any]) -> list[Row]:
    """What the judges are shown of a response: a row per soft constraint."""
    return [_judged(row) for row in _constraint_rows(response, asked) if row["kind"] == "soft"]


def _decide(rows_B_C: Sequence[Sequence[Row]], score: Score, check: Check) -> list[list[Verdict]]:
    """One verdict per row, equal rows decided once: groups that collapse repeat their responses."""
    distinct = {same(row): row for rows_C in rows_B_C for row in rows_C}
    softs = {key: _judged(row) for key, row in distinct.items() if row["kind"] == "soft"}
    scored = score(list(softs.values())) if softs else []
    known = dict(zip(softs, scored, strict=True))
    known |= {key: _checked(row, check) for key, row in distinct.items() if row["kind"] != "soft"}
    return [[known[same(row)] for row in rows_C] for rows_C in rows_B_C]


def same(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows have in common that are decided alike."""
    return tuple(value for name, value in row.items() if name != "constraint_id")


def _judged(row: Row) -> Row:
    """What a judge is shown."""
    return {name: value for name, value in row.items() if name not in ("kind", "checker", "kwargs")}


def _checked(row: Row, check: Check) -> Verdict:
    if row["kind"] != "rule":
        return Verdict(None, error=f"the constraint is of the kind '{row['kind']}', neither rule nor soft")
    try:
        kwargs = json.loads(row["kwargs"] or "{}")
    except json.JSONDecodeError as exc:
        return Verdict(None, error=f"kwargs of {row['checker']} are not JSON: {exc}")
    followed, error = check(row["checker"], kwargs, row["response"], prompt=row["instruction"])
    return Verdict(followed, error=error)


def _value(verdict: Verdict, kind: str, soft_reward: SoftReward) -> float | None:
    """What a constraint adds to its half of the reward; null where it was not decided.

    A judge that abstains still has a score, which says by itself how unsure it is.
    """
    if kind == "soft" and soft_reward == "score":
        return verdict.score
    return None if verdict.followed is None else float(verdict.followed)


def _abstained(verdicts_C: Sequence[Verdict]) -> bool:
    """Whether judges that abstained are the only reason why some verdict is null."""
    return {verdict.error for verdict in verdicts_C if verdict.followed is None} == {ABSTAINED}


def _reward(rows_C: Sequence[Row], verdicts_C: Sequence[Verdict], soft_reward: SoftReward) -> Reward:
    values: dict[str, list[float | None]] = {"rule": [], "soft": []}
    for row, verdict in zip(rows_C, verdicts_C, strict=True):
        values["soft" if row["kind"] == "soft" else "rule"].append(_value(verdict, row["kind"], soft_reward))
    return combine(values["rule"], values["soft"])


def _as_json(rows_C: Sequence[Row], verdicts_C: Sequence[Verdict]) -> str:
    entries = [
        {name: row[name] for name in ("constraint_id", "kind", "category")}
        | {name: getattr(verdict, name) for name in ("followed", "score", "error")}
        for row, verdict in zip(rows_C, verdicts_C, strict=True)
    ]
    return json.dumps(entries, ensure_ascii=False)


def _means(
    rewards_B: Sequence[Reward],
    rows_B_C: Sequence[Sequence[Row]],
    verdicts_B_C: Sequence[Sequence[Verdict]],
    soft_reward: SoftReward,
) -> dict[str, float]:
    """Means over what was decided, by half of the reward and by category; a name without any is left out."""
    values: dict[str, list[float | None]] = {
        "reward_rule": [reward.rule for reward in rewards_B],
        "reward_soft": [reward.soft for reward in rewards_B],
    }
    for rows_C, verdicts_C in zip(rows_B_C, verdicts_B_C, strict=True):
        for row, verdict in zip(rows_C, verdicts_C, strict=True):
            if row["kind"] == "soft":
                value = _value(verdict, "soft", soft_reward)
                values.setdefault(f"reward_soft/{row['category']}", []).append(value)
    known = {name: [value for value in column if value is not None] for name, column in values.items()}
    return {name: sum(column) / len(column) for name, column in known.items() if column}


def _count_failures(
    failed_B: Sequence[bool], verdicts_B_C: Sequence[Sequence[Verdict]], recent: deque[bool], max_failed: float
) -> None:
    """Warn of responses without a reward, and stop the run when they are too many."""
    recent.extend(failed_B)
    if not any(failed_B):
        return
    reasons = (verdict.error for verdicts_C in verdicts_B_C for verdict in verdicts_C if verdict.followed is None)
    errors = Counter(reason for reason in reasons if reason != ABSTAINED)
    reason = f"most often: {errors.most_common(1)[0][0]}" if errors else "they have no constraint"
    log.warning("%d of %d responses have no reward (%s)", sum(failed_B), len(failed_B), reason)
    if sum(recent) > max_failed * max(len(recent), GRACE):
        raise TrainingError(
            f"{sum(recent)} of the last {len(recent)} responses have no reward ({reason}); "
            "mend the judge or checker, or raise --max-failed"
        )
