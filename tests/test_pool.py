"""The pool: acceptance by category, model and condition, and a plan that fills up the rarer verdict."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tjd.commands.pool import tell_round
from tjd.config import SampleConfig
from tjd.errors import ConfigError, DataError
from tjd.pool import Acceptance, Plan
from tjd.tables import Row

SEEN, UNSEEN = "with_constraint", "without_constraint"


def soft(category: str) -> Row:
    return {"kind": "soft", "category": category, "text": "x", "checker": None, "kwargs": None}


def rule(checker: str, kwargs: str = "{}") -> Row:
    return {"kind": "rule", "category": None, "text": None, "checker": checker, "kwargs": kwargs}


def labels(
    yes: int, no: int, *, category: str = "style", model: str = "m", condition: str = SEEN, n: int = 10
) -> list[Row]:
    """Over `n` instructions of a category, the seeds of each from 0."""
    return [
        {"instruction_id": f"{category}{i % n}", "category": category, "kind": "soft", "model": model,
         "condition": condition, "seed": i // n, "followed": i < yes}
        for i in range(yes + no)
    ]  # fmt: skip


def instructions(n: int = 10, category: str = "style", **more: Any) -> list[Row]:
    row = {"instruction": "do", "constraints": [soft(category)], **more}
    return [{"instruction_id": f"{category}{i}", **row} for i in range(n)]


def plan(table: list[Row], rows: list[Row], *models: str, **settings: Any) -> Plan:
    models = models or ("m",)
    return Plan(table, rows, models, SampleConfig(model=models, **settings))


def planned(made: Plan, rows: list[Row], *models: str) -> dict[tuple[str, str], int]:
    places = [(model, condition) for model in models for condition in (SEEN, UNSEEN)]
    return {place: sum(len(made.seeds(row, *place)) for row in rows) for place in places}


def test_verdicts_are_counted_and_rows_pass() -> None:
    rows = [*labels(2, 1), *labels(0, 2, condition=UNSEEN), {"category": None, "kind": "rule", "followed": True}]
    rows[0]["followed"] = None
    acceptance = Acceptance()
    assert list(acceptance.of_labels(rows)) == rows
    assert acceptance.cells["style", "m", SEEN] == {True: 1, False: 1, None: 1}
    assert acceptance.cells[None, None, None] == {True: 1}
    assert acceptance.by_category() == {"style": {True: 1, False: 3, None: 1}}


@pytest.mark.parametrize(("yes", "no", "told"), [(9, 91, True), (10, 90, False), (91, 9, True), (0, 0, False)])
def test_one_sided_categories(yes: int, no: int, told: bool) -> None:
    acceptance = Acceptance()
    assert len(list(acceptance.of_labels(labels(yes, no)))) == yes + no
    assert ("style" in acceptance.one_sided()) is told


def test_rules_of_responses() -> None:
    def response(text: str | None, *constraints: Row) -> Row:
        return {"query": "q", "response": text, "model": "m", "condition": SEEN, "constraints": list(constraints)}

    few = rule("length_constraints:number_words", '{"relation": "less than", "num_words": 3}')
    lower = rule("change_case:english_lowercase")
    unknown, broken = rule("nobody:knows"), rule("length_constraints:number_words", "{")
    rows = [
        response("one two", few),
        response("one two three", few, unknown),  # one that is broken decides
        response("one two", few, unknown),
        response("one two", broken),
        response("no rules", soft("style")),
        response(None, few, lower),
    ]
    acceptance = Acceptance()
    assert list(acceptance.of_rules(rows)) == rows
    assert dict(acceptance.cells) == {(None, "m", SEEN): {True: 1, False: 1, None: 2}}


def test_the_plan_takes_the_sources_that_give_the_rarer_verdict() -> None:
    table = [*labels(95, 5), *labels(2, 18, condition=UNSEEN)]
    rows = instructions()
    made = plan(table, rows, target_balance=0.3, n=10)
    [short] = made.shortages
    assert (short.category, short.followed, short.sources) == ("style", False, [("m", UNSEEN)])
    assert short.share == 23 / 120
    # with 19 of 22 expected to be "not followed": 23 + 0.864 n >= 0.3 (120 + n)
    assert short.n == 24
    assert 0.3 <= short.expected < 0.305
    assert planned(made, rows, "m") == {("m", SEEN): 0, ("m", UNSEEN): 24}
    # labels hold the seeds 0 and 1 of ten instructions
    assert {made.seeds(row, "m", UNSEEN).start for row in rows} == {2}
    assert {len(made.seeds(row, "m", UNSEEN)) for row in rows} == {2, 3}


def test_a_rare_yes_comes_from_other_sources_than_a_rare_no() -> None:
    table = [*labels(1, 49, condition=UNSEEN), *labels(6, 4), *labels(49, 1, category="semantic")]
    rows = [*instructions(), *instructions(category="semantic")]
    made = plan(table, rows, "m", "new", target_balance=0.2, n=2)
    assert [(s.category, s.followed) for s in made.shortages] == [("semantic", False), ("style", True)]
    semantic, style = (s.sources for s in made.shortages)
    assert ("m", SEEN) not in semantic  # 49 of 50 were followed
    assert ("m", UNSEEN) not in style
    assert ("new", SEEN) in style  # never tried: as likely as not
    assert planned(made, rows[:10], "m")["m", UNSEEN] == 0


def test_nothing_is_short() -> None:
    rows = instructions()
    made = plan(labels(30, 70), rows, target_balance=0.3)
    assert made.shortages == []
    assert planned(made, rows, "m") == {("m", SEEN): 0, ("m", UNSEEN): 0}


def test_a_target_out_of_reach() -> None:
    rows = instructions(2)
    [short] = plan(labels(0, 100), rows, target_balance=0.3, condition=(SEEN,)).shortages
    assert (short.n, short.sources, short.expected) == (0, [], 0.0)  # none ever gave a yes
    [short] = plan([*labels(0, 100), *labels(4, 0, condition=UNSEEN)], rows, target_balance=0.3, n=3).shortages
    assert short.n == 6  # three each of two instructions
    assert 4 / 104 < short.expected < 0.3
    [short] = plan(labels(1, 3), instructions(category="other"), target_balance=0.5).shortages
    assert short.n == 0  # no instruction has such a constraint


def test_a_response_counts_for_all_categories_of_its_instruction(capsys: pytest.CaptureFixture[str]) -> None:
    table = [row for category in ("semantic", "style") for row in labels(10, 90, category=category)]
    both = {"instruction": "do", "constraints": [soft("semantic"), soft("style")]}
    rows = [{"instruction_id": f"i{i}", **both} for i in range(20)]
    made = plan(table, rows, "new", target_balance=0.3, n=10)
    semantic, style = made.shortages
    assert (style.n, style.expected) == (0, semantic.expected)
    assert semantic.n == 100  # 10 + n / 2 >= 0.3 (100 + n)
    tell_round(made, SampleConfig(model=("new",), target_balance=0.3))
    told = capsys.readouterr().err
    assert "plan: style has 10.0% followed; what is planned above should make it 30.0%" in told
    assert "warning" not in told


def test_the_share_rises_as_far_as_it_can_where_the_target_is_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    table = [*labels(20, 0), *labels(17, 3, condition=UNSEEN)]  # 7.5% are not followed; of bare queries 4 of 22 may be
    rows, config = instructions(), SampleConfig(model=("m",), target_balance=0.3, n=3)
    made = Plan(table, rows, ["m"], config)
    [short] = made.shortages
    assert (short.n, short.sources, short.reachable) == (30, [("m", UNSEEN)], False)
    assert short.expected == pytest.approx((3 + 30 * 4 / 22) / 70)
    assert planned(made, rows, "m") == {("m", SEEN): 0, ("m", UNSEEN): 30}
    tell_round(made, config)
    assert capsys.readouterr().err == (
        "plan: style has 7.5% not followed; 30 responses by m without_constraint should make it 12.1%\n"
        "warning: that is short of 30%; name another --model or --condition\n"
    )


def test_a_source_that_gives_it_no_more_often_than_so_far_is_not_asked() -> None:
    [short] = plan(labels(930, 70), instructions(), target_balance=0.3, n=3, condition=(SEEN,)).shortages
    assert (short.n, short.sources) == (0, [])


@pytest.mark.parametrize(
    ("model", "category", "error", "advice"),
    [
        ("new", "other", DataError, "no instruction has such a constraint; bring instructions that do"),
        (
            "m",
            "style",
            ConfigError,
            "no response of these models and conditions is expected to raise that; name another ",
        ),
    ],
)
def test_where_nothing_can_help_the_error_names_what_is_missing(
    model: str, category: str, error: type[Exception], advice: str
) -> None:
    config = SampleConfig(model=(model,), target_balance=0.4)
    table = [*labels(0, 100), *labels(0, 100, condition=UNSEEN)]  # the model "m" never follows
    with pytest.raises(error, match=f"^style has 0.0% followed, and {advice}"):
        tell_round(Plan(table, instructions(category=category), [model], config), config)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(1, 4), st.integers(0, 9)
)
def test_plans_keep_their_bounds(yes: int, no: int, bare_yes: int, bare_no: int, n: int, seed: int) -> None:
    table = [*labels(yes, no), *labels(bare_yes, bare_no, condition=UNSEEN)]
    rows = instructions()
    made = plan(table, rows, "m", "new", target_balance=0.3, n=n, seed=seed)
    same = plan(table, rows, "m", "new", target_balance=0.3, n=n, seed=seed)
    asked = {(row["instruction_id"], row["model"], row["condition"], row["seed"]) for row in table}
    total = 0
    for row in rows:
        for model in ("m", "new"):
            for condition in (SEEN, UNSEEN):
                seeds = made.seeds(row, model, condition)
                assert seeds == same.seeds(row, model, condition)
                assert len(seeds) <= n
                assert not {(row["instruction_id"], model, condition, s) for s in seeds} & asked
                total += len(seeds)
    assert total == sum(short.n for short in made.shortages)
    for short in made.shortages:
        assert short.share < 0.3
        assert short.expected >= min(0.3, short.share)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"target_balance": 0.6}, "--target-balance is the share of the rarer verdict, in [0, 0.5], not 0.6"),
        ({"target_balance": 0.3, "temperature": 0}, "--target-balance asks for further responses"),
        ({"condition": (SEEN, UNSEEN, SEEN)}, "--condition with_constraint is given twice; once is enough"),
    ],
)
def test_flags_out_of_range(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        SampleConfig(model=("m",), **flags)
    assert str(error.value).startswith(told)
