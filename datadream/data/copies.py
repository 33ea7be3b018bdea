"""Detection of near-duplicate images.

A copy may be re-encoded, resized, brightened, greyed, mirrored, rotated, or cropped by a few
percent.

A plain perceptual comparison. Coarse thumbnails propose pairs; `overlay` aligns them and compares
them block by block, since two digits of a class, or two photos of a scene, agree nearly everywhere,
but a copy agrees everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from .overlay import SIDE, TEXTURED, WHOLE, Place, align, match

COLOUR = 16  # side in pixels of the thumbnail that keeps the colours
COARSE = 8  # side of the thumbnail that proposes pairs
ALIKE = 0.8  # correlation of coarse thumbnails, colours included, from which a pair is compared
# Correlation that a pair with little texture has to reach, so that the colours agree as well.
COLOURS = 0.97
NEIGHBOURS = 8  # the most similar images, with which each one is compared closely
CROPS = (0.0, 0.045, 0.09)  # shares cut off at an edge; `align` finds those in between
FEW, MANY = 1500, 20_000  # most images for which all crops, or those with equal margins, are tried
# At most so many pairs are compared, and so many of these aligned: about ten seconds' work. The
# most similar pairs come first, so only faint copies in very large sets are missed.
MATCHED, ALIGNED = 20_000, 1500
# Least block correlation and largest stray of a pair that is worth aligning.
HOPEFUL, STRAYING = 0.3, 1.5
SMALL = 32  # shorter side in pixels up to which no part of an image is looked for
LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # weights of red, green and blue in grey
COLOURLESS = 4  # most levels by which the channels of a grey picture differ
SAME = 0.08  # relative change of contrast allowed in a grey copy with little texture
FLAT = 2.0  # standard deviation in grey levels below which there is nothing to compare
ROWS = 256  # images compared with all others at once


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is kept of an image to find its copies: a digest of its pixels, and thumbnails."""

    digest: str
    grey: np.ndarray  # uint8 (SIDE, SIDE), the mean of the channels
    luma: np.ndarray  # same shape, the grey that a grey copy would have
    colour: np.ndarray  # uint8 (COLOUR, COLOUR, 3)
    small: bool


def sketch(image: Image.Image) -> Sketch:
    """Return the sketch of an RGB image."""

    def shrunk(side: int) -> Image.Image:
        kind = Image.Resampling.BOX if min(image.size) >= side else Image.Resampling.BILINEAR
        return image.resize((side, side), kind, reducing_gap=4.0)

    thumb = shrunk(SIDE)
    pixels = np.asarray(thumb, np.float32)
    grey, luma = (some.round().astype(np.uint8) for some in (pixels.mean(-1), pixels @ LUMA))
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    colour = np.asarray(thumb.resize((COLOUR, COLOUR), Image.Resampling.BOX))
    return Sketch(digest, grey, luma, colour, min(image.size) <= SMALL)


