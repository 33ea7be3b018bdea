"""Classes that look alike, drawn in pairs, and prompts that lead away from one of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import generate as make_set
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datadream.data.synthetic_set import read_synthetic_set
from datadream.errors import ConfigError, DataError
from datadream.methods import contrast
from datadream.methods.base import Adapter, Draw, Support
from datadream.methods.checked import draws, own_key
from datadream.methods.datadream import DatasetWise
from datadream.methods.recipes import recipe
from datadream.methods.similar import Similar, pairs, probabilities
from datadream.models.classifiers import base
from datadream.models.classifiers.frozen import Frozen
from datadream.models.generators import sampling
from datadream.models.generators.load import load_generator
from datadream.pipeline.stages import Cell, stage_of
from datadream.store.artifacts import Store
from datadream.study import run

MEANS = arrays(float, (4, 3), elements=st.floats(-1, 1, width=32))


@given(MEANS)
def test_the_likelier_the_more_alike_and_never_the_class_itself(means):
    found = probabilities(means)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.diagonal() == 0).all()
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    # The published ratio: exp of the difference of two cosines over 0.4.
    np.testing.assert_allclose(
        found[0, 1] / found[0, 2], np.exp((cosines[0, 1] - cosines[0, 2]) / 0.4)
    )


def test_the_means_are_of_the_raw_features_of_each_class_s_few_shots(make, dataset):
    support = Support(make("contrast"), dataset)
    frozen = Frozen(base.load_classifier(support.recipe.classifier), support.class_prompts())
    means = [frozen.features(support.shots(label)).mean(0).numpy() for label in range(3)]
    np.testing.assert_allclose(pairs(support), probabilities(np.stack(means)), rtol=1e-4)


@pytest.mark.parametrize("label", range(3))
def test_each_image_is_led_away_from_another_class_as_often_as_it_is_alike(make, dataset, label):
    support = Support(make("contrast", {"generate.images": 300}), dataset)
    found = [one.negative for one in draws(support, label)]
    prompts = support.class_prompts()
    assert set(found) == set(prompts) - {prompts[label]}
    shares = [found.count(prompt) / len(found) for prompt in prompts]
    np.testing.assert_allclose(shares, pairs(support)[label], atol=0.1)


def test_a_key_needs_no_classifier_and_changes_with_what_decides(
    make, dataset, monkeypatch, registered
):
    def key(overrides=None, **fields):
        one = make("contrast", overrides, **fields)
        return stage_of("generate").inputs(Cell(one, dataset), None)

    plain = key()
    monkeypatch.delattr(base, "load_classifier")
    pairs.cache_clear()
    draws.cache_clear()
    assert key() == plain and "draws" not in plain
    assert key({"classifier": "somebody/else"})["similar"] != plain["similar"]
    assert key(shots=3)["similar"] != plain["similar"]

    class Later(Similar, DatasetWise):  # of somebody else: its draws are in its key
        def draw(self, support, label, index, rng):
            return Draw("a", (Adapter(),))

    registered(Later("later", "Later", "#882255"))
    assert {"draws", "similar"} == set(own_key(Support(make("later"), dataset)))


@pytest.mark.parametrize("model", ["generator", "xl"])
def test_a_negative_prompt_stands_where_the_empty_one_does(models, model):
    """As the pipeline's own `negative_prompt`, in a batch where one image has none."""
    generator = load_generator(getattr(models, model))
    options = recipe(overrides={"generate.guidance": 3.0, "generate.steps": 2}).generate
    texts = [("a photo of a seven", "a photo of a one"), ("a photo of a one", "")]
    found = sampling.sample(
        generator, sampling.Prompts(generator, texts, options).of([0, 1]), [5, 6], options, 16
    )
    own = generator.pipe
    for (text, away), seed, image in zip(texts, (5, 6), found, strict=True):
        (expected,) = own(
            text, negative_prompt=away or None, guidance_scale=3.0, num_inference_steps=2,
            height=16, width=16, generator=torch.Generator().manual_seed(seed),
        ).images  # fmt: skip
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1
    plain = sampling.Prompts(generator, [(texts[0][0], "")], options).of([0])
    (without,) = sampling.sample(generator, plain, [5], options, 16)
    assert np.abs(np.asarray(without, int) - np.asarray(found[0], int)).max() > 1


def test_the_metadata_names_what_an_image_was_led_away_from(make, dataset, tmp_path):
    one = make("contrast")
    folder = make_set(one, dataset, Store(tmp_path))
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    support = Support(one, dataset)
    expected = [draw.negative for label in range(3) for draw in draws(support, label)]
    assert [json.loads(line)["negative"] for line in lines] == expected
    assert len(read_synthetic_set(folder)) == 15


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"generate.guidance": 1.0}, "generate.guidance=1 and .* lead away from nothing"),
        ({"generate.guided": 0.0}, "generate.guided=0 lead away from nothing"),
        ({"classifier": "resnet50"}, "which classes look alike, and classifier='resnet50' starts"),
    ],
)
def test_what_cannot_lead_away_is_refused_before_anything_is_made(
    make, dataset, store, overrides, said
):
    with pytest.raises(ConfigError, match=said):
        run.run(make("contrast", overrides), store)
    assert not list(store.root.glob("adapt-*"))


def test_one_class_alone_has_none_to_be_led_away_from(make, dataset):
    one = dataclasses.replace(dataset, classes=("owl",))
    with pytest.raises(DataError, match="'contrast' needs other classes beside each.*one class"):
        draws(Support(make("contrast"), one), 0)


def test_it_is_a_proposal_of_ours_and_shares_the_adapter_of_datadream(make, dataset):
    own, plain = Cell(make("contrast"), dataset), Cell(make("dset"), dataset)
    assert own.keys_of("adapt") == plain.keys_of("adapt")
    assert own.key("generate") != plain.key("generate")
    assert own.method.title == "Contrast prompts" and "proposal of this project" in contrast.__doc__
