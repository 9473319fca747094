"""Probes: logistic regression on the hidden states of a frozen trunk, instead of training the model (head `probe`).

In: labelled judgements. Out: for each specialist the layers it reads, a weight and a bias. All specialists read the same
trunk, so a judgement's tokens are computed once for all of them, and only up to the topmost layer that is read.

Specialists are fitted together: the weight of each is one that all share plus one of its own, both regularised, so that a
specialist of few rows leans on what the others have learnt (Evgeniou and Pontil, Regularized multi-task learning, KDD 2004).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tjd.errors import ConfigError, DataError
from tjd.judge import tree
from tjd.judge.prompt import Encoded
from tjd.judge.score import TOKENS_PER_BATCH, Specialist
from tjd.judge.tree import Pool

POOLS: tuple[Pool, ...] = ("last", "constraint", "response", "first_half", "second_half", "response_end")
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2)  # inverse regularisation (C) to choose from, for standardised features
DEPTHS = (0.34, 0.47, 0.6)  # of the layers to read, as shares of the model's: later states turn to the next token
WEIGHTS = "probe.safetensors"
N_FOLDS = 5  # of the cross-validation over training queries


@dataclass(frozen=True, slots=True)
class Part:
    """Some examples."""

    index_N: np.ndarray  # rows of the features
    followed_N: np.ndarray
    weight_N: np.ndarray
    weight_KN: np.ndarray | None = None  # those of each fold's fit, 0 for rows that it leaves out; null: no folds
    judged_N: np.ndarray | None = None  # which rows are judged by the one fit that leaves them out; null: none

    def without(self, fold: int) -> np.ndarray:
        """The weights of a fold's fit, [N]."""
        assert self.weight_KN is not None
        return self.weight_KN[fold]

    def of(self, features_NF: torch.Tensor) -> np.ndarray:
        """Their features, in float32."""
        return features_NF[torch.from_numpy(self.index_N)].float().numpy()


@dataclass(frozen=True, slots=True)
class Probe:
    """A readout of some layers."""

    layers: tuple[int, ...]  # reads what enters each, the lowest first
    weight_F: np.ndarray
    bias: float
    strength: float  # C

    def logits(self, features_NF: np.ndarray) -> np.ndarray:
        """Log-odds of P(followed), [N]."""
        return features_NF @ self.weight_F + self.bias

    def save(self, folder: Path) -> None:
        """Write the weights into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        bias, layers = torch.tensor([self.bias], dtype=torch.float64), torch.tensor(self.layers)
        save_file({"weight": torch.tensor(self.weight_F), "bias": bias, "layers": layers}, folder / WEIGHTS)


def default_layers(n_layers: int) -> tuple[int, ...]:
    """Layers to read where none is named."""
    return tuple(sorted({min(n_layers - 1, max(1, round(n_layers * depth))) for depth in DEPTHS}))


def require_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raise ConfigError for a layer that a model of so many layers lacks."""
    for layer in layers:
        if not 1 <= layer < n_layers:
            raise ConfigError(f"--layer must lie between 1 and {n_layers - 1} for this model, not {layer}")


def read(
    decoder: Any,
    judgements: Sequence[Encoded],
    layers: Sequence[int],
    on_batch: Callable[[int], None] = lambda done: None,
    *,
    budget: int = TOKENS_PER_BATCH,
) -> torch.Tensor:
    """What is pooled of each judgement at some layers side by side, [N, len(layers) * F] in the precision of the states.

    Raises:
        ConfigError: The decoder has no such layer, or its attention is not that of token trees.
    """
    require_layers(layers, len(decoder.layers))
    if not tree.fits(decoder):
        raise ConfigError("this model's attention is not one that --head probe can read; take --head verdict")
    done = 0
    n_features = len(POOLS) * decoder.config.hidden_size
    device, dtype = (weights := next(decoder.parameters())).device, weights.dtype
    features_NF = torch.zeros(len(judgements), len(layers) * n_features, dtype=dtype)
    with torch.inference_mode():
        for groups in tree.batches(judgements, budget):
            whole = tree.pack(groups).to(device)
            hidden_ND, below = None, 0
            for number, layer in enumerate(sorted(layers)):
                with tree.only_layers(decoder, below, layer):
                    hidden_ND = tree.forward(decoder, whole, hidden_ND)
                below = layer
                pooled_JF = tree.pool(whole, hidden_ND, POOLS).to("cpu", dtype)
                of_layer = slice(number * n_features, (number + 1) * n_features)
                for same, pooled_F in zip(whole.members, pooled_JF, strict=True):
                    features_NF[list(same), of_layer] = pooled_F
            done += sum(len(same) for same in whole.members)
            on_batch(done)
    return features_NF


