"""Prompts that a model cannot tell apart, found before anything is made for them."""

from __future__ import annotations

import warnings
from functools import lru_cache

from ..errors import DataError, brief
from ..models.catalog import absent
from ..models.classifiers.clip import tokens_of as classifier_tokens
from ..models.generators.tokens import tokens_of as generator_tokens
from .base import Support
from .checked import prompts
from .registry import method_of


class UncheckedWarning(UserWarning):
    """A model is there, and its tokenizer is not found as the check looks for it."""


def require_distinct(support: Support) -> None:
    """Raise DataError if two classes have prompts of the same tokens, with both names.

    What is compared is what the classifier and, where something is generated, the generator read:
    cut at the length of their text towers. A method may ask for two classes in the same words; but
    two texts that have become one are no choice of anybody's. Reads tokenizers and no weights.
    A model that is not at hand is left to whoever loads it, which says more; where it is, and its
    tokenizer cannot be read, an UncheckedWarning tells that its prompts were not compared.
    """
    recipe, method = support.recipe, method_of(support.recipe)
    _compare(support, "classifier", recipe.classifier, "clip")
    if method.generates:
        _compare(support, "generator", recipe.generator, "generator")


def _compare(support, field, name, part):
    try:
        _compared(support, field)
    except _UnreadError as unread:
        if not absent(name, part):
            warnings.warn(
                f"the prompts of the classes were not compared for the {field} {name!r}, whose "
                f"tokenizer cannot be read ({unread}); two classes may be one to it",
                UncheckedWarning,
                stacklevel=4,
            )


class _UnreadError(Exception):
    """The tokens of a model cannot be had; raised, so that nothing is cached of it."""


@lru_cache(maxsize=128)
def _compared(support: Support, field: str) -> None:
    classes = support.classes
    if field == "classifier":
        name, tokens = support.recipe.classifier, classifier_tokens
        asked = [(text, label) for label, text in enumerate(support.class_prompts())]
    else:
        name, tokens = support.recipe.generator, generator_tokens
        asked = [(t, label) for label in range(len(classes)) for t in prompts(support, label)]
    owners: dict[str, int] = {}
    for text, label in asked:
        owners.setdefault(text, label)
    texts = list(owners)
    try:
        rows = tokens(name, texts)
    except Exception as error:  # libraries raise whatever a folder of another layout makes them
        raise _UnreadError(f"{type(error).__name__}: {brief(str(error))}") from error
    seen: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, rows, strict=True):
        other = seen.setdefault(row, text)
        if owners[other] != owners[text]:
            raise DataError(
                f"the classes {brief(classes[owners[other]])} and {brief(classes[owners[text]])} "
                f"are one to the {field} {name!r}: the {len(row)} tokens that it reads of "
                f"{brief(other)} and of {brief(text)} are the same, since it cuts long names and "
                f"has no tokens for some characters; rename them so that they differ early"
            )
