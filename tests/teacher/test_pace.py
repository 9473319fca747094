"""The pace of calls: invariants against a clock of our own, simulated providers, and real HTTP."""

import asyncio
import heapq
import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server import Reply, Server, last_user, serve
from tests.teacher.test_remote import numbered, opened
from tjd import prompts
from tjd.config import BackendConfig, LabelConfig
from tjd.errors import ConfigError
from tjd.stages.label import label
from tjd.teacher import Request, user
from tjd.teacher.direct import serves
from tjd.teacher.pace import NOTHING, START, Call, Ending, Pace, Told, told_by
from tjd.teacher.verdicts import VARIABLES


class Clock:
    """Time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def begun(pace: Pace, n: int, n_tokens: float = 0) -> list[Call]:
    """Begin as many calls as may begin now, at most n."""
    calls: list[Call] = []
    while len(calls) < n and pace.wait_s(n_tokens) == 0:
        calls.append(pace.begin(n_tokens))
    return calls


ENDINGS: list[Ending] = ["answered", "answered", "answered", "limited", "overloaded", "failed"]
TOLD = st.builds(
    Told,
    st.sampled_from([0.0, 0.0, 1.0, 1e9]),
    st.none() | st.tuples(st.integers(0, 20), st.floats(0, 300)),
    st.none() | st.tuples(st.integers(0, 500), st.floats(0, 300)),
)
STEPS = st.lists(
    st.tuples(st.floats(0, 30), st.floats(0, 80), st.sampled_from(ENDINGS), TOLD, st.none() | st.integers(0, 80)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(ceiling=st.integers(1, 100), rpm=st.integers(0, 12), tpm=st.integers(80, 300), steps=STEPS)
def test_no_limit_is_ever_passed_and_nothing_waits_for_ever(
    ceiling: int, rpm: int, tpm: int, steps: list[tuple[float, float, Ending, Told, int | None]]
) -> None:
    clock = Clock()
    pace = Pace(ceiling, rpm, tpm, clock=clock)
    flying: list[Call] = []
    starts: list[tuple[float, Call]] = []
    for passing_s, n_tokens, ending, told, used in steps:
        clock.now += passing_s
        calls = begun(pace, 20, n_tokens)
        flying += calls
        starts += [(clock.now, call) for call in calls]
        assert len(flying) <= pace.slots <= ceiling or not calls
        assert len(flying) <= ceiling
        minute = [call for at, call in starts if at + 60 > clock.now]
        assert not rpm or len(minute) <= rpm
        assert sum(call.tokens.amount for call in minute) <= tpm + 1e-6 or not calls
        if flying:
            pace.end(flying.pop(0), ending, told, used)
        if not flying:
            assert pace.wait_s(n_tokens) <= 300.001
    for call in flying:
        pace.end(call, "failed", NOTHING)
    clock.now += 301
    assert pace.wait_s(1) == 0


@settings(deadline=None, max_examples=15)
@given(ceiling=st.integers(1, 64), n_refused=st.integers(0, 200))
def test_it_recovers(ceiling: int, n_refused: int) -> None:
    clock = Clock()
    pace = Pace(ceiling, clock=clock)
    for _ in range(n_refused):
        clock.now += 60
        for call in begun(pace, 1):
            pace.end(call, "limited", NOTHING)
    rounds = 0
    while pace.slots < ceiling:
        clock.now += 60
        rounds += 1
        for call in begun(pace, ceiling):
            pace.end(call, "answered", NOTHING)
    assert rounds <= 150


def test_it_doubles_with_each_round_at_first() -> None:
    pace, sizes = Pace(512), []
    calls = begun(pace, 512)
    for _ in range(4):
        sizes.append(len(calls))
        following: list[Call] = []
        for call in calls:
            pace.end(call, "answered", NOTHING)
            following += begun(pace, 512)
        calls = following
    assert sizes == [64, 128, 256, 512]


def test_a_burst_of_refusals_leaves_as_many_as_were_taken() -> None:
    pace = Pace(100)
    pace._slots = 100.0
    for call in begun(pace, 100)[80:]:
        pace.end(call, "limited", NOTHING)
    assert pace.slots == 80


def test_a_burst_that_is_refused_whole_takes_half() -> None:
    pace = Pace(64)
    for call in begun(pace, 64):
        pace.end(call, "overloaded", NOTHING)
    assert pace.slots == 32


def test_retry_after_pauses_all_until_a_later_call_is_taken() -> None:
    clock = Clock()
    pace = Pace(8, clock=clock)
    first, refused, later, *_ = begun(pace, 8)
    pace.end(refused, "limited", Told(retry_after_s=20))
    pace.end(first, "answered", NOTHING)  # began before: says nothing of the limit
    assert pace.wait_s(0) == pytest.approx(20)
    pace.end(later, "answered", NOTHING)
    assert pace.wait_s(0) == 0


def test_a_pause_stands_where_most_are_refused() -> None:
    pace = Pace(8, clock=Clock())
    *refused, last = begun(pace, 8)
    for call in refused:
        pace.end(call, "limited", Told(retry_after_s=20))
    pace.end(last, "answered", NOTHING)
    assert pace.wait_s(0) == pytest.approx(20)


def test_pauses_grow_while_nothing_is_taken() -> None:
    clock, pauses = Clock(), []
    pace = Pace(1, clock=clock)
    for _ in range(13):
        (call,) = begun(pace, 1)
        pace.end(call, "limited", NOTHING)
        pauses.append(round(pace.wait_s(0), 3))
        clock.now += pauses[-1]
    assert pauses[:5] == [0] * 5  # stray, for all that is known
    assert pauses[5:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_what_is_left_counts_from_the_call_that_was_told() -> None:
    clock = Clock()
    pace = Pace(64, clock=clock)
    first, *_ = begun(pace, 5)  # the server told after the first that 6 are left, four of which had begun by then
    pace.end(first, "answered", Told(requests=(6, 30.0)))
    assert len(begun(pace, 64)) == 2
    assert pace.wait_s(0) == pytest.approx(30)
    clock.now += 30
    assert pace.wait_s(0) == 0


def test_tokens_are_corrected_by_what_was_used() -> None:
    clock = Clock()
    pace = Pace(8, tpm=100, clock=clock)
    (call,) = begun(pace, 2, 90)
    pace.end(call, "answered", NOTHING, 10)
    assert len(begun(pace, 2, 90)) == 1
    assert pace.wait_s(90) == pytest.approx(60)
    assert Pace(8, tpm=100).wait_s(500) == 0  # alone, or it could never be asked


def test_slow_answers_let_no_more_in() -> None:
    clock = Clock()
    pace = Pace(512, slow_s=40, clock=clock)
    calls = begun(pace, 512)
    clock.now += 41
    for call in calls:
        pace.end(call, "answered", NOTHING)
    assert pace.slots == START


def simulated(pace: Pace, clock: Clock, latency_s: float, seconds: float, allowed: int, stray: int) -> float:
    """Answers a second from a provider that refuses at once what is above `allowed`, and 1 in `stray` others."""
    events: list[tuple[float, int, Any, Call]] = []
    n, answered, taken, end = 0, 0, 0, clock.now + seconds
    while clock.now < end:
        for call in begun(pace, 1000):
            n += 1
            refused = taken == allowed or (stray and n % stray == 0)
            taken += not refused
            lasts_s, ending = (0.005, "limited") if refused else (latency_s, "answered")
            heapq.heappush(events, (clock.now + lasts_s, n, ending, call))
        wait_s = pace.wait_s(0)
        if wait_s < math.inf and (not events or clock.now + wait_s < events[0][0]):
            clock.now += wait_s
            continue
        clock.now, _, ending, call = heapq.heappop(events)
        pace.end(call, ending, NOTHING)
        answered += ending == "answered"
        taken -= ending == "answered"
    return answered / seconds


@pytest.mark.parametrize(("allowed", "stray"), [(200, 0), (1000, 40), (200, 40), (7, 0)])
def test_the_slots_of_a_provider_are_used(allowed: int, stray: int) -> None:
    clock = Clock()
    rate = simulated(Pace(256, clock=clock), clock, 2.0, 100, allowed, stray)
    assert rate > 0.9 * min(allowed, 256) / 2


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, NOTHING),
        ({"Retry-After": "7"}, Told(7.0)),
        ({"retry-after": "7", "retry-after-ms": "1500"}, Told(1.5)),
        ({"llm_provider-retry-after": "2.5"}, Told(2.5)),
        ({"retry-after": "soon"}, NOTHING),
        ({"retry-after": "-3"}, NOTHING),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"},
            Told(requests=(0, 60.5)),
        ),
        ({"X-RateLimit-Remaining-Tokens": "149984", "X-RateLimit-Reset-Tokens": "6ms"}, Told(tokens=(149984, 0.006))),
        ({"x-ratelimit-remaining-requests": "5"}, NOTHING),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "99h"}, Told(requests=(5, 300.0))),
    ],
)
def test_headers_are_read(headers: dict[str, str], told: Told) -> None:
    assert told_by(headers) == told


def test_dates_in_headers_are_read() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=20)
    assert told_by({"retry-after": format_datetime(soon, usegmt=True)}).retry_after_s == pytest.approx(20, abs=2)
    limits = {"anthropic-ratelimit-requests-remaining": "3", "anthropic-ratelimit-requests-reset": soon.isoformat()}
    assert told_by(limits).requests == (3, pytest.approx(20, abs=2))


@given(st.text() | st.floats().map(str) | st.datetimes().map(str), st.text() | st.integers().map(str))
def test_no_header_breaks_a_run(when: str, many: str) -> None:
    told = told_by({"retry-after": when, "x-ratelimit-remaining-tokens": many, "x-ratelimit-reset-tokens": when})
    assert 0 <= told.retry_after_s < math.inf
    assert told.tokens is None or (told.tokens[0] >= 0 and 0 <= told.tokens[1] <= 300)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve(lambda body, before: Reply(f"you said {last_user(body)}")) as running:
        monkeypatch.setenv("HOSTED_VLLM_API_BASE", running.url)
        yield running


def asked(**settings: Any) -> Any:
    return opened(name="hosted_vllm/x", **settings)


def test_all_calls_of_a_model_pause(server: Server) -> None:
    arrivals: list[float] = []

    def limited(body: dict[str, Any], before: int) -> Reply:
        arrivals.append(time.monotonic())
        return Reply("wait", 429, {"Retry-After": "1"}) if arrivals[-1] < arrivals[0] + 0.5 else Reply("fine")

    server.script = limited
    teacher = asked()
    assert [completion.text for completion in teacher.ask(numbered(40))] == ["fine"] * 40
    first = [at for at in arrivals if at < arrivals[0] + 0.5]
    assert len(first) <= 8
    assert min(set(arrivals) - set(first)) >= min(first) + 1


def test_a_closed_teacher_begins_no_other_call(server: Server) -> None:
    server.script = lambda body, before: Reply("fine", delay_s=0.05)
    teacher = asked(concurrency=4)
    answers = teacher.ask(numbered(400))
    next(answers)
    teacher.close()  # as after an error elsewhere, which leaves the generator open
    n_calls = len(server.calls)
    assert n_calls < 40
    time.sleep(0.3)
    assert len(server.calls) == n_calls
    del answers


def test_a_server_that_takes_few_at_once_answers_all(server: Server) -> None:
    def limited(body: dict[str, Any], before: int) -> Reply:
        return Reply("busy", 429) if server.in_flight > 3 else Reply("fine", delay_s=0.02)

    server.script = limited
    teacher = asked(concurrency=16, retries=5)
    assert [completion.text for completion in teacher.ask(numbered(60))] == ["fine"] * 60
    assert len(server.calls) < 120


def test_rpm_and_tpm_reach_the_pace(server: Server) -> None:
    teacher = asked(rpm=3)
    asking = teacher.ask(numbered(4))
    for _ in range(3):
        next(asking)
    time.sleep(0.2)
    assert len(server.calls) == 3
    asking.close()
    teacher.close()
    server.at_once = 0
    list(asked(tpm=300).ask(Request(user(str(i)), max_tokens=200) for i in range(5)))
    assert (len(server.calls), server.at_once) == (8, 1)  # each has room once its forerunner's true number is known
    with pytest.raises(ConfigError, match="--rpm must be at least 0"):
        BackendConfig(rpm=-1)


def test_a_reply_without_end_is_a_failed_call(server: Server) -> None:
    server.script = lambda body, before: Reply(raw=b" " * (17 * 2**20))
    (completion,) = asked(retries=0).ask(numbered(1))
    assert completion.error == "the call failed: ValueError: the reply is longer than 16 MiB"


def test_a_key_that_the_shown_part_of_a_reply_would_cut_is_redacted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "fake-provider-key-0123456789abcdef"
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", key)
    server.script = lambda body, before: Reply(status=400, raw=(180 * "x" + " " + key).encode())
    (completion,) = asked().ask(numbered(1))
    assert completion.error == f"the call failed: 400: {180 * 'x'} ***"


@pytest.mark.parametrize(
    ("environment", "direct"),
    [
        ({}, True),
        ({"HTTP_PROXY": "http://proxy:3128"}, False),
        ({"ALL_PROXY": "http://proxy:3128"}, False),
        ({"ALL_PROXY": "http://proxy:3128", "NO_PROXY": "gpu.lab"}, True),
    ],
)
def test_a_proxy_is_not_passed_by(environment: dict[str, str], direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert serves(litellm, "hosted_vllm/x", "hosted_vllm", "http://gpu.lab:8000/v1") is direct


@pytest.mark.parametrize("name", ["hosted_vllm/x", "openai/x", "openai/gpt-4o-mini", "openai/gpt-5"])
def test_the_server_gets_what_litellm_would_send(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import litellm

    monkeypatch.setenv("OPENAI_API_BASE", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "sk-0123456789")
    teacher = opened(name=name)
    request = Request(user("a \u00e9 c"), temperature=1.0, top_p=0.9, max_tokens=7, seed=3)
    (completion,) = teacher.ask([request])

    async def through_litellm() -> Any:
        return teacher._completion(await litellm.acompletion(**teacher._arguments(request)))

    from tjd.teacher.remote import _event_loop

    assert asyncio.run_coroutine_threadsafe(through_litellm(), _event_loop()).result(20) == completion
    ours, theirs = server.calls
    assert {key: value for key, value in theirs.items() if (key, value) != ("stream", False)} == {
        key: value for key, value in ours.items() if (key, value) != ("stream", False)
    }
    sent = [{name.lower(): value for name, value in headers.items()} for headers in server.headers]
    assert [headers["authorization"] for headers in sent] == ["Bearer sk-0123456789"] * 2


FAULTS = [
    Reply("slow down", 429, {"Retry-After": "1"}),
    Reply("slow down", 429),
    Reply("boom", 500),
    Reply(hang_up=True),
    Reply("late", delay_s=2.0),
    Reply(raw=b'{"choices": [{"mess'),
    Reply(""),
    Reply("Das kann man so nicht sagen."),
]


@pytest.mark.slow  # pauses, and time-outs that a busy machine does not meet by chance
def test_whatever_fails_a_row_is_labelled_or_null_with_a_reason(server: Server) -> None:
    def faulty(body: dict[str, Any], before: int) -> Reply:
        i = int(body["messages"][0]["content"].partition("query ")[2].split()[0])
        first = before == 0 and len(body["messages"]) == 1
        return FAULTS[i % len(FAULTS)] if i % 15 == 1 or (i % 5 == 1 and first) else Reply("Yes")

    server.script = faulty
    constraint = {"constraint_id": "c", "kind": "soft", "category": "style", "text": "Be brief."}
    constraint |= {"checker": None, "kwargs": None}
    rows = [
        {"response_id": f"r{i}", "query": f"query {i} ", "response": "Words.", "constraints": [constraint]}
        for i in range(160)
    ]
    prompt, again = prompts.load("label.pointwise.v1", VARIABLES["pointwise"]), prompts.load("again.v1", ["reason"])
    teacher = asked(retries=3, timeout_s=1.0, concurrency=16)
    labels = list(label(rows, prompt, again, teacher.ask, LabelConfig(), lambda *_, **__: (None, "no rules here")))
    assert [row["response_id"] for row in labels] == [row["response_id"] for row in rows]
    assert {row["followed"] for row in labels} == {True, None}
    nulls = {row["response_id"]: row["error"] for row in labels if row["followed"] is None}
    assert all(nulls.values())
    assert set(nulls) == {f"r{i}" for i in range(160) if i % 15 == 1}
    assert {reason.removeprefix("the call failed: ").partition(":")[0] for reason in nulls.values()} >= {
        "429",
        "500",
        "no answer in time (--timeout-s)",
        "the model said nothing",
        "neither Yes nor No",
    }
