"""DIPSY (Boudier et al., BMVC 2025): guide towards a shot of the class, away from a similar class.

As published: no tuning; Stable Diffusion 1.5 with IP-Adapter Plus loaded twice, at scale 0.6. In
each step the UNet predicts the noise without a prompt, with the prompt, with the prompt and a shot
of the class, and with both and a shot of another class. Each difference has a weight of its own:
7.5, 6 and -6, as in the released script (`models.generators.ip_adapter`). DPM-Solver++, 50 steps.
The more similar another class looks, the more likely it is drawn (`methods.similar`). Both shots
are flipped half of the time, cropped to a square, rotated by up to 20 degrees and cropped to the
centre that the rotation leaves whole. Hard labels, no filter; the classifier is DataDream's.

Left out: 200 images per class (the profile's number is kept, as for all methods), weights per
dataset, if the paper has them, and the paper's prompts, which name the kind of thing ("pet"); here
the dataset's noun does. The classes are compared by the study's own classifier, which is the
published CLIP B/16 in the paper's profile. This method uses Stable Diffusion 1.5, for which its
adapter was trained; the other methods of that profile use 2.1.

There is no IP-Adapter for the embedded model, so the mini profile refuses this method; its tests
run it on tiny models of the real model classes. It has not been run at full size here.
"""

from typing import ClassVar

import numpy as np
from PIL.Image import Image, Transpose

from .base import Draw, Support
from .similar import Similar

TURN = 20.0  # degrees, at most
PROMPTED = {
    "generate.image_prompts": "ip-adapter-plus_sd15",
    "generate.guidance": 7.5,
    "generate.steps": 50,
    "generate.scheduler": "DPMSolverMultistepScheduler",
}


class Dipsy(Similar):
    """Prompt with the class, a shot of it, and a shot of a class that looks similar."""

    derived: ClassVar[bool] = True

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt with the two shots, both drawn again for every image."""
        classes = (label, self.other(support, label, rng))
        shots = tuple((one, int(rng.integers(support.count(one)))) for one in classes)
        return Draw(support.prompt(label), images=shots)

    def view(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a shot, randomly flipped, cropped square and rotated, without empty corners."""
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
