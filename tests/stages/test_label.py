"""Label: rules by code, soft constraints by a teacher that is an argument."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tjd import prompts, tables
from tjd.config import LabelConfig
from tjd.errors import ConfigError
from tjd.prompts import Prompt
from tjd.stages.label import certain_majority, label, majority
from tjd.tables import Row
from tjd.teacher import Again, Completion, Request, Spoken, follow_up, merged, panel
from tjd.teacher.verdicts import VARIABLES, prompt_name

AGAIN = Prompt("again", "unreadable: $reason")


def soft(key: str, text: str | None = None) -> Row:
    text = text or f"be {key}"
    return {"constraint_id": key, "kind": "soft", "category": "style", "text": text, "checker": None, "kwargs": None}


def rule(key: str, checker: str = "at_most", kwargs: str | None = '{"n": 5}') -> Row:
    return {
        "constraint_id": key,
        "kind": "rule",
        "category": None,
        "text": "short",
        "checker": checker,
        "kwargs": kwargs,
    }


def response(key: str, *constraints: Row, text: str | None = "words", **more: Any) -> Row:
    return {"response_id": key, "query": "what?", "response": text, "constraints": list(constraints), **more}


def check(checker: str, kwargs: Mapping[str, Any], text: str, *, prompt: str | None) -> tuple[bool | None, str | None]:
    return (len(text) <= kwargs["n"], None) if checker == "at_most" else (None, f"no checker {checker}")


def answering(answer: Callable[[Request], str | Completion]) -> Any:
    """A teacher from a function; `asked` lists what it was asked."""
    asked: list[Request] = []

    def complete(request: Request) -> Completion:
        asked.append(request)
        said = answer(request)
        return said if isinstance(said, Completion) else Completion(said, "teacher", "stop", cost_usd=0.25)

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        for request in requests:
            first = complete(request)
            second = follow_up(request, first, again)
            yield first if second is None else merged(first, complete(second))

    ask.asked = asked  # type: ignore[attr-defined]
    return ask


def labelled(rows: Iterable[Row], ask: Any, **settings: Any) -> list[Row]:
    config = LabelConfig(**settings)
    prompt = prompts.load(prompt_name(config.mode, config.format, config.rationale), VARIABLES[config.mode])
    return list(label(rows, prompt, AGAIN, ask, config, check))


def test_one_row_per_constraint_in_order() -> None:
    ask = answering(lambda request: "Yes" if "be warm" in request.messages[0]["content"] else "No")
    rows = labelled(
        [response("a", soft("warm"), rule("short"), soft("cold"), mark=1), response("b", soft("warm"), mark=2)], ask
    )
    found = [(r["response_id"], r["constraint_id"], r["followed"], r["mode"], r["teacher"]) for r in rows]
    assert found == [
        ("a", "warm", True, "pointwise", "teacher"),
        ("a", "short", True, "rule", None),
        ("a", "cold", False, "pointwise", "teacher"),
        ("b", "warm", True, "pointwise", "teacher"),
    ]
    assert [r["mark"] for r in rows] == [1, 1, 1, 2]  # further columns travel along
    assert rows[1]["votes"] == []
    assert rows[1]["agreement"] is None
    assert rows[0]["votes"] == [True]
    assert [r["cost_usd"] for r in rows] == [0.25, 0.0, 0.25, 0.25]
    assert len(ask.asked) == 3


def test_the_teacher_sees_the_query_and_one_constraint() -> None:
    ask = answering(lambda request: "Yes")
    labelled([response("a", soft("warm"), soft("cold"), text="$dollars {braces}", instruction="what? be warm")], ask)
    first = ask.asked[0].messages[0]["content"]
    assert "<request>\nwhat?\n</request>" in first
    assert "<response>\n$dollars {braces}\n</response>" in first
    assert "be warm" in first
    assert "be cold" not in first


def test_rows_fit_the_table(tmp_path: Path) -> None:
    rows = labelled([response("a", soft("warm"), rule("short"), mark="x")], answering(lambda request: "Yes"))
    schema = tables.output_schema("labels", drop=["constraints"])
    tables.write_rows(rows, str(tmp_path / "labels.parquet"), schema, {})
    table = tables.open_table(str(tmp_path / "labels.parquet"), "labels")
    assert [row["followed"] for row in table.rows()] == [True, True]


def test_votes_differ_in_their_seed_and_the_majority_wins() -> None:
    ask = answering(lambda request: "No" if request.seed == 8 else "Yes")
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3, seed=7)
    assert [request.seed for request in ask.asked] == [7, 8, 9]
    assert row["votes"] == [True, False, True]
    assert (row["followed"], row["agreement"], row["error"]) == (True, pytest.approx(2 / 3), None)
    assert row["cost_usd"] == 0.75


def test_tied_votes_are_null() -> None:
    (row,) = labelled([response("a", soft("warm"))], answering(lambda r: "Yes" if r.seed else "No"), votes=2)
    assert (row["followed"], row["agreement"], row["error"]) == (None, 0.5, "votes are tied")


def test_unreadable_votes_do_not_count_but_are_told() -> None:
    ask = answering(lambda request: ["Yes", "Well", "Yes"][request.seed])
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3)
    assert row["votes"] == [True, None, True]
    assert (row["followed"], row["agreement"], row["error"]) == (True, 1.0, "neither Yes nor No")


def test_a_tie_that_an_unreadable_vote_led_to_tells_both() -> None:
    ask = answering(lambda request: ["Well", "No", "Yes"][request.seed])
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3)
    assert (row["followed"], row["votes"]) == (None, [None, False, True])
    assert row["error"] == "votes are tied; 1 of 3 votes unreadable: neither Yes nor No"


def test_an_unreadable_answer_is_asked_again_once() -> None:
    ask = answering(lambda request: "Hmm" if len(request.messages) == 1 else "No")
    (row,) = labelled([response("a", soft("warm"))], ask)
    assert (row["followed"], row["error"], row["cost_usd"]) == (False, None, 0.5)
    assert [m["content"] for m in ask.asked[1].messages[1:]] == ["Hmm", "unreadable: neither Yes nor No"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("Hmm", "neither Yes nor No"),
        ("", "the model said nothing"),
        (Completion("I think", "teacher", "length", cost_usd=0.25), "cut at max_tokens"),
        (Completion(None, "teacher", error="the call failed: 500: boom"), "the call failed: 500: boom"),
    ],
)
def test_what_cannot_be_read_is_null_and_never_no(answer: str | Completion, error: str) -> None:
    for mode in ("pointwise", "batch"):
        ask = answering(lambda request: answer)
        (row,) = labelled([response("a", soft("warm"))], ask, mode=mode)
        assert (row["followed"], row["votes"], row["agreement"]) == (None, [None], None)
        expected = "not 1 numbered lines of Yes or No" if error.startswith("neither") and mode == "batch" else error
        assert row["error"] == expected
        assert len(ask.asked) == (1 if isinstance(answer, Completion) and answer.text is None else 2)


def test_a_missing_response_is_null_without_a_call() -> None:
    ask = answering(lambda request: "Yes")
    for mode in ("pointwise", "batch"):
        rows = labelled([response("a", soft("warm"), rule("short"), text=None, error="boom")], ask, mode=mode)
        assert [(row["followed"], row["error"]) for row in rows] == [(None, "there is no response: boom")] * 2
    assert ask.asked == []


def test_an_empty_response_is_judged() -> None:
    ask = answering(lambda request: "No")
    rows = labelled([response("a", soft("warm"), rule("short"), text="")], ask)
    assert [row["followed"] for row in rows] == [False, True]


def test_rules_that_fail_are_null_with_a_reason() -> None:
    rows = labelled(
        [response("a", rule("x", "unknown"), rule("y", kwargs="{"), {**rule("z"), "kind": "other"})],
        answering(lambda request: "Yes"),
    )
    assert [row["followed"] for row in rows] == [None, None, None]
    assert [row["error"] for row in rows] == [
        "no checker unknown",
        "the kwargs of the rule are not JSON",
        "the kind of a constraint is 'rule' or 'soft', not 'other'",
    ]


def test_a_response_without_constraints_has_no_rows() -> None:
    ask = answering(lambda request: "Yes")
    assert labelled([response("a"), {**response("b"), "constraints": None}], ask) == []


def test_batch_asks_for_all_soft_constraints_at_once() -> None:
    ask = answering(lambda request: "1: Yes\n2: No")
    rows = labelled([response("a", soft("warm"), rule("short"), soft("cold"))], ask, mode="batch")
    assert [(row["constraint_id"], row["followed"], row["mode"]) for row in rows] == [
        ("warm", True, "batch"),
        ("short", True, "rule"),
        ("cold", False, "batch"),
    ]
    assert [row["cost_usd"] for row in rows] == [0.125, 0.0, 0.125]  # the sum is what was paid
    (request,) = ask.asked
    assert "<constraints>\n1: be warm\n2: be cold\n</constraints>" in request.messages[0]["content"]
    assert "Answer with 2 lines" in request.messages[0]["content"]


def test_batch_is_asked_again_with_the_number_of_lines() -> None:
    ask = answering(lambda request: "1: Yes" if len(request.messages) == 1 else "1: Yes\n2: Yes")
    rows = labelled([response("a", soft("warm"), soft("cold"))], ask, mode="batch")
    assert [row["followed"] for row in rows] == [True, True]
    assert ask.asked[1].messages[2]["content"] == "unreadable: not 2 numbered lines of Yes or No"


def test_a_json_verdict_is_asked_with_its_schema() -> None:
    ask = answering(lambda request: '{"verdict": "No"}')
    (row,) = labelled([response("a", soft("warm"))], ask, format="json")
    assert (row["followed"], row["rationale"], row["error"]) == (False, None, None)
    assert ask.asked[0].schema == {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": ["Yes", "No"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    assert ask.asked[0].messages[0]["content"].endswith('{"verdict": "..."}')


def test_a_json_verdict_that_cannot_be_read_is_asked_again_once_and_then_null() -> None:
    ask = answering(lambda request: "Yes")
    (row,) = labelled([response("a", soft("warm"))], ask, format="json")
    assert (row["followed"], row["error"]) == (None, "no JSON object with a verdict of Yes or No")
    assert ask.asked[1].messages[2]["content"] == "unreadable: no JSON object with a verdict of Yes or No"
    assert ask.asked[1].schema == ask.asked[0].schema
    assert len(ask.asked) == 2


def test_a_batch_of_json_verdicts_with_their_reasons() -> None:
    said = (
        '{"verdicts": [{"number": 1, "reason": "It glows.", "verdict": "Yes"}, '
        '{"number": 2, "reason": "It says \\"No\\".", "verdict": "No"}]}'
    )
    ask = answering(lambda request: said)
    constraints = [soft("warm"), rule("short"), soft("cold")]
    rows = labelled([response("a", *constraints)], ask, mode="batch", format="json", rationale=True)
    assert [(row["followed"], row["rationale"]) for row in rows] == [
        (True, "It glows."),
        (True, None),
        (False, 'It says "No".'),
    ]
    item = ask.asked[0].schema["properties"]["verdicts"]["items"]
    assert list(item["properties"]) == ["number", "reason", "verdict"]  # the reason can still change the verdict


def test_the_rationale_is_that_of_a_vote_for_the_verdict() -> None:
    says = ["Yes", "No", "No"]
    ask = answering(lambda r: f'{{"reason": "because {r.seed}", "verdict": "{says[r.seed]}"}}')
    shown = {"format": "json", "rationale": True}
    (row,) = labelled([response("a", soft("warm"))], ask, votes=3, **shown)
    assert (row["followed"], row["rationale"]) == (False, "because 1")
    (tied,) = labelled([response("a", soft("warm"))], ask, votes=2, **shown)
    assert (tied["followed"], tied["rationale"]) == (None, "because 0")
    silent = answering(lambda request: '{"verdict": "Yes"}')
    (row,) = labelled([response("a", soft("warm"))], silent, **shown)
    assert (row["followed"], row["rationale"]) == (True, None)


def test_the_soft_label_is_the_mean_over_votes_that_have_one() -> None:
    def answer(request: Request) -> Completion:
        assert request.logprobs
        tops = [{"Yes": 0.0}, {"Yes": -0.6931471805599453, "No": -0.6931471805599453}, None][request.seed]
        return Completion("Yes", "teacher", "stop", logprobs=(Spoken(0, "Yes", tops),) if tops else None)

    (row,) = labelled([response("a", soft("warm"))], answering(answer), votes=3, logprobs=True)
    assert (row["followed"], row["soft"]) == (True, pytest.approx(0.75))
    (row,) = labelled([response("a", soft("warm"))], answering(lambda request: "Yes"))
    assert row["soft"] is None


class Member:
    """A teacher of a panel."""

    def __init__(self, name: str, answer: Callable[[Request], str]) -> None:
        self.name = name
        self.ask = answering(lambda request: Completion(answer(request), name, "stop", cost_usd=0.25))


def test_a_panel_votes_together() -> None:
    members = [
        Member("strict", lambda request: "No"),
        Member("kind", lambda request: "Yes"),
        Member("moody", lambda request: "Yes" if request.seed == 0 else "Hm"),
    ]
    many = [response(str(i), soft("warm"), rule("short")) for i in range(3)]
    rows = labelled(many, panel(members), teacher=("strict", "kind", "moody"), votes=2)  # type: ignore[arg-type]
    assert len(rows) == 6
    for row in rows[::2]:
        assert row["votes"] == [False, True, True, False, True, None]  # the first vote of each, then the second
        assert row["teachers"] == ["strict", "kind", "moody"] * 2
        assert row["teacher"] == "strict + kind + moody"
        assert (row["followed"], row["agreement"], row["cost_usd"]) == (True, 0.6, 0.25 * 7)
    assert rows[1]["teachers"] == []
    assert len(members[0].ask.asked) == 6


def test_two_teachers_of_one_name_are_no_panel() -> None:
    with pytest.raises(ConfigError, match="two models are called a"):
        panel([Member("a", lambda request: "Yes"), Member("a", lambda request: "No")])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("said", "followed", "error"),
    [
        ("Yes Yes Yes No No", True, None),
        ("Yes Hm Yes Yes No", True, "1 of 5 votes unreadable: neither Yes nor No"),
        ("Yes Hm Yes No No", None, "1 of 5 votes unreadable: neither Yes nor No"),
        ("No Hm Yes No Hm", None, "2 of 5 votes unreadable: neither Yes nor No"),  # the lost two could turn it
    ],
)
def test_ground_truth_is_the_average_of_an_odd_number(said: str, followed: bool | None, error: str | None) -> None:
    ask = answering(lambda request: said.split()[request.seed])
    (row,) = labelled([response("a", soft("warm"))], ask, votes=5, ground_truth=True)
    assert (row["followed"], row["error"]) == (followed, error)
    assert {request.temperature for request in ask.asked} == {1.0}
    if error is None:  # as eval-judge counts a list of votes
        assert row["followed"] == (sum(row["votes"]) / 5 >= 0.5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"votes": 4}, r"--ground-truth needs an odd number of votes, at least 3, so that none is tied; --votes 4"),
        ({"votes": 1}, r"--votes 1 of 1 teacher\(s\) make 1; the paper has --votes 5"),
        ({"votes": 3, "teacher": ("a", "b")}, r"--votes 3 of 2 teacher\(s\) make 6"),
        ({"votes": 5, "temperature": 0}, "--ground-truth with --temperature 0 would count one vote several times"),
    ],
)
def test_what_is_no_ground_truth(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LabelConfig(ground_truth=True, **settings)


def test_a_greedy_panel_can_be_ground_truth() -> None:
    assert LabelConfig(ground_truth=True, temperature=0, teacher=("a", "b", "c")).n_votes == 3


def test_an_unknown_cost_stays_unknown() -> None:
    ask = answering(lambda r: Completion("Yes", "teacher", cost_usd=None if r.seed else 0.25))
    (row,) = labelled([response("a", soft("warm"))], ask, votes=2)
    assert row["cost_usd"] is None


def test_rows_are_taken_as_needed() -> None:
    taken = []

    def endless() -> Iterator[Row]:
        while True:
            taken.append(None)
            yield response(str(len(taken)), soft("warm"))

    config = LabelConfig()
    prompt = prompts.load("label.pointwise.v1", VARIABLES["pointwise"])
    rows = label(endless(), prompt, AGAIN, answering(lambda request: "Yes"), config, check)
    for _ in range(10):
        next(rows)
    assert len(taken) == 10


def test_majority() -> None:
    assert majority([]) == (None, None)
    assert majority([None]) == (None, None)
    assert majority([False, None, False, True]) == (False, 2 / 3)  # to the last bit that of the other side
    assert majority([True, False, True]) == (True, 2 / 3)


def test_a_certain_majority_does_not_hang_on_lost_votes() -> None:
    assert certain_majority([True, True, True, None, None]) is True
    assert certain_majority([False, False, True, None, None]) is None
    assert certain_majority([False, None, False]) is False
