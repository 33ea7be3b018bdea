"""Linear probe (Radford et al., 2021; CoOp, 2022): logistic regression on frozen features.

As in the released code of CoOp (Zhou et al., 2022), where it is a baseline: multinomial logistic
regression with an L2 penalty, fitted by L-BFGS with at most 1,000 iterations on the raw visual
features of the shots' centre crops, without text. The penalty's C is chosen on validation images:
seven powers of ten from 1e6 to 1e-6, then eight bisections of log C within a factor of ten of the
best.

Different here: the image tower is the recipe's, not CLIP's ResNet-50. Of two C with the same
accuracy, the one with the lower loss is taken; the code takes the larger one.

Tuning budget: 23 fits, on min(shots, 4) validation images per class (`validation`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Given, Head, Method

if TYPE_CHECKING:
    from torch import Tensor

POWERS = (6, 4, 2, 0, -2, -4, -6)  # of ten: the first candidates for C


@dataclass(frozen=True)
class Probe(Head):
    """Logistic regression on raw features."""

    bisections: int = 8
    iterations: int = 1000

    def fit(self, given: Given) -> dict[str, Tensor]:
        """Return weight (classes, D) and bias (classes,) for the C that validation chose."""
        from ..models.classifiers.frozen import choice

        features, labels = given.frozen.features(given.images), given.frozen.labels(given.images)
        seen, wanted = given.frozen.features(given.val), given.frozen.labels(given.val)

        def at(power: float) -> tuple[tuple[float, float], dict[str, Tensor]]:
            state = self.regression(features, labels, 10**power)
            return choice(self.logits(state, seen, given.frozen.text), wanted), state

        found = {power: at(power) for power in POWERS}
        peak = max(found, key=lambda power: found[power][0])
        low, high = peak - 1.0, peak + 1.0
        best = found[peak]
        for _ in range(self.bisections):
            left, right = at(low), at(high)
            best = max(best, left, right, key=lambda one: one[0])
            middle = (low + high) / 2
            low, high = (low, middle) if left[0] > right[0] else (middle, high)
        return best[1]

    def regression(self, features: Tensor, labels: Tensor, c: float) -> dict[str, Tensor]:
        """Fit the regression with the penalty's C, and return its weight and bias."""
        import torch
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=c, max_iter=self.iterations)
        with warnings.catch_warnings():  # the limit is the published one
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features.cpu().double().numpy(), labels.cpu().numpy())
        weight, bias = torch.tensor(model.coef_), torch.tensor(model.intercept_)
        if len(weight) == 1:  # for two classes scikit-learn gives the second one's alone
            weight, bias = (torch.cat([torch.zeros_like(x), x]) for x in (weight, bias))
        return {"weight": weight.float().to(features), "bias": bias.float().to(features)}

    def logits(self, state: Mapping[str, Tensor], features: Tensor, text: Tensor) -> Tensor:
        """Return the regression's logits; `text` is ignored."""
        return features @ state["weight"].T + state["bias"]


METHODS = (
    Method(
        "probe", "Linear probe", "#aa66ff", "zhou2022coop", real=True, generates=False,
        head=Probe(), marker="^", settings={"paper": {}, "mini": {"validation": 4}},
    ),
)  # fmt: skip
