"""What a stage takes, in seconds at measured rates."""

import math
from collections.abc import Mapping
from typing import Any

from ..pipeline.evaluate import validated
from ..pipeline.stages import Cell, stage_of

# Seconds of a process for each unit of a stage's work, and for each artifact of it whatever its
# work (loading models, digests), with the models and the resolution of a profile while every core
# is busy: an image of a step (adapt), an image of a sampling step without guidance (generate), a
# training image (train), an image that is classified (judge; a training classifies validation
# images too). Measured as processor time; `python -m benchmarks.rates` computes the same from a
# store. A profile that nobody has measured has no row, and its hours are unknown.
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
# Ratios that tell a long stage from a short one where nobody has measured. Without what is fixed: a
# worker keeps its models.
PROXY: dict[str, Any] = {
    stage: rate for stage, rate in THROUGHPUT["mini"].items() if stage not in ("device", "fixed")
}


def seconds(cell: Cell, name: str, rates: Mapping[str, Any], part: Any = None) -> float:
    """Return what an artifact of a stage takes at some throughputs, NaN where they have none."""
    work = stage_of(name).work
    if work is None:
        return 0.0
    found = work(cell, part)[2] * rates.get(name, math.nan) + rates.get("fixed", {}).get(name, 0.0)
    if name != "train":
        return found
    looked = cell.recipe.classify.evaluations * validated(cell.support)
    return found + looked * rates.get("judge", math.nan)
