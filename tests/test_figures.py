import pytest

from tjd.errors import ConfigError
from tjd.figures import heat_map, judges_figure, require_format


def metrics(judge, value):
    cells = [("all", value), ("style", None)]  # nothing accepted in style: no precision
    return [
        {"judge": judge, "category": category, "metric": "precision", "group": "all", "value": value,
         "low": value, "high": value, "n": 9, "prevalence": 0.4}
        for category, value in cells
    ]  # fmt: skip


def reliability(judge):
    return [
        {"judge": judge, "category": "all", "bin": i, "n": 3, "score": i / 3, "value": i / 3, "low": 0.0, "high": 1.0}
        for i in range(3)
    ]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        rows = metrics("one", 0.7) + metrics("two", 0.5) + metrics("one - two", 0.2)
        judges_figure(rows, reliability("one") + reliability("two"), tmp_path / f"{name}.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "one - two" not in drawn
    assert "nan" not in drawn


def test_an_empty_cell_of_a_heat_map_has_no_number(tmp_path):
    for name, last in (("empty", None), ("full", 0.25)):
        values = {("a", "x"): 0.9, ("a", "y"): 0.5, ("b", "x"): 0.1, ("b", "y"): last}
        heat_map(values, tmp_path / f"{name}.svg", title="t", rows="r", columns="c")
    empty, full = ((tmp_path / f"{name}.svg").read_text() for name in ("empty", "full"))
    assert (full.count("<!-- 0.25 -->"), empty.count("<!-- 0.25 -->")) == (1, 0)
    assert empty.count("<!-- 0.90 -->") == 1


def test_a_figure_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.svg"):
        require_format(tmp_path / "figure.jpg")
    with pytest.raises(ConfigError, match="does not exist; create it first"):
        require_format(tmp_path / "nowhere" / "figure.svg")
