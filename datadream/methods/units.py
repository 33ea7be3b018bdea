"""Group the images of a class into batches and units of work."""

from itertools import groupby
from typing import Any

from .base import Adapter, Method, Support
from .checked import draws
from .registry import method_of

SLICE = 100  # images per unit of work: some minutes at the paper's scale
Slice = list[tuple[range, tuple[Adapter, ...]]]  # (image indices, their adapters)


def groups(support: Support, label: int) -> list[tuple[range, tuple[Adapter, ...]]]:
    """Split a class into (range of image indices, their adapters) that can share a batch.

    Such images are consecutive, have the same adapters and weights, and start all from noise or all
    from shots at the same strengths.
    """
    recipe = support.recipe
    method, count = method_of(recipe), recipe.generate.images
    made: list[tuple[Any, ...]]
    if type(method).draw is Method.draw:  # cheap, for plans of a cluster's work
        made = [(method.used(support, label, index),) for index in range(count)]
    else:
        made = [
            (one.adapters, one.weights, one.strengths, one.start is None)
            for one in draws(support, label)
        ]
    most = method.together or count
    alike = [(*one, index // most) for index, one in enumerate(made)]
    found, start = [], 0
    for (own, *_), some in groupby(alike):
        stop = start + len(list(some))
        found.append((range(start, stop), own))
        start = stop
    return found


def slices(support: Support, label: int) -> list[Slice]:
    """Split the images of a class into units of about SLICE, each a list of (indices, adapters).

    A unit ends with a batch, so that batches are the same however units are distributed.
    """
    batch = support.recipe.generate.batch
    step = batch * max(1, SLICE // max(1, batch)) or SLICE
    found: list[Slice] = []
    for indices, own in groups(support, label):
        for start in range(indices.start, indices.stop, step):
            part = range(start, min(start + step, indices.stop))
            if found and sum(len(some) for some, _ in found[-1]) + len(part) <= step:
                found[-1].append((part, own))
            else:
                found.append([(part, own)])
    return found
