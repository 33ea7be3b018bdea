"""DataDream, a reproducible study: few-shot guided dataset generation (Kim et al., ECCV 2024).

The paper is arXiv 2407.10910. `recipe` describes a cell of the study, `run` and `run_cells` compute
cells and return their records, `load_records` reads existing ones, `Method` and `register` add a
method, and `open_store` opens the `Store` of artifacts. Each is imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .methods.base import Method
    from .methods.recipes import recipe
    from .methods.registry import register
    from .results.records import load_records
    from .store.artifacts import Store
    from .store.open import open_store
    from .study.run import run, run_cells

__version__ = "0.1.0"
__all__ = [
    "Method",
    "Store",
    "__version__",
    "load_records",
    "open_store",
    "recipe",
    "register",
    "run",
    "run_cells",
]

_HOMES = {
    "Method": "methods.base",
    "register": "methods.registry",
    "Store": "store.artifacts",
    "load_records": "results.records",
    "open_store": "store.open",
    "recipe": "methods.recipes",
    "run": "study.run",
    "run_cells": "study.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name at first use (PEP 562): PyTorch and diffusers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
