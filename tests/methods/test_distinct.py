"""Class names that become one prompt are found before anything is made."""

import dataclasses
import json
import shutil
import warnings
from collections import Counter

import open_clip
import pytest
from conftest import write_classes

from datadream.data.datasets import load_dataset
from datadream.errors import DataError, ModelMissingError
from datadream.methods import distinct
from datadream.methods.base import Support
from datadream.models.classifiers import clip
from datadream.models.download import download_model
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
    with pytest.raises(DataError, match="'red dog' and 'red fox' are the same to the generator"):
        cell.compute(Store(tmp_path / "artifacts"))


def test_characters_that_a_tokenizer_lacks_make_one_prompt(make, tmp_path, monkeypatch):
    real = clip.tokens_of
    monkeypatch.setattr(
        distinct,
        "classifier_tokens",
        lambda name, texts: real(name, [t.encode("ascii", "replace").decode() for t in texts]),
    )
    cell = cell_of(make, tmp_path / "photos", ["\u732b", "\u72ac"], "real")
    with pytest.raises(
        DataError, match="are the same to the classifier.*no tokens for some characters"
    ):
        cell.compute(Store(tmp_path / "artifacts"))


def test_a_cluster_s_piece_is_refused_too(make, tmp_path):
    names = [f"{LONG}in the {place}" for place in ("north", "south")]
    cell = cell_of(make, tmp_path / "photos", names)
    with pytest.raises(DataError, match="are the same to"):
        cell.make("adapt", Store(tmp_path / "artifacts"), cell.adapters[0])


def test_an_engine_refuses_beforehand_what_a_cell_would(make, tmp_path):
    """A slice of the base generator has no adapter, whose making would ask."""
    names = [f"{LONG}in the {place}" for place in ("north", "south")]
    cell = cell_of(make, tmp_path / "photos", names, "base")
    with pytest.raises(DataError, match="are the same to"):
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


def test_a_tokenizer_that_is_elsewhere_is_a_warning_and_asked_again(make, dataset, monkeypatch):
    """The weights are there and would run, so that nobody else would tell."""
    names = (f"{LONG}in the north", f"{LONG}in the south", "toad")
    support = Support(make("real"), dataclasses.replace(dataset, classes=names))

    def refuse(*_):
        raise AttributeError("no attribute OwnTokenizer")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(distinct, "classifier_tokens", refuse)
            with pytest.warns(distinct.UncheckedWarning, match="not compared.*OwnTokenizer"):
                distinct.require_distinct(support)
    with pytest.raises(DataError, match="are the same to the classifier"):
        distinct.require_distinct(support)


@pytest.mark.parametrize("method, part", [("dset", "generator"), ("real", "classifier")])
def test_a_model_that_is_not_there_is_told_by_whoever_loads_it(make, tmp_path, method, part):
    """Before anything is made, and without a warning beside the error."""
    root, store = tmp_path / "photos", Store(tmp_path / "artifacts")
    own = {part: str(tmp_path / "nowhere")}
    cell = cell_of(make, root, ["cat", "dog"], method, overrides=own)
    with warnings.catch_warnings():
        warnings.simplefilter("error", distinct.UncheckedWarning)
        with pytest.raises(ModelMissingError, match="there is no folder"):
            cell.compute(store)
    assert not [key for key in store.keys() if not key.startswith("shots")]


@pytest.mark.parametrize("words", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_generator_without_its_tokenizer_is_incomplete(make, models, tmp_path, words):
    """transformers would make one of no words, to which all prompts are the same."""
    bare = tmp_path / "bare"
    shutil.copytree(models.generator, bare)
    shutil.rmtree(bare / words) if (bare / words).is_dir() else (bare / words).unlink()
    own = {"generator": str(bare)}
    for method in ("dset", "base"):
        cell = cell_of(make, tmp_path / method, ["cat", "dog"], method, overrides=own)
        with pytest.raises(ModelMissingError, match="has no words of its texts in tokenizer; copy"):
            cell.compute(Store(tmp_path / "artifacts"))
    with pytest.raises(ModelMissingError, match="has no words of its texts in tokenizer; copy"):
        download_model(str(bare))


def test_the_embedded_classes_are_distinct_to_the_embedded_models():
    from datadream.methods.recipes import recipe

    for name in ("mnist", "optdigits"):
        distinct.require_distinct(Support(recipe(dataset=name, method="dset"), load_dataset(name)))
