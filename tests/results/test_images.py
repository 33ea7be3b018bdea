"""Predictions per image: what is kept, and what compares methods by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datadream.data.predictions import FILE, Predictions, read_predictions, write_predictions
from datadream.results import committed, comparison, images, records
from datadream.store.artifacts import Store
from datadream.study import run


@given(
    arrays(np.int64, 5, elements=st.integers(0, 40_000)),
    arrays(np.int64, 5, elements=st.integers(0, 40_000)),
    arrays(np.float64, 5, elements=st.floats(0, 1e6)),
)
def test_what_is_written_is_read(tmp_path, labels, classes, margins):
    write_predictions(tmp_path, {"test": Predictions(labels, classes, margins)})
    found = read_predictions(tmp_path)["test"]
    assert found.labels.tolist() == labels.tolist() and found.classes.tolist() == classes.tolist()
    assert found.right.tolist() == (labels == classes).tolist()
    assert np.isfinite(found.margins).all()
    assert found.margins == pytest.approx(margins.clip(0, 6e4), rel=1e-3, abs=1e-4)


def test_a_result_keeps_what_was_said_of_each_image(make, dataset, store):
    cells = [make(method, seed=seed) for method in ("real", "clip") for seed in (0, 1)]
    for one in cells:
        run.run(one, store)
    table = records.load_records(store.records)
    for row in table.to_dict("records"):
        found = images.load_predictions(row, store)
        assert found.labels.tolist() == list(dataset.test.labels)
        assert found.right.mean() == row["top1"] and (found.margins >= 0).all()
        assert images.load_predictions(row, store, "val").right.mean() == row["val_top1"]
    difference = images.paired_by_image(table, "real", "clip", store)
    assert difference["difference"] == pytest.approx(
        records.paired(table, "real", "clip")["difference"]
    )
    assert (difference["seeds"], difference["images"]) == (2, len(dataset.test))
    assert difference["low"] <= difference["difference"] <= difference["high"]
    average = images.averaged_by_image(table, "real", "clip", store)
    assert average["difference"] == pytest.approx(difference["difference"])
    assert (average["settings"], average["images"]) == (1, len(dataset.test))
    shared = images.agreement(table, ["real", "clip"], store)
    assert shared.loc["real", "real"] == 1 and 0 <= shared.loc["real", "clip"] <= 1
    assert shared.loc["real", "clip"] == shared.loc["clip", "real"]
    row = table.iloc[0]
    (store.folder(row["artifacts"]["judge"]) / FILE).unlink()
    with pytest.raises(LookupError, match="an earlier version made it; remove the folder"):
        images.load_predictions(row, store)
    with pytest.raises(KeyError, match="no record of dset"):
        images.right(table, "dset", store)


def test_the_average_over_settings_is_that_of_the_primary_question(make, store):
    cells = [
        make(method, seed=seed, shots=k)
        for method in ("real", "clip")
        for seed in (0, 1)
        for k in (1, 2)
        if (method, seed, k) != ("real", 1, 1)
    ]
    for one in cells:
        run.run(one, store)
    table = records.load_records(store.records)
    found = images.averaged_by_image(table, "real", "clip", store)
    primary = comparison.primary(table, "real", "clip")
    assert (found["seeds"], found["settings"]) == (primary["seeds"], primary["settings"]) == (1, 2)
    assert found["difference"] == pytest.approx(primary["difference"])
    lacking = table[~((table["seed"] == 0) & (table["shots"] == 2) & (table["method"] == "real"))]
    with pytest.raises(ValueError, match="no seed has both"):
        images.averaged_by_image(lacking, "real", "clip", store)


def test_predictions_that_the_repository_keeps_stand_in_for_those_of_the_store(
    make, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    cells = [make(method) for method in ("real", "clip")]
    for one in cells:
        run.run(one, store)
    table = records.load_records(store.records)
    found = {row["artifacts"]["judge"]: images.load_predictions(row, store) for row in rows(table)}
    (where,) = {(row["dataset"], row["shots"]) for row in rows(table)}
    committed.write_committed(*where, found)
    elsewhere = Store(tmp_path / "another")
    for row in rows(table):
        here, kept = images.load_predictions(row, store), images.load_predictions(row, elsewhere)
        for name in ("labels", "classes", "margins"):
            assert getattr(here, name).tolist() == getattr(kept, name).tolist()
            assert getattr(here, name).dtype == getattr(kept, name).dtype
        with pytest.raises(LookupError, match=r"neither the store nor book/study has"):
            images.load_predictions(row, elsewhere, "val")
    committed.write_committed(*where, {name: found[name] for name in [*found][:1]})
    assert committed.read_committed(*where).keys() == {next(iter(found))}, (
        "not what was read before"
    )
    assert committed.read_committed("mnist", 3) == {}
    assert not committed.write_committed(*where, {}).exists(), "nothing is kept of nothing"


def rows(table):
    return table.to_dict("records")
