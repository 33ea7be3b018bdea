"""GPU hours, memory and cost of a set of cells, by card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from ..config import Recipe
from ..engines.rates import seconds
from ..engines.roofline import CARDS, MEASURED, MEMORY, cost, counted
from ..errors import ConfigError
from ..pipeline.stages import STAGES
from ..store.artifacts import Store
from ..store.open import open_store
from .plan import costly

COSTLY = [stage.name for stage in STAGES if stage.work]
EVERY = "all"  # key of a price that applies to every card


def prices(words: Iterable[str]) -> dict[str, float]:
    """Parse prices per hour of a card, such as "2.5" or "H100=2.5".

    A price without a card applies to all cards that have none of their own. Raises ConfigError on a
    card that is not in the table, and on a price that is not a non-negative number.
    """
    found = {}
    for word in words:
        card, _, value = word.rpartition("=")
        name = {own.lower(): own for own in CARDS}.get(card.lower(), card) or EVERY
        try:
            price = float(value)
        except ValueError:
            price = -1.0
        if name not in (*CARDS, EVERY) or not 0 <= price < float("inf"):
            raise ConfigError(
                f"--price {word} is not a price of an hour; give a number, or <card>=<number> with "
                f"a card of {', '.join(CARDS)}, e.g. --price H100=2.5"
            )
        found[name] = price
    return found


def gpu_hours(
    recipes: Sequence[Recipe], store: Store | None = None, by: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Return the hours still to compute, by stage and in all, a row per card and source of hours.

    Columns: card, hours are (measured or computed), the costly stages, all, and cost if `by` (card
    -> price per hour) has a price. Computed hours are a lower bound for the card. Raises
    ConfigError if a recipe uses models whose operations were not counted.
    """
    store = store or open_store()
    least = {card: dict.fromkeys(COSTLY, 0.0) for card in CARDS}
    timed = {card: dict.fromkeys(COSTLY, 0.0) for card in MEASURED}
    for one in costly(recipes):
        recipe, what = one.cell.recipe, (one.cell, one.stage)
        if not counted(recipe):
            raise ConfigError(
                f"generator={recipe.generator!r} with classifier={recipe.classifier!r} at "
                f"resolution={recipe.resolution} was not counted; only the models of profile "
                "'paper' were"
            )
        if store.whole(one.key):
            continue
        asked = cost(*what, one.part)
        for card, row in least.items():
            row[one.stage] += asked.seconds(CARDS[card]) / 3600
        for card, row in timed.items():
            row[one.stage] += seconds(*what, MEASURED[card], one.part) / 3600
    rows = [(card, "computed", row) for card, row in least.items()]
    rows[:0] = [(card, "measured", row) for card, row in timed.items()]
    table = pd.DataFrame(
        {"card": card, "hours are": how, **row, "all": sum(row.values())} for card, how, row in rows
    )
    if by:
        price = table["card"].map(lambda card: by.get(card, by.get(EVERY)))
        table["cost"] = table["all"] * price.astype(float)
    return table


def gpu_text(
    recipes: Sequence[Recipe], store: Store | None = None, by: Mapping[str, float] | None = None
) -> str:
    """Return the table as text, with the sources of its numbers and the memory of each stage."""
    table = gpu_hours(recipes, store, by)
    memory = ", ".join(f"{stage} {peak / 1e9:.0f}" for stage, peak in MEMORY.items())
    return "\n".join(
        [
            "GPU hours by card, one GPU:",
            table.to_string(index=False, float_format="{:,.1f}".format, na_rep="-"),
            "computed: not measured, the least that the card's data sheet allows (operations at "
            "its peak, bytes at its bandwidth)",
            "measured: its rates on one GPU with random weights of the same shapes, applied to "
            "this work; reading an image is taken to cost as much as training on it",
            f"memory, GB: {memory} (peaks measured on an H200; where a card has less, a batch is "
            "halved until it fits)",
        ]
    )
