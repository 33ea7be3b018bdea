"""Zero-shot CLIP (Radford et al., 2021): no synthetic or real images, no training."""

from .base import Method

METHODS = (
    Method(
        "clip", "CLIP zero-shot", "#666666", "radford2021clip", generates=False, trained=False,
        main=True,
    ),
)  # fmt: skip
