"""The base generator with the paper's prompt: the baseline for DataDream."""

from .base import Method

METHODS = (Method("base", "Un-adapted generator", "#E69F00", main=True),)
