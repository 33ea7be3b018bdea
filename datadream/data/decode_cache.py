"""Training images decoded once, in memory or in a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..store.cores import own_cores
from .images import Images
from .transfer import sent_together

if TYPE_CHECKING:
    import torch

# Decoded training images kept in memory; the others lie in a temporary file.
CACHE_BYTES = 4 * 2**30
# The share of the GPU's free memory that they may take there, up to CACHE_BYTES.
NEAR = 1 / 4
AHEAD = 2**30  # bytes that threads decode beforehand; a batch of a camera's pictures has more
# Bytes of a file from which threads decode faster than one thread does.
LARGE = 2**14
SPARE_BYTES = 10 * 2**30  # that such a file leaves free on its disk, which others use too


def large(images: Images) -> bool:
    """True if the images are files so large that threads decode them faster.

    The first one stands for all.
    """
    first = next(iter(images.sources), None)
    try:
        return isinstance(first, (str, Path)) and Path(first).stat().st_size >= LARGE
    except OSError:  # whoever opens it says what is wrong
        return False


def _room_on(device):
    """Return the bytes of images that may stay on a GPU; 0 on the CPU, which has its own cache."""
    import torch

    if torch.device(device).type != "cuda":
        return 0
    return min(CACHE_BYTES, int(NEAR * torch.cuda.mem_get_info(device)[0]))


class Decoded:
    """Decode each image once, by (kind, position), and cache its bytes.

    The first CACHE_BYTES stay in memory; the rest go to a file in the folder for temporary files
    (TMPDIR, on a disk), which nobody else sees and which ends with the process. Where that has no
    room left, images are decoded anew at each use. What came first stays in memory: an epoch visits
    every image once, so that the image used longest ago is the one that is needed soonest. Of large
    files threads decode what is needed next. On a GPU the first ones stay there, so that later
    epochs copy nothing.
    """

    def __init__(self, sets: Mapping[bool, Images], device: torch.device | str = "cpu") -> None:
        self.sets, self.kept, self.coming, self.room = sets, {}, {}, CACHE_BYTES
        self.device, self.near, self.near_room = device, {}, _room_on(device)
        self.file, self.places, self.end, self.full = None, {}, 0, False
        self.largest = 0  # bytes of the largest image so far
        threaded = any(map(large, sets.values()))
        self.pool = ThreadPoolExecutor(own_cores()) if threaded else None

    def start(self, keys: Iterable[tuple[bool, int]]) -> None:
        """Begin to decode these images, or to read them back, in the background.

        It ends where what is on its way takes AHEAD bytes.
        """
        for key in keys:
            if len(self.coming) * self.largest >= AHEAD:
                break
            self._submit(key)

    def _submit(self, key):
        here = key in self.near or key in self.kept or key in self.coming
        if self.pool and not here:
            self.coming[key] = self.pool.submit(self._load, key)

    def take(self, keys: Sequence[tuple[bool, int]]) -> list[torch.Tensor]:
        """Return these images on the device, uint8 (3, H, W) each.

        Raises DataError on an unreadable file.
        """
        far = [key for key in dict.fromkeys(keys) if key not in self.near]
        for key in far:
            self._submit(key)
        fresh = {
            key: self.coming.pop(key).result() if self.pool else self._load(key)
            for key in far
            if key not in self.kept
        }
        host = [self.kept[key] if key in self.kept else fresh[key] for key in far]
        moved = dict(zip(far, sent_together(host, self.device), strict=True))
        images = [self.near[key] if key in self.near else moved[key] for key in keys]
        for key, image in fresh.items():
            self.largest = max(self.largest, image.nbytes)
            if image.nbytes <= self.near_room:
                self.near[key], self.near_room = moved[key], self.near_room - image.nbytes
            elif image.nbytes <= self.room:
                self.kept[key], self.room = image, self.room - image.nbytes
            elif key not in self.places and not self.full:
                self._write(key, image)
        return images

    def _write(self, key, image):
        try:
            self.file = self.file or tempfile.TemporaryFile(buffering=0)
            disk = os.fstatvfs(self.file.fileno())
            if (
                disk.f_bavail * disk.f_frsize < SPARE_BYTES
                or os.pwrite(self.file.fileno(), image.numpy(), self.end) < image.nbytes
            ):
                raise OSError("the disk has no room left")
        except OSError:  # a cache is no reason to end
            self.full = True
        else:
            self.places[key], self.end = (self.end, tuple(image.shape)), self.end + image.nbytes

    def _read(self, place, shape):
        """Return the pixels at a place of the file, None where the disk no longer gives them."""
        pixels = np.empty(shape, np.uint8)
        if self.file is None:
            return None
        with suppress(OSError):
            read = os.preadv(self.file.fileno(), [pixels.reshape(-1).data], place)
            return pixels if read == pixels.nbytes else None

    def _load(self, key):
        from torch import from_numpy

        pixels = self._read(*self.places[key]) if key in self.places else None
        if pixels is not None:
            return from_numpy(pixels)
        kind, i = key
        return from_numpy(
            np.ascontiguousarray(np.asarray(self.sets[kind].open(i)).transpose(2, 0, 1))
        )
