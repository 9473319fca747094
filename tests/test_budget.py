"""Never overspend: the cap holds whatever a server does, a dry run asks nothing, and rows say what they cost."""

import asyncio
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server import Reply, Server, serve
from tests.test_cli import DEMO, LABEL, RECORDED, fails, tjd, write
from tjd import tables
from tjd.commands.common import Written, money
from tjd.config import BackendConfig
from tjd.errors import BudgetError, ConfigError
from tjd.teacher import Request, open_teacher, user
from tjd.teacher.budget import FREE, Budget, Price, given_price, listed_price, most_prompt_tokens, require_priced

PRICED = "openai/gpt-4o-mini"  # 0.15 and 0.6 dollars per million tokens
UNPRICED = "openai/x"


# ---- the budget alone, under any schedule

OUTCOMES = ("answered", "refused", "unknown", "billed")


@dataclass
class Call:
    most_usd: float
    share: float  # of it that the server bills
    outcome: str
    turns: int  # of the event loop that it takes


calls = st.builds(
    Call,
    st.floats(1e-6, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(OUTCOMES),
    st.integers(0, 5),
)


async def spend(budget: Budget, asked: list[Call], concurrency: int) -> tuple[float, list[bool]]:
    """Send all calls; the server's bill, at its highest, and which calls were sent."""
    bill_usd = highest = 0.0
    slots, sent = asyncio.Semaphore(concurrency), [False] * len(asked)

    async def send(place: int, call: Call) -> None:
        nonlocal bill_usd, highest
        async with slots, budget.attempt(call.most_usd) as bill:
            sent[place] = True
            if call.outcome != "refused":  # billed as soon as it arrives
                bill_usd += call.share * call.most_usd
            highest = max(highest, bill_usd)
            for _ in range(call.turns):
                await asyncio.sleep(0)
            if call.outcome == "unknown":
                raise TimeoutError
            if call.outcome == "refused":
                bill.usd = 0.0
            if call.outcome == "answered":
                bill.usd, bill.answered = call.share * call.most_usd, True

    outcomes = await asyncio.gather(*(send(i, call) for i, call in enumerate(asked)), return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, TimeoutError | BudgetError) for outcome in outcomes)
    assert [isinstance(outcome, BudgetError) for outcome in outcomes] == [not each for each in sent]
    return highest, sent


@settings(max_examples=300, deadline=None)
@given(st.lists(calls, max_size=30), st.floats(0.0, 8.0), st.integers(1, 12))
def test_no_schedule_passes_the_cap(asked: list[Call], cap_usd: float, concurrency: int) -> None:
    budget = Budget(cap_usd)
    bill_usd, sent = asyncio.run(spend(budget, asked, concurrency))
    assert bill_usd <= cap_usd + 1e-9
    assert bill_usd <= budget.spent_usd + 1e-9
    assert (budget.reserved_usd, budget.doubtful_usd <= budget.spent_usd + 1e-12) == (0.0, True)
    if sum(call.most_usd for call in asked) <= cap_usd - 1e-9:
        assert all(sent)
    if not all(sent):  # it ended because a call did not fit, and not sooner
        assert budget.left_usd < max(call.most_usd for call, was in zip(asked, sent, strict=True) if not was)


def test_a_call_waits_for_those_in_flight_since_they_mostly_come_to_less() -> None:
    asked = [Call(0.4, 0.01, "answered", 3) for _ in range(50)]
    budget = Budget(1.0)
    _, sent = asyncio.run(spend(budget, asked, 8))
    assert all(sent)
    assert budget.spent_usd == pytest.approx(0.2)


def test_bounds_grow_where_bills_pass_them() -> None:
    async def run() -> None:
        async with budget.attempt(0.1) as bill:
            bill.usd = 0.3
        async with budget.attempt(0.1):
            assert budget.reserved_usd == pytest.approx(0.3)

    budget = Budget(1.0)
    asyncio.run(run())
    with pytest.raises(BudgetError, match=r"\$0\.6000 spent \(\$0\.3000 of it for calls that failed"):
        asyncio.run(spend_one(budget, 0.2))


