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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit

from tjd import __version__, backbone, taxonomy
from tjd.calibration import calibrate, tempered
from tjd.config import TrainJudgeConfig, as_dict
from tjd.errors import ConfigError, DataError
from tjd.judge import encoder as classify
from tjd.judge import ensemble, hacks, probe, swaps
from tjd.judge.encoder import Classifier, Pairs
from tjd.judge.prompt import Encoder, verdict_ids
from tjd.judge.score import Specialist
from tjd.judge.train import Example, add_adapter, class_weights, first_adapted_layer, fit, merged, own_copy
from tjd.metrics import METRICS, contributing, judge_estimates, judge_metrics, resample_weights
from tjd.prompts import Prompt
from tjd.splits import soft, split, usable
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
        "layers": pa.list_(pa.int64()),  # that the probes read which were tried
        "strength": pa.float64(),  # their inverse regularisation (C)
        "auroc": pa.float64(),  # mean over the specialists, on held-out rows
    }
)

CALIBRATION = ("target_precision", "abstain")  # chosen after training: other values keep the weights

OnStep = Callable[[str, Mapping[str, Any]], None]
Plan = Mapping[str, Sequence[str]]  # specialist -> the categories it judges


class Trained(NamedTuple):
    """A specialist that is saved."""

    specialist: Specialist | Classifier
    history: list[Row]
    unseen: Sequence[Example]  # what it is calibrated on: validation, for probes training rows out of fold as well
    scores_N: Sequence[float]  # P(followed) of these, not yet calibrated


class Parts(NamedTuple):
    """What a specialist is trained on, and what it is chosen and calibrated by."""

    train: list[Example]
    validation: list[Example]


