"""Train-judge: from labels to an ensemble of specialists (paper, 4.1).

In: labels. Out: a folder with one specialist per category (`3-for-3`), one for the default categories (`1-for-3`), or one
for all (`1-for-all`), each with its calibration. Rows are split by query. A specialist that is already there, trained from
the same rows under the same config, is kept: that is how a killed run resumes, and how another `--target-precision` or
`--abstain` costs no training.
"""

import json
import logging
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tjd import __version__, backbone, taxonomy
from tjd.calibration import calibrate, tempered
from tjd.config import TrainJudgeConfig, as_dict
from tjd.errors import DataError
from tjd.judge import ensemble, hacks
from tjd.judge.prompt import Encoder, verdict_ids
from tjd.judge.train import Example, add_adapter, fit, predict
from tjd.metrics import METRICS, estimate, judge_metrics, resample_weights
from tjd.prompts import Prompt
from tjd.splits import SPLITS, split_of
from tjd.tables import Row, text_id

log = logging.getLogger(__name__)

NEED = ("response_id", "constraint_id", "query_id", "query", "category", "constraint", "response", "followed")

HISTORY = pa.schema(
    {
        "specialist": pa.string(),
        "step": pa.int64(),  # optimiser step, from 1
        "epoch": pa.int64(),
        "loss": pa.float64(),  # nats, class-weighted, of the batch before the step
        "learning_rate": pa.float64(),
        "n_tokens": pa.int64(),  # of the batch, without padding
        "validation_loss": pa.float64(),  # at the end of an epoch, else null
    }
)

CALIBRATION = ("target_precision", "abstain")  # chosen after training: other values keep the weights

OnStep = Callable[[str, Mapping[str, Any]], None]


