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
from ..data.predictions import Predictions, write_predictions
from ..data.transforms import BATCH, evaluation_batches, scaled, validation_batches
from ..methods.base import Support
from ..methods.heads import load_trained
from ..models.classifiers.base import load_classifier
from ..models.device import dtype_for
from ..models.identity import identity
from ..statistics import scores
from ..store.files import write_json
from ..training.batch_size import BatchSize

if TYPE_CHECKING:
    from ..data.datasets import Dataset


def _read(model, text, part):
    """Return (class, margin to the runner-up's logit) of each image in a part of a batch."""
    logits = model.score(scaled(part, text.device), text)
    best = logits.topk(min(2, logits.shape[1])).values
    return list(zip(logits.argmax(1).tolist(), (best[:, 0] - best[:, -1]).tolist(), strict=True))


def predict(model: Any, tokens: torch.Tensor, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Return the predicted class of each image, an int array (n,)."""
    return predict_with_margins(model, tokens, batches)[0]


@torch.no_grad()
def predict_with_margins(
    model: Any, tokens: torch.Tensor, batches: Iterable[torch.Tensor],
    counted: Callable[[int], None] = lambda number: None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return each image's predicted class and its margin to the runner-up's logit, (n,) each.

    `batches` are uint8 (B, 3, S, S); those that do not fit in memory are halved. `counted` is
    called with the number of images after each.
    """
    model.eval()
    text, found = model.text(tokens), []
    for predicted in BatchSize(BATCH).each(batches, partial(_read, model, text)):
        found += predicted
        counted(len(predicted))
    return np.array([one for one, _ in found], int), np.array([sure for _, sure in found], float)


def judge(
    model: Any, dataset: Dataset, images: Images,
    views: Callable[..., Iterable[torch.Tensor]] = evaluation_batches,
    counted: Callable[[int], None] = lambda number: None,
) -> Predictions:  # fmt: skip
    """Return the classifier's predictions on `images`, preprocessed by `views`."""
    tokens = model.prompts(prompt(dataset.noun, name) for name in dataset.classes)
    found = predict_with_margins(model, tokens, views(images, model.size), counted)
    return Predictions(np.asarray(images.labels, int), *found)


def accuracy(model: Any, dataset: Dataset, images: Images) -> dict[str, Any]:
    """Return `statistics.scores` of a classifier on `images`."""
    found = judge(model, dataset, images)
    return scores(found.labels, found.classes, len(dataset.classes))


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
    """Return (images made, optimiser steps, images classified)."""
    return 0, 0, validated(support) + len(support.dataset.test)


def evaluate(support: Support, trained: Path | None, folder: Path) -> None:
    """Write result.json = {'val': `scores`, 'test': `scores`} and the predictions to `folder`.

    `trained` is the folder that `train` wrote, or None for the untouched classifier.
    """
    recipe, dataset = support.recipe, support.dataset
    if trained:
        model = load_trained(trained)[0]
    else:
        model = load_classifier(recipe.classifier, precision=recipe.precision)
    seen = validation_images(recipe, dataset)
    with progress.track("judge", "image", len(seen) + len(dataset.test)) as counter:
        # Cached if this process has just trained.
        val = judge(model, dataset, seen, validation_batches, counter.update)
        found = {"val": val, "test": judge(model, dataset, dataset.test, counted=counter.update)}
    write_predictions(folder, found)
    result = {n: scores(one.labels, one.classes, len(dataset.classes)) for n, one in found.items()}
    write_json(folder / "result.json", result)
