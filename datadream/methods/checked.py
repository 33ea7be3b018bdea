"""A method's adapters, prompts and draws, checked and cached.

A method may come from outside the package, so each of its faults raises one message that names the
method, the call and what is accepted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from PIL.Image import Image

from ..config import require_strength, require_warmup
from ..errors import ConfigError, DataError, brief, printable
from ..seeds import seed_for
from .base import Adapter, Draw, Method, Support
from .registry import method_of


@lru_cache(maxsize=64)
def draws(support: Support, label: int) -> tuple[Draw, ...]:
    """Return how each image of a class is made.

    Raises ConfigError, which names the method, if a draw is invalid or the method fails.
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
    """Turn whatever a method raises into a ConfigError that names it; our errors pass unchanged."""
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
    """Raise ConfigError on an invalid draw."""
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
    _require_weights(where, support, one)
    _require_label(where, one.label, len(support.classes))
    _require_negative(where, one.negative, support.recipe.generate)
    _require_images(where, support, one.images)
    _require_start(where, support, label, one)


def _require_weights(where, support, one):
    """Raise ConfigError on weights that do not match the adapters."""
    count = sum(adapter.parts(support) for adapter in one.adapters)
    if one.weights and not _numbers(one.weights, count):
        kind = support.recipe.adapt.kind
        raise ConfigError(
            f"{where} weights={brief(one.weights)}; give a finite number for each of its "
            f"{len(one.adapters)} adapters"
            + f", {count} in all, since adapt.kind={kind!r}"
            * (kind != "lora")
        )


def _numbers(values, count):
    """True if `values` are `count` finite numbers."""
    return len(values) == count and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )


def _require_label(where, shares, classes):
    """Raise ConfigError on a soft label that is not a distribution over the classes."""
    named = [label for label, _ in shares]
    known = all(type(label) is int and 0 <= label < classes for label in named)
    parts = [share for _, share in shares]
    good = known and len(set(named)) == len(named) and _numbers(parts, len(parts))
    if shares and not (good and min(parts) >= 0 and math.isclose(sum(parts), 1, abs_tol=1e-6)):
        raise ConfigError(
            f"{where} label={brief(shares)}; give (class, share) pairs, each class of 0 to "
            f"{classes - 1} once, whose shares sum to one"
        )


def _require_negative(where, negative, options):
    """Raise ConfigError on a negative prompt that is not text, or that no guidance uses."""
    if not isinstance(negative, str) or not printable(negative):
        raise ConfigError(f"{where} negative={brief(negative)}; give printable text, or ''")
    if negative and not (options.guidance > 1 and options.guided > 0):
        raise ConfigError(
            f"{where} negative={brief(negative)}, but generate.guidance={options.guidance:g} and "
            f"generate.guided={options.guided:g} lead away from nothing; give a guidance above 1"
        )


def _require_images(where, support, images):
    """Raise ConfigError on image prompts that are not few shots, or that no IP-Adapter takes."""
    if not images:
        return
    if not support.recipe.generate.image_prompts:
        raise ConfigError(
            f"{where} images={brief(images)}, but generate.image_prompts='' names no IP-Adapter; "
            "set it in the method's settings"
        )
    good = len(images) == 2 and all(
        type(label) is int
        and 0 <= label < len(support.classes)
        and type(shot) is int
        and 0 <= shot < support.count(label)
        for label, shot in images
    )
    if not good:
        raise ConfigError(
            f"{where} images={brief(images)}; give (class, place) of two few shots: one to lead "
            "to, and one to lead away from"
        )


def _require_start(where, support, label, one):
    """Raise ConfigError on a start that is not a shot, or that cannot be used."""
    options, classes = support.recipe.generate, len(support.classes)
    if one.start is None:
        if one.source is not None or one.strengths:
            raise ConfigError(f"{where} start=None, but it has a source or strengths; give both")
        return
    if not options.strength:
        raise ConfigError(
            f"{where} start={one.start}, but generate.strength=0 starts from noise; set it in the "
            "method's settings"
        )
    source = label if one.source is None else one.source
    if type(source) is not int or not 0 <= source < classes:
        raise ConfigError(f"{where} source={brief(source)}; give a class, 0 to {classes - 1}")
    count = support.count(source)
    if type(one.start) is not int or not 0 <= one.start < count:
        raise ConfigError(
            f"{where} start={brief(one.start)}; give the place of a shot, 0 to {count - 1}"
        )
    if not _numbers(one.strengths, len(one.strengths)) or not all(
        0 < strength <= 1 for strength in one.strengths
    ):
        raise ConfigError(f"{where} strengths={brief(one.strengths)}; give numbers in (0, 1]")


