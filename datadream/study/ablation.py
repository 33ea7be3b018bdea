"""Run the points of an ablation's axis."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..config import Recipe
from ..store.artifacts import Store
from ..store.open import open_store
from .run import find, run_cells


def run_axis(
    by_label: Mapping[str, Sequence[Recipe]],
    store: Store | None = None,
    workers: int = 1,
    engine: str = "local",
) -> pd.DataFrame:
    """Run the cells of `axis_cells` and return their records with a column `value`.

    That is the label of the point; the rows are in the order of the points. A stage that two points
    share, as `real` shares everything along a setting of the generator, is computed once.
    """
    store = store or open_store()
    run_cells(
        [recipe for recipes in by_label.values() for recipe in recipes], store, workers, engine
    )
    return pd.concat(
        [find(recipes, store).assign(value=label) for label, recipes in by_label.items()],
        ignore_index=True,
    )
