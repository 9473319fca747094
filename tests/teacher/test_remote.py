"""The remote backend: real litellm against a scripted server on loopback."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Reply, Server, last_user, serve
from tjd.config import BackendConfig
from tjd.errors import BackendError, ConfigError
from tjd.teacher import Completion, Request, Teacher, asked_again, open_teacher, user

KEY = "sk-very-secret-0123456789"

Opened = Callable[..., Teacher]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve(lambda body, before: Reply(f"you said {last_user(body)}")) as running:
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


def opened(cache: Path | None = None, name: str = "openai/x", **settings: Any) -> Teacher:
    defaults = {"concurrency": 8, "retries": 2, "timeout_s": 5.0}
    return open_teacher(name, BackendConfig(**{**defaults, **settings}), cache)


def numbered(n: int) -> list[Request]:
    return [Request(user(f"line {i}"), seed=0) for i in range(n)]


def test_answers_come_in_order_whatever_order_they_arrive_in(server: Server) -> None:
    server.script = lambda body, before: Reply(last_user(body), delay_s=0.3 if last_user(body) == "line 0" else 0.0)
    teacher = opened()
    completions = list(teacher.ask(numbered(30)))
    assert [c.text for c in completions] == [f"line {i}" for i in range(30)]
    assert completions[0] == Completion("line 0", "openai/x", "stop", 2, 2, None)
    assert (teacher.name, teacher.digest) == ("openai/x", None)
    assert teacher.usage.calls == 30
    assert (teacher.usage.prompt_tokens, teacher.usage.tokens) == (60, 60)
    assert teacher.usage.cost_usd is None  # the price is unknown, and not told as 0
    assert server.at_once <= 8


def test_a_slow_head_does_not_hold_up_the_rest(server: Server) -> None:
    server.script = lambda body, before: Reply("ok", delay_s=1.0 if last_user(body) == "line 0" else 0.0)
    teacher = opened(concurrency=2)
    next(teacher.ask(numbered(16)))
    assert teacher.usage.calls == 16  # one connection was busy, the other did all the rest meanwhile


def test_requests_are_taken_as_needed(server: Server) -> None:
    taken = []

    def endless() -> Iterator[Request]:
        while True:
            taken.append(None)
            yield Request(user(f"line {len(taken)}"))

    asking = opened(concurrency=2).ask(endless())
    for _ in range(5):
        next(asking)
    asking.close()
    assert len(taken) <= 5 + 8 * 2


def test_a_known_price_becomes_a_cost(server: Server) -> None:
    teacher = opened(name="openai/gpt-4o-mini")
    (completion,) = teacher.ask([Request(user("a b c"))])
    assert completion.cost_usd == pytest.approx(3 * 0.15e-6 + 5 * 0.6e-6)
    assert teacher.usage.cost_usd == completion.cost_usd


def test_sampling_parameters_reach_the_server(server: Server) -> None:
    list(opened().ask([Request(user("x"), temperature=0.7, top_p=0.9, max_tokens=5, seed=3)]))
    (body,) = server.calls
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.7, 0.9, 5, 3)


@pytest.mark.parametrize(
    "trouble",
    [
        Reply("slow down", 429),
        Reply("boom", 500),
        Reply("overloaded", 503),
        Reply(raw=b'{"choices": [{"mess'),
        Reply(raw=b"<html>a proxy</html>"),
        Reply(raw=b"{}"),
        Reply(hang_up=True),
        Reply(delay_s=1.0),
    ],
    ids=["429", "500", "503", "truncated", "html", "no-choices", "hang-up", "hang"],
)
def test_passing_trouble_is_retried(server: Server, trouble: Reply) -> None:
    server.script = lambda body, before: trouble if before == 0 else Reply("fine")
    teacher = opened(timeout_s=0.5)
    (completion,) = teacher.ask(numbered(1))
    assert completion.text == "fine"
    assert (teacher.usage.calls, teacher.usage.retries, teacher.usage.failed) == (1, 1, 0)


def test_retry_after_is_honoured(server: Server) -> None:
    server.script = lambda body, before: Reply("wait", 429, {"Retry-After": "2"}) if before == 0 else Reply("fine")
    start = time.monotonic()
    list(opened().ask(numbered(1)))
    assert time.monotonic() - start >= 2


def test_a_call_that_fails_past_its_retries_is_null_with_a_reason(server: Server, cache: Path) -> None:
    server.script = lambda body, before: Reply("boom", 500) if last_user(body) == "line 1" else Reply("fine")
    teacher = opened(cache, retries=1)
    completions = list(teacher.ask(numbered(3)))
    assert [c.text for c in completions] == ["fine", None, "fine"]
    assert completions[1].error == "the call failed: 500: boom"
    assert teacher.usage.failed == 1
    server.script = lambda body, before: Reply("well again")
    assert [c.text for c in opened(cache).ask(numbered(3))] == ["fine", "well again", "fine"]


def test_a_row_the_server_refuses_is_not_retried(server: Server) -> None:
    server.script = lambda body, before: Reply("context too long", 400)
    (completion,) = opened().ask(numbered(1))
    assert completion.error == "the call failed: 400: context too long"
    assert len(server.calls) == 1


def test_an_empty_answer_is_an_answer(server: Server) -> None:
    server.script = lambda body, before: Reply(None, finish_reason="content_filter")
    (completion,) = opened().ask(numbered(1))
    assert (completion.text, completion.finish_reason, completion.error) == ("", "content_filter", None)


def test_a_dead_server_ends_the_run_and_keeps_what_arrived(server: Server, cache: Path) -> None:
    server.script = lambda body, before: Reply("ok") if int(last_user(body).split()[1]) < 10 else Reply("dead", 503)
    teacher = opened(cache, retries=0)
    with pytest.raises(BackendError, match=r"20 calls in a row failed, the last: the call failed: 503: dead; what had"):
        list(teacher.ask(numbered(500)))
    teacher.close()
    assert len(server.calls) < 60
    server.script = lambda body, before: Reply("ok")
    assert len(list(opened(cache).ask(numbered(40)))) == 40
    assert all(count == 1 for key, count in server.asked.items() if key in server.answered and int(_line(key)) < 10)


def _line(key: str) -> str:
    return json.loads(key)[0][-1]["content"].split()[1]


def test_calls_in_flight_when_a_run_ends_are_kept(server: Server, cache: Path) -> None:
    server.script = lambda body, before: Reply("ok", delay_s=0.0 if last_user(body) == "line 0" else 0.3)
    teacher = opened(cache)
    asking = teacher.ask(numbered(24))
    next(asking)
    asking.close()
    teacher.close()
    resumed = opened(cache)
    list(resumed.ask(numbered(24)))
    assert resumed.usage.cached == len(server.calls) - resumed.usage.calls > 1
    assert set(server.asked.values()) == {1}


def test_what_could_not_be_used_is_asked_anew_on_request(server: Server, cache: Path) -> None:
    well = False

    def moody(body: dict[str, Any], before: int) -> Reply:
        return Reply("Yes" if well or "line 1" not in str(body["messages"]) else "Perhaps")

    def asked_for(**config: Any) -> tuple[list[str | None], int]:
        before = len(server.calls)
        teacher = open_teacher("openai/gpt-4o-mini", BackendConfig(**config), cache)
        requests = [*numbered(4), *numbered(2)]
        texts = [completion.text for completion in teacher.ask(requests, again)]
        teacher.close()
        return texts, len(server.calls) - before

    def again(request: Request, completion: Completion) -> Request | None:
        return None if completion.text == "Yes" else asked_again(request, completion, "Yes or No?")

    server.script = moody
    bad, good = ["Yes", "Perhaps", "Yes", "Yes", "Yes", "Perhaps"], ["Yes"] * 6
    assert asked_for() == (bad, 5)
    assert asked_for() == (bad, 0)
    assert asked_for(retry_unusable=True) == (bad, 2)
    well = True
    assert asked_for() == (bad, 0)
    assert asked_for(retry_unusable=True) == (good, 1)
    assert asked_for(retry_unusable=True) == (good, 0)


LEFT_OPEN = """
from tjd.config import BackendConfig
from tjd.teacher import Request, in_turn, open_teacher, user

