"""Train one specialist: -log P(verdict | instruction, response, constraint) on labelled rows (paper, Eq. 4).

In: token ids and truths. Out: the model with the weights of the best epoch, and a row of metrics per step. The loss is
read at the last position alone, the only one whose token is a verdict, so only there the hidden state is projected onto
the vocabulary. Unlike the paper, the two classes weigh the same within a category, and the epoch with the lowest
validation loss is kept.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model

from tjd import backbone
from tjd.config import TrainJudgeConfig
from tjd.errors import TrainingError
from tjd.judge import tree
from tjd.judge.prompt import Encoded
from tjd.judge.score import TOKENS_PER_BATCH, Specialist, verdict_weight
from tjd.judge.tree import Group, Ids

log = logging.getLogger(__name__)

MAX_STATE_BYTES = 4 << 30  # of trunk states to keep in memory
MAX_CLASS_WEIGHT = 8.0  # a handful of rows must not drown the others
WARMUP = 0.1  # share of the steps

Step = Callable[[dict[str, Any]], None]

States = Mapping[tuple[Ids, ...], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled judgement."""

    encoded: Encoded
    followed: bool
    category: str
    query_id: str = ""  # the unit of intervals
    real: bool = True  # not a negative that was made for training
    donor_query_id: str | None = None  # of such a one, the query that its response or constraint is from


Losses = Callable[[Sequence[Example]], tuple[torch.Tensor, Sequence[Example]]]


