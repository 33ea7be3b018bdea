"""Intervals and the confusion matrix, against published values and other libraries."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from datadream.metrics import confusion, mean_interval, wilson

shares = st.integers(1, 3000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@pytest.mark.parametrize("correct, total, low, high", [
    (8, 10, 0.4902, 0.9433),
    (0, 10, 0.0, 0.2775),
    (10, 10, 0.7225, 1.0),
    (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
    (15, 148, 0.0624, 0.1605),
    (1, 29, 0.0061, 0.1718),
])
def test_wilson_against_published_values(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(shares, st.floats(0.5, 0.999))
def test_wilson_solves_its_equation(share, confidence):
    """An end p of the interval is where the score test is just at its limit: |p_hat - p| = z sqrt(p (1 - p) / n)."""
    correct, total = share
    z = stats.norm.ppf(0.5 + confidence / 2)
    for end in wilson(correct, total, confidence):
        assert abs(correct / total - end) == pytest.approx(z * math.sqrt(max(0.0, end * (1 - end)) / total), abs=1e-6)


@given(shares)
def test_wilson_holds_the_share_stays_in_range_and_is_symmetric(share):
    correct, total = share
    low, high = wilson(correct, total)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= correct / total <= high + 1e-12  # at 0 and 1 the ends touch the share, up to rounding
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(shares, st.integers(2, 5))
def test_wilson_narrows_with_more_images(share, times):
    correct, total = share
    low, high = wilson(correct, total)
    closer_low, closer_high = wilson(times * correct, times * total)
    assert closer_high - closer_low < high - low


@pytest.mark.parametrize("correct, total", [(-1, 10), (11, 10), (0, 0), (0, -5)])
def test_wilson_refuses_what_is_no_share(correct, total):
    with pytest.raises(ValueError, match=f"correct={correct} of total={total}"):
        wilson(correct, total)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10), st.floats(0.5, 0.999))
def test_the_mean_interval_is_scipys(values, confidence):
    assume(np.std(values) > 1e-6)  # scipy gives NaN for equal values
    mean, low, high = mean_interval(values, confidence)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_the_mean_interval_by_hand():
    # Three values 1, 2, 3: standard error 1 / sqrt(3), t of two degrees of freedom 4.3027.
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert mean_interval([5.0, 5.0, 5.0]) == (5.0, 5.0, 5.0)


def test_a_single_value_has_no_interval():
    mean, low, high = mean_interval([0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40))
def test_the_confusion_matrix_counts(pairs):
    labels, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    matrix = confusion(np.array(labels, dtype=int), np.array(predictions, dtype=int), 5)
    assert matrix.tolist() == [[pairs.count((a, b)) for b in range(5)] for a in range(5)]


def test_a_row_of_the_confusion_matrix_is_a_true_class():
    assert confusion([0, 0, 1], [1, 1, 0], 2).tolist() == [[0, 2], [1, 0]]
