"""Run the points of an ablation's axis."""

import pandas as pd

from ..store.open import open_store
from .run import find, run_cells


def run_axis(by_label, store=None, workers=1, engine="local"):
    """Run the cells of `axis_cells` and return their tidy table with a column `value`, the point's
    label, in the order of the points.

    A stage that two points share, as `real` shares everything along a setting of the generator, is
    computed once.
    """
    store = store or open_store()
    run_cells(
        [recipe for recipes in by_label.values() for recipe in recipes], store, workers, engine
    )
    return pd.concat(
        [find(recipes, store).assign(value=label) for label, recipes in by_label.items()],
        ignore_index=True,
    )
