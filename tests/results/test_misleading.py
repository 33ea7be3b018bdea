"""Which shots mislead, for which seeds synthetic images hurt, and what most seeds miss."""

import numpy as np
import pandas as pd
import pytest

from datadream.data import datasets
from datadream.data.images import Images
from datadream.data.predictions import Predictions
from datadream.publish import freeze
from datadream.results import committed, misleading
from datadream.results.records import select


def record(method, seed, per_class=(0.5, 0.5), dataset="mnist", shots=1, **fields):
    """Return a row as records.load_records gives it; its top-1 is the mean over the classes."""
    row = {
        "dataset": dataset,
        "shots": shots,
        "method": method,
        "seed": seed,
        "per_class": list(per_class),
        "top1": float(np.mean(per_class)),
        "val_top1": 0.5,
        "artifacts": {"judge": f"judge-{method}-{seed}"},
    }
    return {**row, **fields}


def said(classes, margins=None, labels=(0, 1, 1, 0)):
    """Return one seed's predictions."""
    return Predictions(
        np.asarray(labels), np.asarray(classes), np.asarray(margins or [1.0] * len(classes))
    )


# Shots.


def test_a_shot_has_the_recall_of_its_class_by_both_classifiers():
    table = pd.DataFrame(
        [
            record("real", 0, (0.2, 0.9)),
            record("dset+real", 0, (0.4, 0.7)),
            record("real", 1, (0.6, 0.8)),
            record("dset+real", 1, (0.8, 0.6)),
            record("real", 2, (0.0, 0.0)),
            record("base", 2, (0.0, 0.0)),
        ]
    )
    found = misleading.recall_by_shot(table)
    assert found[["seed", "label"]].values.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]], (
        "seed 2 has one of the two methods"
    )
    assert found[["real", "dset+real", "recall"]].values == pytest.approx(
        np.array([[20, 40, 30], [60, 80, 70], [80, 60, 70], [90, 70, 80]])
    )
    assert found["apart"].tolist() == pytest.approx([-20, 20, -5, 5])
    by_class = misleading.recall_by_class(found, ["a", "b"])
    assert by_class["class"].tolist() == ["a", "b"]
    assert by_class[["mean", "lowest", "highest"]].values == pytest.approx(
        np.array([[50, 30, 70], [75, 70, 80]])
    )


def test_more_shots_or_two_records_of_a_cell_are_refused():
    two = pd.DataFrame([record("real", 0, shots=4)])
    with pytest.raises(ValueError, match="narrow the table to shots=1"):
        misleading.recall_by_shot(two)
    with pytest.raises(ValueError, match="several records of one method and seed"):
        misleading.recall_by_shot(pd.DataFrame([record("real", 0)] * 2))


def test_without_records_there_is_no_shot():
    table = pd.DataFrame([record("real", 0)])
    assert misleading.recall_by_shot(table).empty
    assert misleading.recall_by_shot(table.head(0)).empty
    assert misleading.worse_seeds(table).empty


def test_a_shot_s_picture_is_the_image_that_was_drawn():
    dataset = datasets.load_dataset("optdigits")
    table = pd.DataFrame([{"seed": 3, "label": 8, "real": 12.4, "dset+real": 30.0}])
    [(image, text)] = misleading.shot_pictures(table, dataset)
    shots = datasets.few_shots(dataset, 1, 3)
    assert image.tobytes() == shots.open(8).tobytes() and shots.labels[8] == 8
    assert text == "eight, seed 3\n12 % | 30 %"


# Seeds and classes.


def test_the_seeds_that_lost_are_counted_by_setting():
    table = pd.DataFrame(
        [
            *(record("real", seed, (0.5, 0.5)) for seed in range(4)),
            record("dset+real", 0, (0.5, 0.4)),
            record("dset+real", 1, (0.5, 0.5)),
            record("dset+real", 2, (0.1, 0.4)),
            record("real", 0, shots=4),
            record("dset+real", 0, (0.9, 0.9), shots=4),
            record("real", 0, dataset="optdigits"),
        ]
    )
    found = misleading.worse_seeds(table)
    assert found[["dataset", "shots", "seeds", "worse"]].values.tolist() == [
        ["mnist", 1, 3, 2],
        ["mnist", 4, 1, 0],
    ]
    assert [misleading.losses_text(one) for one in found["losses"]] == [
        "25.00 (seed 2), 5.00 (seed 0)",
        "none",
    ]


