import pytest

from tjd.errors import DataError
from tjd.splits import SPLITS, split_of


def test_all_rows_of_a_query_are_on_one_side_and_the_shares_hold():
    splits = [split_of({"query_id": f"q{i}"}) for i in range(2000)]
    assert splits == [split_of({"query_id": f"q{i}", "split": None}) for i in range(2000)]
    shares = [splits.count(name) / 2000 for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_a_split_column_wins():
    assert split_of({"query_id": "q", "split": "test"}) == "test"


def test_an_unknown_split_is_an_error():
    with pytest.raises(DataError, match="holds 'dev'"):
        split_of({"query_id": "q", "split": "dev"})
