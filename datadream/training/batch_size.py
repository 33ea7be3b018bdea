"""Batch sizes that fit the device: halved on out-of-memory, doubled while that pays."""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made", bound=Sized)

# A search starts at SMALLEST and goes on while doubling the size speeds it up by GAIN.
SMALLEST, GAIN = (8, 1.05)
# What plain RuntimeErrors say when memory runs out: CUDA runtime and driver, HIP and MPS; torch's
# CPU allocator; cuBLAS, cuSOLVER and cuDNN 8; cuDNN 9, of the device and of the host.
NO_MEMORY = ("out of memory", "allocate memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """True if an exception means that the device or the host is out of memory.

    Includes all that accelerate recognises, such as cuDNN's errors on batches that are too large.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    if any(words in said for words in NO_MEMORY):
        return True
    from accelerate.utils.memory import should_reduce_batch_size  # here: a slow import

    return should_reduce_batch_size(RuntimeError(said))


def _forget_frames(error):
    """Drop the tracebacks of an error and its causes, which keep tensors that did not fit alive."""
    seen, left = set(), [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            left += [one.__cause__, one.__context__]


class BatchSize:
    """The number of images to process at once, `size`, halved on out-of-memory.

    0 starts a search, which doubles the size while that pays. The search costs nothing, since its
    images are kept. It times the second batch of each size, since the first may include
    compilation. `notes` records the result.
    """

    size: int
    notes: list[str]

    def __init__(self, size: int):
        self.searching, self.size, self.rate, self.notes = size == 0, size or SMALLEST, 0.0, []
        # The previous size, and the size of the last untimed (warm-up) batch.
        self.before, self.warm = (self.size, 0)

    def halve(self, error: BaseException) -> bool:
        """Halve the size and free memory if `error` is out-of-memory.

        Returns False and changes nothing on another error or at size 1.
        """
        if self.size == 1 or not out_of_memory(error):
            return False
        _forget_frames(error)
        self.notes.append(
            f"out of memory with {self.size} images at once, went on with {self.size // 2}"
        )
        self.size, self.searching = self.size // 2, False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def run(self, make: Callable[[int], Made], count: int, most: int | None = None) -> Made:
        """Return `make(n)`, n images or tensor rows, for some n <= `count` that fits into memory.

        `most` is the largest `count` of all calls, where a search ends. Raises the device's error
        if a single image does not fit.
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

    def each(self, batches: Iterable[Tensor], of: Callable[[Tensor], Made]) -> Iterator[Made]:
        """Yield `of(part)` for successive parts of the batches, sized to fit in memory.

        `of` returns as many rows as its part has.
        """
        for batch in batches:
            while len(batch):
                made = self.run(partial(_first, of, batch), len(batch))
                batch = batch[len(made) :]
                yield made

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


def _first(of, batch, count):
    return of(batch[:count])


def shared_batch_size(size: int, *settings: Hashable) -> BatchSize:
    """Return a BatchSize; for size 0, this process's last one if the `settings` are the same.

    A slice thus uses the size that the search of an earlier one found.
    """
    return _searched(*settings) if size == 0 else BatchSize(size)


@lru_cache(maxsize=1)
def _searched(*settings):
    return BatchSize(0)
