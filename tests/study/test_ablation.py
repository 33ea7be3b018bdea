"""One axis: its points, what they share, the differences along it, and the
notebook.
"""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from conftest import executed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datadream.errors import ConfigError
from datadream.results import ablation_statistics, plots, takeaways
from datadream.store.artifacts import Store
from datadream.study import ablation, named_runs, samples


def measured(rows):
    """Return a table as `run_axis` gives it, of (value, method, seed, top-1)."""
    columns = ["value", "method", "seed", "top1"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(
        dataset="mnist",
        protocol="strict",
        val_top1=table["top1"],
        low=table["top1"] - 0.01,
        high=table["top1"] + 0.01,
        key=[f"record-{i}" for i in range(len(table))],
    )


def test_a_list_sets_the_axis_and_a_mapping_sets_what_it_says():
    assert named_runs.points("shots", [1, 2]) == {"1": {"shots": 1}, "2": {"shots": 2}}
    assert named_runs.points("sampler", {"fast": {"generate.steps": 8}, "plain": {}}) == {
        "fast": {"generate.steps": 8},
        "plain": {},
    }


@pytest.mark.parametrize("values", [[], {}, 3, "1, 2", {"fast": 8}, None])
def test_values_that_are_no_axis_are_refused(values):
    with pytest.raises(ConfigError, match="neither a list .* nor a mapping"):
        named_runs.points("shots", values)


def test_an_unknown_axis_names_the_near_miss():
    with pytest.raises(ConfigError, match="generate.guidence.*generate.guidance"):
        named_runs.axis_cells("generate.guidence", [1.0], methods=["dset"])


def test_a_point_overrides_what_holds_for_all():
    by_label = named_runs.axis_cells(
        "generate.images",
        [10, 20],
        {"generate.images": 5, "classify.steps": 7},
        methods=["dset"],
        seeds=[0, 1],
    )
    assert {label: [r.generate.images for r in recipes] for label, recipes in by_label.items()} == {
        "10": [10, 10],
        "20": [20, 20],
    }
    assert all(r.classify.steps == 7 for recipes in by_label.values() for r in recipes)


def test_a_value_is_compared_with_another_on_the_same_seeds():
    """By hand: 0.5 and 0.7 against 0.4 and 0.5 are +10 and +20 points, 15 on average; t for one
    degree of freedom is 12.706.
    """
    table = measured(
        [("a", "dset", 0, 0.4), ("a", "dset", 1, 0.5), ("b", "dset", 1, 0.7), ("b", "dset", 0, 0.5)]
    )
    found = ablation_statistics.against(
        table.assign(key=["k0", "k1", "k2", "k3"]), "dset", "a"
    ).to_dict("records")
    assert [(row["value"], row["reference"], row["seeds"]) for row in found] == [("b", "a", 2)]
    assert found[0]["difference"] == pytest.approx(15) and found[0]["high"] == pytest.approx(
        15 + 12.706 * 5, abs=1e-2
    )
    (row,) = takeaways.values_table(table.assign(key=["k0", "k1", "k2", "k3"]), "a").to_dict(
        "records"
    )
    assert row["Value"] == "b" and row["Points"] == "+15.0" and row["Seeds"] == "2"


def test_a_method_that_the_setting_does_not_reach_is_not_compared_with_itself():
    table = measured(
        [("a", "real", 0, 0.4), ("a", "real", 1, 0.5), ("b", "real", 0, 0.4), ("b", "real", 1, 0.5)]
    )
    assert ablation_statistics.against(
        table.assign(key=["k0", "k1", "k0", "k1"]), "real", "a"
    ).empty


def test_what_the_points_share_is_computed_once(tiny, folder, tmp_path):
    """Real only ignores the guidance, and both guidances sample the same adapters."""
    store = Store(tmp_path / "store")
    by_label = named_runs.axis_cells(
        "generate.guidance",
        [1.0, 3.0],
        tiny,
        dataset="folder",
        folder=folder,
        shots=2,
        methods=["real", "cls"],
        seeds=[0, 1],
    )
    table = ablation.run_axis(by_label, store)
    assert table[["value", "method", "seed"]].values.tolist() == [
        [v, m, s] for v in ("1.0", "3.0") for m in ("real", "cls") for s in (0, 1)
    ]
    made = [path.name.split("-")[0] for path in store.root.iterdir() if path.is_dir()]
    counts = {stage: made.count(stage) for stage in ("adapt", "generate", "train")}
    assert counts == {"adapt": 3 * 2, "generate": 2 * 2, "train": 2 + 2 * 2}
    rows = samples.axis_sample_rows(by_label, store)
    assert list(rows) == ["DataDream (class), 1.0", "DataDream (class), 3.0"] and all(
        len(columns) == 3 for columns in rows.values()
    )
    figure = plots.plot_along(ablation_statistics.along(table), "generate.guidance")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "Real only",
        "DataDream (class)",
    ]


