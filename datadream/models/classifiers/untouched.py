"""Run the untouched classifier on images in memory: classes, probabilities, features."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ...data.images import Images
from ...data.transforms import BATCH, evaluation_batches, scaled
from ...training.batch_size import BatchSize
from .base import load_classifier


class Untouched:
    """A classifier before any training, applied to PIL images.

    Called with images, it returns their classes. Batches that do not fit in memory are halved.
    """

    def __init__(self, name: str, prompts: Iterable[str], precision: str = "auto") -> None:
        self.model: Any = load_classifier(name, precision=precision).eval()
        with torch.no_grad():
            self.text = self.model.text(self.model.prompts(prompts))

    def __call__(self, images: Sequence[Image]) -> list[int]:
        """Return the class of each image."""
        return self._scores(images).argmax(1).tolist()

    def probabilities(self, images: Sequence[Image]) -> np.ndarray:
        """Return the probability of each class for each image, (n, classes)."""
        return self._scores(images).softmax(1).numpy()

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """Return the unit-length features (n, D) of the images."""
        return self._each(images, self.model.image).numpy()

    def _scores(self, images):
        return self._each(images, lambda views: self.model.score(views, self.text))

    @torch.no_grad()
    def _each(self, images: Sequence[Image], of: Callable[[torch.Tensor], torch.Tensor]):
        pixels = Images(tuple(np.asarray(image) for image in images), (0,) * len(images))
        views, device = evaluation_batches(pixels, self.model.size), self.text.device
        found = BatchSize(BATCH).each(views, lambda part: of(scaled(part, device)).cpu())
        return torch.cat(list(found))
