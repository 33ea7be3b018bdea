"""DA-Fusion (Trabucco et al., ICLR 2024): learn a word for each class, and edit its shots with it.

As published: textual inversion learns a new token for each class, initialised as "the", on that
class's shots, and tunes nothing else in the generator: 1,000 steps in batches of 4 at a learning
rate of 2e-3 (5e-4 times the batch). Each image starts from a shot of its own class, the shots in
turn, with the prompt "a photo of a <token>" and guidance 7.5. The added noise is 1, 0.75, 0.5 or
0.25 of the schedule's, equally often; 52 steps replace the paper's 50, a quarter of which is not a
whole number. The label is the shot's.

Left out: 27 ImageNet templates, from which each step takes one (here from the seven of
`data.datasets`), the constant learning rate (this project's falls along a cosine), flips, Stable
Diffusion 1.4, ten edits of each shot (the profile's number of images is kept), and masks. The
classifier is DataDream's; the paper replaces a real image with one of its own edits with
probability 0.5, for a linear head on a frozen ResNet-50.

Each strength is used for a quarter of the class's images in a row, so that they share batches.

The embedded model takes 200 steps at 1e-3, chosen by eye at four shots: at 5e-3 the tokens of the
optical digits became letters, which that model also knows. Tokens cannot learn the blur of those
digits: the edits are sharper than the shots, and most eights do not look like eights.
"""

from typing import Any

import numpy as np

from ..data.datasets import TEMPLATES, prompt
from ..models.generators.tokens import placeholder
from .base import Adapter, Draw, Support
from .datadream import ClassWise

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
SHARED: dict[str, Any] = {
    "adapt.kind": "token",
    "adapt.word": "the",
    "adapt.text_encoder": False,
    "adapt.batch": 4,
    "adapt.warmup": 0,
    "generate.strength": 0.625,  # the mean of STRENGTHS, for plans
    "generate.guidance": 7.5,
}
EDITED = {
    "paper": {**SHARED, "adapt.steps": 1000, "adapt.lr": 2e-3, "generate.steps": 52},
    "mini": {**SHARED, "adapt.steps": 200, "adapt.lr": 1e-3, "generate.steps": 12},
}


class DAFusion(ClassWise):
    """Edit the class's own shots with the class's own token."""

    def prompts(self, support: Support, label: int) -> list[str]:
        """Return the paper's prompt with the token in place of the class's name."""
        return [prompt(support.dataset.noun, placeholder(label))]

    def tuning_prompts(self, support: Support, adapter: Adapter) -> list[tuple[str, ...]]:
        """Return all templates for each shot."""
        noun, token = support.dataset.noun, placeholder(adapter.label)
        every = tuple(prompt(noun, token, t) for t in range(len(TEMPLATES)))
        return [every] * adapter.shots(support)

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the next shot, at the strength for the image's quarter of the set."""
        (text,), start = self.prompts(support, label), index % support.count(label)
        strength = STRENGTHS[len(STRENGTHS) * index // support.recipe.generate.images]
        return Draw(text, self.used(support, label, index), start, strengths=(strength,))


METHODS = (DAFusion("dafusion", "DA-Fusion", "#44CC88", "trabucco2024dafusion", settings=EDITED),)
