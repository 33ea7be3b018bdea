"""Distances between two feature matrices (images, features), and a measure of copying.

All are pure functions of the real set's features and the synthetic set's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Entries of a pairwise matrix held at once, 128 MB: of 50,000 images a side it would need 20 GB.
BLOCK = 2**24
ROUNDING = 1e-9  # relative error allowed to a squared distance, which is a difference of products


def _pair(
    x: ArrayLike, y: ArrayLike, least: int = 1, names: tuple[str, str] = ("real", "synthetic")
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, s in zip(names, (x, y), strict=True):
        if s.ndim != 2 or 0 in s.shape[1:]:
            raise ValueError(f"the {name} features have shape {s.shape}; give (images, features)")
        if len(s) < least:
            raise ValueError(
                f"the {name} features are of {len(s)} image(s); this measure needs {least} or more"
            )
        if not np.isfinite(s).all():
            raise ValueError(
                f"the {name} features of image {np.flatnonzero(~np.isfinite(s).all(1))[0]} are "
                "not finite; look at that image"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"the {names[0]} features are {x.shape[1]} wide and the {names[1]} ones {y.shape[1]}; "
            "take both from one extractor"
        )
    return x, y


def frechet(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Return the squared Frechet distance (>= 0), FID's formula (Heusel et al., 2017).

    Gaussians are fitted to both sets, of two rows or more. The trace of (C_1 C_2)^(1/2) is the sum
    of the singular values of A B^T, where C_1 = A^T A and C_2 = B^T B: no matrix root is taken,
    nothing is squared, and fewer images than features do no harm. The estimate is biased upwards
    for small sets, so compare sets of one size only.
    """
    x, y = _pair(real, synthetic, 2)
    a, b = ((s - s.mean(0)) / np.sqrt(len(s) - 1) for s in (x, y))
    r, s = (np.asarray(np.linalg.qr(part, mode="r")) for part in (a, b))
    roots = np.linalg.svd(r @ s.T, compute_uv=False)
    shift = x.mean(0) - y.mean(0)
    return max(0.0, float(shift @ shift + (a * a).sum() + (b * b).sum() - 2 * roots.sum()))


