"""The classifier's augmentation on batches of tensors, drawn per image (paper, section 3.4).

torchvision's operations draw one operation and one strength for a whole batch, so per-image draws
would need a loop over images. Here the draws are vectors: images that drew the same operation are
processed together, and a crop is two products with resampling matrices.
"""

import math
from collections.abc import Sequence

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ..config import Classify
from .transfer import places, sent

RATIOS = (3 / 4, 4 / 3)  # aspect ratios of a random resized crop (torchvision)
BLUR = (0.1, 2.0)  # standard deviation of the blur in pixels (released code)
THRESHOLD = 128 / 255  # of solarize (released code)
MAGNITUDE = 9 / 30  # of RandAugment: the tenth of 31 bins (torchvision's default)
# Bytes of images cropped at once. As floats they take four times as much, and a batch of camera
# pictures would take tens of gigabytes; ordinary batches are far below the limit.
AT_ONCE = 2**28


def _warp(images, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return TF.affine(
        images, 0.0, list(translate), 1.0, list(shear), InterpolationMode.NEAREST, center=center
    )


def _shear(images, tangent, axis):
    degrees, shear = math.degrees(math.atan(tangent)), [0.0, 0.0]
    shear[axis] = degrees
    return _warp(images, shear=shear, center=[0, 0])


def _translate(images, share, axis):
    way = [0, 0]
    way[axis] = int(share * images.shape[-1 if axis == 0 else -2])
    return _warp(images, translate=way)


# RandAugment's fourteen operations at its single magnitude, uint8 -> uint8; `way` is +1 or -1 where
# an operation has a direction.
OPERATIONS = {
    "Identity": lambda x, way: x,
    "ShearX": lambda x, way: _shear(x, way * 0.3 * MAGNITUDE, 0),
    "ShearY": lambda x, way: _shear(x, way * 0.3 * MAGNITUDE, 1),
    "TranslateX": lambda x, way: _translate(x, way * 150 / 331 * MAGNITUDE, 0),
    "TranslateY": lambda x, way: _translate(x, way * 150 / 331 * MAGNITUDE, 1),
    "Rotate": lambda x, way: TF.rotate(x, way * 30 * MAGNITUDE),
    "Brightness": lambda x, way: TF.adjust_brightness(x, 1 + way * 0.9 * MAGNITUDE),
    "Color": lambda x, way: TF.adjust_saturation(x, 1 + way * 0.9 * MAGNITUDE),
    "Contrast": lambda x, way: TF.adjust_contrast(x, 1 + way * 0.9 * MAGNITUDE),
    "Sharpness": lambda x, way: TF.adjust_sharpness(x, 1 + way * 0.9 * MAGNITUDE),
    "Posterize": lambda x, way: TF.posterize(x, 8 - round(4 * MAGNITUDE)),
    "Solarize": lambda x, way: TF.solarize(x, 255 * (1 - MAGNITUDE)),
    "AutoContrast": lambda x, way: TF.autocontrast(x),
    "Equalize": lambda x, way: TF.equalize(x),
}
ONE_WAY = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}


def draw_operations(count: int, operations: int = 2) -> torch.Tensor:
    """Draw RandAugment's operations and their directions, +1 or -1: (operations, 2, count)."""
    drawn = [
        (torch.randint(len(OPERATIONS), (count,)), torch.randint(2, (count,)) * 2 - 1)
        for _ in range(operations)
    ]
    return torch.stack([torch.stack(pair) for pair in drawn])


