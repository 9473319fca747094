"""Run judgements through a decoder in batches, and read P(followed) from the two verdict tokens.

Sequences are sorted by length and cut into batches by tokens, not rows; equal sequences are run once. They are padded on
the right: under causal attention the padding comes after everything that is read, so no mask is needed, and only the
last real position is projected, onto the verdict rows of the output embedding alone.

Where adapters sit on the top layers only, the layers below (the trunk) are the same for every specialist and every epoch:
`trunk_states` runs them once, `last_hidden` goes on from there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_BATCH = 4096

Ids = tuple[int, ...]


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The transformer without its head, and the output embedding, adapters included."""
    lm: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return lm.get_decoder(), lm.get_output_embeddings()


def score(
    model: Any, sequences: Sequence[Ids], verdicts: tuple[int, int], *, budget: int = TOKENS_PER_BATCH
) -> Iterator[tuple[int, float]]:
    """Yield `(index, P(Yes) / (P(Yes) + P(No)))` for each sequence, in the order in which batches finish.

    Args:
        model: A causal LM, with or without an adapter, in evaluation mode.
        sequences: Token ids up to where the verdict is read.
        verdicts: Ids of `Yes` and `No`.
        budget: Padded tokens per batch.
    """
    decoder, head = decoder_and_head(model)
    for indices, batch in batches_by_length(sequences, budget):
        with torch.inference_mode():
            yes_B = read_verdicts(last_hidden(decoder, batch), head, verdicts)
        for same, yes in zip(indices, yes_B, strict=True):
            for index in same:
                yield index, yes


def score_states(
    model: Any,
    states: Sequence[torch.Tensor],
    verdicts: tuple[int, int],
    first_layer: int,
    *,
    budget: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, float]]:
    """Like `score`, going on from the trunk's states [T, D] at `first_layer`."""
    decoder, head = decoder_and_head(model)
    order = sorted(range(len(states)), key=lambda index: len(states[index]), reverse=True)
    for batch in _cut(order, [len(states[index]) for index in order], budget):
        with torch.inference_mode():
            hidden_BD = last_hidden_from(decoder, [states[index] for index in batch], first_layer)
            yield from zip(batch, read_verdicts(hidden_BD, head, verdicts), strict=True)


def read_verdicts(hidden_BD: torch.Tensor, head: Any, verdicts: tuple[int, int]) -> list[float]:
    """P(Yes) / (P(Yes) + P(No)) of each final state, in [0, 1]."""
    weight_2D = head.weight[list(verdicts)].float()
    return torch.softmax(hidden_BD.float() @ weight_2D.T, dim=-1)[:, 0].tolist()


def last_hidden(decoder: Any, sequences: Sequence[Ids]) -> torch.Tensor:
    """The last layer's state at each sequence's last token, [B, D]."""
    ids_BT, last_B = _padded_ids(sequences, _device(decoder))
    hidden_BTD = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


def last_hidden_from(decoder: Any, states: Sequence[torch.Tensor], first_layer: int) -> torch.Tensor:
    """The same, from the states [T, D] that enter `first_layer`."""
    last_B = torch.tensor([len(state) - 1 for state in states], device=_device(decoder))
    hidden_BTD = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    with only_layers(decoder, first_layer, None):
        hidden_BTD = decoder(inputs_embeds=hidden_BTD, use_cache=False).last_hidden_state
    return hidden_BTD[torch.arange(len(states), device=last_B.device), last_B]


def trunk_states(
    decoder: Any, sequences: Sequence[Ids], first_layer: int, *, budget: int = TOKENS_PER_BATCH
) -> list[torch.Tensor]:
    """The states [T, D] that enter `first_layer`, per sequence; equal sequences share one tensor."""
    out: list[Any] = [None] * len(sequences)
    with torch.no_grad(), only_layers(decoder, 0, first_layer):
        for indices, batch in batches_by_length(sequences, budget):
            ids_BT, last_B = _padded_ids(batch, _device(decoder))
            hidden_BTD = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
            for same, hidden_TD, last in zip(indices, hidden_BTD, last_B.tolist(), strict=True):
                state = hidden_TD[: last + 1].clone()
                for index in same:
                    out[index] = state
    return out


def trunk_is_separable(decoder: Any, first_layer: int, ids: Ids) -> bool:
    """Whether running the layers in two parts gives what running them at once gives; some architectures forbid it."""
    with torch.no_grad():
        whole_D = last_hidden(decoder, [ids])[0].float()
        parts_D = last_hidden_from(decoder, trunk_states(decoder, [ids], first_layer), first_layer)[0].float()
    return bool(torch.allclose(whole_D, parts_D, rtol=1e-2, atol=1e-2))


@contextmanager
def only_layers(decoder: Any, start: int, stop: int | None) -> Iterator[None]:
    """Within the block the decoder has only these layers, and no final norm unless the last is among them."""
    layers, norm = decoder.layers, decoder.norm
    try:
        decoder.layers = layers[start:stop]
        if stop is not None and stop < len(layers):
            decoder.norm = torch.nn.Identity()
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm


def batches_by_length(sequences: Sequence[Ids], budget: int) -> Iterator[tuple[list[list[int]], list[Ids]]]:
    """Distinct sequences, longest first (so that memory peaks at once), in batches of at most `budget` padded tokens.

    Yields:
        For each distinct sequence of the batch the indices where it stands, and the sequences.
    """
    where: dict[Ids, list[int]] = {}
    for index, ids in enumerate(sequences):
        where.setdefault(ids, []).append(index)
    order = sorted(where, key=len, reverse=True)
    for batch in _cut(order, [len(ids) for ids in order], budget):
        yield [where[ids] for ids in batch], list(batch)


def _cut(items: Sequence[Any], lengths: Sequence[int], budget: int) -> Iterator[list[Any]]:
    """Cut items, sorted by falling length, into batches whose size times longest length is within the budget."""
    start = 0
    while start < len(items):
        size = max(1, budget // max(1, lengths[start]))
        yield list(items[start : start + size])
        start += size


def _padded_ids(sequences: Sequence[Ids], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T] padded on the right, and each row's last real position [B]."""
    ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True)
    last_B = torch.tensor([len(ids) - 1 for ids in sequences])
    return ids_BT.to(device), last_B.to(device)


def _device(decoder: Any) -> torch.device:
    return next(decoder.parameters()).device
