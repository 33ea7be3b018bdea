"""Find class prompts that a model cannot tell apart, before anything is made with them."""

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
    """A model is available, but the check cannot read its tokenizer."""


def require_distinct(support: Support) -> None:
    """Raise DataError, with both names, if the prompts of two classes have the same tokens.

    The tokens are those that the classifier and, if anything is generated, the generator see, cut
    to the length of their text towers. A method may use the same text for two classes on purpose,
    but two different texts must not become one. Reads tokenizers, no weights. A missing model is
    left to the code that loads it, whose error says more; if the model is there but its tokenizer
    cannot be read, an UncheckedWarning says that its prompts were not compared.
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
    """A model's tokens are not available; an exception, so that the outcome is not cached."""


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
    except Exception as error:  # libraries may raise anything on a folder of another layout
        raise _UnreadError(f"{type(error).__name__}: {brief(str(error))}") from error
    seen: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, rows, strict=True):
        other = seen.setdefault(row, text)
        if owners[other] != owners[text]:
            raise DataError(
                f"the classes {brief(classes[owners[other]])} and {brief(classes[owners[text]])} "
                f"are the same to the {field} {name!r}: the {len(row)} tokens that it reads of "
                f"{brief(other)} and of {brief(text)} do not differ, since it cuts long names and "
                f"has no tokens for some characters; rename them so that they differ early"
            )
