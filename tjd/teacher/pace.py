"""Pace the calls of one model: as many in flight as its provider takes, and no more.

In: how calls ended, and what the headers of their replies say. Out: when the next call may begin.

The number in flight follows AIMD with a slow start. It grows by one per answer until refusals (429, 503, 529) are more
than stray, then by one per ANSWERS_PER_SLOT answers. A refused call takes its slot away, so that a burst of refusals
leaves as many slots as the provider filled; of those in flight at one time at most half go. Where growth and refusals
balance, one call in ANSWERS_PER_SLOT is refused and the others use every slot: halving at each would starve a run.

A refusal pauses all calls for as long as it asks, and where refusals are more than stray but name no time, for longer
each time. A pause ends early only where refusals are stray and a call that began after the refused one was answered.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

START = 64  # calls in flight at first
ANSWERS_PER_SLOT = 20
STRAY = 0.1  # up to this share of calls, refusals may be meant for some and not for all
MEMORY = 50  # calls that the share looks back on, or as many as there are slots
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # of all calls, where a limit names no time; doubles with each refusal
SHRINK = 0.9  # that pause, per answer: it is stable at one refusal in 7 calls
LONGEST_ASKED_S = 300.0  # what a server may ask for
MINUTE_S = 60.0

Ending = Literal["answered", "limited", "overloaded", "failed"]
"""How a call ended: with an answer; refused since a limit is reached, or since the server cannot take it now; else."""


class Halted(Exception):
    """A call that nobody waits for any more."""


@dataclass(slots=True)
class Claim:
    """An amount taken at some time."""

    at: float
    amount: float


class Window:
    """At most `limit` within any MINUTE_S; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit or math.inf
        self._claims: deque[Claim] = deque()
        self._total = 0.0

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until there is room; what is larger than the limit has room where there is nothing else."""
        while self._claims and self._claims[0].at + MINUTE_S <= now:
            past = self._claims.popleft()
            self._total -= past.amount
            past.at = -math.inf
        excess, wait_s = self._total + amount - self._limit, 0.0
        for claim in self._claims:
            if excess <= 0:
                break
            excess -= claim.amount
            wait_s = claim.at + MINUTE_S - now
        return wait_s

    def claim(self, amount: float, now: float) -> Claim:
        """Take room."""
        claim = Claim(now, amount)
        if self._limit < math.inf:
            self._claims.append(claim)
            self._total += amount
        return claim

    def correct(self, claim: Claim, amount: float) -> None:
        """Say what was used in truth."""
        if claim.at > -math.inf:
            self._total += amount - claim.amount
            claim.amount = amount


@dataclass(slots=True)
class Call:
    """A call in flight."""

    number: int  # how many had begun, with this one
    tokens_begun: float  # and their tokens
    began_at: float
    tokens: Claim


@dataclass(frozen=True, slots=True)
class Told:
    """What the headers of a reply say."""

    retry_after_s: float = 0.0
    requests: tuple[int, float] | None = None  # how many are left, and the seconds until there are more
    tokens: tuple[int, float] | None = None


NOTHING = Told()


class Pace:
    """When calls of one model may begin."""

    def __init__(
        self,
        ceiling: int,
        rpm: int = 0,
        tpm: int = 0,
        slow_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is in flight yet.

        Args:
            ceiling: Most calls in flight.
            rpm: Most calls within any minute; 0 is no limit.
            tpm: Most tokens within any minute, those of calls in flight as estimated; 0 is no limit.
            slow_s: An answer that took longer does not let more calls in: a small server queues them, and refuses none.
            clock: Seconds that never go back.
        """
        self._clock, self._ceiling, self._slow_s = clock, ceiling, slow_s
        self._slots = float(min(START, ceiling))
        self._fast_below = math.inf  # so many slots grow by one per answer
        self._least = 1.0  # slots that the refusals of one burst leave
        self._share, self._taken = 0.0, True  # of late: share of calls refused, and whether any was not
        self._in_flight, self._begun, self._tokens_begun = 0, 0, 0.0
        self._requests, self._tokens = Window(rpm), Window(tpm)
        self._requests_left, self._tokens_left = (math.inf, 0.0), (math.inf, 0.0)  # of `begun`, and until when
        self._pause_s, self._paused_until = SHORTEST_PAUSE_S, -math.inf
        self._burst_from = self._burst_to = 0  # the call whose refusal began a burst, and the last in flight by then

    @property
    def slots(self) -> int:
        """Calls that may be in flight."""
        return int(self._slots)

    def wait_s(self, n_tokens: float) -> float:
        """Seconds until a call of so many tokens may begin, as far as is known; infinite until one in flight ends."""
        now = self._clock()
        if self._in_flight >= self.slots:
            return math.inf
        waits = [self._paused_until - now, self._requests.wait_s(1, now), self._tokens.wait_s(n_tokens, now)]
        for begun, (left, until) in (
            (self._begun + 1, self._requests_left),
            (self._tokens_begun + n_tokens, self._tokens_left),
        ):
            if begun > left:
                waits.append(until - now)
        return max(0.0, *waits)

    def begin(self, n_tokens: float) -> Call:
        """Count a call in; `wait_s` was 0."""
        now = self._clock()
        self._in_flight += 1
        self._begun += 1
        self._tokens_begun += n_tokens
        self._requests.claim(1, now)
        return Call(self._begun, self._tokens_begun, now, self._tokens.claim(n_tokens, now))

    def end(self, call: Call, ending: Ending, told: Told, n_tokens: int | None = None) -> None:
        """Count a call out.

        Args:
            call: What `begin` gave.
            ending: `failed` says nothing about the pace: a broken connection, a time-out, an error of the server's.
            told: By the headers of the reply.
            n_tokens: Those of the prompt and the completion, where known.
        """
        now = self._clock()
        if n_tokens is not None:
            self._tokens.correct(call.tokens, n_tokens)
        # the server counted what had begun when it met this call; what began since comes off what is left
        if told.requests is not None:
            left, for_s = told.requests
            self._requests_left = (call.number + left, now + for_s)
        if told.tokens is not None:
            left, for_s = told.tokens
            self._tokens_left = (call.tokens_begun + left, now + for_s)
        if ending == "answered":
            self._answered(call, now)
        elif ending != "failed":
            self._tokens.correct(call.tokens, 0)
            self._refused(call, told, now, limited=ending == "limited")
        self._in_flight -= 1

    def _answered(self, call: Call, now: float) -> None:
        if 2 * self._in_flight >= self.slots and now - call.began_at <= self._slow_s:  # else more would change nothing
            grown = self._slots + (1 if self._slots < self._fast_below else 1 / ANSWERS_PER_SLOT)
            self._slots = min(grown, self._ceiling)
        self._taken = True
        self._share -= self._share / max(MEMORY, self._slots)
        self._pause_s = max(self._pause_s * SHRINK, SHORTEST_PAUSE_S)
        if self._share <= STRAY and call.number > self._burst_from:  # taken though it began later: not all are refused
            self._paused_until = -math.inf

    def _refused(self, call: Call, told: Told, now: float, *, limited: bool) -> None:
        self._share += (1 - self._share) / max(MEMORY, self._slots)
        pause_s = min(told.retry_after_s, LONGEST_ASKED_S)
        if call.number > self._burst_to:  # else it was in flight at the last refusal, and shares its cause
            self._burst_from, self._burst_to = call.number, self._begun
            self._least = max(self._slots / 2, 1.0)
            if (
                limited and self._share > STRAY
            ):  # a server that is down is better found out soon: each call has pauses of its own
                pause_s = max(pause_s, self._pause_s)
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._share > STRAY and self._taken:  # if none was taken since the last, the provider is down, not smaller
            self._fast_below, self._taken = self._slots / 2, False
        self._slots = max(self._slots - 1, self._least)
        self._paused_until = max(self._paused_until, now + pause_s)


