"""Ask a large model: the one call site, with three kinds of backend behind one `ask`.

- `recorded:FILE`: completions recorded before (`recorded.py`);
- `hf:NAME`: a local model through transformers, batched (`local.py`); `hf:embedded` is SmolLM2-135M-Instruct;
- any other name goes to litellm (`remote.py`): `gemini/gemini-3-pro-preview`, `hosted_vllm/...`, `openai/...`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict


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

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of the messages: what a recording is looked up by, together with `seed`."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=False).encode()).hexdigest()


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


Again = Callable[[Request, Completion], Request | None]
"""Given a completion that arrived: the request to ask instead, or None if this one can be used."""

Ask = Callable[..., Iterator[Completion]]
"""`ask(requests, again=None)`: completions in the order of the requests, lazily, each as soon as it and all before it
are there."""


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return (Message(role="user", content=text),)
