"""How good probes become with more rows: ten-fold cross-validation over the queries of a table, its test split left out.

    python bench/learning_curve.py LABELS [--model frontier]

A Markdown table goes to standard output: for each share of the training queries, the AUROC per category with 95% intervals
over queries. With --model, only responses of that model are judged; training has those of all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import typer
from scipy.special import expit
from sklearn.utils.class_weight import compute_sample_weight

from tjd import backbone
from tjd.config import TrainJudgeConfig
from tjd.judge import ensemble, probe
from tjd.metrics import judge_estimates, judge_metrics, resample_weights
from tjd.splits import split_of, usable
from tjd.tables import Row, open_table
from tjd.taxonomy import choose, load

SHARES, N_FOLDS, STRENGTH = (0.25, 0.5, 1.0), 10, 1e-3


def main(labels: str, model: str = "") -> None:
    """Print the table."""
    categories = choose(load(), ())
    rows = [row for row in open_table(labels, "labels").rows() if usable(row) and split_of(row) != "test"]
    rows = [row for row in rows if row["category"] in categories]
    layers, features_NF = states(rows)
    query_ids = sorted({row["query_id"] for row in rows})
    rng = np.random.default_rng(0)
    fold_of = dict(zip(query_ids, rng.permutation(len(query_ids)) % N_FOLDS, strict=True))
    print("| rows to train on | " + " | ".join(categories) + " |\n|" + " --- |" * (1 + len(categories)))
    for share in SHARES:
        logits_N, n_train = np.zeros(len(rows)), 0
        for fold in range(N_FOLDS):
            others = [query_id for query_id in query_ids if fold_of[query_id] != fold]
            taken = set(rng.permutation(others)[: round(share * len(others))])
            parts = {
                name: part(rows, [i for i, r in enumerate(rows) if r["query_id"] in taken], name) for name in categories
            }
            n_train += sum(len(each.index_N) for each in parts.values())
            [probes] = probe.fit(layers, features_NF, parts, [STRENGTH], TrainJudgeConfig().share)
            for index, row in enumerate(rows):
                if fold_of[row["query_id"]] == fold:
                    logits_N[index] = probes[row["category"]].logits(features_NF[index].float().numpy())
        cells = [area(rows, logits_N, name, model) for name in categories]
        print(f"| {n_train // N_FOLDS} | " + " | ".join(cells) + " |", flush=True)


def states(rows: Sequence[Row]) -> tuple[tuple[int, ...], torch.Tensor]:
    """The default layers of the embedded model, and what probes read of each row there, [N, F]."""
    config = TrainJudgeConfig(base="embedded", head="probe")
    encoder = ensemble.make_encoder(config.base, ensemble.load_prompt(config.prompt), config)
    decoder: Any = backbone.load_model(config.base).get_decoder()
    layers = probe.default_layers(len(decoder.layers))
    return layers, probe.read(decoder, [encoder(row) for row in rows], layers)


def part(rows: Sequence[Row], chosen: Sequence[int], category: str) -> probe.Part:
    """The rows of a category among the chosen ones, either verdict with the same weight."""
    index_N = np.array([index for index in chosen if rows[index]["category"] == category], dtype=int)
    followed_N = np.array([rows[index]["followed"] for index in index_N], dtype=bool)
    return probe.Part(index_N, followed_N, compute_sample_weight("balanced", followed_N))


def area(rows: Sequence[Row], logits_N: np.ndarray, category: str, model: str) -> str:
    """AUROC of a category with its interval."""
    judged = [i for i, row in enumerate(rows) if row["category"] == category and model in ("", row["model"])]
    truth_N = np.array([rows[index]["followed"] for index in judged])
    query_ids = [rows[index]["query_id"] for index in judged]
    values = judge_metrics(truth_N, expit(logits_N[judged]), 0.5, resample_weights(query_ids, seed=0))
    found = judge_estimates(values, dict.fromkeys(values, len(set(query_ids))))["auroc"]
    return f"{found.value:.3f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    typer.run(main)
