"""What a generator's text encoders read of a prompt, without loading their weights."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from ..catalog import absent, hub_id, local

LONGEST = 512  # tokens, where a tokenizer knows no end


def tokens_of(name: str, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token ids of some prompts, cut as they are used; those of several encoders follow
    each other.

    Raises OSError where the tokenizers are not at hand.
    """
    rows = [()] * len(texts)
    for tokenizer in _tokenizers(name):
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
