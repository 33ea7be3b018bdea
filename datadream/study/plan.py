"""Plan a set of cells before anything runs.

A plan lists stages, images, optimiser steps, hours and disk space, and says what is missing.
"""

import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import progress
from ..config import Recipe, base_profile
from ..data.datasets import DATASETS, Dataset, load_for, released
from ..data.images import PIXEL, Images
from ..data.paper_datasets import HELD_OUT, SOURCES, elsewhere, lacking, readable
from ..engines.rates import PROXY, THROUGHPUT, same_models, seconds
from ..errors import DataError
from ..methods.registry import method_of
from ..models.catalog import GENERATORS, absent
from ..pipeline.stages import STAGES, Cell
from ..store.artifacts import Store
from ..store.cores import usable_cores
from ..store.open import open_store
from .cells import cells, groups
from .named_runs import JOBS, cells_of, choose, load_study

NO_CELLS = (
    "nothing to plan: what a run needs is only known beforehand for runs of "
    "notebooks/dataset.ipynb, comparison.ipynb, ablation.ipynb, analysis.ipynb and contexts.ipynb, "
    "and none of these is one"
)


class _Numbers(Sequence):
    """Stand in for the images of an absent set.

    Image i is the bytes of the number i, so that draws can be hashed.
    """

    def __init__(self, count: int):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return np.frombuffer(range(self._count)[i].to_bytes(8, "big"), np.uint8)


