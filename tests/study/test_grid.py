"""The grid of the comparison: which cells it has, and why it lacks others."""

import json

import pytest
from conftest import executed

from datadream.errors import ConfigError
from datadream.study import grid, named_runs


def test_the_primary_methods_have_more_seeds(tiny):
    found = grid.grid(["mnist", "optdigits"], [1, 2], ["clip", "real"], [0], [0, 1, 2], tiny)
    seeds = {}
    for one in found:
        seeds.setdefault((one.dataset, one.shots, one.method), []).append(one.seed)
    assert len(seeds) == 2 * 2 * 3
    assert all(own == [0] for where, own in seeds.items() if where[2] == "clip")
    assert all(own == [0, 1, 2] for where, own in seeds.items() if where[2] == "real")
    assert all(own == [0, 1, 2] for where, own in seeds.items() if where[2] == "dset+real")


def test_what_a_method_cannot_do_is_left_out_with_its_own_words(tiny):
    found = grid.grid(["mnist"], [1, 2], ["real", "bob"], [0, 1], overrides=tiny)
    why = grid.refusals(found)
    assert list(why) == [("mnist", 1, "bob")] and "shots=1" in why["mnist", 1, "bob"]
    kept = grid.runnable(found)
    assert [one for one in found if one not in kept] == [
        one for one in found if (one.shots, one.method) == (1, "bob")
    ]


def test_what_prompts_with_images_is_refused_where_no_adapter_of_images_exists():
    (why,) = grid.refusals(grid.grid(["mnist"], [2], ["real", "dipsy"])).values()
    assert "generator='mini'" in why and "leave the method out" in why


@pytest.mark.parametrize("wrong", ["mnist", [], 3])
def test_datasets_are_a_list(wrong):
    with pytest.raises(ConfigError, match="not a list of one or more names"):
        grid.grid(wrong, [1], ["real"])


def test_a_named_comparison_has_the_cells_of_its_page(tiny):
    entry = {"notebook": "comparison", "parameters": {"datasets": ["mnist"], "shots": [1, 2],
             "methods": ["real", "bob"], "workers": 2, "overrides": tiny}}  # fmt: skip
    (cells,) = named_runs.cells_of(entry).values()
    assert [(one.shots, one.method) for one in cells] == [(1, "real"), (2, "real"), (2, "bob")]


@pytest.mark.long
def test_the_comparison_notebook_runs_under_papermill(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "store"))
    parameters = {
        "datasets": ["mnist", "optdigits"], "shots": [1, 2], "seeds": [0, 1], "overrides": tiny,
        "primary_seeds": [0, 1, 2], "methods": ["clip", "real", "base+real", "bob+real", "tip"],
    }  # fmt: skip
    page = executed("comparison", parameters, tmp_path)
    text = json.dumps([cell.get("outputs") for cell in page["cells"]])
    assert "mnist, 1 per class, BOB + real:" in text and "Every method runs" not in text
    assert "over 3 seeds, 95 % interval" in text and "With other test images" in text
    assert text.count('"image/png": "') == 4
