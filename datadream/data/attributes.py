"""Measurable attributes of a drawn character: slant, stroke width, size, tone, proportions.

They stand in for the captions of photographs. This is our own; no published method uses it. Images
are grey in [0, 1]; the background is the median of the border, and ink is what differs from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image


@dataclass(frozen=True)
class Attribute:
    """A measurable attribute, the words for low and high values, and when it counts as flat."""

    name: str
    low: str
    high: str
    flat: float  # a spread (standard deviation) below this is not visible


# x runs right, y down, so a stroke that leans to the right has a negative slant.
ATTRIBUTES = (
    Attribute("slant", "right", "left", 0.05),
    Attribute("stroke", "thin", "thick", 0.005),
    Attribute("size", "small", "large", 0.03),
    Attribute("tone", "dark", "light", 0.05),
    Attribute("aspect", "narrow", "wide", 0.05),
)


def measure(image: Image) -> dict[str, float]:
    """Return each attribute of a character by name; all are 0 if there is no ink.

    `slant` is the horizontal shift per vertical pixel, `stroke` the width of the strokes (area over
    half the outline) and `size` the side of the ink's bounding box, both as a share of the image's
    side, `tone` the mean grey of the ink, `aspect` the width of the box over its height.
    """
    grey = np.asarray(image.convert("L"), float) / 255
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    if ink.max() < 0.05:
        return dict.fromkeys((one.name for one in ATTRIBUTES), 0.0)
    mask = ink / ink.max()
    total, (rows, columns) = mask.sum(), np.indices(mask.shape)
    y, x = rows - (mask * rows).sum() / total, columns - (mask * columns).sum() / total
    vertical = (mask * y * y).sum()
    edges = np.hypot(*np.gradient(np.pad(mask, 1))).sum()
    box = np.argwhere(mask > 0.5)
    height, width = (np.ptp(box, 0) + 1).tolist()
    side = max(mask.shape)
    return {
        "slant": float((mask * x * y).sum() / vertical) if vertical else 0.0,
        "stroke": float(2 * total / edges / side),
        "size": float((height * width) ** 0.5 / side),
        "tone": float((mask * grey).sum() / total),
        "aspect": width / height,
    }


def descriptions(images: Sequence[Image], labels: Sequence[int]) -> list[str]:
    """Return words for what sets each character apart from the others of its class.

    The class mean is subtracted, so that no word stands for the class. For each attribute, the
    lowest and the highest third of all images get its words. An attribute that hardly varies gets
    none, so there are no words at all if each class has a single image.
    """
    classes = np.asarray(labels)
    table = np.array([list(measure(image).values()) for image in images])
    for label in set(labels):
        table[classes == label] -= table[classes == label].mean(0)
    words = [[] for _ in images]
    for column, one in zip(table.T, ATTRIBUTES, strict=True):
        if column.std() < one.flat:
            continue
        low, high = np.quantile(column, [1 / 3, 2 / 3]).tolist()
        for own, value in zip(words, column.tolist(), strict=True):
            own += [one.low] * (value < low) + [one.high] * (value > high)
    return [" ".join(own) for own in words]
