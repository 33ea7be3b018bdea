"""Run one cell in this process."""

import os
from typing import Any

from ..config import Recipe
from ..pipeline.stages import Cell
from ..results.record import write_record
from ..store.artifacts import Store
from ..store.cores import own_cores


def run_cell(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Compute a cell's artifacts that the store lacks, write its record and return it.

    The caller marks the store as in use and handles signals.
    """
    cell = Cell(recipe)
    _bound_threads()
    return write_record(cell, cell.compute(store), store)


def _bound_threads():
    """Limit torch's threads to the container's quota and a GPU's share of the cores.

    Torch itself respects only the affinity.
    """
    import torch

    cores = own_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
