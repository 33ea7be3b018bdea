"""Run one cell in this process."""

from typing import Any

from ..config import Recipe
from ..pipeline.stages import Cell
from ..results.record import write_record
from ..store.artifacts import Store


def run_cell(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Compute what the store lacks of a cell, write its record and return it.

    The caller marks the store as in use and handles signals.
    """
    cell = Cell(recipe)
    return write_record(cell, cell.compute(store), store)