def fit(
    layers: Sequence[int],
    features_NF: torch.Tensor,
    parts: Mapping[str, Part],
    strengths: Sequence[float],
    share: float,
) -> list[dict[str, Probe]]:
    """Logistic regression of all specialists together, on features standardised over all rows.

    Minimises C * sum of weighted log-losses + (sum_k |v_k|^2 + |s|^2) / 2, where the weight of specialist k is
    v_k + sqrt(share) * s, and folds the standardisation into the weights, which are for the features as they are.

    Args:
        layers: Where the features come from.
        features_NF: Of all examples.
        parts: Rows to fit per specialist.
        strengths: Values of C, in increasing order.
        share: 0 fits each specialist on its own; the larger, the more alike they are.

    Returns:
        For each strength a probe per specialist.
    """
    regression = _Regression(features_NF, parts, share)
    return [regression.probes(layers, flat, strength) for flat, strength in regression.path(strengths)]


class _Regression:
    """What the fits on the same rows have in common: the rows' coordinates, whatever their weights in a fit.

    A fold's fit knows no verdict of the rows that it leaves out, but their features count in the standardisation. A solution
    is flat: v_1 to v_K and s, each [R], then the biases [K].
    """

    def __init__(self, features_NF: torch.Tensor, parts: Mapping[str, Part], share: float) -> None:
        self.parts, self.share, self.scaler = parts, share, StandardScaler()
        raw_NF = np.concatenate([part.of(features_NF) for part in parts.values()])
        place_NR, self.basis_RF = _coordinates(torch.from_numpy(self.scaler.fit_transform(raw_NF)))
        ends = np.cumsum([len(part.index_N) for part in parts.values()])
        self.place_of = np.split(place_NR.double().numpy(), ends[:-1])
        self.sign_of = [np.where(part.followed_N, 1.0, -1.0) for part in parts.values()]
        self.square_R = (place_NR**2).sum(0).double().numpy()
        self.size = place_NR.shape[1]

    def path(self, strengths: Sequence[float], fold: int | None = None) -> Iterator[tuple[np.ndarray, float]]:
        """A solution per strength, on all rows or without a fold, each from where the one before it ended."""
        flat = np.zeros((len(self.parts) + 1) * self.size + len(self.parts))
        options = {"maxiter": 500, "ftol": 1e-9, "gtol": 1e-5}
        for strength in strengths:
            scale = self._scale(strength)
            of = (scale, strength, fold)
            with threadpool_limits(
                1, "blas"
            ):  # numpy's and scipy's threads spin against each other: several times as long
                found = minimize(self._loss, flat / scale, of, "L-BFGS-B", jac=True, options=options)
            flat = scale * found.x
            yield flat, strength

    def probes(self, layers: Sequence[int], flat: np.ndarray, strength: float) -> dict[str, Probe]:
        """A solution as probes of the features as they are."""
        weight_KR, bias_K = self._weights(flat)
        weight_KF = weight_KR if self.basis_RF is None else weight_KR @ self.basis_RF.double().numpy()
        weight_KF = weight_KF / np.asarray(self.scaler.scale_)
        bias_K = bias_K - weight_KF @ np.asarray(self.scaler.mean_)
        probes = zip(self.parts, weight_KF.astype(np.float32), bias_K.tolist(), strict=True)
        return {name: Probe(tuple(layers), weight_F, bias, strength) for name, weight_F, bias in probes}

    def logits(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Log-odds of every row by specialist, [N], under a solution."""
        weights = zip(self.parts, self.place_of, *self._weights(flat), strict=True)
        return {name: place_NR @ weight_R + bias for name, place_NR, weight_R, bias in weights}

    def _weights(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part_KR = flat[: -len(self.parts)].reshape(-1, self.size)
        return part_KR[:-1] + self.share**0.5 * part_KR[-1], flat[-len(self.parts) :]

    def _scale(self, strength: float) -> np.ndarray:
        """Units in which the curvature is about the same in all directions, so that few steps are needed."""
        scale_R = (1 + strength * self.square_R / len(self.parts) / 4) ** -0.5
        return np.concatenate([np.tile(scale_R, len(self.parts) + 1), np.ones(len(self.parts))])

    def _loss(
        self, scaled: np.ndarray, scale: np.ndarray, strength: float, fold: int | None
    ) -> tuple[float, np.ndarray]:
        """What is minimised, and its gradient."""
        flat = scale * scaled
        weight_KR, bias_K = self._weights(flat)
        regularised = flat[: -len(self.parts)]
        loss, slope_KR, slope_K = regularised @ regularised / 2, np.empty_like(weight_KR), np.empty_like(bias_K)
        rows = zip(self.place_of, self.sign_of, self.parts.values(), strict=True)
        for k, (place_NR, sign_N, part) in enumerate(rows):
            weight_N = strength * (part.weight_N if fold is None else part.without(fold))
            margin_N = sign_N * (place_NR @ weight_KR[k] + bias_K[k])
            loss += weight_N @ np.logaddexp(0, -margin_N)
            slope_N = -weight_N * sign_N * expit(-margin_N)
            slope_KR[k], slope_K[k] = slope_N @ place_NR, slope_N.sum()
        slope = regularised + np.concatenate([slope_KR, self.share**0.5 * slope_KR.sum(0, keepdims=True)]).ravel()
        return float(loss), scale * np.concatenate([slope, slope_K])


def _coordinates(features_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features as coordinates [N, R] in an orthonormal basis [R, F] of what they span; null where they are their own.

    A regularised weight lies in that span, so nothing is lost, and with fewer rows than features a fit is much cheaper.
    """
    n_rows, n_features = features_NF.shape
    if n_rows >= n_features:
        return features_NF, None
    square_R, direction_NR = torch.linalg.eigh((features_NF @ features_NF.T).double())
    kept = square_R > 1e-7 * square_R[-1]
    length_R, direction_NR = square_R[kept].sqrt(), direction_NR[:, kept]
    return direction_NR * length_R, (direction_NR / length_R).T.float() @ features_NF


def choose(
    layers: Sequence[int],
    features_NF: torch.Tensor,
    train: Mapping[str, Part],
    validation: Mapping[str, Part],
    share: float,
) -> tuple[dict[str, Probe], list[dict[str, Any]], dict[str, np.ndarray]]:
    """Fit the probes for every strength, and keep those that do best on rows that they were not fitted on.

    Those are the rows of validation and, with cross-validation, those of training that are judged by a fit without them. The
    strength is chosen for all specialists together, by the mean of their AUROCs: of a few dozen rows each, one specialist's
    AUROC alone would choose by chance. Where no specialist has both verdicts, the second strength is taken.

    Args:
        layers: Where the features come from.
        features_NF: Of all examples.
        train: Rows to fit per specialist.
        validation: Further rows to choose by per specialist.
        share: See `fit`.

    Returns:
        The probes by specialist; a row per strength with its mean AUROC; and by specialist the log-odds of the rows that they
        were not fitted on: those of training that are judged, in their order, then those of validation.
    """
    regression = _Regression(features_NF, train, share)
    fitted = [regression.probes(layers, flat, strength) for flat, strength in regression.path(STRENGTHS)]
    held_out = _out_of_fold(regression, STRENGTHS)
    for name, part in validation.items():
        logits_SN = np.stack([probes[name].logits(part.of(features_NF)) for probes in fitted])
        held_out[name] = np.concatenate([held_out[name], logits_SN], axis=1)
    truth = {
        name: np.concatenate([train[name].followed_N[judged(train[name])], validation[name].followed_N])
        for name in train
    }
    tested = [name for name, truth_N in truth.items() if len(np.unique(truth_N)) == 2]
    tried: list[dict[str, Any]] = []
    for place, strength in enumerate(STRENGTHS):
        areas = [float(roc_auc_score(truth[name], held_out[name][place])) for name in tested]
        tried.append({"layers": list(layers), "strength": strength, "auroc": float(np.mean(areas)) if areas else None})
    best = max(range(len(tried)), key=lambda place: tried[place]["auroc"]) if tested else 1
    return fitted[best], tried, {name: logits_SN[best] for name, logits_SN in held_out.items()}


def _out_of_fold(regression: _Regression, strengths: Sequence[float]) -> dict[str, np.ndarray]:
    """Per specialist and strength the log-odds of the training rows that are judged, [S, N], by the fits without them."""
    parts = regression.parts
    logits = {name: np.zeros((len(strengths), len(part.index_N))) for name, part in parts.items()}
    for fold in range(N_FOLDS) if any(judged(part).any() for part in parts.values()) else ():
        for place, (flat, _) in enumerate(regression.path(strengths, fold)):
            for name, logits_N in regression.logits(flat).items():
                left_out_N = parts[name].without(fold) == 0
                logits[name][place, left_out_N] = logits_N[left_out_N]
    return {name: logits_SN[:, judged(parts[name])] for name, logits_SN in logits.items()}


def judged(part: Part) -> np.ndarray:
    """Which rows of a part are judged by a fit without them."""
    return np.zeros(len(part.index_N), dtype=bool) if part.judged_N is None else part.judged_N


def load(folder: Path, name: str, decoder: Any) -> Specialist:
    """A specialist from the weights that `Probe.save` wrote.

    Raises:
        DataError: They are of a release whose probes read something else.
    """
    tensors = load_file(folder / WEIGHTS)
    if len(tensors["weight"]) != len(tensors["layers"]) * len(POOLS) * decoder.config.hidden_size:
        raise DataError(
            f"the probe in {folder} is of another release of tjd or another base; remove the judges and train them anew"
        )
    device = next(decoder.parameters()).device
    none, as_it_is = torch.nn.ModuleList(), torch.nn.Identity()
    *below, top = tensors["layers"].tolist()
    weight_F, bias = tensors["weight"].float().to(device), float(tensors["bias"])
    return Specialist(name, decoder, top, none, as_it_is, weight_F, bias, POOLS, tuple(below))
