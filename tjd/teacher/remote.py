"""Ask a model behind an API: concurrent, paced (`pace.py`), retried, cached, in order.

Calls go through litellm, or where a server is known to speak OpenAI's protocol straight to it (`direct.py`). Keys and
addresses come from the environment variables that litellm reads (`GEMINI_API_KEY`, `OPENAI_API_BASE`,
`HOSTED_VLLM_API_BASE`, ...).
"""

import asyncio
import logging
import math
import os
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tjd.config import BackendConfig
from tjd.errors import BackendError, BudgetError, ConfigError
from tjd.redaction import redacted, without_secrets
from tjd.teacher import Again, Completion, Request, Usage, follow_up, merged
from tjd.teacher.budget import FREE, Budget, given_price, listed_price, most_prompt_tokens
from tjd.teacher.cache import Ledger
from tjd.teacher.direct import Direct, serves
from tjd.teacher.logprobs import TOP, of_choice
from tjd.teacher.pace import LONGEST_ASKED_S, NOTHING, Ending, Gate, Halted, Pace, Told, told_by

LOOK_AHEAD = 8  # requests begun per call that may be in flight, so that a slow one does not hold up those behind it
FAILURES_IN_A_ROW = 20  # with no success in between: the server is down, not the row bad
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0  # doubles with each attempt
SLOW = 1 / 3  # of the time limit: what takes longer waits in a queue of the server's, and more calls would not help
BYTES_PER_TOKEN = 3  # of a prompt, few on purpose: `--tpm` counts what it says until the true number is known
HANDING_ON_S = 1.0  # for answers that arrived before a cap was reached; an attempt that pauses is not waited for
LAST_CALLS_S = 5.0  # for calls in flight when a run is broken off

ENDINGS: dict[int | None, Ending] = {429: "limited", 529: "limited", 503: "overloaded"}

logger = logging.getLogger(__name__)


Halt = Future[None]
"""Done when a run of `ask` is over; holds the error that ended it, whichever request met it."""