def test_bounds_grow_by_the_prompts_though_short_answers_keep_the_bill_low() -> None:
    async def run() -> None:
        async with budget.attempt(0.1, 0.02) as bill, budget.attempt(0.1, 0.02):
            bill.usd, bill.prompt_growth = 0.06, 3.0
        assert budget.spent_usd == pytest.approx(0.1 + 0.06)  # the inner one ended first, and told nothing
        async with budget.attempt(0.2, 0.1):
            assert budget.reserved_usd == pytest.approx(0.1 + 3 * 0.1)

    budget = Budget(1.0)
    asyncio.run(run())


async def spend_one(budget: Budget, most_usd: float) -> None:
    async with budget.attempt(most_usd):
        pass


# ---- prices


def test_prices_of_litellm_are_read_from_above() -> None:
    info = {
        "input_cost_per_token": 1e-6,
        "input_cost_per_token_batches": 9e-6,
        "input_cost_per_token_above_200k_tokens": 3e-6,
        "output_cost_per_token": 2e-6,
        "output_cost_per_reasoning_token": 5e-6,
        "output_cost_per_token_priority": None,
    }
    price = listed_price(info)
    assert price == Price(1e-6, 5e-6, 3e-6, 5e-6)
    assert price.usd(10, 100) == pytest.approx(10e-6 + 500e-6)
    assert price.usd(150_000, 0) == pytest.approx(0.45)
    assert listed_price({"tiered_pricing": [{"input_cost_per_token": 1e-6}, {"input_cost_per_token": 4e-6}]}) == Price(
        4e-6, 0.0, 4e-6, 0.0
    )
    assert listed_price({"input_cost_per_token": 0, "output_cost_per_token": None}) is None
    assert listed_price({"input_cost_per_token": 1e-6, "input_cost_per_request": 5e-3}) is None


def test_a_price_belongs_to_one_model() -> None:
    bare = BackendConfig(price_in=("0.5",), price_out=("2",))
    assert given_price(bare, UNPRICED) == Price(0.5e-6, 2e-6)
    require_priced(bare, [UNPRICED, "hf:embedded", UNPRICED])
    with pytest.raises(
        ConfigError, match=r"--price-in 0.5: say of which model: --price-in openai/x=0.5 --price-in b/y"
    ):
        require_priced(bare, [UNPRICED, "b/y"])
    named = BackendConfig(price_in=("b/y=0", "openai/x=1"), price_out=("b/y=0", "openai/x=1"))
    require_priced(named, [UNPRICED, "b/y"])
    assert (given_price(named, "b/y"), given_price(named, "c/z")) == (Price(0, 0), None)
    with pytest.raises(ConfigError, match="does not ask b/y; it asks openai/x"):
        require_priced(named, [UNPRICED])
    for wrong in ("-1", "nan", "x=", "cheap"):
        with pytest.raises(ConfigError, match="a price is DOLLARS or MODEL=DOLLARS"):
            BackendConfig(price_in=(wrong,), price_out=("1",))
    with pytest.raises(ConfigError, match="go together"):
        BackendConfig(price_in=("1",))
    for wrong_cap in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="--max-cost must be at least 0"):
            BackendConfig(max_cost=wrong_cap)


# ---- the real client against a server that bills as much as it may


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve(lambda body, before: Reply("Yes")) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        yield server


MOODS = ["ok"] * 12 + ["429", "400", "500", "hang up", "hang", "garbage", "no usage"]


