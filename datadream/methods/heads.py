"""Fit a method's head on the features of a frozen CLIP (`Method.head`), and load it again.

The functions for the stages have the names and arguments of those in `pipeline.train`, which tunes
LoRA; the table of stages uses one module or the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import validation_images
from ..data.images import Images, fingerprint
from ..errors import ConfigError, brief
from ..models.classifiers.base import load_classifier_lora, save_state_file
from ..models.classifiers.frozen import Frozen, Headed, frozen_clip
from ..models.device import device, dtype_for
from ..models.identity import identity
from ..store.files import write_json
from ..training.loop import DivergedError
from .base import Given, Head, Support
from .checked import naming
from .registry import METHODS, method_of


def seen_inputs(support: Support, synthetic_key: str | None) -> dict[str, Any]:
    """Return what every trained classifier depends on: model, prompts, seed and images.

    `synthetic_key` None: no synthetic images.
    """
    recipe, real = support.recipe, method_of(support.recipe).real
    return {
        "classifier": identity(recipe.classifier, "clip"),
        "precision": str(dtype_for(recipe.precision, training=True)),
        "prompts": support.class_prompts(),
        "seed": recipe.seed,
        "val": fingerprint(validation_images(recipe, support.dataset)),
        "synthetic": synthetic_key,
        "shots": fingerprint(support.shots()) if real else None,
    }


def head_of(name: str) -> Head:
    """Return the head of a method. Raises ConfigError if it is unknown or has none."""
    head = METHODS.find(name).head
    if not isinstance(head, Head):
        raise ConfigError(
            f"head={brief(head)} of method {name!r} is a {type(head).__name__}; give an instance "
            "of a class derived from datadream.methods.base.Head"
        )
    return head


def train_inputs(support: Support, synthetic_key: str | None) -> dict[str, Any]:
    """Return what a fitted head depends on; `synthetic_key` None: no synthetic images."""
    method = method_of(support.recipe)
    with naming(method, "head.key"):
        own = head_of(method.name).key(support)
    return {**seen_inputs(support, synthetic_key), **own}


def training_work(support: Support) -> tuple[int, int, int]:
    """Return (images made, optimiser steps, images that pass through CLIP)."""
    recipe, method = support.recipe, method_of(support.recipe)
    made = recipe.generate.images * len(support.classes) if method.generates else 0
    count = made + (support.count() if method.real else 0)
    with naming(method, "head.work"):
        return 0, *head_of(method.name).work(support, count)


def require_trainable(support: Support) -> None:
    """Raise ConfigError if there is no frozen CLIP, or no separate images to choose settings on."""
    recipe, dataset = support.recipe, support.dataset
    if recipe.classifier == "resnet50":
        raise ConfigError(
            f"method {recipe.method!r} fits a head on the features of a frozen CLIP, and "
            "classifier='resnet50' starts from random weights; give an open_clip model"
        )
    if not head_of(recipe.method).chooses(support):
        return
    if recipe.protocol == "released":
        raise ConfigError(
            f"method {recipe.method!r} would choose on the test images, which protocol='released' "
            "has in place of validation; give protocol='strict'"
        )
    if dataset.val is dataset.train:
        raise ConfigError(
            f"method {recipe.method!r} chooses on validation images, and with fold or test_folder "
            "none are set aside; give neither, or choose another method"
        )


def train(
    support: Support,
    inputs: dict[str, Any],
    real: Images | None,
    synthetic: Images | None,
    folder: Path,
) -> list[str]:
    """Fit the method's head; returns no notes.

    Writes adapter.safetensors (the fitted tensors), adapter.json (which names the method) and
    curve.json to `folder`. `inputs` are those of `train_inputs`.
    """
    recipe = support.recipe
    model = frozen_clip(recipe.classifier, recipe.precision)
    frozen, val = Frozen(model, inputs["prompts"]), validation_images(recipe, support.dataset)
    given = Given(support, frozen, joined(real, synthetic), val, folder)
    state = head_of(recipe.method).fit(given)
    _require_state(recipe.method, state)
    config = {
        **{name: getattr(recipe, name) for name in ("classifier", "precision")},
        "head": recipe.method, "classes": list(support.classes), "prompts": inputs["prompts"],
    }  # fmt: skip
    if not (folder / "curve.json").exists():
        write_json(folder / "curve.json", [])
    save_state_file(state, folder, config)
    given.checkpoint.unlink(missing_ok=True)
    return []


def joined(*sets: Images | None) -> Images:
    """Concatenate sets of images in order, without their soft labels."""
    some = [images for images in sets if images is not None]
    sources = tuple(source for images in some for source in images.sources)
    return Images(sources, tuple(label for images in some for label in images.labels))


def _require_state(name: str, state: Any) -> None:
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"method {name!r}: its head's `fit` gives no dict of tensors")
    wrong = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if wrong:
        raise DivergedError(f"method {name!r}: {wrong[0]!r} of its head has NaN or infinite values")


def load_trained(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Load the classifier that a training wrote to a folder, LoRA or head: (classifier, config).

    A head needs the method that fitted it, which must be known here. Raises ConfigError if it is
    not, and what `load_classifier_lora` raises.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "adapter.json").read_text())
    if "head" not in config:
        return load_classifier_lora(folder)
    model = frozen_clip(config["classifier"], config["precision"])
    state = load_file(Path(folder) / "adapter.safetensors", device=str(device()))
    return Headed(model, state, head_of(config["head"]).logits).eval(), config
