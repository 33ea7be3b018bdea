"""Prepare a method's addition to the classifier's loss (`Method.loss`), and call it for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.datasets import validation_images
from ..data.images import Images
from ..errors import ConfigError, brief
from ..models.classifiers.frozen import Frozen, frozen_clip
from .base import ExtraLoss, Given, Method, Support
from .checked import naming
from .heads import joined
from .registry import method_of

# (`Batches.members`, logits, targets, real mask) of a batch -> the term to add to its loss
Added = Callable[[Sequence[tuple[bool, int]], Tensor, Tensor, Tensor], Tensor]
WHOLE = (
    "the method's loss may compare all images of a step, so that it is not taken in parts; lower "
    "classify.batch"
)


def loss_key(support: Support) -> dict[str, Any]:
    """Return what the method's loss adds to the classifier's key; {} if it has none."""
    method = method_of(support.recipe)
    if method.loss is None:
        return {}
    with naming(method, "loss.key"):
        return _loss_of(method).key()


def require_loss(support: Support) -> None:
    """Raise ConfigError if the recipe's settings rule out the method's loss."""
    method, recipe = method_of(support.recipe), support.recipe
    if method.loss is None:
        return
    if recipe.classifier == "resnet50":
        raise ConfigError(
            f"method {method.name!r} prepares its loss with the untouched CLIP, and "
            "classifier='resnet50' starts from random weights; give an open_clip model"
        )
    with naming(method, "loss.require"):
        _loss_of(method).require(support)


def extra_loss(
    support: Support, real: Images | None, synthetic: Images | None, folder: Path
) -> Added | None:
    """Prepare the method's loss and return the function that gives a batch's term, if it has one.

    `folder` is the one that the classifier is trained in.
    """
    method, recipe = method_of(support.recipe), support.recipe
    if method.loss is None:
        return None
    loss, images = _loss_of(method), joined(real, synthetic)
    frozen = Frozen(frozen_clip(recipe.classifier, recipe.precision), support.class_prompts())
    val = validation_images(recipe, support.dataset)
    with naming(method, "loss.prepare"):
        kept = loss.prepare(Given(support, frozen, images, val, folder))
    if not isinstance(kept, Tensor) or len(kept) != len(images):
        raise ConfigError(
            f"method {method.name!r}: its loss's `prepare` gives {brief(kept)}; return a tensor "
            f"with a row for each of the {len(images)} images"
        )
    kept, first = kept.cpu(), {True: 0, False: len(real or ())}

    def added(
        members: Sequence[tuple[bool, int]], logits: Tensor, targets: Tensor, real: Tensor
    ) -> Tensor:
        rows = [first[kind] + position for kind, position in members]
        return loss.added(logits, targets, real, kept[rows])

    return added


def _loss_of(method: Method) -> ExtraLoss:
    if not isinstance(method.loss, ExtraLoss):
        raise ConfigError(
            f"loss={brief(method.loss)} of method {method.name!r} is a "
            f"{type(method.loss).__name__}; give an instance of a class derived from "
            "datadream.methods.base.ExtraLoss"
        )
    return method.loss
