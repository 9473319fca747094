"""Probes: logistic regression on the hidden states of a frozen trunk, instead of training the model (head `probe`).

In: labelled judgements. Out: for each specialist a layer, a weight and a bias. All specialists read the same trunk, so a
judgement's tokens are computed once for all of them, and only up to the layer that is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from tjd.errors import ConfigError
from tjd.judge import tree
from tjd.judge.prompt import Encoded
from tjd.judge.score import TOKENS_PER_BATCH, Specialist
from tjd.judge.tree import Pool

POOLS: tuple[Pool, ...] = ("last", "constraint", "response", "response_end")
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # inverse regularisation (C) to choose from, for standardised features
WEIGHTS = "probe.safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """Some examples."""

    index_N: np.ndarray  # rows of the features
    followed_N: np.ndarray
    weight_N: np.ndarray

    def of(self, features_NF: torch.Tensor) -> np.ndarray:
        """Their features, in float32."""
        return features_NF[torch.from_numpy(self.index_N)].float().numpy()


@dataclass(frozen=True, slots=True)
class Probe:
    """A readout of one layer."""

    layer: int  # reads what enters it
    weight_F: np.ndarray
    bias: float
    strength: float  # C

    def logits(self, features_NF: np.ndarray) -> np.ndarray:
        """Log-odds of P(followed), [N]."""
        return features_NF @ self.weight_F + self.bias

    def save(self, folder: Path) -> None:
        """Write the weights into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": torch.tensor(self.weight_F), "bias": torch.tensor([self.bias], dtype=torch.float64)}
        save_file(tensors, folder / WEIGHTS)


def candidate_layers(n_layers: int) -> list[int]:
    """Layers to choose from, a quarter to four fifths up: later states turn to the next token."""
    return sorted({min(n_layers - 1, max(1, round(n_layers * share))) for share in (0.27, 0.4, 0.53, 0.67, 0.8)})


def read(
    decoder: Any,
    judgements: Sequence[Encoded],
    layers: Sequence[int],
    on_batch: Callable[[int], None] = lambda done: None,
    *,
    budget: int = TOKENS_PER_BATCH,
) -> dict[int, torch.Tensor]:
    """What is pooled of each judgement at some layers, {layer: [N, F]} in the precision of the states.

    Raises:
        ConfigError: The decoder has no such layer, or its attention is not that of token trees.
    """
    n_layers = len(decoder.layers)
    if not all(1 <= layer < n_layers for layer in layers):
        raise ConfigError(f"--layer must lie between 1 and {n_layers - 1} for this model, not {max(layers)}")
    if not tree.fits(decoder):
        raise ConfigError("this model's attention is not one that --head probe can read; take --head verdict")
    done = 0
    n_features = len(POOLS) * decoder.config.hidden_size
    device, dtype = (weights := next(decoder.parameters())).device, weights.dtype
    features = {layer: torch.zeros(len(judgements), n_features, dtype=dtype) for layer in layers}
    with torch.inference_mode():
        for groups in tree.batches(judgements, budget):
            whole = tree.pack(groups).to(device)
            hidden_ND, below = None, 0
            for layer in sorted(layers):
                with tree.only_layers(decoder, below, layer):
                    hidden_ND = tree.forward(decoder, whole, hidden_ND)
                below = layer
                pooled_JF = tree.pool(whole, hidden_ND, POOLS).to("cpu", dtype)
                for same, pooled_F in zip(whole.members, pooled_JF, strict=True):
                    features[layer][list(same)] = pooled_F
            done += sum(len(same) for same in whole.members)
            on_batch(done)
    return features


def fit(
    layer: int, features_NF: np.ndarray, followed_N: np.ndarray, weight_N: np.ndarray, strengths: Sequence[float]
) -> list[Probe]:
    """Logistic regression on standardised features, folded into one weight and one bias for the features as they are.

    Returns:
        A probe per strength.
    """
    scaler = StandardScaler()
    standard_NF = scaler.fit_transform(features_NF)
    scale_F, mean_F = np.asarray(scaler.scale_), np.asarray(scaler.mean_)
    probes = []
    for strength in strengths:
        model: Any = LogisticRegression(C=strength, max_iter=1000).fit(standard_NF, followed_N, sample_weight=weight_N)
        weight_F = model.coef_[0] / scale_F
        bias = float(model.intercept_[0] - weight_F @ mean_F)
        probes.append(Probe(layer, weight_F.astype(np.float32), bias, strength))
    return probes


def choose(
    features: Mapping[int, torch.Tensor], train: Mapping[str, Part], validation: Mapping[str, Part]
) -> tuple[dict[str, Probe], list[dict[str, Any]]]:
    """Fit a probe per specialist for every layer and strength, and keep those of the layer and strength that do best.

    The layer and the strength are chosen for all specialists together, by the mean of their AUROCs on validation: of a
    few dozen rows each, one specialist's AUROC alone would choose by chance. Where no specialist has both verdicts in
    validation, the middle ones are taken.

    Args:
        features: {layer: [N, F]} of all examples.
        train: Rows to fit per specialist.
        validation: Rows to choose by per specialist.

    Returns:
        The probes by specialist, and a row per layer and strength with its mean AUROC.
    """
    tried: list[dict[str, Any]] = []
    best: dict[str, Probe] = {}
    for layer, features_NF in features.items():
        fitted = {
            name: fit(layer, part.of(features_NF), part.followed_N, part.weight_N, STRENGTHS)
            for name, part in train.items()
        }
        tested = {
            name: part.of(features_NF) for name, part in validation.items() if len(np.unique(part.followed_N)) == 2
        }
        for place, strength in enumerate(STRENGTHS):
            probes = {name: of_strength[place] for name, of_strength in fitted.items()}
            areas = [
                float(roc_auc_score(validation[name].followed_N, probes[name].logits(part_NF)))
                for name, part_NF in tested.items()
            ]
            tried.append({"layer": layer, "strength": strength, "auroc": float(np.mean(areas)) if areas else None})
            if not best or (areas and tried[-1]["auroc"] > max(row["auroc"] for row in tried[:-1])):
                best = probes
    return best, tried


def load(folder: Path, name: str, decoder: Any, layer: int) -> Specialist:
    """A specialist from the weights that `Probe.save` wrote."""
    tensors = load_file(folder / WEIGHTS)
    device = next(decoder.parameters()).device
    none, as_it_is = torch.nn.ModuleList(), torch.nn.Identity()
    weight_F = tensors["weight"].float().to(device)
    return Specialist(name, decoder, layer, none, as_it_is, weight_F, float(tensors["bias"]), POOLS)
