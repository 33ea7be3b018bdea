"""Draw a class that looks similar to the untouched CLIP, as in DIPSY."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..data.images import fingerprint
from ..errors import ConfigError
from ..models.identity import identity
from .base import Draw, Method, Support

TEMPERATURE = 0.4  # of the softmax over cosines (DIPSY's code)


class Similar(Method):
    """A method that pairs each image with another class, preferring those that look similar.

    A subclass sets `derived` if its draws follow from the pairs: its key then holds what these
    depend on, and a plan needs no CLIP.
    """

    asks: ClassVar[str] = "the untouched classifier, for classes that look alike"

    def other(self, support: Support, label: int, rng: np.random.Generator) -> int:
        """Return a class other than `label`."""
        return int(rng.choice(len(support.classes), p=pairs(support)[label]))

    def key(self, support: Support, draws: Callable[[int], list[Draw]]) -> dict[str, Any]:
        """Return what the pairs depend on, and the method's `version`."""
        own = {
            "classifier": identity(support.recipe.classifier, "clip"),
            "shots": fingerprint(support.shots()),
            "version": self.version,
        }
        return {**super().key(support, draws), "similar": own}


def probabilities(means: np.ndarray) -> np.ndarray:
    """Return the probability that each class (row) is paired with each other one (column).

    A row is softmax(cosine / TEMPERATURE) of the `means` (classes, D), without the class itself.
    """
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    shares = np.exp(unit @ unit.T / TEMPERATURE)
    np.fill_diagonal(shares, 0)
    return shares / shares.sum(1, keepdims=True)


@lru_cache(maxsize=8)
def pairs(support: Support) -> np.ndarray:
    """Return the `probabilities` of a recipe's classes.

    The means are those of the few shots' raw image features. They are computed in float32, so that
    the draws are the same on every device. Raises DataError if there is only one class, and
    ConfigError if the classifier starts from random weights.
    """
    from ..models.classifiers.frozen import Frozen, frozen_clip

    support.others(0)
    recipe = support.recipe
    if recipe.classifier == "resnet50":
        raise ConfigError(
            f"method {recipe.method!r} asks the untouched classifier which classes look alike, and "
            "classifier='resnet50' starts from random weights; give a CLIP as the classifier"
        )
    frozen = Frozen(frozen_clip(recipe.classifier, "float32"), support.class_prompts())
    labels = range(len(support.classes))
    means = [frozen.features(support.shots(label)).double().mean(0) for label in labels]
    return probabilities(np.stack([mean.cpu().numpy() for mean in means]))
