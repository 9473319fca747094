import json
import logging

import pytest

from tjd.errors import TrainingError
from tjd.integrations.trl import GRACE, reward_function, rollout_rows
from tjd.rewards import ABSTAINED, Verdict

RULE = {
    "constraint_id": "r",
    "kind": "rule",
    "category": None,
    "text": "short",
    "checker": "short",
    "kwargs": '{"n": 3}',
}
STYLE = {"constraint_id": "s", "kind": "soft", "category": "style", "text": "kind", "checker": None, "kwargs": None}
STRUCTURE = STYLE | {"constraint_id": "t", "category": "structure", "text": "a list"}


def check(checker, kwargs, response, *, prompt):
    return (len(response) <= kwargs["n"], None) if checker == "short" else (None, f"no checker {checker}")


class Judges:
    """Says of each row that its score is the share of `y` in the response; `?` in the response breaks it."""

    def __init__(self):
        self.calls = []

    def __call__(self, rows):
        self.calls.append(list(rows))
        return [self.verdict(row["response"]) for row in rows]

    def verdict(self, response):
        if "?" in response:
            return Verdict(None, error="timed out")
        score = response.count("y") / len(response)
        return Verdict(score >= 0.5, score, 0.5, "style")


class Batch:
    """Calls a reward function as the trainer does, and keeps what it logs."""

    def __init__(self, score=None, **options):
        self.score = score or Judges()
        self.reward = reward_function(self.score, check, **options)
        self.extra, self.metrics = {}, {}

    def __call__(self, *responses, constraints=(RULE, STYLE)):
        n = len(responses)
        return self.reward(
            prompts=[[{"role": "user", "content": "Hi!"}]] * n,
            completions=[[{"role": "assistant", "content": response}] for response in responses],
            completion_ids=[[*map(ord, response), 0] for response in responses],
            trainer_state=None,
            log_extra=self.extra.__setitem__,
            log_metric=self.metrics.__setitem__,
            instruction_id=["i"] * n,
            instruction=["Hi! Be kind."] * n,
            query=["Hi!"] * n,
            constraints=[json.dumps(constraints)] * n,
        )


def test_reward_is_equation_5_with_binary_verdicts():
    assert Batch()("yyn", "ynn", "yyyn", "nnnnn") == [2.0, 1.0, 1.0, 0.0]


def test_soft_reward_can_be_the_score():
    assert Batch(soft_reward="score")("yyyn", "yyn") == pytest.approx([0.75, 1 + 2 / 3])


def test_a_half_without_constraints_is_absent():
    batch = Batch()
    assert batch("yyyy", constraints=[STYLE]) == [1.0]
    assert batch.extra["reward_rule"] == [None]
    assert batch("yyyy", constraints=[RULE]) == [0.0]
    assert batch.extra["reward_soft"] == [None]
    assert len(batch.score.calls) == 1  # a batch without soft constraints asks no judge


def test_judges_are_asked_once_per_batch_and_only_of_distinct_rows():
    batch = Batch()
    assert batch("yy", "nn", "yy", "yy", constraints=[STYLE, STRUCTURE]) == [1.0, 0.0, 1.0, 1.0]
    (rows,) = batch.score.calls
    assert [(row["response"], row["category"]) for row in rows] == [
        ("yy", "style"), ("yy", "structure"), ("nn", "style"), ("nn", "structure"),
    ]  # fmt: skip
    assert set(rows[0]) == {"query", "instruction", "response", "constraint", "category", "constraint_id"}


def test_a_failed_judge_makes_the_reward_null_not_zero(caplog):
    batch = Batch()
    with caplog.at_level(logging.WARNING):
        assert batch("yy", "y?", "nn") == [2.0, None, 1.0]
    assert "1 of 3 responses have no reward (most often: timed out)" in caplog.text
    assert batch.extra["reward_rule"] == [1.0, 1.0, 1.0]
    assert batch.extra["reward_soft"] == [1.0, None, 0.0]
    assert batch.metrics["judge_failed"] == pytest.approx(1 / 3)
    assert batch.metrics["reward_soft"] == pytest.approx(0.5)  # of what was decided
    failed = json.loads(batch.extra["verdicts"][1])[1]
    assert failed == {
        "constraint_id": "s", "kind": "soft", "category": "style", "followed": None, "score": None, "error": "timed out",
    }  # fmt: skip


