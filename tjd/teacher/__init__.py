"""Ask a large model: the one call site, with three kinds of backend behind one `ask`.

- `recorded:FILE`: completions recorded before (`recorded.py`);
- `hf:NAME`: a local model through transformers, batched (`local.py`); `hf:embedded` is SmolLM2-135M-Instruct;
- any other name goes to litellm (`remote.py`): `gemini/gemini-3-pro-preview`, `hosted_vllm/...`, `openai/...`; with
  `--batch-api` to the provider's batch endpoint (`batch.py`).

Completions are kept on disk as they arrive (`cache.py`), which is how a killed command resumes. What a completion
says is read in `reading.py`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar

from tjd.config import BackendConfig
from tjd.errors import ConfigError

if TYPE_CHECKING:
    from tjd.prompts import Prompt
    from tjd.teacher.budget import Budget, Price

LONGEST_ANSWER = (
    100_000  # characters of an unusable answer that are sent back: a server gone mad must not double its bill
)

Number = TypeVar("Number", int, float)


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted. Equal requests get equal completions (from the cache)."""

    messages: tuple[Message, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0  # of sampling; votes on the same prompt differ in it
    schema: Mapping[str, Any] | None = (
        None  # JSON schema of the answer; a model that takes none is asked in words alone
    )
    logprobs: bool = False  # log probabilities are wanted, where the model gives them
    note: Any = field(default=None, compare=False)  # what the asker wants to know when the completion is read

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of the messages: what a recording is looked up by, together with `seed`."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=False).encode()).hexdigest()


class Spoken(NamedTuple):
    """A token of a completion that may begin a verdict, and what might have stood in its place."""

    start: int  # where it begins, in bytes
    token: str
    top: dict[str, float]  # log probability of each of the likeliest tokens there


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one request, or why nothing did."""

    text: str | None  # null if the call failed past its retries
    model: str
    finish_reason: str | None = None  # "stop" or "length"
    n_prompt_tokens: int | None = None
    n_tokens: int | None = None
    cost_usd: float | None = None  # null if the price is unknown; of all attempts, where the request was asked again
    error: str | None = None  # why `text` is null
    logprobs: tuple[Spoken, ...] | None = None  # null if not asked for, or not returned


Again = Callable[[Request, Completion], Request | None]
"""Given a completion that arrived: the request to ask instead, or None if this one can be used."""


class Ask(Protocol):
    """Completions in the order of the requests, lazily, each as soon as it and all before it are there."""

    def __call__(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Ask for all requests; at most one follow-up each, where `again` wants one."""
        ...


@dataclass(slots=True)
class Usage:
    """What a run used, for the summary at its end. A follow-up is a call of its own."""

    calls: int = 0  # completions that were asked for now
    cached: int = 0  # completions that had arrived before, or that an equal request of this run brought
    failed: int = 0  # calls that failed past their retries; among `calls`
    untold: int = 0  # answers of which the server told no numbers of tokens, so that their cost is unknown; likewise
    retries: int = 0
    prompt_tokens: int = 0  # of the calls made now, where known
    tokens: int = 0  # of their completions, where known
    cost_usd: float | None = 0.0  # of the calls made now; null as soon as one price is unknown
    waiting: str = ""  # for what, where that takes long
    saved_usd: float = 0.0  # what the completions from disk cost when they were asked for, where known

    def add(self, completion: Completion) -> None:
        """Count a call."""
        self.calls += 1
        if completion.text is None:
            self.failed += 1
            return
        self.prompt_tokens += completion.n_prompt_tokens or 0
        self.tokens += completion.n_tokens or 0
        self.untold += completion.n_tokens is None and completion.cost_usd is None
        self.cost_usd = _sum(self.cost_usd, completion.cost_usd)


class Teacher(Protocol):
    """A model that can be asked. Close it (`contextlib.closing`) to free its memory and its connections."""

    name: str  # as tables show it, never a path
    usage: Usage

    @property
    def price(self) -> "Price | None":
        """Of a token; null if unknown."""
        ...

    @property
    def digest(self) -> str | None:
        """SHA-256 of the weights or the recording; null for a remote model."""
        ...

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """See `Ask`."""
        ...

    def find(self, request: Request) -> Completion | None:
        """The completion that is on disk, for which no call is made."""
        ...

    def close(self) -> None:
        """Free what is held; asking again is possible and opens it anew."""
        ...


def open_teacher(name: str, config: BackendConfig, cache: Path | None, budget: "Budget | None" = None) -> Teacher:
    """Check that a model can be asked. Weights are loaded, and servers called, with the first request only.

    Args:
        name: `recorded:FILE`, `hf:NAME`, or a litellm name.
        config: How to reach it.
        cache: Folder of the completions on disk; null keeps none, and a killed run starts over.
        budget: What the run may spend, shared by its models; null has no cap.

    Raises:
        ConfigError: The model folder does not exist, a provider has no batch API that is known here, or the budget has a cap
            and the price of the model is unknown.
        DataError: The recording cannot be read.
        BackendError: Unknown provider, or its API key is missing.
    """
    kind, _, rest = name.partition(":")
    if kind == "recorded":
        from tjd.teacher.recorded import Recorded

        return Recorded(rest)
    if kind == "hf":
        from tjd.teacher.local import Local

        return Local(rest, config, cache)
    from tjd.teacher.budget import Budget

    if config.batch_api:
        from tjd.teacher.batch import Batch

        return Batch(name, config, cache, budget or Budget())
    from tjd.teacher.remote import Remote

    return Remote(name, config, cache, budget or Budget())


def in_turn(teachers: Sequence[Teacher]) -> Iterator[tuple[str, Ask]]:
    """Name and `ask` of each teacher; each is closed before the next is used, so that one model at a time is in memory.

    Raises:
        ConfigError: Two have the same name, so that their answers could not be told apart.
    """
    require_distinct(teachers)
    for teacher in teachers:
        with closing(teacher):
            yield teacher.name, teacher.ask


def panel(teachers: Sequence[Teacher]) -> Ask:
    """One `ask` that puts each request to every teacher: a completion of each, in their order, before the next request.

    Raises:
        ConfigError: Two have the same name, so that their answers could not be told apart.
    """
    require_distinct(teachers)

    def ask(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        copies = tee(requests, len(teachers))
        asked = [teacher.ask(copy, again) for teacher, copy in zip(teachers, copies, strict=True)]
        for completions in zip(*asked, strict=True):
            yield from completions

    return ask


def require_distinct(teachers: Sequence[Teacher]) -> None:
    """Raise ConfigError if two have the same name."""
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name}; rename one model folder or leave it out")


def follow_up(request: Request, completion: Completion, again: Again | None) -> Request | None:
    """What to ask instead of an unusable completion; None if it can be used, or if there is none to speak of."""
    return again(request, completion) if again and completion.text is not None else None


def merged(first: Completion, second: Completion) -> Completion:
    """The outcome of asking twice: the second text, and what both cost. The first stands if the second call failed."""
    if second.text is None:
        return first
    return replace(
        second,
        n_prompt_tokens=_sum(first.n_prompt_tokens, second.n_prompt_tokens),
        n_tokens=_sum(first.n_tokens, second.n_tokens),
        cost_usd=_sum(first.cost_usd, second.cost_usd),
    )


def _sum(a: Number | None, b: Number | None) -> Number | None:
    return None if a is None or b is None else a + b


def asked_again(request: Request, completion: Completion, text: str) -> Request:
    """The same conversation, with the answer that came and a further turn of the user."""
    said = completion.text or "(nothing)"  # some providers refuse an empty turn
    answer = Message(role="assistant", content=said[:LONGEST_ANSWER])
    return replace(request, messages=(*request.messages, answer, Message(role="user", content=text)))


def once_more(reason_of: Callable[[Request, Completion], str | None], again: "Prompt") -> Again:
    """Ask again where a completion cannot be used.

    Args:
        reason_of: Why a completion that arrived cannot be used; null if it can.
        again: The further turn; its variable is `reason`.
    """

    def unusable(request: Request, completion: Completion) -> Request | None:
        reason = reason_of(request, completion)
        return asked_again(request, completion, again.render(reason=reason)) if reason else None

    return unusable


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return (Message(role="user", content=text),)