class Gate:
    """Lets calls begin as `Pace` allows, in the order they came; used within one event loop."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._waiting: deque[tuple[float, asyncio.Future[Call], Callable[[], bool]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, n_tokens: float, unwanted: Callable[[], bool], *, first: bool = False) -> Call:
        """Wait until a call may begin.

        Args:
            n_tokens: What it may use.
            unwanted: Whether nobody waits for it any more.
            first: Before those that wait: for a second attempt, since results are given in order.

        Raises:
            Halted: It was not wanted any more when its turn came.
        """
        turn: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)((n_tokens, turn, unwanted))
        self.admit()
        return await turn

    def leave(self, call: Call, ending: Ending, told: Told, n_tokens: int | None = None) -> None:
        """Say how a call ended; see `Pace.end`."""
        self._pace.end(call, ending, told, n_tokens)
        self.admit()

    def admit(self) -> None:
        """Let those begin that may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            n_tokens, turn, unwanted = self._waiting[0]
            if unwanted():
                turn.set_exception(Halted())
            elif wait_s := self._pace.wait_s(n_tokens):
                if wait_s < math.inf:
                    self._timer = turn.get_loop().call_later(wait_s, self.admit)
                return
            else:
                turn.set_result(self._pace.begin(n_tokens))
            self._waiting.popleft()


def told_by(headers: Mapping[str, str]) -> Told:
    """Read the headers of a reply, in the spellings of OpenAI and Anthropic, with or without litellm's prefix."""
    plain = {name.lower().removeprefix("llm_provider-"): value for name, value in headers.items()}
    milliseconds = _number(plain.get("retry-after-ms"))
    retry_after_s = _seconds(plain.get("retry-after")) if milliseconds is None else milliseconds / 1000
    return Told(max(retry_after_s or 0.0, 0.0), _left(plain, "requests"), _left(plain, "tokens"))


def _left(headers: Mapping[str, str], kind: str) -> tuple[int, float] | None:
    for remaining, reset in (
        (f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}"),
        (f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset"),
    ):
        left, for_s = _number(headers.get(remaining)), _seconds(headers.get(reset))
        if left is not None and for_s is not None:
            return max(int(left), 0), min(max(for_s, 0.0), LONGEST_ASKED_S)
    return None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")


def _seconds(value: str | None) -> float | None:
    """Seconds from now: `20`, `1m30.5s`, a date of HTTP, or one of RFC 3339."""
    number = _number(value)
    if value is None or number is not None:
        return number
    if _DURATION.fullmatch(value):
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([\d.]+)(ms|[dhms])", value))
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, OverflowError):
            moment = read(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
    return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
