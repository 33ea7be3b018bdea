"""Cross-modal adaptation (Lin et al., CVPR 2023, arXiv 2301.06267): class texts as further shots.

As in the paper and the released code: a linear head without bias on unit features, with logits
scaled as CLIP's, initialised as the zero-shot classifier. Half of each batch are features of
images: centre crops and, if the recipe flips, their mirror images. The other half are features of
class texts with their labels. The loss is the cross-entropy over both. AdamW, 50 steps of warm-up,
a cosine; every hundredth step is evaluated on validation images, and the best is kept.

Different here: the code searches learning rate, weight decay and batch size per dataset; here they
are 1e-3, 0.01 and 8, from its grid, for all. Its other variants, among them an average with the
zero-shot head, are left out.

The number of steps is its own, since a step uses stored features and needs no pass through CLIP:
the published 12,800, and a quarter of that in the mini profile, where the loss has long stopped
falling. They take less time than the steps that the other methods share.

Tuning budget: the step alone, one of 128 (mini: of 32), on min(shots, 4) validation images per
class (`validation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..seeds import seed_for
from .base import Given, Head, Method, Support

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CrossModal(Head):
    """A linear head trained on features of both images and texts."""

    reads: ClassVar[tuple[str, ...]] = (
        "flip", "lr", "weight_decay", "batch", "steps", "select", "evaluations",
    )  # fmt: skip

    published: int = 12_800  # steps; `classify.steps` sets another number
    warmup: int = 50  # steps

    def work(self, support: Support, count: int) -> tuple[int, int]:
        """Return (steps, images encoded: centre crops and mirror images)."""
        options = support.recipe.classify
        return options.steps or self.published, (2 if options.flip else 1) * count

    def chooses(self, support: Support) -> bool:
        """True unless the recipe keeps the last weights."""
        return support.recipe.classify.select == "validation"

    def fit(self, given: Given) -> dict[str, Tensor]:
        """Return weight (C, D) and scale, from the step that validation chose or the last."""
        import torch
        from torch.nn import functional as F

        from ..training.curve import Curve
        from ..training.loop import fit
        from ..training.schedule import stream

        options, seed = given.support.recipe.classify, given.support.recipe.seed
        frozen, text = given.frozen, given.frozen.text
        kinds = [
            frozen.features(given.images, mirrored)
            for mirrored in (False, True)[: 1 + bool(options.flip)]
        ]
        seen = F.normalize(torch.cat(kinds), dim=-1)
        labels = frozen.labels(given.images).repeat(len(kinds))
        val, wanted = F.normalize(frozen.features(given.val), dim=-1), frozen.labels(given.val)
        weight, half = torch.nn.Parameter(text.clone()), options.batch // 2
        steps = options.steps or self.published
        points = {
            round(steps * (i + 1) / options.evaluations) - 1 for i in range(options.evaluations)
        }
        curve = Curve(given.folder, given.checkpoint)

        def loss_at(step: int) -> Any:
            rows = stream(len(seen), half, step, seed_for("images", seed))
            names = stream(len(text), half, step, seed_for("texts", seed))
            found = torch.cat([seen[rows], text[names]]) @ weight.T
            wanted = torch.cat([labels[rows], torch.tensor(names, device=labels.device)])
            return F.cross_entropy(frozen.scale * found, wanted)

        def after(step: int, loss: float) -> None:
            accuracy = ((val @ weight.T).argmax(1) == wanted).double().mean().item()
            if self.chooses(given.support) and curve.is_best(step + 1, accuracy):
                curve.keep(step + 1, {"weight": weight})
            curve.add(step + 1, accuracy, loss)

        fit(
            {"weight": weight}, loss_at, steps=steps, lr=options.lr, warmup=min(self.warmup, steps),
            weight_decay=options.weight_decay, seed=seed_for("head", seed),
            checkpoint=given.checkpoint, after=after, points=points,
            description="train head",
        )  # fmt: skip
        curve.restore_best({"weight": weight.data})
        return {"weight": weight.detach(), "scale": frozen.scale}

    def logits(self, state: Mapping[str, Tensor], features: Tensor, text: Tensor) -> Tensor:
        """Return the scaled products of the unit features with the head's weights."""
        from torch.nn import functional as F

        return state["scale"] * F.normalize(features, dim=-1) @ state["weight"].T


SHARED = {
    "classify.lr": 1e-3,
    "classify.weight_decay": 1e-2,
    "classify.batch": 8,
    "classify.select": "validation",
}
METHODS = (
    Method(
        "crossmodal", "Cross-modal adaptation", "#aa66ff", "lin2023crossmodal", real=True,
        generates=False, head=CrossModal(), marker="v",
        settings={
            "paper": {**SHARED, "classify.evaluations": 128},
            "mini": {
                **SHARED, "validation": 4, "classify.steps": 3200, "classify.evaluations": 32,
            },
        },
    ),
)  # fmt: skip
