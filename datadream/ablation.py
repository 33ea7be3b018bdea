"""One axis of the study: the same cells at several values of a setting, and what the accuracy does along it."""

import math

import numpy as np
import pandas as pd

from .config import METHODS, ConfigError
from .metrics import mean_interval
from .records import best_by_validation, paired, protocol_note, sentence, summary, verdict
from .store import Store
from .study import RUNNING, artifact_keys, cells, find, page_parameters, run_cells
from .study import sample_rows as first_images


def points(axis, values):
    """Return label -> overrides of each point: `values` is a list for the setting `axis`, or such a mapping for a free title `axis`.

    Raises ConfigError on anything else.
    """
    if isinstance(values, dict) and values and all(isinstance(v, dict) for v in values.values()):
        return {str(label): dict(overrides) for label, overrides in values.items()}
    if isinstance(values, list) and values:
        return {str(value): {axis: value} for value in values}
    raise ConfigError(f"values={values!r} is neither a list of values of {axis!r} nor a mapping of a label to its overrides, "
                      f"e.g. {{'PNDM, 50 steps': {{'generate.scheduler': 'pipeline', 'generate.steps': 50}}}}")


def axis_cells(axis, values, overrides=None, **parameters):
    """Return label -> the recipes of that point; `parameters` are those of `study.cells`, and a point's settings override them."""
    return {label: cells(overrides={**(overrides or {}), **own}, **parameters) for label, own in points(axis, values).items()}


SHOWN = ("question", "baseline", "helped")  # parameters of a notebook that say what its page shows of the cells


def cells_of(entry):
    """Return label -> recipes of a named run of study.yaml: the points of an ablation, and one label '' for a page of one set of cells.

    A notebook whose cells are only known once it runs has none.
    """
    values = page_parameters(entry["notebook"]) | entry.get("parameters", {})
    values = {name: value for name, value in values.items() if name not in (*RUNNING, *SHOWN)}
    if entry["notebook"] == "ablation":
        return axis_cells(**values)
    return {"": cells(**values)} if entry["notebook"] in ("dataset", "analysis") else {}


def run_axis(by_label, store=None, workers=1, engine="local"):
    """Run the cells of `axis_cells` and return their tidy table with a column `value`, the point's label, in the order of the points.

    A stage that two points share, as `real` shares everything along a setting of the generator, is computed once.
    """
    store = store or Store()
    run_cells([recipe for recipes in by_label.values() for recipe in recipes], store, workers, engine)
    return pd.concat([find(recipes, store).assign(value=label) for label, recipes in by_label.items()], ignore_index=True)


def along(table):
    """Return records.summary of every point, one row per value and method, with the column `value`."""
    return pd.concat([summary(part).assign(value=value) for value, part in table.groupby("value", sort=False)], ignore_index=True)


def differences(table, variants, baseline):
    """Return one row per value: the difference in points of the variant that validation prefers there to `baseline`, with its interval."""
    rows = []
    for value, part in table.groupby("value", sort=False):
        best = best_by_validation(part, variants)
        rows.append({"value": value, **paired(part, best, baseline)})
    return pd.DataFrame(rows)


def difference_lines(table, variants, baseline):
    """Return a plain sentence per value on `differences`."""
    return [f"{row['value']}: {sentence(row, METHODS[row['better']].title, METHODS[baseline].title)} {protocol_note(table)}".strip()
            for row in differences(table, variants, baseline).to_dict("records")]


def against(table, method, reference):
    """Return one row per other value: the difference in points of `method` at this value to itself at `reference`, with its interval.

    A value whose records are those of the reference is left out: the setting does not reach this method.
    """
    own = table[table["method"] == method].assign(method=table["value"])  # the values are what is paired
    keys = {value: set(part["key"]) for value, part in own.groupby("value", sort=False)}
    rows = [{"value": value, "reference": reference, **paired(own, value, reference)} for value in keys if keys[value] != keys[reference]]
    return pd.DataFrame(rows, columns=["value", "reference", "seeds", "difference", "low", "high"])


def against_lines(table, method, reference):
    """Return a plain sentence per value on `against`."""
    return [f"{METHODS[method].title}, {sentence(row, repr(row['value']), repr(reference))} {protocol_note(table)}".strip()
            for row in against(table, method, reference).to_dict("records")]


def trend(table, method):
    """Return (mean, low, high) over the seeds of the points that a doubling of the value adds to top-1: a least-squares slope each.

    Raises ValueError where a value is no positive number or there are fewer than three.
    """
    own = table[table["method"] == method]
    try:
        x = own["value"].astype(float)
    except ValueError as error:
        raise ValueError(f"the values {sorted(set(own['value']))} are no numbers, so nothing doubles along them") from error
    if x.nunique() < 3 or not (x > 0).all():
        raise ValueError(f"a trend needs three or more positive values, these are {sorted(set(own['value']))}")
    return mean_interval([float(np.polyfit(np.log2(x[part.index]), 100 * part["top1"], 1)[0]) for _, part in own.groupby("seed")])


def trend_line(table, method, what):
    """Return a plain sentence on `trend`: how many points each doubling of `what` adds, and whether that is shown."""
    mean, low, high = trend(table, method)
    seeds, title = table.loc[table["method"] == method, "seed"].nunique(), METHODS[method].title
    if math.isnan(low):
        return f"{title}: each doubling of {what} adds {mean:+.1f} points on one seed, which has no interval over seeds."
    return (f"{title}: each doubling of {what} adds {mean:+.1f} points on average over {seeds} seeds, 95 % interval {low:+.1f} to {high:+.1f}; "
            f"{verdict(low, high, 'trend')}. {protocol_note(table)}").strip()


def worth(curve, table, method, baseline="real"):
    """Return (mean, low, high) over the seeds of how many real shots train `baseline` as well as `method` is trained, or None.

    `curve` has `baseline` at several shots, the column `value`; `table` has one row of `method` a seed. Per seed the shots are
    read off the curve, straight between its points over their logarithm and made to rise; the mean is taken of logarithms. None where a seed's accuracy lies outside
    of its curve, since nothing can be read off there.
    """
    found = []
    for row in table[table["method"] == method].itertuples():
        own = curve[(curve["method"] == baseline) & (curve["seed"] == row.seed)]
        own = own.assign(shots=np.log2(own["value"].astype(float))).sort_values("shots")
        heights = np.maximum.accumulate(own["top1"].to_numpy())
        if not heights[0] <= row.top1 <= heights[-1]:
            return None
        found.append(float(np.interp(row.top1, heights, own["shots"])))
    return tuple(2 ** x for x in mean_interval(found))


def sample_rows(by_label, store=None):
    """Return title -> one list of one PIL image per class: at every value the first method's that has a generator, once if they are equal."""
    rows, seen = {}, set()
    for label, recipes in by_label.items():
        made = [recipe for recipe in recipes if recipe.row.generator]
        artifact = artifact_keys(made[0])["generate"] if made else None
        if made and artifact not in seen:
            seen.add(artifact)
            title, columns = list(first_images(made[:1], store, 1).items())[-1]
            rows[f"{title}, {label}"] = columns
    return rows