class Remote:
    """A model behind an API."""

    digest = None

    def __init__(self, name: str, config: BackendConfig, folder: Path | None, budget: Budget) -> None:
        """Check the provider and that its key is set; calls nothing.

        Raises:
            BackendError: Unknown provider, or no key.
            ConfigError: The budget has a cap, and what a call can cost is not known.
        """
        self.name = name
        self._config = config
        self._litellm = _litellm()
        provider = _require_reachable(self._litellm, name)
        base = _api_base(provider)
        self._takes_schema = _takes_schema(self._litellm, name, provider)
        self._given = given_price(config, name)
        self.price = self._given or listed_price(_entry(self._litellm, name))
        self._budget = budget
        self._send = self._litellm.acompletion
        if base and serves(self._litellm, name, provider, base):
            self._send = Direct(self._litellm, name, provider, base)
        self.usage = Usage()
        self._ledger = Ledger(name, f"{name}@{base}" if base else name, folder, self.usage, config.cache_tag)
        if budget.cap_usd is not None:
            _require_bounded(self._litellm, name, is_priced=self.price is not None)
        self._gate = Gate(Pace(config.concurrency, config.rpm, config.tpm, SLOW * (config.timeout_s or math.inf)))
        self._in_flight: dict[bytes, asyncio.Task[Completion]] = {}
        self._halts: set[Halt] = set()  # of the runs of `ask` that are not over
        self._failures = 0  # in a row
        self._jitter = random.Random()

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Ask with as many calls in flight as the server takes, at most `concurrency`; see `Ask`.

        Raises:
            BackendError: The key is refused, there is no such model, or calls fail one after the other.
        """
        window: deque[Future[Completion]] = deque()
        halt: Halt = Future()
        self._halts.add(halt)
        loop = _event_loop()
        size = LOOK_AHEAD * self._config.concurrency
        self._failures = 0
        try:
            for request in requests:
                window.append(asyncio.run_coroutine_threadsafe(self._answer(request, again, halt), loop))
                while window and (window[0].done() or len(window) == size):
                    yield _outcome(window.popleft(), halt)
            while window:
                yield _outcome(window.popleft(), halt)
        finally:  # calls in flight may still arrive and be kept; no other is begun
            self._halts.discard(halt)
            if not halt.done():
                halt.set_result(None)
            loop.call_soon_threadsafe(self._gate.admit)  # those that wait need not any more

    def find(self, request: Request) -> Completion | None:
        """See `Teacher.find`; where its price was unknown, what it costs by the price that is given now."""
        found = self._ledger.find(request)
        if found is None or found.cost_usd is not None:
            return found
        return replace(found, cost_usd=self._cost_usd(None, found.n_prompt_tokens, found.n_tokens))

    def close(self) -> None:
        """Give the calls in flight a moment to arrive, since they are paid for; then close the cache."""
        if (
            sys.is_finalizing()
        ):  # a generator that nobody closed ends with the process: the loop's thread is gone already
            return
        loop = _event_loop()
        closed = asyncio.run_coroutine_threadsafe(self._close(), loop)
        # a generator that an error left open is closed by whoever collects garbage, the loop's thread at times
        if asyncio._get_running_loop() is not loop:
            closed.result()

    async def _close(self) -> None:
        for halt in list(self._halts):  # an error elsewhere left these runs where they were: they begin no other call
            if not halt.done():
                halt.set_result(None)
        self._gate.admit()
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=LAST_CALLS_S)
        self._ledger.close()

    async def _answer(self, request: Request, again: Again | None, halt: Halt) -> Completion:
        try:
            if self._config.retry_unusable:
                self._ledger.forget_unusable(request, again)
            first = await self._complete(request, halt)
            second = follow_up(request, first, again)
            return first if second is None else merged(first, await self._complete(second, halt))
        except BackendError as exc:
            if not halt.done():
                halt.set_exception(exc)
            raise

    async def _complete(self, request: Request, halt: Halt) -> Completion:
        key = self._ledger.key(request)
        while key in self._in_flight:  # an equal request is being asked already
            with suppress(Halted):
                shared = await asyncio.shield(self._in_flight[key])
                self.usage.cached += 1
                return shared
        if found := self.find(request):
            return found
        self._in_flight[key] = asyncio.ensure_future(self._call(request, halt))
        return await self._in_flight[key]

    async def _call(self, request: Request, halt: Halt) -> Completion:
        try:
            completion = await self._attempts(request, halt)
            self._ledger.enter([(request, completion)])
        finally:
            del self._in_flight[self._ledger.key(request)]
        self._failures = 0 if completion.text is not None else self._failures + 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise BackendError(
                f"{self.name}: {FAILURES_IN_A_ROW} calls in a row failed, the last: {completion.error}; "
                "what had arrived is kept, so run the same command again when the server is well"
            )
        return completion

    async def _attempts(self, request: Request, halt: Halt) -> Completion:
        trouble = Trouble("was never called", retry=False)
        for attempt in range(self._config.retries + 1):
            if attempt:
                self.usage.retries += 1
                await asyncio.sleep(self._pause_s(attempt, trouble))
            outcome = await self._attempt(request, halt, first=attempt > 0)
            if isinstance(outcome, Completion):
                return outcome
            trouble = outcome
            logger.debug("%s: attempt %d: %s", self.name, attempt + 1, trouble.what)
            if trouble.fatal:
                raise BackendError(f"{self.name}: {trouble.what}; {trouble.fatal}")
            if not trouble.retry:
                break
        return Completion(None, self.name, error=f"the call failed: {trouble.what}")

    async def _attempt(self, request: Request, halt: Halt, *, first: bool) -> "Completion | Trouble":
        price = self.price or FREE
        most_usd, prompt_usd = price.most_usd(request), price.most_prompt_usd(request)
        async with self._budget.attempt(most_usd, prompt_usd, self.name) as bill:
            bill.usd = 0.0  # until it is sent
            call = await self._gate.enter(_likely_tokens(request), halt.done, first=first)
            ending: Ending = "failed"
            told, n_tokens, bill.usd = NOTHING, None, None
            try:
                async with asyncio.timeout(self._config.timeout_s or None):
                    reply = await self._send(**self._arguments(request))
                ending, told = "answered", told_by(_headers(reply))
                completion = self._completion(reply)
                n_tokens = (completion.n_prompt_tokens or 0) + (completion.n_tokens or 0) or None
                bill.usd, bill.answered = completion.cost_usd, True
                bill.prompt_growth = (completion.n_prompt_tokens or 0) / most_prompt_tokens(request)
                return completion
            except Exception as exc:  # the one place where a client's errors, and its servers' garbage, are mapped
                trouble = understood(exc)
                ending, told = trouble.ending, trouble.told
                bill.usd = 0.0 if trouble.refused or trouble.fatal else None
                return trouble
            finally:
                self._gate.leave(call, ending, told, n_tokens)

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "timeout": self._config.timeout_s or None,
            "drop_params": True,  # not every provider takes a seed
            "num_retries": 0,
            "max_retries": 0,
        }
        if request.top_p < 1:
            arguments["top_p"] = request.top_p  # some providers refuse it beside a temperature
        if request.schema and self._takes_schema:
            shape = {"name": "answer", "strict": True, "schema": request.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": shape}
        if request.logprobs:
            arguments |= {"logprobs": True, "top_logprobs": TOP}
        return arguments

    def _completion(self, reply: Any) -> Completion:
        choice, usage = reply.choices[0], getattr(reply, "usage", None)
        text = without_secrets(choice.message.content or "")
        n_prompt_tokens = (
            getattr(usage, "prompt_tokens", None) or None
        )  # litellm writes 0 where the server says nothing
        n_tokens = getattr(usage, "completion_tokens", None) if n_prompt_tokens else None
        return Completion(
            text.encode("utf-8", "replace").decode(),  # half a surrogate pair would break every table
            self.name,
            choice.finish_reason,
            n_prompt_tokens,
            n_tokens,
            self._cost_usd(reply, n_prompt_tokens, n_tokens),
            logprobs=of_choice(choice),
        )

    def _cost_usd(self, reply: Any, n_prompt_tokens: int | None, n_tokens: int | None) -> float | None:
        if self.price is None or n_prompt_tokens is None or n_tokens is None:
            return None
        if self._given or reply is None:
            return self.price.usd(n_prompt_tokens, n_tokens)
        return self._litellm.completion_cost(completion_response=reply, model=self.name)  # knows discounts, too

    def _pause_s(self, attempt: int, trouble: "Trouble") -> float:
        backoff = min(BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S) * self._jitter.uniform(0.5, 1.5)
        return max(backoff, min(trouble.told.retry_after_s, LONGEST_ASKED_S))


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong with one attempt, and what to do about it."""

    what: str  # one line, without keys
    retry: bool
    ending: Ending = "failed"  # what it says about the pace
    told: Told = NOTHING  # by its headers
    fatal: str | None = None  # why no other call can succeed either: what the user has to do
    refused: bool = False  # by the server, so that nothing is billed; what is fatal never is


