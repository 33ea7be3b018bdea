"""Statistics of accuracy along an ablation's axis.

The tables are those of `ablation.run_axis` and `freeze.load_frozen`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..statistics import mean_interval
from .records import best_by_validation, paired, summary


def along(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise every point: `records.summary` per value, with a column `value`."""
    return pd.concat(
        [summary(part).assign(value=value) for value, part in table.groupby("value", sort=False)],
        ignore_index=True,
    )


def differences(table: pd.DataFrame, variants: Sequence[str], baseline: str) -> pd.DataFrame:
    """Compare the best variant at each value with `baseline`: difference in points and interval.

    The best variant is the one with the highest validation accuracy at that value.
    """
    rows = []
    for value, part in table.groupby("value", sort=False):
        best = best_by_validation(part, variants)
        rows.append({"value": value, **paired(part, best, baseline)})
    return pd.DataFrame(rows)


def against(table: pd.DataFrame, method: str, reference: Any) -> pd.DataFrame:
    """Compare `method` at each other value with itself at the value `reference`.

    One row per value with the paired difference in points and its interval. A value with the same
    records as the reference is left out, because the setting does not affect this method.
    """
    # Pair by value instead of by method.
    own = table.loc[table["method"] == method].assign(method=table["value"])
    keys: dict[Any, set[str]] = {
        value: set(part["key"]) for value, part in own.groupby("value", sort=False)
    }
    rows = [
        {"value": value, "reference": reference, **paired(own, value, reference)}
        for value in keys
        if keys[value] != keys[reference]
    ]
    return pd.DataFrame(rows, columns=["value", "reference", "seeds", "difference", "low", "high"])


def ends(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Compare `method` at the last value with the first value and with the last but one.

    Rows are as in `against`. No line is fitted, since the slope of a curve that flattens is
    misleading.
    """
    values = list(dict.fromkeys(table["value"]))
    last = table["value"] == values[-1]
    pairs = [
        table.loc[last | (table["value"] == one)] for one in dict.fromkeys((values[0], values[-2]))
    ]
    found = [against(part, method, part["value"].iloc[0]) for part in pairs]
    return pd.concat(found, ignore_index=True)


def worth(
    curve: pd.DataFrame, table: pd.DataFrame, method: str, baseline: str = "real"
) -> tuple[float, ...] | None:
    """Return how many real shots `baseline` needs to match `method`: (mean, low, high) over seeds.

    `curve` has `baseline` at several shots (column `value`); `table` has one row of `method` per
    seed. For each seed the number of shots is read off the curve, made monotone and interpolated
    linearly in the logarithm of the shots; the mean is geometric. Returns None if a seed's accuracy
    lies outside its curve.
    """
    found = []
    for row in table.loc[table["method"] == method].to_dict("records"):
        own = curve.loc[(curve["method"] == baseline) & (curve["seed"] == row["seed"])]
        own = own.assign(shots=np.log2(own["value"].astype(float))).sort_values("shots")
        heights = np.maximum.accumulate(own["top1"].to_numpy())
        if not heights[0] <= row["top1"] <= heights[-1]:
            return None
        found.append(float(np.interp(row["top1"], heights, own["shots"])))
    return tuple(2**x for x in mean_interval(found))
