"""Reliability: the curve, its error, and queries that are answered; by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from lookalike.evaluation.reliability import (
    answered_above,
    answered_at,
    calibration_error,
    log_loss,
    reliability_bins,
)


def test_a_curve_by_hand():
    probabilities = np.array([0.05, 0.15, 0.17, 0.95])
    is_match = np.array([False, True, False, True])
    bins = reliability_bins(probabilities, is_match)
    assert [b.probability for b in bins] == pytest.approx([0.05, 0.16, 0.95])
    assert [b.matches for b in bins] == pytest.approx([0, 0.5, 1])
    assert [b.share for b in bins] == pytest.approx([0.25, 0.5, 0.25])
    assert calibration_error(bins) == pytest.approx(0.25 * 0.05 + 0.5 * 0.34 + 0.25 * 0.05)


def test_a_probability_of_1_is_in_the_last_bin():
    (only,) = reliability_bins(np.array([1.0, 0.9]), np.array([True, True]))
    assert only.probability == pytest.approx(0.95)


def test_curve_and_loss_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    probabilities = random.uniform(0.001, 0.999, 500)
    is_match = random.uniform(size=500) < probabilities**2
    bins = reliability_bins(probabilities, is_match)
    matches, predicted = calibration_curve(is_match, probabilities, n_bins=10, strategy="uniform")
    np.testing.assert_allclose([b.matches for b in bins], matches)
    np.testing.assert_allclose([b.probability for b in bins], predicted)
    assert log_loss(probabilities, is_match) == pytest.approx(sklearn_log_loss(is_match, probabilities))


FIRST = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
IS_MATCH = np.array([True, True, False, True, False])
IS_PRESENT = np.array([True, True, False, True, False])


@pytest.mark.parametrize(
    ("precision", "threshold", "reached", "present", "absent"),
    [(0.95, 0.8, 1.0, 2 / 3, 0.0), (0.75, 0.6, 0.75, 1.0, 0.5), (0.6, 0.5, 0.6, 1.0, 1.0)],
)
def test_the_lowest_threshold_with_a_precision_answers_most(precision, threshold, reached, present, absent):
    answered = answered_at(FIRST, IS_MATCH, IS_PRESENT, precision)
    assert answered.min_probability == threshold
    assert (answered.precision, answered.present, answered.absent) == pytest.approx((reached, present, absent))


def test_equal_probabilities_are_answered_together():
    answered = answered_at(np.array([0.9, 0.8, 0.8]), np.array([True, True, False]), np.array([True, True, False]))
    assert (answered.min_probability, answered.present, answered.absent) == (0.9, 0.5, 0.0)


def test_no_query_is_answered_where_the_first_one_is_wrong():
    answered = answered_at(FIRST, ~IS_MATCH, IS_PRESENT)
    assert answered.min_probability is None
    assert (answered.present, answered.absent) == (0, 0)


def test_a_threshold_by_hand():
    answered = answered_above(FIRST, IS_MATCH, IS_PRESENT, 0.7)
    assert (answered.precision, answered.present, answered.absent) == pytest.approx((2 / 3, 2 / 3, 0.5))
