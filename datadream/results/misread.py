"""Which synthetic images a reader takes for another class than the one they were asked for.

The reader names the class of the real image that an image resembles most, by the cosine similarity
of features. Its real images are those of `analysis.reference`: no shot and no test image. How often
it errs is measured on the same images, each read by all the others. The embedded reader of print
gives a second opinion: it has seen no handwriting, and errs on it more often.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from PIL.Image import Image

from ..config import Recipe
from ..data import printed
from ..data.datasets import Dataset, load_for
from ..methods.registry import METHODS, method_of
from ..models.classifiers import print_reader
from ..paths import paths
from ..statistics import mean_interval, wilson
from ..store.artifacts import Store
from ..store.open import open_store
from .analysis import made_set, reference
from .distances import read_by_nearest
from .features import extractors, features
from .records import interval, select
from .tables import show_table

HELD_OUT = "held-out"  # stands for a method's name where real images are read
COLUMNS = ("dataset", "method", "seed", "index", "asked", "read", "margin", "print")


def readings(
    recipes: Iterable[Recipe], store: Store | None = None, name: str | None = None
) -> pd.DataFrame:
    """Read the cells' synthetic sets and, for each seed, the held-out real images: a row per image.

    A method with real images shares its set with the one without, whose name the rows bear; the
    real images' rows have HELD_OUT for it. `index` is the position in the set, `asked` and `read`
    are class indices, and `margin` is that of `distances.read_by_nearest`. `print` is what the
    embedded reader of print takes an image for among the classes, missing where it does not know
    them. `name` is the extractor; None takes the recipe's independent one. An image of a class
    without a real image cannot be read and is left out. Raises LookupError on a synthetic set that
    has not been made.
    """
    store, tables, done = store or open_store(), [], set()
    for recipe in (recipe for recipe in recipes if method_of(recipe).generates):
        dataset, extractor = load_for(recipe), name or extractors(recipe)[1]
        real = reference(dataset, recipe.shots, recipe.seed)
        sets = {HELD_OUT: real, recipe.method.removesuffix("+real"): None}
        known = features(real, extractor, recipe, store)
        for method, images in sets.items():
            if (recipe.dataset, method, recipe.shots, recipe.seed) in done:
                continue
            done.add((recipe.dataset, method, recipe.shots, recipe.seed))
            if images is None:
                images = made_set(recipe, dataset, store)[0]
            found = features(images, extractor, recipe, store)
            read, margin = read_by_nearest(
                found, images.labels, known, real.labels, same=images is real
            )
            own = pd.DataFrame({"asked": images.labels, "read": read, "margin": margin})
            own["print"] = _as_print(found, dataset, extractor)
            own.insert(0, "index", np.arange(len(own)))
            tables.append(own.assign(dataset=recipe.dataset, method=method, seed=recipe.seed))
    table = pd.concat(tables or [pd.DataFrame(columns=list(COLUMNS))], ignore_index=True)
    known = table.loc[table["margin"].notna(), list(COLUMNS)]
    return known.reset_index(drop=True).astype({"print": "Int64"})


def _as_print(found: np.ndarray, dataset: Dataset, extractor: str) -> Any:
    """Return the classes that the reader of print gives images by its features; NA if it cannot."""
    if extractor != "reader" or not set(dataset.classes) <= set(printed.NAMES):
        return pd.NA
    last = print_reader.load_reader(paths()["mini"])[-1].state_dict()
    logits = found @ last["weight"].numpy().T + last["bias"].numpy()
    return logits[:, [printed.NAMES.index(name) for name in dataset.classes]].argmax(1)


def misread(table: pd.DataFrame) -> np.ndarray:
    """Return which rows of `readings` are misread: by the reader of print as well, if it can judge.

    The untuned generator draws print, which the other reader knows less well.
    """
    asked = table["asked"].to_numpy()
    by_print = table["print"].fillna(-1).to_numpy()
    return (asked != table["read"].to_numpy()) & (asked != by_print)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many images are read as asked, in percent: a row per method of one dataset.

    `table` is of `readings`. The columns are method, title, seeds, images (of a seed), share, low,
    high, print, the share that the reader of print reads so, and misread. The interval is Student's
    over seeds, cut at 0 and 100. For the real images, which the seeds share, and for a single seed
    it is Wilson's over the images of the first.
    """
    rows = []
    for method in (m for m in (HELD_OUT, *METHODS) if m in set(table["method"])):
        own = select(table, method=method)
        right = own["asked"].to_numpy() == own["read"].to_numpy()
        by_seed = [right[own["seed"] == seed] for seed in sorted(set(own["seed"]))]
        mean, low, high = mean_interval([one.mean() for one in by_seed])
        if method == HELD_OUT or len(by_seed) == 1:
            low, high = wilson(int(by_seed[0].sum()), len(by_seed[0]))
        judged = own.loc[own["print"].notna()]
        rows.append(
            {
                "method": method,
                "title": _title(method),
                "seeds": len(by_seed),
                "images": len(by_seed[0]),
                "share": 100 * mean,
                "low": max(0.0, 100 * low),
                "high": min(100.0, 100 * high),
                "print": 100 * float((judged["asked"] == judged["print"]).mean())
                if len(judged)
                else np.nan,
                "misread": 100 * float(misread(own).mean()),
            }
        )
    return pd.DataFrame(rows)


