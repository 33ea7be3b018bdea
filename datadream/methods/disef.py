"""DISEF-style (da Costa et al., 2023): start from a shot, redraw what CLIP misclassifies.

As published: sampling starts at step 5 of 20 from a shot, padded with black to a square, and an
image that CLIP assigns to another class is drawn again. The paper's profile has DISEF's guidance,
8. The mini profile has no guidance, as for most methods, and redraws at most four times, since its
untouched CLIP reads handwriting badly.

DISEF filters the first hundred batches of a class, 8 draws each for 64 images, so 12.5 per image;
after that every image passes. Here each image has this budget for itself, twelve redraws, so that
it depends on no other image and on no batch. If CLIP accepts a fraction p of the draws, DISEF lets
1 - 12.5 p of its images pass unfiltered, none if p is 8 % or more; here it is (1 - p)^12.

Left out: captions of the shots, Realistic Vision 2.0, and the optional mixing of starts. The mini
profile's images are already square; photographs are cropped there unless `generate.fit` is 'pad'.
"""

from .base import Method

FROM_SHOTS = {
    "paper": {
        "generate.strength": 0.75,
        "generate.steps": 20,
        "generate.guidance": 8.0,
        "generate.scheduler": "DPMSolverMultistepScheduler",
        "generate.redraws": 12,
        "generate.fit": "pad",
    },
    "mini": {"generate.strength": 0.75, "generate.steps": 20, "generate.redraws": 4},
}
METHODS = (Method("disef", "DISEF-style", "#D55E00", "dacosta2023disef", settings=FROM_SHOTS),)