def groups(sketches: Sequence[Sketch]) -> list[int]:
    """Return the group of each image, as the position of its first member; copies share one."""
    parents = list(range(len(sketches)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    def join(pairs: Iterable[tuple[int, int]]) -> None:
        for pair in pairs:
            low, high = sorted(map(root, pair))
            parents[high] = low

    seen: dict[str, int] = {}
    join((i, seen.setdefault(one.digest, i)) for i, one in enumerate(sketches))
    rest = [i for i in range(len(sketches)) if root(i) == i and sketches[i].grey.std() >= FLAT]
    if len(rest) < 2:
        return [root(i) for i in range(len(sketches))]
    some = [sketches[i] for i in rest]
    join((rest[i], rest[j]) for i, j in _near(some, np.stack([one.colour for one in some])))
    # A colour picture and a grey one are compared by brightness alone.
    greys = [np.ptp(one.colour.astype(int), axis=-1).max() <= COLOURLESS for one in some]
    if any(greys) and not all(greys):
        toneless = np.stack([one.colour @ LUMA for one in some])[..., None]
        join((rest[i], rest[j]) for i, j in _near(some, toneless, np.array(greys)))
    return [root(i) for i in range(len(sketches))]


def _near(sketches, colours, kinds=None):
    """Yield pairs of positions of near copies; with `kinds`, only pairs of different kinds."""
    aligned, seen = 0, set()
    for i, j, way, place, likeness in _proposed(colours.astype(np.float32), kinds):
        if (j, i, way, place) in seen:
            continue
        if len(seen) >= MATCHED:
            return
        seen.add((i, j, way, place))
        one, other = (s.grey if kinds is None else s.luma for s in (sketches[i], sketches[j]))
        one, small = _turned(one, way), sketches[i].small or sketches[j].small
        least = TEXTURED if likeness < COLOURS else 0.0
        found = [match(one, other, at) for at in {WHOLE, place}]
        found = [one for one in found if one.textured >= least]
        hopeful = any(one.median >= HOPEFUL and one.stray <= STRAYING for one in found)
        part = hopeful and not (small and max(one.textured for one in found) < TEXTURED)
        if part and aligned < ALIGNED and not any(one.is_copy(small) for one in found):
            aligned += 1
            found = [match(one, other, align(one, other, place))]
        # A black and a blue shape with the same outline are no copies, though blue is nearly as
        # dark.
        if kinds is not None:
            found = [m for m in found if m.textured >= TEXTURED or abs(m.gain - 1) <= SAME]
        if any(one.is_copy(small) for one in found):
            yield i, j


def _proposed(colours, kinds) -> Iterator[tuple[int, int, int, Place, float]]:
    """Yield (one, other, turn of the first, the part of it that the other may show, similarity).

    `colours` are the thumbnails (images, COLOUR, COLOUR, channels).
    """
    views = _views(len(colours))
    wholes, found = _coarse(colours, views[:1])[:, 0], []
    for start in range(0, len(colours), ROWS):
        some = _coarse(colours[start : start + ROWS], views)
        best = np.full((len(some), len(colours)), -1.0, np.float32)
        which = np.zeros(best.shape, np.uint8)
        for number in range(len(views)):
            likeness = some[:, number] @ wholes.T
            better = likeness > best
            best[better], which[better] = likeness[better], number
        rows = np.arange(len(some))
        best[rows, start + rows] = -1
        if kinds is not None:
            best[kinds[start + rows, None] == kinds] = -1
        count = min(NEIGHBOURS, len(colours) - 1)
        for row, near in enumerate(np.argpartition(-best, count - 1)[:, :count]):
            found += [
                (-best[row, j], start + row, int(j), int(which[row, j]))
                for j in near
                if best[row, j] >= ALIKE
            ]
    for unlikeness, i, j, number in sorted(found):
        yield i, j, *views[number], float(-unlikeness)


def _views(count: int) -> list[tuple[int, Place]]:
    """Return the views of an image that are compared with the others: (turn, part of it)."""
    spans = [(low, 1 - high) for low, high in product(CROPS, CROPS)]
    even = [(low, 1 - low) for low in CROPS]
    if count <= FEW:
        places = [(*y, *x) for y, x in product(spans, spans)]
    else:
        places = [(*y, *y) for y in (even if count <= MANY else even[:1])]
    return [(0, place) for place in places] + [(way, WHOLE) for way in range(1, 8)]


def _turned(picture, way):
    """Rotate a picture (side, side, ...) by `way % 4` quarter turns; mirror it if `way` >= 4."""
    turned = np.rot90(picture, way % 4)
    return turned[:, ::-1] if way >= 4 else turned


def _coarse(colours, views):
    """Return normalised thumbnails of some views, (images, views, channels COARSE ** 2)."""
    found = np.empty((len(colours), len(views), colours.shape[-1] * COARSE**2), np.float32)
    for number, (way, (top, bottom, left, right)) in enumerate(views):
        down, across = _shares(top, bottom), _shares(left, right)
        turned = np.moveaxis(_turned(np.moveaxis(colours, 0, -1), way), -1, 0)
        small = np.einsum("ay,nyxc,bx->nabc", down, turned, across, optimize=True)
        found[:, number] = small.reshape(len(colours), -1)
    found -= found.mean(-1, keepdims=True)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-6)


def _shares(start: float, stop: float) -> np.ndarray:
    """Return the weight of each pixel in each coarse pixel, (COARSE, COLOUR)."""
    edges, pixels = np.linspace(start * COLOUR, stop * COLOUR, COARSE + 1), np.arange(COLOUR)
    low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    part = np.clip(high - low, 0, None)
    return (part / part.sum(1, keepdims=True)).astype(np.float32)
