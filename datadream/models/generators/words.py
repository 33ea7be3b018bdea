"""The tokenized prompts of the few shots, for each training step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ...seeds import seed_for
from .base import Generator

if TYPE_CHECKING:
    from torch import Tensor


class Words:
    """Tokens of each image's prompt; if an image has several, each step picks one at random."""

    def __init__(self, generator: Generator, texts: Sequence[str | tuple[str, ...]], seed: int):
        rows = [(one,) if isinstance(one, str) else one for one in texts]
        self.counts, self.seed = [len(row) for row in rows], seed
        self.first = list(accumulate(self.counts, initial=0))
        self.tokens = generator.tokenize([text for row in rows for text in row])

    def at(self, rows: Sequence[int], step: int) -> tuple[Tensor, ...]:
        """Return the tokens of some images' prompts, for `Generator.condition`.

        The random choice depends only on the seed, the image and the step.
        """
        chosen = [
            self.first[i] + seed_for(self.seed, "words", step, i) % self.counts[i] for i in rows
        ]
        return tuple(ids[chosen] for ids in self.tokens)