def understood(exc: Exception) -> Trouble:
    """Sort an error of a client, or of reading its reply, into fatal, worth a retry, or this row's own."""
    status = getattr(exc, "status_code", None)
    said = one_line(exc)
    what = f"{status or type(exc).__name__}: {said}"
    if status in (401, 403) or re.search(r"missing (credentials|.{0,20}api key)", said, re.IGNORECASE):
        return Trouble(
            what, retry=False, fatal="set the API key of this provider in the environment, or check its rights"
        )
    if status == 404 or "LLM Provider NOT provided" in said:
        return Trouble(what, retry=False, fatal="check the name of the model and the address of the server")
    if "No module named" in said:
        return Trouble(what, retry=False, fatal="install what this provider needs")
    if isinstance(exc, TimeoutError):
        return Trouble("no answer in time (--timeout-s)", retry=True)
    garbage = status is None  # a reply that could not be read, or a connection that broke
    refused = not garbage and 400 <= status < 500 and status != 408  # 408 is litellm's word for a time-out
    retry = garbage or may_pass(status)
    ending = ENDINGS.get(status, "failed")
    return Trouble(what, retry=retry, ending=ending, told=told_by(_headers(exc)), refused=refused)


def may_pass(status: int) -> bool:
    """Whether a call that got this HTTP status may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def _headers(reply: Any) -> dict[str, str]:
    """Those of a reply, or of the error that it was turned into."""
    headers = getattr(reply, "_response_headers", None) or {}
    response = getattr(reply, "response", None)
    for more in (getattr(reply, "litellm_response_headers", None), getattr(response, "headers", None)):
        headers = {**headers, **(more or {})}
    return headers


def _likely_tokens(request: Request) -> float:
    """The most that a request is likely to use."""
    n_bytes = sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages)
    return n_bytes / BYTES_PER_TOKEN + request.max_tokens


def one_line(told: object) -> str:
    """What a server or its client told, short and without keys: rows, logs and errors show it."""
    said = " ".join(str(told).split()) or "no message"
    said = re.sub(r"^((litellm\.)?\w+(Error|Exception):? (- )?)+", "", said)
    return redacted(said)[:200]


def _outcome(pending: Future[Completion], halt: Halt) -> Completion:
    either: list[Future[Any]] = [pending, halt]
    wait(either, return_when=FIRST_COMPLETED)
    if halt.done() and isinstance(halt.exception(), BudgetError):
        wait([pending], HANDING_ON_S)  # at a cap everything that was sent has arrived, and may be on its way to here
    if halt.done() and (not pending.done() or pending.exception()):
        halt.result()
    return pending.result()


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for the process, in a thread of its own: litellm keeps connections per loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="teacher", daemon=True).start()
    return loop


@cache
def _litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import fetches prices from the network
    import litellm

    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


def _entry(litellm: Any, name: str) -> dict[str, Any]:
    """What litellm knows of a model; empty if nothing."""
    try:
        return dict(litellm.get_model_info(name))
    except Exception:  # litellm raises a bare Exception for a model that it does not know
        return {}


def _require_bounded(litellm: Any, name: str, *, is_priced: bool) -> None:
    """Raise unless the most that a call can cost is known."""
    if not is_priced:
        raise ConfigError(
            f"--max-cost needs the price of {name}, which is not known; give it with --price-in and --price-out, in dollars "
            "per million tokens (0 for a server of your own)"
        )
    taken = litellm.get_supported_openai_params(name)
    if taken is not None and not {"max_tokens", "max_completion_tokens"} & set(taken):
        raise ConfigError(f"--max-cost cannot hold for {name}: its provider takes no limit on the tokens of an answer")


def _api_base(provider: str) -> str | None:
    """The address that the environment gives a provider's servers, since two may serve different models of one name."""
    names = (f"{provider.upper()}_BASE_URL", f"{provider.upper()}_API_BASE")
    return next((os.environ[name].rstrip("/") for name in names if os.environ.get(name)), None)


