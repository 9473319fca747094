"""Read P(followed) of judgements from a decoder's states: with specialists that share all they can, or one row at a time.

A specialist is a readout (one direction of a hidden state; for the verdict token the difference of the rows of `Yes` and
`No` in the output embedding, so that the vocabulary is never projected), and the layers of its own above the trunk that
it shares. `score` packs judgements into token trees, runs the trunk once over the tokens of all specialists, and each
specialist's own layers over the tokens of its own judgements. `score_plain` shares nothing; it is what the trees are checked
against, and the way for decoders whose attention the trees cannot express.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tjd.judge import tree
from tjd.judge.prompt import Encoded
from tjd.judge.tree import Group, Pool

TOKENS_PER_BATCH = 4096  # distinct tokens; more costs memory and gains nothing on a CPU


@dataclass(frozen=True, slots=True, eq=False)
class Specialist:
    """logit of P(followed) = what it pools of a judgement's states, above its own layers, times weight, plus bias."""

    name: str
    decoder: Any  # embeds tokens, and holds the trunk
    first_layer: int  # of its own layers; those below are the decoder's
    layers: torch.nn.ModuleList  # its own; none where it reads the trunk itself
    norm: torch.nn.Module
    weight_F: torch.Tensor  # float32, F = (len(below) + 1) * len(pools) * D
    bias: float = 0.0
    pools: tuple[Pool, ...] = ("last",)
    below: tuple[int, ...] = ()  # layers of the trunk, in order; what enters them is read as well

    def own(self, whole: tree.Tree, hidden_ND: torch.Tensor | None) -> torch.Tensor:
        """What it pools of each judgement of the tree above its own layers, from what enters them."""
        if self.layers or hidden_ND is None:
            with tree.with_layers(self.decoder, self.layers, self.norm):
                hidden_ND = tree.forward(self.decoder, whole, hidden_ND)
        return tree.pool(whole, hidden_ND, self.pools)

    def read(self, pooled_JF: torch.Tensor) -> torch.Tensor:
        """P(followed), [J], in [0, 1]."""
        return torch.sigmoid(pooled_JF.float() @ self.weight_F + self.bias)


def verdict_weight(head: torch.nn.Module, verdicts: tuple[int, int]) -> torch.Tensor:
    """The direction whose logistic function is P(Yes) / (P(Yes) + P(No)), [D] in float32."""
    weight_VD: Any = head.weight
    return (weight_VD[verdicts[0]].float() - weight_VD[verdicts[1]].float()).detach().clone()


def score(
    specialists: Sequence[Specialist],
    judgements: Sequence[Encoded],
    whose: Sequence[int],
    *,
    budget: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, float]]:
    """Yield `(index, P(followed))` for each judgement, in the order in which batches finish.

    Args:
        specialists: In evaluation mode; those with the same decoder share it.
        judgements: What to judge.
        whose: [J] which specialist judges it.
        budget: Distinct tokens per batch.
    """
    for decoder in {id(s.decoder): s.decoder for s in specialists}.values():
        of_decoder = [index for index, k in enumerate(whose) if specialists[k].decoder is decoder]
        if not tree.fits(decoder):
            yield from _score_each(specialists, judgements, of_decoder, whose, budget)
            continue
        theirs = [whose[index] for index in of_decoder]
        for groups in tree.batches([judgements[index] for index in of_decoder], budget):
            with torch.inference_mode():
                for place, probability in _score_batch(decoder, specialists, groups, theirs):
                    yield of_decoder[place], probability


def score_plain(
    specialist: Specialist, judgements: Sequence[Encoded], *, budget: int = TOKENS_PER_BATCH
) -> Iterator[tuple[int, float]]:
    """The same without trees: whole judgements sorted by length, `budget` padded tokens a batch."""
    layers = torch.nn.ModuleList([*specialist.decoder.layers[: specialist.first_layer], *specialist.layers])
    for batch in padded_batches(judgements, budget):
        with torch.inference_mode():
            with tree.with_layers(specialist.decoder, layers, specialist.norm):
                rows = [judgements[index] for index in batch]
                pooled_BF = tree.pool_each(specialist.decoder, rows, specialist.pools, specialist.below)
            yield from zip(batch, specialist.read(pooled_BF).tolist(), strict=True)


def padded_batches(judgements: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Indices of judgements by length, the longest first, so many at once that `budget` padded tokens suffice."""
    order = sorted(range(len(judgements)), key=lambda index: len(judgements[index]), reverse=True)
    while order:
        size = max(1, budget // len(judgements[order[0]]))
        batch, order = order[:size], order[size:]
        yield batch


def _score_each(
    specialists: Sequence[Specialist],
    judgements: Sequence[Encoded],
    chosen: Sequence[int],
    whose: Sequence[int],
    budget: int,
) -> Iterator[tuple[int, float]]:
    for k, specialist in enumerate(specialists):
        mine = [index for index in chosen if whose[index] == k]
        for place, probability in score_plain(specialist, [judgements[index] for index in mine], budget=budget):
            yield mine[place], probability


def _score_batch(
    decoder: Any, specialists: Sequence[Specialist], groups: list[Group], whose: Sequence[int]
) -> Iterator[tuple[int, float]]:
    device = next(decoder.parameters()).device
    present = sorted({whose[i] for g in groups for r in g.responses for same in r.constraints.values() for i in same})
    whole = tree.pack(groups).to(device)
    mine: dict[int, tree.Tree] = dict.fromkeys(present, whole)
    tokens: dict[int, torch.Tensor] = {}
    if len(present) > 1:
        for k in present:
            kept, token_N = tree.select(groups, {i for i, of in enumerate(whose) if of == k})
            mine[k], tokens[k] = tree.pack(kept).to(device), token_N.to(device)
    pooled: dict[int, list[torch.Tensor]] = {k: [] for k in present}
    hidden_ND, layer = None, 0
    for stop in sorted({stop for k in present for stop in (*specialists[k].below, specialists[k].first_layer)}):
        if stop > layer:
            with tree.only_layers(decoder, layer, stop):
                hidden_ND = tree.forward(decoder, whole, hidden_ND)
            layer = stop
        for k in present:
            specialist = specialists[k]
            if stop not in (*specialist.below, specialist.first_layer):
                continue
            mine_ND = hidden_ND[tokens[k]] if hidden_ND is not None and k in tokens else hidden_ND
            if stop < specialist.first_layer:
                assert mine_ND is not None  # layers below are at least the second
                pooled[k].append(tree.pool(mine[k], mine_ND, specialist.pools))
            else:
                pooled[k].append(specialist.own(mine[k], mine_ND))
    for k in present:
        probability_J = specialists[k].read(torch.cat(pooled[k], dim=1))
        for same, probability in zip(mine[k].members, probability_J.tolist(), strict=True):
            for place in same:
                yield place, probability
