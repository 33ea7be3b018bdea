"""Contrast prompts, a proposal of this project: lead each image away from a class that looks alike.

DataDream's adapter for the dataset and its prompts; beside its prompt an image has a negative one,
that of a class drawn as DIPSY draws it (`methods.similar`), so that guidance leads from the one
class to the other instead of from no words. The idea of a contrast is DIPSY's (Boudier et al.,
BMVC 2025), but nothing else is: DIPSY tunes nothing, and takes images for prompts.

Seen at 4 and 16 shots of both embedded datasets, with guidance 1.5, 2 and 3: at 3 strokes break; at
2 some zeros open and some ones are crossed, which makes them unlike the other class but also unlike
their own. Plain guidance of the same scale leaves more images legible.
"""

from typing import ClassVar

import numpy as np

from .base import Draw, Support
from .datadream import DatasetWise
from .similar import Similar


class ContrastPrompts(Similar, DatasetWise):
    """Prompt for the class, and against another that looks alike."""

    derived: ClassVar[bool] = True

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt, and that of the other class as what to leave."""
        away = support.prompt(self.other(support, label, rng))
        return Draw(support.prompt(label), self.used(support, label, index), negative=away)


# As the paper has it; the embedded model, elsewhere without guidance, needs some to be led away.
GUIDED = {"mini": {"generate.guidance": 2.0}}
METHODS = (
    ContrastPrompts(
        "contrast", "Contrast prompts", "#775511", "boudier2025dipsy", settings=GUIDED, marker="s"
    ),
)
