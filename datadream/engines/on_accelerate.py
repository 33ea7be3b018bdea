"""Train dataset-wise adapters, each on all processes that `accelerate launch` starts.

Meant for adapters tuned on many images: the steps of a training are sequential, so a cluster cannot
split it into tasks. Adapters of single classes are separate tasks, one GPU each: see `on_ray`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Recipe
from ..errors import ConfigError
from ..methods.base import Adapter, Support
from ..store.artifacts import Store

if TYPE_CHECKING:
    from accelerate import Accelerator


def adapt_together(
    recipes: Iterable[Recipe], store: Store, accelerator: Accelerator | None
) -> list[str]:
    """Train the cells' dataset-wise adapters one by one and return their keys.

    Adapters that the store has are not trained again. Raises ConfigError if no cell has one, and
    what `train_adapter` raises.
    """
    from ..models.device import deterministic
    from ..models.download import fetch
    from ..pipeline.adapt import train_adapter
    from ..pipeline.stages import Cell
    from ..training.distributed import broadcast, leads, make_together

    made, one, recipes = [], Adapter(), list(recipes)
    for recipe in recipes:
        cell = Cell(recipe)
        if one not in cell.adapters:
            continue
        if leads(accelerator):
            fetch(recipe, True)
        broadcast(0, accelerator)  # then the others find the models in the cache
        cell.require_runnable(store)
        name, notes = cell.keys_of("adapt")[one], []
        if name in made:
            continue

        def build(folder: Path, support: Support = cell.support, notes: list[str] = notes) -> None:
            with deterministic(support.recipe.deterministic):
                notes.extend(train_adapter(support, one, folder, accelerator))

        inputs = cell.inputs_of("adapt")[one]
        make_together(store, name, inputs, build, accelerator, batches=notes)
        made.append(name)
    if not made:
        raise ConfigError(
            f"none of these {len(recipes)} cells has a dataset-wise adapter; name runs or a "
            "profile with a method such as 'dset'"
        )
    return made