left = in_turn([open_teacher("openai/gpt-4o-mini", BackendConfig(), None)])
name, ask = next(left)
print(next(iter(ask([Request(user("line 1"))]))).text)
cycle = [left]
cycle.append(cycle)
"""


def test_a_process_ends_though_nobody_closed_a_teacher(server: Server) -> None:
    server.script = lambda body, before: Reply("ok")
    ended = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stderr


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "set the API key"), (403, "set the API key"), (404, "check the name of the model")],
)
def test_what_no_retry_can_mend_ends_the_run_at_once(server: Server, status: int, told: str) -> None:
    server.script = lambda body, before: Reply(f"refused {KEY}", status)
    with pytest.raises(BackendError, match=told) as caught:
        list(opened().ask(numbered(100)))
    assert len(server.calls) <= 16  # those in flight, and those that took their place before the first was read
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_told_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match=r"there is no API key for gemini/.*; set GEMINI_API_KEY or GOOGLE_API_KEY"):
        opened(name="gemini/gemini-3-pro-preview")
    with pytest.raises(BackendError, match="no API key for openai/x; set OPENAI_API_KEY"):
        opened(name="openai/x")


def test_an_unknown_provider_is_told_before_any_call() -> None:
    with pytest.raises(BackendError, match="'nosuch/x' names no provider that litellm knows; write provider/model"):
        opened(name="nosuch/x")


def test_a_server_of_ones_own_needs_an_address(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.delenv("HOSTED_VLLM_API_BASE", raising=False)
    with pytest.raises(ConfigError, match="set HOSTED_VLLM_API_BASE"):
        opened(name="hosted_vllm/x")
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.url)
    (completion,) = opened(name="hosted_vllm/x").ask(numbered(1))
    assert (completion.text, completion.cost_usd) == ("you said line 0", None)


def test_nothing_that_arrived_is_asked_again(server: Server, cache: Path) -> None:
    first = list(opened(cache).ask(numbered(5)))
    teacher = opened(cache)
    assert list(teacher.ask(numbered(8)))[:5] == first
    assert (teacher.usage.cached, teacher.usage.calls) == (5, 3)
    assert set(server.asked.values()) == {1}


def test_equal_requests_are_asked_once(server: Server) -> None:
    teacher = opened()
    completions = list(teacher.ask([Request(user("same"))] * 20))
    assert len(set(completions)) == 1
    assert len(server.calls) == 1
    assert (teacher.usage.calls, teacher.usage.cached) == (1, 19)


def test_a_follow_up_is_asked_once_and_adds_its_cost(server: Server) -> None:
    def again(request: Request, completion: Completion) -> Request:
        return asked_again(request, completion, "once more")

    server.script = lambda body, before: Reply(f"{len(body['messages'])} messages")
    (completion,) = opened(name="openai/gpt-4o-mini").ask([Request(user("a b"))], again)
    assert completion.text == "3 messages"
    assert (completion.n_prompt_tokens, completion.n_tokens) == (2 + 6, 4)
    assert completion.cost_usd == pytest.approx(8 * 0.15e-6 + 4 * 0.6e-6)
    assert [m["role"] for m in server.calls[1]["messages"]] == ["user", "assistant", "user"]


def test_the_first_answer_stands_where_the_follow_up_fails(server: Server) -> None:
    server.script = lambda body, before: Reply("hm") if len(body["messages"]) == 1 else Reply("boom", 500)
    (completion,) = opened(retries=0).ask(numbered(1), lambda request, c: asked_again(request, c, "once more"))
    assert (completion.text, completion.error) == ("hm", None)


def test_half_a_surrogate_pair_is_replaced(server: Server) -> None:
    choice = b'{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"a \\ud83d b"}}'
    body = b'{"id":"1","object":"chat.completion","created":1,"model":"x","choices":[' + choice + b"]}"
    server.script = lambda _, before: Reply(raw=body)
    (completion,) = opened().ask(numbered(1))
    assert completion.text == "a ? b"


def test_a_run_that_is_broken_off_can_be_taken_up(server: Server, cache: Path) -> None:
    teacher = opened(cache)
    asking = teacher.ask(numbered(60))
    next(asking)
    asking.close()
    assert [c.text for c in teacher.ask(numbered(60))] == [f"you said line {i}" for i in range(60)]
    assert set(server.asked.values()) == {1}


def test_a_teacher_that_is_closed_on_the_loops_own_thread_does_not_wait_for_itself(server: Server) -> None:
    from tjd.teacher.remote import _event_loop

    teacher, closed = opened(), threading.Event()
    list(teacher.ask(numbered(1)))

    def close() -> None:  # as the collection of garbage does
        teacher.close()
        closed.set()

    _event_loop().call_soon_threadsafe(close)
    assert closed.wait(20)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tjd.teacher; print(*{'torch', 'transformers', 'litellm', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_error_leaves_a_clean_standard_error(server: Server) -> None:
    server.script = lambda body, before: Reply("dead", 503)
    code = """
