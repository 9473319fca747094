"""Train one specialist: -log P(verdict | instruction, response, constraint) on labelled rows (paper, Eq. 4).

In: token ids and truths. Out: the model with the weights of the best epoch, and a row of metrics per step. The loss is
read at the last position alone, the only one whose token is a verdict, so only there the hidden state is projected onto
the vocabulary. Unlike the paper, the two classes weigh the same within a category, and the epoch with the lowest
validation loss is kept.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from tjd import backbone
from tjd.config import TrainJudgeConfig
from tjd.errors import TrainingError
from tjd.judge.score import (
    Ids,
    decoder_and_head,
    last_hidden,
    last_hidden_from,
    score,
    score_states,
    trunk_is_separable,
    trunk_states,
)

log = logging.getLogger(__name__)

MAX_STATE_BYTES = 4 << 30  # of trunk states to keep in memory
MAX_CLASS_WEIGHT = 8.0  # a handful of rows must not drown the others
WARMUP = 0.1  # share of the steps

Step = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled judgement."""

    ids: Ids  # up to where the verdict is read
    followed: bool
    category: str
    query_id: str = ""  # the unit of intervals
    state_TD: torch.Tensor | None = None  # what enters the first adapted layer, where that is computed once


def first_adapted_layer(config: TrainJudgeConfig, n_layers: int) -> int:
    """Below this layer nothing is trained: 0 unless `lora_layers` limits the adapters to the top."""
    return max(0, n_layers - config.lora_layers) if config.lora_layers and not config.full else 0


def with_states(model: Any, examples: Sequence[Example], first_layer: int) -> list[Example]:
    """Run the frozen trunk once for all epochs; examples stay as they are where it cannot be, or is too large to keep."""
    decoder, _ = decoder_and_head(model)
    n_bytes = sum(len(example.ids) for example in examples) * decoder.config.hidden_size * 2
    if not examples or first_layer == 0 or n_bytes > MAX_STATE_BYTES:
        return list(examples)
    if not trunk_is_separable(decoder, first_layer, examples[0].ids):
        log.info("the layers of this model cannot be run in two parts; training runs all of them in every epoch")
        return list(examples)
    states = trunk_states(decoder, [example.ids for example in examples], first_layer)
    return [replace(example, state_TD=state) for example, state in zip(examples, states, strict=True)]


def add_adapter(base: Any, config: TrainJudgeConfig) -> Any:
    """Put LoRA adapters on every linear layer, of the top `lora_layers` only if that is set."""
    linear = {
        name.rpartition(".")[2] for name, m in base.get_decoder().named_modules() if isinstance(m, torch.nn.Linear)
    }
    n_layers = base.config.get_text_config().num_hidden_layers
    adapted = list(range(first_adapted_layer(config, n_layers), n_layers))
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=sorted(linear),
        layers_to_transform=adapted,
        task_type="CAUSAL_LM",
    )
    with backbone.without_peft_noise():
        return get_peft_model(base, lora)


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
    torch.manual_seed(config.seed)
    first_layer = first_adapted_layer(config, model.config.get_text_config().num_hidden_layers)
    train, validation = (with_states(model, part, first_layer) for part in (train, validation))
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
            loss = _train_step(model, batch, weights, verdicts, parameters, optimizer, first_layer)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {len(rows) + 1}; lower --learning-rate")
            rows.append(
                {
                    "step": len(rows) + 1,
                    "epoch": epoch + 1,
                    "loss": loss,
                    "learning_rate": schedule.get_last_lr()[0],
                    "n_tokens": sum(len(example.ids) for example in batch),
                    "validation_loss": None,
                }
            )
            schedule.step()
            on_step(rows[-1] | {"n_steps": n_steps})
        model.eval()
        if validation:
            rows[-1]["validation_loss"] = current = validation_loss(model, validation, verdicts, first_layer)
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
    """Shuffled batches whose rows have similar lengths: sorted by length within chunks of 16 batches."""
    rng = random.Random(seed)
    order = rng.sample(list(examples), len(examples))
    chunks = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
    batches = []
    for chunk in chunks:
        by_length = sorted(chunk, key=lambda example: len(example.ids))
        batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
    rng.shuffle(batches)
    return batches


def predict(model: Any, examples: Sequence[Example], verdicts: tuple[int, int], first_layer: int) -> np.ndarray:
    """P(Yes) of each example, [N]."""
    states = [example.state_TD for example in examples if example.state_TD is not None]
    if examples and len(states) == len(examples):
        scored = score_states(model, states, verdicts, first_layer)
    else:
        scored = score(model, [example.ids for example in examples], verdicts)
    yes_N = np.zeros(len(examples))
    for index, yes in scored:
        yes_N[index] = yes
    return yes_N


def validation_loss(model: Any, examples: Sequence[Example], verdicts: tuple[int, int], first_layer: int = 0) -> float:
    """Class-weighted cross-entropy of P(Yes) against the truth, in nats."""
    weights = class_weights(examples)
    yes_N = predict(model, examples, verdicts, first_layer)
    truth_N = np.array([example.followed for example in examples])
    weight_N = np.array([weights[example.category, example.followed] for example in examples])
    likelihood_N = np.clip(np.where(truth_N, yes_N, 1 - yes_N), 1e-6, 1)
    return float(-(weight_N * np.log(likelihood_N)).sum() / weight_N.sum())


def _train_step(
    model: Any,
    batch: Sequence[Example],
    weights: dict[tuple[str, bool], float],
    verdicts: tuple[int, int],
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    first_layer: int,
) -> float:
    decoder, head = decoder_and_head(model)
    device = head.weight.device
    half = (
        device.type in ("cpu", "cuda") and parameters[0].dtype == torch.float32 and head.weight.dtype != torch.float32
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        states = [example.state_TD for example in batch if example.state_TD is not None]
        if len(states) == len(batch):
            hidden_BD = last_hidden_from(decoder, states, first_layer)
        else:
            hidden_BD = last_hidden(decoder, [example.ids for example in batch])
        logits_BV = head(hidden_BD)
    target_B = torch.tensor([verdicts[0] if example.followed else verdicts[1] for example in batch], device=device)
    weight_B = torch.tensor([weights[example.category, example.followed] for example in batch], device=device)
    loss_B = torch.nn.functional.cross_entropy(logits_BV.float(), target_B, reduction="none")
    loss = (weight_B * loss_B).sum() / weight_B.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _warm_cosine(step: int, n_steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth of the rate."""
    warm = max(1, round(WARMUP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warm) / max(1, n_steps - warm)))
