"""Compare methods over datasets and numbers of shots: the primary question, the others, ranks.

The tables are those of `records.load_records`: a row per dataset, method, shots and seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..statistics import average_ranks, critical_difference, holm, mean_interval, paired_p
from .records import RELEASED, direction, paired, select, shared_means, summary

# The study's primary question, fixed before it ran. All other comparisons are secondary.
PRIMARY = ("dset+real", "real")
# The paper's claims 1, 2 and 4 as pairs (better, baseline), including the primary question.
CLAIMS = {
    1: (("dset", "base"), ("cls", "base"), ("dset+real", "base+real"), ("cls+real", "base+real")),
    2: (PRIMARY, ("cls+real", "real"), ("base+real", "real")),
    4: (("dset", "cls"), ("dset+real", "cls+real")),
}
SETTING = ["dataset", "shots"]


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies in percent: a row per dataset, shots and seed, a column per method.

    Raises ValueError on two records of one cell, and on records of the released protocol.
    """
    if not set(table["protocol"]) <= {"strict"}:
        raise ValueError(f"records {RELEASED}; select protocol='strict'")
    cells = [*SETTING, "method", "seed"]
    if table.duplicated(cells).any():
        row = table.loc[table.duplicated(cells), cells].iloc[0].to_dict()
        raise ValueError(f"several records of {row}; narrow the table with `select`")
    return 100 * table.pivot(index=[*SETTING, "seed"], columns="method", values="top1")


def _require(wide: pd.DataFrame, *methods: str) -> None:
    missing = [method for method in methods if method not in wide]
    if missing:
        raise KeyError(
            f"no record of {', '.join(missing)}; run those methods on the same seeds first"
        )


def primary(
    table: pd.DataFrame, better: str = PRIMARY[0], base: str = PRIMARY[1]
) -> dict[str, Any]:
    """Return the paired difference of two methods, averaged over datasets and shots.

    A seed counts if it has both methods in every setting of the table. The interval is Student's t
    over the seeds' averages, in points. Raises KeyError if a method has no record, and ValueError
    if no seed is complete.
    """
    wide = _wide(table)
    _require(wide, better, base)
    by_setting = (wide[better] - wide[base]).unstack("seed")
    whole = by_setting.dropna(axis="columns")
    if whole.empty:
        raise ValueError(
            f"no seed has both {better} and {base} in all {len(by_setting)} settings; run "
            "those that are missing"
        )
    averages = whole.mean()
    mean, low, high = mean_interval(averages)
    return {
        "better": better, "baseline": base, "seeds": len(averages), "settings": len(whole),
        "difference": mean, "low": low, "high": high, "p": paired_p(averages),
    }  # fmt: skip


