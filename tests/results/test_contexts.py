"""Whether a set has the contexts that were asked for, and whether a class owns some of them."""

import json
import math

import numpy as np
import pytest
from conftest import executed
from hypothesis import given
from hypothesis import strategies as st

from datadream.data.attributes import ATTRIBUTES
from datadream.data.datasets import SHOTS_TITLE, load_for
from datadream.methods.base import Support
from datadream.methods.checked import draws
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.pipeline.stages import Cell
from datadream.results import contexts
from datadream.store.artifacts import Store


@given(classes=st.integers(2, 6), seed=st.integers(0, 9))
def test_independent_attributes_have_no_information_and_equal_ones_have_all(classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 60)
    assert abs(contexts.mutual_information(labels, rng.normal(size=len(labels)))) < 0.1
    labels = np.repeat(np.arange(contexts.BINS), 60)  # each part of equal counts is a class
    told = contexts.mutual_information(labels, labels + 1e-3 * rng.random(len(labels)))
    assert told == pytest.approx(math.log2(contexts.BINS), abs=0.06)


def test_the_information_of_a_known_table():
    """Half of one class has the high value and none of the other: 0.3113 bits."""
    labels = np.repeat([0, 1], 4000)
    values = np.concatenate([np.zeros(2000), np.ones(2000), np.zeros(4000)])
    assert contexts.mutual_information(labels, values) == pytest.approx(0.3113, abs=0.002)


@pytest.mark.parametrize("wrong", [([0], [1.0]), ([0, 1], [1.0]), ([[0, 1]], [[1.0, 2.0]])])
def test_other_than_pairs_are_refused(wrong):
    with pytest.raises(ValueError, match="in pairs"):
        contexts.mutual_information(*wrong)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("contexts"))


@pytest.fixture(scope="module")
def drawn(tiny, store):
    """Return cells of MNIST whose sets are made, of a method with contexts and one without."""
    cells = [
        recipe(overrides=tiny, dataset="mnist", method=method, shots=3, seed=seed)
        for method, seed in (("real", 0), ("dset", 0), ("bob", 0), ("bob", 1))
    ]
    for one in cells[1:]:
        Cell(one).make("generate", store)
    return cells


def test_what_is_asked_is_what_the_prompts_say(drawn, store):
    found = contexts.obedience(drawn, store)
    assert set(found["method"]) == {METHODS["bob"].title}
    assert found["correlation"].abs().max() <= 1
    support = Support(drawn[-1], load_for(drawn[-1]))
    words = {word for one in draws(support, 0) for word in one.prompt.partition(",")[2].split()}
    asked = {one.name for one in ATTRIBUTES if words & {one.low, one.high}}
    assert set(found.loc[found["seed"] == 1, "attribute"]) == asked


def test_an_obedient_set_is_seen_as_one(drawn, store, monkeypatch):
    """A set whose images have exactly what was asked for correlates perfectly, and one with the
    opposite perfectly the other way.
    """
    bob = drawn[-1]
    support = Support(bob, load_for(bob))
    rows = contexts.asked_of(support)
    labels = [label for label in range(10) for _ in draws(support, label)]
    for sign in (1, -1):
        monkeypatch.setattr(contexts, "_made", lambda *_, s=sign: (s * rows).assign(label=labels))
        found = contexts.obedience([bob], store)
        assert np.allclose(found["correlation"], sign)


def test_a_class_that_owns_an_attribute_is_known_by_it(drawn, store):
    found = contexts.links(drawn, store)
    titles = {contexts.REAL_TITLE, SHOTS_TITLE, METHODS["dset"].title, METHODS["bob"].title}
    assert set(found["images of"]) == titles
    real = found[found["images of"] == contexts.REAL_TITLE]
    # A one is narrow, which is no accident.
    aspect = real[real["attribute"] == "aspect"]
    assert (aspect["information"] > 0.2).all() and (aspect["accidental"] < 0.1).all()
    assert (real["accidental"] < real["information"] + 0.02).all()
    summary = contexts.intervals(found, ["images of", "attribute"], "accidental")
    two = summary[summary["images of"] == METHODS["bob"].title]
    assert (two["seeds"] == 2).all() and (two["low"] <= two["mean"]).all()


def test_a_set_that_has_not_been_made_is_named(drawn, tmp_path):
    with pytest.raises(LookupError, match="mnist, bob, seed 1"):
        contexts.obedience(drawn[-1:], Store(tmp_path / "empty"))


@pytest.mark.long
def test_the_contexts_notebook_runs_under_papermill(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "store"))
    parameters = {"seeds": [0, 1], "shots": 3, "overrides": tiny}
    page = executed("contexts", parameters, tmp_path)
    text = json.dumps(page["cells"])
    assert "4 cells in" in text and "Held-out real images" in text
