"""Fit the rates for time estimates to the artifacts in a store.

Usage: `python -m benchmarks.rates mnist optdigits`. First run `make study` on an otherwise idle
machine, and `make smoke`, whose small artifacts reveal the fixed costs. Prints a row of
`datadream.engines.rates.THROUGHPUT`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from datadream.config import Recipe
from datadream.engines.rates import looked
from datadream.paths import paths
from datadream.pipeline.stages import STAGES, Cell
from datadream.store.artifacts import Store
from datadream.store.open import open_store
from datadream.study.named_runs import cells_of, choose, load_study
from datadream.study.plan import load_or_describe

COSTLY = tuple(stage.name for stage in STAGES if stage.work)


def observed(recipes: Iterable[Recipe], store: Store) -> pd.DataFrame:
    """Return a row per artifact of these cells in the store.

    The columns are key, stage, units, looked and seconds; `looked` is the number of validation
    images that a training classifies over all its evaluations.
    """
    rows: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        cell = Cell(recipe, load_or_describe(recipe))
        for stage in STAGES:
            for part, key in cell.keys_of(stage.name).items() if stage.work else ():
                if manifest := store.manifest(key):
                    rows[key] = {
                        "key": key,
                        "stage": stage.name,
                        "units": stage.work(cell, part)[2],
                        "looked": looked(cell) if stage.name == "train" else 0,
                        "seconds": manifest["seconds"],
                    }
    return pd.DataFrame(rows.values(), columns=["key", "stage", "units", "looked", "seconds"])


def rates(table: pd.DataFrame) -> dict[str, Any]:
    """Return the seconds per unit by stage, and under "fixed" those per artifact.

    They are fitted by non-negative least squares to medians by size. With artifacts of one size
    only the two cannot be separated, and the fixed part is 0. Raises ValueError on a stage without
    artifacts.
    """
    from scipy.optimize import nnls

    found: dict[str, Any] = {"fixed": {}}
    # First, since training includes evaluation at this rate.
    for stage in ("judge", *(stage for stage in COSTLY if stage != "judge")):
        own = table[table["stage"] == stage]
        if own.empty:
            raise ValueError(
                f"the store has no artifact of the stage {stage!r} of these runs; execute them "
                "first: python -m datadream study"
            )
        seconds = own["seconds"] - own["looked"] * (found["judge"] if stage == "train" else 0.0)
        # Medians: the first artifact in a process loads models, and the machine has other load.
        sizes = seconds.groupby(own["units"]).median()
        units = sizes.index.to_numpy(float)
        columns = [units, np.ones_like(units)] if len(units) > 1 else [units]
        # Relative errors, so that small artifacts determine the fixed part.
        scale = 1 / np.maximum(sizes.to_numpy(float), 0.1)
        solution, _ = nnls(np.stack(columns, 1) * scale[:, None], sizes.to_numpy(float) * scale)
        found[stage] = float(f"{solution[0]:.3g}")
        found["fixed"][stage] = round(float(solution[1]), 2) if len(units) > 1 else 0.0
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the rates and how well they fit each stage; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="runs of notebooks/study.yaml (default: all of the group)"
    )
    parser.add_argument(
        "--group", default="default", help="which group of runs (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    study = load_study()
    entries = list(choose(study, options.names, options.group).values())
    tiny = [
        {
            **entry,
            "parameters": entry.get("parameters", {}) | study["smoke"].get(entry["notebook"], {}),
        }
        for entry in entries
    ]
    parts = [
        observed([r for entry in some for cells in cells_of(entry).values() for r in cells], store)
        for some, store in ((entries, open_store()), (tiny, Store(paths()["smoke"] / "artifacts")))
    ]
    table = pd.concat([part for part in parts if len(part)] or parts[:1])
    try:
        found = rates(table)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    rows = table.to_dict("records")
    table["estimated"] = [
        row["units"] * found[row["stage"]]
        + row["looked"] * found["judge"]
        + found["fixed"][row["stage"]]
        for row in rows
    ]
    print(
        table.groupby("stage")
        .agg(artifacts=("key", "size"), seconds=("seconds", "sum"), estimated=("estimated", "sum"))
        .round(1)
        .to_string()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
