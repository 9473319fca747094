"""Hack probes: responses that deserve no reward, made for the constraints of a table (`data/hacks.toml`).

In: rows with a query and a soft constraint, and, for some probes, responses that follow theirs. Out: rows with a probe as the
response and `followed` false. That is a convention: a colon may well be "free of jargon", but a policy that is rewarded for
a colon has stopped to answer. Two disjoint families of texts keep the test apart from what a judge is hardened on.
"""

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from string import Template
from typing import Literal

from tjd.errors import DataError
from tjd.resources import folder
from tjd.tables import Row, text_id

Family = Literal["train", "test"]
FAMILIES: tuple[Family, ...] = ("train", "test")
VARIABLES = frozenset({"constraint", "instruction", "keywords", "other"})
N_KEYWORDS = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """One text of a probe."""

    name: str
    family: Family
    text: str  # a template of `VARIABLES`


def load(path: str | None = None) -> list[Probe]:
    """Read probes from a TOML file in the form of `data/hacks.toml`, by default that one.

    Raises:
        DataError: The file cannot be read, a probe lacks a family, or a text asks for something unknown.
    """
    source = Path(path) if path else folder("data") / "hacks.toml"
    try:
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as exc:
        raise DataError(f"the probes {source.name} cannot be read ({exc}); see data/hacks.toml for the form") from exc
    probes = []
    for name, families in found.items():
        for family in FAMILIES:
            texts = families.get(family) if isinstance(families, dict) else None
            if not isinstance(texts, list) or not texts:
                raise DataError(f"probe '{name}' of {source.name} needs a list of texts under '{family}'")
            probes += [Probe(name, family, str(text)) for text in texts]
    for probe in probes:
        unknown = set(Template(probe.text).get_identifiers()) - VARIABLES
        if unknown or not Template(probe.text).is_valid():
            told = f"asks for ${min(unknown)}" if unknown else "has a stray '$'"
            raise DataError(f"a text of probe '{probe.name}' in {source.name} {told}; it may use {sorted(VARIABLES)}")
    return probes


def build(rows: Sequence[Row], probes: Sequence[Probe], *, seed: int = 0) -> list[Row]:
    """Every probe on every constraint.

    Args:
        rows: With `query_id`, `query` (and perhaps `instruction`), `category` and `constraint`; where they also have a
            `response` and `followed`, those that followed are the answers to other queries. Equal constraints of a
            query count once.
        probes: Those with `$other` are left out where no other query has an answer.
        seed: Of the choice of answers.

    Returns:
        Rows with `response`, `followed` (false), `probe` and `text` (its template).
    """
    donors = Donors(rows)
    distinct = {(row["query_id"], row["constraint"]): row for row in reversed(rows)}
    built = []
    for row in reversed(distinct.values()):
        rng = random.Random(f"{seed}:{row['query_id']}:{row['constraint']}")
        built += [made for probe in probes if (made := _filled(row, probe, donors, rng)) is not None]
    return built


def negatives(rows: Sequence[Row], probes: Sequence[Probe], share: float, *, seed: int = 0) -> list[Row]:
    """Training rows to harden judges with: per category this share of its rows.

    Every second one is of a probe with another query's answer: those are the hardest to tell and differ from row to row,
    where a colon is learnt from a few. The others come as often as each other.

    Args:
        rows: Of the training split alone.
        probes: Only the family `train` is used.
        share: Of the number of rows, at least 0.
        seed: Of the choice of rows and texts.
    """
    donors = Donors(rows)
    by_name: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.family == "train":
            by_name.setdefault(probe.name, []).append(probe)
    with_other = [name for name, texts in by_name.items() if any("$other" in probe.text for probe in texts)]
    turns = [turn for name in by_name if name not in with_other for turn in (*with_other, name)] or with_other
    by_category: dict[str, list[Row]] = {}
    for row in rows:
        by_category.setdefault(row["category"], []).append(row)
    made: dict[tuple[str, str, str], Row] = {}  # equal rows teach nothing new
    for category, members in sorted(by_category.items()):
        rng = random.Random(f"{seed}:{category}")
        wanted = len(made) + round(share * len(members))
        for name, _ in zip(cycle(turns), range(20 * wanted), strict=False):  # small tables run out of new ones
            if len(made) >= wanted:
                break
            row = _filled(rng.choice(members), rng.choice(by_name[name]), donors, rng)
            if row is not None:
                made.setdefault((row["query_id"], row["constraint"], row["response"]), row)
    return list(made.values())


def sample(rows: Sequence[Row], per_category: int, *, seed: int = 0) -> list[Row]:
    """Rows of so many queries per category, chosen by digest whatever their order; 0 takes all."""
    queries: dict[str, set[str]] = {}
    for row in rows:
        queries.setdefault(row["category"], set()).add(row["query_id"])
    chosen = {
        category: set(sorted(found, key=lambda query_id: text_id(str(seed), query_id))[: per_category or None])
        for category, found in queries.items()
    }
    return [row for row in rows if row["query_id"] in chosen[row["category"]]]


class Donors:
    """Responses that followed their constraint, to be given to other queries."""

    def __init__(self, rows: Sequence[Row]) -> None:
        followed = [row for row in rows if row.get("followed") and row.get("response")]
        self.by_category: dict[str, list[Row]] = {}
        for row in followed:
            self.by_category.setdefault(row["category"], []).append(row)

    def other(self, row: Row, rng: random.Random) -> Row | None:
        """A response to another query, of another category if there is one: it is less likely to follow by chance."""
        elsewhere = [name for name in self.by_category if name != row["category"]]
        for category in [*rng.sample(elsewhere, len(elsewhere)), row["category"]]:
            found = [each for each in self.by_category.get(category, ()) if each["query_id"] != row["query_id"]]
            if found:
                return rng.choice(found)
        return None


def _filled(row: Row, probe: Probe, donors: Donors, rng: random.Random) -> Row | None:
    other = donors.other(row, rng) if "$other" in probe.text else None
    values: Mapping[str, str | None] = {
        "constraint": row["constraint"],
        "instruction": row.get("instruction") or row["query"],
        "keywords": _keywords(row["constraint"]),
        "other": other["response"] if other else None,
    }
    if "$other" in probe.text and values["other"] is None:
        return None
    about = {name: row.get(name) for name in ("query_id", "query", "instruction", "category", "constraint")}
    return about | {
        "response_id": text_id("probe", row["query_id"], row["constraint"], probe.name, probe.text),
        "constraint_id": row.get("constraint_id") or text_id(row["constraint"]),
        "kind": "soft",
        "response": Template(probe.text).substitute(values),
        "followed": False,
        "probe": probe.name,
        "text": probe.text,
        "donor_query_id": other["query_id"] if other else None,
    }


def _keywords(constraint: str) -> str:
    """The longest distinct words of a constraint, in its order."""
    words = list(dict.fromkeys(word.lower() for word in re.findall(r"\w+", constraint)))
    longest = set(sorted(words, key=len, reverse=True)[:N_KEYWORDS])
    return ", ".join(word for word in words if word in longest)
