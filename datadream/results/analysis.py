"""Measure synthetic sets against held-out real images, and relate the measures to accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from .. import progress
from ..config import Recipe
from ..data.datasets import SHOTS_TITLE, Dataset, draw_images, draw_shots, few_shots, load_for
from ..data.images import Images, fingerprint
from ..data.synthetic_set import read_synthetic_set
from ..methods.registry import METHODS, method_of
from ..pipeline.stages import Cell
from ..statistics import mean_interval, spearman
from ..store.artifacts import Store
from ..store.open import open_store
from .distances import MEASURES, TITLES, copying
from .features import EXTRACTORS, extractors, features
from .records import interval_text, require_one_record_each

# Most real images per class and part: as many as the paper's synthetic ones. The cost of the
# measures is quadratic in it.
REFERENCE = 500


@lru_cache(maxsize=8)
def reference(dataset: Dataset, shots: int, seed: int) -> Images:
    """Return the real images to compare with: validation part and pool, without the drawn shots.

    The generator has seen none of them, so copying the few shots is not rewarded; and none is a
    test image, so a measure may be used to choose a setting. A part that is also the test part, as
    in the released protocol, is left out, and one that is both pool and validation counts once.
    Takes at most REFERENCE images per class from each, drawn once for all seeds. Raises ValueError
    if none is left.
    """
    classes, taken, parts = (
        tuple(range(len(dataset.classes))),
        set(draw_shots(dataset, shots, seed, None)[0]),
        [],
    )
    for part in dict.fromkeys((dataset.train, dataset.val)):
        if part is not dataset.test:
            rows, _ = draw_images(part, classes, REFERENCE, ("reference",))
            parts.append(
                part.pick([row for row in rows if part is not dataset.train or row not in taken])
            )
    found = Images(
        tuple(source for part in parts for source in part.sources),
        tuple(label for part in parts for label in part.labels),
    )
    if not len(found):
        raise ValueError(
            f"{dataset.name!r} has no real image beside the {shots or 'all'} shots per class and "
            "the test part; lower shots, or give a validation part"
        )
    return found


def _images(recipe, dataset, store):
    """Return (a cell's image set, name of its content).

    That is the synthetic set, or the few shots for the method 'real'.
    """
    if not method_of(recipe).generates:
        shots = few_shots(dataset, recipe.shots, recipe.seed)
        return shots, fingerprint(shots)
    return made_set(recipe, dataset, store)


def made_set(recipe: Recipe, dataset: Dataset, store: Store) -> tuple[Images, str]:
    """Return a cell's synthetic set and its key. Raises LookupError if it has not been made."""
    artifact = Cell(recipe, dataset).keys["generate"]
    if not store.done(artifact):
        raise LookupError(
            f"the synthetic set of {recipe.dataset}, {recipe.method}, seed {recipe.seed} is not "
            f"in {store.address}; run that cell first, with `python -m datadream study` or by its "
            "notebook"
        )
    return replace(read_synthetic_set(store.folder(artifact)), stamp=artifact), artifact


def _measure(unit, real, synthetic, shots=None):
    """Return every measure of one extractor's features by name.

    NaN if a set is too small for the measure, or if it needs unit features.
    """
    row: dict[str, float] = {"n": len(synthetic), "reference": len(real)}
    for name, measure in MEASURES.items():
        fits = min(len(real), len(synthetic)) >= measure.least and (unit or not measure.unit)
        row[name] = measure.function(real, synthetic) if fits else np.nan
    return row | (
        copying(real, synthetic, shots)
        if shots is not None and len(real) and len(synthetic)
        else {}
    )


def _rows(sets, found, classes, unit):
    """Return one row per class and one for "all", whose centroid is the mean over the classes."""
    rows = []
    for label, name in enumerate(classes):
        own = {
            part: values[np.asarray(sets[part].labels) == label] for part, values in found.items()
        }
        rows.append({"class": name, "label": label, **_measure(unit, **own)})
    whole = {
        "class": "all",
        **_measure(unit, **found),
        "centroid": pd.Series([row["centroid"] for row in rows]).mean(),
    }
    return [whole, *rows]


def measure_sets(
    recipes: Iterable[Recipe], store: Store | None = None, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Measure the cells' image sets: a row per dataset, method, seed, extractor and class or "all".

    A method with real images shares its synthetic set with the one without, whose name the rows
    carry. The rows of 'real' describe the few shots themselves, and so show what fresh real images
    score in KID, CMMD, precision and density; Frechet distance and coverage depend on the number of
    images. 'clip' has no images.

    `label` is the class index, missing for "all"; `n` and `reference` count the images, `artifact`
    names the set, and distances.TITLES explains the other columns, which are NaN if a set is too
    small for a measure. The real images are those of `reference`, never test images. `names` are
    rows of EXTRACTORS; None takes the recipe's two. Raises LookupError on a synthetic set that has
    not been made.
    """
    store, rows, done = store or open_store(), [], set()
    for recipe in progress.each(
        [r for r in recipes if method_of(r).generates or method_of(r).real], "describe", "set"
    ):
        dataset = load_for(recipe)
        images, artifact = _images(recipe, dataset, store)
        cell = {
            "dataset": recipe.dataset,
            "method": recipe.method.removesuffix("+real"),
            "shots": recipe.shots,
            "images": recipe.generate.images,
            "seed": recipe.seed,
            "artifact": artifact,
        }
        if tuple(cell.values()) in done:
            continue
        done.add(tuple(cell.values()))
        sets = {"real": reference(dataset, recipe.shots, recipe.seed), "synthetic": images}
        if method_of(recipe).generates:
            sets["shots"] = few_shots(dataset, recipe.shots, recipe.seed)
        for name in names or extractors(recipe):
            found = {part: features(some, name, recipe, store) for part, some in sets.items()}
            rows += [
                {**cell, "extractor": name, **row}
                for row in _rows(sets, found, dataset.classes, EXTRACTORS[name].unit)
            ]
    columns = [
        "dataset",
        "method",
        "shots",
        "images",
        "seed",
        "extractor",
        "class",
        "label",
        "n",
        "reference",
        *TITLES,
        "artifact",
    ]
    return pd.DataFrame(rows, columns=columns).astype({"label": "Int64"})


def over_seeds(table: pd.DataFrame, measures: Sequence[str] = tuple(MEASURES)) -> pd.DataFrame:
    """Return mean and 95 % interval over seeds (Student's t) per method and measure.

    The columns are measure, method, title, seeds, mean, low and high, as plots.plot_measures
    expects. Raises ValueError on several rows of one method and seed, such as those of two
    extractors, or of classes beside "all".
    """
    if table.duplicated(["method", "seed"]).any():
        raise ValueError(
            "several rows of one method and seed; narrow the table with `select`, e.g. by "
            "extractor, class and dataset"
        )
    rows = []
    for measure in measures:
        for method in (m for m in METHODS if m in set(table["method"])):
            values = table.loc[table["method"] == method, measure].dropna()
            if len(values):
                mean, low, high = mean_interval(values)
                title = METHODS[method].title if METHODS[method].generates else SHOTS_TITLE
                rows.append(
                    {
                        "measure": measure,
                        "method": method,
                        "title": title,
                        "seeds": len(values),
                        "mean": mean,
                        "low": low,
                        "high": high,
                    }
                )
    return pd.DataFrame(
        rows, columns=["measure", "method", "title", "seeds", "mean", "low", "high"]
    )


def gains(table: pd.DataFrame, records: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """Return each class's accuracy gain of `method` over `baseline`, with its set's measures.

    One row per class, the gain in points. `table` is from `measure_sets`, narrowed to one extractor
    and dataset, and `records` from `study.find` or `load_records`. All values are means over the
    seeds that the table and both methods have; seeds share their classes, so they add no further
    pairs to a correlation. `low` and `high` are the gain's 95 % interval over seeds. Raises
    ValueError if something is missing or ambiguous.
    """
    own = table.loc[(table["method"] == method.removesuffix("+real")) & table["label"].notna()]
    require_one_record_each(records)
    accuracy = records.pivot(index="seed", columns="method", values="per_class")
    missing = [m for m in (method, baseline) if m not in accuracy] + (
        [] if len(own) else [f"the images of {method}"]
    )
    if missing:
        raise ValueError(
            f"no record or row of {', '.join(missing)}; run and describe those methods on the "
            "same seeds first"
        )
    if own.duplicated(["label", "seed"]).any() or len({*own["dataset"], *records["dataset"]}) > 1:
        raise ValueError(
            "several rows of one class and seed, or several datasets; narrow both tables with "
            "`select`, e.g. by extractor and dataset"
        )
    accuracy = accuracy.loc[:, [method, baseline]].dropna()
    accuracy = accuracy.loc[accuracy.index.isin(own["seed"])]
    if accuracy.empty:
        raise ValueError(
            f"{method}, {baseline} and the described images have no seed in common; run them on "
            "the same seeds"
        )
    means = own.loc[own["seed"].isin(accuracy.index)].groupby("label")[[*TITLES]].mean()
    names = own.drop_duplicates("label").set_index("label")["class"]
    differences = 100 * (np.stack(accuracy[method]) - np.stack(accuracy[baseline]))
    rows = [
        {
            "method": method,
            "baseline": baseline,
            "class": names[label],
            "label": label,
            "seeds": len(accuracy),
            **dict(zip(("gain", "low", "high"), mean_interval(differences[:, label]), strict=True)),
            **means.loc[label],
        }
        for label in means.index
    ]
    return pd.DataFrame(rows)


def copied(table: pd.DataFrame, method: str, extractor: str) -> dict[str, float]:
    """Return the share of a method's images that are closer to a shot than most real ones are.

    `table` is from `measure_sets`. The keys are seeds, share, low and high, in percent, with the
    95 % interval over seeds, cut at 0 and 100; its ends are NaN for a single seed. Real images
    would score 5 (`distances.copying`).
    """
    own = table[
        (table["class"] == "all") & (table["method"] == method) & (table["extractor"] == extractor)
    ]
    mean, low, high = mean_interval(100 * own["closer"])
    ends = np.clip([low, high], 0, 100).tolist()
    return {"seeds": len(own), "share": mean, "low": ends[0], "high": ends[1]}


def correlation(joined: pd.DataFrame, measure: str = "centroid") -> dict[str, float]:
    """Return the rank correlation of `measure` with the gain over classes.

    `joined` is the table of `gains`. The keys are classes, rho, low and high, Spearman's
    correlation with its 95 % interval; all but the first are NaN with too few classes or too many
    ties.
    """
    pairs = joined.dropna(subset=[measure, "gain"])
    rho, low, high = spearman(pairs[measure], pairs["gain"]) if len(pairs) > 1 else (np.nan,) * 3
    return {"classes": len(pairs), "rho": rho, "low": low, "high": high}


def correlation_cells(joined: pd.DataFrame, measure: str = "centroid") -> dict[str, str]:
    """Return `correlation` as the cells of a table's row: "-" for what cannot be computed."""
    _, rho, low, high = correlation(joined, measure).values()
    cells = {"Rank correlation": "-", "95 % interval": "-", "Correlation": "-"}
    if np.isfinite(rho):
        cells["Rank correlation"] = f"{rho:+.2f}"
    if np.isfinite(low):
        cells["95 % interval"] = f"{low:+.2f} to {high:+.2f}"
        cells["Correlation"] = interval_text(low, high)
    return cells


def correlation_table(
    joined: Mapping[tuple[str, str], pd.DataFrame], measure: str = "centroid"
) -> pd.DataFrame:
    """Tabulate `correlation`, a row per (method, extractor), from their tables of `gains`."""
    return pd.DataFrame(
        {
            "Method": METHODS[method].title,
            "Features": extractor,
            "Classes": correlation(own, measure)["classes"],
            **correlation_cells(own, measure),
        }
        for (method, extractor), own in joined.items()
    )


def correlation_caption(baseline: str, measure: str = "centroid") -> str:
    """Return the caption of a `correlation_table` of gains over `baseline`."""
    title = TITLES[measure].partition(" (")[0].lower()
    return (
        f"Spearman's rank correlation over classes of the {title} with the gain over "
        f"{METHODS[baseline].title}. A dash: too few classes or too many ties"
    )
