"""What a method adds to the classifier's loss: ProtoAug's terms, and the hook that they use."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at
from hypothesis import given, settings
from hypothesis import strategies as st

from datadream.data.batches import Batches
from datadream.data.images import Images
from datadream.errors import ConfigError
from datadream.methods.base import ExtraLoss, Method
from datadream.methods.protoaug import RegionLoss, partition, region_terms
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS, register
from datadream.models.classifiers.clip import Classifier
from datadream.pipeline import train
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store
from datadream.store.files import digest


def trained(recipe, dataset, store):
    """Return the folder of a recipe's classifier."""
    return Cell(recipe, dataset).make("train", store)


# ProtoAug's terms.


@settings(max_examples=40)
@given(st.data(), st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_the_terms_are_the_paper_s_sums(data, count, classes, seed):
    torch.manual_seed(seed)
    logits = torch.randn(count, classes, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    real = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    g, sums = int((~real).sum()), [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    for region in range(4):
        own = [i for i in range(count) if regions[i] == region]
        a, b = ([i for i in own if bool(real[i]) == kind] for kind in (True, False))
        if not a:
            continue
        for i in a:
            for j in b:
                sums[0] = sums[0] + ((logits[i] - logits[j]) ** 2).mean() / (g * len(a))
        for i in b:
            for j in b:
                sums[1] = sums[1] + ((logits[i] - logits[j]) ** 2).mean() / (g * len(b))
    found = region_terms(logits, regions, real)
    for one, expected in zip(found, sums, strict=True):
        torch.testing.assert_close(one, expected)
        if not expected.requires_grad:
            continue
        gradients = [
            torch.autograd.grad(term, logits, retain_graph=True) for term in (one, expected)
        ]
        torch.testing.assert_close(*gradients)


def test_a_batch_of_one_kind_adds_nothing():
    logits = torch.randn(4, 3)
    for real in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert [float(term) for term in region_terms(logits, torch.zeros(4), real)] == [0, 0]


# Its regions.


def test_a_class_that_lies_in_two_heaps_is_two_regions():
    """And the other class, which lies on the first heap, is no part of it."""
    heaps = np.array([[0.0, 0.0], [9.0, 9.0], [0.0, 0.0]])
    features = np.repeat(heaps, 6, 0) + np.random.RandomState(0).normal(0, 0.1, (18, 2))
    labels = np.array([0] * 12 + [1] * 6)
    found = partition(features, labels, 2)
    assert len(set(found[:6])) == len(set(found[6:12])) == 1 and found[0] != found[6]
    assert set(found[:12]) == {0, 1} and set(found[12:]) == {2, 3}
    assert np.array_equal(found, partition(features, labels, 2))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_that_are_all_the_same_are_one_region(count):
    assert partition(np.ones((count, 3)), np.full(count, 2), 2).tolist() == [4] * count


# Which row an image has.


def test_the_members_of_a_batch_are_its_images_before_they_are_mixed():
    tones = [10 * i for i in range(7)], [200 + 5 * i for i in range(9)]
    sets = [
        Images(tuple(np.full((16, 16), t, np.uint8) for t in own), (0,) * len(own)) for own in tones
    ]
    options = recipe(method="protoaug", overrides={"classify.batch": 8, "classify.crop_low": 1.0})
    batches = Batches(*sets, options.classify, 1, 16, 0)
    for step in range(5):
        images, _, real = batches.at(step)
        members = batches.members(step)
        assert [kind for kind, _ in members] == real.tolist()
        expected = [tones[0 if kind else 1][i] for kind, i in members]
        assert (255 * images.mean((1, 2, 3))).round().tolist() == expected


@dataclass(frozen=True)
class Spy(ExtraLoss):
    """Keep the place and the label of each image, and ask that they are those of the batch."""

    def prepare(self, given):
        labels = torch.tensor(given.images.labels)
        return torch.stack([torch.arange(len(labels)), labels], 1)

    def added(self, logits, targets, real, kept):
        assert kept[:, 1].tolist() == targets.argmax(1).tolist()
        assert (kept[:, 0] < 6).tolist() == real.tolist() and logits.shape == (6, 3)
        return 0 * logits.sum()


SPY = Method("spy", "Spy", "#882255", real=True, loss=Spy())
UNMIXED = {"classify.mix": 0.0}


def test_a_loss_is_given_the_rows_of_the_batch_s_images(make, dataset, store, registered):
    registered(SPY)
    one = trained(make("spy", UNMIXED), dataset, store)
    other = trained(make("base+real", UNMIXED), dataset, store)
    assert one != other
    assert digest(one / "adapter.safetensors") == digest(other / "adapter.safetensors")


# Trainings.


@pytest.mark.parametrize(
    "method, plain", [("protoaug", "dset+real"), ("protoaug_light", "base+real")]
)
def test_the_images_are_the_plain_method_s_and_the_classifier_is_not(
    make, dataset, store, method, plain
):
    one, other = (Cell(make(name, UNMIXED), dataset) for name in (method, plain))
    assert one.key("generate") == other.key("generate") and one.key("train") != other.key("train")
    made = [digest(cell.make("train", store) / "adapter.safetensors") for cell in (one, other)]
    assert made[0] != made[1]


def test_one_shot_is_enough(make, dataset, store):
    assert trained(make("protoaug_light", shots=1), dataset, store).is_dir()


def test_a_killed_training_goes_on_to_the_same_bytes(make, dataset, tmp_path, monkeypatch):
    one, store = make("protoaug_light"), Store(tmp_path / "killed")
    whole = trained(one, dataset, Store(tmp_path / "whole"))
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **more: fit(*args, **more, every=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "mixed_loss", dies_at(train.mixed_loss, 5))
        with pytest.raises(Killed):
            trained(one, dataset, store)
    assert list(tmp_path.glob("killed/*.partial/checkpoint.safetensors"))
    again = trained(one, dataset, store)
    assert digest(again / "adapter.safetensors") == digest(whole / "adapter.safetensors")


def test_a_step_that_does_not_fit_is_an_error_and_not_done_in_parts(
    make, dataset, store, monkeypatch
):
    image, calls = Classifier.image, []

    def within(self, images):
        calls.append(len(images))
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return image(self, images)

    monkeypatch.setattr(Classifier, "image", within)
    with pytest.raises(ConfigError, match="6 images at once do not fit.*lower classify.batch"):
        trained(make("protoaug_light"), dataset, store)
    assert len(calls) == 1


# Keys, and what cannot work.


@pytest.mark.parametrize("change", [{"version": 2}, {"clusters": 3}, {"robustness": 0.5}])
def test_a_setting_of_a_loss_is_in_the_classifier_s_key_alone(make, dataset, registered, change):
    before = Cell(make("protoaug_light"), dataset).keys
    changed = replace(METHODS["protoaug_light"], name="own", loss=RegionLoss(**change))
    registered(changed)
    after = Cell(make("own"), dataset).keys
    assert {name for name in before if before[name] != after[name]} == {"train", "judge"}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"classify.mix": 0.2}, "'protoaug' compares.*classify.mix=0.2 mixes.*give classify.mix=0"),
        ({"classifier": "resnet50"}, "'protoaug' prepares.*'resnet50' starts from random weights"),
    ],
)
def test_what_the_loss_cannot_work_with_is_refused_before_anything_is_made(
    make, dataset, store, overrides, message
):
    with pytest.raises(ConfigError, match=message):
        Cell(make("protoaug", overrides), dataset).compute(store)
    assert not store.keys()


class Short(Spy):
    def prepare(self, given):
        return torch.zeros(1)


class Broken(Spy):
    def prepare(self, given):
        return {}["a"]


@pytest.mark.parametrize(
    "loss, message",
    [
        ("much", "loss='much' of method 'spy' is a str; give an instance of a class derived"),
        (Short(), "'spy': its loss's `prepare` gives .*a row for each of the 21 images"),
        (Broken(), "'spy'.* failed in loss.prepare: KeyError"),
    ],
)
def test_a_faulty_loss_ends_in_one_message(make, dataset, store, registered, loss, message):
    registered(replace(SPY, loss=loss))
    with pytest.raises(ConfigError, match=message):
        trained(make("spy", UNMIXED), dataset, store)


@pytest.mark.parametrize(
    "parts, message",
    [({"head": METHODS["tip"].head}, "a loss, and a head"), ({"trained": False}, "no training")],
)
def test_a_loss_without_a_lora_is_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        register(replace(SPY, **parts))
