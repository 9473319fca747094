import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd.calibration import LEAST, MOST, abstain_band, calibrate, fit_temperature, tempered, threshold_at_precision
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
        assert not (followed.all() and len(followed) >= 15)  # 15 of 15 has a lower bound of 0.95
        return
    threshold, recall = found
    said = scores >= threshold
    assert followed[said].mean() >= target
    assert recall == pytest.approx(said[followed].mean())
    higher = threshold_at_precision(followed, scores, target + 0.04)
    assert higher is None or higher[1] <= recall


def test_little_data_is_not_certainty():
    for n_right, reached in ((4, False), (5, True)):
        followed = np.array([True] * n_right + [False] * 20)
        assert (threshold_at_precision(followed, followed * 0.9, 0.85) is not None) is reached
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
