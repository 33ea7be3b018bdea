"""Features: what they are, that they are computed once and go on after a kill, and what a
missing model says.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at

from datadream.data import datasets
from datadream.data.images import Images
from datadream.data.transforms import evaluation_batches
from datadream.errors import ConfigError, ModelMissingError
from datadream.methods.recipes import recipe
from datadream.models.classifiers import print_reader
from datadream.models.classifiers.base import load_classifier
from datadream.paths import paths
from datadream.results import features


@pytest.fixture
def digits():
    """Return five digits of 28 pixels."""
    return datasets.load_dataset("mnist").val.pick(range(5))


def views(images, side):
    return next(evaluation_batches(images, side)).float() / 255


def test_clip_features_are_the_untouched_classifiers_and_unit(make, shots, store):
    found = features.features(shots, "clip", make(), store)
    assert found.dtype == np.float32 and found.shape == (6, 32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    model = load_classifier(make().classifier).eval()
    with torch.no_grad():
        expected = model.image(views(shots, model.size))
        tokens = model.prompts(["a", "b"])
        logits = model.clip.logit_scale.exp() * expected @ model.text(tokens).T
        assert torch.allclose(model(views(shots, model.size), tokens), logits)
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


def test_reader_features_are_what_its_last_layer_sees(digits, make, store):
    found = features.features(digits, "reader", make(), store)
    reader = print_reader.load_reader(paths()["mini"])
    logits = reader(views(digits, 32))
    assert found.shape == (5, reader[-1].in_features)
    assert reader[-1](torch.tensor(found)).detach().numpy() == pytest.approx(
        logits.detach().numpy(), abs=1e-4
    )


def test_features_are_computed_once_and_per_image(make, shots, store, monkeypatch):
    first = features.features(shots, "clip", make(), store)
    backwards = features.features(shots.pick(range(5, -1, -1)), "clip", make(), store)
    assert backwards == pytest.approx(first[::-1], abs=1e-6)

    def refuse(recipe):
        raise AssertionError("computed again")

    for name, row in features.EXTRACTORS.items():
        monkeypatch.setitem(features.EXTRACTORS, name, dataclasses.replace(row, load=refuse))
    again = Images(shots.sources, shots.labels)  # another object with the same content
    assert (features.features(again, "clip", make(seed=3), store) == first).all()
    for other in (
        ("reader", make(), shots),
        ("clip", make(), shots.pick([0])),
        ("clip", make(overrides={"classifier": "mini"}), shots),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            features.features(other[2], other[0], other[1], store)


def test_a_stamp_stands_for_the_content(make, shots, store):
    """A synthetic set is known by its artifact's key, so that thousands of files need not be
    read to find the features.
    """
    stamped = dataclasses.replace(shots, stamp="generate-1")
    first = features.features(stamped, "clip", make(), store)
    missing = Images(("gone.png",) * 6, shots.labels, "generate-1")
    assert (features.features(missing, "clip", make(), store) == first).all()


def test_a_killed_extraction_goes_on(make, shots, store, monkeypatch):
    whole = features.features(shots, "clip", make(), store)
    monkeypatch.setattr(features, "SHARD", 2)
    stamped = dataclasses.replace(shots, stamp="again")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(features, "_write", dies_at(features._write, 3))
        features.features(stamped, "clip", make(), store)
    (partial,) = store.root.glob("features-*.partial")
    times = {file.name: file.stat().st_mtime_ns for file in partial.iterdir()}
    assert len(times) == 2
    assert features.features(stamped, "clip", make(), store) == pytest.approx(whole, abs=1e-6)
    folder = store.root / partial.name.removesuffix(".partial")
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times, (
        "what was finished is not computed again"
    )
    assert not [f for f in folder.iterdir() if f.suffix not in (".safetensors", ".json")]
    assert json.loads((folder / "manifest.json").read_text())["inputs"]["extractor"] == "clip"


def test_each_profile_has_an_extractor_of_its_own_beside_clip():
    assert features.extractors(recipe("mini")) == ("clip", "reader")
    assert features.extractors(recipe("paper")) == ("clip", "dinov2")


def test_missing_weights_say_how_to_get_them(make, shots, store, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelMissingError, match="`hf download timm/vit_base_patch14_dinov2.lvd142m`.*HF_HOME"
    ):
        features.features(shots, "dinov2", make(), store)


def test_dinov2_features_are_its_class_token_of_the_normalised_view(
    make, shots, store, monkeypatch
):
    """Random weights of a small relative stand for the download: same call, same normalisation,
    no head.
    """
    import timm

    small = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    monkeypatch.setattr(features, "DINOV2_SIDE", 32)
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: small)
    found = features.features(shots, "dinov2", make(), store)
    mean, std = (torch.tensor(small.pretrained_cfg[n]).view(3, 1, 1) for n in ("mean", "std"))
    with torch.no_grad():
        assert found == pytest.approx(small((views(shots, 32) - mean) / std).numpy(), abs=1e-4)


@pytest.mark.parametrize(
    "name, fields, error, words",
    [
        (
            "clop",
            {},
            ConfigError,
            "'clop' is unknown; accepted: clip, reader, dinov2. Did you mean 'clip'",
        ),
        (
            "clip",
            {"classifier": "resnet50"},
            ConfigError,
            "resnet50.*leave out the extractor 'clip'",
        ),
    ],
)
def test_what_cannot_be_extracted_is_named(name, fields, error, words, make, shots, store):
    with pytest.raises(error, match=words):
        features.features(shots, name, make(overrides=fields), store)
    with pytest.raises(ValueError, match="no images"):
        features.features(shots.pick([]), "clip", make(), store)
