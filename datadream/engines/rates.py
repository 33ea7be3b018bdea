"""Estimate how many seconds a stage takes, at measured rates."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..config import Recipe
from ..methods.recipes import recipe as make_recipe
from ..pipeline.evaluate import validated
from ..pipeline.stages import Cell, stage_of

# Seconds per unit of a stage's work, and per artifact whatever its work ("fixed": loading models,
# digests), with a profile's models and resolution and every core busy. The unit is one image in one
# step (adapt), one image in one sampling step without guidance (generate), one training image
# (train), one classified image (judge; training classifies validation images too). Measured as
# processor time; `python -m benchmarks.rates` computes the same from a store. A profile that was
# never measured has no row, and its hours are unknown.
THROUGHPUT: dict[str, dict[str, Any]] = {
    "mini": {
        "device": "one core of a two-core x86_64 CPU with AVX-512, the other busy too",
        "adapt": 0.016,
        "generate": 0.0039,
        "train": 0.0025,
        "judge": 0.0009,
        "fixed": {"adapt": 0.3, "generate": 0.6, "train": 1.0, "judge": 0.3},
    }
}
# Relative costs of the stages, to order tasks where nothing was measured. The fixed costs are left
# out, since a worker keeps its models loaded.
PROXY: dict[str, Any] = {
    stage: rate for stage, rate in THROUGHPUT["mini"].items() if stage not in ("device", "fixed")
}


@lru_cache
def _preset(profile):
    """Return a profile's recipe: a plan asks for it at each of thousands of artifacts."""
    return make_recipe(profile)


def same_models(recipe: Recipe, profile: str) -> bool:
    """True if a recipe has a profile's models and resolution, so that its rates apply."""
    preset = _preset(profile)
    same = ("generator", "classifier", "resolution")
    return all(getattr(recipe, name) == getattr(preset, name) for name in same)


def looked(cell: Cell) -> int:
    """Return how many validation images a training classifies over all its evaluations."""
    return cell.recipe.classify.evaluations * validated(cell.support)


def seconds(cell: Cell, name: str, rates: Mapping[str, Any], part: Any = None) -> float:
    """Return the seconds that a stage's artifact takes at `rates`, NaN if a rate is missing."""
    work = stage_of(name).work
    if work is None:
        return 0.0
    found = work(cell, part)[2] * rates.get(name, math.nan) + rates.get("fixed", {}).get(name, 0.0)
    if name != "train":
        return found
    return found + looked(cell) * rates.get("judge", math.nan)
