"""The soft-constraint categories: name, definition, example, and the key names of the VerInstruct data.

Source: the paper's appendix D, tables 6 and 7. `data/taxonomy.toml` is the one place; a user may bring another file.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tjd.errors import ConfigError, DataError
from tjd.resources import folder


@dataclass(frozen=True, slots=True)
class Category:
    """One category of soft constraints."""

    name: str
    definition: str
    example: str
    default: bool  # whether it gets a specialist by default
    verinstruct: tuple[str, ...]  # the VerInstruct keys that belong to it


def load(path: str | None = None) -> dict[str, Category]:
    """Read a taxonomy: category name to category, in file order.

    Raises:
        DataError: The file is missing, is not TOML, or a category lacks its definition or example.
    """
    source = Path(path) if path else folder("data") / "taxonomy.toml"
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as exc:
        raise DataError(
            f"the taxonomy {source.name} cannot be read ({exc}); see data/taxonomy.toml for the form"
        ) from exc
    categories = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or not {"definition", "example"} <= table.keys():
            raise DataError(f"category '{name}' of {source.name} needs a definition and an example")
        categories[name] = Category(
            name,
            table["definition"],
            table["example"],
            bool(table.get("default", False)),
            tuple(table.get("verinstruct", ())),
        )
    if not categories:
        raise DataError(f"the taxonomy {source.name} has no categories; see data/taxonomy.toml for the form")
    return categories


def choose(taxonomy: dict[str, Category], names: Iterable[str]) -> tuple[str, ...]:
    """The named categories, or the defaults if none is named.

    Raises:
        ConfigError: A name is not in the taxonomy, or none is named and none is a default.
    """
    chosen = tuple(names) or tuple(name for name, category in taxonomy.items() if category.default)
    if not chosen:
        raise ConfigError("the taxonomy marks no category as `default = true`; mark some, or name them with --category")
    for name in chosen:
        if name not in taxonomy:
            close = get_close_matches(name, taxonomy, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(taxonomy)}"
            raise ConfigError(f"unknown category '{name}'; {hint}")
    return chosen


def verinstruct_category(key: str, taxonomy: Mapping[str, Category]) -> str | None:
    """The category of a VerInstruct key; null if none names it.

    The paper shortens some keys: "Special_Format" stands for the data's "Special_Output_Format". So a taxonomy's key
    matches one that has all of its words; of several, the one with the most words.
    """
    found = _words(key)
    matching = [
        (len(_words(known)), name)
        for name, category in taxonomy.items()
        for known in category.verinstruct
        if _words(known) <= found
    ]
    return max(matching)[1] if matching else None


def _words(key: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", key)}
