"""The order of the images and the learning rate, as functions of the step."""

import math

import torch

from ..seeds import seed_for


def stream(n: int, count: int, step: int, seed: int) -> list[int]:
    """Return batch `step` of `count` indices from an endless chain of permutations of range(n).

    A sampler without state: a batch does not depend on those before it.
    """
    first = step * count
    epochs = range(first // n, (first + count - 1) // n + 1)
    orders = [
        torch.randperm(n, generator=torch.Generator().manual_seed(seed_for(seed, "order", e)))
        for e in epochs
    ]
    return torch.cat(orders)[first - epochs[0] * n :][:count].tolist()


def cosine_schedule(step: int, steps: int, warmup: int, minimum: float = 0.0) -> float:
    """Return the learning-rate factor in [minimum, 1] at `step` (paper, section 4).

    Linear warm-up, then half a cosine.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    gone = (step - warmup) / max(1, steps - warmup)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, gone)))
