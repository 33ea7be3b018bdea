"""Textual inversion: learn the embedding of one new token, and nothing else (DA-Fusion)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...config import Adapt
from ...errors import ConfigError
from ...paths import atomic_write
from .base import Attached, Generator
from .tokens import placeholder

TOKEN_FILE = "learned_embeds.safetensors"  # the name that load_textual_inversion looks for


class LearnedRows(nn.Module):
    """A frozen embedding table, extended by rows for new tokens."""

    def __init__(self, table: nn.Embedding, rows: Mapping[int, Tensor]):
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., width) of token ids."""
        found = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        for number, row in self.rows.items():
            found = torch.where((ids == number)[..., None], row.to(found.dtype), found)
        return found


def require_token(generator: Generator, options: Adapt) -> None:
    """Raise ConfigError on several text encoders, or if `adapt.word` is not exactly one token."""
    encoders = generator.text_encoders()
    if len(encoders) != 1:
        raise ConfigError(
            f"adapt.kind='token' learns a token of one text encoder, and this generator has "
            f"{len(encoders)} ({', '.join(encoders)}); take one of Stable Diffusion 1 or 2, or "
            "another method"
        )
    found = _start(generator, options.word) if options.word else []
    if len(found) != 1:
        raise ConfigError(
            f"adapt.word={options.word!r} is {len(found)} tokens to the generator, and the new "
            "token of adapt.kind='token' starts as one; give a common short word such as 'the'"
        )


def _start(generator, word):
    """Return a word's token ids, without start and end tokens."""
    return generator.pipe.tokenizer(word, add_special_tokens=False).input_ids


@contextmanager
def attached_token(
    generator: Generator, options: Adapt, label: int | None, shots: int
) -> Iterator[Attached]:
    """Add the token of a class within the context; see `base.Attaches`.

    Its embedding starts as that of `options.word`, in float32 whatever the frozen weights have.
    """
    require_token(generator, options)
    (start,) = _start(generator, options.word)
    table = generator.pipe.text_encoder.get_input_embeddings()
    row = nn.Parameter(table.weight[start].detach().float().clone())
    name = placeholder(label)

    def save(folder: Path) -> None:
        with atomic_write(folder / TOKEN_FILE) as part:
            save_file({name: row.detach().cpu()}, part)

    with _added(generator, {name: row}):
        yield Attached({name: row}, save)


@contextmanager
def loaded_token(
    generator: Generator, *folders: Path, weights: Sequence[float] = ()
) -> Iterator[Generator]:
    """Make the learnt tokens of some folders available to prompts within the context.

    Tokenizer and embedding table are swapped, not modified. `weights` must be empty.
    """
    if weights:
        raise ValueError("a token has no weight")
    rows = {}
    for folder in folders:
        rows |= load_file(folder / TOKEN_FILE, device=str(generator.device))
    with _added(generator, rows):
        yield generator


@contextmanager
def _added(generator, rows):
    """Swap in a copy of the tokenizer with the new tokens, and a table with their embeddings."""
    pipe = generator.pipe
    tokenizer, table = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
    pipe.tokenizer = copy.deepcopy(tokenizer)
    pipe.tokenizer.add_tokens(list(rows))
    numbers = pipe.tokenizer.convert_tokens_to_ids(list(rows))
    known = dict(zip(numbers, rows.values(), strict=True))
    pipe.text_encoder.set_input_embeddings(LearnedRows(table, known))
    try:
        yield
    finally:
        pipe.text_encoder.set_input_embeddings(table)
        pipe.tokenizer = tokenizer
