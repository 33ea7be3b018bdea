"""ChimeraLoRA (CVPR 2026, arXiv 2602.19708): a LoRA for each class, with a head for each shot.

As published: in each layer, the K shots of a class share one matrix A and have one matrix B each.
All are trained together, every shot through its own B. A starts Gaussian and B at zero; B's
learning rate is ten times A's, 1e-3 and 1e-4. Every image mixes the heads with its own weights, w ~
Dirichlet(1): W + (sum w_i B_i) A. Guidance 2, 500 images per class, hard labels.

Not published, so taken from LoFT: rank 2, the UNet alone, 600 epochs over the shots, all shots of a
class in one step (up to 16), ten steps of warm-up.

Left out: crops around the object's box, which Grounded-SAM finds. Without a detector, photographs
get the plain random crop; square images, such as those of the embedded datasets, are not cropped at
all. The classifier is DataDream's, not the paper's LoRA of rank 16 with AdamW at 1e-4.

For the embedded model, B's learning rate is that of the profile's LoRA, and guidance is the
paper's; both were chosen by eye at four shots. At ten times the rate, mixed heads drew strokes of
several shots on top of each other, without guidance more often than with it.
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
    """Mix the heads of a class with new weights for every image."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt, and a weight for each of its heads."""
        # Rounded, since the last digits may differ between machines, and the key includes them.
        weights = rng.dirichlet(np.ones(support.count(label))).round(6).tolist()
        own = self.used(support, label, index)
        return Draw(support.prompt(label), own, weights=tuple(weights))


METHODS = (Chimera("chimera", "ChimeraLoRA", "#DD88CC", "kim2026chimeralora", settings=HEADS),)
