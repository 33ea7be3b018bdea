"""What each method spends, so that readers can judge whether a comparison is fair."""

from collections.abc import Iterable

import pandas as pd

from ..config import Recipe
from ..pipeline.stages import Cell
from ..results.record import work_of
from .plan import described_cell


def extra_models(cell: Cell) -> str:
    """Return which models a method uses besides generator and classifier, "" if none."""
    redraws = cell.method.generates and cell.recipe.generate.redraws
    uses = [f"{redraws} redraws at most"] * bool(redraws)
    uses += ["for the loss"] * bool(cell.method.loss)
    judge = ", ".join(["the untouched classifier", *uses]) if uses else ""
    prompts = cell.method.generates and cell.recipe.generate.image_prompts
    shown = f"the IP-Adapter {prompts} and its image encoder" if prompts else ""
    return "; ".join(filter(None, [judge, cell.method.asks, shown]))


def fairness(recipes: Iterable[Recipe]) -> pd.DataFrame:
    """Return one row per recipe with what its method spends.

    Columns: method, shots, images generated, adapters and their optimiser steps in all, generator
    passes, optimiser steps of the classifier and the images they process, extra models, and whether
    validation images are used for selection. A redrawn image counts as often as it may be redrawn.
    """
    rows = []
    for recipe in recipes:
        cell = described_cell(recipe)
        method, spent = cell.method, work_of(cell)
        nothing = dict.fromkeys(("artifacts", "images", "steps", "units"), 0)
        adapt, made, train = (spent.get(stage, nothing) for stage in ("adapt", "generate", "train"))
        chooses = method.head is not None and method.head.chooses(cell.support)
        selects = method.trained and recipe.classify.select == "validation"
        rows.append(
            {
                "method": method.title,
                "shots": recipe.shots,
                "images": made["images"],
                "adapters": adapt["artifacts"],
                "adapter steps": adapt["steps"],
                "generator passes": round(made["units"]),
                "classifier steps": train["steps"],
                "images in them": train["units"],
                "extra models": extra_models(cell),
                "chosen on validation": chooses or selects,
            }
        )
    return pd.DataFrame(rows)
