"""Token trees: judgements that share an instruction or a response, packed so that every shared token is computed once.

In: encoded judgements. Out: a `Tree`, all distinct tokens of the judgements in one row, and `forward`, which runs a decoder
over it. Linear layers and norms see one packed row without padding; only attention knows of the tree. It works level by
level: instructions attend to themselves, then each response with its constraints side by side to its instruction, to the
response, and each constraint to itself. Every token thus sees exactly the tokens before it in its own judgement, at the
same positions, as if the judgement were run alone; gradients flow through the shared tokens as well.

It relies on transformers' attention interface, hence on no architecture in particular; those that do more in attention than
scaled dot products (soft caps, sliding windows) are found out by `fits`.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import accumulate
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface

from tjd.judge import fused
from tjd.judge.prompt import Encoded

ATTENTION = "tjd_tree"
PADDING = 4  # places in attention per token of a batch's budget, at most
RUNS = ("instruction", "first_half", "second_half", "constraint")  # of a judgement, in order: its response is two
MEANS = {name: (name,) for name in RUNS} | {"response": RUNS[1:3]}  # pools, and the runs that each averages

Pool = Literal["last", "response_end", "instruction", "response", "first_half", "second_half", "constraint"]

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
    run_J4: torch.Tensor  # the runs of each judgement, those of `RUNS`
    n_runs: int
    members: tuple[tuple[int, ...], ...]  # [J] which of the given judgements it is

    def to(self, device: torch.device) -> "Tree":
        """The same tree on another device."""
        return replace(_moved(self, device), levels=tuple(_moved(level, device) for level in self.levels))


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch costs."""

    n_tokens: int  # distinct ones
    n_responses: int = 0
    longest: int = 0  # tokens of a response with its constraints

    def __add__(self, other: "Load") -> "Load":
        """Both in one batch."""
        longest = max(self.longest, other.longest)
        return Load(self.n_tokens + other.n_tokens, self.n_responses + other.n_responses, longest)

    def fits(self, budget: int) -> bool:
        """Whether a budget of tokens allows for it."""
        return self.n_tokens <= budget and self.n_responses * self.longest <= PADDING * budget


@dataclass(slots=True)
class Response:
    """A response's tokens, and the constraints it is judged by with the judgements that ask for them."""

    ids: Ids
    constraints: dict[Ids, list[int]]

    @property
    def n_tokens(self) -> int:
        """Distinct tokens, those of the constraints included."""
        return len(self.ids) + sum(map(len, self.constraints))

    @property
    def load(self) -> Load:
        """What it adds to a batch."""
        return Load(self.n_tokens, 1, self.n_tokens)


@dataclass(slots=True)
class Group:
    """Responses to one instruction."""

    ids: Ids
    responses: list[Response]

    @property
    def n_tokens(self) -> int:
        """Distinct tokens."""
        return len(self.ids) + sum(response.n_tokens for response in self.responses)

    @property
    def load(self) -> Load:
        """What it adds to a batch."""
        return sum((response.load for response in self.responses), Load(len(self.ids)))


