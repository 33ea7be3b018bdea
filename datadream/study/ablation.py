"""One axis of the study: the same cells at several values of a setting."""

import pandas as pd

from ..pipeline.stages import artifact_keys
from ..store.artifacts import Store
from .cells import sample_rows as first_images
from .run import find, run_cells


def run_axis(by_label, store=None, workers=1, engine="local"):
    """Run the cells of `axis_cells` and return their tidy table with a column `value`, the point's
    label, in the order of the points.

    A stage that two points share, as `real` shares everything along a setting of the generator, is
    computed once.
    """
    store = store or Store()
    run_cells(
        [recipe for recipes in by_label.values() for recipe in recipes], store, workers, engine
    )
    return pd.concat(
        [find(recipes, store).assign(value=label) for label, recipes in by_label.items()],
        ignore_index=True,
    )


def axis_sample_rows(by_label, store=None):
    """Return title -> one list of one PIL image per class: at every value the first method's
    that has a generator, once if they are equal.
    """
    rows, seen = {}, set()
    for label, recipes in by_label.items():
        made = [recipe for recipe in recipes if recipe.row.generator]
        artifact = artifact_keys(made[0])["generate"] if made else None
        if made and artifact not in seen:
            seen.add(artifact)
            title, columns = list(first_images(made[:1], store, 1).items())[-1]
            rows[f"{title}, {label}"] = columns
    return rows
