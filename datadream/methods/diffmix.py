"""Diff-Mix (Wang et al., CVPR 2024): turn a shot of one class halfway into another, label by both.

Published, and here: the generator is tuned on all shots; an image of a class starts from a random
shot of a random class with 0.7 of the schedule's noise; its label is shared, s to the power of 0.8
for the class that was asked for and the rest for the class of the start; DPM-Solver++ and guidance
7.5 in the paper's profile, with 30 steps for its 25, of which 0.7 is no whole number.

Not here: a learnt token for each class (its name stands in the prompt), rank 10 and 35,000 steps
(DataDream's adapter is taken, so that the methods differ in the draw alone), starts of the same
class (the paper draws source and target independently), the filter of the least likely tenth, and
the paper's own classifier, which swaps a tenth of the real images for synthetic ones.

The embedded model takes ten steps, and guidance 2, chosen by eye among 1, 2 and 7.5 at four shots:
without guidance many images stay what they started from, and at 7.5 strokes are drawn twice over.
"""

import numpy as np

from .base import Draw, Support
from .datadream import DatasetWise

GAMMA = 0.8  # the share of the wanted class is the strength to this power
BETWEEN = {
    "paper": {
        "generate.strength": 0.7,
        "generate.guidance": 7.5,
        "generate.steps": 30,
        "generate.scheduler": "DPMSolverMultistepScheduler",
    },
    "mini": {"generate.strength": 0.7, "generate.guidance": 2.0, "generate.steps": 10},
}


class DiffMix(DatasetWise):
    """Start from any shot of another class, and share the label between both classes."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt from a shot of another class, and the label of both."""
        others = support.others(label)
        source, start = others[rng.integers(len(others))]
        share = support.recipe.generate.strength**GAMMA
        shares = ((source, 1 - share), (label, share))
        return Draw(
            support.prompt(label), self.used(support, label, index), start, source, label=shares
        )


METHODS = (DiffMix("diffmix", "Diff-Mix", "#668844", "wang2024diffmix", settings=BETWEEN),)
