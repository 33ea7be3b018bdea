"""What the book's pages of the datasets show: the images and their parts, and how methods do.

Figures and computed tables are for the cells of these pages. The texts are Markdown, which
`book/_ext/data_pages.py` puts where a page has the directive `{dataset-pages} NAME` or
`{dataset-table}`.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.datasets import DATASETS, TITLES, Dataset, load_dataset
from ..data.images import Images
from ..data.paper_datasets import HELD_OUT, SOURCES
from ..methods.registry import METHODS
from ..results.records import bracketed, by_shots, in_shots, interval, select, summary
from ..results.tables import escape_markdown, listed
from .freeze import MISSING, load_all_frozen, load_compared
from .method_page import markdown_table

PAGES = "book/datasets"  # a page for each of datasets.TITLES
PROFILE = "mini"  # of which the pages have the numbers
CURVE = ("real", "dset", "base+real", "dset+real")
PARTS = {
    "train": ("Few-shot pool", "a seed draws the few shots of each class from it"),
    "val": ("Validation", "to choose settings and variants; never to train"),
    "test": ("Test", "every accuracy in this book; nothing is selected on them"),
}


def parts_table(dataset: Dataset) -> pd.DataFrame:
    """Return a row for each part of a dataset: its images, those of a class, what it is for."""
    rows = []
    for name, (title, use) in PARTS.items():
        counts = Counter(getattr(dataset, name).labels).values()
        each = f"{min(counts)}" if len({*counts}) == 1 else f"{min(counts)} to {max(counts)}"
        rows.append({"Part": title, "Images": sum(counts), "Of each class": each, "What for": use})
    return pd.DataFrame(rows)


def images_sentence(dataset: Dataset) -> str:
    """Say how many images a dataset in memory has, of what size, and whether one occurs twice."""
    arrays = [np.asarray(one) for part in _parts(dataset) for one in part.sources]
    height, width = arrays[0].shape[:2]
    again = len(arrays) - len({one.tobytes() for one in arrays})
    levels = len(np.unique(np.stack(arrays)))
    repeats = f"{again:,} of them repeat another one." if again else "No two are identical."
    return (
        f"{len(arrays):,} images of {height} by {width} pixels with {levels} levels of grey, in "
        f"{len(dataset.classes)} classes: {listed(dataset.classes)}. {repeats}"
    )


def _parts(dataset: Dataset) -> list[Images]:
    return [getattr(dataset, name) for name in PARTS]


def compared_on(dataset: str) -> pd.DataFrame:
    """Return the committed records that methods are compared by on a dataset, in PROFILE."""
    return select(load_compared(), dataset=dataset, profile=PROFILE, protocol="strict")


def along_shots(table: pd.DataFrame, methods: Sequence[str] = CURVE) -> pd.DataFrame:
    """Return `records.summary` of some methods for each number of shots, for plots.plot_along.

    A number of shots at which fewer than two of the methods have a record is left out. Without two
    such numbers there is no curve, and the table is empty.
    """
    parts = {
        shots: part.loc[part["method"].isin(methods)]
        for shots, part in by_shots(table)
        if len({*part["method"]} & {*methods}) > 1
    }
    if len(parts) < 2:
        return pd.DataFrame()
    return pd.concat([summary(part).assign(value=str(k)) for k, part in parts.items()])


def accuracy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: mean top-1 with its interval at each number of shots, and seeds.

    Numbers of seeds that differ stand in the order of the shots. Methods with the most numbers of
    shots come first, the best mean over these on top.
    """
    found = {
        shots: {row["method"]: row for row in summary(part).to_dict("records")}
        for shots, part in by_shots(table)
    }
    means = pd.DataFrame(
        {shots: {name: row["top1"] for name, row in own.items()} for shots, own in found.items()}
    )
    order = pd.DataFrame({"count": means.count(axis=1), "mean": means.mean(axis=1)})
    rows = []
    for method in order.sort_values(["count", "mean"], ascending=False).index:
        own = [rows_of.get(str(method)) for rows_of in found.values()]
        cells = ["-" if one is None else _cell(one) for one in own]
        seeds = ["-" if one is None else str(one["seeds"]) for one in own]
        known = METHODS.get(str(method))
        rows.append(
            {
                "Method": known.title if known else str(method),
                **dict(zip(map(in_shots, found), cells, strict=True)),
                "Seeds": seeds[0] if len({*seeds}) == 1 else ", ".join(seeds),
            }
        )
    return pd.DataFrame(rows)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['top1']:.1f} {bracketed(interval(row))}"


def pages_text(dataset: str, pages: Collection[str] = ()) -> str:
    """Tabulate the executed pages that show records of a dataset.

    `pages` are those of the book, by their paths without suffix: only these are listed.
    """
    table = select(load_all_frozen(), dataset=dataset)
    rows = []
    parts = {str(run): part for run, part in table.groupby("run")}
    for run in sorted(parts, key=lambda run: (run.startswith("ablation_"), run)):
        if f"book/study/{run}" in pages:
            part = parts[run]
            rows.append(
                {
                    "Page": f"{{doc}}`/book/study/{run}`",
                    "Shots": ", ".join(map(str, sorted(part["shots"].unique()))),
                    "Methods": str(part["method"].nunique()),
                    "Seeds": str(part["seed"].nunique()),
                    "Records": str(len(part)),
                }
            )
    return markdown_table(pd.DataFrame(rows)) if rows else MISSING


def overview_text(pages: Collection[str] = ()) -> str:
    """Tabulate the embedded datasets and the paper's ten: classes, sizes, where they come from.

    Of the embedded ones those whose page is among `pages` are linked.
    """
    rows = []
    for name in TITLES:
        sizes, page = tuple(map(len, _parts(load_dataset(name)))), f"{PAGES}/{name}"
        shown = f"{{doc}}`{name} </{page}>`" if page in pages else name
        rows.append(_row(name, shown, sizes, escape_markdown(DATASETS[name].source)))
    for name, source in SOURCES.items():
        train, val, test = source.sizes
        held = 0 if val else HELD_OUT * len(DATASETS[name].classes)
        way = f"`datadream download {name}`" if source.torchvision else "by hand"
        rows.append(_row(name, f"[{name}]({source.home})", (train - held, val + held, test), way))
    return markdown_table(pd.DataFrame(rows))


def _row(name, shown, sizes, source):
    titles = (title for title, _ in PARTS.values())
    return {
        "Dataset": shown,
        "Classes": f"{len(DATASETS[name].classes):,}",
        **dict(zip(titles, (f"{size:,}" for size in sizes), strict=True)),
        "Where from": source,
    }
