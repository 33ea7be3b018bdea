"""A method's adapters, prompts and draws, checked and cached.

A method may come from outside the package, so each of its faults ends in one message that names
the method, the call and what is accepted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from ..config import require_warmup
from ..errors import ConfigError, DataError, brief, printable
from ..seeds import seed_for
from .base import Adapter, Draw, Method, Support
from .registry import method_of


@lru_cache(maxsize=64)
def draws(support: Support, label: int) -> tuple[Draw, ...]:
    """Return how each image of a class is made.

    Raises ConfigError, which names the method, on an invalid draw and on whatever it raises.
    """
    method, recipe = method_of(support.recipe), support.recipe
    known, found = set(adapters(support)), []
    for index in range(recipe.generate.images):
        rng = np.random.default_rng(seed_for("draw", recipe.seed, label, index))
        with naming(method, f"draw, class {label}, image {index}"):
            one = method.draw(support, label, index, rng)
        _require(method, support, label, index, one, known)
        found.append(one)
    return tuple(found)


@contextmanager
def naming(method: Method, where: str) -> Iterator[None]:
    """Turn whatever a method raises into a ConfigError that names it; ours pass unchanged."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise ConfigError(
            f"method {method.name!r} ({type(method).__module__}.{type(method).__qualname__}) "
            f"failed in {where}: {type(error).__name__}: {error}"
        ) from error


def _require(method, support, label, index, one, known):
    """Raise ConfigError on a draw that cannot be made."""
    where = f"method {method.name!r}, draw of class {label}, image {index}:"
    if not isinstance(one, Draw):
        raise ConfigError(f"{where} {brief(one)} is a {type(one).__name__}; return a Draw")
    if not isinstance(one.prompt, str) or not one.prompt or not printable(one.prompt):
        raise ConfigError(f"{where} prompt={brief(one.prompt)}; give printable text")
    strange = [adapter for adapter in one.adapters if adapter not in known]
    if strange:
        raise ConfigError(
            f"{where} {strange[0]} is none of the {len(known)} adapters that its `adapters` names"
        )
    if one.start is None:
        return
    if not support.recipe.generate.strength:
        raise ConfigError(
            f"{where} start={one.start}, but generate.strength=0 starts from noise; set it in the "
            "method's settings"
        )
    count = support.count(label)
    if type(one.start) is not int or not 0 <= one.start < count:
        raise ConfigError(
            f"{where} start={brief(one.start)}; give the place of a few shot, 0 to {count - 1}"
        )


def groups(support: Support, label: int) -> list[tuple[range, tuple[Adapter, ...]]]:
    """Split a class into (range of image indices, their adapters) that can share a batch.

    Such images are consecutive, with the same adapters, and all from noise or all from shots.
    """
    recipe = support.recipe
    method, count = method_of(recipe), recipe.generate.images
    if type(method).draw is Method.draw:  # cheap, for planning a cluster's work
        noise = not recipe.generate.strength
        made = [(method.used(support, label, index), noise) for index in range(count)]
    else:
        made = [(one.adapters, one.start is None) for one in draws(support, label)]
    most = method.together or count
    alike = [(*one, index // most) for index, one in enumerate(made)]
    found, start = [], 0
    for (own, _, _), some in groupby(alike):
        stop = start + len(list(some))
        found.append((range(start, stop), own))
        start = stop
    return found


@lru_cache(maxsize=64)
def adapters(support: Support) -> tuple[Adapter, ...]:
    """Return the adapters that the recipe's method samples with, each once.

    Empty for a method that generates nothing. Raises ConfigError on an adapter that does not suit
    this dataset, and on a warm-up longer than an adapter's training.
    """
    recipe = support.recipe
    method = method_of(recipe)
    if not method.generates:
        return ()
    with naming(method, "adapters"):
        found = tuple(method.adapters(support))
    for one in found:
        if not isinstance(one, Adapter):
            raise ConfigError(
                f"method {method.name!r}, adapters: {brief(one)} is a {type(one).__name__}; return "
                "Adapters"
            )
        _require_adapter(method, support, one)
        require_warmup(
            "adapt.warmup",
            recipe.adapt.warmup,
            recipe.adapt.epochs * math.ceil(one.shots(support) / recipe.adapt.batch),
            "steps",
        )
    if len(set(found)) < len(found):
        raise ConfigError(f"method {method.name!r}, adapters: one of them stands there twice")
    return found


def _require_adapter(method, support, one):
    """Raise ConfigError on an adapter of a class or an image that the few shots lack."""
    classes = len(support.classes)
    if one.label is not None and (type(one.label) is not int or not 0 <= one.label < classes):
        raise ConfigError(
            f"method {method.name!r}, adapters: {one}; label is None or 0 to {classes - 1}"
        )
    if one.image is None:
        return
    count = support.count(one.label)
    if type(one.image) is not int or not 0 <= one.image < count:
        raise ConfigError(
            f"method {method.name!r}, adapters: {one}; image is None or 0 to {count - 1}"
        )


def prompts(support: Support, label: int) -> list[str]:
    """Return the prompts that the images of a class take in turn, as the key holds them."""
    method = method_of(support.recipe)
    with naming(method, f"prompts, class {label}"):
        found = list(method.prompts(support, label))
    for one in found:
        if not isinstance(one, str) or not one or not printable(one):
            raise ConfigError(
                f"method {method.name!r}, prompts of class {label}: {brief(one)}; give printable "
                "text"
            )
    if not found:
        raise ConfigError(f"method {method.name!r}, prompts of class {label}: give one at least")
    return found


def own_key(support: Support) -> dict[str, Any]:
    """Return what the method adds to the key of its synthetic set; see `Method.key`."""
    method = method_of(support.recipe)
    with naming(method, "key"):
        return dict(method.key(support, lambda label: list(draws(support, label))))
