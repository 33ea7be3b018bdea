"""Which synthetic images are read as another class, and how far the reader can be trusted."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from datadream.data import datasets, printed
from datadream.data.synthetic_set import read_synthetic_set
from datadream.data.transforms import evaluation_tensor
from datadream.methods.registry import METHODS
from datadream.models.classifiers.print_reader import load_reader
from datadream.paths import paths
from datadream.pipeline.stages import Cell
from datadream.results import analysis, features, misread
from datadream.results.distances import read_by_nearest
from datadream.results.records import select
from datadream.statistics import mean_interval, wilson
from datadream.store.artifacts import Store


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """Return the readings of two generators' sets on two seeds: store, recipes and table."""
    store = Store(tmp_path_factory.mktemp("finished"))
    methods = ("real", "base", "dset", "dset+real")
    recipes = [make(method, seed=seed) for seed in (0, 1) for method in methods]
    for one in (recipe for recipe in recipes if METHODS[recipe.method].generates):
        Cell(one).make("generate", store)
    return SimpleNamespace(store=store, recipes=recipes, table=misread.readings(recipes, store))


def rows(asked, read, margin=None, by_print=None, method="dset", seed=0):
    """Return a table as `readings` gives it."""
    return pd.DataFrame(
        {
            "dataset": "mnist",
            "method": method,
            "seed": seed,
            "index": range(len(asked)),
            "asked": asked,
            "read": read,
            "margin": margin or [0.1] * len(asked),
            "print": pd.array(by_print or [pd.NA] * len(asked), dtype="Int64"),
        }
    )


# The reader of the nearest real image.


def test_an_image_is_read_as_its_nearest_real_image():
    real, labels = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [4, 7, 7]
    read, margin = read_by_nearest([[2.0, 0.1], [2.0, 0.1], [1.0, 0.9]], [4, 7, 9], real, labels)
    assert read.tolist() == [4, 4, 7]
    near = 1 - cdist([[2.0, 0.1]], real, "cosine")[0]
    assert margin[:2] == pytest.approx([near[2] - near[0], near[0] - near[2]])
    assert np.isnan(margin[2]), "no real image is of the class that was asked for"


def test_a_real_image_is_not_its_own_nearest():
    features, labels = np.random.RandomState(0).rand(40, 3), np.arange(40) % 4
    read, margin = read_by_nearest(features, labels, features, labels, same=True)
    near = 1 - cdist(features, features, "cosine")
    np.fill_diagonal(near, -1)
    assert read.tolist() == labels[near.argmax(1)].tolist()
    assert ((margin > 0) == (read != labels)).all() and (read != labels).any()
    assert (read_by_nearest(features, labels, features, labels)[0] == labels).all()
    alone = read_by_nearest(features[:5], [0, 0, 1, 1, 2], features[:5], [0, 0, 1, 1, 2], same=True)
    assert np.isnan(alone[1]).tolist() == [False] * 4 + [True], "no other image is of its class"


def test_readings_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    state = np.random.RandomState(1)
    x, y, labels = state.rand(30, 4), state.rand(20, 4), np.arange(20) % 3
    whole = read_by_nearest(x, np.arange(30) % 3, y, labels)
    monkeypatch.setattr("datadream.results.distances.BLOCK", 70)
    for one, other in zip(whole, read_by_nearest(x, np.arange(30) % 3, y, labels), strict=True):
        assert one == pytest.approx(other)


# The table of readings.


def test_each_set_is_read_once_and_the_real_images_for_each_seed(finished, dataset):
    table = finished.table
    sizes = table.groupby(["method", "seed"]).size()
    reference = len(analysis.reference(dataset, 2, 0))
    assert sizes.to_dict() == {
        (method, seed): reference if method == misread.HELD_OUT else 3 * 5
        for method in (misread.HELD_OUT, "base", "dset")
        for seed in (0, 1)
    }
    assert table["print"].isna().all(), "the reader of print knows no aeroplanes"
    assert ((table["margin"] > 0) == (table["read"] != table["asked"])).all()


def test_the_readings_are_by_the_features_of_the_images(finished, dataset, make):
    recipe = make("dset", seed=1)
    images = read_synthetic_set(finished.store.folder(Cell(recipe).keys["generate"]))
    real = analysis.reference(dataset, 2, 1)
    for name in ("reader", "clip"):
        table = misread.readings([recipe], finished.store, name)
        found = [features.features(own, name, recipe, finished.store) for own in (images, real)]
        nearest = cdist(*found, "cosine").argmin(1)
        own = select(table, method="dset")
        assert own["read"].tolist() == np.asarray(real.labels)[nearest].tolist()
        assert own["asked"].tolist() == list(images.labels)
    own = select(finished.table, method="dset", seed=1)
    pd.testing.assert_frame_equal(
        own, select(misread.readings([recipe], finished.store), method="dset")
    )


def test_a_set_that_was_not_made_is_named_and_no_generator_is_an_empty_table(make, store):
    with pytest.raises(LookupError, match="synthetic set of folder, base, seed 7 is not in"):
        misread.readings([make("base", seed=7)], store)
    empty = misread.readings([make("real")], store)
    assert len(empty) == 0 and tuple(empty.columns) == misread.COLUMNS


