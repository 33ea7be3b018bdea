"""The description of synthetic sets: what they are compared with, one row per set and class, and
the join with accuracy.
"""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import executed

from datadream.data import datasets
from datadream.data.datasets import few_shots
from datadream.errors import DataError
from datadream.methods.registry import METHODS
from datadream.results import analysis, features
from datadream.results.distances import MEASURES, TITLES, copying
from datadream.results.records import select
from datadream.statistics import mean_interval
from datadream.store.artifacts import Store
from datadream.study import run


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """Return three methods' cells on two seeds, run and described once for this file: store,
    recipes, records and table.
    """
    store = Store(tmp_path_factory.mktemp("finished"))
    recipes = [
        make(method, seed=seed)
        for seed in (0, 1)
        for method in ("clip", "real", "base", "dset", "dset+real")
    ]
    records = run.run_cells(recipes, store)
    return SimpleNamespace(
        store=store, recipes=recipes, records=records, table=analysis.measure_sets(recipes, store)
    )


# What the sets are compared with.


def test_the_reference_is_neither_the_shots_nor_a_test_image(dataset):
    shots, found = few_shots(dataset, 2, 0), analysis.reference(dataset, 2, 0)
    assert not set(found.sources) & {*shots.sources, *dataset.test.sources}
    assert {*found.sources, *shots.sources} == {*dataset.train.sources, *dataset.val.sources}
    assert np.bincount(found.labels).tolist() == [4 + 2] * 3
    assert found.sources != analysis.reference(dataset, 2, 1).sources


def test_the_reference_is_cut_to_as_many_per_class_for_all_seeds(dataset, monkeypatch):
    monkeypatch.setattr(analysis, "REFERENCE", 3)
    analysis.reference.cache_clear()
    sets = [set(analysis.reference(dataset, 1, seed).sources) for seed in range(6)]
    analysis.reference.cache_clear()
    assert all(len(s) <= 3 * (3 + 2) for s in sets)
    assert len(set.union(*sets)) == 3 * (3 + 2), "a seed takes its shots away and draws no others"


def test_validation_that_is_the_pool_counts_once_and_without_the_shots(dataset):
    fold = dataclasses.replace(dataset, val=dataset.train)
    found = analysis.reference(fold, 2, 0)
    assert len(found) == len(set(found.sources)) == 3 * 4
    assert not set(found.sources) & set(few_shots(fold, 2, 0).sources)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_released_protocol_s_test_part_is_left_out(dataset, part):
    released = dataclasses.replace(dataset, val=getattr(dataset, part), test=getattr(dataset, part))
    if part == "train":
        with pytest.raises(
            ValueError, match="no real image beside the 2 shots per class and the test part"
        ):
            analysis.reference(released, 2, 0)
    else:
        assert set(analysis.reference(released, 2, 0).sources) < set(dataset.train.sources)


def test_all_shots_leave_the_validation_part(dataset):
    assert set(analysis.reference(dataset, 0, 0).sources) == set(dataset.val.sources)
    with pytest.raises(ValueError, match="'folder' has no real image beside the all shots"):
        analysis.reference(dataclasses.replace(dataset, val=dataset.train), 0, 0)
    with pytest.raises(DataError, match="fewer than shots=99"):
        analysis.reference(dataset, 99, 0)


# The table.


def test_a_row_per_set_extractor_and_class(finished):
    table = finished.table
    assert len(table) == 2 * 3 * 2 * (1 + 3), "seeds, sets, extractors, classes and all"
    assert not table.duplicated(["dataset", "method", "seed", "extractor", "class"]).any()
    assert set(table["method"]) == {"real", "base", "dset"} and set(table["extractor"]) == {
        "clip",
        "reader",
    }
    synthetic = table[table["method"] != "real"]
    whole = synthetic["class"] == "all"
    assert set(synthetic[whole]["n"]) == {15} and set(synthetic[~whole]["n"]) == {5}
    assert set(synthetic[whole]["reference"]) == {18} and synthetic["label"].isna().equals(whole)
    assert set(table[(table["method"] == "real") & (table["class"] == "all")]["n"]) == {6}


def test_a_measure_is_there_where_its_set_is_large_enough_and_its_features_fit(finished):
    whole = finished.table[finished.table["class"] == "all"]
    assert whole[[m for m in MEASURES if m != "cmmd"]].notna().all(axis=None)
    assert (whole["cmmd"].isna() == (whole["extractor"] != "clip")).all()
    classes = select(finished.table, method="dset", extractor="clip").query("label.notna()")
    assert (
        classes[["frechet", "kid", "cmmd", "precision", "recall", "centroid", "nearest", "closer"]]
        .notna()
        .all(axis=None)
    )
    assert classes[["density", "coverage"]].isna().all(axis=None), (
        "five images have no fifth neighbour"
    )
    assert (
        select(finished.table, method="real")[["nearest", "nearest_real", "closer"]]
        .isna()
        .all(axis=None)
    )


