"""Multi-IF: 4,501 conversations of three turns in eight languages, with IFEval's 25 types of rule constraints.

The constraints of a turn are its own and those of the turns before it; the answer to each turn is checked alone.

Source: He et al., arXiv:2410.15553.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tjd.benchmarks import sources
from tjd.benchmarks.figures import ALL, Figure, accuracies, chosen, isr, mean
from tjd.errors import DataError
from tjd.tables import Row

HOWTO = (
    "Multi-IF is facebook/Multi-IF on the hub: give that name, or a file of it (JSONL, CSV or Parquet, with the columns "
    "key, language, turn_1_prompt, turn_1_instruction_id_list, turn_1_kwargs, ...) named *multi*if*, or its folder"
)
TURNS = (1, 2, 3)
COLUMNS = ("key", "language", "turn_1_prompt", "turn_1_instruction_id_list", "turn_1_kwargs")
LANGUAGES = {
    "Chinese": "zh", "English": "en", "French": "fr", "Hindi": "hi", "Italian": "it", "Portuguese": "pt",
    "Russian": "ru", "Spanish": "es",
}  # fmt: skip


def read(source: str) -> list[Row]:
    """Read the conversations, a row per turn, those of a conversation under one `query_id`; see `sources.read_rows`."""
    rows = sources.read_rows(source, "*[mM]ulti*[iI][fF]*.*", COLUMNS, HOWTO)
    return [turn for row in rows for turn in _turns(row)]


def figures(rows: Sequence[Row], weights_RN: np.ndarray) -> list[Figure]:
    """ISR and the four accuracies, pooled and by turn, language, and both; `average` is the mean of the four."""
    groups: dict[str, dict[str, Any]] = {ALL: {}}
    for turn in TURNS:
        groups[f"turn={turn}"] = {"turn": turn}
    for language in sorted({row["language"] for row in rows}):
        groups[f"language={language}"] = {"language": language}
        for turn in TURNS:
            groups[f"language={language}, turn={turn}"] = {"language": language, "turn": turn}
    found = [isr(rows, weights_RN)]
    for group, shared in groups.items():
        own, weights = chosen(rows, weights_RN, lambda row, s=shared: all(row[name] == s[name] for name in s))
        four = accuracies(own, weights, group)
        found += [*four, mean("average", group, four)]
    return found


def _turns(row: Row) -> Iterator[Row]:
    for turn in TURNS:
        message = _parsed(row, f"turn_{turn}_prompt")
        if not message:
            continue
        ids = _parsed(row, f"turn_{turn}_instruction_id_list")
        kwargs = [json.loads(text) if isinstance(text, str) else text for text in _parsed(row, f"turn_{turn}_kwargs")]
        where = f"multi-if {row['key']}, turn {turn},"
        language = str(row["language"])
        yield sources.instruction_row(
            f"multi-if:{row['key']}:t{turn}",
            message["content"] if isinstance(message, dict) else str(message),
            sources.rules(ids, kwargs, where),
            query_id=f"multi-if:{row['key']}",
            language=LANGUAGES.get(language, language),
            turn=turn,
        )


def _parsed(row: Row, name: str) -> Any:
    """A cell, which may be JSON in a string; null for a turn that is not there."""
    value = row.get(name)
    if not isinstance(value, str):
        return value
    if value in ("", "None"):
        return None
    try:
        return json.loads(value)
    except ValueError as exc:
        raise DataError(f"multi-if {row['key']}: {name} is not JSON; {HOWTO}") from exc
