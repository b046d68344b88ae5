"""Bootstrap intervals against what must hold, and against normal theory."""

import math

import numpy as np
import pytest

from lookalike.errors import DataError
from lookalike.evaluation import bootstrap
from lookalike.evaluation.bootstrap import bootstrap_interval, mean_interval, paired_bootstrap
from lookalike.types import Comparison


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_the_interval_of_a_constant_is_itself(value):
    assert bootstrap_interval(np.full(37, value)) == (value, value)


def test_one_query_has_no_width():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_two_queries_by_hand():
    # the resampled mean of (0, 1) is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4
    assert bootstrap_interval([0, 1]) == (0, 1)


def test_normal_theory():
    values = np.random.default_rng(1).normal(5, 2, 400)
    half = 1.959964 * values.std() / math.sqrt(400)
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_chunks_do_not_change_the_result(monkeypatch):
    values = np.random.default_rng(2).random(53)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 53 * 7)
    assert bootstrap_interval(values) == whole


def test_a_constant_difference_by_hand():
    # every query differs by exactly 0.25, and so does every resample, however much the queries differ
    first = paired_bootstrap([1.0, 0.5, 0.25], [0.75, 0.25, 0.0])
    assert (first.difference, first.low, first.high, first.significant) == (0.25, 0.25, 0.25, True)
    back = paired_bootstrap([0.75, 0.25, 0.0], [1.0, 0.5, 0.25])
    assert (back.difference, back.low, back.high, back.significant) == (-0.25, -0.25, -0.25, True)


def test_equal_candidates_do_not_differ_significantly():
    same = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (same.difference, same.low, same.high, same.significant) == (0, 0, 0, False)


def test_one_win_each_is_not_significant():
    result = paired_bootstrap([1, 0, 1, 1], [0, 1, 1, 1])
    assert result.difference == 0
    assert result.low < 0 < result.high
    assert not result.significant


def test_pairing_sees_what_two_separate_intervals_do_not():
    base = np.random.default_rng(5).random(60)
    higher = base + np.random.default_rng(6).uniform(0.005, 0.03, 60)
    assert bootstrap_interval(higher)[0] < bootstrap_interval(base)[1]
    assert paired_bootstrap(higher, base).significant


def test_rounding_of_thirds_makes_nothing_significant():
    """Six queries gain a third, one loses a third, five stay; the 2.5 % quantile has as many gains as losses."""
    ours, theirs = [1.0] * 6 + [1 / 3] + [2 / 3] * 5, [2 / 3] * 12
    assert bootstrap_interval(np.array(ours) - theirs)[0] != 0  # 5.6e-17 here
    comparison = paired_bootstrap(ours, theirs)
    assert comparison.low == 0
    assert not comparison.significant
    tie = paired_bootstrap([1 / 3, 2 / 3, 1.0], [2 / 3, 1.0, 1 / 3])
    assert (tie.difference, tie.significant) == (0.0, False)


def test_zero_on_the_edge_is_not_significant():
    # 10 queries, one of them won: more than 2.5 % of the resamples miss it and have the difference 0
    result = paired_bootstrap([1] + [0] * 9, [0] * 10)
    assert result.low == 0
    assert not result.significant


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], 3.0])
def test_a_wrong_shape_is_an_error(values):
    with pytest.raises(DataError, match=r"one value per query.*got shape"):
        bootstrap_interval(values)


def test_values_must_be_finite():
    with pytest.raises(DataError, match="finite values, but 2 of 3"):
        bootstrap_interval([1.0, math.nan, math.inf])


def test_different_queries_cannot_be_paired():
    with pytest.raises(DataError, match=r"same queries.*got 2 and 3 values"):
        paired_bootstrap([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0] * 100, 0.9630, 1.0),  # 100 / (100 + 1.96²)
        ([0.0] * 100, 0.0, 0.0370),
        ([1.0], 0.2065, 1.0),
        ([1.0, 1.0, 0.0], 0.2077, 0.9385),
        ([0.5] * 50, 0.3664, 0.6336),
    ],
)
def test_few_or_equal_values_have_the_score_interval(values, low, high):
    assert mean_interval(values) == pytest.approx((low, high), abs=1e-4)
    assert mean_interval(np.multiply(values, 1000), max_value=1000) == pytest.approx((1000 * low, 1000 * high), abs=0.1)


def test_many_different_values_have_the_bootstrap_interval():
    values = np.random.default_rng(3).random(40)
    assert mean_interval(values) == bootstrap_interval(values)


def test_a_comparison_prints_its_verdict():
    assert str(Comparison(0.02, 0.005, 0.037)) == "+0.0200 (95 % interval +0.0050 to +0.0370), significant"
    assert str(Comparison(-0.02, -0.045, 0.0)).endswith("(95 % interval -0.0450 to +0.0000), not significant")


def test_the_score_interval_of_ones_ends_at_one():
    assert all(mean_interval(np.ones(n))[1] == 1.0 for n in range(1, 60))