def test_the_numbers_are_the_measures_of_the_stored_images(finished, make, dataset):
    row = select(finished.table, method="dset", seed=1, extractor="reader", label=2).iloc[0]
    parts = {
        "real": analysis.reference(dataset, 2, 1),
        "synthetic": analysis.read_synthetic_set(finished.store.folder(row["artifact"])),
        "shots": few_shots(dataset, 2, 1),
    }
    found = {
        part: features.features(images, "reader", make(), finished.store)[
            np.asarray(images.labels) == 2
        ]
        for part, images in parts.items()
    }
    for name in ("frechet", "kid", "precision", "centroid"):
        assert row[name] == pytest.approx(
            MEASURES[name].function(found["real"], found["synthetic"]), rel=1e-5
        )
    assert row[["nearest", "nearest_real", "closer"]].tolist() == pytest.approx(
        list(copying(**found).values()), abs=1e-6
    )
    rows = select(finished.table, method="dset", seed=1, extractor="reader")
    assert rows["centroid"][0] == pytest.approx(rows["centroid"][1:].mean()), (
        "of all: the mean over the classes"
    )


def test_a_second_description_extracts_nothing(finished, monkeypatch):
    monkeypatch.setattr(features, "_extract", None)
    pd.testing.assert_frame_equal(
        analysis.measure_sets(finished.recipes, finished.store), finished.table
    )


def test_the_extractors_can_be_chosen_and_no_recipe_is_an_empty_table(finished, make, store):
    table = analysis.measure_sets(finished.recipes[:3], finished.store, names=["clip"])
    pd.testing.assert_frame_equal(
        table,
        select(finished.table[finished.table["seed"] == 0], extractor="clip").head(len(table)),
    )
    empty = analysis.measure_sets([make("clip")], store)
    assert len(empty) == 0 and set(TITLES) < set(empty.columns)


def test_a_set_that_was_not_made_is_named(make, store):
    with pytest.raises(
        LookupError, match="synthetic set of folder, base, seed 7 is not in .*run that cell first"
    ):
        analysis.measure_sets([make("base", seed=7)], store)


def test_over_seeds_is_the_mean_with_its_interval(finished):
    whole = select(finished.table, extractor="clip", **{"class": "all"})
    found = analysis.over_seeds(whole, ["kid", "closer"])
    assert found[["measure", "method"]].values.tolist() == [
        ["kid", m] for m in ("real", "base", "dset")
    ] + [["closer", m] for m in ("base", "dset")]
    row = found.iloc[1]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        mean_interval(select(whole, method="base")["kid"])
    )
    assert (
        found["title"][:3].tolist()
        == ["Real few shots", METHODS["base"].title, METHODS["dset"].title]
        and row["seeds"] == 2
    )
    with pytest.raises(ValueError, match="several rows of one method and seed; narrow"):
        analysis.over_seeds(finished.table)


# The join with accuracy.


def described(values, seeds=(0, 1), method="dset", **fields):
    """Return a table as `describe` gives it, with one centroid per class (values) that is 0.01
    higher on each further seed.
    """
    rows = [
        {
            "dataset": "mnist",
            "method": method,
            "seed": seed,
            "extractor": "clip",
            "class": f"c{label}",
            "label": label,
            "centroid": value + seed / 100,
            **{name: 0.0 for name in TITLES if name != "centroid"},
            **fields,
        }
        for seed in seeds
        for label, value in enumerate(values)
    ]
    whole = [{**rows[0], "seed": seed, "class": "all", "label": pd.NA} for seed in seeds]
    return pd.DataFrame(whole + rows).astype({"label": "Int64"})


def recorded(cells):
    """Return records as `load_records` gives them: (method, seed) -> accuracy per class."""
    return pd.DataFrame(
        [
            {"dataset": "mnist", "method": m, "seed": s, "per_class": values}
            for (m, s), values in cells.items()
        ]
    )


CELLS = {
    ("real", 0): [0.5, 0.5, 0.5],
    ("real", 1): [0.6, 0.5, 0.4],
    ("dset+real", 0): [0.6, 0.5, 0.9],
    ("dset+real", 1): [0.8, 0.5, 0.7],
    ("dset+real", 2): [0.0, 0.0, 0.0],
}