def test_one_set_of_images_is_shown_once(tiny, folder, tmp_path):
    by_label = named_runs.axis_cells(
        "classify.real_weight",
        [0.2, 0.8],
        tiny,
        dataset="folder",
        folder=folder,
        shots=2,
        methods=["dset+real"],
        seeds=[0],
    )
    ablation.run_axis(by_label, Store(tmp_path))
    assert len(samples.axis_sample_rows(by_label, Store(tmp_path))) == 1


def curve_of(rows):
    """Return a table of `real` at several shots, of (shots, seed, top-1)."""
    return measured([(str(shots), "real", seed, top1) for shots, seed, top1 in rows])


def test_a_set_is_worth_as_many_real_shots_as_train_equally_well():
    """Points of 0.1 a doubling: 0.65 lies between 16 and 32 shots in the middle of their
    logarithms, 0.7 at 32.
    """
    curve = curve_of(
        [(shots, seed, 0.5 + 0.1 * i) for seed in (0, 1) for i, shots in enumerate((8, 16, 32, 64))]
    )
    mean, low, high = ablation_statistics.worth(
        curve, measured([("", "dset+real", 0, 0.65), ("", "dset+real", 1, 0.65)]), "dset+real"
    )
    assert (mean, low, high) == pytest.approx((16 * 2**0.5,) * 3)
    mean, low, high = ablation_statistics.worth(
        curve, measured([("", "dset+real", 0, 0.6), ("", "dset+real", 1, 0.7)]), "dset+real"
    )
    assert mean == pytest.approx(16 * 2**0.5) and low < mean < high


@pytest.mark.parametrize("top1", [0.4, 0.9])
def test_what_lies_outside_of_the_curve_has_no_worth(top1):
    curve = curve_of([(8, 0, 0.5), (16, 0, 0.6)])
    assert ablation_statistics.worth(curve, measured([("", "dset", 0, top1)]), "dset") is None


def test_a_curve_that_falls_once_is_made_to_rise():
    curve = curve_of([(8, 0, 0.5), (16, 0, 0.6), (32, 0, 0.58), (64, 0, 0.7)])
    mean, _, _ = ablation_statistics.worth(curve, measured([("", "dset", 0, 0.65)]), "dset")
    assert 32 < mean < 64


def test_differences_are_paired_within_a_value():
    table = measured(
        [
            (v, m, s, 0.5 + 0.1 * s + gain * (m == "dset"))
            for v, gain in (("1", 0.2), ("2", 0.1))
            for m in ("real", "dset")
            for s in range(3)
        ]
    )
    found = ablation_statistics.differences(table, ["dset"], "real")
    assert found["value"].tolist() == ["1", "2"] and found["difference"].tolist() == pytest.approx(
        [20, 10]
    )
    assert found["low"].tolist() == pytest.approx([20, 10]), "the seeds' own levels cancel"
    rows = takeaways.baseline_table(table, "real")
    assert rows["Difference"].unique().tolist() == ["DataDream (dataset) minus Real only"]
    assert rows["Value"].tolist() == ["1", "2"] and rows["Points"].tolist() == ["+20.0", "+10.0"]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(10, 60))
