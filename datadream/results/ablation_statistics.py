"""What the accuracy does along an axis: statistics of the tables that `ablation.run_axis` and
`keep.load` return.
"""

import math

import numpy as np
import pandas as pd

from ..methods.registry import METHODS
from ..statistics import mean_interval
from .records import best_by_validation, paired, protocol_note, sentence, summary, verdict


def along(table):
    """Return records.summary of every point, one row per value and method, with the column
    `value`.
    """
    return pd.concat(
        [summary(part).assign(value=value) for value, part in table.groupby("value", sort=False)],
        ignore_index=True,
    )


def differences(table, variants, baseline):
    """Return one row per value: the difference in points of the variant that validation prefers
    there to `baseline`, with its interval.
    """
    rows = []
    for value, part in table.groupby("value", sort=False):
        best = best_by_validation(part, variants)
        rows.append({"value": value, **paired(part, best, baseline)})
    return pd.DataFrame(rows)


def difference_lines(table, variants, baseline):
    """Return a plain sentence per value on `differences`."""
    return [
        f"{row['value']}: {sentence(row, METHODS[row['better']].title, METHODS[baseline].title)} "
        f"{protocol_note(table)}".strip()
        for row in differences(table, variants, baseline).to_dict("records")
    ]


def against(table, method, reference):
    """Return one row per other value: the difference in points of `method` at this value to itself
    at `reference`, with its interval.

    A value whose records are those of the reference is left out: the setting does not reach this
    method.
    """
    # The values are what is paired.
    own = table[table["method"] == method].assign(method=table["value"])
    keys = {value: set(part["key"]) for value, part in own.groupby("value", sort=False)}
    rows = [
        {"value": value, "reference": reference, **paired(own, value, reference)}
        for value in keys
        if keys[value] != keys[reference]
    ]
    return pd.DataFrame(rows, columns=["value", "reference", "seeds", "difference", "low", "high"])


def against_lines(table, method, reference):
    """Return a plain sentence per value on `against`."""
    return [
        f"{METHODS[method].title}, {sentence(row, repr(row['value']), repr(reference))} "
        f"{protocol_note(table)}".strip()
        for row in against(table, method, reference).to_dict("records")
    ]


def last_lines(table, method):
    """Return a plain sentence on what the last value adds to the one before it: where a curve
    flattens, a slope over all of it misleads.
    """
    before, last = list(dict.fromkeys(table["value"]))[-2:]
    return against_lines(table[table["value"].isin([before, last])], method, before)


def trend(table, method):
    """Return (mean, low, high) over the seeds of the points that a doubling of the value adds to
    top-1: a least-squares slope each.

    Raises ValueError where a value is no positive number or there are fewer than three.
    """
    own = table[table["method"] == method]
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


def trend_line(table, method, what):
    """Return a plain sentence on `trend`: how many points each doubling of `what` adds, and
    whether that is shown.
    """
    mean, low, high = trend(table, method)
    seeds, title = table.loc[table["method"] == method, "seed"].nunique(), METHODS[method].title
    if math.isnan(low):
        return (
            f"{title}: each doubling of {what} adds {mean:+.1f} points on one seed, which has "
            "no interval over seeds."
        )
    return (
        f"{title}: each doubling of {what} adds {mean:+.1f} points on average over {seeds} seeds, "
        f"95 % interval {low:+.1f} to {high:+.1f}; {verdict(low, high, 'trend')}. "
        f"{protocol_note(table)}"
    ).strip()


def worth(curve, table, method, baseline="real"):
    """Return (mean, low, high) over the seeds of how many real shots train `baseline` as well as
    `method` is trained, or None.

    `curve` has `baseline` at several shots, the column `value`; `table` has one row of `method` a
    seed. Per seed the shots are read off the curve, straight between its points over their
    logarithm and made to rise; the mean is taken of logarithms. None where a seed's accuracy lies
    outside of its curve, since nothing can be read off there.
    """
    found = []
    for row in table[table["method"] == method].itertuples():
        own = curve[(curve["method"] == baseline) & (curve["seed"] == row.seed)]
        own = own.assign(shots=np.log2(own["value"].astype(float))).sort_values("shots")
        heights = np.maximum.accumulate(own["top1"].to_numpy())
        if not heights[0] <= row.top1 <= heights[-1]:
            return None
        found.append(float(np.interp(row.top1, heights, own["shots"])))
    return tuple(2**x for x in mean_interval(found))
