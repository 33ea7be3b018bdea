"""ProtoAug (Nguyen et al., ICML 2025, arXiv 2505.24190): two more terms in the classifier's loss.

As published: once before training, K-means divides the real and synthetic images into regions of
CLIP's feature space, two per class. Within a region, the discrepancy term pulls the logits of
synthetic images towards those of the real ones, and the robustness term pulls synthetic ones
together (`region_terms`). `protoaug` trains on images of DataDream's generator, `protoaug_light` on
those of the untuned one. So each is `dset+real` or `base+real` with another loss, at no extra
cost for images. Without real images no term would be left, so there is no such row.

Weights: the paper has discrepancy to robustness as 10 : 1, the released configuration 0.1 to 1. The
paper's ratio is used, with 1 for the larger. Both are divided by five, since equation 3 with lambda
= 0.8 is a fifth of the published 4 CE(real) + CE(synthetic). They are not tuned here.

Unlike in the released code, features are those of the untouched CLIP (there centroids start as
noise among pixels and follow the synthetic images alone), a region is found by the image's index in
its set (there by its index in the batch, although the loader shuffles), and a region holds only one
class (there all classes share twice as many centroids as classes). Batches are not mixed
(`classify.mix` must be 0), since a mixture of two images lies in the region of neither.

Left out: 64 or 500 images per class, the light version's negative prompt, and batches with one real
to four synthetic images; the profile's are kept. The terms need all logits of a step, so a step
cannot be split when memory runs out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .base import ExtraLoss, Given, Method, Support
from .datadream import DatasetWise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RegionLoss(ExtraLoss):
    """The discrepancy and robustness terms within each region of CLIP's feature space."""

    clusters: int = 2  # regions per class (paper)
    discrepancy: float = 0.2  # weight of pairs of a real and a synthetic image (1 / 5)
    robustness: float = 0.02  # weight of pairs of synthetic images (0.1 / 5)

    def require(self, support: Support) -> None:
        """Raise ConfigError on mixed images, which belong to no single region."""
        mix = support.recipe.classify.mix
        if mix:
            raise ConfigError(
                f"method {support.recipe.method!r} compares the logits of images of one region, "
                f"and classify.mix={mix:g} mixes images of several; give classify.mix=0"
            )

    def prepare(self, given: Given) -> Tensor:
        """Return the region (n,) of each image; regions are numbered across the classes."""
        import torch

        features = torch.nn.functional.normalize(
            given.frozen.features(given.images).double(), dim=1
        )
        found = partition(features.cpu().numpy(), np.asarray(given.images.labels), self.clusters)
        return torch.from_numpy(found)

    def added(self, logits: Tensor, targets: Tensor, real: Tensor, kept: Tensor) -> Tensor:
        """Return the weighted sum of both terms."""
        discrepancy, robustness = region_terms(logits, kept, real)
        return self.discrepancy * discrepancy + self.robustness * robustness


def partition(features: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Return the region (n,) of each image: its cluster within its class, by K-means of features.

    `features` are (n, D). A class's regions are numbered from `clusters` times its label. A class
    with fewer distinct images has a cluster for each.
    """
    from sklearn.cluster import KMeans

    found = np.zeros(len(labels), int)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(clusters, len(np.unique(features[own], axis=0)))
        means = KMeans(count, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]
        means.fit(features[own])
        found[own] = clusters * label + means.labels_
    return found


def region_terms(logits: Tensor, regions: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discrepancy and the robustness of a batch, summed as in the released code.

    Each of the g synthetic images whose region has real images adds 1/g times its mean squared
    distance in logits (mean over the classes) to those real images, for the discrepancy, and to the
    region's synthetic images, itself included, for the robustness. `logits` are (B, classes);
    `regions` and the mask `real` (B,) are on the host.
    """
    from ..data.transfer import sent_together  # here, since it imports torch

    alike, made = regions[:, None] == regions, ~real
    reals, others = (alike & real).sum(1), (alike & made).sum(1)  # in the region of each image
    counted = alike & (made & (reals > 0))[:, None]
    terms = []
    for kind, count in ((real, reals), (made, others)):
        first, second = (counted & kind).nonzero(as_tuple=True)
        share = 1 / (count[first] * made.sum()).to(logits.dtype)
        first, second = sent_together([first, second], logits.device)
        (share,) = sent_together([share], logits.device)
        distances = (logits[first] - logits[second]).square().mean(1)
        terms.append((share * distances).sum())
    return terms[0], terms[1]


# The colours are those of the generators.
UNMIXED = {"paper": {"classify.mix": 0.0}, "mini": {"classify.mix": 0.0}}
METHODS = (
    DatasetWise(
        "protoaug", "ProtoAug", "#0072B2", "nguyen2025provably", real=True, loss=RegionLoss(),
        marker="P", settings=UNMIXED,
    ),
    Method(
        "protoaug_light", "ProtoAug, light", "#E69F00", "nguyen2025provably", real=True,
        loss=RegionLoss(), marker="P", settings=UNMIXED,
    ),
)  # fmt: skip
