import json
import threading

import pytest

from tjd.integrations.overlap import Ahead
from tjd.integrations.trl import judged_rows
from tjd.rewards import Verdict

RULE = {"constraint_id": "r", "kind": "rule", "category": None, "text": "r", "checker": "c", "kwargs": None}
SOFT = [
    {"constraint_id": f"s{n}", "kind": "soft", "category": "style", "text": f"c{n}", "checker": None, "kwargs": None}
    for n in range(2)
]
INPUTS = [
    {"instruction_id": name, "query": name, "instruction": name, "constraints": json.dumps([RULE, *SOFT])}
    for name in "aaabbb"
]


class Judge:
    def __init__(self):
        self.calls, self.go = [], threading.Event()

    def __call__(self, rows):
        self.go.wait()
        self.calls.append([(row["query"], row["response"], row["constraint"]) for row in rows])
        if any(row["response"] == "broken" for row in rows):
            raise RuntimeError("the judge broke")
        return [Verdict(True, len(row["response"]) / 10, 0.5, row["constraint"]) for row in rows]


def batch(judge, enough, *events, responses=("1", "22", "333", "4444", "55555", "666666")):
    """The verdicts of a batch in which places ended in the order of `events`, and the rest at the end."""
    ahead = Ahead(judge, enough)
    ahead.begin(INPUTS)
    for places in events:
        ahead.written([(place, responses[place]) for place in places])
    judge.go.set()
    rows = [row for asked, text in zip(INPUTS, responses, strict=True) for row in judged_rows(text, asked)]
    try:
        return ahead.score(rows), ahead.share, rows
    finally:
        ahead.close()


def calls_of(*responses):
    return [[(text[0], text[1:], c) for text in call for c in ("c0", "c1")] for call in responses]


def test_a_group_is_judged_when_it_is_whole_or_enough_wait():
    judge = Judge()
    _, share, _ = batch(judge, 9, [0, 3], [1], [2])
    assert judge.calls == calls_of(["a1", "a22", "a333"], ["b4444", "b55555", "b666666"])
    assert share == 0.5
    judge = Judge()
    _, share, _ = batch(judge, 2, [0], [3], [1])
    assert judge.calls == calls_of(["a1", "b4444"], ["a22", "a333", "b55555", "b666666"])
    assert share == pytest.approx(1 / 3)


def test_verdicts_come_in_the_order_of_the_rows_whenever_they_were_reached():
    for events in ([], [[5], [0, 1], [2, 4]], [[0, 1, 2, 3, 4, 5]]):
        verdicts, _, rows = batch(Judge(), 2, *events)
        assert [(v.score, v.judge) for v in verdicts] == [(len(r["response"]) / 10, r["constraint"]) for r in rows]


def test_equal_responses_are_judged_once():
    judge = Judge()
    batch(judge, 9, [0, 1], [2], responses=("1", "1", "1", "4", "4", "4"))
    assert judge.calls == calls_of(["a1"], ["b4"])


def test_a_judge_that_breaks_breaks_the_step():
    with pytest.raises(RuntimeError, match="the judge broke"):
        batch(Judge(), 1, [0], responses=("broken", *"22222"))
