"""Intervals, the confusion matrix and rank correlation, against published values and other
libraries.
"""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from datadream.statistics import (
    average_ranks,
    confusion,
    critical_difference,
    crossed_interval,
    holm,
    mean_interval,
    paired_p,
    spearman,
    wilson,
)

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


def test_holm_against_a_published_example():
    """Holm (1979) as worked in R's manual of p.adjust: five p-values and their corrections."""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=9))
def test_holm_by_its_definition(values):
    """A hypothesis is rejected at a level if and only if its corrected p is below it: step down."""
    corrected = holm(values)
    known = sorted(p for p in values if not math.isnan(p))
    for level in (0.01, 0.05, 0.2):
        rejected = 0
        while rejected < len(known) and known[rejected] * (len(known) - rejected) < level:
            rejected += 1
        assert (corrected < level).sum() == rejected
    assert [math.isnan(p) for p in values] == np.isnan(corrected).tolist()


@pytest.mark.parametrize("wrong", [[-0.1], [0.2, 1.1]])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm(wrong)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_the_paired_p_agrees_with_the_interval(values):
    """p is below 5 % just where the 95 % interval leaves out zero."""
    _, low, high = mean_interval(values)
    assume(np.ptp(values) > 1e-6 and min(abs(low), abs(high)) > 1e-9)
    assert (paired_p(values) < 0.05) == (low > 0 or high < 0)


def test_the_paired_p_of_few_or_equal_differences():
    assert math.isnan(paired_p([1.0])) and paired_p([2.0, 2.0]) == 0 and paired_p([0.0, 0.0]) == 1


def test_the_crossed_interval_covers_the_truth():
    """Of tables with effects of seeds and of images, 95 % of the intervals hold the mean, or more:
    the bootstrap counts the cells' own scatter twice.
    """
    rng, held = np.random.default_rng(1), 0
    for number in range(100):
        rows, columns = rng.normal(0, 0.1, (12, 1)), rng.normal(0, 0.3, (1, 60))
        table = 0.2 + rows + columns + rng.normal(0, 0.2, (12, 60))
        _, low, high = crossed_interval(table, draws=400, seed=number)
        held += low <= 0.2 <= high
    assert held >= 88  # fewer than 88 of 100 at 95 % happens once in 200 times


def test_the_crossed_interval_is_wider_than_either_alone():
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (1, 40))
    mean, low, high = crossed_interval(table)
    assert mean == pytest.approx(table.mean())
    variances = table.mean(1).var() / 8 + table.mean(0).var() / 40
    assert (high - low) / 2 / 1.96 == pytest.approx(math.sqrt(variances), rel=0.1)
    assert all(math.isnan(end) for end in crossed_interval(table[:1])[1:])
    assert crossed_interval(table) == crossed_interval(table)


def test_several_tables_share_the_seeds_and_have_images_of_their_own():
    """Equal effects of the seeds do not average out over datasets, those of the images do."""
    rng = np.random.default_rng(0)
    seeds, images = rng.normal(0, 1, (8, 1)), [rng.normal(0, 1, (1, n)) for n in (40, 60)]
    both = crossed_interval(seeds + 0 * images[0], seeds + 0 * images[1])
    assert both == pytest.approx(crossed_interval(seeds + 0 * images[0]), abs=0.05)
    mean, low, high = crossed_interval(*(0 * seeds + one for one in images))
    assert mean == pytest.approx(np.mean([one.mean() for one in images]))
    variances = images[0].var() / 40 + images[1].var() / 60
    assert (high - low) / 2 / 1.96 == pytest.approx(math.sqrt(variances) / 2, rel=0.1)
    with pytest.raises(ValueError, match="seeds, images"):
        crossed_interval(np.zeros((2, 3)), np.zeros((3, 3)))


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [[math.nan]], np.zeros((0, 3))])
def test_the_crossed_interval_refuses_what_is_no_table(wrong):
    with pytest.raises(ValueError, match="seeds, images"):
        crossed_interval(wrong)


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_average_ranks_by_counting(scores):
    """A rank is one more than the scores that are higher, and half of the others that are equal."""
    table = np.asarray(scores)
    higher = (table[:, None, :] > table[:, :, None]).sum(2)
    equal = (table[:, None, :] == table[:, :, None]).sum(2) - 1
    assert average_ranks(table) == pytest.approx((1 + higher + equal / 2).mean(0))


@pytest.mark.parametrize("methods, q", [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_against_its_table(methods, q):
    """Demsar (2006), table 5a: Nemenyi's q at 5 %."""
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=1e-3)
