"""What each generator of the comparison samples a class with: prompts, adapters, seeds, and who
draws again what is misread.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from ..config import Recipe, require_warmup
from ..data.datasets import Dataset, prompt
from ..data.images import Images
from ..data.transforms import evaluation_batches
from ..errors import ConfigError, DataError, brief, printable
from ..methods.base import Adapter, Draw, Method, Support
from ..methods.registry import method_of
from ..models.classifiers.base import load_classifier
from ..seeds import seed_for
from .evaluate import predict

SLICE = 100  # images of a unit of work: some minutes at the paper's scale


def image_seed(seed, label, index, *again):
    """Return the seed of image `index` of class `label`: it depends on nothing else, so neither
    batch size nor order matters.
    """
    return seed_for("image", seed, label, index, *again)


@lru_cache(maxsize=64)
def draws(recipe: Recipe, dataset: Dataset, label: int) -> tuple[Draw, ...]:
    """Return how each image of a class is made, as the recipe's method says.

    Raises ConfigError, which names the method, on what it gives that cannot be made and on
    whatever it raises.
    """
    method, support = method_of(recipe), Support(recipe, dataset)
    known, found = set(adapters(recipe, dataset)), []
    for index in range(recipe.generate.images):
        rng = np.random.default_rng(seed_for("draw", recipe.seed, label, index))
        with naming(method, f"draw, class {label}, image {index}"):
            one = method.draw(support, label, index, rng)
        _require(method, support, label, index, one, known)
        found.append(one)
    return tuple(found)


@contextmanager
def naming(method: Method, where: str) -> Iterator[None]:
    """Turn whatever a method raises into a ConfigError that names it; our own errors stay."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise ConfigError(
            f"method {method.name!r} ({type(method).__module__}.{type(method).__qualname__}) "
            f"failed in {where}: {type(error).__name__}: {error}"
        ) from error


def _require(method, support, label, index, one, known):
    """Raise ConfigError on a draw that cannot be made."""
    where = f"method {method.name!r}, draw of class {label}, image {index}:"
    if not isinstance(one, Draw):
        raise ConfigError(f"{where} {brief(one)} is a {type(one).__name__}; return a Draw")
    if not isinstance(one.prompt, str) or not one.prompt or not printable(one.prompt):
        raise ConfigError(f"{where} prompt={brief(one.prompt)}; give printable text")
    strange = [adapter for adapter in one.adapters if adapter not in known]
    if strange:
        raise ConfigError(
            f"{where} {strange[0]} is none of the {len(known)} adapters that its `adapters` names"
        )
    if one.start is None:
        return
    if not support.recipe.generate.strength:
        raise ConfigError(
            f"{where} start={one.start}, but generate.strength=0 starts from noise; set it in the "
            "method's settings"
        )
    count = support.count(label)
    if type(one.start) is not int or not 0 <= one.start < count:
        raise ConfigError(
            f"{where} start={brief(one.start)}; give the place of a few shot, 0 to {count - 1}"
        )


