import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tjd.rewards import combine, group_advantages

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
REWARDS = hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 2))  # the range of Eq. 5
WITH_GAPS = hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 2) | st.just(float("nan")))


@given(WITH_GAPS, st.booleans())
def test_advantages_are_finite_and_sum_to_zero(rewards_P_G, scale):
    advantages_P_G = group_advantages(rewards_P_G, scale=scale)
    assert advantages_P_G.shape == rewards_P_G.shape
    assert np.isfinite(advantages_P_G).all()
    np.testing.assert_allclose(advantages_P_G.sum(axis=1), 0, atol=1e-8)


@given(st.floats(0, 2), st.integers(1, 9))
def test_equal_rewards_give_no_advantage(reward, group_size):
    np.testing.assert_allclose(group_advantages(np.full((3, group_size), reward)), 0, atol=1e-10)


@given(WITH_GAPS)
def test_a_null_reward_has_no_advantage_and_does_not_move_the_others(rewards_P_G):
    advantages_P_G = group_advantages(rewards_P_G)
    assert (advantages_P_G[np.isnan(rewards_P_G)] == 0).all()
    for rewards_G, advantages_G in zip(rewards_P_G, advantages_P_G, strict=True):
        known = ~np.isnan(rewards_G)
        np.testing.assert_allclose(advantages_G[known], group_advantages(rewards_G[known][None])[0], atol=1e-9)


@given(REWARDS)
def test_a_higher_reward_never_has_a_lower_advantage(rewards_P_G):
    for rewards_G, advantages_G in zip(rewards_P_G, group_advantages(rewards_P_G), strict=True):
        assert (np.diff(advantages_G[np.argsort(rewards_G)]) >= -1e-9).all()


def test_advantages_divide_by_the_unbiased_deviation():
    np.testing.assert_allclose(group_advantages(np.array([[0.0, 1.0]])), [[-0.70701, 0.70701]], atol=1e-5)
    np.testing.assert_allclose(group_advantages(np.array([[0.0, 1.0]]), scale=False), [[-0.5, 0.5]])


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
