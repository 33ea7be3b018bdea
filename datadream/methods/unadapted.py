"""Untuned generator: draw from the base model with the paper's prompt, DataDream's baseline."""

from .base import Method

METHODS = (Method("base", "Untuned generator", "#E69F00", main=True),)
