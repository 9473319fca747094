"""Token trees: judgements that share an instruction or a response, packed so that every shared token is computed once.

In: encoded judgements. Out: a `Tree`, all distinct tokens of the judgements in one row, and `forward`, which runs a decoder
over it. Linear layers and norms see one packed row without padding; only attention knows of the tree. It works level by
level: instructions attend to themselves, responses to their instruction and themselves, and the constraints of a response,
side by side, to both and each to itself. Every token thus sees exactly the tokens before it in its own judgement, at the
same positions, as if the judgement were run alone; gradients flow through the shared tokens as well.

It relies on transformers' attention interface, hence on no architecture in particular; those that do more in attention than
scaled dot products (soft caps, sliding windows) are found out by `fits`.
"""

from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface

from tjd.judge.prompt import Encoded

ATTENTION = "tjd_tree"
RUNS = ("instruction", "response", "constraint")  # the runs of a judgement, in order

Pool = Literal["last", "response_end", "instruction", "response", "constraint"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """Attention of one level: which packed tokens ask, which are asked, and which pairs see each other."""

    query_BT: torch.Tensor  # indices into the packed row; padded with the last one
    key_BS: torch.Tensor
    visible_B1TS: torch.Tensor | None  # None: causal, queries and keys being the same
    place_Q: torch.Tensor  # where the real queries stand in the flattened [B, T], in the order of the packed row
    biases: dict[tuple[torch.dtype, torch.device], torch.Tensor] = field(default_factory=dict, compare=False)

    def bias(self, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores: 0 where a pair sees each other, else minus infinity; made once for all layers."""
        if self.visible_B1TS is None:
            return None
        key = (like.dtype, like.device)
        if key not in self.biases:
            zeros = torch.zeros(self.visible_B1TS.shape, dtype=like.dtype, device=like.device)
            self.biases[key] = zeros.masked_fill_(~self.visible_B1TS, -torch.inf)
        return self.biases[key]


@dataclass(frozen=True, slots=True)
class Tree:
    """Judgements packed into one row of N distinct tokens."""

    ids_N: torch.Tensor
    position_N: torch.Tensor  # of each token within its judgement
    levels: tuple[Level, ...]
    read_J: torch.Tensor  # where each distinct judgement's verdict is read, in the packed row
    response_end_J: torch.Tensor  # the last token of its response, -1 where that has none
    run_N: torch.Tensor  # which run of text each token belongs to
    run_J3: torch.Tensor  # the runs of each judgement: instruction, response, constraint
    n_runs: int
    members: tuple[tuple[int, ...], ...]  # [J] which of the given judgements it is

    def to(self, device: torch.device) -> "Tree":
        """The same tree on another device."""
        return replace(_moved(self, device), levels=tuple(_moved(level, device) for level in self.levels))


@dataclass(slots=True)
class Response:
    """A response's tokens, and the constraints it is judged by with the judgements that ask for them."""

    ids: Ids
    constraints: dict[Ids, list[int]]


@dataclass(slots=True)
class Group:
    """Responses to one instruction."""

    ids: Ids
    responses: list[Response]

    @property
    def n_tokens(self) -> int:
        """Distinct tokens."""
        return len(self.ids) + sum(len(r.ids) + sum(map(len, r.constraints)) for r in self.responses)


def group(judgements: Sequence[Encoded]) -> list[Group]:
    """Group judgements by instruction, and within it by response; equal judgements become one."""
    groups: dict[Ids, dict[Ids, dict[Ids, list[int]]]] = {}
    for index, judgement in enumerate(judgements):
        by_response = groups.setdefault(judgement.instruction, {})
        by_response.setdefault(judgement.response, {}).setdefault(judgement.constraint, []).append(index)
    return [
        Group(instruction, [Response(response, constraints) for response, constraints in responses.items()])
        for instruction, responses in groups.items()
    ]


def batches(judgements: Sequence[Encoded], budget: int) -> Iterator[list[Group]]:
    """Groups of similar size, the largest first (so that memory peaks at once), of at most `budget` distinct tokens a batch.

    A group above the budget is cut by responses; its instruction is then computed more than once.
    """
    parts = [part for whole in group(judgements) for part in _cut(whole, budget)]
    batch: list[Group] = []
    n_tokens = 0
    for part in sorted(parts, key=lambda part: part.n_tokens, reverse=True):
        if batch and n_tokens + part.n_tokens > budget:
            yield batch
            batch, n_tokens = [], 0
        batch.append(part)
        n_tokens += part.n_tokens
    if batch:
        yield batch


def select(groups: Sequence[Group], wanted: Set[int]) -> tuple[list[Group], torch.Tensor]:
    """The part of some groups that certain judgements need.

    Returns:
        The groups, and for each token of their tree its place in the tree of all groups.
    """
    kept: list[Group] = []
    tokens: tuple[list[int], list[int], list[int]] = ([], [], [])  # of instructions, responses, constraints
    starts_I, starts_R, starts_C = _starts(groups)
    response_index = 0
    for parent, whole in enumerate(groups):
        responses = []
        for response in whole.responses:
            constraints: dict[Ids, list[int]] = {}
            place = starts_C[response_index]
            for ids, members in response.constraints.items():
                if of_mine := [index for index in members if index in wanted]:
                    constraints[ids] = of_mine
                    tokens[2].extend(range(place, place + len(ids)))
                place += len(ids)
            if constraints:
                responses.append(Response(response.ids, constraints))
                start = starts_R[response_index]
                tokens[1].extend(range(start, start + len(response.ids)))
            response_index += 1
        if responses:
            kept.append(Group(whole.ids, responses))
            tokens[0].extend(range(starts_I[parent], starts_I[parent] + len(whole.ids)))
    return kept, torch.tensor([*tokens[0], *tokens[1], *tokens[2]])


def pack(groups: Sequence[Group]) -> Tree:
    """Lay the tokens of some groups out in one row: instructions, then responses, then constraints."""
    responses = [(parent, response) for parent, g in enumerate(groups) for response in g.responses]
    start_I, start_R, start_C = _starts(groups)

    n_I, n_R = len(groups), len(responses)
    run: list[int] = [number for number, g in enumerate(groups) for _ in g.ids]
    run += [n_I + number for number, (_, r) in enumerate(responses) for _ in r.ids]
    runs: list[tuple[int, int, int]] = []
    ids: list[int] = [token for g in groups for token in g.ids]
    position: list[int] = [place for g in groups for place in range(len(g.ids))]
    for parent, response in responses:
        ids += response.ids
        offset = len(groups[parent].ids)
        position += range(offset, offset + len(response.ids))
    read: list[int] = []
    ends: list[int] = []
    members: list[tuple[int, ...]] = []
    owner_R: list[list[int]] = []  # which of the response's constraints each token belongs to
    for place, ((parent, response), start) in enumerate(zip(responses, start_C, strict=True)):
        offset = len(groups[parent].ids) + len(response.ids)
        owner: list[int] = []
        for number, (constraint, indices) in enumerate(response.constraints.items()):
            ids += constraint
            position += range(offset, offset + len(constraint))
            owner += [number] * len(constraint)
            run += [n_I + n_R + len(runs)] * len(constraint)
            runs.append((parent, n_I + place, n_I + n_R + len(runs)))
            read.append(start + len(owner) - 1)
            ends.append(start_R[place] + len(response.ids) - 1 if response.ids else -1)
            members.append(tuple(indices))
        owner_R.append(owner)

    instruction = [range(s, s + len(g.ids)) for s, g in zip(start_I, groups, strict=True)]
    response_runs = [range(s, s + len(r.ids)) for s, (_, r) in zip(start_R, responses, strict=True)]
    constraint_runs = [range(s, s + len(owner)) for s, owner in zip(start_C, owner_R, strict=True)]
    prefix = [[*instruction[parent], *run] for (parent, _), run in zip(responses, response_runs, strict=True)]
    levels = [_level([list(run) for run in instruction], None, None)]
    if any(response_runs):  # an empty response has no tokens of its own
        levels.append(
            _level(list(map(list, response_runs)), [list(instruction[parent]) for parent, _ in responses], None)
        )
    levels.append(_level(list(map(list, constraint_runs)), prefix, owner_R))
    return Tree(
        torch.tensor(ids), torch.tensor(position), tuple(levels), torch.tensor(read), torch.tensor(ends),
        torch.tensor(run), torch.tensor(runs), n_I + n_R + len(runs), tuple(members),
    )  # fmt: skip


def forward(decoder: Any, tree: Tree, hidden_ND: torch.Tensor | None = None) -> torch.Tensor:
    """Run a decoder over a tree's tokens.

    Args:
        decoder: A transformers decoder; see `only_layers` for a part of one.
        tree: On the decoder's device.
        hidden_ND: What enters its first layer; None embeds the tokens.

    Returns:
        What leaves its last layer, [N, D].
    """
    tokens = {"input_ids": tree.ids_N[None]} if hidden_ND is None else {"inputs_embeds": hidden_ND[None]}
    with _tree_attention(decoder.config):
        out = decoder(**tokens, position_ids=tree.position_N[None], use_cache=False, tree=tree.levels)
    return out.last_hidden_state[0]


_known_to_fit: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def pool(whole: Tree, hidden_ND: torch.Tensor, pools: Sequence[Pool]) -> torch.Tensor:
    """What is read of each judgement's states, side by side in float32, [J, len(pools) * D].

    `last` is the state where the verdict is read, `response_end` that of the response's last token; the others are means over
    the judgement's instruction, response, or constraint with the prompt's tail. Of a run without tokens, zeros are read.
    """
    hidden_ND = hidden_ND.float()
    parts = []
    means_SD = torch.empty(0)
    if set(pools) & set(RUNS):
        sums_SD = hidden_ND.new_zeros(whole.n_runs, hidden_ND.shape[1]).index_add_(0, whole.run_N, hidden_ND)
        means_SD = sums_SD / whole.run_N.bincount(minlength=whole.n_runs).clamp(min=1)[:, None]
    for name in pools:
        if name == "last":
            parts.append(hidden_ND[whole.read_J])
        elif name == "response_end":
            parts.append(hidden_ND[whole.response_end_J.clamp(min=0)] * (whole.response_end_J >= 0)[:, None])
        else:
            parts.append(means_SD[whole.run_J3[:, RUNS.index(name)]])
    return torch.cat(parts, dim=1)


def fits(decoder: Any) -> bool:
    """Whether a tree gives what running each judgement alone gives; tried once per decoder."""
    if decoder not in _known_to_fit:
        _known_to_fit[decoder] = _try(decoder)
    return _known_to_fit[decoder]


def _try(decoder: Any) -> bool:
    ids = [tuple(range(start, start + 4)) for start in range(6)]
    judgements = [Encoded(ids[0], ids[1], ids[2]), Encoded(ids[0], ids[1], ids[3]), Encoded(ids[0], ids[4], ids[5])]
    device = next(decoder.parameters()).device
    [whole] = [pack(groups).to(device) for groups in batches(judgements, 100)]
    with torch.no_grad():
        alone_JD = pool_each(decoder, judgements)
        try:
            together_JD = pool(whole, forward(decoder, whole), ["last"])
        except (NotImplementedError, TypeError, AttributeError):
            return False
    return bool(torch.allclose(together_JD, alone_JD, rtol=0.05, atol=0.05 * float(alone_JD.abs().max())))


def pool_each(decoder: Any, judgements: Sequence[Encoded], pools: Sequence[Pool] = ("last",)) -> torch.Tensor:
    """The same without a tree, [B, len(pools) * D]: what trees are checked against.

    Judgements are padded on the right, after everything that is read, so causal attention needs no mask.
    """
    device = next(decoder.parameters()).device
    ids = [torch.tensor(judgement.ids) for judgement in judgements]
    ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
    hidden_BTD = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state.float()
    rows = []
    for hidden_TD, judgement in zip(hidden_BTD, judgements, strict=True):
        start = {"instruction": 0, "response": len(judgement.instruction)}
        start["constraint"] = start["response"] + len(judgement.response)
        parts = []
        for name in pools:
            if name == "last":
                parts.append(hidden_TD[len(judgement) - 1])
            elif name == "response_end":
                parts.append(hidden_TD[start["constraint"] - 1] * bool(judgement.response))
            else:
                n_tokens = len(getattr(judgement, name))
                parts.append(hidden_TD[start[name] : start[name] + n_tokens].sum(0) / max(1, n_tokens))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: Sequence[Level],
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: query [1, H, N, d], key and value [1, K, N, d]; gives [1, N, H, d]."""
    if rest.get("softcap") is not None or getattr(module, "sliding_window", None) is not None:
        raise NotImplementedError("attention with soft caps or sliding windows")
    query_NHd, key_NKd, value_NKd = (x[0].transpose(0, 1) for x in (query, key, value))
    attended = []
    for level in tree:
        query_BHTd = query_NHd[level.query_BT].transpose(1, 2)
        key_BKSd, value_BKSd = key_NKd[level.key_BS].transpose(1, 2), value_NKd[level.key_BS].transpose(1, 2)
        attended_BHTd = torch.nn.functional.scaled_dot_product_attention(
            query_BHTd, key_BKSd, value_BKSd, attn_mask=level.bias(query_BHTd), is_causal=level.visible_B1TS is None,
            dropout_p=dropout, scale=scaling, enable_gqa=query_BHTd.shape[1] != key_BKSd.shape[1],
        )  # fmt: skip
        attended.append(attended_BHTd.transpose(1, 2).flatten(0, 1)[level.place_Q])
    return torch.cat(attended)[None], None


AttentionInterface.register(ATTENTION, _attend)


@contextmanager
def _tree_attention(config: Any) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def with_layers(decoder: Any, layers: torch.nn.ModuleList, norm: torch.nn.Module) -> Iterator[None]:
    """Within the block the decoder has these layers and this final norm."""
    before = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers, norm
    try:
        yield
    finally:
        decoder.layers, decoder.norm = before


def copied_layers(decoder: Any, start: int) -> torch.nn.ModuleList:
    """Copies of the layers from `start` on. They keep the decoder's own config, which says how to attend."""
    return deepcopy(decoder.layers[start:], {id(decoder.config): decoder.config})


def only_layers(decoder: Any, start: int, stop: int) -> AbstractContextManager[None]:
    """Within the block the decoder has only some of its layers, and no final norm: what it gives enters layer `stop`."""
    return with_layers(decoder, decoder.layers[start:stop], torch.nn.Identity())


def _level(runs: Sequence[list[int]], prefix: Sequence[list[int]] | None, owner: Sequence[list[int]] | None) -> Level:
    """A level whose row b holds the tokens `runs[b]` after `prefix[b]`; tokens of different owners do not see each other."""
    if prefix is not None:  # rows without tokens of their own need no attention
        filled = [b for b, run in enumerate(runs) if run]
        runs, prefix = [runs[b] for b in filled], [prefix[b] for b in filled]
        owner = None if owner is None else [owner[b] for b in filled]
    query_BT, length_B = _padded(runs)
    n_query = query_BT.shape[1]
    real_BT = torch.arange(n_query)[None] < length_B[:, None]
    place_Q = real_BT.flatten().nonzero()[:, 0]
    if prefix is None:
        return Level(query_BT, query_BT, None, place_Q)
    prefix_BP, n_prefix_B = _padded(prefix)
    seen_B1P = (torch.arange(prefix_BP.shape[1])[None] < n_prefix_B[:, None])[:, None]
    own_BTT = torch.ones(n_query, n_query, dtype=torch.bool).tril()[None].expand(len(runs), -1, -1)
    if owner is not None:
        owner_BT, _ = _padded(owner)
        own_BTT = own_BTT & (owner_BT[:, :, None] == owner_BT[:, None, :])
    visible_BTS = torch.cat([seen_B1P.expand(-1, n_query, -1), own_BTT], dim=2)
    return Level(query_BT, torch.cat([prefix_BP, query_BT], dim=1), visible_BTS[:, None], place_Q)


def _moved(holder: Any, device: torch.device) -> Any:
    """The same dataclass with its tensors on another device."""
    values = {f.name: getattr(holder, f.name) for f in fields(holder)}
    return replace(holder, **{name: x.to(device) for name, x in values.items() if isinstance(x, torch.Tensor)})


def _padded(runs: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs padded on the right with their last number, [B, T], and their lengths [B]."""
    width = max(map(len, runs))
    padded = [[*run, *[run[-1] if run else 0] * (width - len(run))] for run in runs]
    return torch.tensor(padded).reshape(len(runs), width), torch.tensor([len(run) for run in runs])


def _starts(groups: Sequence[Group]) -> tuple[list[int], list[int], list[int]]:
    """Where the tokens of each instruction, of each response, and of each response's constraints begin."""
    responses = [response for whole in groups for response in whole.responses]
    sizes = (
        *(len(whole.ids) for whole in groups),
        *(len(response.ids) for response in responses),
        *(sum(map(len, response.constraints)) for response in responses),
    )
    starts = list(accumulate(sizes, initial=0))[:-1]
    n_I, n_R = len(groups), len(responses)
    return starts[:n_I], starts[n_I : n_I + n_R], starts[n_I + n_R :]


def _cut(whole: Group, budget: int) -> Iterator[Group]:
    part = Group(whole.ids, [])
    n_tokens = len(whole.ids)
    for response in whole.responses:
        size = len(response.ids) + sum(map(len, response.constraints))
        if part.responses and n_tokens + size > budget:
            yield part
            part, n_tokens = Group(whole.ids, []), len(whole.ids)
        part.responses.append(response)
        n_tokens += size
    yield part
