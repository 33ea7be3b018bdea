"""One axis of the study: the same cells at several values of a setting."""

import pandas as pd

from ..errors import ConfigError
from ..pipeline.stages import artifact_keys
from ..store.artifacts import Store
from .cells import RUNNING, cells, find, page_parameters, run_cells
from .cells import sample_rows as first_images


def points(axis, values):
    """Return label -> overrides of each point: `values` is a list for the setting `axis`, or such a
    mapping for a free title `axis`.

    Raises ConfigError on anything else.
    """
    if isinstance(values, dict) and values and all(isinstance(v, dict) for v in values.values()):
        return {str(label): dict(overrides) for label, overrides in values.items()}
    if isinstance(values, list) and values:
        return {str(value): {axis: value} for value in values}
    raise ConfigError(
        f"values={values!r} is neither a list of values of {axis!r} nor a mapping of a label to "
        f"its overrides, e.g. {{'PNDM, 50 steps': {{'generate.scheduler': 'pipeline', "
        f"'generate.steps': 50}}}}"
    )


def axis_cells(axis, values, overrides=None, **parameters):
    """Return label -> the recipes of that point; `parameters` are those of `study.cells`, and a
    point's settings override them.
    """
    return {
        label: cells(overrides={**(overrides or {}), **own}, **parameters)
        for label, own in points(axis, values).items()
    }


# Parameters of a notebook that say what its page shows of the cells.
SHOWN = ("question", "baseline", "helped")


def cells_of(entry):
    """Return label -> recipes of a named run of study.yaml: the points of an ablation, and one
    label '' for a page of one set of cells.

    A notebook whose cells are only known once it runs has none.
    """
    values = page_parameters(entry["notebook"]) | entry.get("parameters", {})
    values = {name: value for name, value in values.items() if name not in (*RUNNING, *SHOWN)}
    if entry["notebook"] == "ablation":
        return axis_cells(**values)
    return {"": cells(**values)} if entry["notebook"] in ("dataset", "analysis") else {}


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


def sample_rows(by_label, store=None):
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
