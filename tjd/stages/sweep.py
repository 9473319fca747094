"""Sweep: train judges with every combination of a few settings, and choose one on held-out rows.

In: a grid of settings, and how to train. Out: SWEEP, a row per combination and category. A combination is known by a
fingerprint of all that its judges depend on, so a resumed sweep trains only what is not yet in the table.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from tjd import tables
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError, DataError, TrainingError
from tjd.judge.ensemble import MANIFEST
from tjd.tables import Row

SWEEP = pa.schema(
    {
        "combination": pa.int64(),  # from 1; the last setting of the grid changes fastest
        "settings": pa.string(),  # JSON object: its values of the grid
        "category": pa.string(),  # null where training failed
        "n": pa.int64(),  # held-out rows
        "auroc": pa.float64(),  # on held-out rows, as the two below; null where undefined
        "balanced_accuracy": pa.float64(),  # at the threshold where it is greatest
        "validation_loss": pa.float64(),  # of the specialist's best epoch; null for a probe
        "error": pa.string(),  # why training failed
        "chosen": pa.bool_(),
        "fingerprint": pa.string(),  # of settings, labels and prompt
    }
)

NO_CHOICE = "no category has both verdicts in validation, so --sweep cannot choose; label more"

FILE = "sweep.parquet"
FOLDER = "combinations"  # of the judges of each, by fingerprint

NOT_SWEPT = {
    "seed": "with another seed other rows are in validation",
    "target_precision": "it is chosen after training, and changes no AUROC",
    "abstain": "it is chosen after training, and changes no AUROC",
}


Train = Callable[[TrainJudgeConfig, Path], Mapping[str, Any]]


class Combination(NamedTuple):
    """One point of the grid."""

    number: int
    settings: dict[str, Any]
    config: TrainJudgeConfig
    fingerprint: str

    @property
    def label(self) -> str:
        """The settings in words."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.settings.items())


class Chosen(NamedTuple):
    """The best combination."""

    settings: dict[str, Any]
    summary: dict[str, Any]  # for the manifest: `grid` and `chosen` in words, and `n`, how many combinations


def sweepable() -> dict[str, Any]:
    """Settings that a grid may have, and their types: numbers, yes or no, and choices."""
    kinds = get_type_hints(TrainJudgeConfig)
    plain = {name: kind for name, kind in kinds.items() if kind in (int, float, bool) or get_origin(kind) is Literal}
    return {name: kind for name, kind in plain.items() if name not in NOT_SWEPT}


def combinations(
    config: TrainJudgeConfig, grid: Mapping[str, Sequence[str]], fingerprint: Callable[[TrainJudgeConfig], str]
) -> list[Combination]:
    """Every combination of a grid.

    Args:
        config: The settings that the grid does not name. Target precision and abstention come after the choice.
        grid: Names of `sweepable`, each with its values as they were written.
        fingerprint: Of all that judges trained under a config depend on.

    Raises:
        ConfigError: A value is not one of its setting, or some would be measured on other rows than others.
    """
    kinds = sweepable()
    values = {name: dict.fromkeys(_value(name, kinds[name], text) for text in texts) for name, texts in grid.items()}
    plain = replace(config, target_precision=0.0, abstain=0.0)
    found = []
    for number, point in enumerate(product(*values.values()), 1):
        settings = dict(zip(values, point, strict=True))
        found.append(Combination(number, settings, combined := replace(plain, **settings), fingerprint(combined)))
    if len({each.config.head == "probe" and each.config.balance != "rows" for each in found}) > 1:
        raise ConfigError(
            "--sweep cannot compare these: probes without --balance rows are measured on their training rows too, others on "
            "validation alone; sweep them one after the other"
        )
    return found


