"""Tests of contexts: do images follow the attributes prompted, and does a class still imply some?

Both questions are those of BOB (Yang et al., CVPR 2026), applied to drawn characters, whose
contexts can be measured (see `data.attributes`). No test image is used.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import progress
from ..config import Recipe
from ..data.attributes import ATTRIBUTES, measure
from ..data.datasets import SHOTS_TITLE, few_shots, load_for
from ..data.images import Images
from ..methods.base import Support
from ..methods.checked import draws
from ..methods.registry import METHODS, method_of
from ..statistics import mean_interval
from ..store.artifacts import Store
from ..store.open import open_store
from .analysis import made_set, reference

NAMES = [one.name for one in ATTRIBUTES]
REAL_TITLE = "Held-out real images"
BINS = 5  # bins of equal counts, for the mutual information
SHUFFLES = 50  # shuffled copies from which its bias is estimated


def attributes_of(images: Images) -> pd.DataFrame:
    """Return the attributes of drawn characters: a row per image, with its label and measures."""
    rows = [measure(images.open(i)) for i in range(len(images))]
    return pd.DataFrame(rows, columns=NAMES).assign(label=list(images.labels))


def mutual_information(labels: ArrayLike, values: ArrayLike, seed: int = 0) -> float:
    """Return the mutual information of class and attribute in bits, about 0 if independent.

    The attribute is cut into `BINS` bins of equal counts. A finite sample shows some information by
    chance, so the mean over `SHUFFLES` shuffled copies is subtracted; values below 0 occur. Raises
    ValueError on fewer than two images, and unless there is one value per label.
    """
    classes, measured = np.asarray(labels), np.asarray(values, dtype=float)
    if classes.shape != measured.shape or classes.ndim != 1 or len(classes) < 2:
        raise ValueError(
            f"labels of shape {classes.shape} and values of shape {measured.shape}; give two or "
            "more of each, in pairs"
        )
    _, rows = np.unique(classes, return_inverse=True)
    edges = np.quantile(measured, np.arange(1, BINS) / BINS)
    columns = np.searchsorted(edges, measured, side="right")
    rng = np.random.default_rng(seed)
    chance = [_information(rng.permutation(rows), columns) for _ in range(SHUFFLES)]
    return _information(rows, columns) - float(np.mean(chance))


def _information(rows, columns):
    joint = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(joint, (rows, columns), 1 / len(rows))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / apart[some])).sum())


def _own(table: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Subtract from attributes the means of their class in `means`."""
    return table[NAMES] - means.loc[table["label"], NAMES].to_numpy()


def _class_means(table):
    """Return the mean attributes of each class, a row per label."""
    return pd.DataFrame(table.groupby("label").mean())


def _made(recipe, dataset, store):
    return attributes_of(made_set(recipe, dataset, store)[0])


def obedience(recipes: Iterable[Recipe], store: Store | None = None) -> pd.DataFrame:
    """Return how well the images show the attributes that their prompts ask for.

    One row per dataset, method (its title), shots, seed and attribute. `correlation` is Pearson's
    over the images, between the word in the prompt (-1 for low, 1 for high, 0 for none) and the
    attribute minus its class mean. Attributes that no prompt asks for are left out, and so are
    methods whose prompts ask for none. Raises LookupError on a synthetic set that has not been
    made.
    """
    store, rows = store or open_store(), []
    for recipe in (one for one in recipes if method_of(one).generates):
        dataset = load_for(recipe)
        asked = asked_of(Support(recipe, dataset))
        if not asked.any(axis=None):
            continue
        made = _made(recipe, dataset, store)
        has = _own(made, _class_means(made))
        title = METHODS[recipe.method].title
        for name in (name for name in NAMES if bool(asked[name].any())):
            found = np.corrcoef(asked[name], has[name])[0, 1]
            rows.append(
                {"dataset": recipe.dataset, "method": title, "shots": recipe.shots}
                | {"seed": recipe.seed, "attribute": name, "images": len(made)}
                | {"correlation": float(found)}
            )
    columns = ["dataset", "method", "shots", "seed", "attribute", "images", "correlation"]
    return pd.DataFrame(rows, columns=columns)


def asked_of(support: Support) -> pd.DataFrame:
    """Return -1, 0 or 1 for each image and attribute, as its prompt asks for low, none or high."""
    rows = []
    for label in range(len(support.classes)):
        plain = support.prompt(label)
        for one in draws(support, label):
            # Otherwise the words of a template would count.
            words = one.prompt[len(plain) :].split() if one.prompt.startswith(f"{plain},") else ()
            rows.append([(a.high in words) - (a.low in words) for a in ATTRIBUTES])
    return pd.DataFrame(rows, columns=NAMES)


def links(recipes: Iterable[Recipe], store: Store | None = None) -> pd.DataFrame:
    """Return how much the class reveals about each attribute, in held-out images, shots and sets.

    One row per dataset, shots, seed, image set and attribute. `information` is the mutual
    information of class and attribute in bits; `accidental` is the same after subtracting the class
    mean of the held-out real images, so that what belongs to the class (a one is narrow) does not
    count. Raises LookupError on a synthetic set that has not been made.
    """
    store, rows, done = store or open_store(), [], set()
    for recipe in progress.each(list(recipes), "contexts", "set"):
        dataset = load_for(recipe)
        real = attributes_of(reference(dataset, recipe.shots, recipe.seed))
        shots = attributes_of(few_shots(dataset, recipe.shots, recipe.seed))
        sets = {REAL_TITLE: real, SHOTS_TITLE: shots}
        if method_of(recipe).generates:
            sets[METHODS[recipe.method].title] = _made(recipe, dataset, store)
        means = _class_means(real)
        for title, table in sets.items():
            where = (recipe.dataset, recipe.shots, recipe.seed, title)
            if where in done:
                continue
            done.add(where)
            own = _own(table, means)
            rows += [
                dict(zip(("dataset", "shots", "seed", "images of"), where, strict=True))
                | {"attribute": name, "n": len(table)}
                | {"information": mutual_information(table["label"], table[name])}
                | {"accidental": mutual_information(table["label"], own[name])}
                for name in NAMES
            ]
    columns = ["dataset", "shots", "seed", "images of", "attribute", "n"]
    return pd.DataFrame(rows, columns=[*columns, "information", "accidental"])


def intervals(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return mean and 95 % interval over seeds (Student's t) of a column, a row per group."""
    rows = []
    for _, part in table.groupby(list(by), sort=False):
        mean, low, high = mean_interval(part[value])
        own = {name: part[name].iloc[0] for name in by}
        rows.append({**own, "seeds": len(part), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)
