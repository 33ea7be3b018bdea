"""Statistics of accuracies: intervals, tests of many differences, ranks, the confusion matrix.

SciPy is imported where it is used, since it takes two seconds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) in [0, 1] of the share `correct / total`.

    Raises ValueError unless 0 <= correct <= total and total >= 1 (Wilson, 1927).
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(
            f"correct={correct} of total={total}: give 0 <= correct <= total and total >= 1"
        )
    from scipy.stats import binomtest

    found = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return max(0.0, float(found.low)), min(1.0, float(found.high))


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high) of independent values by Student's t.

    The ends are NaN for a single value.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def confusion(labels: Sequence[int], predictions: ArrayLike, classes: int) -> np.ndarray:
    """Return the confusion matrix (classes, classes): rows are true, columns predicted classes."""
    matrix = np.zeros((classes, classes), dtype=int)  # scikit-learn's refuses an empty one
    np.add.at(matrix, (np.asarray(labels, int), np.asarray(predictions, int)), 1)
    return matrix


def scores(labels: ArrayLike, predictions: ArrayLike, classes: int) -> dict[str, Any]:
    """Return a result's scores: top-1, 95 % Wilson interval, per class, confusion matrix.

    Accuracies are in [0, 1]. Raises ValueError if there are no images.
    """
    matrix = confusion(np.asarray(labels).tolist(), predictions, classes)
    correct, total = int(matrix.trace()), int(matrix.sum())
    low, high = wilson(correct, total)
    per_class = (matrix.diagonal() / np.maximum(matrix.sum(1), 1)).round(4).tolist()
    return {
        "top1": correct / total, "low": low, "high": high, "total": total,
        "per_class": per_class, "confusion": matrix.tolist(),
    }  # fmt: skip


def spearman(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return Spearman's rank correlation of paired values with its interval, (rho, low, high).

    The interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright
    (2000). It needs no random draw; a bootstrap of ten classes would repeat pairs, and the ties
    distort the ranks. The ends are NaN for fewer than four pairs and for rho = +-1; all three are
    NaN if one side is constant. Raises ValueError on values that are not pairs of finite numbers.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or not np.isfinite([x, y]).all():
        raise ValueError(
            f"values of shapes {x.shape} and {y.shape}: give two or more pairs of finite numbers"
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan, math.nan
    from scipy import stats

    rho = float(stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    if len(x) < 4 or abs(rho) > 1 - 1e-12:
        return rho, math.nan, math.nan
    half = stats.norm.ppf(0.5 + confidence / 2) * math.sqrt((1 + rho * rho / 2) / (len(x) - 3))
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def paired_p(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Student's t-test that paired differences have mean zero.

    NaN for fewer than two. If all differences are equal it is 0, or 1 if they are zero.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return math.nan
    if np.ptp(values) == 0:  # no scatter, so t is infinite or undefined
        return float(values[0] == 0)
    found = stats.ttest_1samp(values, 0.0)
    return float(found.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values corrected for multiple testing by Holm (1979), in their order.

    The i-th smallest of n is multiplied by n - i + 1, raised to at least its predecessors, and
    capped at 1. NaN stays NaN and does not count. Raises ValueError on values outside [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise ValueError(f"p-values {values[known].tolist()}; give numbers from 0 to 1")
    order = known[np.argsort(values[known], kind="stable")]
    corrected = np.full(len(values), math.nan)
    scaled = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def crossed_interval(
    *values: ArrayLike, confidence: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Return (mean, low, high) of values (seeds, images) by a bootstrap over both.

    Seeds and test images are resampled independently, since every seed is tested on the same
    images; the interval contains the central part of the resampled means (the pigeonhole bootstrap
    of Owen, 2007). It is slightly conservative. For several tables, one per dataset, it is about
    the average of their means: they share the resampled seeds, and each has its own images. The
    ends are NaN for a single seed or image. Raises ValueError on values that are not tables of
    finite numbers with equally many seeds.
    """
    tables = [np.asarray(one, dtype=float) for one in values]
    good = [one.ndim == 2 and one.size and np.isfinite(one).all() for one in tables]
    if not tables or not all(good) or len({len(one) for one in tables}) > 1:
        shapes = ", ".join(str(one.shape) for one in tables)
        raise ValueError(f"values of shape {shapes}; give finite ones of (seeds, images)")
    mean = float(np.mean([one.mean() for one in tables]))
    seeds = len(tables[0])
    if min(seeds, *(one.shape[1] for one in tables)) < 2:
        return mean, math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    means = np.zeros(draws)
    for one in tables:
        images = one.shape[1]
        columns = rng.multinomial(images, np.full(images, 1 / images), draws) / images
        means += ((rows @ one) * columns).sum(1) / len(tables)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return mean, float(low), float(high)


def average_ranks(scores: ArrayLike) -> np.ndarray:
    """Return the mean rank of each column of scores (settings, methods): 1 is the highest.

    Equal scores share their ranks. Raises ValueError on scores that are not a table of finite
    numbers.
    """
    from scipy import stats

    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"scores of shape {table.shape}; give finite ones of (settings, methods)")
    return stats.rankdata(-table, axis=1).mean(0)


def critical_difference(methods: int, settings: int, confidence: float = 0.95) -> float:
    """Return by how much two average ranks must differ in Nemenyi's test.

    It is q sqrt(k (k + 1) / 6 n) for k methods in n settings, with q the studentised range's
    quantile divided by sqrt(2) (Demsar, 2006). Raises ValueError on fewer than two methods or one
    setting.
    """
    if methods < 2 or settings < 1:
        raise ValueError(f"methods={methods}, settings={settings}; give 2 and 1 or more")
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(confidence, methods, np.inf))
    return quantile / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * settings))
