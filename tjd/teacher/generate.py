"""Continue a batch of prompts with a local causal LM.

Unlike `transformers`' own loop, each row draws from a generator of its own, so that what it gets does not hang on which
rows stand beside it or in which order they came; and a row that has ended leaves the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Wanted:
    """One continuation that is wanted."""

    ids: Sequence[int]  # tokens of the prompt, at least one
    limit: int  # tokens to generate at most, at least one
    temperature: float  # 0 is greedy
    top_p: float
    seed: int  # of this row's draws
    top: int = 0  # likeliest tokens to tell of at each place


@dataclass(slots=True)
class Continuation:
    """What a row got: its new tokens, without the one that ended it."""

    ids: list[int]
    ended: bool = False  # by an end token; else it was cut
    top: list[dict[int, float]] = field(
        default_factory=list
    )  # per token of `ids`: the log probabilities that were asked for


@torch.inference_mode()
def generate(model: PreTrainedModel, wanted: Sequence[Wanted], ends: frozenset[int]) -> list[Continuation]:
    """Continue all prompts together.

    Args:
        model: In evaluation mode.
        wanted: B rows.
        ends: Token ids that end a continuation.

    Returns:
        B continuations, in order.
    """
    ids_B_T, mask_B_T = (part.to(model.device) for part in _left_padded([row.ids for row in wanted]))
    positions_B_T = (mask_B_T.cumsum(1) - 1).clamp(min=0)
    temperature_B = torch.tensor([row.temperature for row in wanted], device=model.device)
    top_p_B = torch.tensor([row.top_p for row in wanted], device=model.device)
    draws_B_T = _draws(wanted).to(model.device)

    results = [Continuation([]) for _ in wanted]
    alive = list(range(len(wanted)))  # rows of `wanted` that are still in the batch
    cache = DynamicCache(config=model.config)
    for step in range(max(row.limit for row in wanted)):
        output = model(
            input_ids=ids_B_T,
            attention_mask=mask_B_T,
            position_ids=positions_B_T,
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits_B_V = output.logits[:, -1].float()
        chosen_B = choose(logits_B_V, temperature_B, top_p_B, draws_B_T[:, step])
        likeliest = _likeliest(logits_B_V, max(wanted[row].top for row in alive))
        stay = []
        for place, (row, token) in enumerate(zip(alive, chosen_B.tolist(), strict=True)):
            results[row].ended = token in ends
            if not results[row].ended:
                results[row].ids.append(token)
                if wanted[row].top:
                    results[row].top.append(dict(likeliest[place][: wanted[row].top]))
                if len(results[row].ids) < wanted[row].limit:
                    stay.append(place)
        if not stay:
            break
        if len(stay) < len(alive):
            alive = [alive[place] for place in stay]
            keep = torch.tensor(stay, device=model.device)
            cache.batch_select_indices(keep)
            chosen_B, mask_B_T, positions_B_T = chosen_B[keep], mask_B_T[keep], positions_B_T[keep]
            temperature_B, top_p_B, draws_B_T = temperature_B[keep], top_p_B[keep], draws_B_T[keep]
        ids_B_T, positions_B_T = chosen_B[:, None], positions_B_T[:, -1:] + 1
        mask_B_T = torch.cat([mask_B_T, mask_B_T.new_ones(len(alive), 1)], dim=1)
    return results


def choose(
    logits_B_V: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, draw_B: torch.Tensor
) -> torch.Tensor:
    """Pick one token per row: the likeliest at temperature 0, else where the draw falls in the cumulative distribution.

    Args:
        logits_B_V: float32.
        temperature_B: At least 0.
        top_p_B: In [0, 1]; only the likeliest tokens that together reach it can be drawn. 1 keeps all.
        draw_B: Uniform in [0, 1), float64.
    """
    likeliest_B = logits_B_V.argmax(dim=-1)
    if not bool((temperature_B > 0).any()):
        return likeliest_B
    heat_B_1 = torch.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    chance_B_V = torch.softmax(logits_B_V / heat_B_1, dim=-1)
    if bool((top_p_B < 1).any()):
        sorted_B_V, order_B_V = chance_B_V.sort(dim=-1, descending=True, stable=True)
        outside_B_V = sorted_B_V.cumsum(-1) - sorted_B_V >= top_p_B[:, None]  # what stands before it suffices
        outside_B_V[:, 0] = False
        outside_B_V &= top_p_B[:, None] < 1
        chance_B_V = chance_B_V.scatter(1, order_B_V, sorted_B_V.masked_fill(outside_B_V, 0.0))
    cumulative_B_V = chance_B_V.double().cumsum(dim=-1)
    target_B_1 = draw_B[:, None] * cumulative_B_V[:, -1:]
    drawn_B = torch.searchsorted(cumulative_B_V, target_B_1, right=True)[:, 0].clamp(max=logits_B_V.shape[-1] - 1)
    return torch.where(temperature_B > 0, drawn_B, likeliest_B)


def _likeliest(logits_B_V: torch.Tensor, n: int) -> list[list[tuple[int, float]]]:
    """The `n` likeliest tokens of each row with their log probabilities, at temperature 1."""
    if not n:
        return []
    top = logits_B_V.log_softmax(dim=-1).topk(n)
    return [list(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids_B_T = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask_B_T = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids_B_T, mask_B_T


def _draws(wanted: Sequence[Wanted]) -> torch.Tensor:
    draws_B_T = torch.zeros(len(wanted), max(row.limit for row in wanted), dtype=torch.float64)
    for row, draws_T in zip(wanted, draws_B_T, strict=True):
        generator = torch.Generator().manual_seed(row.seed)
        draws_T[: row.limit] = torch.rand(row.limit, dtype=torch.float64, generator=generator)
    return draws_B_T