def test_confused_classes_are_shares_of_the_true_class_over_seeds():
    matrices = {
        ("real", 0): [[5, 5, 0], [0, 10, 0], [2, 0, 18]],
        ("real", 1): [[9, 1, 0], [0, 10, 0], [0, 0, 20]],
        ("dset+real", 0): [[9, 1, 0], [0, 10, 0], [10, 0, 10]],
        ("dset+real", 1): [[10, 0, 0], [0, 10, 0], [2, 0, 18]],
        ("real", 2): [[0, 10, 0], [0, 10, 0], [0, 0, 20]],
    }
    table = pd.DataFrame([record(*cell, confusion=m) for cell, m in matrices.items()])
    found = misleading.confused_pairs(table, ["a", "b", "c"], 3)
    assert found[["true", "taken for"]].values.tolist()[:2] == [["a", "b"], ["c", "a"]]
    assert found[["real", "dset+real"]].values == pytest.approx(
        np.array([[30, 5], [5, 30], [0, 0]])
    )
    assert len(misleading.confused_pairs(table, ["a", "b", "c"], 99)) == 6


# Test images.


def test_an_image_is_missed_by_more_than_half_of_the_seeds():
    found = misleading.missed_images(
        [
            said([1, 1, 0, 2], [1, 9, 3, 2.0]),
            said([1, 0, 0, 2], [1, 9, 5, 4.0]),
            said([2, 1, 1, 0], [4, 9, 9, 9.0]),
            said([1, 0, 0, 2], [2, 9, 4, 3.0]),
        ]
    )
    assert found[["image", "label", "taken", "missed", "seeds"]].values.tolist() == [
        [0, 0, 1, 4, 4],
        [2, 1, 0, 3, 4],
        [3, 0, 2, 3, 4],
    ], "image 1 is missed by half of them"
    assert found["margin"].tolist() == pytest.approx([2, 4, 3])
    assert misleading.missed_images([said([0, 1, 1, 0])] * 2).empty
    images = Images([np.full((2, 2), i, np.uint8) for i in range(4)], [0, 1, 1, 0])
    data = datasets.Dataset("x", "", ("a", "b", "c"), images, images, images)
    (first, text), *_ = misleading.missed_pictures(found, data)
    assert text == "a\nread: b\n4 of 4 seeds" and set(first.tobytes()) == {0}


def test_the_best_method_is_chosen_on_validation_among_those_with_predictions(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    table = pd.DataFrame(
        [
            record(method, seed, shots=16, val_top1=validation)
            for method, validation in (("real", 0.6), ("dset", 0.7), ("base", 0.8), ("clip", 0.9))
            for seed in (0, 1, 2)
        ]
    )
    assert misleading.best_kept(table) == ("", [])
    names = [f"judge-{m}-{seed}" for m in ("real", "dset") for seed in (0, 1)] + ["judge-base-0"]
    committed.write_committed("mnist", 16, {name: said([0, 1, 0, 1]) for name in names})
    method, found = misleading.best_kept(table)
    assert method == "dset" and len(found) == 2, "base has one seed, clip no predictions"
    assert found[0].classes.tolist() == [0, 1, 0, 1]
    assert misleading.best_kept(select(table, method="base")) == ("", [])


def test_the_committed_records_of_one_shot_have_both_methods():
    """The page of failures shows them; it would be empty otherwise."""
    found = misleading.recall_by_shot(select(freeze.load_compared(), dataset="mnist", shots=1))
    assert len(found) == 10 * found["seed"].nunique() >= 30
    assert found[["real", "dset+real"]].stack().between(0, 100).all()
