"""The cells of the study as lists of recipes, and the table of their artifacts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..config import Recipe, as_mapping, parsed
from ..errors import ConfigError
from ..methods import recipes
from ..methods.registry import METHODS


def cells(
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    images: int | None = None,
    generator: str | None = None,
    classifier: str | None = None,
    shots: int | Sequence[int] | None = None,
    **fields: Any,
) -> list[Recipe]:
    """Return the recipes of every method on every seed: the cells of a dataset page.

    The parameters are those of notebooks/dataset.ipynb. None takes the profile's value, and for
    `methods` the methods of the paper's main table. With several `shots`, the cells of the first
    come first. Raises ConfigError on an unknown name or value.
    """
    main = [name for name, row in METHODS.items() if row.main]
    named, seeds = main if methods is None else parsed(methods), parsed(seeds)
    counts = parsed(shots) if isinstance(shots, str) else shots
    if not isinstance(counts, (list, tuple)):
        counts = [counts]
    for name, value in {"methods": named, "seeds": seeds, "shots": counts}.items():
        if not isinstance(value, (list, tuple)) or not value:
            raise ConfigError(
                f"{name}={value!r} is not a list of one or more; papermill takes lists as YAML: -y "
                f"'{name}: [{value}]'"
            )
    chosen = {"generator": generator, "classifier": classifier, "generate.images": images}
    values = {name: value for name, value in chosen.items() if value is not None} | as_mapping(
        overrides
    )
    if len(set(map(str, counts))) < len(counts):
        raise ConfigError(f"shots={counts!r} names a number twice")
    return [
        recipes.recipe(overrides=values, method=method, seed=seed, **own, **fields)
        for own in ({} if count is None else {"shots": count} for count in counts)
        for seed in seeds
        for method in named
    ]


def groups(every: Sequence[Recipe]) -> list[list[Recipe]]:
    """Group recipes by dataset, number of shots and seed, with the most shots first.

    Cells of one group reuse each other's stages, cells of different groups hardly any, so groups
    are what processes share out. More shots take longer, so they start earlier.
    """
    found: dict[tuple[str, int, int], list[Recipe]] = {}
    for recipe in every:
        found.setdefault((recipe.dataset, recipe.shots, recipe.seed), []).append(recipe)
    return sorted(found.values(), key=lambda group: -(group[0].shots or 10**9))  # 0: all images


def artifact_places(table: pd.DataFrame) -> pd.DataFrame:
    """Return the artifact folders of each cell, one row per method, seed and number of shots.

    The columns are few shots, synthetic set, classifier and result.
    """
    stages = {
        "few shots": "shots",
        "synthetic set": "generate",
        "classifier": "train",
        "result": "judge",
    }
    rows = [
        {
            "method": row["method"],
            "seed": row["seed"],
            "shots": row["shots"],
            **{title: row["artifacts"].get(stage, "") for title, stage in stages.items()},
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)
