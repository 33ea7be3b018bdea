"""Pure functions of numbers: accuracy with its interval, paired differences over seeds, and rank
correlation.
"""

import math

import numpy as np
from scipy import stats


def wilson(correct, total, confidence=0.95):
    """Return the Wilson score interval (low, high) in [0, 1] of a share `correct / total`
    (Wilson, 1927).
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(
            f"correct={correct} of total={total}: give 0 <= correct <= total and total >= 1"
        )
    z = stats.norm.ppf(0.5 + confidence / 2)
    share, spread = correct / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def mean_interval(values, confidence=0.95):
    """Return (mean, low, high) of independent values by Student's t; the ends are NaN for a
    single value.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(
        stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
        * values.std(ddof=1)
        / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def confusion(labels, predictions, classes):
    """Return the (classes, classes) integer matrix: row the true class, column the predicted
    one.
    """
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix


def spearman(x, y, confidence=0.95):
    """Return Spearman's rank correlation of paired values with its interval, (rho, low, high), each
    in [-1, 1].

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
    rho = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    if len(x) < 4 or abs(rho) > 1 - 1e-12:
        return rho, math.nan, math.nan
    half = stats.norm.ppf(0.5 + confidence / 2) * math.sqrt((1 + rho * rho / 2) / (len(x) - 3))
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
