"""Diff-Mix (Wang et al., CVPR 2024): turn a shot of one class halfway into another, label by both.

As published: the generator is tuned on all shots. An image of a class starts from a random shot of
a random class, at strength s = 0.7 of the schedule's noise. Its label is shared: s to the power of
0.8 for the wanted class and the rest for the class of the start. The paper's profile has
DPM-Solver++ and guidance 7.5, with 30 steps instead of 25, of which 0.7 is not a whole number.

Left out: a learnt token for each class (its name is in the prompt), rank 10 and 35,000 steps
(DataDream's adapter is used, so that the methods differ in the draw alone), starts from the same
class (the paper draws source and target independently), the filter that drops the least likely
tenth, and the paper's own classifier, which replaces a tenth of the real images with synthetic
ones.

The embedded model takes ten steps, and guidance 2, chosen by eye among 1, 2 and 7.5 at four shots:
without guidance many images stay what they started as, and at 7.5 strokes are drawn twice.
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
        """Return the class's prompt, a start from another class's shot, and a label of both."""
        others = support.others(label)
        source, start = others[rng.integers(len(others))]
        share = support.recipe.generate.strength**GAMMA
        shares = ((source, 1 - share), (label, share))
        return Draw(
            support.prompt(label), self.used(support, label, index), start, source, label=shares
        )


METHODS = (DiffMix("diffmix", "Diff-Mix", "#668844", "wang2024diffmix", settings=BETWEEN),)
