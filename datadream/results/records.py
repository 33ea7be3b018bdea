"""Load records into one tidy table, and describe comparisons in sentences."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from ..config import as_dict
from ..data.datasets import title_of
from ..methods.recipes import recipe
from ..methods.registry import METHODS
from ..statistics import mean_interval
from ..store.files import json_files
from ..store.open import open_store
from .record import read_record, record_row
from .tables import listed, show_table

RELEASED = "[RELEASED PROTOCOL, for comparison only: the epoch is chosen on the test images]"


def load_records(source: str | Path | list[Path] | None = None) -> pd.DataFrame:
    """Load records into a table, one row each, sorted by dataset, method and seed.

    The columns are dataset, method, shots, images, seed, top1, low, high, val_top1, seconds and the
    rest of `tidy`. `source` is a folder of records or a list of files; None is the store's.
    Accuracies are shares in [0, 1]. Without records the table is empty but has these columns.
    Raises DataError on a damaged record, StoreError on a record or folder that cannot be read.
    """
    if source is None:
        store = open_store()
        source = store.refresh_all(store.records)
    files = source if isinstance(source, list) else json_files(Path(source))
    return tidy([read_record(file) for file in sorted(files)])


def tidy(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table of some records, as `load_records` does for files."""
    columns = [
        "profile",
        "protocol",
        "dataset",
        "method",
        "shots",
        "images",
        "seed",
        "top1",
        "low",
        "high",
        "total",
        "val_top1",
        "seconds",
        "stages",
        "curve",
        "per_class",
        "confusion",
        "artifacts",
        "recipe",
        "commit",
        "dirty",
        "device",
        "created",
        "key",
    ]
    table = pd.DataFrame([record_row(record) for record in records], columns=columns)
    return in_order(table)


def in_order(
    table: pd.DataFrame, columns: Sequence[str] = ("dataset", "method", "seed", "created")
) -> pd.DataFrame:
    """Return the table sorted by `columns`, with methods in the registry's order."""
    order = {name: i for i, name in enumerate(METHODS)}
    return table.sort_values(
        list(columns), key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True
    )


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows whose columns equal `values`, e.g. `select(table, method="real")`."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table.reset_index(drop=True)