def train_judge(
    rows: Sequence[Row],
    categories: Mapping[str, taxonomy.Category],
    prompt: Prompt,
    config: TrainJudgeConfig,
    out: Path,
    *,
    data_digest: str,
    on_step: OnStep = lambda specialist, metrics: None,
) -> dict[str, Any]:
    """Train the specialists of a layout and write the ensemble.

    Args:
        rows: LABELS; rules and rows without a verdict or a response are left out and counted.
        categories: The taxonomy.
        prompt: The judge prompt.
        config: The settings.
        out: The ensemble's folder.
        data_digest: Of the labels, for the manifest.
        on_step: Told the specialist and every row of its training metrics.

    Returns:
        The manifest.

    Raises:
        DataError: A category has rows of one class only, or none.
        ConfigError: An unknown category, or a base whose verdicts are not single tokens.
        TrainingError: The loss is not finite.
    """
    usable = [row for row in rows if row["followed"] is not None and row["response"] is not None and row["category"]]
    plan = specialists(usable, categories, config)
    by_split = {name: [row for row in usable if split_of(row, config.seed) == name] for name in SPLITS}
    for category in sorted({c for members in plan.values() for c in members}):
        _require_both_classes(category, by_split)
    if config.balance == "rows":
        for part in ("train", "validation"):
            by_split[part] = balanced(by_split[part], config.seed)
    judged = [row for row in by_split["train"] if any(row["category"] in members for members in plan.values())]
    probes = hacks.negatives(judged, hacks.load(), config.harden, seed=config.seed)
    by_split["train"] += probes  # after balancing: what was evened out are real responses
    encoder = ensemble.make_encoder(config.base, prompt, config)
    verdicts = verdict_ids(encoder.tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    trained = {name: value for name, value in as_dict(config).items() if name not in CALIBRATION}
    fingerprint = text_id(__version__, json.dumps(trained, sort_keys=True), data_digest, prompt.digest)
    seats: dict[str, Any] = {}
    history: list[Row] = []
    for name, members in plan.items():
        done = out / name / "specialist.json"
        if not _is_current(done, fingerprint):
            part = {key: _examples(encoder, by_split[key], members) for key in ("train", "validation")}
            record = _train_one(name, part, verdicts, config, out, on_step)
            done.write_text(json.dumps({"fingerprint": fingerprint, **record}, indent=1))
        record = json.loads(done.read_text())
        history += record["history"]
        seats |= {category: _seat(name, category, record["validation"], config) for category in members}
    (out / ensemble.QUERIES).write_text(
        "".join(f"{text_id(q)}\n" for q in sorted({row["query_id"] for row in by_split["train"]}))
    )
    manifest = {
        "version": __version__,
        "base": config.base,
        "base_name": backbone.public_name(config.base),
        "layout": config.layout,
        "full": config.full,
        "specialists": list(plan),
        "categories": seats,
        "prompt": {"name": prompt.name, "sha256": prompt.digest, "text": prompt.text},
        "verdict_ids": list(verdicts),
        "max_instruction_tokens": config.max_instruction_tokens,
        "max_response_tokens": config.max_response_tokens,
        "data": {
            "sha256": data_digest,
            "n_invalid": len(rows) - len(usable),
            "n": {key: len(part) for key, part in by_split.items()},
            "n_probes": len(probes),  # among those of train
        },
        "config": as_dict(config),
    }
    (out / ensemble.MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    return manifest | {"history": history}


def balanced(rows: Sequence[Row], seed: int) -> list[Row]:
    """As many rows of either verdict in each category, in their order; those of the commoner one are drawn at random."""
    by_cell: dict[tuple[str, bool], list[int]] = {}
    for index, row in enumerate(rows):
        by_cell.setdefault((row["category"], row["followed"]), []).append(index)
    rng = random.Random(seed)
    kept: list[int] = []
    for (category, truth), indices in sorted(by_cell.items()):
        kept += rng.sample(indices, min(len(indices), len(by_cell.get((category, not truth), ()))))
    return [rows[index] for index in sorted(kept)]


def specialists(
    rows: Sequence[Row], categories: Mapping[str, taxonomy.Category], config: TrainJudgeConfig
) -> dict[str, tuple[str, ...]]:
    """Which specialist judges which categories.

    Raises:
        ConfigError: A category is not in the taxonomy.
        DataError: None of the wanted categories is in the table.
    """
    present = {row["category"] for row in rows}
    taxonomy.choose(dict(categories), sorted(present))  # an unknown name in the table is an error too
    if config.layout == "1-for-all" and not config.category:
        chosen = tuple(name for name in categories if name in present)
    else:
        chosen = taxonomy.choose(dict(categories), config.category)
    missing = [name for name in chosen if name not in present]
    if config.category and missing:
        raise DataError(
            f"the labels have no rows of the category '{missing[0]}'; they have {', '.join(sorted(present))}"
        )
    chosen = tuple(name for name in chosen if name in present)
    if not chosen:
        raise DataError(f"the labels have no usable rows of the default categories; they have {sorted(present)}")
    if config.layout == "3-for-3":
        return {name: (name,) for name in chosen}
    return {"all" if config.layout == "1-for-all" else "shared": chosen}


def card(manifest: Mapping[str, Any]) -> str:
    """The ensemble's card in Markdown: what it is, what it was trained on, and what was measured."""
    data = manifest["data"]
    lines = [
        f"# Judges over {manifest['base_name']}, {manifest['layout']}",
        "",
        f"- trained by tjd {manifest['version']} with {'full fine-tuning' if manifest['full'] else 'LoRA'}",
        f"- prompt {manifest['prompt']['name']} (SHA-256 {manifest['prompt']['sha256'][:12]}), "
        f"verdict tokens {manifest['verdict_ids']} (Yes, No)",
        f"- labels SHA-256 {data['sha256'][:12]}: {data['n']['train']} rows in train, {data['n']['validation']} in "
        f"validation, {data['n']['test']} in test (by query); {data['n_invalid']} without a verdict were left out; "
        f"{data['n_probes']} of the training rows are hack probes, all not followed",
        "- thresholds and the kept epoch were chosen on validation, so the figures below flatter the judges: measure them "
        "on the test split with `tjd eval-judge`",
        *_promises(manifest),
        "",
        "| category | specialist | temperature | threshold | n (validation) | prevalence | "
        + " | ".join(METRICS)
        + " |",
        "|" + " --- |" * (6 + len(METRICS)),
    ]
    for category, seat in manifest["categories"].items():
        shown = [_interval(seat["validation"].get(metric)) for metric in METRICS]
        prevalence = "-" if seat["prevalence"] is None else f"{seat['prevalence']:.2f}"
        lines.append(
            f"| {category} | {seat['specialist']} | {seat['temperature']:.2f} | {seat['threshold']:.3f} | "
            f"{seat['n_validation']} | {prevalence} | " + " | ".join(shown) + " |"
        )
    return "\n".join(lines) + "\n"


def _promises(manifest: Mapping[str, Any]) -> list[str]:
    """Lines of the card on calibration, the target precision and the abstain band."""
    seats, config = manifest["categories"], manifest["config"]
    errors = [
        f"{name} {seat['raw_ece']:.2f} to {seat['validation']['ece'][0]:.2f}"
        for name, seat in seats.items()
        if seat["raw_ece"] is not None
    ]
    lines = [f"- expected calibration error before and after the temperature: {', '.join(errors)}"] if errors else []
    if config["target_precision"]:
        kept = [
            f"{name} " + ("not reached" if seat["target_recall"] is None else f"{seat['target_recall']:.2f}")
            for name, seat in seats.items()
        ]
        lines.append(f"- recall kept by the target precision of {config['target_precision']:g}: {', '.join(kept)}")
    bands = [f"{name} {seat['band'][0]:.3f} to {seat['band'][1]:.3f}" for name, seat in seats.items() if seat["band"]]
    return [*lines, f"- no verdict for scores within: {', '.join(bands)}"] if bands else lines


def _train_one(
    name: str,
    part: Mapping[str, Sequence[Example]],
    verdicts: tuple[int, int],
    config: TrainJudgeConfig,
    out: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    base: Any = backbone.load_model(config.base, dtype="float32" if config.full else config.dtype)
    model = base if config.full else add_adapter(base, config)
    history = fit(model, part["train"], part["validation"], verdicts, config, lambda row: on_step(name, row))
    partial = out / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    shutil.rmtree(out / name, ignore_errors=True)
    partial.rename(out / name)
    return {
        "history": [{"specialist": name, **row} for row in history],
        "validation": _validation(part["validation"], predict(model, part["validation"], verdicts, first_layer=0)),
    }


def _validation(examples: Sequence[Example], scores_N: np.ndarray) -> list[Row]:
    """The raw scores of the validation rows, kept so that another calibration needs no other training."""
    return [
        {
            "category": example.category,
            "query_id": example.query_id,
            "followed": example.followed,
            "score": float(score),
        }
        for example, score in zip(examples, scores_N, strict=True)
    ]


def _seat(specialist: str, category: str, validation: Sequence[Row], config: TrainJudgeConfig) -> dict[str, Any]:
    """What the manifest says of a category: its calibration, and how it does on the rows it was chosen on."""
    rows = [row for row in validation if row["category"] == category]
    truth_N = np.array([row["followed"] for row in rows], dtype=bool)
    raw_N = np.array([row["score"] for row in rows], dtype=float)
    chosen = calibrate(truth_N, raw_N, target_precision=config.target_precision, abstain=config.abstain)
    if config.target_precision and chosen.target_recall is None:
        told = "no threshold for '%s' surely reaches a precision of %g on %d validation rows; it gets the balanced one"
        log.warning(told, category, config.target_precision, len(truth_N))
    measured: dict[str, Any] = {}
    raw_error = None
    if len(np.unique(truth_N)) == 2:
        weights_RN = resample_weights([row["query_id"] for row in rows], seed=config.seed)
        scores_N = tempered(raw_N, chosen.temperature)
        low, high = chosen.band or (1.0, 1.0)
        values = judge_metrics(truth_N, scores_N, chosen.threshold, weights_RN, (scores_N <= low) | (scores_N >= high))
        measured = {metric: _plain(estimate(values_R)) for metric, values_R in values.items()}
        raw_error = float(judge_metrics(truth_N, raw_N, chosen.threshold, weights_RN[:1])["ece"][0])
    else:
        log.warning("validation has one class only for '%s': its threshold stays at 0.5", category)
    return {
        "specialist": specialist,
        "temperature": chosen.temperature,
        "threshold": chosen.threshold,
        "band": chosen.band,
        "target_recall": chosen.target_recall,
        "raw_ece": raw_error,
        "n_validation": len(truth_N),
        "prevalence": float(truth_N.mean()) if len(truth_N) else None,
        "validation": measured,
    }


def _examples(encoder: Encoder, rows: Sequence[Row], members: Sequence[str]) -> list[Example]:
    return [
        Example(encoder(row).ids, row["followed"], row["category"], row["query_id"])
        for row in rows
        if row["category"] in members
    ]


def _require_both_classes(category: str, by_split: Mapping[str, Sequence[Row]]) -> None:
    truths = [row["followed"] for row in by_split["train"] if row["category"] == category]
    if len(set(truths)) < 2:
        said = "followed" if truths and truths[0] else "not followed"
        told = (
            f"all {len(truths)} training rows of '{category}' are {said}"
            if truths
            else f"no training row of '{category}'"
        )
        raise DataError(f"{told}; sample more responses (tjd sample --condition) or leave it out with --category")


def _is_current(done: Path, fingerprint: str) -> bool:
    try:
        return json.loads(done.read_text())["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError):
        return False


def _plain(value: Any) -> list[float | None]:
    return [None if np.isnan(x) else round(x, 4) for x in (value.value, value.low, value.high)]


def _interval(value: Sequence[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "-"
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
