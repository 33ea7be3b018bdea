"""VAE moments of the few shots, cached per image and crop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ...config import Adapt
from ...data.images import Images
from ...data.transforms import generator_image, resized
from ...seeds import forked_rng, seed_for
from .base import Generator

if TYPE_CHECKING:
    from torch import Tensor

# Few shots kept in memory at the generator's size, about 1 MB each; 16 shots of 100 classes fit.
PICTURES = 2048


class Views:
    """Cache VAE moments per (image, crop); unrepeated random crops are not kept."""

    def __init__(self, generator: Generator, images: Images, side: int, options: Adapt, seed: int):
        self.generator, self.side, self.options, self.seed = generator, side, options, seed
        self.known: dict[tuple[int, int], Tensor] = {}
        # Photos are resized once, since they are many times larger than their crops need.
        self.open = lru_cache(maxsize=PICTURES)(lambda i: resized(images.open(i), side))

    def _view(self, i, epoch):
        """Return (i, the number of its view in `epoch`); 0 if the image has a single view."""
        if (i, 0) in self.known:
            return i, 0
        width, height = self.open(i).size
        if self.options.crop == "center" or width == height:
            return i, 0
        return i, 1 + (epoch % self.options.crops if self.options.crops else epoch)

    def at(self, rows: Sequence[int], epoch: int) -> Tensor:
        """Return the moments (len(rows), 2, C, h, w) of some images in `epoch`.

        A random crop depends only on the seed, the image and the view's number.
        """
        views = [self._view(i, epoch) for i in rows]
        new = [view for view in views if view not in self.known]
        if new:
            images = []
            with forked_rng():
                for view in new:
                    torch.manual_seed(seed_for(self.seed, "crop", *view))
                    images.append(generator_image(self.open(view[0]), self.side, self.options.crop))
            moments = self.generator.moments(torch.stack(images))
            self.known |= dict(zip(new, moments, strict=True))
        moments = torch.stack([self.known[view] for view in views])
        for view in new:  # unrepeated crops are not kept
            if view[1] and not self.options.crops:
                del self.known[view]
        return moments
