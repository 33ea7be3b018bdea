"""Estimated durations of the paper's tasks at an assumed throughput.

They follow from the counted operations of the full-size models and measured rates.
"""

import functools
import hashlib
import time

from datadream.data.images import PIXEL
from datadream.engines.rates import PROXY, seconds
from datadream.engines.roofline import CARDS, COUNTED, cost
from datadream.methods.registry import method_of
from datadream.pipeline.generate import generation_work
from datadream.pipeline.stages import Cell
from datadream.pipeline.train import training_work
from datadream.study.plan import load_or_describe

from . import limits

PEAK, SHARE = CARDS["H100"].half, 0.4  # the share is an assumption
# Assumed share of the host per GPU: the cores that decode training images, the memory that caches
# them, and the disk from which the rest is read.
CORES, MEMORY, DISK = 16, 128e9, 3e9  # bytes, bytes/s
SIDE = 512  # pixels of the paper's generator


def flops() -> dict[str, float]:
    """Return the operations counted in `roofline.COUNTED`, of both precisions together."""
    return {name: one.half + one.single for name, one in COUNTED.items()}


@functools.lru_cache
def rates():
    """Return rates of one core of this machine, in bytes/s.

    They are for decoding pixels of the generator's size, and for SHA-256.
    """
    block, count, start = bytes(2**24), 0, time.process_time()
    while time.process_time() - start < 1:
        hashlib.sha256(block).digest()
        count += len(block)
    return {"decoded": limits.decoding(SIDE), "hashed": count / (time.process_time() - start)}


def decoded(support):
    """Return how many synthetic images a training decodes, and how many it reads back from disk.

    The latter are all uses of a set that does not fit in memory.
    """
    method = method_of(support.recipe)
    if not method.generates or not method.trained:
        return 0, 0
    made, used = generation_work(support)[0], training_work(support)[2]
    # Half of each batch is real, and the few shots fit in memory.
    again = used / 2 if method.real else used
    return made, again if made * 3 * SIDE**2 > MEMORY else 0


@functools.lru_cache
def _cell(support):
    """Return the parts of a cell in seconds.

    They are the digests of the set, the classifier's products, decoding its images, and the test.
    """
    method, cell, core = method_of(support.recipe), Cell(support.recipe, support.dataset), rates()
    test = _products(cost(cell, "judge"))
    if not method.trained:
        return {"test": test}
    made = generation_work(support)[0] if method.generates else 0
    once, again = (count * 3 * SIDE**2 for count in decoded(support))
    return {
        "digests": made * PIXEL * SIDE**2 / core["hashed"],
        "products": _products(cost(cell, "train")),
        "decoding": once / core["decoded"] / CORES + again / DISK,
        "test": test,
    }


def _products(one):
    return (one.half + one.single) / PEAK / SHARE


def parts(task):
    """Return part -> seconds of a task of the paper's table.

    A cell decodes while it computes.
    """
    cell = Cell(task.recipe, load_or_describe(task.recipe))
    if task.kind == "cell":
        return dict(_cell(cell.support))
    if task.kind == "adapt":
        (one,) = task.where
        return {"products": _products(cost(cell, "adapt", one))}
    whole = _products(cost(cell, "generate"))
    return {"products": whole * task.length / seconds(cell, "generate", PROXY)}


def length(task):
    """Return the seconds of a task of the paper's table.

    Products and decoding overlap; the rest is sequential.
    """
    found = parts(task)
    return max(found.pop("products", 0.0), found.pop("decoding", 0.0)) + sum(found.values())
