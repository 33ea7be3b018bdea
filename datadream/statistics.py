"""Statistics of accuracies: intervals, the confusion matrix, and rank correlation.

SciPy is imported where it is used: it takes two seconds.
"""

import math
from collections.abc import Sequence

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
    """Return the confusion matrix (classes, classes): row the true class, column the predicted."""
    matrix = np.zeros((classes, classes), dtype=int)  # scikit-learn's refuses an empty one
    np.add.at(matrix, (np.asarray(labels, int), np.asarray(predictions, int)), 1)
    return matrix


def spearman(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return Spearman's rank correlation of paired values with its interval, (rho, low, high).

    The interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright
    (2000). It needs no random draw, and a bootstrap of ten classes would repeat pairs, whose ties
    bend the ranks. The ends are NaN for fewer than four pairs and for rho = +-1; all three are NaN
    where one side is constant. Raises ValueError on values that are no pairs of finite numbers.
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