def train_judge(
    rows: Sequence[Row],
    categories: Mapping[str, taxonomy.Category],
    prompt: Prompt,
    config: TrainJudgeConfig,
    out: Path,
    *,
    data_digest: str,
    on_step: OnStep = lambda specialist, metrics: None,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the specialists of a layout and write the ensemble.

    Args:
        rows: LABELS; rules, rows without a verdict or a response, and categories that get no judge are left out.
        categories: The taxonomy.
        prompt: The judge prompt.
        config: The settings.
        out: The ensemble's folder.
        data_digest: Of the labels, for the manifest.
        on_step: Told the specialist and every row of its training metrics.
        sweep: What the settings were chosen from, for the manifest.

    Returns:
        The manifest.

    Raises:
        DataError: A category has rows of one class only, or none; or a query is on two sides of the split.
        ConfigError: An unknown category, a base that cannot have this head or lacks a layer, or one whose verdicts are not
            single tokens.
        TrainingError: The loss is not finite.
    """
    labelled = [row for row in rows if usable(row)]
    plan = specialists(labelled, categories, config)
    judged = {category for members in plan.values() for category in members}
    by_split = split((row for row in labelled if row["category"] in judged), config.seed)
    for category in sorted(judged):
        _require_both_classes(category, by_split)
    if config.balance == "rows":
        by_split["train"] = balanced(by_split["train"], config.seed)
    probes = hacks.negatives(by_split["train"], hacks.load(), config.harden, seed=config.seed)
    swapped = swaps.negatives(by_split["train"], config.swap, seed=config.seed)
    made = {id(row) for row in probes + swapped}
    by_split["train"] += probes + swapped  # after balancing: what was evened out are real responses
    classify.require_base(config.base, config.head)
    if config.head == "probe":
        probe.require_layers(config.layer, backbone.load_config(config.base).get_text_config().num_hidden_layers)
    encoder = ensemble.make_encoder(config.base, prompt, config)
    verdicts = None if isinstance(encoder, Pairs) else verdict_ids(encoder.tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    current = {name: fingerprint(config, prompt, data_digest, plan, name) for name in plan}
    todo = {name: plan[name] for name in plan if ensemble.fingerprint_of(out / name) != current[name]}
    if todo:
        (out / ensemble.MANIFEST).unlink(missing_ok=True)  # it must not describe the weights to come
        todo = plan if config.head == "probe" else todo
    _clear(out, plan, todo)
    parts = {
        name: Parts(*(_examples(encoder, by_split[key], members, made) for key in ("train", "validation")))
        for name, members in todo.items()
    }
    train = {"verdict": _train_verdicts, "probe": _train_probes, "encoder": _train_encoders}[config.head]
    for specialist, history, unseen, scores_N in train(parts, encoder, config, out, on_step) if todo else ():
        record = {
            "fingerprint": current[specialist.name],
            "first_layer": specialist.first_layer,
            "below": getattr(specialist, "below", ()),
            "history": history,
            "validation": _unseen(unseen, scores_N),
        }
        (out / specialist.name / ensemble.RECORD).write_text(json.dumps(record, indent=1))
    records = {name: json.loads((out / name / ensemble.RECORD).read_text()) for name in plan}
    seats = {
        category: _seat(name, category, records[name]["validation"], config)
        for name, members in plan.items() for category in members
    }  # fmt: skip
    (out / ensemble.QUERIES).write_text(
        "".join(f"{text_id(q)}\n" for q in sorted({row["query_id"] for row in by_split["train"]}))
    )
    manifest = {
        "version": __version__,
        "base": config.base,
        "base_name": backbone.public_name(config.base),
        "layout": config.layout,
        "head": config.head,
        "full": config.full,
        "fingerprints": current,
        "first_layers": {name: record["first_layer"] for name, record in records.items()},
        "layers_read": {name: [*record["below"], record["first_layer"]] for name, record in records.items()},
        "specialists": list(plan),
        "categories": seats,
        "prompt": {"name": prompt.name, "sha256": prompt.digest, "text": prompt.text},
        "verdict_ids": verdicts,  # null: an encoder says no verdict
        "max_instruction_tokens": config.max_instruction_tokens,
        "max_response_tokens": config.max_response_tokens,
        "data": {
            "sha256": data_digest,
            "n_rules": sum(not soft(row) for row in rows),
            "n_invalid": sum(soft(row) and not usable(row) and row["category"] in (*judged, None) for row in rows),
            "n": {key: len(part) for key, part in by_split.items()},
            "n_probes": len(probes),  # among those of train
            "n_swapped": len(swapped),  # and these
        },
        "sweep": sweep,
        "config": as_dict(config),
    }
    ensemble.write_manifest(out, manifest)
    return manifest | {"history": [row for record in records.values() for row in record["history"]]}


def require_replaceable(out: Path, current: Mapping[str, str] | None) -> None:
    """Raise where training would replace what it should not: a policy, or finished judges of other settings.

    Args:
        out: The ensemble's folder.
        current: What the judges to train depend on, by name; null for the best of a sweep, which may replace another best.

    Raises:
        ConfigError: There is something else; the message says what.
    """
    if not (out / ensemble.MANIFEST).is_file():
        if (out / "run.json").is_file():
            raise ConfigError(f"{out} holds a run of tjd rl; give another folder")
        return
    try:
        manifest = ensemble.read_manifest(out)
    except DataError as exc:
        raise ConfigError(f"{out} holds a {ensemble.MANIFEST} that is not of judges; give another folder") from exc
    fits = manifest.get("sweep") if current is None else manifest.get("fingerprints", {}).items() <= current.items()
    if not fits:
        raise ConfigError(
            f"{out} holds judges that were trained with other settings or rows; give another folder, or remove this one"
        )


def fingerprint(
    config: TrainJudgeConfig, prompt: Prompt, data_digest: str, plan: Plan, specialist: str | None = None
) -> str:
    """A digest of all that the weights of one specialist, or of all, depend on."""
    trained = {name: value for name, value in as_dict(config).items() if name not in CALIBRATION}
    # the layer and strength of probes are chosen for all
    judged = plan if specialist is None or config.head == "probe" else plan[specialist]
    of: list[Any] = [specialist, judged, backbone.digest(config.base)]
    if config.head == "probe":
        of += [probe.POOLS, probe.N_FOLDS]
    return text_id(__version__, json.dumps([trained, of], sort_keys=True), data_digest, prompt.digest)


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
        ConfigError: A category of `--category` is not in the taxonomy.
        DataError: A category of the table is not in the taxonomy, or none of the wanted categories is in the table.
    """
    present = {row["category"] for row in rows}
    if not present:
        known = ", ".join(categories)
        raise DataError(f"no row has a category, a verdict and a response; the column 'category' may hold {known}")
    for name in sorted(present - categories.keys()):
        close = get_close_matches(name, categories, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise DataError(
            f"the labels have the unknown category '{name}'{hint}; leave it out with --where category!={name}, "
            "or define it in a file for --taxonomy"
        )
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
        f"- trained by tjd {manifest['version']}: {_how(manifest)}",
        *_asked(manifest),
        f"- labels SHA-256 {data['sha256'][:12]}: {data['n']['train']} rows in train, {data['n']['validation']} in "
        f"validation, {data['n']['test']} in test (by query); {data['n_invalid']} without a verdict and "
        f"{data['n_rules']} rules were left out; "
        f"{data['n_probes']} of the training rows are hack probes and {data['n_swapped']} have the constraint of another "
        "query, all not followed",
        f"- {_chosen_on(manifest)}, so the figures below flatter the judges: measure them on the test split with "
        "`tjd eval-judge`",
        *_chosen(manifest),
        *_promises(manifest),
        "",
        "| category | specialist | temperature | threshold | n (held out) | prevalence | " + " | ".join(METRICS) + " |",
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


def _chosen_on(manifest: Mapping[str, Any]) -> str:
    if manifest["head"] != "probe":
        return "thresholds and the kept epoch were chosen on validation"
    if manifest["config"]["balance"] == "rows":
        return "thresholds and the strength were chosen on validation"
    return "thresholds and the strength were chosen on validation and, by cross-validation, on the training rows"


def _asked(manifest: Mapping[str, Any]) -> list[str]:
    prompt, verdicts = manifest["prompt"], manifest["verdict_ids"]
    if verdicts is None:
        return []
    told = f"- prompt {prompt['name']} (SHA-256 {prompt['sha256'][:12]}), verdict tokens {list(verdicts)} (Yes, No)"
    return [told]


def _how(manifest: Mapping[str, Any]) -> str:
    if manifest["head"] == "encoder":
        return "all weights of an encoder with one logit"
    if manifest["head"] == "probe":
        layers = ", ".join(map(str, next(iter(manifest["layers_read"].values()))))
        return f"logistic regression on hidden states that enter layers {layers} of the frozen model"
    return "full fine-tuning" if manifest["full"] else "LoRA"


def _chosen(manifest: Mapping[str, Any]) -> list[str]:
    swept = manifest["sweep"]
    if not swept:
        return []
    return [
        f"- {swept['chosen']}: chosen by the mean AUROC on held-out rows among {swept['n']} combinations of {swept['grid']} "
        "(sweep.parquet)"
    ]


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


def _train_verdicts(
    parts: Mapping[str, Parts], encoder: Any, config: TrainJudgeConfig, out: Path, on_step: OnStep
) -> Iterator[Trained]:
    """Fine-tune a specialist per part, and save it."""
    base: Any = None
    verdicts = verdict_ids(encoder.tokenizer)
    for name, part in parts.items():
        if base is None or config.full:
            base = backbone.load_model(config.base, dtype="float32" if config.full else config.dtype)
        first_layer = first_adapted_layer(config, base.config.get_text_config().num_hidden_layers)
        with nullcontext() if config.full else own_copy(base, first_layer):
            _seed(config, name)
            model = base if config.full else add_adapter(base, config)
            report = partial(on_step, name)
            history = fit(model, part.train, part.validation, verdicts, config, report)
            with _new_folder(out / name) as folder:
                model.save_pretrained(folder)
            judge = merged(model, name, first_layer, verdicts)
            history = [{"specialist": name, **row} for row in history]
            yield Trained(judge, history, part.validation, _scores(judge, part.validation))


def _train_encoders(
    parts: Mapping[str, Parts], encoder: Any, config: TrainJudgeConfig, out: Path, on_step: OnStep
) -> Iterator[Trained]:
    """Train a classifier per part, and save it."""
    for name, part in parts.items():
        _seed(config, name)
        classifier = Classifier(name, backbone.load_classifier(config.base, dtype="float32"), encoder)
        history = classify.fit(classifier, part.train, part.validation, config, partial(on_step, name))
        with _new_folder(out / name) as folder:
            classifier.model.save_pretrained(folder)
        history = [{"specialist": name, **row} for row in history]
        yield Trained(classifier, history, part.validation, _scores(classifier, part.validation))


def _train_probes(
    parts: Mapping[str, Parts], encoder: Any, config: TrainJudgeConfig, out: Path, on_step: OnStep
) -> Iterator[Trained]:
    """Read the states of all parts in one pass, fit a probe per part, and save it.

    Fitting is cheap, so the calibration gets scores of cross-validation for the training rows as well: validation alone may
    have few. Not where rows were left out to even out the verdicts: their prevalence is none to choose a precision by.
    """
    base: Any = backbone.load_model(config.base, dtype=config.dtype)
    decoder = base.get_decoder()
    examples = [example for part in parts.values() for example in (*part.train, *part.validation)]
    layers = tuple(sorted({*config.layer})) or probe.default_layers(len(decoder.layers))

    def read(done: int) -> None:
        on_step("reading states", {"step": done, "n_steps": len(examples)})

    features_NF = probe.read(decoder, [example.encoded for example in examples], layers, read)
    place, folds = 0, config.balance != "rows"
    train: dict[str, probe.Part] = {}
    validation: dict[str, probe.Part] = {}
    for name, part in parts.items():
        for chosen, rows in ((train, part.train), (validation, part.validation)):
            chosen[name] = _part(rows, place, folds=folds and chosen is train)
            place += len(rows)
    probes, tried, logits = probe.choose(layers, features_NF, train, validation, config.share)
    for name, found in probes.items():
        with _new_folder(out / name) as folder:
            found.save(folder)
        history = [{"specialist": name, **row} for row in tried]
        unseen = [*compress(parts[name].train, probe.judged(train[name])), *parts[name].validation]
        yield Trained(probe.load(out / name, name, decoder), history, unseen, expit(logits[name]).tolist())


def _part(rows: Sequence[Example], start: int, *, folds: bool) -> probe.Part:
    """Examples whose features begin at `start`, with their folds if they are for cross-validation.

    A query is held out with all its rows, and with those that were made of its response or constraint for other queries. A
    row is judged only where both verdicts of its category are left.
    """
    followed_N = np.array([example.followed for example in rows], dtype=bool)
    judged_N = np.zeros(len(rows), dtype=bool)
    weight_KN = np.zeros((probe.N_FOLDS if folds else 0, len(rows)))
    for fold, weight_N in enumerate(weight_KN):
        kept_N = np.array([fold not in (_fold(row.query_id), _fold(row.donor_query_id)) for row in rows], dtype=bool)
        rest = [row for row, kept in zip(rows, kept_N, strict=True) if kept]
        weight_N[kept_N] = _weights(rest)
        verdicts = {(row.category, row.followed) for row in rest if row.real}
        for index, row in enumerate(rows):
            if row.real and not kept_N[index]:
                judged_N[index] = {(row.category, True), (row.category, False)} <= verdicts
    return probe.Part(np.arange(start, start + len(rows)), followed_N, _weights(rows), weight_KN, judged_N)


def _fold(query_id: str | None) -> int | None:
    return None if query_id is None else int(text_id("fold", query_id), 16) % probe.N_FOLDS


def _weights(rows: Sequence[Example]) -> np.ndarray:
    weights = class_weights(rows)
    return np.array([weights[row.category, row.followed] for row in rows], dtype=float)


def _seed(config: TrainJudgeConfig, specialist: str) -> None:
    """Draw what a specialist starts from as if it were trained alone, so that a resumed run trains the same."""
    torch.manual_seed(int(text_id(str(config.seed), specialist), 16))


def _clear(out: Path, plan: Iterable[str], todo: Iterable[str]) -> None:
    """Remove what was trained with other settings, under the names to train or any other."""
    kept = set(plan) - set(todo)
    stale = [record.parent for record in out.glob(f"*/{ensemble.RECORD}") if record.parent.name not in kept]
    if stale:
        noun = "judge" if len(stale) == 1 else "judges"
        log.warning("%s: replaces %d %s trained with other settings", out, len(stale), noun)
    for folder in stale:
        shutil.rmtree(folder)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of `target` when it is complete."""
    incomplete = target.with_name(f".{target.name}.partial")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir()
    yield incomplete
    shutil.rmtree(target, ignore_errors=True)
    incomplete.rename(target)


def _scores(specialist: Specialist | Classifier, examples: Sequence[Example]) -> list[float]:
    scores = dict(ensemble.raw_scores([specialist], [example.encoded for example in examples], [0] * len(examples)))
    return [scores[index] for index in range(len(examples))]


def _unseen(examples: Sequence[Example], scores_N: Sequence[float]) -> list[Row]:
    """The raw scores of rows that were not trained on, kept so that another calibration needs no other training."""
    return [
        {
            "category": example.category,
            "query_id": example.query_id,
            "followed": example.followed,
            "score": score,
        }
        for example, score in zip(examples, scores_N, strict=True)
    ]


def _seat(specialist: str, category: str, unseen: Sequence[Row], config: TrainJudgeConfig) -> dict[str, Any]:
    """What the manifest says of a category: its calibration, and how it does on the rows it was chosen on."""
    rows = [row for row in unseen if row["category"] == category]
    truth_N = np.array([row["followed"] for row in rows], dtype=bool)
    raw_N = np.array([row["score"] for row in rows], dtype=float)
    chosen = calibrate(truth_N, raw_N, target_precision=config.target_precision, abstain=config.abstain)
    if config.target_precision and chosen.target_recall is None:
        told = "no threshold for '%s' surely reaches a precision of %g on %d held-out rows; it gets the balanced one"
        log.warning(told, category, config.target_precision, len(truth_N))
    measured: dict[str, Any] = {}
    raw_error = None
    if len(np.unique(truth_N)) == 2:
        query_ids = [row["query_id"] for row in rows]
        weights_RN = resample_weights(query_ids, seed=config.seed)
        scores_N = tempered(raw_N, chosen.temperature)
        low, high = chosen.band or (1.0, 1.0)
        decided_N = (scores_N <= low) | (scores_N >= high)
        values = judge_metrics(truth_N, scores_N, chosen.threshold, weights_RN, decided_N)
        n_queries = contributing(truth_N, scores_N, chosen.threshold, query_ids, decided_N)
        measured = {metric: _plain(found) for metric, found in judge_estimates(values, n_queries).items()}
        raw_error = float(judge_metrics(truth_N, raw_N, chosen.threshold, weights_RN[:1])["ece"][0])
    else:
        log.warning("the held-out rows have one class only for '%s': its threshold is %.3g", category, chosen.threshold)
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


def _examples(
    encoder: Encoder | Pairs, rows: Sequence[Row], members: Sequence[str], made: Collection[int]
) -> list[Example]:
    return [
        Example(
            encoder(row),
            row["followed"],
            row["category"],
            row["query_id"],
            id(row) not in made,
            row.get("donor_query_id"),
        )
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


def _plain(value: Any) -> list[float | None]:
    return [None if np.isnan(x) else round(x, 4) for x in (value.value, value.low, value.high)]


def _interval(value: Sequence[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "-"
    if value[1] is None:
        return f"{value[0]:.2f}"
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