class Biller:
    """Behaves at random, and bills whatever it did not refuse, when it likes to as much as it may."""

    def __init__(self, seed: int, price: Price, *, stingy: bool, moods: Sequence[str] = MOODS) -> None:
        self.luck, self.price, self.stingy, self.usd = random.Random(seed), price, stingy, 0.0
        self.moods = moods

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        request = Request(tuple(body["messages"]), max_tokens=body["max_tokens"])
        share = 1.0 if self.stingy else self.luck.random()
        n_prompt, n_tokens = int(share * most_prompt_tokens(request)), int(share * request.max_tokens)
        mood = self.luck.choice(self.moods)
        if mood in ("429", "400"):
            return Reply("no", status=int(mood), headers={"Retry-After": "0"})
        self.usd += self.price.usd(n_prompt, n_tokens)
        if mood == "500":
            return Reply("broken", status=500)
        if mood == "hang up":
            return Reply(hang_up=True)
        if mood == "garbage":
            return Reply(raw=b'{"choices": [{')
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes"}}
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice]}
        reply |= {} if mood == "no usage" else {"usage": usage}
        return Reply(raw=json.dumps(reply).encode(), delay_s=0.4 if mood == "hang" else self.luck.random() * 0.02)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # litellm's, where time runs out early
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))])
def test_the_bill_of_a_server_never_passes_the_cap(served: Server, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tjd.teacher.remote.BACKOFF_S", 0.01)
    luck = random.Random(seed)
    dollars = [luck.choice([0.0, 0.15, 2.5]), luck.choice([0.6, 10.0])]
    price = Price(dollars[0] / 1e6, dollars[1] / 1e6)
    requests = [
        Request(user("wörter 字 " * luck.randrange(1, 30) + str(i)), max_tokens=luck.randrange(1, 400))
        for i in range(60)
    ]
    whole = sum(price.most_usd(request) for request in requests)
    cap_usd = luck.uniform(0.2, 0.6) * whole
    biller = served.script = Biller(seed, price, stingy=seed % 2 == 0)
    per_million = {"price_in": (str(dollars[0]),), "price_out": (str(dollars[1]),)}
    config = BackendConfig(concurrency=luck.choice([2, 16, 64]), retries=2, timeout_s=0.3, **per_million)
    budget = Budget(cap_usd)
    teacher = open_teacher(UNPRICED, config, None, budget)
    with pytest.raises(BudgetError, match=r"^--max-cost .* is reached: \$.* spent.*raise --max-cost and run the same"):
        list(teacher.ask(requests))
    n_calls = len(served.calls)
    teacher.close()
    assert len(served.calls) == n_calls  # nothing is sent once it is told
    assert biller.usd <= budget.spent_usd * (1 + 1e-9) <= cap_usd * (1 + 2e-9)
    assert budget.left_usd < max(price.most_usd(request) for request in requests)  # not stopped too early


@pytest.mark.parametrize(("factor", "most"), [(5, 6), (20, 4)])
def test_a_server_that_bills_more_than_bytes_is_found_out_by_few_calls(served: Server, factor: int, most: int) -> None:
    price, cap_usd = Price(3e-6, 15e-6), 0.1

    class Padded(Biller):
        def __call__(self, body: dict[str, Any], before: int) -> Reply:
            reply = json.loads(super().__call__(body, before).raw or b"")
            reply["usage"]["prompt_tokens"] *= factor
            return Reply(raw=json.dumps(reply).encode(), delay_s=0.05)

    served.script = Padded(1, price, stingy=True, moods=["ok"])
    config = BackendConfig(concurrency=64, price_in=("3",), price_out=("15",))
    budget = Budget(cap_usd)
    requests = [Request(user("word " * 200 + str(i)), max_tokens=16) for i in range(60)]
    assert sum(price.most_usd(request) for request in requests[:20]) < cap_usd
    how = "passed" if factor == 20 else "reached"
    with pytest.raises(BudgetError, match=rf"^--max-cost 0.1 is {how}: ") as caught:
        list(open_teacher(UNPRICED, config, None, budget).ask(requests))
    assert len(served.calls) <= most
    assert (budget.spent_usd > cap_usd) == (how == "passed")
    assert ("as the server bills more tokens than the bytes" in str(caught.value)) == (how == "passed")


def test_a_reply_without_usage_has_no_known_cost(served: Server) -> None:
    served.script = Biller(1, FREE, stingy=True, moods=["no usage"])
    budget = Budget(1.0)
    (completion,) = open_teacher(PRICED, BackendConfig(), None, budget).ask([Request(user("x"))])
    assert (completion.n_prompt_tokens, completion.n_tokens, completion.cost_usd) == (None, None, None)
    assert budget.spent_usd == budget.doubtful_usd == budget.untold_usd > 0


def test_a_cap_needs_a_bound(served: Server) -> None:
    with pytest.raises(ConfigError, match="--max-cost needs the price of openai/x, which is not known"):
        open_teacher(UNPRICED, BackendConfig(), None, Budget(1.0))


# ---- the command line

SOFT = {"kind": "soft", "category": "style", "checker": None, "kwargs": None}


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    constraints = [{"constraint_id": name, "text": f"Be {name}.", **SOFT} for name in ("warm", "brief", "kind")]
    rows = [
        {"response_id": f"r{i}", "query": f"what {i}?", "response": f"response {i}", "constraints": constraints}
        for i in range(12)
    ]
    tables.write_rows(rows, str(tmp_path / "responses.parquet"), tables.output_schema("responses"), {})
    return tmp_path / "responses.parquet"


def bill(server: Server) -> float:
    """What the server charges: words are its tokens, and it says one."""
    words = [sum(len(message["content"].split()) for message in body["messages"]) for body in server.calls]
    return sum(words) * 0.15e-6 + len(words) * 0.6e-6


def test_label_stops_at_its_cap_and_goes_on_from_there(
    served: Server, responses: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", PRICED, "--votes", "2", "--max-tokens", "64", "-o", out]
    whole = tmp_path / "whole.parquet"
    assert tjd(*command[:-1], whole, "--cache-tag", "whole").exit_code == 0
    n_whole, whole_usd = len(served.calls), bill(served)
    served.calls.clear()

    line = fails(7, *command, "--max-cost", "0.0008")
    assert bill(served) <= 0.0008 < whole_usd
    assert 10 < len(served.calls) < n_whole
    assert line.startswith("label: ")
    assert " of 36 rows are done, " in line
    assert "--max-cost 0.0008 is reached: $0.0" in line
    assert not out.exists()
    line = fails(7, *command, "--max-cost", "0", "--cache-tag", "part", "--shard", "1/2")
    assert line.startswith("label: 0 rows done; --max-cost 0 is reached: ")  # how many a part has is not known
    rest = tjd(*command, "--max-cost", "1")
    assert rest.exit_code == 0
    assert len(served.calls) == n_whole  # none twice
    assert out.read_bytes() == whole.read_bytes()
    assert tjd(*command, "--max-cost", "0").exit_code == 0  # what is on disk costs nothing


@pytest.mark.parametrize("concurrency", [1, 8])
def test_every_answer_that_arrived_before_the_cap_is_a_row_that_is_done(
    concurrency: int, served: Server, responses: Path, tmp_path: Path, cache: Path
) -> None:
    rows = pq.read_table(responses).to_pylist() * 3
    single = [
        row | {"response_id": f"s{i}", "response": f"one {i}", "constraints": row["constraints"][:1]}
        for i, row in enumerate(rows)
    ]
    tables.write_rows(single, str(responses), tables.output_schema("responses"), {})
    command = ["label", responses, "-t", PRICED, "--max-tokens", "64", "--concurrency", concurrency]
    line = fails(7, *command, "--max-cost", "0.00055", "-o", tmp_path / "labels.parquet")
    assert 0 < len(served.calls) < 36
    assert f"{len(served.calls)} of 36 rows are done, {36 - len(served.calls)} remain" in line


def test_the_message_at_a_cap_names_long_answers_where_they_hold_most_of_it(
    served: Server, responses: Path, tmp_path: Path, cache: Path
) -> None:
    command = ["label", responses, "-t", PRICED, "-o", tmp_path / "labels.parquet", "--max-tokens"]
    told = "for an answer as long as it may be (a smaller --max-tokens, where the command takes it, lets more calls through"
    assert told in fails(7, *command, 1000, "--max-cost", "0.0008")
    assert told not in fails(7, *command, 64, "--max-cost", "0.0008")


def test_what_is_free_needs_no_cap(tmp_path: Path) -> None:
    command = ["label", DEMO / "pool.parquet", "-t", RECORDED, "--limit", 3, "-o", tmp_path / "labels.parquet"]
    assert tjd(*command, "--max-cost", 0).exit_code == 0
    plan = tjd(*command, "--dry-run")
    assert plan.exit_code == 0
    assert "$0.0000" in plan.stdout


def test_evaluate_stops_at_its_cap(served: Server, tmp_path: Path, cache: Path) -> None:
    prompts = [{"key": i, "prompt": f"Say {i}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
               for i in range(20)]  # fmt: skip
    (tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    command = ["evaluate", "-b", f"ifeval={tmp_path / 'ifeval.jsonl'}", "-m", PRICED, "--max-tokens", "50"]
    assert fails(7, *command, "--max-cost", "0.00006").startswith("--max-cost 6e-05 is reached: $0.0")
    n_calls = len(served.calls)
    assert 0 < n_calls < 20
    assert bill(served) <= 0.00006
    assert tjd(*command).exit_code == 0
    assert len(served.calls) == 20


def test_eval_judge_stops_at_its_cap(served: Server, tmp_path: Path, cache: Path) -> None:
    labels = [LABEL | {"response_id": f"r{i}", "query": f"What {i}?", "followed": i % 2 == 0} for i in range(20)]
    command = ["eval-judge", write(tmp_path / "labels.parquet", labels), "--split", "all", "-t", PRICED]
    assert planned(*command)[0] == "20"
    assert served.calls == []
    assert fails(7, *command, "--max-cost", "0.001").startswith("--max-cost 0.001 is reached: $0.0")
    assert len(served.calls) < 20
    assert bill(served) <= 0.001
    assert tjd(*command).exit_code == 0
    assert len(served.calls) == 20


def test_a_price_is_needed_and_prices_the_rows(served: Server, responses: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", UNPRICED, "--limit", "1", "-o", out]
    line = fails(2, *command, "--max-cost", "1")
    assert line.startswith("--max-cost needs the price of openai/x, which is not known; give it with --price-in")
    assert served.calls == []
    assert tjd(*command).exit_code == 0
    assert [row["cost_usd"] for row in pq.read_table(out).to_pylist()] == [None] * 3
    assert tjd(*command, "--max-cost", "1", "--price-in", "10", "--price-out", "100").exit_code == 0
    assert len(served.calls) == 3
    for row in pq.read_table(out).to_pylist():
        assert row["cost_usd"] == pytest.approx(row["n_prompt_tokens"] * 10e-6 + 100e-6)
        assert row["n_completion_tokens"] == 1
    assert sum(row["n_prompt_tokens"] for row in pq.read_table(out).to_pylist()) == sum(
        len(body["messages"][0]["content"].split()) for body in served.calls
    )


def test_a_reply_without_usage_is_told_as_such(served: Server, responses: Path, tmp_path: Path, cache: Path) -> None:
    served.script = Biller(1, FREE, stingy=True, moods=["no usage"])
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", PRICED, "--max-tokens", "64", "-o", out]
    line = fails(7, *command, "--max-cost", "0.0008")
    assert re.search(
        r"reached: (\$0\.\d+) spent \(\1 of it the most for replies that told no token counts\), and", line
    )
    told = tjd(*command, "--cache-tag", "more").stderr
    assert "tokens unknown, cost unknown (the server told no token counts for 36 of 36 answers) -> " in told
    served.script = lambda body, before: Reply("Yes")
    told = tjd(*command, "--votes", "2", "--cache-tag", "more").stderr
    assert re.search(r"36 calls \(36 more from the cache\), \d+\+36 tokens, \$0", told)


def planned(*command: Any) -> list[str]:
    """Numbers of the plan's only line."""
    result = tjd(*command, "--dry-run")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if "openai/" in line]
    return [cell.strip() for cell in line.strip("│ ").split("│")][1:]


def test_a_dry_run_tells_the_calls_and_makes_none(
    served: Server, responses: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", PRICED, "--votes", "3", "--max-tokens", "100", "-o", out]
    n_calls, cached, prompt, most, usd, likely = planned(*command)
    assert (n_calls, cached, most, likely) == ("108", "0", "10800", "-")
    assert float(usd[1:]) > (int(prompt) * 0.15 + 10800 * 0.6) / 1e6  # the prompts at their most, too
    assert served.calls == []
    assert not out.exists()
    assert tjd(*command, "--limit", "3").exit_code == 0
    assert len(served.calls) == 27
    out.unlink()
    n_calls, cached, prompt, most, usd, likely = planned(*command)
    assert (n_calls, cached, most) == ("81", "27", "8100")
    assert likely == f"${(int(prompt) * 0.15 + 81 * 0.6) / 1e6:.4f}"  # one token each, as those that are there
    assert len(served.calls) == 27
    assert not out.exists()


def test_what_could_not_be_used_is_planned_and_asked_anew(
    served: Server, responses: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    served.script = lambda body, before: Reply("Perhaps")
    command = ["label", responses, "-t", PRICED, "--limit", "3", "-o", tmp_path / "labels.parquet"]
    assert fails(5, *command).startswith("9 of 9 rows have no followed")
    assert len(served.calls) == 18
    served.script = lambda body, before: Reply("Yes")
    assert planned(*command)[:2] == ["0", "18"]
    assert planned(*command, "--retry-unusable")[:2] == ["9", "0"]
    assert len(served.calls) == 18
    assert tjd(*command, "--retry-unusable").exit_code == 0
    assert len(served.calls) == 27


def test_a_cap_of_what_the_dry_run_tells_suffices_for_a_server_that_bills_the_most(
    served: Server, responses: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    served.script = Biller(1, Price(3e-6, 15e-6), stingy=True, moods=["ok"])
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", UNPRICED, "--price-in", "3", "--price-out", "15", "-o", out]
    usd = float(planned(*command)[4][1:])
    assert tjd(*command, "--max-cost", usd).exit_code == 0
    assert fails(7, *command, "--max-cost", usd - 0.0002, "--cache-tag", "less")


@pytest.mark.parametrize("command", ["synthesize", "sample"])
def test_every_stage_can_be_planned(
    command: str, served: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [{"query_id": f"q{i}", "instruction_id": f"i{i}", "query": "what?", "instruction": f"What {i}?"}
            for i in range(7)]  # fmt: skip
    kind = "queries" if command == "synthesize" else "instructions"
    tables.write_rows(rows, str(tmp_path / "in.parquet"), tables.output_schema(kind), {})
    who = ["-t", UNPRICED] if command == "synthesize" else ["-m", UNPRICED, "--n", "2"]
    arguments = [command, tmp_path / "in.parquet", *who, "--max-invalid", "1", "-o", tmp_path / "out.parquet"]
    n_calls, cached, _, _, usd, _ = planned(*arguments)
    assert usd == "price unknown"
    assert served.calls == []
    tjd(*arguments)
    n_first = len(served.asked) if command == "sample" else sum(len(body["messages"]) == 1 for body in served.calls)
    assert int(n_calls) == n_first
    assert int(n_calls) + int(cached) == {"synthesize": 7, "sample": 7 * 2 * 2}[command]  # the bare query is shared
    assert (tmp_path / "out.parquet").exists()


def test_votes_of_a_batch_share_their_tokens(served: Server, responses: Path, tmp_path: Path, cache: Path) -> None:
    served.script = lambda body, before: Reply("1: Yes\n2: No\n3: Yes")
    out = tmp_path / "labels.parquet"
    command = ["label", responses, "-t", PRICED, "--mode", "batch", "--votes", "2", "--limit", "1", "-o", out]
    assert tjd(*command).exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert sum(row["n_completion_tokens"] for row in rows) == 2 * 6
    n_prompt = sum(len(body["messages"][0]["content"].split()) for body in served.calls)
    assert sum(row["n_prompt_tokens"] for row in rows) == n_prompt
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(n_prompt * 0.15e-6 + 12 * 0.6e-6)


def test_the_display_tells_spent_projected_and_left() -> None:
    written, budget = Written("out", None), Budget(2.0)
    models: Any = [SimpleNamespace(usage=SimpleNamespace(saved_usd=0.2))]
    assert list(written.count([{"cost_usd": 0.1}] * 4))
    budget.spent_usd = 0.25  # of which some rows are yet to be written
    assert money(written, 10, models, budget) == "$0.2500 spent, $0.8000 projected, $1.7500 of $2 left"
    assert money(written, None, models, budget) == "$0.2500 spent, $1.7500 of $2 left"
    assert money(written, 10, models, Budget()) == ""
