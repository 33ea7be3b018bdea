"""Contrast prompts, a proposal of this project: guide each image away from a similar class.

The dataset-wise adapter and the prompts are DataDream's. In addition, each image has a negative
prompt, that of a similar class drawn as in DIPSY (`methods.similar`), so that guidance leads from
that class to the image's own instead of from the empty prompt. The idea of a contrast is DIPSY's
(Boudier et al., BMVC 2025), but nothing else is: DIPSY tunes nothing, and its prompts include
images.

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
    """Prompt for the class, and against one that looks similar."""

    derived: ClassVar[bool] = True

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt, with the other class's as the negative prompt."""
        away = support.prompt(self.other(support, label, rng))
        return Draw(support.prompt(label), self.used(support, label, index), negative=away)


# As in the paper; the embedded model, otherwise unguided, needs it for a negative prompt.
GUIDED = {"mini": {"generate.guidance": 2.0}}
METHODS = (
    ContrastPrompts(
        "contrast", "Contrast prompts", "#775511", "boudier2025dipsy", settings=GUIDED, marker="s"
    ),
)
