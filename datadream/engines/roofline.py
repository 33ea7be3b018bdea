"""Compute a lower bound on the time that a stage takes on a GPU.

Matrix products run at the card's peak, everything else moves bytes at its bandwidth, and the two do
not overlap, as in eager mode. No measured time can be shorter without fusing kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..config import Recipe
from ..data.datasets import prompt
from ..pipeline.stages import Cell, stage_of
from .rates import looked, same_models


@dataclass(frozen=True)
class Card:
    """A GPU, by its maker's data sheet: dense FLOP/s and bytes/s."""

    half: float  # in bfloat16, accumulated in float32
    single: float  # in float32, without TensorFloat-32
    bandwidth: float


# NVIDIA's data sheets, without sparsity: H200 SXM, H100 SXM, A100 SXM with 80 GB, GeForce RTX 4090
# (Ada whitepaper, appendix A: half precision accumulated in float32), L4.
CARDS = {
    "H200": Card(989e12, 67e12, 4.8e12),
    "H100": Card(989e12, 67e12, 3.35e12),
    "A100": Card(312e12, 19.5e12, 2.04e12),
    "4090": Card(165e12, 82.6e12, 1.01e12),
    "L4": Card(121e12, 30.3e12, 0.3e12),
}


@dataclass(frozen=True)
class Cost:
    """Operations in half and in single precision, and the bytes moved outside matrix products."""

    half: float = 0.0
    single: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.half + other.half, self.single + other.single, self.moved + other.moved)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.half * times, self.single * times, self.moved * times)

    def seconds(self, card: Card) -> float:
        """Return the lower bound on a card, in seconds."""
        return self.half / card.half + self.single / card.single + self.moved / card.bandwidth


# The cost of an image, or of one prompt token, in Stable Diffusion 2.1-base at 512 pixels and CLIP
# ViT-B/16 at 224, with LoRA of rank 16: `python -m benchmarks.counted` prints these rows.
COUNTED = {
    "unet": Cost(0.804e12, 0.0, 1.62e9),  # a pass without gradients
    "encode": Cost(1.117e12, 0.0, 3.478e9),
    "decode": Cost(2.515e12, 0.0, 5.851e9),
    "trained view": Cost(1.779e12, 0.0136e12, 8.537e9),  # forward and backward through the UNet
    "trained prompt": Cost(0.0906e12, 0.0014e12, 0.721e9),
    "read": Cost(0.03536e12, 0.0, 0.2026e9),
    "trained image": Cost(0.07216e12, 0.0, 0.517e9),
    "trained token": Cost(0.000158e12, 0.0, 0.0024e9),  # of a class's prompt
}
# Measured, benchmarks/results/nvidia-h200-2026-11-27.json: peak allocated memory in bytes at the
# profile's batch sizes, and seconds per unit of a stage's work (see `rates`). Classifying an image
# was not timed; it takes no longer than training on it.
MEMORY = {"adapt": 11.03e9, "generate": 7.69e9, "train": 20.73e9}
MEASURED: dict[str, Mapping[str, float]] = {
    "H200": {
        "adapt": 1 / (2.861 * 8),  # steps of eight images
        "generate": 1 / (2.368 * 100),  # images of 50 guided steps, written as PNG
        "train": 1 / 1705,
        "judge": 1 / 1705,
    }
}


def counted(recipe: Recipe) -> bool:
    """True if the models of a recipe are those that were counted."""
    return same_models(recipe, "paper")


def cost(cell: Cell, name: str, part: Any = None) -> Cost:
    """Return the cost of a stage's artifact on the GPU.

    `part` is one of the stage's parts. The cell's models must be `counted`.
    """
    stage, recipe = stage_of(name), cell.recipe
    if stage.work is None:
        return Cost()
    images, steps, units = stage.work(cell, part)
    if name == "adapt":
        # A prompt is encoded once per step, however many of the step's images share it.
        prompts = 1 if part.label is not None else len(cell.dataset.classes)
        share = min(prompts, recipe.adapt.batch) / recipe.adapt.batch
        view = COUNTED["encode"] + COUNTED["trained view"] + COUNTED["trained prompt"] * share
        return view * units
    if name == "generate":
        return COUNTED["unet"] * units + COUNTED["decode"] * images
    if name == "train":
        tokens = len(cell.support.classes) * _longest(recipe.noun, cell.dataset.classes)
        text = COUNTED["trained token"] * (steps * tokens)
        return COUNTED["trained image"] * units + text + COUNTED["read"] * looked(cell)
    return COUNTED["read"] * units


@lru_cache
def _longest(noun: str, classes: Collection[str]) -> int:
    """Return the number of tokens of the longest prompt, to which the classifier cuts them all."""
    import open_clip

    ids = open_clip.get_tokenizer("ViT-B-16-quickgelu")([prompt(noun, one) for one in classes])
    return int(ids.argmax(1).max()) + 1
