"""What a run may spend: prices, the most that a call can cost, and a cap that no call is sent past.

An attempt reserves the most it can cost before it is sent, and is billed once it is over: what it came to; nothing
where the server refused it; all it reserved where nobody can tell (a time-out, a broken connection, a reply without
usage), since the provider may count it. An attempt that does not fit beside those in flight waits for them, as they
mostly come to less. When it does not fit beside nothing, the run is over, and everything that was sent has arrived.

The bound rests on two facts: no tokenizer in use makes more tokens of a text than its UTF-8 has bytes, and providers
stop at `max_tokens`. Where a prompt or a bill still passes its bound (a server with a system prompt of its own), all
bounds grow by as much; until a model has answered once, few of its calls are sent, since their bills can pass the cap.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tjd.config import BackendConfig, priced
from tjd.errors import BudgetError, ConfigError
from tjd.teacher import Request

MILLION = 1_000_000
CONVERSATION_TOKENS, MESSAGE_TOKENS = 128, 16  # of a chat template, at most
BYTES_PER_TOKEN = 4  # of English text, about
LONG_TOKENS = 100_000  # no provider asks more per token for shorter prompts
FIRST_CALLS = 4  # in flight under a cap, until a model has answered
LONG_ANSWER = (
    ", most of it for an answer as long as it may be (a smaller --max-tokens, where the command takes it, lets more calls "
    "through, but asks anew what arrived)"
)

# litellm's names of what a token costs; those of other service levels (batches, flex, priority) are not ours
PROMPT_KEY = r"(input_cost_per_token|cache_creation_input_token_cost)"
COMPLETION_KEY = r"output_cost_per_(reasoning_)?token"
LONG_KEY = r"(_above_\d+k_tokens)?"
OTHER_KEYS = ("input_cost_per_request", "input_cost_per_second", "input_cost_per_character", "cost_per_second")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per token, at most; what a long prompt raises them to is beside them."""

    prompt: float
    completion: float
    long_prompt: float | None = None
    long_completion: float | None = None

    def usd(self, n_prompt_tokens: int, n_tokens: int) -> float:
        """What a call costs, at most."""
        prompt, completion = self.prompt, self.completion
        if n_prompt_tokens > LONG_TOKENS:
            prompt, completion = self.long_prompt or prompt, self.long_completion or completion
        return n_prompt_tokens * prompt + n_tokens * completion

    def most_usd(self, request: Request) -> float:
        """What one attempt at a request can cost."""
        return self.usd(most_prompt_tokens(request), request.max_tokens)

    def most_prompt_usd(self, request: Request) -> float:
        """Of that, what its prompt can cost."""
        return self.usd(most_prompt_tokens(request), 0)


FREE = Price(0.0, 0.0)


def given_price(config: BackendConfig, name: str) -> Price | None:
    """The price that `--price-in` and `--price-out` give a model, if they do."""
    prices = [priced(given) for given in (config.price_in, config.price_out)]
    found = [price.get(name, price.get("")) for price in prices]
    return None if None in found else Price(*(usd / MILLION for usd in found if usd is not None))


def listed_price(info: Mapping[str, Any]) -> Price | None:
    """The price in litellm's entry of a model; null if it has none, or not by the token alone."""
    tiers = [info, *(info.get("tiered_pricing") or ())]

    def dearest(key: str) -> float:
        return max(
            (usd for tier in tiers for name, usd in tier.items() if usd and re.fullmatch(key, name)), default=0.0
        )

    price = Price(
        dearest(PROMPT_KEY), dearest(COMPLETION_KEY), dearest(PROMPT_KEY + LONG_KEY), dearest(COMPLETION_KEY + LONG_KEY)
    )
    by_token_alone = not any(info.get(key) for key in OTHER_KEYS)
    return price if by_token_alone and (price.prompt or price.completion) else None


def require_priced(config: BackendConfig, names: Sequence[str]) -> None:
    """Check whose the given prices are.

    Raises:
        ConfigError: One price would be that of several models, or is that of a model that is not asked.
    """
    remote = list(dict.fromkeys(name for name in names if not name.startswith(("hf:", "recorded:"))))
    for flag, given in (("--price-in", config.price_in), ("--price-out", config.price_out)):
        for name, usd in priced(given).items():
            if name == "" and len(remote) > 1:
                raise ConfigError(
                    f"{flag} {usd:g}: say of which model: {' '.join(f'{flag} {n}={usd:g}' for n in remote)}"
                )
            if name and name not in remote:
                raise ConfigError(
                    f"{flag} {name}={usd:g}: this command does not ask {name}; it asks {', '.join(remote) or 'none'}"
                )


def most_prompt_tokens(request: Request) -> int:
    """Tokens of the conversation, from above."""
    return _n_bytes(request) + MESSAGE_TOKENS * len(request.messages) + CONVERSATION_TOKENS


def about_prompt_tokens(request: Request) -> int:
    """Tokens of the conversation, as a plan tells them."""
    return math.ceil(_n_bytes(request) / BYTES_PER_TOKEN)


def _n_bytes(request: Request) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages)


@dataclass(slots=True)
class Bill:
    """What one attempt came to, as its sender fills it in."""

    usd: float | None = None  # null: nobody can tell, so all that was reserved may be asked for
    answered: bool = False  # a reply came, whether it tells its tokens or not
    prompt_growth: float = 1.0  # tokens of the prompt, as the server tells them, by their bound


