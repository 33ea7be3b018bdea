"""Run all points of an ablation, whose methods are compared with a baseline."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..config import Recipe
from ..errors import ConfigError
from ..store.artifacts import Store
from ..store.open import open_store
from .run import find, run_cells


def require_baseline(baseline: str, methods: Sequence[str]) -> None:
    """Raise ConfigError, before anything runs, if the baseline is not among the methods."""
    if baseline not in methods:
        raise ConfigError(
            f"baseline={baseline!r} is not among the methods of this page; add it to `methods`, or "
            f"name one of them as `baseline`: {', '.join(methods)}"
        )


def run_axis(
    by_label: Mapping[str, Sequence[Recipe]],
    store: Store | None = None,
    workers: int = 1,
    engine: str = "local",
) -> pd.DataFrame:
    """Run the cells of `axis_cells` and return their records with a column `value`.

    `value` is the label of the point; rows are in the order of the points. A stage shared by two
    points is computed once: `real`, for example, shares everything when a setting of the generator
    varies.
    """
    store = store or open_store()
    run_cells(
        [recipe for recipes in by_label.values() for recipe in recipes], store, workers, engine
    )
    return pd.concat(
        [find(recipes, store).assign(value=label) for label, recipes in by_label.items()],
        ignore_index=True,
    )
