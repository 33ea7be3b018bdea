"""Pure functions of numbers: accuracy with its interval, and paired differences over seeds."""

import math

import numpy as np
from scipy import stats


def wilson(correct, total, confidence=0.95):
    """Return the Wilson score interval (low, high) in [0, 1] of a share `correct / total` (Wilson, 1927)."""
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"correct={correct} of total={total}: give 0 <= correct <= total and total >= 1")
    z = stats.norm.ppf(0.5 + confidence / 2)
    share, spread = correct / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def mean_interval(values, confidence=0.95):
    """Return (mean, low, high) of independent values by Student's t; the ends are NaN for a single value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def confusion(labels, predictions, classes):
    """Return the (classes, classes) integer matrix: row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix
