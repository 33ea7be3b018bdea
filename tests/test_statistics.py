"""Intervals, the confusion matrix and rank correlation, against published values and other
libraries.
"""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from datadream.statistics import confusion, mean_interval, spearman, wilson

shares = st.integers(1, 3000).flatmap(
    lambda total: st.tuples(st.integers(0, total), st.just(total))
)


@pytest.mark.parametrize(
    "correct, total, low, high",
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(shares, st.floats(0.5, 0.999))
def test_wilson_solves_its_equation(share, confidence):
    """An end p of the interval is where the score test is just at its limit: |p_hat - p| = z
    sqrt(p (1 - p) / n).
    """
    correct, total = share
    z = stats.norm.ppf(0.5 + confidence / 2)
    for end in wilson(correct, total, confidence):
        assert abs(correct / total - end) == pytest.approx(
            z * math.sqrt(max(0.0, end * (1 - end)) / total), abs=1e-6
        )


@given(shares)
def test_wilson_holds_the_share_stays_in_range_and_is_symmetric(share):
    correct, total = share
    low, high = wilson(correct, total)
    assert 0 <= low < high <= 1
    # At 0 and 1 the ends touch the share, up to rounding.
    assert low - 1e-12 <= correct / total <= high + 1e-12
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
    assert mean_interval([1, 2, 3]) == pytest.approx(
        (2, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4
    )
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


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=4, max_size=15))
def test_the_rank_correlation_is_scipys_and_lies_in_its_interval(pairs):
    x, y = np.array(pairs, dtype=float).T
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    rho, low, high = spearman(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert math.isnan(low) or -1 <= low < rho < high <= 1
    assert spearman(np.exp(x / 10), y)[0] == pytest.approx(rho), (
        "a change that keeps the order keeps the ranks"
    )
    assert spearman(x, -y) == pytest.approx((-rho, -high, -low), nan_ok=True)


def test_the_interval_of_the_rank_correlation_by_hand():
    """Ten pairs, two neighbours exchanged three times: rho = 1 - 6 * 6 / 990; z = 1.9945 +- 1.96
    sqrt((1 + rho^2 / 2) / 7).
    """
    rho, low, high = spearman(range(10), [1, 0, 2, 4, 3, 5, 7, 6, 8, 9])
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 7)
    assert rho == pytest.approx(1 - 36 / 990)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)), abs=1e-6
    )


def test_the_interval_holds_the_true_correlation_about_as_often_as_it_says():
    # Of a normal pair with correlation 0.5.
    random, true = (np.random.RandomState(0), 6 / math.pi * math.asin(0.5 / 2))
    held = []
    for _ in range(1000):
        x, noise = random.randn(2, 10)
        _, low, high = spearman(x, 0.5 * x + math.sqrt(0.75) * noise)
        held.append(low <= true <= high)
    assert 0.93 <= np.mean(held) <= 0.985


def test_a_rank_correlation_that_cannot_be_had():
    assert all(map(math.isnan, spearman([1, 1, 1, 1], [1, 2, 3, 4])))
    rho, low, high = spearman([1, 2, 3, 4], [1, 2, 3, 9])
    assert rho == pytest.approx(1) and math.isnan(low) and math.isnan(high)
    assert math.isnan(spearman([1, 2, 3], [2, 1, 3])[1])
    for x, y in (([1, 2], [1, 2, 3]), ([1], [1]), ([1, math.nan], [1, 2]), ([[1, 2]], [[1, 2]])):
        with pytest.raises(ValueError, match="two or more pairs of finite numbers"):
            spearman(x, y)
