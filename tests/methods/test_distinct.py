"""Class names that become one prompt are found before anything is made."""

import dataclasses
import json
import shutil
from collections import Counter

import open_clip
import pytest
from conftest import write_classes

from datadream.data.datasets import load_dataset
from datadream.errors import DataError
from datadream.methods import distinct
from datadream.methods.base import Support
from datadream.models.classifiers import clip
from datadream.models.generators import load, tokens
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store

LONG = "a very long name of a kind of bird that lives "


def cell_of(make, root, names, method="dset", **fields):
    write_classes(root, names, 6)
    recipe = make(method, folder=str(root), **fields)
    return Cell(recipe)


@pytest.mark.parametrize("method", ["real", "clip", "dset", "base+real"])
def test_names_longer_than_the_text_tower_are_an_error_with_both(make, tmp_path, method):
    names = [f"{LONG}in the {place}" for place in ("north", "south")]
    store = Store(tmp_path / "artifacts")
    with pytest.raises(DataError) as caught:
        cell_of(make, tmp_path / "photos", names, method).compute(store)
    assert all(name in str(caught.value) for name in names)
    assert "to the classifier" in str(caught.value) and "tokens" in str(caught.value)
    assert not store.keys(), "before anything is made"


@pytest.mark.parametrize("method", ["dset", "cls", "base", "issynth"])
def test_the_generator_s_tokenizer_is_asked_too(make, models, tmp_path, method):
    """A classifier with a longer text tower tells the names apart, and the generator does not."""
    short = tmp_path / "short"
    shutil.copytree(models.generator, short)
    file = short / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 7}))
    names, own = ["red fox", "red dog"], {"generator": str(short)}
    cell = cell_of(make, tmp_path / "photos", names, method, overrides=own)
    with pytest.raises(DataError, match="'red dog' and 'red fox' are one to the generator"):
        cell.compute(Store(tmp_path / "artifacts"))


def test_characters_that_a_tokenizer_lacks_make_one_prompt(make, tmp_path, monkeypatch):
    real = clip.tokens_of
    monkeypatch.setattr(
        distinct,
        "classifier_tokens",
        lambda name, texts: real(name, [t.encode("ascii", "replace").decode() for t in texts]),
    )
    cell = cell_of(make, tmp_path / "photos", ["\u732b", "\u72ac"], "real")
    with pytest.raises(DataError, match="are one to the classifier.*no tokens for some characters"):
        cell.compute(Store(tmp_path / "artifacts"))


def test_a_cluster_s_piece_is_refused_too(make, tmp_path):
    names = [f"{LONG}in the {place}" for place in ("north", "south")]
    cell = cell_of(make, tmp_path / "photos", names)
    with pytest.raises(DataError, match="are one to"):
        cell.make("adapt", Store(tmp_path / "artifacts"), cell.adapters[0])


def test_an_engine_refuses_beforehand_what_a_cell_would(make, tmp_path):
    """A slice of the base generator has no adapter, whose making would ask."""
    names = [f"{LONG}in the {place}" for place in ("north", "south")]
    cell = cell_of(make, tmp_path / "photos", names, "base")
    with pytest.raises(DataError, match="are one to"):
        cell.require_runnable(Store(tmp_path / "artifacts"))


def test_sound_names_pass_and_no_weights_are_loaded(make, dataset, monkeypatch):
    def refuse(*_):
        raise AssertionError("weights")

    monkeypatch.setattr(clip, "load_clip", refuse)
    monkeypatch.setattr(load, "_load_pipeline", refuse)
    for method in ("real", "dset", "issynth", "cls+real"):
        distinct.require_distinct(Support(make(method), dataset))


def test_a_thousand_classes_are_tokenized_at_once_by_one_tokenizer(make, dataset, monkeypatch):
    from diffusers import DiffusionPipeline

    classes = tuple(f"kind {number}" for number in range(1000))
    many, calls = dataclasses.replace(dataset, classes=classes), Counter()

    def count(place, name):
        real = getattr(place, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, counted)

    clip._tokenizer.cache_clear()
    tokens._tokenizers.cache_clear()
    count(open_clip, "get_tokenizer")
    count(DiffusionPipeline, "load_config")
    count(distinct, "classifier_tokens")
    count(distinct, "generator_tokens")
    count(distinct, "prompts")
    names = ("get_tokenizer", "load_config", "classifier_tokens", "generator_tokens")
    distinct.require_distinct(Support(make("dset"), many))
    assert calls == {**dict.fromkeys(names, 1), "prompts": 1000}
    distinct.require_distinct(Support(make("dset"), many))
    assert calls["classifier_tokens"] == calls["generator_tokens"] == 1, "what is known is kept"


def test_the_embedded_classes_are_distinct_to_the_embedded_models():
    from datadream.methods.recipes import recipe

    for name in ("mnist", "optdigits"):
        distinct.require_distinct(Support(recipe(dataset=name, method="dset"), load_dataset(name)))
