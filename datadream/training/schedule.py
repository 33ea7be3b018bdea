"""The order of the images and the learning rate, as functions of the step."""

import math

import torch

from ..seeds import seed_for


def stream(n, count, step, seed):
    """Return positions step * count ... of an endless sequence of permutations of range(n): a
    sampler that needs no state.
    """
    first = step * count
    epochs = range(first // n, (first + count - 1) // n + 1)
    orders = [
        torch.randperm(n, generator=torch.Generator().manual_seed(seed_for(seed, "order", e)))
        for e in epochs
    ]
    return torch.cat(orders)[first - epochs[0] * n :][:count].tolist()


def cosine_schedule(step, steps, warmup, minimum=0.0):
    """Return the learning-rate factor in [minimum, 1] at `step`: linear warm-up, then half a
    cosine (paper, section 4).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    gone = (step - warmup) / max(1, steps - warmup)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, gone)))
