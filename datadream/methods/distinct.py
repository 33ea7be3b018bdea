"""Prompts that a model cannot tell apart, found before anything is made for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from ..errors import DataError, ModelMissingError, brief
from ..models.classifiers.clip import tokens_of as classifier_tokens
from ..models.generators.tokens import tokens_of as generator_tokens
from .base import Support
from .checked import prompts
from .registry import method_of

Tokens = Callable[[str, Sequence[str]], Sequence[tuple[int, ...]]]


@lru_cache(maxsize=64)
def require_distinct(support: Support) -> None:
    """Raise DataError if two classes have prompts of the same tokens, with both names.

    What is compared is what the classifier and, where something is generated, the generator read:
    cut at the length of their text towers. A method may ask for two classes in the same words; but
    two texts that have become one are no choice of anybody's. Reads tokenizers and no weights.
    """
    recipe, labels = support.recipe, range(len(support.classes))
    asked = [(text, label) for label, text in enumerate(support.class_prompts())]
    _compare("classifier", recipe.classifier, classifier_tokens, asked, support.classes)
    if method_of(recipe).generates:
        asked = [(text, label) for label in labels for text in prompts(support, label)]
        _compare("generator", recipe.generator, generator_tokens, asked, support.classes)


def _compare(
    field: str, name: str, tokens: Tokens, asked: Iterable[tuple[str, int]], classes: Sequence[str]
) -> None:
    owners: dict[str, int] = {}
    for text, label in asked:
        owners.setdefault(text, label)
    texts = list(owners)
    try:
        rows = tokens(name, texts)
    # Whoever loads the model says what is wrong with it.
    except (ModelMissingError, ImportError, OSError, RuntimeError, KeyError, ValueError):
        return
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
