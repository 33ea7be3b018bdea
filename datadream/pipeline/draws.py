"""What each generator of the comparison samples a class with: prompts, adapters, seeds, and who
draws again what is misread.
"""

import math

import numpy as np
from PIL import Image

from ..config import require_warmup
from ..data.datasets import few_shots, prompt
from ..data.images import Images
from ..data.transforms import evaluation_batches
from ..models.classifiers.base import load_classifier
from ..seeds import seed_for
from .evaluate import predict

SLICE = 100  # images of a unit of work: some minutes at the paper's scale
# images that LoFT's two fused adapters make before two others are drawn: 500 images have the 120
# pairs of 16 about once
TOGETHER = 4


def image_seed(seed, label, index, *again):
    """Return the seed of image `index` of class `label`: it depends on nothing else, so neither
    batch size nor order matters.
    """
    return seed_for("image", seed, label, index, *again)


def groups(recipe, dataset, label):
    """Return (range of image indices, their adapters) of one class; an adapter is the (label,
    image) that `adapt` takes.

    The base has none, DataDream one for the dataset (None) or the class, LoFT two of the class's
    images, drawn by the seed.
    """
    count, kind = recipe.generate.images, recipe.row.generator
    if kind != "image":
        return [
            (
                range(count),
                {"base": (), "dataset": ((None, None),), "class": ((label, None),)}[kind],
            )
        ]
    shots, found = len(few_shots(dataset, recipe.shots, recipe.seed, label)), []
    for start in range(0, count, TOGETHER):
        drawn = np.random.RandomState(
            seed_for("pair", recipe.seed, label, start) % 2**32
        ).permutation(shots)[:2]
        found.append(
            (
                range(start, min(start + TOGETHER, count)),
                tuple((label, int(image)) for image in sorted(drawn)),
            )
        )
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


def adapters(recipe, dataset):
    """Return the adapters that a method samples with, each once, as the (label, image) that `adapt`
    takes.

    Raises ConfigError on a warm-up that is longer than the training of one.
    """
    found = list(
        dict.fromkeys(
            which
            for label in range(len(dataset.classes))
            for _, own in groups(recipe, dataset, label)
            for which in own
        )
    )
    for label, image in found:
        shots = len(few_shots(dataset, recipe.shots, recipe.seed, label)) if image is None else 1
        require_warmup(
            "adapt.warmup",
            recipe.adapt.warmup,
            recipe.adapt.epochs * math.ceil(shots / recipe.adapt.batch),
            "steps",
        )
    return found


def texts(recipe, dataset, label):
    """Return the prompts that the images of a class take in turn."""
    return [
        prompt(dataset.noun, dataset.classes[label], template)
        for template in range(recipe.generate.templates)
    ]


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
    words, file = texts(recipe, dataset, label), f"{folder}/{index:06d}.png"
    seed = image_seed(recipe.seed, label, index)
    if recipe.generate.redraws:
        with Image.open(root / file) as image:
            seed = int(image.info["seed"])
    return {
        "file_name": file,
        "prompt": words[index % len(words)],
        "class": dataset.classes[label],
        "label": label,
        "seed": seed,
        "adapter": " + ".join(adapter.name for adapter in used) or None,
    }