def require_draws(support: Support) -> None:
    """Raise ConfigError on an invalid draw, before anything is made.

    Also on a strength that is not a whole number of solver steps, since it would equal another.
    """
    options, asked = support.recipe.generate, set()
    own = type(method_of(support.recipe)).draw is not Method.draw
    for label in range(len(support.classes)) if own or options.shown else ():
        for one in draws(support, label):
            if options.image_prompts and not one.images:
                raise ConfigError(
                    f"generate.image_prompts={brief(options.image_prompts)}, and method "
                    f"{support.recipe.method!r} gives no images to prompt with; leave it empty"
                )
            asked |= set(one.strengths or [options.strength]) if one.start is not None else set()
    for strength in sorted(asked):
        require_strength("generate.strength", strength, options.steps)


def image_prompts(support: Support, label: int, index: int) -> list[Image]:
    """Return the image prompts of image `index` of a class: few shots after `Method.view`."""
    method, found = method_of(support.recipe), []
    for which, (source, shot) in enumerate(draws(support, label)[index].images):
        rng = np.random.default_rng(seed_for("view", support.recipe.seed, label, index, which))
        with naming(method, f"view, class {label}, image {index}"):
            found.append(method.view(support.shots(source).open(shot), rng))
    return found


@lru_cache(maxsize=64)
def adapters(support: Support) -> tuple[Adapter, ...]:
    """Return the adapters that the recipe's method samples with, each once.

    Empty for a method that generates nothing. Raises ConfigError on an adapter that does not fit
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
            "adapt.warmup", recipe.adapt.warmup, recipe.adapt.length(one.shots(support)), "steps"
        )
    if len(set(found)) < len(found):
        raise ConfigError(f"method {method.name!r}, adapters: one of them appears twice")
    return found


def _require_adapter(method, support, one):
    """Raise ConfigError on an adapter for a class or an image that the few shots lack."""
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
    """Return the prompts that the images of a class use in turn; they are part of the key."""
    method = method_of(support.recipe)
    with naming(method, f"prompts, class {label}"):
        found = list(method.prompts(support, label))
    _require_texts(f"method {method.name!r}, prompts of class {label}:", found)
    if not found:
        raise ConfigError(f"method {method.name!r}, prompts of class {label}: give at least one")
    return found


def tuning_prompts(support: Support, adapter: Adapter) -> list[str | tuple[str, ...]]:
    """Return the prompt of each image that an adapter is tuned on, or several to choose from."""
    method, count = method_of(support.recipe), adapter.shots(support)
    with naming(method, f"tuning_prompts, {adapter}"):
        found = list(method.tuning_prompts(support, adapter))
    where = f"method {method.name!r}, tuning_prompts of {adapter}:"
    _require_texts(where, [t for one in found for t in (one if isinstance(one, tuple) else [one])])
    if len(found) != count or () in found:
        raise ConfigError(f"{where} {len(found)} for {count} images; give one for each")
    return found


def own_adapter_key(support: Support, adapter: Adapter) -> dict[str, Any]:
    """Return what the method adds to an adapter's key: prompts other than the classes'."""
    found = tuning_prompts(support, adapter)
    plain = Method.tuning_prompts(method_of(support.recipe), support, adapter)
    return {} if found == plain else {"tuning_prompts": found}


def _require_texts(where, texts):
    """Raise ConfigError on anything but printable text."""
    for one in texts:
        if not isinstance(one, str) or not one or not printable(one):
            raise ConfigError(f"{where} {brief(one)}; give printable text")


def own_key(support: Support) -> dict[str, Any]:
    """Return what the method adds to the key of its synthetic set; see `Method.key`."""
    method = method_of(support.recipe)
    with naming(method, "key"):
        return dict(method.key(support, lambda label: list(draws(support, label))))
