"""LoFT (Kim et al., 2025): one adapter per shot, two of a class fused at sampling.

As published: a LoRA of rank 2 for each shot, of the UNet alone, tuned on the shot's centre crop. An
image uses the average of two adapters of its class; all pairs of a class are shuffled once and used
in that order, over and over.

Unlike the released code, each pair makes four images in a row instead of one, so that a batch has
one set of weights. The adapters have the settings that the released script names for LoFT; the
script itself tests a variable that it never sets, and so tunes with DataDream's.
"""

from functools import lru_cache
from itertools import combinations
from typing import ClassVar

import numpy as np

from ..seeds import seed_for
from .base import Adapter, Method, Support

# Images that a fused pair draws in a row, so that a batch has one set of weights; LoFT draws one.
# 500 images use each of the 120 pairs of 16 shots once, and five of them twice.
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
    """One adapter per shot; every TOGETHER images of a class share a pair of its adapters.

    All pairs are shuffled once, and used in that order over and over.
    """

    derived: ClassVar[bool] = True

    def adapters(self, support: Support) -> list[Adapter]:
        """Return the adapters that some image uses, in the order of their use."""
        starts = range(0, support.recipe.generate.images, TOGETHER)
        labels = range(len(support.classes))
        return list(
            dict.fromkeys(one for y in labels for i in starts for one in self.used(support, y, i))
        )

    def used(self, support: Support, label: int, index: int) -> tuple[Adapter, ...]:
        """Return the next two adapters of the class; with a single shot, its only one."""
        pairs = _pairs(seed_for("pair", support.recipe.seed, label), support.count(label))
        return tuple(Adapter(label, image) for image in pairs[index // TOGETHER % len(pairs)])


@lru_cache(maxsize=64)
def _pairs(seed, count):
    pairs = list(combinations(range(count), 2)) or [(0,)]
    return [pairs[i] for i in np.random.RandomState(seed % 2**32).permutation(len(pairs))]


METHODS = (LoFT("loft", "LoFT", "#CC79A7", "kim2025loft", settings=PER_IMAGE, together=TOGETHER),)
