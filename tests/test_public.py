"""What `import datadream` gives: few names, each loaded at its first use."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

import datadream
from datadream.methods import recipes
from datadream.study import run

LIGHT = """
import json, sys, time
start = time.perf_counter()
import datadream
seconds = time.perf_counter() - start
names = dir(datadream)
heavy = sorted({"torch", "diffusers", "numpy", "pandas", "IPython"} & {*sys.modules})
print(json.dumps({"seconds": seconds, "heavy": heavy, "names": names}))
"""


def test_importing_the_package_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["heavy"] == [] and {*datadream.__all__} <= {*found["names"]}
    assert found["seconds"] < 3  # as a rule 0.01; a busy machine may take longer


def test_the_public_names_are_those_of_their_modules():
    from datadream.results import records
    from datadream.store import artifacts

    assert datadream.recipe is recipes.recipe and datadream.Store is artifacts.Store
    assert datadream.run is run.run and datadream.run_cells is run.run_cells
    assert datadream.load_records is records.load_records


def test_an_unknown_name_is_an_attribute_error_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'datadream' has no attribute 'recipes'"):
        _ = datadream.recipes
    with pytest.raises(ImportError, match="cannot import name 'recipes'"):
        exec("from datadream import recipes")


def test_type_checkers_read_the_annotations():
    assert (ROOT / "datadream" / "py.typed").is_file()
