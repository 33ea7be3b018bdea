"""DISEF-style (da Costa et al., 2023): start from a few shot, redraw what CLIP misclassifies.

It starts at step 5 of 20 from a few shot and redraws what its CLIP reads as another class, at most
a hundred times; the mini profile four times, since its untouched CLIP reads handwriting badly, and
without guidance, as all of that profile's methods. The paper's profile has DISEF's guidance, 8.

Not here: captions of the shots, Realistic Vision 2.0, padding to a square (shots are cut), the
mixing of starts. DISEF stops asking after a hundred batches of a class, not redraws of an image.
"""

from .base import Method

FROM_SHOTS = {
    "paper": {
        "generate.strength": 0.75,
        "generate.steps": 20,
        "generate.guidance": 8.0,
        "generate.scheduler": "DPMSolverMultistepScheduler",
        "generate.redraws": 100,
    },
    "mini": {"generate.strength": 0.75, "generate.steps": 20, "generate.redraws": 4},
}
METHODS = (
    Method(
        "disef", "DISEF-style, from the shots", "#D55E00", "dacosta2023disef", settings=FROM_SHOTS
    ),
)
