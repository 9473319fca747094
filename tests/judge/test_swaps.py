import json

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cli import tjd
from tjd.judge import swaps

CATEGORIES = ("style", "structure")


def table(n):
    """Three responses per query; every fifth query has the same constraint."""
    return [
        {"query_id": f"q{i // 3}", "query": f"Tell me of {i // 3}.", "response_id": f"r{i}", "response": f"answer {i}",
         "constraint_id": f"c{i // 3}", "constraint": f"In the manner of {i // 3 % 5}.",
         "category": CATEGORIES[i // 3 % 2], "followed": i % 3 == 0}
        for i in range(n)
    ]  # fmt: skip


@given(st.floats(0, 1), st.integers(0, 5))
def test_its_share_of_each_category_is_swapped_with_other_queries_of_it(share, seed):
    rows = table(120)
    made = swaps.negatives(rows, share, seed=seed)
    source = {row["response"]: row for row in rows}
    of_constraint = {(row["constraint_id"], row["category"]): row for row in rows}
    for category in CATEGORIES:
        assert sum(row["category"] == category for row in made) == round(share * 60)
    for row in made:
        original, donor = source[row["response"]], of_constraint[row["constraint_id"], row["category"]]
        assert row["followed"] is False
        assert row["query_id"] == original["query_id"] != donor["query_id"]
        assert row["constraint"] == donor["constraint"] != original["constraint"]
    assert len({(row["response_id"], row["constraint"]) for row in made}) == len(made)
    assert made == swaps.negatives(rows, share, seed=seed)


def test_without_another_constraint_nothing_is_swapped():
    rows = [row | {"constraint": "Be kind."} for row in table(30)]
    rows[0] |= {"constraint": "Be kind. "}
    assert swaps.negatives(rows, 1.0) == []


def test_another_seed_swaps_others():
    assert swaps.negatives(table(120), 0.3, seed=0) != swaps.negatives(table(120), 0.3, seed=1)


def test_constraints_of_other_splits_are_never_swapped_in(tiny_model_dir, tmp_path):
    rows = table(90)
    for i, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[i // 6 % 4]
        row["response"] += " a" * row["followed"]
    one = [row | {"constraint": "Be kind."} if row["split"] == "train" else row for row in rows]
    n_swapped = {}
    for name, labels in (("many", rows), ("one", one)):
        path, out = tmp_path / f"{name}.parquet", tmp_path / name
        pq.write_table(pa.Table.from_pylist(labels), path)
        train = ("train-judge", path, "-b", tiny_model_dir, "--head", "probe", "--swap", 0.5, "-o", out)
        assert tjd(*train).exit_code == 0
        data = json.loads((out / "manifest.json").read_text())["data"]
        n_swapped[name] = data["n_swapped"]
        n_train = sum(row["split"] == "train" for row in labels)
        assert data["n"]["train"] == n_train + data["n_swapped"]
        assert f"and {data['n_swapped']} have the constraint of another query" in (out / "card.md").read_text()
    assert n_swapped == {"many": n_train // 2, "one": 0}
