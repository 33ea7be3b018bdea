"""Labelled images, in memory or in files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from .colour import profile_of, to_srgb, without_notes

if TYPE_CHECKING:
    import torch

SoftLabel = tuple[tuple[int, float], ...]  # an image's (class index, share); shares sum to one
PIXEL = 1.5  # bytes per pixel of a PNG, approximately
# Largest aspect ratio accepted: resizing a longer strip by its short side would exhaust memory.
STRIP = 50
PREVIEW = 256  # longer side of a preview in pixels; a figure's cell has at most 220


# Compared by identity, so that caches can use a set as key without hashing its pixels.
@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of images, in memory or in files.

    `sources` are uint8 arrays (H, W) or (H, W, 3), or file paths; `labels` are their class indices.
    `stamp` replaces the content in the fingerprint of a set that is too large to be read for it.
    `shares` are soft labels: for each image its (class index, share) pairs, which sum to one.
    Without them, each image belongs to its class alone.
    """

    sources: Sequence[np.ndarray | str]
    labels: Sequence[int]
    stamp: str = ""
    shares: Sequence[SoftLabel] = ()

    def __len__(self) -> int:
        return len(self.sources)

    def open(self, i: int) -> Image.Image:
        """Return image i as an RGB PIL image.

        Applies the EXIF orientation, takes the first of several frames, composites transparency on
        white, cuts 16-bit grey to 8 bits, and converts an embedded colour profile to sRGB. Raises
        DataError on an unreadable file, on 32 bits per pixel and channel, and on an aspect ratio
        above STRIP.
        """
        source = self.sources[i]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert("RGB")
        with opened(source) as image:
            return _rgb(ImageOps.exif_transpose(image))

    def pick(self, rows: Iterable[int]) -> Images:
        """Return the subset at integer positions `rows`."""
        rows = list(rows)
        shares = tuple(self.shares[i] for i in rows) if self.shares else ()
        sources, labels = tuple(self.sources[i] for i in rows), tuple(self.labels[i] for i in rows)
        return Images(sources, labels, shares=shares)


def _cause(error):
    """Return what is wrong with an image, without its path, which the message already names."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow knows no image format of such content"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(file: str | Path) -> Iterator[Image.Image]:
    """Open an image file as a PIL image, as a context manager.

    Any error within the context is raised as a DataError that names the file.
    """
    try:
        with _open(file) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(
            f"{str(file)!r} does not exist; give the path of an image that does"
        ) from error
    # Pillow lets its decoders' errors through: OSError, SyntaxError, struct.error, a decompression
    # bomb.
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow warns from half of it on
            raise DataError(
                f"{str(file)!r} is larger than Pillow decodes ({_cause(error)}); scale it down to "
                f"{most:,} pixels or fewer"
            ) from error
        raise DataError(
            f"{str(file)!r} is not a readable image ({_cause(error)}); replace or remove the file"
        ) from error


def _open(file):
    try:
        return Image.open(file)
    except ValueError:  # a profile or note in a PNG is too large; the pixels may be fine
        content = without_notes(Path(file).read_bytes())
        return Image.open(io.BytesIO(content))


def _rgb(image):
    profile = image.info["icc_profile"] if profile_of(image) else b""
    if max(image.size) > STRIP * min(image.size):
        raise ValueError(
            f"{image.size[0]} x {image.size[1]} pixels, a strip of more than {STRIP} to 1"
        )
    if image.mode.startswith("I;16"):  # `convert` would make all but the darkest pixels white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:  # what lies behind transparent pixels is not meant to be seen
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return to_srgb(image, profile) if profile else image.convert("RGB")


@lru_cache(maxsize=4096)
def fingerprint(*parts: Images) -> str:
    """Return 16 hex digits of the content of some image sets, each read once.

    They change whenever an image's bytes or shape, a label, or the split into `parts` changes. A
    set with a `stamp` is not read.
    """
    digest = hashlib.sha256()
    for images in parts:
        digest.update(images.stamp.encode())
        for source, label in (
            () if images.stamp else zip(images.sources, images.labels, strict=True)
        ):
            digest.update(
                repr(source.shape).encode() + source.tobytes()
                if isinstance(source, np.ndarray)
                else Path(source).read_bytes()
            )
            digest.update(str(label).encode())
        if images.shares:
            digest.update(repr(tuple(map(tuple, images.shares))).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=16)
def _by_label(images):
    labels = np.asarray(images.labels, int)
    order = np.argsort(labels, kind="stable")
    return order, labels[order]


def members(images: Images, label: int) -> np.ndarray:
    """Return the positions of a class's images, ascending.

    The set is sorted once and cached, since this may be called for a thousand classes.
    """
    order, labels = _by_label(images)
    return order[slice(*np.searchsorted(labels, [label, label + 1]))]


class Previews(Sequence[list[Image.Image]]):
    """The first `depth` images of each class as small PIL images, for a figure.

    They are opened only when their class is asked for: all photos, or a thousand classes, would
    fill the memory.
    """

    def __init__(self, images: Images, classes: int, depth: int = 3) -> None:
        self.images, self.classes, self.depth = images, range(classes), depth

    def __len__(self) -> int:
        return len(self.classes)

    @overload
    def __getitem__(self, label: int) -> list[Image.Image]: ...
    @overload
    def __getitem__(self, label: slice) -> list[list[Image.Image]]: ...
    def __getitem__(self, label: int | slice) -> list[Any]:
        """Return a class's images, each at most PREVIEW pixels wide and high."""
        if isinstance(label, slice):
            return [self[one] for one in self.classes[label]]
        rows = members(self.images, self.classes[label])[: self.depth].tolist()
        return [shrunk(self.images.open(i), PREVIEW) for i in rows]


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """Return an image whose sides are at most `side` pixels, unchanged if it is no larger."""
    if max(image.size) <= side:
        return image
    # Palettes and 1-bit images cannot be averaged.
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    # Large camera pictures are first averaged in whole blocks, which takes a tenth of the time; up
    # to four times the target size they are not.
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=4.0)


def shuffled(images: Images, label: int, groups: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return a class's positions in a fixed random order, and their distinct groups."""
    # numpy's policy freezes RandomState's stream.
    rows = np.random.RandomState(label).permutation(members(images, label)).tolist()
    return rows, list(dict.fromkeys(groups[i] for i in rows))


def split(
    sources: Sequence[np.ndarray | str],
    labels: Sequence[int] | np.ndarray,
    counts: Callable[[int], tuple[int, int]],
    groups: Sequence[int] | None = None,
) -> list[Images]:
    """Split each class into train, validation and test by a fixed permutation.

    `counts(n)` gives the first two sizes for a class of n images; test takes the rest. Images of
    the same group in `groups` stay together, and count as one.
    """
    classes = np.asarray(labels).tolist()
    whole, groups = Images((), classes), groups or range(len(classes))
    parts, placed = ([], [], []), {}
    for label in sorted(set(classes)):
        rows, own = shuffled(whole, label, groups)
        first, second = counts(len(own))
        for number, group in enumerate(own):
            placed.setdefault(group, (number >= first) + (number >= first + second))
        for i in rows:
            parts[placed[groups[i]]].append(i)
    return [
        Images(tuple(sources[i] for i in part), tuple(int(labels[i]) for i in part))
        for part in parts
    ]


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Convert a tensor (3, H, W) in [0, 1] to a PIL image."""
    return Image.fromarray((255 * tensor).round().byte().permute(1, 2, 0).numpy())
