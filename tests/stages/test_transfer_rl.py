import pytest

from tjd.config import SampleConfig
from tjd.stages.sample import sample
from tjd.stages.transfer_rl import as_rewarded, divide, gains
from tjd.teacher import Completion


def verdict(model, category, instruction, followed, score=0.5):
    about = {"model": model, "category": category, "followed": followed, "score": score}
    return about | {"instruction_id": instruction, "query_id": f"q{instruction}"}


SCORED = [
    *(verdict("base", c, f"{c}{i}", i % 2 == 0) for c in ("style", "structure") for i in range(40)),
    *(verdict("style", "style", f"style{i}", True) for i in range(40)),
    *(verdict("style", "style", "style0", None) for _ in range(3)),  # further responses, which no judge could decide
    *(verdict("style", "structure", f"structure{i}", i % 2 == 0) for i in range(39)),
    verdict("style", "structure", "structure39", None),
]


def test_gains_are_paired_by_instruction_and_nulls_are_left_out():
    rows = {(row["judge"], row["category"], row["metric"]): row for row in gains(SCORED, "base")}
    assert len(rows) == 2 + 4
    assert rows["base", "style", "soft_reward"]["value"] == 0.5
    own = rows["style", "style", "soft_reward_gain"]
    assert (own["value"], own["n"], own["n_invalid"], own["prevalence"]) == (0.5, 40, 3, 0.5)
    assert 0.3 < own["low"] < 0.5 < own["high"] < 0.7
    other = rows["style", "structure", "soft_reward_gain"]
    assert (other["value"], other["low"], other["high"], other["n"], other["n_invalid"]) == (0, 0, 0, 39, 1)
    assert rows["style", "structure", "soft_reward"]["value"] == pytest.approx(20 / 39)
    assert all(row["value"] in (0, 0.5) for row in gains(SCORED, "base", soft_reward="score"))


def test_an_instruction_with_several_responses_counts_once():
    many = [verdict("style", "style", "style0", False)] * 9
    rows = gains([*SCORED[:120], *many], "base")
    [own] = [row for row in rows if (row["judge"], row["metric"]) == ("style", "soft_reward_gain") and row["n"]]
    assert own["n"] == 40
    assert own["value"] == pytest.approx((39 + 1 / 10) / 40 - 0.5)


def test_a_silent_policy_is_judged_and_a_failed_call_is_not():
    def ask(requests):
        said = (Completion(" ", "policy", "stop"), Completion(None, "policy", error="down"))
        yield from (completion for _, completion in zip(requests, said, strict=True))

    row = {"instruction_id": "i", "query": "Go!", "instruction": "Go!"}
    config = SampleConfig(model=("policy",), n=2, condition=("with_constraint",))
    silent, failed = map(as_rewarded, sample(lambda: [row], [("policy", ask)], config))
    assert (silent["response"], silent["error"]) == ("", None)
    assert (failed["response"], failed["error"]) == (None, "down")


def test_policies_are_tested_on_other_queries_than_they_are_trained_on():
    def row(i, split, *categories):
        soft = [{"category": c, "kind": "soft"} for c in categories]
        return {"instruction_id": f"i{i}", "query_id": f"q{i}", "instruction": "Go!", "split": split,
                "constraints": [*soft, {"category": None, "kind": "rule"}]}  # fmt: skip

    rows = [row(0, "train", "style"), row(1, "test", "style"), row(2, "test", "style"), row(3, "validation", "style"),
            row(4, "train", "layout"), row(5, "train", "style", "layout"), row(6, "test"),
            row(7, "test", "style") | {"instruction": None}]  # fmt: skip
    train, tests = divide(rows, ["style", "layout"], 0, seed=0)
    assert {name: [row["instruction_id"] for row in of] for name, of in train.items()} == {"style": ["i0", "i3"]}
    assert [row["instruction_id"] for row in tests] == ["i1", "i2"]
    assert len(divide(rows, ["style"], 1, seed=0)[1]) == 1
