from tjd.rewards import Verdict
from tjd.stages.score import score


def test_what_is_judged_is_what_the_other_stages_call_soft():
    row = {"query": "q", "response": "r", "constraint": "Be kind.", "category": "style"}
    rows = [row | {"constraint_id": str(kind), "kind": kind} for kind in ("soft", None, "rule", "Rule")]
    scored = score([row, *rows], lambda pairs: [Verdict(True, 0.9)] * len(pairs))
    assert [each.get("kind") for each in scored] == [None, "soft", None]
