"""Ask a model behind an API, through litellm: concurrent, retried, cached, in order.

Keys and addresses come from the environment variables that litellm reads (`GEMINI_API_KEY`, `OPENAI_API_BASE`,
`HOSTED_VLLM_API_BASE`, ...).
"""

import asyncio
import logging
import os
import random
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tjd.config import BackendConfig
from tjd.errors import BackendError, ConfigError
from tjd.redaction import redacted, without_secrets
from tjd.teacher import Again, Completion, Request, Usage, follow_up, merged
from tjd.teacher.cache import Ledger

LOOK_AHEAD = 8  # requests begun per call in flight, so that a slow one does not hold up those behind it
FAILURES_IN_A_ROW = 20  # with no success in between: the server is down, not the row bad
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0  # doubles with each attempt
LONGEST_RETRY_AFTER_S = 300.0  # what a server may ask for
LAST_CALLS_S = 5.0  # for calls in flight when a run is broken off

logger = logging.getLogger(__name__)


Halt = Future[None]
"""Done when a run of `ask` is over; holds the error that ended it, whichever request met it."""


class Halted(Exception):
    """A request that nobody waits for any more."""


class Remote:
    """A model behind an API."""

    digest = None

    def __init__(self, name: str, config: BackendConfig, folder: Path | None) -> None:
        """Check the provider and that its key is set; calls nothing.

        Raises:
            BackendError: Unknown provider, or no key.
        """
        self.name = name
        self._config = config
        self._litellm = _litellm()
        base = _api_base(_require_reachable(self._litellm, name))
        self.usage = Usage()
        self._ledger = Ledger(name, f"{name}@{base}" if base else name, folder, self.usage, config.cache_tag)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._in_flight: dict[bytes, asyncio.Task[Completion]] = {}
        self._failures = 0  # in a row
        self._jitter = random.Random()

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Ask with `concurrency` calls in flight; see `Ask`.

        Raises:
            BackendError: The key is refused, there is no such model, or calls fail one after the other.
        """
        window: deque[Future[Completion]] = deque()
        halt: Halt = Future()
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
            if not halt.done():
                halt.set_result(None)

    def close(self) -> None:
        """Give the calls in flight a moment to arrive, since they are paid for; then close the cache."""
        asyncio.run_coroutine_threadsafe(self._close(), _event_loop()).result()

    async def _close(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=LAST_CALLS_S)
        self._ledger.close()

    async def _answer(self, request: Request, again: Again | None, halt: Halt) -> Completion:
        try:
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
        if found := self._ledger.find(request):
            return found
        self._in_flight[key] = asyncio.ensure_future(self._call(request, halt))
        return await self._in_flight[key]

    async def _call(self, request: Request, halt: Halt) -> Completion:
        try:
            async with self._slots:
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
            if halt.done():
                raise Halted
            try:
                async with asyncio.timeout(self._config.timeout_s or None):
                    return self._completion(await self._litellm.acompletion(**self._arguments(request)))
            except Exception as exc:  # the one place where litellm's errors, and its servers' garbage, are mapped
                trouble = understood(exc)
            logger.debug("%s: attempt %d: %s", self.name, attempt + 1, trouble.what)
            if trouble.fatal:
                raise BackendError(f"{self.name}: {trouble.what}; {trouble.fatal}")
            if not trouble.retry:
                break
        return Completion(None, self.name, error=f"the call failed: {trouble.what}")

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
        return arguments

    def _completion(self, reply: Any) -> Completion:
        choice, usage = reply.choices[0], getattr(reply, "usage", None)
        text = without_secrets(choice.message.content or "")
        return Completion(
            text.encode("utf-8", "replace").decode(),  # half a surrogate pair would break every table
            self.name,
            choice.finish_reason,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
            self._cost_usd(reply),
        )

    def _cost_usd(self, reply: Any) -> float | None:
        try:
            prices = self._litellm.get_model_info(self.name)
        except Exception:  # litellm raises a bare Exception for a model that it has no price for
            return None
        if not (prices.get("input_cost_per_token") or prices.get("output_cost_per_token")):
            return None
        return self._litellm.completion_cost(completion_response=reply, model=self.name)

    def _pause_s(self, attempt: int, trouble: "Trouble") -> float:
        backoff = min(BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S) * self._jitter.uniform(0.5, 1.5)
        return max(backoff, min(trouble.retry_after_s, LONGEST_RETRY_AFTER_S))


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong with one attempt, and what to do about it."""

    what: str  # one line, without keys
    retry: bool
    retry_after_s: float = 0.0  # what the server asked for
    fatal: str | None = None  # why no other call can succeed either: what the user has to do


def understood(exc: Exception) -> Trouble:
    """Sort an error of litellm, or of reading its reply, into fatal, worth a retry, or this row's own."""
    status = getattr(exc, "status_code", None)
    said = _one_line(exc)
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
    retry = garbage or status in (408, 409, 425, 429) or status >= 500
    return Trouble(what, retry=retry, retry_after_s=_retry_after_s(exc))


def _retry_after_s(exc: Exception) -> float:
    headers = getattr(getattr(exc, "response", None), "headers", None) or {}
    more = getattr(exc, "litellm_response_headers", None) or {}
    value = headers.get("retry-after") or more.get("retry-after") or more.get("llm_provider-retry-after") or "0"
    try:
        return max(float(value), 0.0)
    except ValueError:  # a date; the backoff will do
        return 0.0


def _one_line(exc: Exception) -> str:
    said = " ".join(str(exc).split()) or "no message"
    said = re.sub(r"^((litellm\.)?\w+(Error|Exception):? (- )?)+", "", said)
    return redacted(said)[:200]


def _outcome(pending: Future[Completion], halt: Halt) -> Completion:
    either: list[Future[Any]] = [pending, halt]
    wait(either, return_when=FIRST_COMPLETED)
    if halt.done():
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


def _api_base(provider: str) -> str | None:
    """The address that the environment gives a provider's servers, since two may serve different models of one name."""
    names = (f"{provider.upper()}_BASE_URL", f"{provider.upper()}_API_BASE")
    return next((os.environ[name].rstrip("/") for name in names if os.environ.get(name)), None)


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