def sweep(
    points: Sequence[Combination],
    out: Path,
    train: Train,
    save: Callable[[list[Row]], None],
    *,
    keep: bool = False,
    on_start: Callable[[Combination], None] = lambda point: None,
) -> Chosen:
    """Train all combinations that are not in the table yet, and put the specialists of the best into the judges' folder.

    Args:
        points: See `combinations`.
        out: The judges' folder, with the table of an earlier run or without.
        train: Trains judges into a folder; gives their manifest with their history.
        save: Writes SWEEP to `out / FILE`; told all rows whenever there are more.
        keep: Leave the judges of every combination in `out / FOLDER`.
        on_start: Told of each combination before it is trained.

    Raises:
        DataError: Validation has no category with both verdicts.
        TrainingError: Training failed with every combination.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = _finished(points, out, keep=keep)
    for point in points:
        if point.number not in found:
            on_start(point)
            found[point.number] = _measured(point, train, out / FOLDER / point.fingerprint)
            save(_in_order(found))
    rows = _in_order(found)
    best = choose(rows)
    save([row | {"chosen": row["combination"] == best} for row in rows])
    chosen = next(point for point in points if point.number == best)
    _adopt(out / FOLDER / chosen.fingerprint, out)
    if not keep:
        _remove(out / FOLDER)
    values = {name: dict.fromkeys(point.settings[name] for point in points) for name in chosen.settings}
    grid = ", ".join(f"{name} {' or '.join(map(_shown, options))}" for name, options in values.items())
    return Chosen(chosen.settings, {"grid": grid, "n": len(points), "chosen": chosen.label})


def choose(rows: Sequence[Row]) -> int:
    """The combination with the greatest mean AUROC over the categories where all combinations have one.

    Of equal ones that with the lower validation loss is taken, else the first.

    Raises:
        DataError: There is no such category.
        TrainingError: Training failed with every combination.
    """
    by_number: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row["error"] is None:
            by_number.setdefault(row["combination"], {})[row["category"]] = row
    if not by_number:
        raise TrainingError(f"training failed with every combination of --sweep; the first: {rows[0]['error']}")
    defined = [{c for c, row in of.items() if row["auroc"] is not None} for of in by_number.values()]
    common = sorted(set.intersection(*defined))
    if not common:
        raise DataError(NO_CHOICE)

    def worth(number: int) -> tuple[float, float]:
        chosen = [by_number[number][category] for category in common]
        losses = [row["validation_loss"] for row in chosen]
        mean_loss = math.inf if None in losses else float(np.mean(losses))
        return float(np.mean([row["auroc"] for row in chosen])), -mean_loss

    return max(by_number, key=worth)


def _finished(points: Sequence[Combination], out: Path, *, keep: bool) -> dict[int, list[Row]]:
    """Rows of the combinations that an earlier run has measured, by number; with `keep` their judges must be there."""
    if not (out / FILE).is_file():
        return {}
    earlier = list(tables.open_table(str(out / FILE), "foreign", need=SWEEP.names).rows())
    found: dict[int, list[Row]] = {}
    for point in points:
        about = {"combination": point.number, "settings": json.dumps(point.settings), "chosen": False}
        rows = [row | about for row in earlier if row["fingerprint"] == point.fingerprint]
        if rows and (not keep or (out / FOLDER / point.fingerprint).is_dir()):
            found[point.number] = rows
    return found


def _adopt(trained: Path, out: Path) -> None:
    """Copy a combination's specialists, each at once or not at all; where they are missing, they are in place already."""
    found = sorted(path for path in trained.glob("*") if path.is_dir())
    if found:
        (out / MANIFEST).unlink(missing_ok=True)  # it must not describe the weights to come
    for folder in found:
        incomplete = out / f".{folder.name}.partial"
        for target in (incomplete, out / folder.name):
            shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, incomplete)
        incomplete.rename(out / folder.name)


def _remove(folder: Path) -> None:
    """Remove a folder so that nobody meets a half of it."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.is_dir():
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _measured(point: Combination, train: Train, folder: Path) -> list[Row]:
    about: Row = {
        "combination": point.number,
        "settings": json.dumps(point.settings),
        "chosen": False,
        "fingerprint": point.fingerprint,
        "error": None,
    }
    try:
        manifest = train(point.config, folder)
    except TrainingError as exc:  # a rate too high must not end the sweep
        return [about | {"category": None, "error": str(exc)}]
    losses: dict[str, list[float]] = {}
    for row in manifest["history"]:
        if row.get("validation_loss") is not None:
            losses.setdefault(row["specialist"], []).append(row["validation_loss"])
    rows = [
        about
        | {
            "category": category,
            "n": seat["n_validation"],
            "validation_loss": min(losses.get(seat["specialist"], ()), default=None),
        }
        | {name: seat["validation"].get(name, [None])[0] for name in ("auroc", "balanced_accuracy")}
        for category, seat in manifest["categories"].items()
    ]
    if all(row["auroc"] is None for row in rows):
        raise DataError(NO_CHOICE)  # before more are trained
    return rows


def _in_order(found: Mapping[int, Sequence[Row]]) -> list[Row]:
    return [row for number in sorted(found) for row in found[number]]


def _value(name: str, kind: Any, text: str) -> Any:
    takes = {int: "whole numbers", float: "numbers", bool: "true and false"}.get(kind, " and ".join(get_args(kind)))
    try:
        if kind in (int, float) and math.isfinite(value := kind(text)):
            return value
        if kind is bool:
            return {"true": True, "false": False}[text]
        if text in get_args(kind):
            return text
    except (KeyError, ValueError):
        pass
    raise ConfigError(f"--sweep {name}: '{text}' is none of its values, which are {takes}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
