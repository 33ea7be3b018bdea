"""ChimeraLoRA (CVPR 2026, arXiv 2602.19708): a LoRA for each class, with a head for each shot.

Published, and here: the K shots of a class share one matrix A of each layer and have a matrix B
each, all trained at once, every shot through its own B; A starts Gaussian and B at zero; B's
learning rate is ten times A's, 1e-3 and 1e-4. Every image mixes the heads by weights of its own,
w ~ Dirichlet(1): W + (sum w_i B_i) A. Guidance 2, 500 images a class, hard labels.

Not published, so LoFT's: rank 2, the UNet alone, 600 passes over the shots, all of a class in a
step (up to 16), ten steps of warm-up.

Not here: crops that contain the object's box, which Grounded-SAM finds. No detector is at hand, so
photographs have the plain random crop; square images, as those of the embedded datasets, are not
cropped at all. The classifier is DataDream's, not one of LoRA rank 16 with AdamW at 1e-4.

For the embedded model B learns at the rate of that profile's LoRA, and guidance is the paper's:
chosen by eye at four shots. At ten times the rate mixed heads drew strokes of several shots over
each other, without guidance more often than with it.
"""

import numpy as np

from .base import Draw, Support
from .datadream import ClassWise

SHARED = {
    "adapt.kind": "heads",
    "adapt.rank": 2,
    "adapt.alpha": 2.0,
    "adapt.text_encoder": False,
    "adapt.up_rate": 10.0,
    "adapt.batch": 16,
    "adapt.warmup": 10,
}
HEADS = {
    "paper": {**SHARED, "adapt.epochs": 600},
    "mini": {**SHARED, "adapt.lr": 2e-4, "adapt.epochs": 100, "generate.guidance": 2.0},
}


class Chimera(ClassWise):
    """Mix the heads of a class anew for every image."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt, and a weight for each of its heads."""
        # Rounded, since a last digit may differ between machines, and the key holds all of them.
        weights = rng.dirichlet(np.ones(support.count(label))).round(6).tolist()
        own = self.used(support, label, index)
        return Draw(support.prompt(label), own, weights=tuple(weights))


METHODS = (Chimera("chimera", "ChimeraLoRA", "#DD88CC", "kim2026chimeralora", settings=HEADS),)
