"""CLIP as it is: no synthetic image, no real one, no training (Radford et al., 2021)."""

from .base import Method

METHODS = (
    Method(
        "clip", "CLIP zero-shot", "#666666", "radford2021clip", generates=False, trained=False,
        main=True,
    ),
)  # fmt: skip
