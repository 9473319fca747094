import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd.calibration import (
    DOUBT,
    LEAST,
    MOST,
    _least_share,
    abstain_band,
    calibrate,
    fit_temperature,
    tempered,
    threshold_at_precision,
)
from tjd.judge.ensemble import Seat
from tjd.rewards import ABSTAINED

rows = st.lists(st.tuples(st.booleans(), st.integers(1, 99)), min_size=1, max_size=60)


def arrays(rows):
    followed, percent = zip(*rows, strict=True)
    return np.array(followed), np.array(percent) / 100


def cross_entropy(followed, scores):
    targets = np.where(followed, (followed.sum() + 1) / (followed.sum() + 2), 1 / ((~followed).sum() + 2))
    return -(targets * np.log(scores) + (1 - targets) * np.log(1 - scores)).mean()


@given(rows)
def test_no_other_temperature_fits_better(rows):
    followed, scores = arrays(rows)
    temperature = fit_temperature(followed, scores)
    assert LEAST * 0.999 <= temperature <= MOST * 1.001
    if followed.all() or not followed.any():
        assert temperature == 1
        return
    least = cross_entropy(followed, np.clip(tempered(scores, temperature), 1e-9, 1 - 1e-9))
    for other in (LEAST, temperature / 1.1, 1.0, temperature * 1.1, MOST):
        if LEAST <= other <= MOST:
            assert least <= cross_entropy(followed, np.clip(tempered(scores, other), 1e-9, 1 - 1e-9)) + 1e-6


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    truth = rng.random(4000)
    followed = rng.random(4000) < truth
    overconfident = tempered(truth, 1 / 3)
    assert fit_temperature(followed, overconfident) == pytest.approx(3, rel=0.1)
    assert fit_temperature(followed, truth) == pytest.approx(1, rel=0.1)


@given(rows, st.floats(LEAST, MOST))
def test_a_temperature_keeps_the_order_and_the_middle(rows, temperature):
    _, scores = arrays(rows)
    assert (np.diff(tempered(np.sort(scores), temperature)) >= 0).all()
    assert tempered(0.5, temperature) == pytest.approx(0.5)
    assert tempered(float(scores[0]), temperature) == pytest.approx(tempered(scores, temperature)[0])


@given(rows, st.sampled_from([0.5, 0.7, 0.85, 0.95]))
def test_a_threshold_at_a_precision_keeps_its_promise_on_the_rows_it_was_chosen_on(rows, target):
    followed, scores = arrays(rows)
    found = threshold_at_precision(followed, scores, target)
    if found is None:
        assert not (followed.all() and len(followed) >= 32)  # 32 of 32 has a lower bound of 0.95
        return
    threshold, recall = found
    said = scores >= threshold
    assert followed[said].mean() >= target
    assert recall == pytest.approx(said[followed].mean())


@given(rows)
def test_the_bound_of_a_share_is_that_of_the_binomial(rows):
    followed, _ = arrays(rows)
    n, n_right = len(followed), int(followed.sum())
    low = float(_least_share(np.array(n_right), np.array(n)))
    at_least = sum(math.comb(n, k) * low**k * (1 - low) ** (n - k) for k in range(n_right, n + 1))
    assert at_least == pytest.approx(DOUBT if n_right else 1)


@pytest.mark.parametrize("n", [25, 50, 200])
def test_a_guess_seldom_reaches_a_precision_and_a_good_judge_keeps_most_recall(n):
    rng = np.random.default_rng(0)
    found = {"guess": [], "border": [], "good": []}
    for _ in range(300):
        followed = rng.random(n) < 0.5
        noise = rng.normal(size=n)
        found["guess"].append(threshold_at_precision(followed, noise, 0.6))
        found["border"].append(threshold_at_precision(rng.random(n) < 0.69, noise, 0.7))
        found["good"].append(threshold_at_precision(followed, noise + 2.5 * followed, 0.7))  # its AUROC is 0.96
    reached = {name: np.mean([each is not None for each in of]) for name, of in found.items()}
    assert reached["guess"] <= 0.1
    assert reached["border"] <= 0.2
    assert reached["good"] >= 0.9
    assert np.mean([each[1] if each else 0 for each in found["good"]]) >= 0.8


def test_little_data_is_not_certainty():
    for n_right, reached in ((9, False), (10, True)):
        followed = np.array([True] * n_right + [False] * 20)
        assert (threshold_at_precision(followed, followed * 0.9, 0.85) is not None) is reached


def test_one_mistake_among_the_surest_does_not_end_the_search_for_a_threshold():
    for n, mistakes, reached in ((100, [2], True), (100, [2, 5], False), (60, [2], False)):
        followed = np.arange(n) < 30
        followed[mistakes] = False
        found = threshold_at_precision(followed, np.linspace(1, 0, n), 0.85)
        assert (found is not None) is reached


def test_without_a_followed_row_there_is_no_threshold():
    assert threshold_at_precision(np.array([False] * 9), np.linspace(0, 1, 9), 0.1) is None


@given(rows, st.floats(0.01, 0.99), st.floats(0, 1))
def test_the_band_lies_around_the_threshold_and_holds_at_most_its_share(rows, threshold, share):
    _, scores = arrays(rows)
    band = abstain_band(scores, threshold, share)
    if band is None:
        return
    low, high = band
    assert low < threshold < high
    inside = (low < scores) & (scores < high)
    assert 0 < inside.mean() <= share
    nearest = np.abs(np.log(scores / (1 - scores)) - math.log(threshold / (1 - threshold)))
    assert nearest[inside].max() <= nearest[~inside].min(initial=math.inf)


def test_a_seat_says_what_the_calibration_chose():
    rng = np.random.default_rng(1)
    raw = rng.random(400)
    followed = rng.random(400) < raw
    chosen = calibrate(followed, raw, target_precision=0.8, abstain=0.1)
    assert chosen.target_recall is not None
    seat = Seat("style", chosen.threshold, chosen.temperature, chosen.band)
    verdicts = [seat.verdict(float(score)) for score in raw]
    decided = [verdict for verdict in verdicts if verdict.followed is not None]
    assert 0.85 <= len(decided) / 400 <= 0.95
    assert all(verdict.followed == (verdict.score >= chosen.threshold) for verdict in decided)
    nulls = [verdict for verdict in verdicts if verdict.followed is None]
    assert {verdict.error for verdict in nulls} == {ABSTAINED}
    assert all(verdict.score is not None for verdict in nulls)


def test_an_unreachable_precision_falls_back_to_balanced_accuracy():
    followed, raw = np.array([True, False] * 10), np.linspace(0.1, 0.9, 20)
    wanted = calibrate(followed, raw, target_precision=0.95, abstain=0.0)
    plain = calibrate(followed, raw, target_precision=0.0, abstain=0.0)
    assert wanted == plain
    assert wanted.target_recall is None
    assert wanted.band is None
