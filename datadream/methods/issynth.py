"""IsSynth (He et al., ICLR 2023): several prompts, or starts from real images, without tuning.

`issynth` is only several prompts: seven templates, where the paper has T5 write 200 sentences per
class, filters the images by CLIP and fits a head on frozen features. Its title says so; its name
stays because committed records refer to it. The embedded generator has learnt only the plain
prompt: words such as "close-up" or "bright" make it draw letters for digits. In the mini profile
this row therefore shows what unknown words cost, not what several prompts gain.

`issynth_rg` is the paper's real guidance: start from a shot of the class, with less noise the more
shots there are; the plain prompt; guidance 3.0. An image is kept if the classifier gives its class
more than an equal share of the probability, and drawn again otherwise. Left out: 800 images per
class made with GLIDE, of which rejected ones are dropped instead of drawn again, and the teacher's
term in the loss. An image is redrawn at most a hundred times, in the mini profile four times.
"""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from .base import Draw, Method, Reader, Support

TEMPLATES = {"paper": {"generate.templates": 7}, "mini": {"generate.templates": 7}}
# Shots per class -> strength, from the paper's code; in between, that of fewer shots.
BY_SHOTS = {16: 0.15, 8: 0.20, 4: 0.35, 2: 0.40, 1: 0.50}
# With twenty steps, each of these strengths is a whole number of steps.
GUIDED = {
    "paper": {
        "generate.strength": 0.5,
        "generate.guidance": 3.0,
        "generate.steps": 100,
        "generate.redraws": 100,
    },
    "mini": {
        "generate.strength": 0.5,
        "generate.guidance": 3.0,
        "generate.steps": 20,
        "generate.redraws": 4,
    },
}


class RealGuidance(Method):
    """Start from a shot of the class, at a strength that depends on how many there are."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt from its shots in turn, at most at `generate.strength`."""
        count = support.count(label)
        strength = BY_SHOTS[max(shots for shots in BY_SHOTS if shots <= count)]
        strength = min(strength, support.recipe.generate.strength)
        start = index % count if strength else None
        return Draw(support.prompt(label), (), start, strengths=(strength,) if strength else ())

    def accept(self, images: Sequence[Image], label: int, read: Reader) -> list[bool]:
        """Return which images have more than an equal share of the probability on their class."""
        found = read.probabilities(images)
        return (found[:, label] > 1 / found.shape[1]).tolist()


METHODS = (
    Method("issynth", "Several prompts", "#661100", "he2023issynth", settings=TEMPLATES),
    RealGuidance(
        "issynth_rg", "IsSynth, real guidance", "#004444", "he2023issynth", settings=GUIDED
    ),
)