Piece = TypeVar("Piece", Response, Group)


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

    A group above the budget is cut by responses; its instruction is then computed more than once. Attention pads the
    responses of a batch to the longest of them: a batch is cut as well where that would exceed `PADDING` times the budget.
    """
    parts = [
        Group(whole.ids, responses)
        for whole in group(judgements)
        for responses in _cut(_by_size(whole.responses), Load(len(whole.ids)), budget)
    ]
    yield from _cut(_by_size(parts), Load(0), budget)


def select(groups: Sequence[Group], wanted: Set[int]) -> tuple[list[Group], torch.Tensor]:
    """The part of some groups that certain judgements need.

    Returns:
        The groups, and for each token of their tree its place in the tree of all groups.
    """
    kept: list[Group] = []
    of_instructions: list[int] = []
    of_responses: list[int] = []
    starts_I, starts_R = _starts(groups)
    rest_R = iter(starts_R)
    for start, whole in zip(starts_I, groups, strict=True):
        responses = []
        for response in whole.responses:
            place = next(rest_R)
            own = list(range(place, place := place + len(response.ids)))
            constraints: dict[Ids, list[int]] = {}
            for ids, members in response.constraints.items():
                if mine := [index for index in members if index in wanted]:
                    constraints[ids] = mine
                    own += range(place, place + len(ids))
                place += len(ids)
            if constraints:
                responses.append(Response(response.ids, constraints))
                of_responses += own
        if responses:
            kept.append(Group(whole.ids, responses))
            of_instructions += range(start, start + len(whole.ids))
    return kept, torch.tensor([*of_instructions, *of_responses])


def pack(groups: Sequence[Group]) -> Tree:
    """Lay the tokens of some groups out in one row: the instructions, then each response followed by its constraints."""
    starts_I, starts_R = _starts(groups)
    ids: list[int] = [token for whole in groups for token in whole.ids]
    position: list[int] = [place for whole in groups for place in range(len(whole.ids))]
    run: list[int] = [number for number, whole in enumerate(groups) for _ in whole.ids]
    instructions = [list(range(s, s + len(whole.ids))) for s, whole in zip(starts_I, groups, strict=True)]
    n_runs = len(groups)
    read: list[int] = []
    ends: list[int] = []
    runs: list[tuple[int, int, int, int]] = []
    members: list[tuple[int, ...]] = []
    own_R: list[list[int]] = []  # a response's tokens and those of its constraints
    owner_R: list[list[int]] = []  # whose they are: 0 the response's, else the number of the constraint
    prefix_R: list[list[int]] = []
    responses = [(parent, response) for parent, whole in enumerate(groups) for response in whole.responses]
    for start, (parent, response) in zip(starts_R, responses, strict=True):
        offset = len(groups[parent].ids)
        owner = [0] * len(response.ids)
        ids += response.ids
        position += range(offset, offset + len(response.ids))
        n_first = middle(len(response.ids))
        first, second, n_runs = n_runs, n_runs + 1, n_runs + 2
        run += [first] * n_first + [second] * (len(response.ids) - n_first)
        for number, (constraint, indices) in enumerate(response.constraints.items(), start=1):
            ids += constraint
            place = offset + len(response.ids)
            position += range(place, place + len(constraint))
            owner += [number] * len(constraint)
            run += [n_runs] * len(constraint)
            runs.append((parent, first, second, n_runs))
            n_runs += 1
            read.append(start + len(owner) - 1)
            ends.append(start + len(response.ids) - 1 if response.ids else -1)
            members.append(tuple(indices))
        own_R.append(list(range(start, start + len(owner))))
        owner_R.append(owner)
        prefix_R.append(instructions[parent])
    levels = (_causal(instructions), _after(prefix_R, own_R, owner_R))
    return Tree(
        torch.tensor(ids), torch.tensor(position), levels, torch.tensor(read), torch.tensor(ends), torch.tensor(run),
        torch.tensor(runs), n_runs, tuple(members),
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
    if fused.can_run(decoder):
        x_ND = decoder.embed_tokens(tree.ids_N) if hidden_ND is None else hidden_ND
        return fused.forward(decoder, x_ND, tree.position_N, partial(_attend_levels, tree.levels))
    tokens = {"input_ids": tree.ids_N[None]} if hidden_ND is None else {"inputs_embeds": hidden_ND[None]}
    with _tree_attention(decoder.config):
        out = decoder(**tokens, position_ids=tree.position_N[None], use_cache=False, tree=tree.levels)
    return out.last_hidden_state[0]


_known_to_fit: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def pool(whole: Tree, hidden_ND: torch.Tensor, pools: Sequence[Pool]) -> torch.Tensor:
    """What is read of each judgement's states, side by side in float32, [J, len(pools) * D].

    `last` is the state where the verdict is read, `response_end` that of the response's last token; the others are means over
    the judgement's instruction, response, first or second half of it, or constraint with the prompt's tail. Where there are
    no tokens, zeros are read.
    """
    hidden_ND = hidden_ND.float()
    parts = []
    sums_SD, length_S = torch.empty(0), torch.empty(0)
    if MEANS.keys() & set(pools):
        sums_SD = hidden_ND.new_zeros(whole.n_runs, hidden_ND.shape[1]).index_add_(0, whole.run_N, hidden_ND)
        length_S = whole.run_N.bincount(minlength=whole.n_runs)
    for name in pools:
        if name == "last":
            parts.append(hidden_ND[whole.read_J])
        elif name == "response_end":
            parts.append(hidden_ND[whole.response_end_J.clamp(min=0)] * (whole.response_end_J >= 0)[:, None])
        else:
            over_JR = whole.run_J4[:, [RUNS.index(run) for run in MEANS[name]]]
            parts.append(sums_SD[over_JR].sum(1) / length_S[over_JR].sum(1, keepdim=True).clamp(min=1))
    return torch.cat(parts, dim=1)


def middle(n_tokens: int) -> int:
    """How many tokens of a response are its first half."""
    return (n_tokens + 1) // 2


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
    with torch.no_grad(), fused.off():  # what is asked is whether its attention can be expressed
        alone_JD = pool_each(decoder, judgements)
        try:
            together_JD = pool(whole, forward(decoder, whole), ["last"])
        except (NotImplementedError, TypeError, AttributeError):
            return False
    return bool(torch.allclose(together_JD, alone_JD, rtol=0.05, atol=0.05 * float(alone_JD.abs().max())))


def pool_each(
    decoder: Any, judgements: Sequence[Encoded], pools: Sequence[Pool] = ("last",), below: Sequence[int] = ()
) -> torch.Tensor:
    """The same without a tree, of what enters the layers `below` and of what leaves the last: what trees are checked against.

    Judgements are padded on the right, after everything that is read, so causal attention needs no mask.
    """
    device = next(decoder.parameters()).device
    ids = [torch.tensor(judgement.ids) for judgement in judgements]
    ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
    out = decoder(input_ids=ids_BT, use_cache=False, output_hidden_states=bool(below))
    states = [*(out.hidden_states[layer] for layer in below), out.last_hidden_state]
    return torch.cat([_pool_rows(hidden_BTD.float(), judgements, pools) for hidden_BTD in states], dim=1)


def _pool_rows(hidden_BTD: torch.Tensor, judgements: Sequence[Encoded], pools: Sequence[Pool]) -> torch.Tensor:
    rows = []
    for hidden_TD, judgement in zip(hidden_BTD, judgements, strict=True):
        start = len(judgement.instruction)
        half, end = start + middle(len(judgement.response)), start + len(judgement.response)
        spans = {
            "instruction": (0, start), "response": (start, end), "first_half": (start, half), "second_half": (half, end),
            "constraint": (end, len(judgement)),
        }  # fmt: skip
        parts = []
        for name in pools:
            if name == "last":
                parts.append(hidden_TD[len(judgement) - 1])
            elif name == "response_end":
                parts.append(hidden_TD[end - 1] * bool(judgement.response))
            else:
                first, stop = spans[name]
                parts.append(hidden_TD[first:stop].sum(0) / max(1, stop - first))
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
    return _attend_levels(tree, query_NHd, key_NKd, value_NKd, scaling, dropout)[None], None


def _attend_levels(
    levels: Sequence[Level],
    query_NHd: torch.Tensor,
    key_NKd: torch.Tensor,
    value_NKd: torch.Tensor,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """What each token gathers from those that it sees, [N, H, d]."""
    attended = []
    for level in levels:
        query_BHTd = query_NHd[level.query_BT].transpose(1, 2)
        key_BKSd, value_BKSd = key_NKd[level.key_BS].transpose(1, 2), value_NKd[level.key_BS].transpose(1, 2)
        attended_BHTd = torch.nn.functional.scaled_dot_product_attention(
            query_BHTd, key_BKSd, value_BKSd, attn_mask=level.bias(query_BHTd), is_causal=level.visible_B1TS is None,
            dropout_p=dropout, scale=scaling, enable_gqa=query_BHTd.shape[1] != key_BKSd.shape[1],
        )  # fmt: skip
        attended.append(attended_BHTd.transpose(1, 2).flatten(0, 1)[level.place_Q])
    return torch.cat(attended)


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


def _causal(runs: Sequence[list[int]]) -> Level:
    """Each run attends to itself."""
    query_BT, length_B = _padded(runs)
    return Level(query_BT, query_BT, None, _real(query_BT, length_B))


def _after(prefixes: Sequence[list[int]], runs: Sequence[list[int]], owners: Sequence[list[int]]) -> Level:
    """Each run attends to its prefix and itself; a token sees those of owner 0 and of its own owner."""
    query_BT, length_B = _padded(runs)
    prefix_BP, n_prefix_B = _padded(prefixes)
    owner_BT, _ = _padded(owners)
    n_query = query_BT.shape[1]
    seen_BP = torch.arange(prefix_BP.shape[1])[None] < n_prefix_B[:, None]
    shared_BTT = (owner_BT[:, None, :] == 0) | (owner_BT[:, :, None] == owner_BT[:, None, :])
    own_BTT = torch.ones(n_query, n_query, dtype=torch.bool).tril() & shared_BTT
    visible_BTS = torch.cat([seen_BP[:, None].expand(-1, n_query, -1), own_BTT], dim=2)
    key_BS = torch.cat([prefix_BP, query_BT], dim=1)
    return Level(query_BT, key_BS, visible_BTS[:, None], _real(query_BT, length_B))


def _real(padded_BT: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """Places of what is no padding in the flattened [B, T]."""
    return (torch.arange(padded_BT.shape[1])[None] < length_B[:, None]).flatten().nonzero()[:, 0]


def _moved(holder: Any, device: torch.device) -> Any:
    """The same dataclass with its tensors on another device."""
    values = {f.name: getattr(holder, f.name) for f in fields(holder)}
    return replace(holder, **{name: x.to(device) for name, x in values.items() if isinstance(x, torch.Tensor)})


def _padded(runs: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs padded on the right with their last number, [B, T], and their lengths [B]."""
    width = max(map(len, runs))
    padded = [[*run, *[run[-1] if run else 0] * (width - len(run))] for run in runs]
    return torch.tensor(padded).reshape(len(runs), width), torch.tensor([len(run) for run in runs])


def _starts(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """Where the tokens of each instruction, and of each response with its constraints, begin."""
    sizes = [len(whole.ids) for whole in groups] + [response.n_tokens for g in groups for response in g.responses]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return starts[: len(groups)], starts[len(groups) :]


def _by_size(pieces: Iterable[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.n_tokens, reverse=True)


def _cut(pieces: Iterable[Piece], start: Load, budget: int) -> Iterator[list[Piece]]:
    """Cut pieces into batches, each as full as the budget allows beside what it starts with, and of one piece at least."""
    batch: list[Piece] = []
    load = start
    for piece in pieces:
        if batch and not (load + piece.load).fits(budget):
            yield batch
            batch, load = [], start
        batch.append(piece)
        load += piece.load
    if batch:
        yield batch
