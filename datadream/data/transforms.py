"""The views of an image for the generator and for evaluation (paper, sections 3.2 and 4).

torchvision is imported where it is used: it takes seconds, which planning need not wait for.
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling

from ..store.cores import own_cores
from .decode_cache import large
from .images import Images


def square(image: Image, side: int, fit: str = "crop") -> Image:
    """Return a PIL image as a square of `side` pixels (bilinear).

    'crop' resizes the short side and crops the centre; 'pad' resizes the long side and pads with
    black.
    """
    from torchvision.transforms import InterpolationMode, v2

    if fit == "pad":
        return ImageOps.pad(image, (side, side), Resampling.BILINEAR, "black")
    return v2.Compose([v2.Resize(side, InterpolationMode.BILINEAR), v2.CenterCrop(side)])(image)


def resized(image: Image, side: int) -> Image:
    """Resize the short side of a PIL image to `side` pixels (bilinear).

    The generator's crops are all cut from the result.
    """
    from torchvision.transforms import InterpolationMode, v2

    return v2.Resize(side, InterpolationMode.BILINEAR)(image)


def generator_image(image: Image, resolution: int, crop: str) -> torch.Tensor:
    """Return the generator's view of an image, (3, resolution, resolution) in [-1, 1].

    The short side is resized to `resolution` (bilinear), and a square is cut: at random if `crop`
    is 'random', else from the centre.
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


def evaluation_tensor(image: Image, size: int) -> torch.Tensor:
    """Return the paper's evaluation view of an image, uint8 (3, size, size).

    The short side is resized to `size` (bicubic), and the centre is cropped.
    """
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose(
        [v2.Resize(size, InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()]
    )(image)


BATCH = 250  # images evaluated at once


def evaluation_batches(images: Images, size: int, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Yield the evaluation views of all images in order, uint8 (up to batch, 3, size, size).

    A test set need not fit in memory. For large files, threads decode the next batch while the
    caller works on this one. Raises DataError on an unreadable file.
    """

    def views(part: Iterable[int]) -> torch.Tensor:
        return torch.stack([evaluation_tensor(images.open(i), size) for i in part])

    parts = [
        range(start, min(start + batch, len(images))) for start in range(0, len(images), batch)
    ]
    if not large(images):
        yield from map(views, parts)
        return
    cores = own_cores()
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


def scaled(views: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move uint8 views to a device, as bytes, and scale them to [0, 1] there."""
    return views.to(device).float() / 255


@lru_cache(maxsize=1)
def validation_batches(images: Images, size: int) -> list[torch.Tensor]:
    """Return `evaluation_batches` as a list, cached for the next call.

    Training evaluates on its validation images again and again.
    """
    return list(evaluation_batches(images, size))
