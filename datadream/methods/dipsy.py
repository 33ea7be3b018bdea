"""DIPSY (Boudier et al., BMVC 2025): lead to a shot of the class, and away from one like it.

Published, and here: no tuning; Stable Diffusion 1.5 with IP-Adapter Plus twice, scale 0.6. A step
asks the UNet for the noise without words, with the prompt, with the prompt and a shot of the class,
and with both and a shot of another class, and takes each difference by a weight of its own: 7.5, 6
and -6, the script's (`models.generators.ip_adapter`). DPM-Solver++, 50 steps. The other class is
the likelier the more alike it looks (`methods.similar`). Both shots are flipped half of the time,
cut to a square, turned by up to 20 degrees and cut to the middle, which the turn left whole. Hard
labels, no filter; the classifier is DataDream's.

Not here: 200 images a class (the profile's number is kept, for all methods alike), weights by
dataset, if the paper has them, and its prompts, which name the kind of the thing ("pet"): the
dataset's noun does that. The classes are compared in the study's own classifier, which is the
published CLIP B/16 in the paper's profile. As its adapter has been trained for Stable Diffusion
1.5, that profile's other methods have another generator, 2.1.

There is no IP-Adapter for the embedded model, so the mini profile refuses it; its tests run it on
tiny models of the true classes. Nobody has run it at full size here.
"""

from typing import ClassVar

import numpy as np
from PIL.Image import Image, Transpose

from .base import Draw, Support
from .similar import Similar

TURN = 20.0  # degrees, most
PROMPTED = {
    "generate.image_prompts": "ip-adapter-plus_sd15",
    "generate.guidance": 7.5,
    "generate.steps": 50,
    "generate.scheduler": "DPMSolverMultistepScheduler",
}


class Dipsy(Similar):
    """Prompt with the class, a shot of it, and a shot of a class that looks alike."""

    derived: ClassVar[bool] = True

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt with the two shots, each drawn anew for every image."""
        classes = (label, self.other(support, label, rng))
        shots = tuple((one, int(rng.integers(support.count(one)))) for one in classes)
        return Draw(support.prompt(label), images=shots)

    def view(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a random flip, square and turn of a shot, without the corners of the turn."""
        if rng.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        side = min(image.size)
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        image = image.rotate(rng.uniform(-TURN, TURN))
        middle = int(side / 2**0.5)
        edge = (side - middle) // 2
        return image.crop((edge, edge, edge + middle, edge + middle))


METHODS = (
    Dipsy(
        "dipsy",
        "DIPSY",
        "#990022",
        "boudier2025dipsy",
        settings={"paper": {"generator": "sd1.5", **PROMPTED}, "mini": PROMPTED},
    ),
)