class Budget:
    """What the models of a command may spend together, and have spent; used by one event loop."""

    def __init__(self, cap_usd: float | None = None) -> None:
        self.cap_usd = cap_usd
        self.spent_usd = 0.0  # of attempts that are over
        self.doubtful_usd = 0.0  # among it: reserved by attempts of which nobody can tell what they came to
        self.untold_usd = 0.0  # among that: by those that were answered, without the numbers of tokens
        self._in_flight: Counter[str] = Counter()  # attempts, by model
        self._most_usd = self._prompt_usd = 0.0  # of those, as their senders gave it
        self._growth = self._prompt_growth = 1.0  # by how much bills, and their prompts, have passed their bounds
        self._answered: set[str] = set()  # models
        self._over: str | None = None  # why nothing more is sent
        self._turn = asyncio.Lock()  # who looks for room: one at a time, in order
        self._settled = asyncio.Event()

    @property
    def reserved_usd(self) -> float:
        """What attempts in flight can cost, by what is known now."""
        return self._bound(self._most_usd, self._prompt_usd)

    @property
    def left_usd(self) -> float:
        """What nothing has been spent or reserved of."""
        return math.inf if self.cap_usd is None else self.cap_usd - self.spent_usd - self.reserved_usd

    @asynccontextmanager
    async def attempt(self, most_usd: float, prompt_usd: float = 0.0, model: str = "") -> AsyncIterator[Bill]:
        """Reserve what one attempt can cost, as soon as it fits; afterwards take what its bill says.

        Args:
            most_usd: What it can cost.
            prompt_usd: Of that, its prompt.
            model: Who is asked.

        Raises:
            BudgetError: It does not fit, and nothing is in flight that could make room.
        """
        async with self._turn:
            while self._over or self._is_untried(model) or self._bound(most_usd, prompt_usd) > self.left_usd:
                if not self._in_flight.total():  # nothing can make room any more
                    most = self._bound(most_usd, prompt_usd)
                    is_long = most > self.spent_usd and most > 2 * self._bound(prompt_usd, prompt_usd)
                    self._over = self._over or self._told(most, "the next call", LONG_ANSWER if is_long else "")
                    raise BudgetError(self._over)
                await self._settled.wait()
            self._in_flight[model] += 1
            self._most_usd, self._prompt_usd = self._most_usd + most_usd, self._prompt_usd + prompt_usd
        bill = Bill()
        try:
            yield bill
        finally:
            self._in_flight[model] -= 1
            self._most_usd, self._prompt_usd = self._most_usd - most_usd, self._prompt_usd - prompt_usd
            if not self._in_flight.total():  # no rounding is carried along
                self._most_usd = self._prompt_usd = 0.0
            self._prompt_growth = max(self._prompt_growth, bill.prompt_growth)
            most = self._bound(most_usd, prompt_usd)
            self.spent_usd += most if bill.usd is None else bill.usd
            self.doubtful_usd += most if bill.usd is None else 0.0
            self.untold_usd += most if bill.usd is None and bill.answered else 0.0
            if bill.usd is not None and most > 0:
                self._growth *= max(1.0, bill.usd / most)
            if bill.answered:
                self._answered.add(model)
            self._settled.set()
            self._settled.clear()

    def commit(self, most_usd: float, n_requests: int) -> None:
        """Take what requests of batch jobs can cost at most; the bill comes too late to give anything back in this run.

        Raises:
            BudgetError: It does not fit.
        """
        if most_usd > self.left_usd:
            what = f"the next batch of {n_requests} requests"
            raise BudgetError(self._told(most_usd, what, " (a smaller --job-size sends fewer at once)"))
        self.spent_usd += most_usd

    def _is_untried(self, model: str) -> bool:
        """Whether enough calls are in flight of a model that has yet to show what it bills."""
        return self.cap_usd is not None and model not in self._answered and self._in_flight[model] >= FIRST_CALLS

    def _bound(self, most_usd: float, prompt_usd: float) -> float:
        """What attempts can cost, by how much others have passed their bounds."""
        return (most_usd + (self._prompt_growth - 1) * prompt_usd) * self._growth

    def _told(self, most_usd: float, what: str, advice: str) -> str:
        parts = []
        if self.untold_usd:
            parts.append(f"${self.untold_usd:.4f} of it the most for replies that told no token counts")
        if failed_usd := self.doubtful_usd - self.untold_usd:
            parts.append(f"${failed_usd:.4f} of it for calls that failed and may be billed")
        doubtful = f" ({', '.join(parts)})" if parts else ""
        how, why = "reached", ""
        if self.cap_usd is not None and self.spent_usd > self.cap_usd and max(self._growth, self._prompt_growth) > 1:
            how, why = "passed", ", as the server bills more tokens than the bytes and limits of the requests allow for"
        return (
            f"--max-cost {self.cap_usd:g} is {how}: ${self.spent_usd:.4f} spent{doubtful}{why}, and {what} can cost "
            f"${most_usd:.4f}{advice}; nothing is lost: raise --max-cost and run the same command to continue, what arrived "
            "costs nothing again"
        )
