"""Reuse committed records, so that a page can show cells without computing them again."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..config import Recipe
from ..pipeline.stages import Cell
from ..results.record import read_record, record_file
from ..results.records import tidy
from ..store.artifacts import Store
from ..store.open import open_store
from ..study.run import run_cells
from .freeze import committed_records


def split(
    recipes: Sequence[Recipe], store: Store | None = None
) -> tuple[list[Recipe], list[dict[str, Any]]]:
    """Split cells into those to run here and the committed records of the others.

    A cell with a record in the store counts as run here, which only reads it.
    """
    store, kept = store or open_store(), committed_records()
    here, elsewhere = [], []
    for recipe in recipes:
        file = record_file(Cell(recipe), store)
        if file.stem in kept and not store.refresh(file).exists():
            elsewhere.append(kept[file.stem])
        else:
            here.append(recipe)
    return here, elsewhere


def run_or_read(
    recipes: Sequence[Recipe], store: Store | None = None, workers: int = 1, engine: str = "local"
) -> pd.DataFrame:
    """Return the tidy table of these cells as `run_cells` does, reusing committed records.

    Only cells in neither the store nor the committed records are computed.
    """
    store = store or open_store()
    here, elsewhere = split(recipes, store)
    if here:
        run_cells(here, store, workers, engine)
    files = dict.fromkeys(record_file(Cell(recipe), store) for recipe in here)
    return tidy([*map(read_record, map(store.refresh, files)), *elsewhere])