def test_the_ends_are_compared_over_the_whole_range_and_over_the_last_step(gains, level):
    values = ["1", "2", "4", "16"]
    table = measured(
        [
            (v, "dset", s, (level + gain * i) / 100)
            for s, gain in enumerate(gains)
            for i, v in enumerate(values)
        ]
    )
    found = ablation_statistics.ends(table, "dset")
    assert found[["value", "reference"]].values.tolist() == [["16", "1"], ["16", "4"]]
    assert found["difference"].tolist() == pytest.approx(
        [3 * np.mean(gains), np.mean(gains)], abs=1e-6
    )
    assert (found["low"] <= found["difference"] + 1e-9).all()


def test_of_two_values_the_ends_are_one_comparison():
    table = measured([(v, "dset", s, 0.5 + s * 0.01) for v in ("a", "b") for s in range(2)])
    found = ablation_statistics.ends(table, "dset")
    assert found[["value", "reference"]].values.tolist() == [["b", "a"]]


@pytest.mark.parametrize("labels, joined", [(["1", "2", "4"], True), (["none", "some"], False)])
def test_points_are_joined_along_numbers_and_not_along_categories(labels, joined):
    table = measured([(v, "dset", s, 0.5 + 0.01 * s) for v in labels for s in range(2)])
    axis = plots.plot_along(ablation_statistics.along(table), "x").axes[0]
    assert {line.get_linestyle() != "None" for line in axis.get_lines()} == {joined}


def test_a_baseline_that_the_page_lacks_is_refused_before_anything_runs():
    ablation.require_baseline("dset", ["dset", "dset+real"])
    with pytest.raises(ConfigError, match="baseline='real' is not among .*: dset, dset\\+real"):
        ablation.require_baseline("real", ["dset", "dset+real"])
    for name, entry in named_runs.load_study()["runs"].items():
        if entry["notebook"] == "ablation":
            values = named_runs.page_parameters("ablation") | entry["parameters"]
            assert values["baseline"] in values["methods"], name


@pytest.mark.parametrize(
    "labels, log",
    [
        (["1", "2", "4"], True),
        (["1.0", "1.5", "2.0"], False),
        (["0.0", "0.5"], False),
        (["a", "b"], False),
    ],
)
def test_numbers_that_span_a_factor_of_four_stand_on_a_logarithmic_scale(labels, log):
    table = measured([(v, "dset", s, 0.5 + 0.01 * s) for v in labels for s in range(2)])
    figure = plots.plot_along(ablation_statistics.along(table), "x")
    assert (figure.axes[0].get_xscale() == "log") == log
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == labels


@pytest.mark.long
def test_the_notebook_runs_under_papermill(folder, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "store"))
    parameters = {
        "axis": "classify.real_weight",
        "values": [0.0, 1.0],
        "dataset": "folder",
        "folder": folder,
        "shots": 2,
        "seeds": [0, 1],
        "methods": ["real", "dset+real"],
        "overrides": tiny,
    }
    page = executed("ablation", parameters, tmp_path)
    text = json.dumps(page["cells"])
    assert "8 cells in" in text and text.count('"image/png": "') == 2
    assert Store(tmp_path / "store").records.is_dir()
    for output in (
        output
        for cell in page["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ):
        pixels = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).size
        shown = output["metadata"]["image/png"]
        assert pixels == pytest.approx((2 * shown["width"], 2 * shown["height"]), abs=1), (
            "sharp on a dense screen"
        )
        assert shown["width"] == pytest.approx(100 * plots.WIDTH, abs=20), (
            "as wide as at 100 dots an inch"
        )