from tjd.config import BackendConfig
from tjd.errors import BackendError
from tjd.teacher import Request, open_teacher, user
teacher = open_teacher("openai/x", BackendConfig(concurrency=8, retries=0), None)
try:
    list(teacher.ask(Request(user(str(i))) for i in range(200)))
except BackendError:
    print("caught")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught\n", "")


def test_the_cache_tells_servers_and_tags_apart(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_for(**settings: Any) -> tuple[str | None, int]:
        teacher = opened(cache, **settings)
        [completion] = teacher.ask(numbered(1))
        teacher.close()
        return completion.text, teacher.usage.cached

    assert asked_for() == ("you said line 0", 0)
    assert asked_for() == ("you said line 0", 1)
    assert asked_for(cache_tag="june") == ("you said line 0", 0)
    assert asked_for(cache_tag="june") == ("you said line 0", 1)
    with serve(lambda body, before: Reply("another model")) as other:
        monkeypatch.setenv("OPENAI_API_BASE", other.url)
        assert asked_for() == ("another model", 0)
    monkeypatch.setenv("OPENAI_API_BASE", f"{server.url}/")
    assert asked_for() == ("you said line 0", 1)


def test_without_an_address_keys_are_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tjd.teacher import Usage
    from tjd.teacher.cache import Ledger

    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teacher: Any = opened(tmp_path)
    [request] = numbered(1)
    assert teacher._ledger.key(request) == Ledger("openai/x", "openai/x", tmp_path, Usage()).key(request)
