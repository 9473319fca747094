"""Ask a local model through transformers: batched, cached, in order.

Each request seeds its own draws, and batches are cut from all requests, answered or not. So a run that was killed cuts
the same batches when it resumes, and ends with the same completions to the byte.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tjd import backbone
from tjd.config import BackendConfig
from tjd.errors import BackendError, ConfigError
from tjd.teacher import Again, Completion, Request, Spoken, Usage, follow_up, merged
from tjd.teacher.budget import FREE
from tjd.teacher.cache import Ledger
from tjd.teacher.logprobs import TOP, spoken

if TYPE_CHECKING:
    from tjd.teacher.generate import Continuation, Wanted

LOOK_AHEAD = 2  # batches whose requests are sorted by length together


class Local:
    """A local model. Its weights are loaded when it is first asked something new."""

    price = FREE

    def __init__(self, model: str, config: BackendConfig, folder: Path | None) -> None:
        """Check that the model exists, as far as that goes without loading it.

        Raises:
            ConfigError: The folder does not exist.
        """
        self._model = backbone.resolve(model)
        self.name = backbone.public_name(model)
        self._config, self._folder = config, folder
        self.usage = Usage()
        self._loaded: tuple[Any, Any] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the model's files; of the commit, for a model from the hub."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return backbone.digest(self._model) or hashlib.sha256(_commit(self._model).encode()).hexdigest()

    @cached_property
    def _ledger(self) -> Ledger:
        dtype = backbone.choose_dtype("auto", backbone.choose_device())  # rounding can turn a token
        identity = f"hf:{self.name}@{self.digest}:{dtype}"
        return Ledger(self.name, identity, self._folder, self.usage, self._config.cache_tag)

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Ask batch by batch; see `Ask`.

        Raises:
            ConfigError: The model cannot be loaded.
            BackendError: A batch does not fit into memory.
        """
        requests = iter(requests)
        while window := list(islice(requests, LOOK_AHEAD * self._config.batch_size)):
            firsts = self._complete(window)
            seconds = [follow_up(request, first, again) for request, first in zip(window, firsts, strict=True)]
            answers = iter(self._complete([second for second in seconds if second is not None]))
            for first, second in zip(firsts, seconds, strict=True):
                yield first if second is None else merged(first, next(answers))

    def find(self, request: Request) -> Completion | None:
        """See `Teacher.find`."""
        return self._ledger.find(request)

    def close(self) -> None:
        """Free the weights and close the cache."""
        self._loaded = None
        if "_ledger" in self.__dict__:
            self._ledger.close()

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        by_length = sorted(range(len(requests)), key=lambda i: sum(len(m["content"]) for m in requests[i].messages))
        completions: dict[int, Completion] = {}
        size = self._config.batch_size
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            found = {i: self._ledger.find(requests[i]) for i in batch}
            new = {self._ledger.key(requests[i]): requests[i] for i in batch if found[i] is None}  # each once
            arrived = dict(zip(new, self._generate(list(new.values())), strict=True))
            self._ledger.enter(zip(new.values(), arrived.values(), strict=True))
            completions |= {i: found[i] or arrived[self._ledger.key(requests[i])] for i in batch}
        return [completions[i] for i in range(len(requests))]

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        if not requests:
            return []
        import torch

        from tjd.teacher.generate import generate

        model, tokenizer = self._weights()
        wanted = [self._wanted(request) for request in requests]
        fits = [row for row in wanted if row.limit > 0]
        try:
            continuations = iter(generate(model, fits, _ends(model, tokenizer)) if fits else [])
        except torch.OutOfMemoryError as exc:
            raise BackendError(f"{self.name}: a batch does not fit into memory; lower --batch-size") from exc
        completions = []
        for row in wanted:
            n_prompt = len(row.ids)
            if row.limit <= 0:
                completions.append(Completion(None, self.name, error=f"the prompt of {n_prompt} tokens is too long"))
                continue
            got = next(continuations)
            text = tokenizer.decode(got.ids, skip_special_tokens=True)
            finish_reason = "stop" if got.ended else "length"
            logprobs = _spoken(tokenizer, got) if row.top else None
            completions.append(
                Completion(text, self.name, finish_reason, n_prompt, len(got.ids), cost_usd=0.0, logprobs=logprobs)
            )
        return completions

    def _wanted(self, request: Request) -> "Wanted":
        from tjd.teacher.generate import Wanted

        model, tokenizer = self._weights()
        ids = _prompt_ids(tokenizer, request)
        room = getattr(model.config, "max_position_embeddings", None) or len(ids) + request.max_tokens
        seed = int.from_bytes(bytes.fromhex(request.prompt_digest)[:8], "big") ^ request.seed
        limit = min(request.max_tokens, room - len(ids))
        top = TOP if request.logprobs else 0
        return Wanted(ids, limit, request.temperature, request.top_p, seed & (2**63 - 1), top)

    def _weights(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = backbone.load_model(self._model), backbone.load_tokenizer(self._model)
        return self._loaded


def _prompt_ids(tokenizer: Any, request: Request) -> list[int]:
    messages = [{**message, "content": _as_data(tokenizer, message["content"])} for message in request.messages]
    if tokenizer.chat_template is None:  # a base model
        return tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _spoken(tokenizer: Any, got: "Continuation") -> tuple[Spoken, ...]:
    """The tokens that may begin a verdict; each is what it adds to the text before it, half a character nothing."""
    before, tokens = b"", []
    for end, top in enumerate(got.top, 1):
        after = tokenizer.decode(got.ids[:end], skip_special_tokens=True).rstrip("\ufffd").encode()
        tokens.append((after[len(before) :], {tokenizer.decode([token]): logprob for token, logprob in top.items()}))
        before = after
    return spoken(tokens)


def _as_data(tokenizer: Any, text: str) -> str:
    """A text whose control tokens (`<|im_end|>`, say) are broken by a space, so that it cannot end its own turn."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)


def _commit(model: str) -> str:
    from transformers import AutoConfig

    try:
        return getattr(AutoConfig.from_pretrained(model), "_commit_hash", None) or model
    except (OSError, ValueError) as exc:
        raise ConfigError(f"the model {model} cannot be fetched; give a folder, a hub name, or 'hf:embedded'") from exc
