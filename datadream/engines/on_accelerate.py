"""Dataset-wise adapters, each trained by all processes that `accelerate launch` starts.

For an adapter of many images, whose training is one chain that more workers do not shorten.
Adapters of single classes are tasks of their own, one GPU each: see `on_ray`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..config import Recipe
from ..errors import ConfigError
from ..methods.base import Adapter
from ..store.artifacts import Store

if TYPE_CHECKING:
    from accelerate import Accelerator


def adapt_together(
    recipes: Iterable[Recipe], store: Store, accelerator: Accelerator | None
) -> list[str]:
    """Train the dataset-wise adapters of these cells that the store lacks, one after the other,
    and return their keys.

    Raises ConfigError where the cells have none, and what `train_adapter` raises.
    """
    from ..models.download import fetch
    from ..pipeline.adapt import adapter_inputs, train_adapter
    from ..pipeline.stages import Cell
    from ..training.distributed import broadcast, leads, make_together

    made, one, recipes = [], Adapter(), list(recipes)
    for recipe in recipes:
        cell = Cell(recipe)
        if one not in cell.adapters:
            continue
        if leads(accelerator):
            fetch(recipe, True)
        broadcast(0, accelerator)  # the others find the models in the cache
        name, notes = cell.keys_of("adapt")[one], []
        if name in made:
            continue

        def build(folder, support=cell.support, notes=notes):
            notes.extend(train_adapter(support, one, folder, accelerator))

        inputs = adapter_inputs(cell.support, one)
        make_together(store, name, inputs, build, accelerator, batches=notes)
        made.append(name)
    if not made:
        raise ConfigError(
            f"none of these {len(recipes)} cells has a dataset-wise adapter; name runs or a "
            "profile with a method such as 'dset'"
        )
    return made