def first_adapted_layer(config: TrainJudgeConfig, n_layers: int) -> int:
    """Below this layer nothing is trained: 0 unless `lora_layers` limits the adapters to the top."""
    return max(0, n_layers - config.lora_layers) if config.lora_layers and not config.full else 0


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The transformer without its head, and the output embedding, adapters included."""
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    return lm.get_decoder(), lm.get_output_embeddings()


def add_adapter(base: Any, config: TrainJudgeConfig) -> Any:
    """Put LoRA adapters on every linear layer, of the top `lora_layers` only if that is set."""
    with backbone.without_peft_noise():
        return get_peft_model(base, backbone.lora(base, config.lora_rank, config.lora_layers))


@contextmanager
def own_copy(base: Any, first_layer: int) -> Iterator[None]:
    """Within the block the layers from `first_layer` on are copies, so that adapting them leaves the base as it was."""
    decoder = base.get_decoder()
    layers = decoder.layers
    decoder.layers = torch.nn.ModuleList([*layers[:first_layer], *tree.copied_layers(decoder, first_layer)])
    try:
        yield
    finally:
        decoder.layers = layers
        if hasattr(base, "peft_config"):
            del base.peft_config  # merged: the next adapter is the first again


def merged(model: Any, name: str, first_layer: int, verdicts: tuple[int, int]) -> Specialist:
    """Freeze a trained model into a specialist, its adapters merged into the layers of its own."""
    model.eval()
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    decoder, head = decoder_and_head(model)
    layers = torch.nn.ModuleList(list(decoder.layers[first_layer:]))
    return Specialist(name, decoder, first_layer, layers, decoder.norm, verdict_weight(head, verdicts))


def trunk_states(decoder: Any, judgements: Sequence[Encoded], first_layer: int) -> States | None:
    """Run the frozen trunk once for all epochs.

    Returns:
        What enters `first_layer`, [T, D], of each distinct instruction, (instruction, response) and (instruction, response,
        constraint); None where there is no trunk or its states are too large to keep.
    """
    n_tokens = sum(whole.n_tokens for whole in tree.group(judgements))
    if first_layer == 0 or not tree.fits(decoder) or n_tokens * decoder.config.hidden_size * 2 > MAX_STATE_BYTES:
        return None
    states: dict[tuple[Ids, ...], torch.Tensor] = {}
    device = next(decoder.parameters()).device
    with torch.no_grad(), tree.only_layers(decoder, 0, first_layer):
        for groups in tree.batches(judgements, TOKENS_PER_BATCH):
            hidden_ND = tree.forward(decoder, tree.pack(groups).to(device))
            keys = _keys(groups)
            for key, state_TD in zip(keys, hidden_ND.split([len(key[-1]) for key in keys]), strict=True):
                states[key] = state_TD.clone()
    return states


def fit(
    model: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    verdicts: tuple[int, int],
    config: TrainJudgeConfig,
    on_step: Step = lambda metrics: None,
) -> list[dict[str, Any]]:
    """Train `model` in place and leave it with the weights of its best epoch.

    Args:
        model: A causal LM whose trainable parameters require gradients.
        train: At least one example of each class.
        validation: Decides which epoch is kept; may be empty, then the last is.
        verdicts: Token ids of `Yes` and `No`.
        config: Epochs, batch size, learning rate, patience, seed.
        on_step: Told of every row of metrics.

    Returns:
        One row per optimiser step (`step`, `epoch`, `loss`, `learning_rate`, `n_tokens`); the last row of an epoch also
        has `validation_loss`.

    Raises:
        TrainingError: The loss is not finite.
    """
    decoder, _ = decoder_and_head(model)
    first_layer = first_adapted_layer(config, model.config.get_text_config().num_hidden_layers)
    states = trunk_states(decoder, [example.encoded for example in (*train, *validation)], first_layer)
    if states is None:
        first_layer = 0

    def losses(batch: Sequence[Example]) -> tuple[torch.Tensor, Sequence[Example]]:
        return _losses(model, batch, verdicts, first_layer, states)

    def predicted(examples: Sequence[Example]) -> np.ndarray:
        return predict(model, examples, verdicts, first_layer, states)

    return learn(model, train, validation, losses, predicted, config, on_step)


def learn(
    model: torch.nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example],
    losses: Losses,
    predicted: Callable[[Sequence[Example]], np.ndarray],
    config: TrainJudgeConfig,
    on_step: Step,
) -> list[dict[str, Any]]:
    """The epochs of `fit`, for a model with any head.

    Args:
        model: Its trainable parameters require gradients.
        train: See `fit`.
        validation: See `fit`.
        losses: Of a batch: the loss of each example in nats, [B], and the examples in the order of these.
        predicted: P(followed) of each example, [N], in evaluation mode.
        config: See `fit`.
        on_step: See `fit`.
    """
    torch.manual_seed(config.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=0.0)
    n_steps = config.epochs * math.ceil(len(train) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, n_steps))
    weights = class_weights(train)
    rows: list[dict[str, Any]] = []
    best_loss, best_state, waited = math.inf, None, 0
    for epoch in range(config.epochs):
        model.train()
        for batch in epoch_batches(train, config.batch_size, seed=config.seed + epoch):
            loss_B, judged = losses(batch)
            weight_B = loss_B.new_tensor([weights[example.category, example.followed] for example in judged])
            loss = _descend((weight_B * loss_B).sum() / weight_B.sum(), parameters, optimizer)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {len(rows) + 1}; lower --learning-rate")
            rows.append(
                {
                    "step": len(rows) + 1,
                    "epoch": epoch + 1,
                    "loss": loss,
                    "learning_rate": schedule.get_last_lr()[0],
                    "n_tokens": sum(len(example.encoded) for example in batch),
                    "validation_loss": None,
                }
            )
            schedule.step()
            on_step(rows[-1] | {"n_steps": n_steps})
        model.eval()
        if validation:
            rows[-1]["validation_loss"] = current = validation_loss(validation, predicted(validation))
            on_step(rows[-1] | {"n_steps": n_steps})
            if current < best_loss:
                best_loss, waited = current, 0
                best_state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            else:
                waited += 1
                if waited >= config.patience:
                    break
    if best_state is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in best_state:
                    parameter.copy_(best_state[name])
    return rows


def class_weights(examples: Sequence[Example]) -> dict[tuple[str, bool], float]:
    """Weight per (category, truth) that makes the two classes of a category weigh the same, at most 8 a row."""
    counts: dict[tuple[str, bool], int] = {}
    for example in examples:
        counts[example.category, example.followed] = counts.get((example.category, example.followed), 0) + 1
    totals = {category: sum(n for (c, _), n in counts.items() if c == category) for category, _ in counts}
    return {cell: min(MAX_CLASS_WEIGHT, totals[cell[0]] / (2 * n)) for cell, n in counts.items()}


def epoch_batches(examples: Sequence[Example], size: int, *, seed: int) -> list[list[Example]]:
    """Shuffled batches, in which the rows of one instruction are neighbours: a batch computes a prefix once.

    Trees have no padding, so rows of any length go together.
    """
    rng = random.Random(seed)
    by_instruction: dict[Ids, list[Example]] = {}
    for example in rng.sample(list(examples), len(examples)):
        by_instruction.setdefault(example.encoded.instruction, []).append(example)
    order = [example for members in by_instruction.values() for example in members]
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(batches)
    return batches


def predict(
    model: Any,
    examples: Sequence[Example],
    verdicts: tuple[int, int],
    first_layer: int = 0,
    states: States | None = None,
) -> np.ndarray:
    """P(Yes) of each example, [N]."""
    decoder, head = decoder_and_head(model)
    weight_D = verdict_weight(head, verdicts)
    yes_N = np.zeros(len(examples))
    with torch.inference_mode():
        for groups in tree.batches([example.encoded for example in examples], TOKENS_PER_BATCH):
            hidden_JD, members = _final_states(decoder, groups, first_layer, states)
            for same, yes in zip(members, torch.sigmoid(hidden_JD.float() @ weight_D).tolist(), strict=True):
                yes_N[list(same)] = yes
    return yes_N


def validation_loss(examples: Sequence[Example], yes_N: np.ndarray) -> float:
    """Class-weighted cross-entropy of P(Yes) against the truth, in nats."""
    weights = class_weights(examples)
    truth_N = np.array([example.followed for example in examples])
    weight_N = np.array([weights[example.category, example.followed] for example in examples])
    likelihood_N = np.clip(np.where(truth_N, yes_N, 1 - yes_N), 1e-6, 1)
    return float(-(weight_N * np.log(likelihood_N)).sum() / weight_N.sum())


def _losses(
    model: Any, batch: Sequence[Example], verdicts: tuple[int, int], first_layer: int, states: States | None
) -> tuple[torch.Tensor, Sequence[Example]]:
    decoder, head = decoder_and_head(model)
    device, trained = head.weight.device, next(p for p in model.parameters() if p.requires_grad)
    half = device.type in ("cpu", "cuda") and trained.dtype == torch.float32 and head.weight.dtype != torch.float32
    groups = tree.group([example.encoded for example in batch])
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        hidden_JD, members = _final_states(decoder, groups, first_layer, states)
        logits_JV = head(hidden_JD)
    judged = [(j, batch[index]) for j, same in enumerate(members) for index in same]
    logits_BV = logits_JV[[j for j, _ in judged]]
    target_B = torch.tensor([verdicts[0] if example.followed else verdicts[1] for _, example in judged], device=device)
    loss_B = torch.nn.functional.cross_entropy(logits_BV.float(), target_B, reduction="none")
    return loss_B, [example for _, example in judged]


def _descend(loss: torch.Tensor, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> float:
    """One step down the gradient; gives the loss before it."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _final_states(
    decoder: Any, groups: Sequence[Group], first_layer: int, states: States | None
) -> tuple[torch.Tensor, tuple[tuple[int, ...], ...]]:
    """The last layer's state where each distinct judgement's verdict is read, and the judgements it stands for."""
    if not tree.fits(decoder):
        rows = [
            (Encoded(g.ids, r.ids, constraint), tuple(same))
            for g in groups
            for r in g.responses
            for constraint, same in r.constraints.items()
        ]
        return tree.pool_each(decoder, [judgement for judgement, _ in rows]), tuple(same for _, same in rows)
    whole = tree.pack(groups).to(next(decoder.parameters()).device)
    if states is None:
        return tree.forward(decoder, whole)[whole.read_J], whole.members
    with tree.with_layers(decoder, decoder.layers[first_layer:], decoder.norm):
        hidden_ND = tree.forward(decoder, whole, torch.cat([states[key] for key in _keys(groups)]))
    return hidden_ND[whole.read_J], whole.members


def _keys(groups: Sequence[Group]) -> list[tuple[Ids, ...]]:
    """The runs of a tree in the order in which it lays them out."""
    keys: list[tuple[Ids, ...]] = [(whole.ids,) for whole in groups]
    for whole in groups:
        for response in whole.responses:
            keys.append((whole.ids, response.ids))
            keys += [(whole.ids, response.ids, constraint) for constraint in response.constraints]
    return keys


def _warm_cosine(step: int, n_steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth of the rate."""
    warm = max(1, round(WARMUP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warm) / max(1, n_steps - warm)))
