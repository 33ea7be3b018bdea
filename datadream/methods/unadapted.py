"""The generator as it is, asked with the paper's prompt: what DataDream is measured against."""

from .base import Method

METHODS = (Method("base", "Un-adapted generator", "#E69F00", main=True),)
