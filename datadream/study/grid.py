"""The cells of the comparison: every method on every dataset at every number of shots."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import Recipe, parsed
from ..errors import ConfigError, DataError
from ..models.generators.ip_adapter import require_image_prompts
from ..pipeline.stages import Cell
from ..results.comparison import PRIMARY
from .cells import cells


def grid(
    datasets: Sequence[str],
    shots: Sequence[int],
    methods: Sequence[str],
    seeds: Sequence[int] = (0,),
    primary_seeds: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> list[Recipe]:
    """Return the recipes of the comparison, including those that no method can run.

    The two methods of the primary question also get `primary_seeds`. Raises ConfigError on an
    unknown name or value.
    """
    named, found = parsed(datasets), []
    if not isinstance(named, (list, tuple)) or not named:
        raise ConfigError(f"datasets={datasets!r} is not a list of one or more names")
    for dataset in named:
        where = dict(fields, dataset=dataset, shots=shots, overrides=overrides)
        own = cells(methods, seeds, **where)
        known = {(one.method, one.seed) for one in own}
        more = cells(PRIMARY, primary_seeds, **where) if parsed(primary_seeds) else []
        found += own + [one for one in more if (one.method, one.seed) not in known]
    return found


def refusals(recipes: Sequence[Recipe]) -> dict[tuple[str, int, str], str]:
    """Return why cells cannot be run: (dataset, shots, method) -> the error's message.

    Only the first seed of each is tried.
    """
    found, asked = {}, set()
    for recipe in recipes:
        where = recipe.dataset, recipe.shots, recipe.method
        if where not in asked:
            asked.add(where)
            try:
                _ = Cell(recipe).keys
                require_image_prompts(recipe)  # not part of the keys, and checked without a model
            except (ConfigError, DataError) as error:
                found[where] = str(error)
    return found


def runnable(
    recipes: Sequence[Recipe], refused: Collection[tuple[str, int, str]] | None = None
) -> list[Recipe]:
    """Return the recipes that can be run, in their order.

    `refused` is the result of `refusals`; None calls it.
    """
    without = refusals(recipes) if refused is None else refused
    return [one for one in recipes if (one.dataset, one.shots, one.method) not in without]
