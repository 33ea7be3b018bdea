"""Tokenize prompts as a generator's text encoders do, without loading their weights."""

import copy
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from ..catalog import absent, hub_id, local

LONGEST = 512  # tokens, for a tokenizer without a maximum length


def placeholder(label: int | None) -> str:
    """Return the placeholder in prompts for the new token of a class, or of all classes."""
    return "<dataset>" if label is None else f"<class-{label}>"


def tokens_of(name: str, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt, truncated as in use; several encoders' are joined.

    A `placeholder` counts as one token, as it will once it is learnt. Raises OSError if the
    tokenizers are not available.
    """
    rows = [()] * len(texts)
    new = sorted({one for text in texts for one in re.findall(r"<dataset>|<class-\d+>", text)})
    for tokenizer in _tokenizers(name):
        if new:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_tokens(new)
        length = min(tokenizer.model_max_length, LONGEST)
        found = tokenizer(list(texts), truncation=True, max_length=length).input_ids
        rows = [(*row, *ids) for row, ids in zip(rows, found, strict=True)]
    return rows


@lru_cache(maxsize=4)
def _tokenizers(name: str) -> list[Any]:
    import transformers
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    if lacking := absent(name, "generator"):
        raise OSError(lacking)
    place = local(name, "generator") or hub_id(name)
    parts = cast("dict[str, Any]", DiffusionPipeline.load_config(place))
    kinds = {n: v[1] for n, v in parts.items() if n.startswith("tokenizer") and v and v[1]}
    if not kinds:
        raise OSError(f"{place} has no tokenizer")
    return [
        getattr(transformers, kind).from_pretrained(place, subfolder=part)
        for part, kind in kinds.items()
    ]