@lru_cache(maxsize=2 * len(SOURCES))
def _described(name, noun, names):
    row = DATASETS[name]
    classes = readable(name, row.classes) if names == "readable" else row.classes
    train, val, test = SOURCES[name].sizes
    held = 0 if val else HELD_OUT * len(classes)
    parts = {"train": train - held, "val": val or held, "test": test}
    return Dataset(
        name,
        noun or row.noun,
        classes,
        *(
            Images(_Numbers(n), tuple(i * len(classes) // n for i in range(n)), f"{part} of {name}")
            for part, n in parts.items()
        ),
    )


def load_or_describe(recipe: Recipe) -> Dataset:
    """Return a recipe's Dataset; without the paper's images, only its classes and sizes.

    Draws and amounts of work are then as with the images, except that all classes count as equally
    large; the keys differ. Raises DataError if a dataset outside the paper cannot be loaded.
    """
    try:
        return load_for(recipe)
    except DataError:
        if recipe.dataset not in SOURCES:
            raise
    dataset = _described(recipe.dataset, recipe.noun, recipe.names)
    return released(dataset) if recipe.protocol == "released" else dataset


def described_cell(recipe: Recipe) -> Cell:
    """Return a recipe's cell; its dataset is only described if the images are absent."""
    return Cell(recipe, load_or_describe(recipe))


def _sizes(recipe):
    """Return (image side in pixels, bytes of an adapter), NaN for a generator not in the table."""
    row = GENERATORS.get(recipe.generator)
    return recipe.resolution or (
        row.side if row else math.nan
    ), 1e6 * row.adapter * recipe.adapt.rank / 16 if row else math.nan


def _rates(recipe):
    own = base_profile(recipe.profile)
    return THROUGHPUT.get(own, {}) if same_models(recipe, own) else {}


class Work(NamedTuple):
    """The work of one artifact: the first cell that needs it, and what `Stage.work` counts."""

    cell: Cell
    stage: str
    part: Any
    key: str
    images: int
    steps: int
    units: float


def costly(recipes: Iterable[Recipe]) -> Iterator[Work]:
    """Yield the work of every artifact of a costly stage, each key once."""
    seen = set()
    for recipe in recipes:
        cell = described_cell(recipe)
        for stage in STAGES:
            for part, own in cell.keys_of(stage.name).items():
                if own not in seen and stage.work is not None:
                    seen.add(own)
                    yield Work(cell, stage.name, part, own, *stage.work(cell, part))


def plan(recipes: Iterable[Recipe], store: Store | None = None) -> pd.DataFrame:
    """Return one row per artifact of a costly stage that `recipes` need, each once.

    Columns: dataset, stage, key, done, images, steps, units, seconds, bytes.
    """
    store, rows = store or open_store(), []
    for one in costly(recipes):
        recipe = one.cell.recipe
        side, adapter = _sizes(recipe)
        rows.append(
            {
                "dataset": recipe.dataset,
                "stage": one.stage,
                "key": one.key,
                "done": store.whole(one.key),
                "images": one.images,
                "steps": one.steps,
                "units": one.units,
                "seconds": seconds(one.cell, one.stage, _rates(recipe), one.part),
                "bytes": one.images * side**2 * PIXEL + adapter * (one.stage == "adapt"),
            }
        )
    return pd.DataFrame(
        rows,
        columns=["dataset", "stage", "key", "done", "images", "steps", "units", "seconds", "bytes"],
    )


def missing(recipes: Iterable[Recipe]) -> list[str]:
    """List the datasets and models that this machine lacks, one sentence each."""
    lines, hint = {}, []
    for recipe in recipes:
        if recipe.dataset in SOURCES and recipe.dataset not in lines:
            try:
                load_for(recipe)
            except DataError as error:
                way = "" if recipe.folder else lacking(recipe.dataset)
                lines[recipe.dataset] = f"dataset {recipe.dataset}: {way or error}"
                hint = [elsewhere()] if way else hint
        wanted = [("classifier", recipe.classifier, "clip")]
        if method_of(recipe).generates:
            wanted.append(("generator", recipe.generator, "generator"))
            if prompts := recipe.generate.image_prompts:
                wanted.append(("IP-Adapter", prompts, "ip-adapter"))
        for kind, name, part in wanted:
            if absent(name, part):
                lines[kind, name] = f"{kind} {name}: {absent(name, part)}"
    return [*lines.values(), *hint]


def overview(recipes: Sequence[Recipe], store: Store | None = None) -> str:
    """Return the plan as text: a line per dataset and stage, the totals, and what is missing."""
    table = plan(recipes, store)
    if table.empty:
        return NO_CELLS
    table = table.assign(
        pending=~table["done"],
        order=table["stage"].map([stage.name for stage in STAGES].index),
        place=table.groupby("dataset", sort=False).ngroup(),
    )
    groups = table.sort_values(["place", "order"], kind="stable").groupby(
        ["dataset", "stage"], sort=False
    )
    frame = pd.DataFrame([_stage_row(group) for _, group in groups])
    total = {
        "dataset": "all",
        "stage": "",
        **frame[["stages", "done", "images", "steps"]].sum(),
        "hours": frame["hours"].sum(skipna=False),
        "GB": frame["GB"].sum(),
    }
    whole = pd.concat([frame, pd.DataFrame([total])])
    text = whole.assign(hours=whole["hours"].map(_hours)).to_string(
        index=False, formatters={"GB": "{:.2f}".format}
    )
    devices = {
        THROUGHPUT[p]["device"] if p in THROUGHPUT else f"nobody has measured profile {p} on a CPU"
        for p in {base_profile(r.profile) for r in recipes}
    }
    lacking = missing(recipes)
    return "\n".join(
        [
            text,
            f"hours: {'; '.join(sorted(devices))}",
            *(["missing:"] if lacking else ["nothing is missing"]),
            *lacking,
        ]
    )


def _stage_row(group):
    """Sum up one stage of one dataset, a line of the plan; an unknown time makes it unknown."""
    first, pending = group.iloc[0], group[group["pending"]]
    return {
        "dataset": first["dataset"],
        "stage": first["stage"],
        "stages": len(group),
        "done": int(group["done"].sum()),
        "images": int(group["images"].sum()),
        "steps": int(group["steps"].sum()),
        "hours": pending["seconds"].sum(skipna=False) / 3600,
        "GB": group["bytes"].sum() / 1e9,
    }


def _hours(value):
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def processes(
    recipes: Iterable[Recipe], workers: int = 1, jobs: int | None = None
) -> tuple[int, float]:
    """Return (processes that share the cells, cores of this machine per process).

    `jobs` runs are executed at once, each assumed to use as many processes; None reads
    $DATADREAM_JOBS, which `datadream study` sets.
    """
    own = max(1, min(workers, len(groups(list(recipes)))))
    jobs = jobs or int(os.environ.get(JOBS, 1))
    return own, min(1.0, usable_cores() / (own * jobs))


def plan_text(
    recipes: Sequence[Recipe], store: Store | None = None, workers: int = 1, jobs: int | None = None
) -> str:
    """Return two sentences: what has to be computed, and about how long it takes.

    The time is for `processes(recipes, workers, jobs)`.
    """
    table, (own, share) = plan(recipes, store), processes(recipes, workers, jobs)
    pending = table[~table["done"]]
    counts = (
        ", ".join(
            f"{len(group)} x {stage}" for stage, group in pending.groupby("stage", sort=False)
        )
        or "nothing"
    )
    left = float(np.asarray(pending["seconds"], float).sum())  # unknown if one is
    cores = "one CPU core" if own == 1 else f"{own} CPU cores"
    if share < 1:
        cores += f", of which other runs leave {share:.0%}"
    time_text = (
        "unknown, these models have not been measured"
        if math.isnan(left)
        else f"about {left / 60 / own / share:.1f} minutes on {cores}"
    )
    return (
        f"{len(recipes)} cells; to compute: {counts}; {len(table) - len(pending)} stages are "
        f"done. Estimated time: {time_text}."
    )


def announce_plan(recipes: Sequence[Recipe], store: Store, workers: int = 1) -> None:
    """Announce the cells' stages and their seconds to whoever watches this run.

    From them `progress` computes the share done and the time left.
    """
    if not progress.watched():
        return
    table, (own, share) = plan(recipes, store), processes(recipes, workers)
    known = not np.isnan(table["seconds"].to_numpy(float)).any()
    lengths = (
        table["seconds"]
        if known
        else [
            units * PROXY.get(stage, 0.0)
            for units, stage in zip(table["units"], table["stage"], strict=True)
        ]
    )
    rows = table[["key", "stage", "done"]].assign(seconds=lengths)
    progress.announce(rows.to_dict("records"), own * share if known else None)


def named_cells(names: Collection[str] = (), group: str = "default") -> list[Recipe]:
    """Return the recipes of the named runs of study.yaml; without names, those of `group`.

    Runs whose cells are not known beforehand have none.
    """
    return [
        recipe
        for entry in choose(load_study(), names, group).values()
        for recipes in cells_of(entry).values()
        for recipe in recipes
    ]


def profile_cells(profile: str, datasets: Iterable[str] | None, seeds: int) -> list[Recipe]:
    """Return the recipes of the main table on `datasets` with this many seeds.

    None means the paper's ten datasets.
    """
    return [
        r
        for name in datasets or SOURCES
        for r in cells(None, list(range(seeds)), profile=profile, dataset=name)
    ]
