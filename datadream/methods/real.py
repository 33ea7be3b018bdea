"""Real only: train on the few real images, with the usual augmentation or a heavier one."""

from .base import Method

# RandAugment (Cubuk et al., 2020), with stronger crops and mixing than the other methods.
HEAVY = {
    "paper": {"classify.crop_low": 0.08, "classify.mix": 1.0},
    "mini": {"classify.crop_low": 0.5, "classify.mix": 0.6, "classify.randaugment": True},
}
METHODS = (
    Method("real", "Real only", "#000000", real=True, generates=False, main=True),
    Method(
        "heavy", "Real only, heavy augmentation", "#56B4E9", "cubuk2020randaugment", real=True,
        generates=False, settings=HEAVY,
    ),
)  # fmt: skip