def _takes_schema(litellm: Any, name: str, provider: str) -> bool:
    """Whether a JSON schema is sent along: where litellm lists the model so, and to an unlisted one of OpenAI's protocol.

    Models of one's own are unlisted, and the servers that run them (vLLM, SGLang, llama.cpp, ...) take schemas.
    """
    if litellm.supports_response_schema(name):
        return True
    if provider not in ("openai", "hosted_vllm"):
        return False
    try:
        litellm.get_model_info(name)
    except Exception:  # litellm raises a bare Exception for a model that it does not list
        return True
    return False


def _require_reachable(litellm: Any, name: str) -> str:
    """The provider, if there is a key for it, or none is needed."""
    try:
        provider = litellm.get_llm_provider(name)[1]
    except Exception as exc:  # litellm's BadRequestError
        raise BackendError(
            f"'{name}' names no provider that litellm knows; write provider/model, hf:NAME or recorded:FILE"
        ) from exc
    if provider == "hosted_vllm" and "HOSTED_VLLM_API_BASE" not in os.environ:
        raise ConfigError(f"{name} needs the address of its server; set HOSTED_VLLM_API_BASE")
    missing = litellm.validate_environment(name)["missing_keys"]
    # other credentials (a cloud's own) can come from elsewhere; the first call will tell
    if missing and all(key.endswith("_API_KEY") for key in missing):
        raise BackendError(f"there is no API key for {name}; set {' or '.join(sorted(missing))}")
    return provider
