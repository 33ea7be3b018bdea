"""A cache of decoded training images, in memory or in a temporary file."""

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

# Decoded training images kept in memory; the rest go to a temporary file.
CACHE_BYTES = 4 * 2**30
# The share of the GPU's free memory that they may take, up to CACHE_BYTES.
NEAR = 1 / 4
AHEAD = 2**30  # bytes that threads decode ahead; a batch of camera pictures has more
# File size in bytes from which several threads decode faster than one.
LARGE = 2**14
SPARE_BYTES = 10 * 2**30  # left free on the disk of that file, which others use too


def large(images: Images) -> bool:
    """True if the images are files large enough for threads to decode them faster.

    Judged by the first one.
    """
    first = next(iter(images.sources), None)
    try:
        return isinstance(first, (str, Path)) and Path(first).stat().st_size >= LARGE
    except OSError:  # reported when it is opened
        return False


def _room_on(device):
    """Return the bytes of images that may stay on a GPU; 0 for the CPU, which has its own cache."""
    import torch

    if torch.device(device).type != "cuda":
        return 0
    return min(CACHE_BYTES, int(NEAR * torch.cuda.mem_get_info(device)[0]))


class Decoded:
    """Decode each image once, by (kind, position), and cache its pixels.

    The first CACHE_BYTES stay in memory; the rest go to an anonymous file in the temporary folder
    (TMPDIR, on a disk), which is removed when the process ends. If the disk is full, further images
    are decoded again at each use. The first images stay, rather than the most recent: an epoch
    visits every image once, so the one used longest ago is needed soonest. Threads decode large
    files ahead. On a GPU, the first ones stay in its memory, so that later epochs copy nothing.
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

        Stops once AHEAD bytes are under way.
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
        except OSError:  # a full cache must not end the run
            self.full = True
        else:
            self.places[key], self.end = (self.end, tuple(image.shape)), self.end + image.nbytes

    def _read(self, place, shape):
        """Return the pixels at an offset of the file, or None if the disk no longer gives them."""
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
