"""Figures: metrics in, an SVG or PNG file out. The same rows give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tjd.errors import ConfigError
from tjd.tables import Row

FORMATS = (".svg", ".png", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's, for all eyes


def require_format(path: Path) -> None:
    """Raise ConfigError unless a figure can be written there; to be called before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--figure {path} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of --figure {path} does not exist; create it first")


def judges_figure(metrics: Sequence[Row], reliability: Sequence[Row], path: Path) -> None:
    """Reward precision per category and judge, with the prevalence, and the reliability of each judge over all rows.

    Args:
        metrics: METRICS of `tjd eval-judge`; differences and groups of rows are left out.
        reliability: Its reliability table.
        path: Ends in .svg, .png or .pdf.
    """
    of_all = [row for row in metrics if row["group"] == "all"]
    precision = {(row["judge"], row["category"]): row for row in of_all if row["metric"] == "precision"}
    judges = list(dict.fromkeys(row["judge"] for row in reliability))
    categories = list(dict.fromkeys(category for _, category in precision))
    figure = Figure(figsize=(4.6 + 1.3 * len(categories), 4.2), layout="constrained")
    bars, curve = figure.subplots(1, 2, width_ratios=[max(1.0, 0.36 * len(categories)), 1.0])
    width = 0.8 / len(judges)
    for place, judge in enumerate(judges):
        colour = COLOURS[place % len(COLOURS)]
        rows = [precision[judge, category] for category in categories]
        values = np.array([np.nan if row["value"] is None else row["value"] for row in rows])
        ends = np.array([[np.nan if row[end] is None else row[end] for end in ("low", "high")] for row in rows]).T
        at = np.arange(len(categories)) - 0.4 + (place + 0.5) * width
        bars.bar(at, values, width * 0.92, color=colour, label=judge)
        bars.errorbar(at, values, np.abs(ends - values), fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        bins = [row for row in reliability if row["judge"] == judge and row["category"] == "all"]
        shares = np.array([[row["value"], row["low"], row["high"]] for row in bins])
        error = np.abs(shares[:, 1:].T - shares[:, 0])
        scores = [row["score"] for row in bins]
        curve.errorbar(scores, shares[:, 0], error, color=colour, marker="o", ms=4, lw=1.2, elinewidth=0.8, label=judge)
    for place, category in enumerate(categories):
        prevalence = precision[judges[0], category]["prevalence"]
        label = "prevalence" if place == 0 else None
        bars.hlines(prevalence, place - 0.45, place + 0.45, colors="#333333", linestyles="dashed", label=label)
    counts = [precision[judges[0], category]["n"] for category in categories]
    bars.set_xticks(range(len(categories)), [f"{name}\nn = {n}" for name, n in zip(categories, counts, strict=True)])
    bars.set(ylim=(0, 1.03), ylabel="reward precision (95% interval)", title="Of what is accepted, how much is right")
    curve.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
    curve.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="mean score of a bin",
        ylabel="share followed",
        title="Reliability, all rows",
    )
    curve.set_aspect("equal")
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def heat_map(
    values: Mapping[tuple[str, str], float | None],
    path: Path,
    *,
    title: str,
    rows: str,
    columns: str,
    middle: float = 0.5,
) -> None:
    """A matrix of shares, or of differences between shares, with its numbers; a null cell stays empty.

    Args:
        values: (row, column) to a value within 0.5 of `middle`; beyond it the colour stays the same.
        path: Ends in .svg, .png or .pdf.
        title: Of the figure.
        rows: What the rows are.
        columns: What the columns are.
        middle: Which value is white: that of chance, or no difference.
    """
    down, across = (list(dict.fromkeys(cell[axis] for cell in values)) for axis in (0, 1))
    matrix = np.array([[_number(values.get((row, column))) for column in across] for row in down])
    figure = Figure(figsize=(2.4 + 0.9 * len(across), 1.8 + 0.62 * len(down)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=middle - 0.5, vmax=middle + 0.5, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "white" if abs(value - middle) > 0.3 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right")
    axes.set_yticks(range(len(down)), down)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    figure.colorbar(image, ax=axes)
    _save(figure, path)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _save(figure: Figure, path: Path) -> None:
    undated: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "tjd"}):  # or ids are random
        figure.savefig(path, dpi=160, metadata=undated.get(path.suffix.lower()))