def test_the_embedded_readers_on_handwriting(make, store):
    """The nearest real image tells digits far better than the reader of print, which reads as it
    does by itself.
    """
    recipe = make("base", {"generate.images": 1}, dataset="optdigits", folder="")
    Cell(recipe).make("generate", store)
    table = misread.readings([recipe], store)
    real = select(table, method=misread.HELD_OUT)
    reference = analysis.reference(datasets.load_for(recipe), 2, 0)
    views = [evaluation_tensor(reference.open(i), printed.SIDE) / 255 for i in range(50)]
    with torch.no_grad():
        logits = load_reader(paths()["mini"])(torch.stack(views))
    assert real["print"][:50].tolist() == logits[:, :10].argmax(1).tolist()
    own = misread.shares(table).iloc[0]
    assert own["share"] > 98 > 85 > own["print"] > 50 and own["misread"] < 2
    assert misread.reader_sentence(table) == (
        f"The reader is right on {own['share']:.1f} % of {len(reference)} held-out real images, 95 "
        f"% interval {own['low']:.1f} to {own['high']:.1f}. The reader of print alone would be "
        f"right on {own['print']:.1f} % of them; {own['misread']:.1f} % are misread by both."
    )


# What is made of it.


def test_an_image_is_misread_if_no_reader_sees_what_was_asked():
    table = rows([1, 1, 1, 1], [1, 2, 2, 2], by_print=[2, 1, 3, pd.NA])
    assert misread.misread(table).tolist() == [False, False, True, True]


def test_shares_are_over_seeds_and_those_of_the_real_images_over_images():
    table = pd.concat(
        [
            rows([0, 1, 2, 3], [0, 1, 2, 0], by_print=[0, 0, 0, 3], seed=0),
            rows([0, 1, 2, 3], [0, 0, 0, 0], by_print=[0, 0, 2, 3], seed=1),
            *(rows([0, 1], [0, 2], method=misread.HELD_OUT, seed=seed) for seed in (0, 1)),
            rows([0, 1], [0, 1], method="base"),
            *(rows([0, 1] * 50, [0, 1] * 49 + [0, n], method="cls", seed=n) for n in (0, 1, 2)),
        ]
    )
    found = misread.shares(table).set_index("method")
    assert list(found.index) == [misread.HELD_OUT, "base", "cls", "dset"]
    assert found.loc["dset", ["seeds", "images", "print", "misread"]].tolist() == [2, 4, 62.5, 12.5]
    ends = ["share", "low", "high"]
    assert mean_interval([75, 25])[1] < 0
    assert found.loc["dset", ends].tolist() == [50, 0, 100], "no share is outside"
    assert found.loc[misread.HELD_OUT, ends].tolist() == pytest.approx(
        [50, *(100 * end for end in wilson(1, 2))]
    )
    mean, low, high = mean_interval([99, 100, 99])
    assert found.loc["cls", ends].tolist() == pytest.approx([mean, low, min(100, high)])
    assert found.loc["base", "low"] == pytest.approx(100 * wilson(2, 2)[0]), "one seed"
    assert np.isnan(found.loc["base", "print"])
    shown = misread.shares_table(misread.shares(table)).data
    assert shown["Read as asked %"].tolist() == ["50.0", "100.0", "99.3", "50.0"]
    assert shown["Reader of print %"].tolist() == ["-", "-", "-", "62.5"]
    assert misread.reader_sentence(table).endswith("of 2 held-out real images, 95 % interval "
                                                   "9.5 to 90.5.")  # fmt: skip


def test_the_most_misread_of_each_class_has_the_largest_margin():
    table = pd.concat(
        [
            rows([0, 0, 0, 1, 1], [1, 2, 0, 1, 2], [0.1, 0.3, 0.9, 0.8, 0.2], seed=0),
            rows([0, 1], [1, 2], [0.2, 0.4], [0, 2], seed=1),
            rows([0], [1], [0.9], method=misread.HELD_OUT),
        ]
    )
    found = misread.most_misread(table)
    assert found[["asked", "seed", "index"]].values.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert misread.most_misread(table, 2)["margin"].tolist() == [0.3, 0.1, 0.4, 0.2]


def test_the_pictures_are_those_of_the_rows(finished, dataset):
    chosen = misread.most_misread(finished.table)
    panels = misread.pictures(chosen, finished.recipes, finished.store)
    assert list(panels) == [METHODS[name].title for name in ("base", "dset")]
    for method in ("base", "dset"):
        own = select(chosen, method=method)
        assert len(panels[METHODS[method].title]) == len(own)
        for row, (image, text) in zip(
            own.to_dict("records"), panels[METHODS[method].title], strict=True
        ):
            recipe = next(
                r for r in finished.recipes if (r.method, r.seed) == (method, row["seed"])
            )
            images = read_synthetic_set(finished.store.folder(Cell(recipe).keys["generate"]))
            assert image.tobytes() == images.open(row["index"]).tobytes()
            names = [dataset.classes[row[column]] for column in ("asked", "read")]
            assert text == "asked: {}\nread: {}".format(*names)
    assert len(chosen), "random weights draw no class that a reader knows"
