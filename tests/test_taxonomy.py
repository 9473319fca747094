"""The taxonomy: the paper's seven categories, or a user's own."""

from pathlib import Path

import pytest

from tjd import taxonomy
from tjd.errors import ConfigError, DataError


def test_the_seven_categories_of_the_paper() -> None:
    known = taxonomy.load()
    assert list(known) == ["style", "structure", "semantic", "linguistic", "language", "layout", "spatial"]
    assert all(c.definition and c.example and c.verinstruct for c in known.values())
    keys = [key for c in known.values() for key in c.verinstruct]
    assert len(keys) == len(set(keys)) == 12


def test_the_three_that_generalise_are_the_default() -> None:
    assert taxonomy.choose(taxonomy.load(), ()) == ("style", "structure", "semantic")
    assert taxonomy.choose(taxonomy.load(), ("layout", "style")) == ("layout", "style")


def test_an_unknown_category_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown category 'layouts'; did you mean 'layout'"):
        taxonomy.choose(taxonomy.load(), ("layouts",))
    with pytest.raises(ConfigError, match="unknown category 'xyzzy'; known: style, structure"):
        taxonomy.choose(taxonomy.load(), ("xyzzy",))


def test_a_taxonomy_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[mood]\ndefinition = "d"\nexample = "e"\ndefault = true\n', encoding="utf-8")
    known = taxonomy.load(str(path))
    assert taxonomy.choose(known, ()) == ("mood",)
    assert known["mood"].verinstruct == ()
    path.write_text('[mood]\ndefinition = "d"\nexample = "e"\n', encoding="utf-8")
    assert taxonomy.choose(taxonomy.load(str(path)), ["mood"]) == ("mood",)
    with pytest.raises(ConfigError, match="the taxonomy marks no category as `default = true`"):
        taxonomy.choose(taxonomy.load(str(path)), ())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the taxonomy mine.toml has no categories"),
        ("[a", "the taxonomy mine.toml cannot be read"),
        ('[a]\ndefinition = "d"', "category 'a' of mine.toml needs a definition and an example"),
        ("a = 1", "category 'a' of mine.toml needs a definition and an example"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        taxonomy.load(str(path))
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        taxonomy.load(str(path))