def _blocks(x, y):
    rows = max(1, BLOCK // len(y))
    return (slice(start, start + rows) for start in range(0, len(x), rows))


def _kernel_sum(kernel, x, y):
    return sum(float(kernel(x[rows], y).sum()) for rows in _blocks(x, y))


def kid(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Return the KID: unbiased squared MMD by (x . y / d + 1)^3 (Binkowski et al., 2018).

    It can fall below zero by chance. Each set needs two rows. All pairs are used rather than random
    subsets, which gives the same expectation with less variance.
    """
    x, y = _pair(real, synthetic, 2)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / x.shape[1] + 1) ** 3

    def within(s: np.ndarray) -> float:  # without the pairs of an image with itself
        own = float((((s * s).sum(1) / s.shape[1] + 1) ** 3).sum())
        return (_kernel_sum(kernel, s, s) - own) / (len(s) * (len(s) - 1))

    return within(x) + within(y) - 2 * _kernel_sum(kernel, x, y) / (len(x) * len(y))


def cmmd(
    real: ArrayLike, synthetic: ArrayLike, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """Return the CMMD of unit CLIP features: a scaled squared MMD (Jayasumana et al., 2024).

    It is `scale` times the squared MMD, >= 0; the kernel is Gaussian of width `sigma`. As in their
    code an image is also paired with itself: identical sets give 0, and small sets a little too
    much. Raises ValueError on features that are not of unit length, for which the width is made.
    """
    x, y = _pair(real, synthetic)
    lengths = np.linalg.norm(np.concatenate([x, y]), axis=1)
    if np.abs(lengths - 1).max() > 1e-3:
        raise ValueError(
            f"a feature vector has length {lengths[np.abs(lengths - 1).argmax()]:.3g}; CMMD needs "
            "unit features, so divide each row by it"
        )

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return np.exp(-squares / (2 * sigma**2))

    means = [_kernel_sum(kernel, a, b) / (len(a) * len(b)) for a, b in ((x, x), (y, y), (x, y))]
    return max(0.0, scale * (means[0] + means[1] - 2 * means[2]))


def _squares(x, y):
    """Yield the squared distances (rows, len(y)) of some rows of x at a time; a distance within
    rounding is 0.
    """
    # Centring keeps the products small, and with them the rounding error of their difference.
    centre = y.mean(0)
    x, y = x - centre, y - centre
    long, wide = (x * x).sum(1)[:, None], (y * y).sum(1)
    for rows in _blocks(x, y):
        squares, lengths = -2 * x[rows] @ y.T, long[rows] + wide
        squares += lengths
        squares[squares < ROUNDING * lengths] = 0
        yield squares


def _reach(x, k):
    """Return the squared distance (n,) of each row to its k-th nearest other row; position 0 is
    the row itself.
    """
    return np.concatenate([np.partition(squares, k, axis=1)[:, k] for squares in _squares(x, x)])


def precision(real: ArrayLike, synthetic: ArrayLike, k: int = 3) -> float:
    """Return the share of synthetic images in the real manifold (Kynkaanniemi et al., 2019).

    The manifold is the union of balls around real images that reach to their k-th neighbour. The
    balls are closed, as in their eq. 2. Raises ValueError on sets of k images or fewer.
    """
    x, y = _pair(real, synthetic, k + 1)
    reach = _reach(x, k) * (1 + ROUNDING)
    return float(np.mean(np.concatenate([(squares <= reach).any(1) for squares in _squares(y, x)])))


def recall(real: ArrayLike, synthetic: ArrayLike, k: int = 3) -> float:
    """Return the share of real images in the synthetic manifold (Kynkaanniemi et al., 2019).

    It is `precision` with the sets exchanged.
    """
    _pair(real, synthetic, k + 1)
    return precision(synthetic, real, k)


def density(real: ArrayLike, synthetic: ArrayLike, k: int = 5) -> float:
    """Return the density of real k-NN balls at the synthetic images (Naeem et al., 2020).

    That is the mean number of balls around a synthetic image, over k: >= 0 and about 1 for equal
    distributions. The balls are open, as in their code, so that identical sets give 1. Raises
    ValueError on sets of k images or fewer.
    """
    x, y = _pair(real, synthetic, k + 1)
    reach = _reach(x, k) * (1 - ROUNDING)
    return sum(int((squares < reach).sum()) for squares in _squares(y, x)) / (k * len(y))


def coverage(real: ArrayLike, synthetic: ArrayLike, k: int = 5) -> float:
    """Return the share of real images with a synthetic one in their k-NN ball (Naeem et al., 2020).

    The balls are those of `density`. For equal distributions n real and m synthetic images give 1 -
    (n - 1) ... (n - k) / ((n + m - 1) ... (n + m - k)) on average, so compare sets of one size
    only: with 2,340 and 1,000 images that is 0.83, with 2,340 and 160 only 0.28.
    """
    x, y = _pair(real, synthetic, k + 1)
    nearest = np.concatenate([squares.min(1) for squares in _squares(x, y)])
    return float(np.mean(nearest < _reach(x, k) * (1 - ROUNDING)))


def _unit(x):
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            "a feature vector is zero and has no direction; cosine similarity needs features of "
            "another extractor"
        )
    return x / lengths


def centroid(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Return the cosine similarity, in [-1, 1], of the two sets' mean features.

    The sets are usually those of one class.
    """
    x, y = (_unit(s.mean(0)) for s in _pair(real, synthetic))
    return float(np.clip(x @ y, -1, 1))


def nearest(images: ArrayLike, shots: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return (index, cosine similarity) of each image's nearest shot, two arrays (n,).

    `images` are (n, d), `shots` (m, d).
    """
    x, y = map(_unit, _pair(images, shots, names=("given", "few-shot")))
    blocks = [x[rows] @ y.T for rows in _blocks(x, y)]
    return np.concatenate([b.argmax(1) for b in blocks]), np.concatenate(
        [np.clip(b.max(1), -1, 1) for b in blocks]
    )


def read_by_nearest(
    images: ArrayLike,
    asked: Sequence[int],
    real: ArrayLike,
    labels: Sequence[int],
    same: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Read each image as the class of the real image it resembles most: (read, margin), each (n,).

    `asked` are the images' own classes and `labels` those of the real ones. `margin` is the cosine
    similarity to the nearest real image of another class, less that to the nearest of the asked
    class: above 0 for a misread image, and NaN where no real image is of the asked class. `same`
    says that `images` and `real` are one set, of which no image is its own nearest.
    """
    x, y = map(_unit, _pair(images, real, names=("given", "real")))
    order, own = np.argsort(labels, kind="stable"), np.asarray(asked)[:, None]
    classes, starts = np.unique(np.asarray(labels)[order], return_index=True)
    read, margin = np.empty(len(x), int), np.empty(len(x))
    for rows in _blocks(x, y):
        products = x[rows] @ y.T
        if same:
            itself = np.arange(len(products))
            products[itself, rows.start + itself] = -np.inf
        best = np.maximum.reduceat(products[:, order], starts, axis=1)
        read[rows] = classes[best.argmax(1)]
        mine = np.where(classes == own[rows], best, -np.inf).max(1)
        others = np.where(classes == own[rows], -np.inf, best).max(1)
        margin[rows] = others - np.where(np.isfinite(mine), mine, np.nan)
    return read, margin


def copying(
    real: ArrayLike, synthetic: ArrayLike, shots: ArrayLike, quantile: float = 0.95
) -> dict[str, float]:
    """Measure how near synthetic images come to the few shots that their generator saw.

    `real` are images that are not among the shots. `nearest` and `nearest_real` are the mean cosine
    similarities to the nearest shot, `closer` the share of synthetic images that are nearer to a
    shot than the `quantile` of real images: about 1 - quantile if the generator does not copy, 1 if
    it copies all.
    """
    ours, theirs = (nearest(s, shots)[1] for s in (synthetic, real))
    return {
        "nearest": float(ours.mean()),
        "nearest_real": float(theirs.mean()),
        "closer": float(np.mean(ours > np.quantile(theirs, quantile))),
    }


@dataclass(frozen=True)
class Measure:
    """One row of the table: a title with the better direction, and a function of (real, synthetic).

    `least` is the number of images that the smaller set needs; `unit` marks a measure that only
    takes unit CLIP features.
    """

    title: str
    function: Callable[[ArrayLike, ArrayLike], float]
    least: int = 1
    unit: bool = False


MEASURES = {
    "frechet": Measure("Fréchet distance (lower is nearer)", frechet, 2),
    "kid": Measure("KID (lower is nearer)", kid, 2),
    "cmmd": Measure("CMMD (lower is nearer)", cmmd, 1, unit=True),
    "precision": Measure("Precision (higher: realistic)", precision, 4),
    "recall": Measure("Recall (higher: diverse)", recall, 4),
    "density": Measure("Density (1: as real)", density, 6),
    "coverage": Measure("Coverage (higher: diverse)", coverage, 6),
    "centroid": Measure("Class-centroid cosine (higher is nearer)", centroid),
}

# Of every column that describes a set; the last three are `copying`'s.
TITLES = {name: row.title for name, row in MEASURES.items()} | {
    "nearest": "Cosine to the nearest few shot",
    "nearest_real": "Held-out real: cosine to the nearest few shot",
    "closer": "Share nearer to a shot than 95 % of real",
}
