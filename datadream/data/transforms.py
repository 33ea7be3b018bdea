"""The views of an image that the generator and the evaluation take (paper, sections 3.2 and 4).

torchvision is imported where it is used: it takes seconds, which whoever only plans need not wait.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from .decode_cache import large


def square(image, side):
    """Resize the short side of a PIL image to `side` (bilinear) and crop its middle."""
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose([v2.Resize(side, InterpolationMode.BILINEAR), v2.CenterCrop(side)])(image)


def resized(image, side):
    """Return a PIL image with its short side resized to `side` pixels (bilinear): what every
    crop of it for the generator is cut from.
    """
    from torchvision.transforms import InterpolationMode, v2

    return v2.Resize(side, InterpolationMode.BILINEAR)(image)


def generator_image(image, resolution, crop):
    """Resize the short side to `resolution` (bilinear), crop a square, scale to [-1, 1]: a
    tensor (3, resolution, resolution).
    """
    from torchvision.transforms import v2

    cut = v2.RandomCrop(resolution) if crop == "random" else v2.CenterCrop(resolution)
    return (
        v2.Compose([cut, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(
            resized(image, resolution)
        )
        * 2
        - 1
    )


def evaluation_tensor(image, size):
    """Resize the short side to `size` (bicubic), centre-crop: uint8 (3, size, size), the paper's
    evaluation view.
    """
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose(
        [v2.Resize(size, InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()]
    )(image)


BATCH = 250  # images judged at once


def evaluation_batches(images, size, batch=BATCH):
    """Yield the evaluation views of all images in order, uint8 (up to batch, 3, size, size): a test
    set need not fit in memory.

    Of large files threads decode the next batch while the caller works on this one. Raises
    DataError on an unreadable file.
    """

    def views(part):
        return torch.stack([evaluation_tensor(images.open(i), size) for i in part])

    parts = [
        range(start, min(start + batch, len(images))) for start in range(0, len(images), batch)
    ]
    if not large(images):
        yield from map(views, parts)
        return
    cores = os.cpu_count() or 1
    share, coming = math.ceil(batch / cores), []
    with ThreadPoolExecutor(cores) as pool:
        for part in [*parts, ()]:
            due, coming = (
                coming,
                [
                    pool.submit(views, part[start : start + share])
                    for start in range(0, len(part), share)
                ],
            )
            if due:
                yield torch.cat([one.result() for one in due])


@lru_cache(maxsize=1)
def validation_batches(images, size):
    """Return `evaluation_batches` as a list, kept for the next call: a training looks at its
    validation images again and again.
    """
    return list(evaluation_batches(images, size))
