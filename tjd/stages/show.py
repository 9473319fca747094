"""Show: what a table holds, in a form to read.

In: any table. Out: titled sections of rows of cells: counts, some rows, columns, and provenance.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from tjd.tables import Row, Table

COUNTED = ("kind", "category", "model", "condition", "language", "split", "mode", "teacher", "judge")
REWARD_PARTS = ("reward", "reward_rule", "reward_soft", "n_tokens", "judge_failed")
MAX_CELL = 300  # characters of a cell that are shown
MAX_VALUES = 50  # a column with more distinct values is not counted

DIGITS = 12  # of a digest that are shown
DIGEST = re.compile("[0-9a-f]{64}")

Section = dict[str, list[Any]]


def summarise(rows: Iterable[Row], table: Table, *, n_rows: int) -> dict[str, Any]:
    """Count in one pass, keeping only the first rows.

    Returns:
        `n_rows`, `provenance`, and `sections`: title to `{"header": [...], "rows": [[...], ...]}`.
    """
    tally = Tally([name for name in COUNTED if name in table.schema.names])
    first: list[Row] = []
    total = 0
    for row in rows:
        total += 1
        tally.add(row)
        if total <= n_rows:
            first.append(row)
    source = table.provenance
    wrote = f"tjd {source['stage']} {source['version']}" if source else "not tjd"
    sections = {
        f"{table.name}: {total} rows, {len(table.schema)} columns": {"header": [], "rows": [["written by", wrote]]},
        **tally.sections(),
    }
    for number, row in enumerate(first, start=1):
        lines = [[k, _short(v)] for k, v in row.items() if v is not None]
        sections[f"row {number}"] = {"header": [], "rows": lines or [["all of it", "null"]]}
    sections["columns"] = {"header": ["column", "type"], "rows": [[f.name, str(f.type)] for f in table.schema]}
    told = [["digest", table.digest[:DIGITS]], *([k, _cut(v)] for k, v in (source or {}).items())]
    sections["provenance"] = {"header": [], "rows": told}
    return {"n_rows": total, "provenance": source, "sections": sections}


class Tally:
    """Counts over the rows of a table, whichever kind it is; a foreign column of another type is not counted."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.counts: dict[str, Counter[Any]] = {name: Counter() for name in names}
        self.verdicts: dict[str, Counter[Any]] = {}
        self.steps: dict[int, list[Row]] = {}
        self.errors: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a row."""
        for name in self.names:
            if isinstance(row[name], Hashable):
                self.counts[name][row[name]] += 1
        constraints = row.get("constraints")
        for constraint in constraints if isinstance(constraints, list) else ():
            if isinstance(constraint, dict):
                name = constraint.get("category") or constraint.get("checker")
                self.counts.setdefault("constraints", Counter())[str(name)] += 1
        if isinstance(row.get("followed", ()), bool | None):
            self.verdicts.setdefault(str(row.get("category") or row.get("checker")), Counter())[row["followed"]] += 1
        if row.get("error"):
            self.errors[str(row["error"])[:100]] += 1
        if row.get("step") is not None and row.keys() >= set(REWARD_PARTS):
            self.steps.setdefault(row["step"], []).append({part: row[part] for part in REWARD_PARTS})

    def sections(self) -> dict[str, Section]:
        """What was counted, ready to be shown."""
        out: dict[str, Section] = {}
        if self.verdicts:
            out["verdicts"] = {
                "header": ["category", "followed", "not followed", "null", "share followed"],
                "rows": [_verdict_line(name, counter) for name, counter in sorted(self.verdicts.items())],
            }
        for name, counter in self.counts.items():
            if 0 < len(counter) <= MAX_VALUES and set(counter) != {None}:
                out[name] = {"header": [name, "rows"], "rows": [[k, n] for k, n in counter.most_common()]}
        if self.steps:
            out["reward by step"] = {
                "header": ["step", "rows", "reward", "rule", "soft", "tokens", "judge failed"],
                "rows": [_step_line(step, lines) for step, lines in sorted(self.steps.items())],
            }
        if self.errors:
            out["errors"] = {"header": ["error", "rows"], "rows": [[k, n] for k, n in self.errors.most_common(10)]}
        return out


def _verdict_line(name: str, counter: Mapping[Any, int]) -> list[Any]:
    yes, no = counter.get(True, 0), counter.get(False, 0)
    share = f"{yes / (yes + no):.2f}" if yes + no else "-"
    return [name, yes, no, counter.get(None, 0), share]


def _step_line(step: int, lines: list[Row]) -> list[Any]:
    def mean(part: str) -> str:
        known = [line[part] for line in lines if line[part] is not None]
        return f"{sum(known) / len(known):.3f}" if known else "-"

    failed = sum(bool(line["judge_failed"]) for line in lines)
    return [step, len(lines), mean("reward"), mean("reward_rule"), mean("reward_soft"), mean("n_tokens"), failed]


def _cut(value: Any) -> Any:
    """Provenance with its digests cut to the digits that tell them apart."""
    if isinstance(value, dict):
        return {name: _cut(held) for name, held in value.items()}
    return value[:DIGITS] if isinstance(value, str) and DIGEST.fullmatch(value) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}… ({len(text)} characters)"
