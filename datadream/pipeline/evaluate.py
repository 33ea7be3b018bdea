"""Evaluate a classifier on validation and test images (paper, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import progress
from ..data.datasets import prompt, validation_images
from ..data.images import Images, fingerprint
from ..data.transforms import BATCH, evaluation_batches, validation_batches
from ..methods.base import Support
from ..methods.heads import load_trained
from ..models.classifiers.base import load_classifier
from ..models.device import dtype_for
from ..models.identity import identity
from ..statistics import confusion, wilson
from ..store.files import write_json
from ..training.batch_size import BatchSize

if TYPE_CHECKING:
    from ..data.datasets import Dataset


def _read(model, part, text, count):
    """Return the classes of the first `count` images of a batch."""
    return model.score(part[:count].to(text.device).float() / 255, text).argmax(1).tolist()


@torch.no_grad()
def predict(
    model: Any, tokens: torch.Tensor, batches: Iterable[torch.Tensor],
    counted: Callable[[int], None] = lambda number: None,
) -> np.ndarray:  # fmt: skip
    """Return the predicted class of each image, an int array (n,).

    `batches` are uint8 (B, 3, S, S); those that do not fit in memory are halved. `counted` is
    called with the number of images of each.
    """
    model.eval()
    text, size, found = model.text(tokens), BatchSize(BATCH), []
    for part in batches:
        while len(part):
            predicted = size.run(partial(_read, model, part, text), len(part))
            found += predicted
            part = part[len(predicted) :]
            counted(len(predicted))
    return np.asarray(found, int)


def accuracy(
    model: Any, dataset: Dataset, images: Images,
    views: Callable[..., Iterable[torch.Tensor]] = evaluation_batches,
    counted: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:  # fmt: skip
    """Return top-1, its 95 % Wilson interval, the accuracy per class and the confusion matrix.

    Accuracies are in [0, 1], over all `images` as preprocessed by `views`.
    """
    tokens = model.prompts(prompt(dataset.noun, name) for name in dataset.classes)
    predictions = predict(model, tokens, views(images, model.size), counted)
    matrix = confusion(images.labels, predictions, len(dataset.classes))
    correct, total = int(matrix.trace()), int(matrix.sum())
    low, high = wilson(correct, total)
    per_class = (matrix.diagonal() / np.maximum(matrix.sum(1), 1)).round(4).tolist()
    return {
        "top1": correct / total, "low": low, "high": high, "total": total,
        "per_class": per_class, "confusion": matrix.tolist(),
    }  # fmt: skip


def evaluate_inputs(support: Support, trained_key: str | None) -> dict[str, Any]:
    """Return what a result depends on; `trained_key` is None for the untouched classifier."""
    recipe, dataset = support.recipe, support.dataset
    return {
        "trained": trained_key or identity(recipe.classifier, "clip"),
        "precision": str(dtype_for(recipe.precision, training=True)),
        "test": fingerprint(dataset.test),
        "val": fingerprint(validation_images(recipe, dataset)),
        "prompts": support.class_prompts(),
    }


def validated(support: Support) -> int:
    """Count the images of `validation_images` without drawing them."""
    recipe, val = support.recipe, support.dataset.val
    if not recipe.validation or recipe.protocol == "released":
        return len(val)
    return min(recipe.shots or recipe.validation, recipe.validation) * len(support.classes)


def evaluation_work(support: Support) -> tuple[int, int, int]:
    """Return (images made, optimiser steps, images that are classified)."""
    return 0, 0, validated(support) + len(support.dataset.test)


def evaluate(support: Support, trained: Path | None, folder: Path) -> None:
    """Write result.json = {'val': ..., 'test': ...}, each as `accuracy` gives it, into `folder`.

    `trained` is the folder of `train`, or None for the untouched classifier.
    """
    recipe, dataset = support.recipe, support.dataset
    if trained:
        model = load_trained(trained)[0]
    else:
        model = load_classifier(recipe.classifier, precision=recipe.precision)
    seen = validation_images(recipe, dataset)
    with progress.track("judge", "image", len(seen) + len(dataset.test)) as counter:
        # Cached, if this process has just trained.
        validation = accuracy(model, dataset, seen, validation_batches, counter.update)
        test = accuracy(model, dataset, dataset.test, counted=counter.update)
    write_json(folder / "result.json", {"val": validation, "test": test})
