"""GeNIe (Koohpayegani et al., 2023): repaint shots of other classes as the wanted class.

As published: no tuning; each image of a class starts from a shot of another class with noise added,
and takes the plain prompt of its own class; DPM-Solver++, guidance 7.5, strength 0.8; a hard label.
Every shot of the other classes is used once before any is used again. GeNIe-Ada draws each image at
five strengths with the same noise, and keeps the one after the largest step from the source towards
the class in the classifier's features.

Left out: as many images as there are shots of other classes ((N - 1) K; the profile's number is
kept, as for all methods), the posterior's mode instead of a sample, Stable Diffusion 1.5, and the
logistic regression on frozen features that the paper evaluates with. GeNIe-Ada's features are those
of the study's own untouched classifier. `genie_dset` is this project's addition: the embedded base
model has seen only print, so the same starts are also repainted with DataDream's adapter, with
guidance 2, since at 7.5 the tuned model draws strokes twice.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL.Image import Image

from ..seeds import seed_for
from .base import Draw, Method, Reader, Support
from .datadream import DatasetWise

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
FROM_OTHERS = {
    "paper": {
        "generate.strength": 0.8,
        "generate.guidance": 7.5,
        "generate.scheduler": "DPMSolverMultistepScheduler",
    },
    "mini": {"generate.strength": 0.8, "generate.guidance": 7.5, "generate.steps": 10},
}
# A first draw and four redraws.
ADAPTIVE = {name: {**own, "generate.redraws": 4} for name, own in FROM_OTHERS.items()}
TUNED = {**FROM_OTHERS, "mini": {**FROM_OTHERS["mini"], "generate.guidance": 2.0}}


class Genie(Method):
    """Start each image from a shot of another class, and prompt for its own."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class's prompt, starting from the next of the other classes' shots."""
        others = support.others(label)
        order = _order(seed_for("start", support.recipe.seed, label), len(others))
        source, start = others[order[index % len(others)]]
        return Draw(support.prompt(label), self.used(support, label, index), start, source)


class GenieTuned(Genie, DatasetWise):
    """GeNIe with DataDream's adapter for the whole dataset."""


class GenieAda(Genie):
    """Draw each image at several strengths, and keep the first that has left its source."""

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the same draw, at all strengths in turn."""
        one = super().draw(support, label, index, rng)
        return Draw(one.prompt, one.adapters, one.start, one.source, strengths=STRENGTHS)

    def accept(self, images: Sequence[Image], label: int, read: Reader) -> list[bool]:
        """Reject every image, so that all strengths are drawn."""
        return [False] * len(images)

    def choose(
        self, support: Support, label: int, one: Draw, tries: Sequence[Image], read: Reader
    ) -> int:
        """Return the draw after the largest step along the line from source to class."""
        shot = support.shots(one.source).open(one.start or 0)
        line = _centre(support, label, read) - read.features([shot])[0]
        places = read.features(tries) @ line / max(float(np.linalg.norm(line)), 1e-9)
        return 1 + int(np.abs(np.diff(places)).argmax())


@lru_cache(maxsize=64)
def _order(seed, count):
    return np.random.RandomState(seed % 2**32).permutation(count).tolist()


@lru_cache(maxsize=1)
def _centre(support, label, read):
    shots = support.shots(label)
    return read.features([shots.open(i) for i in range(len(shots))]).mean(0)


# One colour; their markers tell them apart.
COLOUR, CITE = "#002288", "koohpayegani2023genie"
METHODS = (
    Genie("genie", "GeNIe", COLOUR, CITE, settings=FROM_OTHERS),
    GenieAda("genie_ada", "GeNIe, strength chosen", COLOUR, CITE, settings=ADAPTIVE, marker="s"),
    GenieTuned("genie_dset", "GeNIe, tuned generator", COLOUR, CITE, settings=TUNED, marker="D"),
)
