"""Training batches of real and synthetic images, augmented and mixed (paper, section 3.4)."""

import torch
import torch.nn.functional as F

from ..config import Classify
from ..seeds import seed_for
from ..training.schedule import stream
from .decode_cache import Decoded
from .images import Images
from .transfer import sent


class Batches:
    """Augmented training batches of real and synthetic images.

    `at(step)` gives images (B, 3, S, S) in [0, 1], soft targets (B, C) and a real mask (B,). The
    mask is on the host, so that reading it needs no synchronisation; the others are on `device`.
    With both kinds, half of each batch is real: the paper repeats the few shots until there are as
    many as synthetic images.
    """

    def __init__(
        self,
        real: Images | None,
        synthetic: Images | None,
        options: Classify,
        classes: int,
        size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        from .augment import Augmentation  # here, since torchvision takes seconds to import

        self.sets = {
            kind: images
            for kind, images in ((True, real), (False, synthetic))
            if images is not None
        }
        self.options, self.classes, self.seed, self.device = options, classes, seed, device
        self.augment, self.decoded = Augmentation(options, size), Decoded(self.sets, device)

    def _keys(self, step):
        count = self.options.batch // len(self.sets)
        return {
            kind: [(kind, i) for i in stream(len(images), count, step, seed_for(self.seed, kind))]
            for kind, images in self.sets.items()
        }

    def members(self, step: int) -> list[tuple[bool, int]]:
        """Return (is real, position in its set) of each image of `at(step)`, before mixing."""
        return [one for own in self._keys(step).values() for one in own]

    def _targets(self, images, rows):
        """Return soft targets (rows, C) on the host: each image's shares of the classes."""
        labels = torch.tensor([images.labels[i] for i in rows])
        targets = F.one_hot(labels, self.classes).float()
        for row, i in enumerate(rows if images.shares else ()):
            targets[row] = 0
            for label, share in images.shares[i]:
                targets[row, label] = share
        return targets

    def _mix(self, images, targets):
        from torchvision.transforms import v2

        if len(targets) < 2 or torch.rand(()) >= self.options.mix:
            return images, targets
        kind = v2.CutMix if torch.rand(()) < 0.5 else v2.MixUp
        return kind(num_classes=self.classes)(images, targets)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the batch of `step`: images, soft targets, real mask.

        The augmentation draws from torch's global generator, which `fit` seeds per step.
        """
        parts, keys = [], self._keys(step)
        pictures = {kind: self.decoded.take(own) for kind, own in keys.items()}
        for own in self._keys(step + 1).values():
            self.decoded.start(own)
        for kind, own in keys.items():
            targets = sent(self._targets(self.sets[kind], [i for _, i in own]), self.device)
            views, targets = self._mix(self.augment(pictures[kind]), targets)
            parts.append((views, targets, torch.full((len(own),), kind)))
        images, targets, real = (torch.cat(column) for column in zip(*parts, strict=True))
        return images, targets, real