@pytest.mark.parametrize("broken", [{"checker": "unknown"}, {"kwargs": "{"}])
def test_a_failed_checker_makes_the_reward_null(broken):
    assert Batch()("yy", constraints=[RULE | broken, STYLE]) == [None]


def test_a_constraint_of_an_unknown_kind_makes_the_reward_null():
    batch = Batch()
    assert batch("yy", constraints=[RULE, STYLE | {"kind": "Soft"}]) == [None]
    [_, verdict] = json.loads(batch.extra["verdicts"][0])
    assert verdict["error"] == "the constraint is of the kind 'Soft', neither rule nor soft"


def test_no_constraint_is_no_reward():
    assert Batch()("yy", constraints=[]) == [None]


def test_too_many_failures_stop_the_run():
    batch = Batch(max_failed=0.1)
    for _ in range(GRACE // 10):  # one in ten is allowed
        batch(*["yy"] * 9, "?")
    with pytest.raises(TrainingError, match=r"of the last \d+ responses have no reward .*timed out.*--max-failed"):
        batch(*["?", "yy"] * GRACE)


def test_the_share_of_failures_may_be_zero():
    with pytest.raises(TrainingError):
        Batch(max_failed=0.0)("?", "yy", "yy")


def unsure(rows):
    return [Verdict(None, 0.5, 0.5, "style", ABSTAINED) for _ in rows]


def test_a_judge_that_abstains_gives_no_reward_and_is_no_failure():
    batch = Batch(unsure, max_failed=0.0)
    assert batch("yy", "nnnnn") == [None, None]
    assert (batch.metrics["judge_failed"], batch.metrics["abstained"]) == (0, 1)
    assert batch.extra["failed"] == [False, False]
    both = Batch(unsure, max_failed=1.0)
    assert both("yy", constraints=[RULE | {"checker": "unknown"}, STYLE]) == [None]
    assert (both.metrics["judge_failed"], both.metrics["abstained"]) == (1, 0)


def test_the_score_of_a_judge_that_abstains_is_a_reward():
    assert Batch(unsure, soft_reward="score")("yy", "nnnnn") == [1.5, 0.5]


def test_means_are_logged_by_category():
    batch = Batch(soft_reward="score")
    batch("yn", "nn", constraints=[STYLE, STRUCTURE])
    assert batch.metrics["reward_soft/style"] == batch.metrics["reward_soft/structure"] == 0.25
    assert "reward_rule" not in batch.metrics


def test_rollouts_hold_the_logged_values_in_order():
    batch = Batch()
    rewards = batch("yy", "y?", "nn", "nnnnn")
    logs = {
        "prompt": [[{"role": "user", "content": "Hi! Be kind."}]] * 4,
        "completion": [[{"role": "assistant", "content": text}] for text in ("yy", "y?", "nn", "nnnnn")],
        "rewards": {"reward": [float("nan") if value is None else value for value in rewards]},
        "advantages": [0.7, 0.0, 0.7, -0.7],
        "extra": batch.extra,
    }
    rows = rollout_rows(logs, step=3, group_size=2, ends=[0])
    assert [(row["step"], row["group"], row["sample"]) for row in rows] == [(3, 0, 0), (3, 0, 1), (3, 1, 0), (3, 1, 1)]
    assert [row["reward"] for row in rows] == rewards == [2.0, None, 1.0, 0.0]
    assert [row["judge_failed"] for row in rows] == [False, True, False, False]
    assert [row["advantage"] for row in rows] == logs["advantages"]
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert {row["finish_reason"] for row in rollout_rows(logs, step=3, group_size=2, ends=[1])} == {"length"}