def rand_augment(images: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
    """Apply RandAugment to uint8 images (B, 3, H, W) (Cubuk et al., 2020).

    Each image gets two operations of its own, those in `drawn` if given. The magnitude is
    torchvision's default.
    """
    names = list(OPERATIONS)
    for chosen, ways in draw_operations(len(images)) if drawn is None else drawn:
        applied, masks = [], []
        for i in chosen.unique().tolist():
            for way in (1,) if names[i] in ONE_WAY else (1, -1):
                rows = (chosen == i) & ((ways == way) | (names[i] in ONE_WAY))
                if rows.any():
                    applied.append((OPERATIONS[names[i]], way))
                    masks.append(rows)
        changed = images.clone()
        for (operation, way), rows in zip(applied, places(masks, images.device), strict=True):
            changed[rows] = operation(images[rows], way)
        images = changed
    return images


def draw_boxes(count: int, height: int, width: int, low: float, tries: int = 10) -> torch.Tensor:
    """Draw crop boxes (top, left, height, width) as torchvision's RandomResizedCrop does.

    Returns (count, 4) floats, in whole pixels. Draws `tries` random areas, as shares in [low, 1],
    and aspect ratios, and takes the first that fits; if none does, the largest centre crop of an
    accepted aspect ratio.
    """
    area = height * width * (low + (1 - low) * torch.rand(count, tries))
    ratio = torch.exp(
        math.log(RATIOS[0]) + (math.log(RATIOS[1]) - math.log(RATIOS[0])) * torch.rand(count, tries)
    )
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first, rows = fits.int().argmax(1), torch.arange(count)
    wide, tall, fits = wide[rows, first], tall[rows, first], fits[rows, first]
    top, left = (
        (torch.rand(count) * (height - tall + 1)).floor(),
        (torch.rand(count) * (width - wide + 1)).floor(),
    )
    limited = min(max(width / height, RATIOS[0]), RATIOS[1])
    whole = (min(height, round(width / limited)), min(width, round(height * limited)))
    centre = torch.tensor(
        [(height - whole[0]) // 2, (width - whole[1]) // 2, *whole], dtype=torch.float32
    )
    return torch.where(fits[:, None], torch.stack([top, left, tall, wide], 1), centre)


def resampling(start: torch.Tensor, length: torch.Tensor, size: int, out: int) -> torch.Tensor:
    """Return the matrices (B, out, size) of an antialiased bicubic resize.

    Each maps [start, start + length) of `size` pixels to `out`. The kernel is Pillow's, which
    torchvision's antialiased resize also uses: a cubic with a = -0.5, widened when shrinking.
    """
    scale = (length / out)[:, None, None]
    place = torch.arange(size, device=start.device) - start[:, None]  # of each pixel in the crop
    centre = scale * (torch.arange(out, device=start.device) + 0.5)[:, None]
    x = ((place[:, None] + 0.5 - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    inside = (place >= 0) & (place < length[:, None])
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def draw_crops(
    count: int, height: int, width: int, low: float, flip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (boxes (count, 4), whether each is flipped (count,)) for `random_resized_crop`."""
    return draw_boxes(count, height, width, low), torch.rand(count) < flip


def random_resized_crop(
    images: torch.Tensor,
    size: int,
    low: float,
    flip: float,
    drawn: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Crop uint8 images (B, 3, H, W) at random to (B, 3, size, size) in [0, 1].

    Each is flipped with probability `flip`; `drawn` is the result of an earlier `draw_crops`. Boxes
    are drawn on the CPU, so that every device gets the same ones. The resampling matrices are built
    on the images' device: for 256 large images, one CPU core needs longer than an H200 for the
    model's whole step.
    """
    height, width = images.shape[-2:]
    boxes, flipped = drawn or draw_crops(len(images), height, width, low, flip)
    top, left, tall, wide, flips = sent(torch.cat([boxes, flipped[:, None]], 1), images.device).T
    down, across = resampling(top, tall, height, size), resampling(left, wide, width, size)
    across = torch.where(flips.bool()[:, None, None], across.flip(1), across)
    pixels = down[:, None] @ images.float() @ across[:, None].transpose(-1, -2)
    return pixels.clamp(0, 255).round() / 255  # to whole levels, as in uint8 images


def _blend(images, others, factor):
    return (factor * images + (1 - factor) * others).clamp(0, 1)


def _brightness(images, factor):
    return (images * factor).clamp(0, 1)


def _contrast(images, factor):
    return _blend(images, TF.rgb_to_grayscale(images).mean((1, 2, 3), keepdim=True), factor)


def _saturation(images, factor):
    return _blend(images, TF.rgb_to_grayscale(images), factor)


def _hue(images, turn):
    """Turn the hue of images (B, 3, H, W) in [0, 1] by `turn` (B, 1, 1, 1), in full circles.

    Value and saturation are kept.
    """
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    red, green, blue = images.unbind(1)
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = hue + 6 * turn[:, 0]
    places = [(n + sector) % 6 for n in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], 1)


def color_jitter(
    images: torch.Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> torch.Tensor:
    """Jitter the colours of images (B, 3, S, S) in [0, 1] in place, as torchvision does.

    The strengths (uniform) and the order of the four changes are drawn per image.
    """

    def factors(strength: float, middle: float = 1.0) -> torch.Tensor:
        return (middle + strength * (2 * torch.rand(len(images)) - 1)).clamp(
            min=0 if middle else -0.5
        )

    changes = (_brightness, _contrast, _saturation, _hue)
    drawn = [factors(brightness), factors(contrast), factors(saturation), factors(hue, 0.0)]
    order = torch.rand(len(images), len(drawn)).argsort(1)
    masks = [order[:, place] == number for place in range(4) for number in range(4)]
    strengths = sent(torch.stack(drawn), images.device)
    for i, rows in enumerate(places(masks, images.device)):
        if len(rows):
            own = strengths[i % 4, rows].view(-1, 1, 1, 1)
            images[rows] = changes[i % 4](images[rows], own)
    return images


def blur_kernel(size: int) -> int:
    """Return the width of the blur's window in pixels: an odd tenth of `size`, at least 3.

    The window is our choice; the released code calls Pillow's GaussianBlur(radius), which has none.
    """
    return max(3, size // 10 // 2 * 2 + 1)


def gaussian_blur(images: torch.Tensor, kernel: int, sigma: torch.Tensor) -> torch.Tensor:
    """Blur images (B, 3, S, S) with a window of `kernel` pixels, each by its own `sigma`.

    `sigma` (B,) is in pixels.
    """
    offsets = torch.arange(kernel) - kernel // 2
    window = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    window = sent(window / window.sum(1, keepdim=True), images.device).repeat_interleave(3, 0)
    pad = kernel // 2
    flat = torch.nn.functional.pad(images, [pad] * 4, mode="reflect").flatten(0, 1)[None]
    flat = torch.nn.functional.conv2d(flat, window[:, None, :, None], groups=len(window))
    return torch.nn.functional.conv2d(flat, window[:, None, None, :], groups=len(window))[
        0
    ].unflatten(0, (-1, 3))


class Augmentation:
    """The released code's augmentation, in its order.

    Maps a list of uint8 images (3, H, W) to (B, 3, size, size) in [0, 1]. `options` is a recipe's
    `classify`. All draws come from torch's global CPU generator, whatever the images' device, and
    are copied to the device asynchronously.
    """

    def __init__(self, options: Classify, size: int) -> None:
        self.options, self.size, self.kernel = options, size, blur_kernel(size)

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Augment the images; those of the same shape are processed together."""
        shapes = [tuple(image.shape) for image in images]
        views = images[0].new_empty(len(images), 3, self.size, self.size, dtype=torch.float32)
        for shape in dict.fromkeys(shapes):
            rows = [i for i, other in enumerate(shapes) if other == shape]
            own = sent(torch.tensor(rows), views.device)
            views[own] = self._crop([images[i] for i in rows])
        options = self.options
        self._some(
            views,
            options.jitter,
            lambda x: color_jitter(
                x, options.brightness, options.contrast, options.saturation, options.hue
            ),
        )
        self._some(views, options.grayscale, lambda x: TF.rgb_to_grayscale(x, 3))
        self._some(
            views,
            options.blur,
            lambda x: gaussian_blur(
                x, self.kernel, BLUR[0] + (BLUR[1] - BLUR[0]) * torch.rand(len(x))
            ),
        )
        self._some(views, options.solarize, lambda x: torch.where(x >= THRESHOLD, 1 - x, x))
        return views

    def _crop(self, images):
        """Return crops (B, 3, S, S) of images of one shape, drawn at once and cut in chunks."""
        count, options, cropped = len(images), self.options, []
        drawn = draw_operations(count) if options.randaugment else None
        how = options.crop_low, options.flip
        height, width = images[0].shape[-2:]
        boxes, flipped = draw_crops(count, height, width, *how)
        several = max(1, AT_ONCE // images[0].nbytes)
        for rows in (slice(start, start + several) for start in range(0, count, several)):
            batch = torch.stack(images[rows])
            batch = batch if drawn is None else rand_augment(batch, drawn[..., rows])
            own = boxes[rows], flipped[rows]
            cropped.append(random_resized_crop(batch, self.size, *how, own))
        return torch.cat(cropped)

    @staticmethod
    def _some(images, chance, change):
        rows = torch.rand(len(images)) < chance
        if rows.any():
            (own,) = places([rows], images.device)
            images[own] = change(images[own])