def shares_table(found: pd.DataFrame) -> Styler:
    """Return what `shares` gives as a table for a page."""
    rows = [
        {
            "Set": row["title"],
            "Seeds": row["seeds"],
            "Images": row["images"],
            "Read as asked %": f"{row['share']:.1f}",
            "95 % interval": interval(row),
            "Reader of print %": "-" if np.isnan(row["print"]) else f"{row['print']:.1f}",
            "Misread by all %": f"{row['misread']:.1f}",
        }
        for row in found.to_dict("records")
    ]
    return show_table(pd.DataFrame(rows))


def _title(method):
    return "Real images, held out" if method == HELD_OUT else METHODS[method].title


def most_misread(table: pd.DataFrame, count: int = 1) -> pd.DataFrame:
    """Return the rows of the `count` images of each method and class with the largest margins.

    Of the images that are `misread`, of all seeds together, without the real ones; sorted by method
    and class.
    """
    wrong = table.loc[misread(table) & (table["method"] != HELD_OUT)]
    found = wrong.sort_values("margin", ascending=False, kind="stable")
    found = found.groupby(["method", "asked"], sort=False).head(count)
    return found.sort_values(["method", "asked"], kind="stable", ignore_index=True)


def pictures(
    rows: pd.DataFrame, recipes: Sequence[Recipe], store: Store | None = None
) -> Mapping[str, list[tuple[Image, str]]]:
    """Return the images of some rows of `readings` as plots.plot_pictures takes them.

    A panel per method of the recipes, in their order, and below each image what was asked and what
    is read.
    """
    store, shown = store or open_store(), {}
    for recipe in (recipe for recipe in recipes if method_of(recipe).generates):
        method, dataset = recipe.method.removesuffix("+real"), load_for(recipe)
        panel = shown.setdefault(method, {})
        own = select(rows, method=method, seed=recipe.seed)
        images = made_set(recipe, dataset, store)[0]
        for row in own.to_dict("records"):
            asked, read = dataset.classes[row["asked"]], dataset.classes[row["read"]]
            place = (row["asked"], -row["margin"], row["seed"], row["index"])
            panel[place] = images.open(row["index"]), f"asked: {asked}\nread: {read}"
    return {
        _title(method): [panel[place] for place in sorted(panel)] for method, panel in shown.items()
    }


def reader_sentence(table: pd.DataFrame) -> str:
    """Return how reliable the readers are on real images; `table` is of `readings`."""
    own = shares(select(table, method=HELD_OUT)).iloc[0]
    said = (
        f"The reader is right on {own['share']:.1f} % of {own['images']:,} held-out real images, "
        f"95 % interval {interval(own)}"
    )
    if np.isnan(own["print"]):
        return f"{said}."
    return (
        f"{said}. The reader of print alone would be right on {own['print']:.1f} % of them; "
        f"{own['misread']:.1f} % are misread by both."
    )
