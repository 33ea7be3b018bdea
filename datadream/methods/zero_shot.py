"""Zero-shot CLIP (Radford et al., 2021): compare images with class names, without training."""

from .base import Method

METHODS = (
    Method(
        "clip", "CLIP zero-shot", "#666666", "radford2021clip", generates=False, trained=False,
        main=True,
    ),
)  # fmt: skip
