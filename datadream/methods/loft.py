"""LoFT (Kim et al., 2025): one adapter per few shot, two of a class fused at sampling."""

from typing import ClassVar

import numpy as np

from ..seeds import seed_for
from .base import Adapter, Method, Support

# Images drawn per fused pair; so 500 images use about two thirds of the 120 pairs of 16 shots.
TOGETHER = 4
# LoFT's own settings; the mini profile's images are smaller and need fewer steps each.
SHARED = {
    "adapt.rank": 2,
    "adapt.alpha": 2.0,
    "adapt.batch": 1,
    "adapt.warmup": 10,
    "adapt.text_encoder": False,
    "adapt.crop": "center",
}
PER_IMAGE = {
    "paper": {**SHARED, "adapt.lr": 1e-3, "adapt.epochs": 600},
    "mini": {**SHARED, "adapt.epochs": 40},
}


class LoFT(Method):
    """One adapter for each few shot; every TOGETHER images of a class use a pair of its class."""

    derived: ClassVar[bool] = True

    def adapters(self, support: Support) -> list[Adapter]:
        """Return the adapters that some image uses, in the order of their use."""
        starts = range(0, support.recipe.generate.images, TOGETHER)
        labels = range(len(support.classes))
        return list(
            dict.fromkeys(one for y in labels for i in starts for one in self.used(support, y, i))
        )

    def used(self, support: Support, label: int, index: int) -> tuple[Adapter, ...]:
        """Return two adapters of the class, drawn by the seed."""
        seed = seed_for("pair", support.recipe.seed, label, index - index % TOGETHER)
        drawn = np.random.RandomState(seed % 2**32).permutation(support.count(label))[:2]
        return tuple(Adapter(label, int(image)) for image in sorted(drawn))


METHODS = (LoFT("loft", "LoFT", "#CC79A7", "kim2025loft", settings=PER_IMAGE, together=TOGETHER),)
