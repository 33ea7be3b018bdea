"""What a stage costs: images, steps, and seconds at measured rates."""

import math

from ..methods.registry import method_of
from ..pipeline.draws import draws
from .train import optimiser_steps

# Seconds of a process for each unit of a stage's work, and for each artifact of it whatever its
# work (loading models, digests), with the models and the resolution of a profile while every core
# is busy: an image of a step (adapt), an image of a sampling step without guidance (generate), a
# training image (train), an image that is classified (judge; a training classifies validation
# images too). Measured as processor time; `python -m benchmarks.rates` computes the same from a
# store. A profile that nobody has measured has no row, and its hours are unknown.
THROUGHPUT = {
    "mini": {
        "device": "one core of a two-core x86_64 CPU with AVX-512, the other busy too",
        "adapt": 0.016,
        "generate": 0.0039,
        "train": 0.0025,
        "judge": 0.0009,
        "fixed": {"adapt": 0.3, "generate": 0.6, "train": 1.0, "judge": 0.3},
    }
}
STAGES = ("adapt", "generate", "train", "judge")
# Ratios that tell a long stage from a short one where nobody has measured. Without what is fixed: a
# worker keeps its models.
PROXY = {stage: THROUGHPUT["mini"][stage] for stage in STAGES}


def units_of_work(recipe, dataset):
    """Return by stage (images made, optimiser steps, units of work): what the throughputs
    multiply.
    """
    classes, method = len(dataset.classes), method_of(recipe)
    options = recipe.generate
    made, batch = options.images * classes, recipe.adapt.batch
    asked = 1 if options.guidance == 1 else 1 + options.guided  # a guided step asks the UNet twice
    passes = made * options.steps * (options.strength or 1) * (1 + options.redraws) * asked
    each = recipe.shots or math.ceil(len(dataset.train) / classes)
    first = next(iter(draws(recipe, dataset, 0)[0].adapters), None) if method.generates else None
    shots = 1 if first and first.image is not None else each
    shots = each * classes if first and first.label is None else shots
    steps = optimiser_steps(recipe, classes)[0]
    return {
        "adapt": (0, recipe.adapt.epochs * math.ceil(shots / batch), recipe.adapt.epochs * shots),
        "generate": (made, 0, passes),
        "train": (0, steps, steps * recipe.classify.batch),
        "judge": (0, 0, validated(recipe, dataset) + len(dataset.test)),
    }


def validated(recipe, dataset):
    """Return how many images `data.validation_images` gives, which need not be drawn for that."""
    if not recipe.validation or recipe.protocol == "released":
        return len(dataset.val)
    return min(recipe.shots or recipe.validation, recipe.validation) * len(dataset.classes)


def seconds(recipe, dataset, rates):
    """Return by stage what one of it takes at some throughputs, NaN where they have none."""
    found = {
        stage: units * rates.get(stage, math.nan) + rates.get("fixed", {}).get(stage, 0.0)
        for stage, (_, _, units) in units_of_work(recipe, dataset).items()
    }
    looked = recipe.classify.evaluations * validated(recipe, dataset)
    return found | {"train": found["train"] + looked * rates.get("judge", math.nan)}
