import pytest

from tjd.rewards import combine


@pytest.mark.parametrize(
    ("rules", "softs", "expected"),
    [
        ([1, 0], [1, 0, 0.5], (0.5, 0.5, 1.0)),
        ([1], [], (1.0, None, 1.0)),
        ([], [0], (None, 0.0, 0.0)),
        ([0, 0], [1], (0.0, 1.0, 1.0)),
        ([], [], (None, None, None)),
        ([1, None], [1], (None, 1.0, None)),
        ([1], [None], (1.0, None, None)),
    ],
)
def test_combine_is_equation_5_and_a_failed_part_is_null(rules, softs, expected):
    reward = combine(rules, softs)
    assert (reward.rule, reward.soft, reward.total) == expected