def test_a_class_s_gain_stands_beside_the_measures_of_its_images():
    found = analysis.gains(
        described([0.7, 0.2, 0.9], seeds=(0, 1, 2)), recorded(CELLS), "dset+real", "real"
    )
    assert found["class"].tolist() == ["c0", "c1", "c2"] and set(found["seeds"]) == {2}, (
        "seed 2 has no baseline"
    )
    assert found["gain"].tolist() == pytest.approx([15, 0, 35])
    assert found["centroid"].tolist() == pytest.approx([0.705, 0.205, 0.905])
    assert found[["low", "high"]].iloc[0].tolist() == pytest.approx(mean_interval([10, 20])[1:])


def test_the_gains_of_a_run_study(finished):
    own = select(finished.table, extractor="reader")
    found, by_method = (
        analysis.gains(own, finished.records, "dset+real", "real"),
        finished.records.groupby("method")["per_class"],
    )
    mean = {
        method: np.mean(np.stack(list(by_method.get_group(method))), 0)
        for method in ("dset+real", "real")
    }
    assert len(found) == 3 and found["gain"].tolist() == pytest.approx(
        (100 * (mean["dset+real"] - mean["real"])).tolist()
    )
    centroids = (
        own[(own["method"] == "dset") & own["label"].notna()].groupby("label")["centroid"].mean()
    )
    assert found["centroid"].tolist() == pytest.approx(centroids.tolist())
    (row,) = analysis.correlation_table({("dset+real", "reader"): found}).to_dict("records")
    assert row.pop("Method") == METHODS["dset+real"].title and row.pop("Features") == "reader"
    assert row["Classes"] == 3 and row["Correlation"] == row["95 % interval"] == "-"


@pytest.mark.parametrize(
    "closer, share, low, high",
    [([0.2, 0.25, 0.3], 25.0, 12.6, 37.4), ([0.0, 0.01, 0.0], 0.33, 0.0, 1.8),
     ([0.5], 50.0, math.nan, math.nan)],
)  # fmt: skip
def test_the_share_of_copies_has_its_interval_over_seeds(closer, share, low, high):
    table = pd.DataFrame({"class": "all", "method": "dset", "extractor": "clip", "closer": closer})
    other = table.assign(closer=1.0, extractor="reader")
    found = analysis.copied(pd.concat([table, other]), "dset", "clip")
    assert found.pop("seeds") == len(closer)
    wanted = {"share": share, "low": low, "high": high}
    assert found == pytest.approx(wanted, abs=0.05, nan_ok=True)


@pytest.mark.parametrize(
    "table, cells, words",
    [
        (described([0.1] * 3), {("real", 0): [0.5] * 3}, "no record or row of dset"),
        (described([0.1] * 3, method="base"), CELLS, "no record or row of the images of dset"),
        (
            pd.concat([described([0.1] * 3), described([0.1] * 3, extractor="reader")]),
            CELLS,
            "narrow both tables",
        ),
        (described([0.1] * 3, dataset="optdigits"), CELLS, "several datasets"),
        (described([0.1] * 3, seeds=(5,)), CELLS, "no seed in common"),
    ],
)
def test_a_join_that_is_missing_or_ambiguous_is_refused(table, cells, words):
    with pytest.raises(ValueError, match=words):
        analysis.gains(table, recorded(cells), "dset+real", "real")


@pytest.mark.parametrize(
    "gain, rho, detected",
    [
        ([1, 2, 3, 5, 4, 6, 7, 8, 9, 10], "+0.99", "detected"),
        ([10, 9, 8, 6, 7, 5, 4, 3, 2, 1], "-0.99", "the opposite detected"),
        ([1, 10, 2, 9, 3, 8, 4, 7, 5, 6], "+0.15", "not detected"),
        ([0] * 10, "-", "-"),
    ],
)
def test_the_table_claims_no_more_than_the_interval(gain, rho, detected):
    joined = pd.DataFrame({"gain": gain, "centroid": np.arange(10) / 10})
    row = analysis.correlation_cells(joined)
    assert row["Rank correlation"] == rho and row["Correlation"] == detected


def test_the_embedded_study_s_reference_is_held_out():
    mnist = datasets.load_dataset("mnist")
    found = analysis.reference(mnist, 16, 0)
    assert np.bincount(found.labels).tolist() == [200 - 16 + 50] * 10


@pytest.mark.long
def test_the_analysis_notebook_runs_under_papermill(folder, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "store"))
    parameters = {
        "dataset": "folder",
        "folder": folder,
        "shots": 2,
        "seeds": [0, 1],
        "methods": ["real", "dset", "dset+real"],
        "helped": ["dset+real"],
        "overrides": tiny,
    }
    page = executed("analysis", parameters, tmp_path)
    text = json.dumps(page["cells"])
    assert "6 cells in" in text and text.count('"image/png": "') == 5 and "rank correlation" in text
    assert "The reader is right on" in text and "Real images, held out" in text
