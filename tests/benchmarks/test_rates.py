"""The rates from a store: what artifacts took, told apart into what grows with the work and what
does not.
"""

import pandas as pd
import pytest

from benchmarks.rates import COSTLY, observed, rates
from datadream.engines.rates import seconds
from datadream.pipeline.stages import STAGES, Cell
from datadream.store.artifacts import Store
from datadream.store.files import write_json
from datadream.study import cells
from datadream.study.plan import load_or_describe

TRUE = {
    "adapt": 0.016,
    "generate": 0.004,
    "train": 0.0025,
    "judge": 0.001,
    "fixed": {"adapt": 0.5, "generate": 1.0, "train": 2.0, "judge": 0.5},
}


def test_the_rates_come_back_from_the_seconds_that_they_give(tmp_path):
    """Two sizes of each stage, as a study and its smoke test have them; manifests say what each
    took.
    """
    store, recipes = Store(tmp_path), []
    for images in (4, 100):
        overrides = {"generate.images": images, "adapt.epochs": images, "adapt.warmup": 1}
        recipes += cells.cells(
            ["dset+real"], dataset="optdigits" if images == 4 else "mnist", overrides=overrides
        )
    for recipe in recipes:
        cell = Cell(recipe, load_or_describe(recipe))
        for stage in STAGES:
            for part, key in cell.keys_of(stage.name).items():
                took = float(seconds(cell, stage.name, TRUE, part))
                (tmp_path / key).mkdir()
                write_json(tmp_path / key / "manifest.json", {"files": {}, "seconds": took})
    found = rates(observed(recipes, store))
    for stage in COSTLY:
        assert found[stage] == pytest.approx(TRUE[stage], rel=0.02) and found["fixed"][
            stage
        ] == pytest.approx(TRUE["fixed"][stage], abs=0.05)


def test_one_size_tells_no_fixed_cost_and_a_missing_stage_is_named():
    rows = [
        {"key": stage, "stage": stage, "units": 100, "looked": 0, "seconds": 5.0}
        for stage in COSTLY
    ]
    assert rates(pd.DataFrame(rows)) == {"fixed": dict.fromkeys(COSTLY, 0.0)} | dict.fromkeys(
        COSTLY, 0.05
    )
    with pytest.raises(ValueError, match="no artifact of the stage 'train'"):
        rates(pd.DataFrame([row for row in rows if row["stage"] != "train"]))
