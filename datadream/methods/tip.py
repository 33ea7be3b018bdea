"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022, arXiv 2207.09519): a cache of few shots.

The logits of a unit feature f are s f W' + a exp(-b (1 - f F')) L: W are the class texts, s is
CLIP's scale, F are the keys, one per shot, and L their labels.

As in the released code: a key is the mean feature of ten augmented views of a shot, normalised to
unit length. Tip-Adapter trains nothing. Tip-Adapter-F goes on to train the keys: AdamW at 1e-3 with
eps 1e-4, a cosine, batches of 256, 20 epochs over the shots; then a and b are searched again.

Different here: the code keeps the epoch with the best *test* accuracy; here the last keys are used.
The code sets per dataset the ranges in which a and b are searched, from 0.1 to between 3 and 50,
the a and b used while training the keys, and the epochs, 100 for EuroSAT. Here one grid,
logarithmic from 0.1 to 50, serves all datasets, the keys are trained with Tip-Adapter's a and b,
and the epochs are 20.

The number of steps is the published one, not the study's: only one vector per shot is trained, and
more steps would only fit the shots more closely (`classify.steps` sets another number).

Tuning budget: 20 values of a times 200 of b, once (Tip-Adapter-F: before and after), on min(shots,
4) validation images per class (`validation`); of pairs with the same accuracy, the one with the
lower loss is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..seeds import seed_for
from .base import CROPS_ALONE, VIEWS, Given, Head, Method, Support

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tip(Head):
    """The untrained cache; only a and b are chosen."""

    reads: ClassVar[tuple[str, ...]] = VIEWS

    passes: int = 10  # views of a shot that are averaged for its key
    alphas: int = 20  # values of a
    betas: int = 200  # values of b
    low: float = 0.1  # ends of both grids
    high: float = 50.0

    def work(self, support: Support, count: int) -> tuple[int, int]:
        """Return (0, views of all shots)."""
        return 0, self.passes * count

    def fit(self, given: Given) -> dict[str, Tensor]:
        """Return the cache with the a and b that validation chose."""
        return self.tuned(given, self.cache(given))

    def cache(self, given: Given) -> dict[str, Tensor]:
        """Return keys (n, D), labels as one-hot values (n, C) and the scale."""
        from torch.nn import functional as F

        recipe, frozen = given.support.recipe, given.frozen
        seed = seed_for("cache", recipe.seed)
        views = frozen.views(given.images, recipe.classify, self.passes, seed)
        labels = F.one_hot(frozen.labels(given.images), len(given.support.classes))
        keys = F.normalize(views.mean(0), dim=-1)
        return {"keys": keys, "values": labels.float(), "scale": frozen.scale}

    def tuned(self, given: Given, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with the a and b of the grid that are best on the validation images."""
        import torch
        from torch.nn import functional as F

        from ..models.classifiers.frozen import choice

        labels = given.frozen.labels(given.val)
        unit = F.normalize(given.frozen.features(given.val), dim=-1)
        zero = state["scale"] * unit @ given.frozen.text.T
        far = 1 - unit @ state["keys"].detach().T
        best, chosen = (-1.0, 0.0), {}
        for beta in self.grid(self.betas):
            near = torch.exp(-beta * far) @ state["values"]
            for alpha in self.grid(self.alphas):
                found = choice(zero + alpha * near, labels)
                if found > best:
                    best, chosen = found, {"alpha": alpha, "beta": beta}
        return {**state, **{name: torch.tensor(value) for name, value in chosen.items()}}

    def grid(self, count: int) -> list[float]:
        """Return `count` logarithmically spaced values from `low` to `high`."""
        ratio = math.log(self.high / self.low) / max(1, count - 1)
        return [self.low * math.exp(ratio * i) for i in range(count)]

    def logits(self, state: Mapping[str, Tensor], features: Tensor, text: Tensor) -> Tensor:
        """Return the zero-shot logits plus those of the cache."""
        import torch
        from torch.nn import functional as F

        unit = F.normalize(features, dim=-1)
        near = torch.exp(-state["beta"] * (1 - unit @ state["keys"].T))
        return state["scale"] * unit @ text.T + state["alpha"] * near @ state["values"]


@dataclass(frozen=True)
class TipF(Tip):
    """The cache with trained keys."""

    reads: ClassVar[tuple[str, ...]] = (*VIEWS, "lr", "weight_decay", "batch", "steps")

    epochs: int = 20  # over the images; `classify.steps` sets another number of steps

    def steps(self, support: Support, count: int) -> int:
        """Return the optimiser steps for `count` images."""
        options = support.recipe.classify
        return options.steps or self.epochs * math.ceil(count / options.batch)

    def work(self, support: Support, count: int) -> tuple[int, int]:
        """Return (steps, views encoded)."""
        steps = self.steps(support, count)
        batch = min(support.recipe.classify.batch, max(count, 1))
        return steps, self.passes * count + steps * batch

    def fit(self, given: Given) -> dict[str, Tensor]:
        """Return the cache after training its keys, with the a and b that validation chose."""
        return self.tuned(given, self.trained(given, super().fit(given)))

    def trained(self, given: Given, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with keys trained on augmented views of the images."""
        import torch
        from torch.nn import functional as F

        from ..data.batches import Batches
        from ..training.loop import fit

        recipe, frozen, count = given.support.recipe, given.frozen, len(given.images)
        options = replace(recipe.classify, mix=0.0, batch=max(2, min(recipe.classify.batch, count)))
        size, device = frozen.model.size, frozen.text.device
        seed = seed_for("cache batches", recipe.seed)
        batches = Batches(given.images, None, options, len(frozen.text), size, seed, device)
        keys = torch.nn.Parameter(state["keys"].clone())

        def loss_at(step: int) -> Any:
            images, targets, _ = batches.at(step)
            with torch.no_grad():
                features = frozen.model.features(images)
            return F.cross_entropy(
                self.logits({**state, "keys": keys}, features, frozen.text), targets
            )

        fit(
            {"keys": keys}, loss_at, steps=self.steps(given.support, count), lr=options.lr,
            weight_decay=options.weight_decay, eps=1e-4, seed=seed_for("cache keys", recipe.seed),
            checkpoint=given.checkpoint, description="train cache",
        )  # fmt: skip
        return {**state, "keys": keys.detach()}


SETTINGS = {"paper": {**CROPS_ALONE, "classify.crop_low": 0.5}, "mini": {"validation": 4}}
TRAINED = {"classify.lr": 1e-3, "classify.weight_decay": 1e-2, "classify.batch": 256}
METHODS = (
    Method(
        "tip", "Tip-Adapter", "#aa66ff", "zhang2022tip", real=True, generates=False, head=Tip(),
        marker="s", settings=SETTINGS,
    ),
    Method(
        "tipf", "Tip-Adapter-F", "#aa66ff", "zhang2022tip", real=True, generates=False,
        head=TipF(), marker="D",
        settings={profile: {**own, **TRAINED} for profile, own in SETTINGS.items()},
    ),
)  # fmt: skip
