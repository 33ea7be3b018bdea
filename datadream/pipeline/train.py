"""LoRA-tune CLIP on synthetic and real images (paper, section 3.4)."""

import dataclasses
import json
import math

import numpy as np
import torch
import torch.nn.functional as F

from ..data.batches import Batches
from ..data.datasets import few_shots, prompt, validation_images
from ..data.images import fingerprint
from ..data.transforms import validation_batches
from ..errors import ConfigError, DataError
from ..methods.registry import method_of
from ..models.classifiers.base import load_classifier, save_classifier_lora
from ..models.device import dtype_for
from ..models.identity import identity
from ..seeds import seed_for
from ..store.files import write_json
from ..store.keys import key
from ..training.batch_size import BatchSize
from ..training.checkpoint import load_state, save_state
from ..training.loop import fit
from .evaluate import predict


def mixed_loss(logits, targets, real, weight):
    """Return weight * CE(real) + (1 - weight) * CE(synthetic) (paper, eq. 3), for soft targets (B,
    C) and a mask (B,).

    A batch that holds one kind only gives that kind's mean, so that no weight is lost and no NaN
    appears.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    if real.all() or not real.any():
        return losses.mean()
    return weight * losses[real].mean() + (1 - weight) * losses[~real].mean()


def loss_parts(model, tokens, images, targets, real, weight, size):
    """Yield the `mixed_loss` of a batch in parts of `size` images, whose graphs need not be held
    together.

    They sum to it but for rounding, other draws of the dropout, and in a ResNet the statistics of
    its batches.
    """
    if size >= len(images):
        yield mixed_loss(model(images, tokens), targets, real, weight)
        return
    shares = torch.full((len(real),), 1 / len(real), device=real.device)
    if real.any() and not real.all():
        shares = torch.where(real, weight / real.sum(), (1 - weight) / (~real).sum())
    for rows in torch.arange(len(images), device=images.device).split(size):
        yield (
            shares[rows]
            * F.cross_entropy(model(images[rows], tokens), targets[rows], reduction="none")
        ).sum()


def optimiser_steps(recipe, classes):
    """Return (steps, those of them that warm up) of one training, the same for every method:
    epochs over images * classes.
    """
    options = recipe.classify
    per_epoch = math.ceil(recipe.generate.images * classes / options.batch)
    steps = options.steps or options.epochs * per_epoch
    return steps, round(steps * options.warmup / options.epochs)


def train_inputs(recipe, dataset, synthetic_key):
    """Return what a trained classifier depends on; `synthetic_key` is None where the method uses
    no synthetic images.
    """
    steps, warmup = optimiser_steps(recipe, len(dataset.classes))
    chosen = (
        {"select": "validation", "evaluations": recipe.classify.epochs}
        if recipe.protocol == "released"
        else {}
    )
    # The steps say it.
    options = {
        k: v
        for k, v in dataclasses.asdict(recipe.classify).items()
        if k not in ("epochs", "warmup", "steps")
    } | chosen
    if not (method_of(recipe).real and synthetic_key):  # lambda weighs two kinds against each other
        options["real_weight"] = None
    return {
        "classifier": identity(recipe.classifier, "clip"),
        "precision": str(dtype_for(recipe.precision, training=True)),
        "classify": options,
        "prompts": [prompt(dataset.noun, name) for name in dataset.classes],
        "steps": steps,
        "warmup": warmup,
        "seed": recipe.seed,
        "val": fingerprint(validation_images(recipe, dataset)),
        "synthetic": synthetic_key,
        "shots": fingerprint(few_shots(dataset, recipe.shots, recipe.seed))
        if method_of(recipe).real
        else None,
    }


def train(recipe, dataset, real, synthetic, synthetic_key, store):
    """Return the artifact folder of a trained classifier: adapter.safetensors, adapter.json and
    curve.json.

    `real` and `synthetic` are Images or None. The folder's curve holds validation accuracy and
    training loss by step.
    """
    inputs = train_inputs(recipe, dataset, synthetic_key)
    options = dataclasses.replace(
        recipe.classify, **{k: inputs["classify"][k] for k in ("select", "evaluations")}
    )
    if recipe.classify.select == "validation" and dataset.val is dataset.train:
        raise ConfigError(
            "classify.select='validation' would choose the epoch on the training images, since "
            "with fold or test_folder no others are set aside; give classify.select='last'"
        )
    texts, size = inputs["prompts"], BatchSize(options.batch)

    def build(folder):
        torch.manual_seed(seed_for("classifier", recipe.seed))
        model = load_classifier(recipe.classifier, len(texts), recipe.precision)
        parameters = model.attach(options)
        seed = seed_for("batches", recipe.seed)
        batches = Batches(real, synthetic, options, len(texts), model.size, seed, model.mean.device)
        val, seed = validation_images(recipe, dataset), seed_for("train", recipe.seed)
        length = inputs["steps"], inputs["warmup"]
        optimise(model, parameters, batches, texts, val, options, *length, folder, seed, size)
        config = {
            **{name: getattr(recipe, name) for name in ("classifier", "precision")},
            **{name: getattr(options, name) for name in ("rank", "alpha", "dropout")},
            "classes": list(dataset.classes), "prompts": texts,
        }  # fmt: skip
        save_classifier_lora(model, folder, config)

    return store.make(key("train", **inputs), inputs, build, batches=size.notes)


def _curve(folder, *states):
    """Return the curve's rows by step that a killed training left in its folder; where they are
    damaged its `states` go too, to begin anew.
    """
    file = folder / "curve.json"
    try:
        return {row["step"]: row for row in json.loads(file.read_text())}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError):
        for other in (file, *states):
            other.unlink(missing_ok=True)
        return {}


def optimise(model, parameters, batches, texts, val, options, steps, warmup, folder, seed, size):
    """Train in place; the validation images `val` draw the curve and, only if `select` says so,
    choose the weights that are kept.

    `size` is a BatchSize: a step that does not fit into memory is done again in halves, as its
    notes say.
    """
    tokens, views = model.prompts(texts), validation_batches(val, model.size)
    labels, best, checkpoint = (
        np.asarray(val.labels),
        folder / "best.safetensors",
        folder / "checkpoint.safetensors",
    )
    points = {round(steps * (i + 1) / options.evaluations) - 1 for i in range(options.evaluations)}
    curve = _curve(folder, best, checkpoint)

    def loss_at(step):
        model.train()
        images, targets, real = batches.at(step)
        return loss_parts(model, tokens, images, targets, real, options.real_weight, size.size)

    def after(step, loss):
        if step not in points:
            return
        accuracy = float((predict(model, tokens, views) == labels).mean())
        earlier = [row["val"] for s, row in curve.items() if s < step + 1]
        if options.select == "validation" and accuracy > max(earlier, default=-1.0):
            save_state(best, model.state(), step + 1)
        curve[step + 1] = {"step": step + 1, "val": accuracy, "loss": loss}
        write_json(folder / "curve.json", sorted(curve.values(), key=lambda row: row["step"]))

    fit(
        parameters,
        loss_at,
        steps=steps,
        lr=options.lr,
        warmup=warmup,
        minimum_lr=options.minimum_lr,
        weight_decay=options.weight_decay,
        seed=seed,
        checkpoint=checkpoint,
        after=after,
        buffers=model.state(),
        halve=size.halve,
        description="train classifier",
    )
    if best.exists():
        _take(model, best, checkpoint)
    for file in (best, checkpoint):
        file.unlink(missing_ok=True)


def _take(model, best, checkpoint):
    """Give the model the weights of the file `best`. Raises DataError, and lets the next run
    begin anew, if it is damaged.
    """
    state = load_state(best)
    if state is None:
        checkpoint.unlink(missing_ok=True)
        raise DataError(
            f"{best}, the weights that validation chose, is damaged and was removed; run again, "
            "and the training begins anew"
        )
    with torch.no_grad():
        for name, value in state[0].items():
            model.state()[name].copy_(value)