def groups(recipe: Recipe, dataset: Dataset, label: int) -> list[tuple[range, tuple[Adapter, ...]]]:
    """Return (range of image indices, their adapters) of one class: images that follow each other
    and are made with the same adapters, from noise or from shots, can share a batch.
    """
    method, count = method_of(recipe), recipe.generate.images
    if type(method).draw is Method.draw:  # no need to draw all that a cluster is to share out
        support, noise = Support(recipe, dataset), not recipe.generate.strength
        made = [(method.used(support, label, index), noise) for index in range(count)]
    else:
        made = [(one.adapters, one.start is None) for one in draws(recipe, dataset, label)]
    most = method.together or count
    alike = [(*one, index // most) for index, one in enumerate(made)]
    found, start = [], 0
    for (own, _, _), some in groupby(alike):
        stop = start + len(list(some))
        found.append((range(start, stop), own))
        start = stop
    return found


def slices(recipe, dataset, label):
    """Return the groups of one class in parts of about SLICE images, each a unit of work for a
    machine.

    A part ends with a batch, so that a batch has the same members however the parts are shared out.
    """
    step, found = (
        recipe.generate.batch * max(1, SLICE // max(1, recipe.generate.batch)) or SLICE,
        [],
    )
    parts = [
        (range(start, min(start + step, indices.stop)), own)
        for indices, own in groups(recipe, dataset, label)
        for start in range(indices.start, indices.stop, step)
    ]
    for part in parts:
        if found and sum(len(indices) for indices, _ in found[-1]) + len(part[0]) <= step:
            found[-1].append(part)
        else:
            found.append([part])
    return found


@lru_cache(maxsize=64)
def adapters(recipe: Recipe, dataset: Dataset) -> tuple[Adapter, ...]:
    """Return the adapters that a method samples with, each once.

    Raises ConfigError on what is no adapter of this dataset, and on a warm-up that is longer than
    the training of one.
    """
    method, support = method_of(recipe), Support(recipe, dataset)
    with naming(method, "adapters"):
        found = tuple(method.adapters(support))
    for one in found:
        if not isinstance(one, Adapter):
            raise ConfigError(
                f"method {method.name!r}, adapters: {brief(one)} is a {type(one).__name__}; return "
                "Adapters"
            )
        _require_adapter(method, support, one)
        require_warmup(
            "adapt.warmup",
            recipe.adapt.warmup,
            recipe.adapt.epochs * math.ceil(one.shots(support) / recipe.adapt.batch),
            "steps",
        )
    if len(set(found)) < len(found):
        raise ConfigError(f"method {method.name!r}, adapters: one of them stands there twice")
    return found


def _require_adapter(method, support, one):
    """Raise ConfigError on an adapter of a class or an image that the few shots have not."""
    classes = len(support.classes)
    if one.label is not None and (type(one.label) is not int or not 0 <= one.label < classes):
        raise ConfigError(
            f"method {method.name!r}, adapters: {one}; label is None or 0 to {classes - 1}"
        )
    if one.image is None:
        return
    count = support.count(one.label)
    if type(one.image) is not int or not 0 <= one.image < count:
        raise ConfigError(
            f"method {method.name!r}, adapters: {one}; image is None or 0 to {count - 1}"
        )


def prompts(recipe: Recipe, dataset: Dataset, label: int) -> list[str]:
    """Return the prompts that the images of a class take in turn, as the key knows them."""
    method = method_of(recipe)
    with naming(method, f"prompts, class {label}"):
        found = list(method.prompts(Support(recipe, dataset), label))
    for one in found:
        if not isinstance(one, str) or not one or not printable(one):
            raise ConfigError(
                f"method {method.name!r}, prompts of class {label}: {brief(one)}; give printable "
                "text"
            )
    if not found:
        raise ConfigError(f"method {method.name!r}, prompts of class {label}: give one at least")
    return found


def own_key(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return what the method adds to the key of its synthetic set; see `Method.key`."""
    method, support = method_of(recipe), Support(recipe, dataset)
    with naming(method, "key"):
        return dict(method.key(support, lambda label: list(draws(recipe, dataset, label))))


def reader(recipe, dataset):
    """Return a function from PIL images to the classes that the untouched classifier reads, or
    None if no image is drawn again.
    """
    if not recipe.generate.redraws:
        return None
    model = load_classifier(recipe.classifier, precision=recipe.precision)
    tokens = model.prompts(prompt(dataset.noun, name) for name in dataset.classes)
    return lambda images: predict(
        model,
        tokens,
        evaluation_batches(
            Images(tuple(np.asarray(image) for image in images), (0,) * len(images)), model.size
        ),
    ).tolist()


def metadata_row(recipe, dataset, label, index, root, folder, used):
    """Return an image's row of the metadata; its seed is in the file if it may have been drawn
    again.
    """
    file = f"{folder}/{index:06d}.png"
    seed = image_seed(recipe.seed, label, index)
    if recipe.generate.redraws:
        with Image.open(root / file) as image:
            seed = int(image.info["seed"])
    return {
        "file_name": file,
        "prompt": draws(recipe, dataset, label)[index].prompt,
        "class": dataset.classes[label],
        "label": label,
        "seed": seed,
        "adapter": " + ".join(adapter.name for adapter in used) or None,
    }