def in_profile(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with their profile's current settings for the method.

    This leaves out points of ablations, longer runs, and methods that are not installed or whose
    settings have changed since. Of several records of one cell the newest is kept.
    """
    own = [name for name in table.index if in_own_settings(table.at[name, "recipe"])]
    cell = ["profile", "dataset", "shots", "method", "seed"]
    newest = table.loc[own].sort_values("created", kind="stable")
    return newest.drop_duplicates(cell, keep="last").sort_index().reset_index(drop=True)


def in_own_settings(given: Mapping[str, Any]) -> bool:
    """True if a recipe, as a flat dict, has its profile's settings for its method and shots."""
    if given["method"] not in METHODS:
        return False
    names = ("method", "dataset", "folder", "shots", "seed")
    usual = as_dict(recipe(given["profile"], **{n: given[n] for n in names if n in given}))
    # A record lacks fields that were added after it.
    return all(usual.get(name) == value for name, value in given.items() if name in usual)


def by_shots(table: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    """Return (shots, its rows) for each number of shots in a table, in ascending order."""
    return [(int(k), select(table, shots=k)) for k in sorted(set(table["shots"]))]


def in_shots(shots: int | Collection[int]) -> str:
    """Return a number of shots per class in words: "1 shot", "4 shots" or "1, 4 and 16 shots"."""
    several = [shots] if isinstance(shots, int) else [*shots]
    return f"{listed([*map(str, several)])} {'shot' if several == [1] else 'shots'}"


def in_setting(dataset: str, shots: int) -> str:
    """Return a dataset and a number of shots per class in words: "MNIST, 4 shots"."""
    return f"{title_of(dataset)}, {in_shots(int(shots))}"


def in_settings(settings: Iterable[tuple[str, int]]) -> str:
    """Return pairs (dataset, shots) in words, such as "MNIST at 1 and 4 shots".

    Without a pair, "no setting".
    """
    shots = defaultdict(list)
    for dataset, k in sorted(set(settings)):
        shots[dataset].append(int(k))
    said = [f"{title_of(dataset)} at {in_shots(several)}" for dataset, several in shots.items()]
    return listed(said) if said else "no setting"


def protocol_note(table: pd.DataFrame) -> str:
    """Return a warning if the table has cells with the released code's flaws, else ''."""
    return "" if set(table["protocol"]) <= {"strict"} else RELEASED


def require_one_record_each(table: pd.DataFrame) -> None:
    """Raise ValueError if a table has two records of one dataset, method and seed."""
    if table.duplicated(["dataset", "method", "seed"]).any():
        raise ValueError(
            "several records of one method and seed; narrow the table with `select`, e.g. by "
            "shots or images"
        )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method: seeds, mean top-1 and its interval in percent.

    The interval is Student's t over seeds, or Wilson's over test images if all seeds have the same
    accuracy, as a single one does. A method that is not installed is shown by its name.
    """
    require_one_record_each(table)
    rows = []
    for method, group in table.groupby("method", sort=False):
        mean, low, high = mean_interval(group["top1"])
        # One seed, or a deterministic method: only the choice of test images remains.
        if len(set(group["top1"])) == 1:
            low, high = group["low"].iloc[0], group["high"].iloc[0]
        known = METHODS.get(str(method))
        title = known.title if known else str(method)
        rows.append(
            {
                "method": method,
                "title": f"{title} {protocol_note(group)}".strip(),
                "seeds": len(group),
                "top1": 100 * mean,
                "low": 100 * low,
                "high": 100 * high,
                "validation": 100 * group["val_top1"].mean(),
            }
        )
    return pd.DataFrame(rows)


def paired(table: pd.DataFrame, better: str, baseline: str) -> dict[str, Any]:
    """Return the paired difference better - baseline in top-1 points, with its 95 % interval.

    Pairs are the seeds that both have. Raises KeyError if a method has no record.
    """
    require_one_record_each(table)
    wide = table.pivot(index="seed", columns="method", values="top1")
    missing = [m for m in (better, baseline) if m not in wide]
    if missing:
        raise KeyError(
            f"no record of {', '.join(missing)}; run those methods on the same seeds first"
        )
    pairs = wide[[better, baseline]].dropna()
    mean, low, high = mean_interval(100 * (pairs[better] - pairs[baseline]))
    return {
        "better": better,
        "baseline": baseline,
        "seeds": len(pairs),
        "difference": mean,
        "low": low,
        "high": high,
    }


def best_by_validation(table: pd.DataFrame, methods: Sequence[str]) -> str:
    """Return the method of `methods` with the highest mean validation accuracy.

    The means are over the seeds that all of them have, or over each one's own if there are none.
    Test images are not used.
    """
    means = shared_means(table.loc[table["method"].isin(methods)], "val_top1")
    return max((m for m in methods if m in means), key=lambda m: means[m])


def shared_means(table: pd.DataFrame, column: str) -> pd.Series:
    """Return each method's mean of a column over the seeds that all methods of the table have.

    If they share no seed, each mean is over the method's own seeds.
    """
    wide = table.pivot(index="seed", columns="method", values=column)
    shared = wide.dropna()
    return pd.Series((wide if shared.empty else shared).mean())


def show(table: pd.DataFrame) -> Styler:
    """Return a summary as a table for a page: method, seeds, top-1 with its interval."""
    rows = [
        {
            "Method": row["title"],
            "Seeds": row["seeds"],
            "Top-1 %": f"{row['top1']:.1f}",
            "95 % interval": interval(row),
        }
        for row in summary(table).to_dict("records")
    ]
    return show_table(pd.DataFrame(rows))


def verdict(low: float, high: float, what: str) -> str:
    """Say whether an interval excludes zero; if not, that no `what` ("difference") was detected."""
    return (
        "the interval excludes zero"
        if low > 0 or high < 0
        else f"the interval includes zero: no {what} detected"
    )


def interval_text(low: float, high: float) -> str:
    """Return "detected", "the opposite detected" or "not detected" for a difference's interval."""
    return "detected" if low > 0 else "the opposite detected" if high < 0 else "not detected"


def direction(low: float, high: float) -> str:
    """Return "more", "less" or "not detected" for a difference's interval.

    A single seed, whose interval is NaN, detects nothing.
    """
    return "more" if low > 0 else "less" if high < 0 else "not detected"


def signed(value: float) -> str:
    """Return a difference in points with its sign; near zero with more decimals.

    With one decimal it would not show on which side of zero it is.
    """
    size = abs(value)
    return f"{value:+.{1 if size >= 0.05 or not size else 2 if size >= 0.005 else 3}f}"


def p_text(p: float) -> str:
    """Return a p-value with three decimals, or "< 0.001" where these would be zeros."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(row: Mapping[str, Any]) -> str:
    """Return the ends `low` and `high` of an interval in percent: "90.4 to 93.1"."""
    return f"{row['low']:.1f} to {row['high']:.1f}"


def signed_interval(row: Mapping[str, Any]) -> str:
    """Return the ends `low` and `high` of a difference's interval: "-0.02 to +5.6"."""
    return f"{signed(row['low'])} to {signed(row['high'])}"


def bracketed(text: str) -> str:
    """Return a text in brackets that a line of a table's cell does not break."""
    return f"({text})".replace(" ", "\N{NO-BREAK SPACE}")


def sentence(difference: Mapping[str, Any], better: str, baseline: str) -> str:
    """Return one sentence on a paired difference: mean, interval, whether it includes zero."""
    if difference["seeds"] < 2:
        return (
            f"{better} minus {baseline}: {difference['difference']:+.1f} points on one seed, "
            "so there is no interval over seeds."
        )
    return (
        f"{better} minus {baseline}: {difference['difference']:+.1f} points on average over "
        f"{difference['seeds']} seeds, 95 % interval {signed_interval(difference)}; "
        f"{verdict(difference['low'], difference['high'], 'difference')}."
    )


def difference_text(table: pd.DataFrame, better: str, baseline: str) -> str:
    """Return the sentence on the paired difference of two methods, with `protocol_note`."""
    names = METHODS[better].title, METHODS[baseline].title
    return f"{sentence(paired(table, better, baseline), *names)} {protocol_note(table)}".strip()
