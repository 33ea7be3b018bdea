"""Dataset-wise adapters, each trained by all processes that `accelerate launch` starts."""

from ..errors import ConfigError
from ..methods.base import Adapter
from ..methods.registry import method_of
from ..pipeline.draws import adapters


def adapt_together(recipes, store, team):
    """Make the dataset-wise adapters of these cells that the store lacks, one after the other, and
    return their keys.

    Raises ConfigError where the cells have none, and what `adapt` raises.
    """
    from ..data.datasets import few_shots, load_for
    from ..models.download import fetch
    from ..pipeline.adapt import adapt, adapter_inputs
    from ..store.keys import key

    made = {}
    for recipe in recipes:
        dataset = load_for(recipe)
        if not method_of(recipe).generates or Adapter() not in adapters(recipe, dataset):
            continue
        name = key("adapt", **adapter_inputs(recipe, dataset))
        if name not in made:
            if team.leads:
                fetch(recipe, True)
            team.first(0)  # the others find the models in the cache
            made[name] = adapt(
                recipe, dataset, few_shots(dataset, recipe.shots, recipe.seed), store, team=team
            )
    if not made:
        raise ConfigError(
            f"none of these {len(recipes)} cells has a dataset-wise adapter; name runs or a "
            "profile with a method such as 'dset'"
        )
    return list(made)
