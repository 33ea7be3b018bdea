"""Batch sizes that fit the device: halved on out-of-memory, doubled while that pays."""

import gc
import time
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch

# A search starts at SMALLEST and goes on while doubling the size speeds it up by GAIN.
SMALLEST, GAIN = (8, 1.05)
# What torch's CPU allocator, cuBLAS and cuDNN say, as plain RuntimeErrors, where memory ends.
NO_MEMORY = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """True if an exception says that the device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


class BatchSize:
    """A number of images to work on at once: `size`, halved on out-of-memory.

    0 starts a search, which doubles the size while that pays. A search costs nothing, since its
    images are kept; it times a size's second batch, since the first may include compilation.
    `notes` says what was found.
    """

    size: int
    notes: list[str]

    def __init__(self, size: int):
        self.searching, self.size, self.rate, self.notes = size == 0, size or SMALLEST, 0.0, []
        # The size before this one, and that of the last batch that was not timed.
        self.before, self.warm = (self.size, 0)

    def halve(self, error: BaseException) -> bool:
        """Halve the size and free memory if `error` is out-of-memory.

        False, with nothing changed, on another error or at size 1.
        """
        if self.size == 1 or not out_of_memory(error):
            return False
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        self.notes.append(
            f"out of memory with {self.size} images at once, went on with {self.size // 2}"
        )
        self.size, self.searching = self.size // 2, False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def run(
        self, make: Callable[[int], list[Any]], count: int, most: int | None = None
    ) -> list[Any]:
        """Return `make(n)`, a list of n images, for an n of at most `count`.

        `most` is the largest `count` of all calls, at which a search ends. Raises the device's
        error if a single image does not fit.
        """
        self.size = min(self.size, most) if self.searching and most else self.size
        while True:
            n, start = min(self.size, count), time.perf_counter()
            try:
                images = make(n)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.size = n
                if not self.halve(error):
                    raise
            else:
                self._learn(n, time.perf_counter() - start, most)
                return images

    def _learn(self, n, seconds, most):
        if not self.searching or n < self.size:
            return
        if self.warm != n:
            self.warm = n
            return
        rate = n / seconds
        if rate <= GAIN * self.rate:
            self.size, self.searching = self.before, False
        elif n == most:
            self.searching = False
        else:
            self.before, self.rate, self.size = n, rate, 2 * n
        if not self.searching:
            self.notes.append(f"{self.size} images at once are fastest")


def shared_batch_size(size: int, *settings: Hashable) -> BatchSize:
    """Return a BatchSize; for size 0, the process's last one if the `settings` are the same.

    So what one slice found by its search holds for the next.
    """
    return _searched(*settings) if size == 0 else BatchSize(size)


@lru_cache(maxsize=1)
def _searched(*settings):
    return BatchSize(0)
