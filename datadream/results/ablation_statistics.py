"""Statistics of accuracy along an ablation's axis.

The tables are those of `ablation.run_axis` and `freeze.load_frozen`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..methods.registry import METHODS
from ..statistics import mean_interval
from .records import best_by_validation, paired, protocol_note, sentence, summary, verdict


def along(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise every point: `records.summary` per value, with the column `value`."""
    return pd.concat(
        [summary(part).assign(value=value) for value, part in table.groupby("value", sort=False)],
        ignore_index=True,
    )


def differences(table: pd.DataFrame, variants: Sequence[str], baseline: str) -> pd.DataFrame:
    """Compare the best variant at each value with `baseline`: difference in points and interval.

    The best variant is the one that validation prefers at that value.
    """
    rows = []
    for value, part in table.groupby("value", sort=False):
        best = best_by_validation(part, variants)
        rows.append({"value": value, **paired(part, best, baseline)})
    return pd.DataFrame(rows)


def difference_lines(table: pd.DataFrame, variants: Sequence[str], baseline: str) -> list[str]:
    """Return `differences` as plain sentences, one per value."""
    return [
        f"{row['value']}: {sentence(row, METHODS[row['better']].title, METHODS[baseline].title)} "
        f"{protocol_note(table)}".strip()
        for row in differences(table, variants, baseline).to_dict("records")
    ]


def against(table: pd.DataFrame, method: str, reference: Any) -> pd.DataFrame:
    """Compare `method` at each other value with itself at the value `reference`.

    One row per value with the paired difference in points and its interval. A value whose records
    are those of the reference is left out: the setting does not reach this method.
    """
    # The values are what is paired.
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


def against_lines(table: pd.DataFrame, method: str, reference: Any) -> list[str]:
    """Return `against` as plain sentences, one per value."""
    return [
        f"{METHODS[method].title}, {sentence(row, repr(row['value']), repr(reference))} "
        f"{protocol_note(table)}".strip()
        for row in against(table, method, reference).to_dict("records")
    ]


def last_lines(table: pd.DataFrame, method: str) -> list[str]:
    """Return a sentence on what the last value adds to the one before it.

    Where a curve flattens, a slope over all of it misleads.
    """
    before, last = list(dict.fromkeys(table["value"]))[-2:]
    return against_lines(table.loc[table["value"].isin([before, last])], method, before)


def trend(table: pd.DataFrame, method: str) -> tuple[float, float, float]:
    """Return (mean, low, high) over the seeds of the top-1 points that doubling the value adds.

    Per seed it is a least-squares slope over the value's logarithm. Raises ValueError where a value
    is no positive number or there are fewer than three.
    """
    own = table.loc[table["method"] == method]
    try:
        x = own["value"].astype(float)
    except ValueError as error:
        raise ValueError(
            f"the values {sorted(set(own['value']))} are no numbers, so nothing doubles along them"
        ) from error
    if x.nunique() < 3 or not (x > 0).all():
        raise ValueError(
            f"a trend needs three or more positive values, these are {sorted(set(own['value']))}"
        )
    return mean_interval(
        [
            float(np.polyfit(np.log2(x[part.index]), 100 * part["top1"], 1)[0])
            for _, part in own.groupby("seed")
        ]
    )


def trend_line(table: pd.DataFrame, method: str, what: str) -> str:
    """Return `trend` as a sentence: points per doubling of `what`, and what the interval shows."""
    mean, low, high = trend(table, method)
    seeds, title = table.loc[table["method"] == method, "seed"].nunique(), METHODS[method].title
    if math.isnan(low):
        return (
            f"{title}: each doubling of {what} adds {mean:+.1f} points on one seed, so there "
            "is no interval over seeds."
        )
    return (
        f"{title}: each doubling of {what} adds {mean:+.1f} points on average over {seeds} seeds, "
        f"95 % interval {low:+.1f} to {high:+.1f}; {verdict(low, high, 'trend')}. "
        f"{protocol_note(table)}"
    ).strip()


def worth(
    curve: pd.DataFrame, table: pd.DataFrame, method: str, baseline: str = "real"
) -> tuple[float, ...] | None:
    """Return how many real shots `baseline` needs to match `method`: (mean, low, high) over seeds.

    `curve` has `baseline` at several shots, the column `value`; `table` has one row of `method` a
    seed. Per seed the shots are read off the curve, interpolated linearly in their logarithm and
    made monotone; the mean is geometric. Returns None where a seed's accuracy lies outside its
    curve, since nothing can be read off there.
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
