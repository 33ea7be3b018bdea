"""Align one thumbnail with another, and decide whether they show the same picture."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIDE = 64  # side of a thumbnail in pixels
BLOCKS = 8  # blocks per side, in each of which a copy agrees
LEVELS = ((3.0, 4), (1.5, 3), (0.8, 3))  # (blur in pixels, steps) of the search, coarse to fine
STRAY = 0.2  # largest stray of a copy's block, in standard deviations; two digits reach 0.24
SMALL_STRAY = 0.12  # for pictures so small that others may resemble them by chance
GAIN = (0.6, 1.67)  # how much darker or brighter a copy may be
# Texture blurred by JPEG strays more; a picture with texture and correlation everywhere is a copy
# nonetheless. Digits are mostly paper.
TEXTURED, CORRELATED, WORST = 0.9, 0.75, 0.3

Place = tuple[float, float, float, float]  # top, bottom, left, right, as shares of the other's side
WHOLE: Place = (0.0, 1.0, 0.0, 1.0)


class Match(NamedTuple):
    """How two pictures agree where they overlap, block by block."""

    stray: float = np.inf  # largest stray of a block, relative to its contrast
    gain: float = 0.0
    textured: float = 0.0  # correlation of these blocks: the median and, below, the lowest decile
    median: float = 0.0  # correlation of those: the middle one, and of the worst tenth the best
    worst: float = 0.0

    def is_copy(self, small: bool) -> bool:
        """True if both show the same picture; `small` ones are judged more strictly."""
        if not GAIN[0] <= self.gain <= GAIN[1]:
            return False
        found, least = self[2:], (TEXTURED, CORRELATED, WORST)
        rough = all(value >= limit for value, limit in zip(found, least, strict=True))
        return rough or self.stray <= (SMALL_STRAY if small else STRAY)


@lru_cache(maxsize=8)
def _kernel(sigma):
    """Return a Gaussian blur along one side as a matrix (SIDE, SIDE); edges are repeated."""
    pixels = np.arange(-2 * SIDE, 3 * SIDE)
    weights = np.exp(-0.5 * ((pixels[None] - np.arange(SIDE)[:, None]) / sigma) ** 2)
    matrix = np.zeros((SIDE, SIDE))
    np.add.at(matrix.T, np.clip(pixels, 0, SIDE - 1), weights.T)
    return matrix / matrix.sum(1, keepdims=True)


def blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Return a thumbnail (SIDE, SIDE) after a Gaussian blur of `sigma` pixels."""
    return _kernel(sigma) @ grey.astype(float) @ _kernel(sigma).T


def _weights(positions):
    """Return the weight of each pixel in a linear interpolation at `positions`, in pixels."""
    centres = np.clip(positions - 0.5, 0, SIDE - 1)
    return np.clip(1 - np.abs(centres[:, None] - np.arange(SIDE)), 0, None)


def _at(picture, ys, xs):
    """Return bilinear samples of a thumbnail at rows and columns in pixels from its edge."""
    return _weights(ys) @ picture @ _weights(xs).T


def _spread(place, count):
    """Return `count` rows and columns evenly spaced over a place, and their relative positions."""
    top, bottom, left, right = (SIDE * edge for edge in place)
    way = (np.arange(count) + 0.5) / count
    return top + (bottom - top) * way, left + (right - left) * way, way


def _inside(positions):
    return (positions >= 0) & (positions <= SIDE)


def align(one: np.ndarray, other: np.ndarray, start: Place) -> Place:
    """Find the part of `one` that `other` shows, by Gauss-Newton steps from `start`.

    Fits the four edges, brightness and contrast to the least squared difference (Lucas and Kanade,
    1981).
    """
    place = np.array(start)
    for sigma, steps in LEVELS:
        picture, wanted = blurred(one, sigma), blurred(other, sigma)
        slopes = np.gradient(picture)
        rows, columns, way = _spread(WHOLE, SIDE // 2)
        wanted = _at(wanted, rows, columns)
        for _ in range(steps):
            ys, xs, _ = _spread(place, SIDE // 2)
            shown = np.ix_(_inside(ys), _inside(xs))
            across, along = _weights(ys), _weights(xs).T
            seen, down, right = (across @ some @ along for some in (picture, *slopes))
            column, row = way[:, None], way[None]
            terms = (down * (1 - column), down * column, right * (1 - row), right * row)
            terms = (*terms, seen, np.ones_like(seen))
            system = np.stack([term[shown].ravel() for term in terms], 1)
            rest = (wanted - seen)[shown].ravel()
            square = system.T @ system + 1e-3 * np.eye(6)
            change = np.linalg.solve(square, system.T @ rest)
            moved = np.clip(change[:4] / max(1 + change[4], 0.2), -2, 2) / SIDE
            place = np.clip(place + moved, (-0.2, 0.8, -0.2, 0.8), (0.2, 1.2, 0.2, 1.2))
            if np.abs(moved).max() < 0.02 / SIDE:
                break
    top, bottom, left, right = map(float, place)
    return top, bottom, left, right


def match(one: np.ndarray, other: np.ndarray, place: Place = WHOLE) -> Match:
    """Compare `other` with the part of `one` at `place`, up to brightness and contrast."""
    ys, xs, _ = _spread(place, SIDE)
    rows, columns = _inside(ys), _inside(xs)
    if min(rows.mean(), columns.mean()) < 0.8:
        return Match()
    a = _at(blurred(one, 0.8), ys[rows], xs[columns])
    b = blurred(other, 0.8)[np.ix_(rows, columns)]
    a, b = a - a.mean(), b - b.mean()
    gain = float((a * b).sum() / max((a * a).sum(), 1e-6))
    x, y, whole = _blocks(gain * a), _blocks(b), b.var()
    contrast = np.maximum(x.var(-1), y.var(-1))
    stray = np.sqrt(((y - x) ** 2).mean(-1) / (contrast + 0.25 * whole + 1e-6)).max()
    some = contrast > 0.05 * whole
    if not some.any():
        return Match(float(stray), gain)
    x, y = (v - v.mean(-1, keepdims=True) for v in (x[some], y[some]))
    each = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1) + 1e-6)
    worst, median = np.quantile(each, (0.1, 0.5))
    return Match(float(stray), gain, float(some.mean()), float(median), float(worst))


def _blocks(picture):
    """Return the pixels of each block, (BLOCKS ** 2, pixels); a remainder at an edge is dropped."""
    height, width = (side // BLOCKS for side in picture.shape)
    cut = picture[: BLOCKS * height, : BLOCKS * width]
    cut = cut.reshape(BLOCKS, height, BLOCKS, width).swapaxes(1, 2)
    return cut.reshape(BLOCKS * BLOCKS, -1)
