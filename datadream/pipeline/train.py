"""LoRA-tune CLIP on synthetic and real images (paper, section 3.4)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Classify, Recipe, key_fields, require_warmup
from ..data.batches import Batches
from ..data.datasets import validation_images
from ..data.images import Images
from ..data.transfer import places
from ..data.transforms import validation_batches
from ..errors import ConfigError
from ..methods.base import Support
from ..methods.heads import seen_inputs
from ..methods.losses import WHOLE, Added, extra_loss, loss_key, require_loss
from ..methods.registry import method_of
from ..models.classifiers.base import load_classifier, require_adaptable, save_classifier_lora
from ..models.classifiers.lora import LORA
from ..seeds import seed_for
from ..training.batch_size import BatchSize
from ..training.curve import Curve
from ..training.loop import Shares, fit
from .evaluate import predict


def mixed_loss(
    logits: Tensor, targets: Tensor, real: Tensor, weight: float, batch: Tensor | None = None
) -> Tensor:
    """Return weight * CE(real) + (1 - weight) * CE(synthetic), means over each kind (paper, eq. 3).

    `targets` (B, C) are soft; `real` (B,) is a mask on the host. A batch of one kind gives its
    mean. With `batch`, the whole batch's mask, returns a micro-batch's share; they sum to the loss.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    whole = real if batch is None else batch
    count, (own, others) = int(whole.sum()), places([real, ~real], losses.device)
    if count in (0, len(whole)):
        return losses.sum() / len(whole)
    real_part = losses[own].sum() / count
    return weight * real_part + (1 - weight) * (losses[others].sum() / (len(whole) - count))


def optimiser_steps(recipe: Recipe, classes: int) -> tuple[int, int]:
    """Return (steps, warm-up steps); for every method an epoch is as long as a synthetic set."""
    options = recipe.classify
    per_epoch = math.ceil(recipe.generate.images * classes / options.batch)
    steps = options.steps or options.epochs * per_epoch
    return steps, round(steps * options.warmup / options.epochs)


def training_work(support: Support) -> tuple[int, int, int]:
    """Return (images made, optimiser steps, images over all steps)."""
    steps = optimiser_steps(support.recipe, len(support.classes))[0]
    return 0, steps, steps * support.recipe.classify.batch


def train_inputs(support: Support, synthetic_key: str | None) -> dict[str, Any]:
    """Return what a trained classifier depends on; `synthetic_key` None: no synthetic images.

    Raises ConfigError if the warm-up is longer than the training.
    """
    recipe, real = support.recipe, method_of(support.recipe).real
    require_warmup("classify.warmup", recipe.classify.warmup, recipe.classify.epochs, "epochs")
    steps, warmup = optimiser_steps(recipe, len(support.classes))
    options = key_fields(recipe.classify)
    for name in ("epochs", "warmup", "steps"):  # `steps` and `warmup` below stand for them
        options.pop(name)
    if recipe.protocol == "released":
        options |= {"select": "validation", "evaluations": recipe.classify.epochs}
    if not (real and synthetic_key):  # lambda only matters with both kinds of images
        options["real_weight"] = None
    own = {"classify": options, "steps": steps, "warmup": warmup}
    return {**seen_inputs(support, synthetic_key), **own, **loss_key(support)}


def require_trainable(support: Support) -> None:
    """Raise ConfigError if training cannot run, or would choose its epoch on training images."""
    recipe, dataset = support.recipe, support.dataset
    require_adaptable(recipe.classifier)
    require_loss(support)
    if recipe.classify.select == "validation" and dataset.val is dataset.train:
        raise ConfigError(
            "classify.select='validation' would choose the epoch on the training images, since "
            "with fold or test_folder no others are set aside; give classify.select='last'"
        )


def train(
    support: Support,
    inputs: dict[str, Any],
    real: Images | None,
    synthetic: Images | None,
    folder: Path,
) -> list[str]:
    """Train a classifier and return notes on its batches.

    Writes adapter.safetensors, adapter.json and curve.json (validation accuracy and training loss
    by step) to `folder`. `inputs` are those of `train_inputs`.
    """
    recipe, texts = support.recipe, inputs["prompts"]
    chosen = {name: inputs["classify"][name] for name in ("select", "evaluations")}
    options, size = dataclasses.replace(recipe.classify, **chosen), BatchSize(recipe.classify.batch)
    more = extra_loss(support, real, synthetic, folder)
    torch.manual_seed(seed_for("classifier", recipe.seed))
    model = load_classifier(recipe.classifier, len(texts), recipe.precision)
    parameters, seed = model.attach(options), seed_for("batches", recipe.seed)
    batches = Batches(real, synthetic, options, len(texts), model.size, seed, model.mean.device)
    val, seed = validation_images(recipe, support.dataset), seed_for("train", recipe.seed)
    length = inputs["steps"], inputs["warmup"]
    optimise(model, parameters, batches, texts, val, options, *length, folder, seed, size, more)
    config = {
        **{name: getattr(recipe, name) for name in ("classifier", "precision")},
        **{name: value for name, value in key_fields(options).items() if name in LORA},
        "classes": list(support.classes), "prompts": texts,
    }  # fmt: skip
    save_classifier_lora(model, folder, config)
    return size.notes


def optimise(
    model: Any, parameters: dict[str, torch.nn.Parameter], batches: Batches, texts: list[str],
    val: Images, options: Classify, steps: int, warmup: int, folder: Path, seed: int,
    size: BatchSize, more: Added | None = None,
) -> None:  # fmt: skip
    """Train a classifier in place; `more` is what the method adds to the loss.

    `val` gives the validation curve; it selects the weights only if `options.select` says so.
    """
    tokens, views = model.prompts(texts), validation_batches(val, model.size)
    labels, checkpoint = np.asarray(val.labels), folder / "checkpoint.safetensors"
    points = {round(steps * (i + 1) / options.evaluations) - 1 for i in range(options.evaluations)}
    curve = Curve(folder, checkpoint)

    def loss_at(step: int) -> Shares:
        model.train()
        images, targets, real = batches.at(step)

        def share(rows: Any) -> Tensor:
            logits = model(images[rows], tokens)
            loss = mixed_loss(logits, targets[rows], real[rows], options.real_weight, real)
            return loss + more(batches.members(step), logits, targets, real) if more else loss

        return Shares(len(images), share, WHOLE if more else "")

    def after(step: int, loss: float) -> None:
        accuracy = float((predict(model, tokens, views) == labels).mean())
        if options.select == "validation" and curve.is_best(step + 1, accuracy):
            curve.keep(step + 1, model.state())
        curve.add(step + 1, accuracy, loss)

    fit(
        parameters, loss_at, steps=steps, lr=options.lr, warmup=warmup,
        minimum_lr=options.minimum_lr, weight_decay=options.weight_decay, seed=seed,
        checkpoint=checkpoint, after=after, points=points, buffers=model.state(), batch=size,
        description="train classifier",
    )  # fmt: skip
    curve.restore_best(model.state())
