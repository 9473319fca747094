"""The judge's prompt: instruction, then response, then constraint, each tokenised on its own.

In: the texts of one (instruction, response, constraint). Out: three runs of token ids whose concatenation the judge
reads. The order and the separate tokenisation make every response of a group share the instruction's run, and every
constraint of a response share both, so prefixes can be computed once. Texts of the data are tokenised with special
tokens taken literally: a response that contains an end-of-turn marker cannot end the turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tjd.errors import ConfigError
from tjd.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIABLES = ("instruction", "response", "constraint")
VERDICTS = ("Yes", "No")
MAX_CONSTRAINT_TOKENS = 256

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one judgement; the prefix shared with others comes first."""

    instruction: tuple[int, ...]  # the prompt's head and the instruction
    response: tuple[int, ...]
    constraint: tuple[int, ...]  # the constraint and the prompt's tail, up to where the verdict is read

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.instruction + self.response + self.constraint

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.instruction) + len(self.response) + len(self.constraint)


class Encoder:
    """Turns rows into token ids, the same way in training and in scoring."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: Prompt,
        *,
        max_instruction_tokens: int,
        max_response_tokens: int,
        max_constraint_tokens: int = MAX_CONSTRAINT_TOKENS,
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = (max_instruction_tokens, max_response_tokens, max_constraint_tokens)
        pieces = _fixed_pieces(tokenizer, prompt)
        self.head, self.before_response, self.before_constraint, self.tail = (
            tuple(tokenizer.encode(piece, add_special_tokens=False)) for piece in pieces
        )

    def __call__(self, row: Mapping[str, Any]) -> Encoded:
        """Encode a row with `instruction` (or else `query`), `response` and `constraint`."""
        instruction, response, constraint = text_ids(self.tokenizer, row, self.limits)
        return Encoded(
            self.head + instruction,
            self.before_response + response,
            self.before_constraint + constraint + self.tail,
        )


def text_ids(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any], limits: Sequence[int]) -> tuple[Ids, ...]:
    """Token ids of a row's instruction (or else query), response and constraint, each cut to its limit."""
    texts = (row.get("instruction") or row["query"], row["response"], row["constraint"])
    as_text: Any = {
        "add_special_tokens": False,
        "split_special_tokens": True,
        "verbose": False,
    }  # cut below if too long
    ids = [tokenizer.encode(text, **as_text) for text in texts]
    return tuple(cut(*each) for each in zip(VARIABLES, ids, limits, strict=True))


def cut(variable: str, ids: Sequence[int], limit: int) -> Ids:
    """At most so many tokens: a response loses its end, the others their middle."""
    if len(ids) <= limit:
        return tuple(ids)
    if variable == "response":
        return tuple(ids[:limit])
    half = limit // 2  # what is asked often stands at the end of a long dialogue
    return (*ids[:half], *ids[len(ids) - (limit - half) :])


def verdict_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """Ids of the two verdict tokens, `Yes` first.

    Raises:
        ConfigError: A verdict is more than one token.
    """
    ids = []
    for verdict in VERDICTS:
        tokens = tokenizer.encode(verdict, add_special_tokens=False)
        if len(tokens) != 1:
            raise ConfigError(
                f"the verdict '{verdict}' is {len(tokens)} tokens for this tokenizer; choose another --base"
            )
        ids.append(tokens[0])
    return ids[0], ids[1]


def _fixed_pieces(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[str]:
    """The prompt inside the chat template, cut where the three texts go."""
    marks = [f"\u27e6{name}\u27e7" for name in VARIABLES]
    head, *rest = prompt.split_at(*VARIABLES)
    content = head + "".join(mark + piece for mark, piece in zip(marks, rest, strict=True))
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": content}]
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    else:
        bos = tokenizer.bos_token if tokenizer.encode("")[:1] == [tokenizer.bos_token_id] else ""
        text = f"{bos}{content}\n"
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ConfigError("the chat template of this model drops part of the judge prompt; choose another --base")
        pieces.append(before)
    return [*pieces, text]
