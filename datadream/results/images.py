"""Compare methods image by image: who errs where, and intervals that cover the test images too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..data.predictions import Predictions, read_predictions
from ..statistics import crossed_interval
from ..store.open import open_store
from .committed import read_committed
from .records import select

if TYPE_CHECKING:
    from ..store.artifacts import Store


def load_predictions(row: Any, store: Store | None = None, part: str = "test") -> Predictions:
    """Return the predictions behind a row of `records.load_records`, for the 'test' or 'val' part.

    If the store lacks them, test predictions are looked up among the committed ones. Raises
    LookupError if neither has them.
    """
    store = store or open_store()
    folder = store.folder(row["artifacts"]["judge"])
    if not folder.exists():
        store.done(folder.name)  # fetches it if another machine made it
    if folder.exists():
        return read_predictions(folder)[part]
    kept = read_committed(row["dataset"], int(row["shots"])) if part == "test" else {}
    if folder.name not in kept:
        raise LookupError(
            f"neither the store nor book/study has the predictions of {folder.name}; run its cell "
            "first"
        )
    return kept[folder.name]


def right(table: pd.DataFrame, method: str, store: Store | None = None) -> pd.DataFrame:
    """Return whether each test image is classified correctly: a row per seed, a column per image.

    `table` has one setting: a dataset and a number of shots. Raises LookupError if the predictions
    are missing, and KeyError if the method has no record.
    """
    rows = select(table, method=method)
    if rows.empty:
        raise KeyError(f"no record of {method}; run it first")
    found = {
        int(row["seed"]): load_predictions(row, store).right for row in rows.to_dict("records")
    }
    return pd.DataFrame.from_dict(found, orient="index").sort_index()


def paired_by_image(
    table: pd.DataFrame, better: str, base: str, store: Store | None = None
) -> dict[str, Any]:
    """Return the paired difference of two methods in points, over seeds and test images.

    The interval of `records.paired` is for other seeds on the same test images; this one is also
    for other test images. Raises as `right` does.
    """
    apart = _apart(table, better, base, store)
    mean, low, high = crossed_interval(apart)
    return {
        "better": better, "baseline": base, "seeds": len(apart), "images": apart.shape[1],
        "difference": mean, "low": low, "high": high,
    }  # fmt: skip


def _apart(table, better, base, store):
    """Return the difference in points on each image, with a row per seed that both methods have."""
    one, other = right(table, better, store), right(table, base, store)
    seeds = one.index.intersection(other.index)
    return 100.0 * (one.loc[seeds].astype(float) - other.loc[seeds].astype(float))


def averaged_by_image(
    table: pd.DataFrame, better: str, base: str, store: Store | None = None
) -> dict[str, Any]:
    """Return the paired difference averaged over datasets and shots, as `comparison.primary` does.

    The interval covers other seeds and other test images; each dataset has its own images, shared
    by all numbers of shots. A seed counts if it has both methods in every setting of the table.
    Raises as `right` does, and ValueError if no seed is complete.
    """
    settings: dict[str, list[pd.DataFrame]] = {}
    for _, part in table.groupby(["dataset", "shots"], sort=False):
        apart = _apart(part, better, base, store)
        settings.setdefault(part["dataset"].iloc[0], []).append(apart)
    every = [one for parts in settings.values() for one in parts]
    seeds = sorted(set.intersection(*(set(one.index) for one in every)))
    if not seeds:
        raise ValueError(f"no seed has both {better} and {base} in all {len(every)} settings")
    averages = [
        np.mean([one.loc[seeds].to_numpy() for one in parts], axis=0) for parts in settings.values()
    ]
    mean, low, high = crossed_interval(*averages)
    return {
        "better": better, "baseline": base, "seeds": len(seeds), "settings": len(every),
        "images": sum(one.shape[1] for one in averages),
        "difference": mean, "low": low, "high": high,
    }  # fmt: skip


def agreement(
    table: pd.DataFrame, methods: Sequence[str], store: Store | None = None
) -> pd.DataFrame:
    """Return the share of test images on which two methods are both correct or both wrong.

    A square table of means over the seeds that both have. Raises as `right` does.
    """
    told = {method: right(table, method, store) for method in methods}
    found = pd.DataFrame(index=list(methods), columns=list(methods), dtype=float)
    for one in methods:
        for other in methods:
            seeds = told[one].index.intersection(told[other].index)
            same = told[one].loc[seeds].to_numpy() == told[other].loc[seeds].to_numpy()
            found.loc[one, other] = float(np.mean(same)) if len(seeds) else np.nan
    return found