def averaged(table: pd.DataFrame, base: str, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return `questions` of every method against `base`, the largest difference first.

    The column `method` names it. `methods` () takes all methods in the table. Raises KeyError if
    `base` has no record.
    """
    _require(_wide(table), base)
    chosen = methods or list(dict.fromkeys(table["method"]))
    found = questions(table, [(name, base) for name in chosen if name != base])
    found = found.rename(columns={"better": "method"}).drop(columns="baseline")
    return found.sort_values("difference", ascending=False, ignore_index=True)


def questions(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the paired difference of each pair (better, baseline), averaged over its settings.

    A pair's settings are those in which both have records. One row per pair in the given order:
    better, baseline, settings, seeds, difference in points with its uncorrected 95 % interval over
    seeds, p, corrected p, and what is `detected` at 5 %. A pair without a complete seed is left
    out.

    Holm's correction is over the pairs and `family`, so that a difference has the same corrected p
    wherever it is shown. The primary question is not corrected.
    """
    rows = []
    for better, base in dict.fromkeys([*pairs, *family(table)]):
        own = [
            table.loc[table["method"] == name, SETTING].drop_duplicates() for name in (better, base)
        ]
        shared = own[0].merge(own[1], on=SETTING)
        part = table.loc[table["method"].isin([better, base])].merge(shared, on=SETTING)
        try:
            rows.append(primary(part, better, base))
        except (KeyError, ValueError):  # no setting has both, or no seed has all settings
            continue
    columns = ["better", "baseline", "settings", "seeds", "difference", "low", "high", "p"]
    found = pd.DataFrame(rows, columns=columns)
    first = (found["better"] == PRIMARY[0]) & (found["baseline"] == PRIMARY[1])
    found["corrected p"] = found["p"].where(first, holm(found["p"].mask(first)))
    found["detected"] = [
        detected(row["low"], row["high"], row["corrected p"]) for row in found.to_dict("records")
    ]
    asked = [pair in {*pairs} for pair in zip(found["better"], found["baseline"], strict=True)]
    return found.loc[asked].reset_index(drop=True)


def family(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs (better, baseline) of a table that are corrected together, wherever shown.

    These are the claims, and every method against real images alone; the primary question is among
    them.
    """
    names = dict.fromkeys(table["method"])
    claimed = [pair for own in CLAIMS.values() for pair in own if {*pair} <= {*names}]
    against_real = [(name, PRIMARY[1]) for name in names if name != PRIMARY[1]]
    return list(dict.fromkeys([*claimed, *against_real]))


def by_validation(table: pd.DataFrame) -> pd.DataFrame:
    """Return what selecting the method on validation would have given in each setting.

    One row per dataset and shots, from means over the seeds that all of its methods have: the best
    method on validation and its test accuracy, the best method on test and its accuracy, both in
    percent, and Spearman's rank correlation of the two accuracies over the methods. A setting with
    fewer than three methods is left out.
    """
    _wide(table)
    rows = []
    for dataset, shots in sorted(set(zip(table["dataset"], table["shots"], strict=True))):
        part = select(table, dataset=dataset, shots=shots)
        validation, test = (100 * shared_means(part, name) for name in ("val_top1", "top1"))
        if len(test) >= 3:
            chosen, best = validation.idxmax(), test.idxmax()
            rows.append(
                {"dataset": dataset, "shots": shots, "methods": len(test), "chosen": chosen}
                | {"its top1": test[chosen], "best": best, "best top1": test[best]}
                | {"rank correlation": validation.corr(test, method="spearman")}
            )
    return pd.DataFrame(rows)


def claims(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return pair -> its row of `questions`, for all pairs of CLAIMS in the table."""
    rows = questions(table, [pair for pairs in CLAIMS.values() for pair in pairs])
    return {(row["better"], row["baseline"]): row for row in rows.to_dict("records")}


def everywhere(table: pd.DataFrame) -> list[str]:
    """Return the methods that have a record in every setting of the table, in its order."""
    settings = len(table[SETTING].drop_duplicates())
    counts = table.drop_duplicates([*SETTING, "method"])["method"].value_counts(sort=False)
    return [str(method) for method, count in counts.items() if count == settings]


def scoreboard(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy in percent: a row per method, a column per setting, and their mean.

    Columns are named like "mnist, 4". The highest mean comes first; a method that lacks a setting
    has NaN there and in the mean.
    """
    found = pd.DataFrame(_wide(table).groupby(level=SETTING).mean()).T
    found.columns = [f"{dataset}, {shots}" for dataset, shots in found.columns]
    found["mean"] = found.mean(axis=1, skipna=False)
    return found.sort_values("mean", ascending=False)


def beside(table: pd.DataFrame, base: str, methods: Sequence[str]) -> pd.DataFrame:
    """Return accuracies beside those of `base`, on the seeds that both have.

    One row per dataset, shots and method: seeds, top-1 in percent with the interval of
    `records.summary`, that of `base`, and the paired difference with its uncorrected interval. The
    row of `base` itself, and of a method that shares no seed with it, has no difference. Raises
    ValueError as `primary` does.
    """
    _wide(table)
    rows = []
    for dataset, shots in sorted(set(zip(table["dataset"], table["shots"], strict=True))):
        part = select(table, dataset=dataset, shots=shots)
        by_method = {str(name): set(own["seed"]) for name, own in part.groupby("method")}
        for method in (name for name in methods if name in by_method):
            shared = by_method[method] & by_method.get(base, set())
            compared = bool(shared) and method != base
            kept = part["seed"].isin(list(shared or by_method[method]))
            found = summary(part.loc[kept & part["method"].isin([method, base])])
            own = found.set_index("method").loc[method]
            row = {"dataset": dataset, "shots": shots, "method": method, "seeds": int(own["seeds"])}
            row |= {name: own[name] for name in ("top1", "low", "high")}
            if compared:
                gain = paired(part, method, base)
                row["base"] = found.set_index("method").loc[base, "top1"]
                row["difference"] = gain["difference"]
                row |= {"least": gain["low"], "most": gain["high"]}
            rows.append(row)
    columns = [*SETTING, "method", "seeds", "top1", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "base", "difference", "least", "most"])


def detected(low: float, high: float, p: float, level: float = 0.05) -> str:
    """Say whether a difference is "more", "less", "undecided" or "not detected".

    `low` and `high` are its uncorrected interval, `p` its corrected p-value. The difference is
    undecided if the interval excludes zero but the p-value is not below `level`. A single seed,
    whose interval and p are NaN, detects nothing.
    """
    found = direction(low, high)
    return found if found == "not detected" or p < level else "undecided"


def ranks(table: pd.DataFrame) -> tuple[pd.Series, float, int]:
    """Return (average rank by method, critical difference, number of settings).

    A setting is a dataset with a number of shots, and its score is the mean over seeds; rank 1 is
    the best. A setting that lacks a method is left out. Raises ValueError if none is complete, or
    on fewer than two methods.
    """
    scores = pd.DataFrame(_wide(table).groupby(level=SETTING).mean()).dropna()
    if scores.empty or scores.shape[1] < 2:
        raise ValueError(
            f"{len(scores)} settings have records of all {scores.shape[1]} methods; select methods "
            "that were run in the same settings, two or more"
        )
    found = pd.Series(average_ranks(scores), index=scores.columns, name="rank").sort_values()
    return found, critical_difference(scores.shape[1], len(scores)), len(scores)


def cliques(ordered: Sequence[float], apart: float) -> list[tuple[int, int]]:
    """Return the longest runs (first, last) of two or more sorted ranks that lie within `apart`."""
    values, found = np.asarray(ordered, dtype=float), []
    for first in range(len(values)):
        last = int(np.searchsorted(values, values[first] + apart, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
