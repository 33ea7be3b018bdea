"""Sum up an executed page at its top: findings as lines, paired differences as a table.

A page is one run, whose seeds may be fewer than the study's, so nothing here says what is detected:
the book's results do, by one rule. Tables are those of `records.load_records`.
"""

from collections.abc import Sequence

import pandas as pd

from ..methods.registry import METHODS
from .ablation_statistics import against, differences, ends
from .contexts import intervals
from .records import (
    best_by_validation,
    by_shots,
    in_shots,
    paired,
    protocol_note,
    select,
    signed_interval,
)

GENERATED = ("dset+real", "real")  # what the tuned generator's images add


def of_dataset(table: pd.DataFrame) -> list[str]:
    """Return the findings of one dataset, a line or two per number of shots.

    These are the best method on validation images with its test accuracy, and what the images of
    the tuned generator add to the real ones.
    """
    lines = _warnings(table)
    for shots, part in by_shots(table):
        best = best_by_validation(part, list(dict.fromkeys(part["method"])))
        reached = 100 * select(part, method=best)["top1"].mean()
        lines.append(
            f"With {in_shots(shots)} per class, {METHODS[best].title} is best on validation "
            f"images, and reaches {reached:.1f} % on the test images."
        )
        if {*GENERATED} <= set(part["method"]):
            gain = _said(paired(part, *GENERATED))
            lines.append(f"{_minus(*GENERATED)}, {in_shots(shots)}: {gain}.")
    return lines


def of_ablation(table: pd.DataFrame) -> list[str]:
    """Return what each method that the setting affects gains from its first value to its last."""
    lines = _warnings(table)
    for method in dict.fromkeys(table["method"]):
        for row in _changed(ends(table, method))[:1]:
            change = f"{METHODS[method].title}, {row['value']} minus {row['reference']}"
            lines.append(f"{change}: {_said(row)}.")
    return lines


def of_contexts(asked: pd.DataFrame, linked: pd.DataFrame) -> list[str]:
    """Return whether the requested attributes come out, and how much accidental ones tell.

    `asked` is of contexts.obedience and `linked` of contexts.links.
    """
    lines = []
    if len(asked):
        found = intervals(asked, ["method", "attribute"], "correlation")
        clear = sum(row["low"] > 0 or row["high"] < 0 for row in found.to_dict("records"))
        spread = f"{found['mean'].min():+.2f} to {found['mean'].max():+.2f}"
        lines.append(
            f"The correlation of a requested and a measured attribute is {spread} on average; "
            f"{clear} of {len(found)} intervals exclude zero."
        )
    each = linked.pivot_table("accidental", ["images of", "seed"], aggfunc="sum", sort=False)
    bits = intervals(each.reset_index(), ["images of"], "accidental").to_dict("records")
    told = [f"{row['images of']} {row['mean']:.2f}" for row in bits]
    lines.append(
        "What accidental attributes tell about the class, summed over the attributes, in bits: "
        f"{', '.join(told)}."
    )
    return lines


def pairs_table(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the paired differences of pairs (better, baseline), a row per number of shots and
    pair, as text for `tables.show_table`.
    """
    return pd.DataFrame(
        [
            {"Shots": str(shots), "Difference": _minus(*pair), **_row(paired(part, *pair))}
            for shots, part in by_shots(table)
            for pair in pairs
            if {*pair} <= set(part["method"])
        ]
    )


def baseline_table(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return each method's difference to `baseline` at each value of an ablation, as text."""
    return pd.DataFrame(
        [
            {"Value": str(row["value"]), "Difference": _minus(method, baseline), **_row(row)}
            for method in dict.fromkeys(table["method"])
            if method != baseline
            for row in differences(table, [method], baseline).to_dict("records")
        ]
    )


def values_table(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return each method's difference to itself at the value `reference`, as text.

    Methods that the setting does not affect have no row.
    """
    return pd.DataFrame(
        [
            {"Method": METHODS[method].title, "Value": str(row["value"]), **_row(row)}
            for method in dict.fromkeys(table["method"])
            for row in _changed(against(table, method, reference))
        ]
    )


def _changed(rows):
    """Leave out differences that are zero on every seed: there the setting changed nothing."""
    return [
        row for row in rows.to_dict("records") if row["difference"] or row["low"] or row["high"]
    ]


def _warnings(table):
    note = protocol_note(table)
    return [note] if note else []


def _minus(better, baseline):
    return f"{METHODS[better].title} minus {METHODS[baseline].title}"


def _row(row):
    spread = signed_interval(row) if row["seeds"] > 1 else "-"
    return {
        "Points": f"{row['difference']:+.1f}",
        "95 % interval": spread,
        "Seeds": str(row["seeds"]),
    }


def _said(row):
    told = f"{row['difference']:+.1f} points"
    if row["seeds"] < 2:
        return f"{told} on one seed"
    return f"{told} over {row['seeds']} seeds (95 % interval {signed_interval(row)})"
