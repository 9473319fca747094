"""Encoders: a sequence-classification model that reads an instruction, a response and a constraint at once (head `encoder`).

In: pairs of texts, the instruction and the response as the first and the constraint as the second. Out: one logit each. Every
token sees every other, so nothing is shared between judgements; they are padded to batches, and equal ones are read once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tjd import backbone
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError
from tjd.judge.prompt import MAX_CONSTRAINT_TOKENS, Encoded, cut, text_ids
from tjd.judge.score import TOKENS_PER_BATCH, padded_batches
from tjd.judge.train import Example, Step, learn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Pairs:
    """Turns rows into pairs of texts: what an `Encoder` is to a decoder, without a prompt."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        model: "PretrainedConfig",
        *,
        max_instruction_tokens: int,
        max_response_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.head, self.between, self.tail = _fixed_pieces(tokenizer)
        window = min(tokenizer.model_max_length, getattr(model, "max_position_embeddings", tokenizer.model_max_length))
        self.room = window - len(self.head) - 2 * len(self.between) - len(self.tail)  # for the three texts
        self.limits = (max_instruction_tokens, max_response_tokens, min(MAX_CONSTRAINT_TOKENS, self.room // 2))
        self.pad: Any = tokenizer.pad_token_id
        self.typed = getattr(model, "type_vocab_size", 0) > 1

    def __call__(self, row: Mapping[str, Any]) -> Encoded:
        """Encode a row with `instruction` (or else `query`), `response` and `constraint`.

        Where the encoder's window is too small for all three, the longer of instruction and response gives way.
        """
        instruction, response, constraint = text_ids(self.tokenizer, row, self.limits)
        room = self.room - len(constraint)
        if len(instruction) + len(response) > room:
            response = cut("response", response, max(room - len(instruction), room // 2))
            instruction = cut("instruction", instruction, room - len(response))
        return Encoded(self.head + instruction, self.between + response + self.between, constraint + self.tail)


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A specialist that shares nothing with others."""

    name: str
    model: Any  # with one logit
    pairs: Pairs
    first_layer: int = 0  # all layers are its own

    def logits(self, judgements: Sequence[Encoded]) -> torch.Tensor:
        """Log-odds of P(followed), [B] in float32."""
        ids = [torch.tensor(judgement.ids) for judgement in judgements]
        length_B = torch.tensor([len(judgement) for judgement in judgements])
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pairs.pad)
        place_T = torch.arange(ids_BT.shape[1])
        inputs = {"input_ids": ids_BT, "attention_mask": (place_T < length_B[:, None]).long()}
        if self.pairs.typed:
            first_B = torch.tensor([len(each.instruction) + len(each.response) for each in judgements])
            inputs["token_type_ids"] = ((place_T >= first_B[:, None]) & (place_T < length_B[:, None])).long()
        return self.model(**{name: x.to(self.model.device) for name, x in inputs.items()}).logits[:, 0].float()


def score(
    classifiers: Sequence[Classifier],
    judgements: Sequence[Encoded],
    whose: Sequence[int],
    *,
    budget: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, float]]:
    """`tjd.judge.score.score` for classifiers; `budget` is of padded tokens."""
    for k, classifier in enumerate(classifiers):
        members: dict[Encoded, list[int]] = {}
        for index, judgement in enumerate(judgements):
            if whose[index] == k:
                members.setdefault(judgement, []).append(index)
        distinct = list(members)
        for batch in padded_batches(distinct, budget):
            with torch.inference_mode():
                yes_B = torch.sigmoid(classifier.logits([distinct[place] for place in batch])).tolist()
            for place, yes in zip(batch, yes_B, strict=True):
                for index in members[distinct[place]]:
                    yield index, yes


def fit(
    classifier: Classifier,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: TrainJudgeConfig,
    on_step: Step = lambda metrics: None,
) -> list[dict[str, Any]]:
    """Train all weights in place, and keep those of the best epoch: see `tjd.judge.train.fit`.

    The weights stay in float32; products are in the config's dtype (`auto`: bfloat16 where the hardware multiplies it
    natively).
    """
    device = classifier.model.device.type
    half = backbone.choose_dtype(config.dtype, device) == torch.bfloat16

    def losses(batch: Sequence[Example]) -> tuple[torch.Tensor, Sequence[Example]]:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logit_B = classifier.logits([example.encoded for example in batch])
        truth_B = logit_B.new_tensor([example.followed for example in batch])
        return torch.nn.functional.binary_cross_entropy_with_logits(logit_B, truth_B, reduction="none"), batch

    def predicted(examples: Sequence[Example]) -> np.ndarray:
        yes = dict(score([classifier], [example.encoded for example in examples], [0] * len(examples)))
        return np.array([yes[index] for index in range(len(examples))])

    history = learn(classifier.model, train, validation, losses, predicted, config, on_step)
    classifier.model.eval()
    return history


def require_base(base: str, head: str) -> None:
    """Check that a base model can have a head, before its weights are loaded.

    Raises:
        ConfigError: Only an encoder can have the head `encoder`, and no other.
    """
    if backbone.is_encoder(backbone.load_config(base)) == (head == "encoder"):
        return
    name = backbone.public_name(base)
    if head == "encoder":
        raise ConfigError(f"{name} is not an encoder such as ModernBERT; choose another --base, or --head verdict")
    raise ConfigError(f"{name} is an encoder, which cannot write a verdict; take --head encoder, or another --base")


def _fixed_pieces(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], ...]:
    """The tokens that a pair of texts is framed with: before the first, between the two, and after the second.

    Raises:
        ConfigError: The tokenizer puts nothing between two texts.
    """
    framed = tokenizer("a", "b")
    ids, sides = framed["input_ids"], framed.sequence_ids()
    first, second = sides.index(0), sides.index(1)
    end = len(sides) - sides[::-1].index(0), len(sides) - sides[::-1].index(1)
    pieces = ids[:first], ids[end[0] : second], ids[end[1] :]
    if not pieces[1]:
        raise ConfigError("this model's tokenizer does not separate a pair of texts; choose another --base")
    return tuple(tuple(piece) for piece in pieces)
