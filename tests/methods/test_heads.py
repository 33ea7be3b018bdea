"""Heads on a frozen CLIP: the formulas of each, what they choose by, saving, killing, and a head
from outside.
"""

import functools
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from datadream import photos
from datadream.config import Classify, as_dict, key_fields
from datadream.data.datasets import few_shots, validation_images
from datadream.data.images import Images
from datadream.errors import ConfigError, DataError
from datadream.methods import heads
from datadream.methods.base import Given, Head, Method, Support
from datadream.methods.crossmodal import CrossModal
from datadream.methods.probe import Probe
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.methods.tip import Tip, TipF
from datadream.models.classifiers.base import load_classifier, load_classifier_lora
from datadream.models.classifiers.frozen import Frozen, choice
from datadream.pipeline import evaluate
from datadream.pipeline.stages import Cell, stage_of
from datadream.results.record import record_file
from datadream.store.artifacts import Store
from datadream.store.files import digest
from datadream.study import run
from datadream.study.plan import plan
from datadream.training import loop
from datadream.training.loop import DivergedError

HEADS = [name for name, method in METHODS.items() if method.head]
QUICK = {"classify.steps": 4, "classify.evaluations": 2}


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def classifier(make):
    """Return the tiny classifier as the heads see it, and its prompts."""
    return Frozen(load_classifier(make("clip").classifier), ["a photo of a x", "a photo of a y"])


@pytest.fixture
def offered(make, dataset, tmp_path):
    """Return offered(method, overrides): what the head of a method is fitted on."""

    def build(method, overrides=None, **fields):
        one = make(method, {**QUICK, **(overrides or {})}, **fields)
        support = Support(one, dataset)
        frozen = Frozen(load_classifier(one.classifier), support.class_prompts())
        images, val = support.shots(), validation_images(one, dataset)
        return Given(support, frozen, images, val, tmp_path)

    return build


# The formulas.


def test_the_logits_of_the_cache_are_the_formula_on_a_hand_example():
    """An image at a right angle to one key and on the other: exp(-b) and 1."""
    state = {
        "keys": tensor([1, 0], [0, 1]),
        "values": tensor([1, 0, 0], [0, 0, 1]),
        "scale": torch.tensor(10.0),
        "alpha": torch.tensor(2.0),
        "beta": torch.tensor(3.0),
    }
    text = tensor([0.6, 0.8], [1, 0], [0, 1])
    found = Tip().logits(state, tensor([0, 5]), text)  # of any length
    expected = tensor([10 * 0.8 + 2 * np.exp(-3.0), 0, 10 + 2])
    torch.testing.assert_close(found, expected)


@given(st.integers(1, 5), st.integers(2, 4), st.floats(0, 5), st.floats(0, 9), st.integers(0, 99))
def test_the_cache_is_the_papers_formula(count, classes, alpha, beta, seed):
    torch.manual_seed(seed)
    keys, text = (F.normalize(torch.randn(n, 6), dim=1) for n in (count, classes))
    labels, features = torch.randint(classes, (count,)), torch.randn(3, 6)
    state = {
        "keys": keys, "values": F.one_hot(labels, classes).float(), "scale": torch.tensor(7.0),
        "alpha": torch.tensor(alpha), "beta": torch.tensor(beta),
    }  # fmt: skip
    found = Tip().logits(state, features, text)
    for i, feature in enumerate(features):
        unit = feature / feature.norm()
        expected = 7 * (text @ unit)
        for key, label in zip(keys, labels.tolist(), strict=True):
            expected[label] += alpha * torch.exp(-beta * (1 - unit @ key))
        torch.testing.assert_close(found[i], expected)


def test_a_key_is_the_mean_of_the_views_of_a_shot_in_unit_length(offered):
    given_ = offered("tip", {"classify.crop_low": 1.0, "classify.flip": 0.0, **PLAIN})
    state = Tip().cache(given_)
    plain = given_.frozen.views(given_.images, given_.support.recipe.classify, 1, 0)[0]
    assert state["values"].sum(0).tolist() == [2, 2, 2]
    torch.testing.assert_close(state["keys"].norm(dim=1), torch.ones(6))
    assert F.cosine_similarity(state["keys"], plain).min() > 0.9


PLAIN = {f"classify.{name}": 0.0 for name in ("jitter", "grayscale", "blur", "solarize", "mix")} | {
    "classify.randaugment": False
}


def test_a_cache_that_is_trained_for_no_step_is_the_untrained_one(offered):
    given_ = offered("tipf", {"classify.steps": 0})
    plain, idle = Tip().fit(given_), TipF(epochs=0).fit(given_)
    assert set(plain) == set(idle)
    for name, value in plain.items():
        torch.testing.assert_close(idle[name], value, rtol=0, atol=0)
    moved = TipF(epochs=3).fit(given_)
    assert not torch.equal(moved["keys"], plain["keys"])


def test_a_b_of_the_grid_reads_the_validation_images_no_worse_than_any_other(offered):
    given_ = offered("tip")
    head = Tip(alphas=5, betas=5)
    state = head.fit(given_)
    features, labels = given_.frozen.features(given_.val), given_.frozen.labels(given_.val)
    text = given_.frozen.text
    best = choice(head.logits(state, features, text), labels)
    for alpha in (0.1, 2.0, 50.0):
        for beta in (0.1, 2.0, 50.0):
            other = {**state, "alpha": torch.tensor(alpha), "beta": torch.tensor(beta)}
            if alpha == 2.0 or beta == 2.0:
                continue  # not on this grid
            assert best >= choice(head.logits(other, features, text), labels)


@given(st.integers(2, 4), st.integers(2, 5), st.integers(0, 99))
def test_the_probe_separates_what_can_be_separated(classes, count, seed):
    torch.manual_seed(seed)
    labels = torch.arange(classes).repeat(count)
    features = 9 * F.one_hot(labels, 6).float() + torch.rand(len(labels), 6)
    state = Probe().regression(features, labels, 1.0)
    assert state["weight"].shape == (classes, 6) and state["bias"].shape == (classes,)
    assert torch.equal(Probe().logits(state, features, features).argmax(1), labels)


def test_a_stronger_penalty_gives_smaller_weights():
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.arange(12) % 3
    sizes = [Probe().regression(features, labels, c)["weight"].norm() for c in (1e-3, 1, 1e3)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_cross_modal_head_starts_as_the_zero_shot_classifier(offered, dataset, make):
    """One step at a vanishing learning rate; and it reads as method `clip` does."""
    given_ = offered("crossmodal", {"classify.lr": 1e-12, "classify.steps": 1})
    state = CrossModal().fit(given_)
    torch.testing.assert_close(state["weight"], given_.frozen.text)
    features = given_.frozen.features(dataset.test)
    found = CrossModal().logits(state, features, given_.frozen.text)
    expected = given_.frozen.scale * F.normalize(features, dim=1) @ given_.frozen.text.T
    torch.testing.assert_close(found, expected)


def test_half_of_a_cross_modal_batch_is_text(offered, monkeypatch):
    """With as many texts as images, the loss of one step is the mean of both kinds'."""
    given_, losses = offered("crossmodal", {"classify.batch": 6, "classify.flip": 0.0}), []
    monkeypatch.setattr(
        loop, "fit", lambda parameters, loss_at, **_: losses.append(loss_at(0).item())
    )
    CrossModal().fit(given_)
    scale, text = given_.frozen.scale, given_.frozen.text
    own = F.cross_entropy(scale * text @ text.T, torch.arange(3))
    kinds = {0: own}
    unit = F.normalize(given_.frozen.features(given_.images), dim=1)
    each = F.cross_entropy(
        scale * unit @ text.T, given_.frozen.labels(given_.images), reduction="none"
    )
    triples = torch.combinations(torch.arange(6), 3)
    means = (each[triples].mean(1) + kinds[0]) / 2
    assert (means - losses[0]).abs().min() < 1e-5


def test_of_equal_accuracies_the_lower_loss_wins():
    labels = torch.tensor([0, 1])
    sure, unsure = tensor([5, 0], [0, 5]), tensor([1, 0], [0, 1])
    wrong = tensor([0, 5], [0, 5])
    assert choice(sure, labels) > choice(unsure, labels) > choice(wrong, labels)


# What a head sees, and what it may choose by.


class Unread(Images):
    """Images that nobody may open."""

    def open(self, i):
        raise AssertionError("a test image was opened")


@pytest.mark.parametrize("method", [*HEADS, "cliplora"])
def test_training_opens_no_test_image(make, dataset, store, method):
    blind = replace(dataset, test=Unread(dataset.test.sources, dataset.test.labels))
    cell = Cell(make(method, QUICK), blind)
    folder = cell.compute(store, until="train")["train"]
    assert (folder / "curve.json").exists()
    with pytest.raises(AssertionError, match="a test image was opened"):
        cell.compute(store)


@pytest.mark.parametrize("method", HEADS)
def test_at_most_four_validation_images_a_class_choose_and_no_more_than_shots(method):
    for shots, expected in ((1, 1), (3, 3), (16, 4)):
        cell = Cell(recipe(dataset="optdigits", method=method, shots=shots))
        assert len(validation_images(cell.recipe, cell.dataset)) == 10 * expected


@pytest.mark.parametrize("method", HEADS)
def test_what_cannot_choose_is_refused_in_one_sentence(make, dataset, folder, method):
    for overrides, fields, words in (
        ({"protocol": "released"}, {}, "would choose on the test images"),
        ({"classifier": "resnet50"}, {}, "starts from random weights"),
        ({}, {"fold": "0/2"}, "with fold or test_folder none are set aside"),
    ):
        cell = Cell(make(method, {**QUICK, **overrides}, **fields))
        with pytest.raises(ConfigError, match=f"method '{method}'.*{words}"):
            stage_of("train").require(cell)
    if method == "crossmodal":  # the last weights need no choice
        one = make(method, {**QUICK, "classify.select": "last"}, fold="0/2")
        heads.require_trainable(Cell(one).support)


# Keys, plans, records.


def train_key(one, dataset):
    return Cell(one, dataset).key("train")


@pytest.mark.parametrize("method", HEADS)
def test_the_key_knows_the_settings_that_the_head_reads_and_no_others(make, dataset, method):
    old, head = train_key(make(method, QUICK), dataset), METHODS[method].head
    other = {"lr": 0.5, "weight_decay": 0.5, "batch": 4, "steps": 9, "crop_low": 0.7, "flip": 0.9}
    other |= {"jitter": 0.1, "rank": 9, "real_weight": 0.3, "evaluations": 1, "epochs": 50}
    for name, value in other.items():
        new = train_key(make(method, {**QUICK, f"classify.{name}": value}), dataset)
        assert (new != old) == (name in head.reads), name


def test_the_key_knows_the_heads_own_fields_its_class_and_its_version(make, dataset):
    @dataclass(frozen=True)
    class Other(Tip):
        pass

    heads_ = [Tip(), Tip(alphas=3), Tip(version=2), Other()]
    support = Support(make("tip"), dataset)
    keys = {json.dumps(head.key(support), sort_keys=True) for head in heads_}
    assert len(keys) == 4


def test_a_field_that_was_added_is_in_a_key_only_where_it_differs():
    plain, other = recipe(method="real"), recipe(method="cliplora")
    assert not {"classify.targets", "classify.scaling"} & {*key_fields(plain)}
    assert key_fields(other)["classify.targets"] == "qkv"
    assert {*as_dict(plain)} - {*key_fields(plain)} == {
        *("classify.targets", "classify.scaling"),
        *(f"adapt.{name}" for name in ("kind", "up_rate", "word", "steps")),
    }
    assert "targets" not in key_fields(Classify())


def test_the_record_of_a_cell_of_the_first_study_is_still_found(tmp_path):
    """The file's name is that of the commit before `classify.targets` came."""
    assert record_file(Cell(recipe()), Store(tmp_path)).name == RECORD


RECORD = "record-92ad904d4ac69f02.json"


def test_the_plan_knows_what_a_head_takes(make, store, dataset):
    table = plan([make(name, {"classify.batch": 4}) for name in HEADS], store)
    rows = table[table["stage"] == "train"].set_index("key")
    work = {name: Cell(make(name, {"classify.batch": 4})).key("train") for name in HEADS}
    steps = {name: int(rows.loc[key, "steps"]) for name, key in work.items()}
    units = {name: int(rows.loc[key, "units"]) for name, key in work.items()}
    assert steps == {"tip": 0, "tipf": 20 * 2, "probe": 0, "crossmodal": 3200}
    assert units == {"tip": 60, "tipf": 60 + 160, "probe": 6, "crossmodal": 6}


# Saving, loading, killing.


def folders_equal(one, other):
    names = ("adapter.safetensors", "adapter.json", "curve.json")
    return [digest(one / name) for name in names] == [digest(other / name) for name in names]


@pytest.mark.parametrize("method", HEADS)
def test_a_head_predicts_the_same_after_saving_and_loading(make, dataset, store, method, offered):
    one = make(method, QUICK)
    folder = Cell(one, dataset).compute(store, until="train")["train"]
    names = sorted(file.name for file in folder.iterdir())
    assert {"adapter.safetensors", "adapter.json", "curve.json"} <= set(names)
    assert not [name for name in names if name.startswith(("checkpoint", "best"))]
    model, config = heads.load_trained(folder)
    assert config["head"] == method and config["classes"] == list(dataset.classes)
    given_ = replace(offered(method), folder=store.root / "again")
    given_.folder.mkdir()
    head = METHODS[method].head
    state = head.fit(given_)
    features = given_.frozen.features(dataset.test)
    with torch.no_grad():
        expected = head.logits(state, features, given_.frozen.text).argmax(1)
    found = evaluate.accuracy(model, dataset, dataset.test)
    assert found["top1"] == pytest.approx(
        (expected == torch.tensor(dataset.test.labels)).float().mean().item()
    )
    files = [str(source) for source in dataset.test.sources[:4]]
    assert photos.classify_files(folder, files) == [
        dataset.classes[i] for i in expected[:4].tolist()
    ]


def test_the_loader_of_lora_says_who_reads_a_head(make, dataset, store):
    folder = Cell(make("tip"), dataset).compute(store, until="train")["train"]
    with pytest.raises(ValueError, match="the head of method 'tip' and no LoRA; load it by"):
        load_classifier_lora(folder)
    config = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").chmod(0o644)
    (folder / "adapter.json").write_text(json.dumps({**config, "head": "tpi"}))
    with pytest.raises(ConfigError, match="method='tpi' is unknown.*Did you mean 'tip'"):
        heads.load_trained(folder)
    (folder / "adapter.json").write_text(json.dumps({**config, "head": "real"}))
    with pytest.raises(ConfigError, match="head=None of method 'real' is a NoneType"):
        photos.classify_files(folder, [])
    (folder / "adapter.json").write_text("{")
    with pytest.raises(DataError, match="holds no whole classifier adapter"):
        photos.classify_files(folder, [])


@pytest.mark.parametrize("method", ["tipf", "crossmodal"])
@pytest.mark.parametrize("call", [1, 4, 8])
def test_a_killed_fit_continues_to_the_same_bytes(
    make, dataset, tmp_path, monkeypatch, method, call
):
    monkeypatch.setattr(loop, "fit", functools.partial(loop.fit, every=3))
    one = make(method, {"classify.steps": 9, "classify.evaluations": 9})
    whole = Cell(one, dataset).compute(Store(tmp_path / "whole"), until="train")["train"]
    store = Store(tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", dies_at(F.cross_entropy, call))
        with pytest.raises(Killed):
            Cell(one, dataset).compute(store, until="train")
    torch.manual_seed(call)
    folder = Cell(one, dataset).compute(store, until="train")["train"]
    assert folders_equal(folder, whole)


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("method", [*HEADS, "cliplora"])
def test_one_shot_is_enough(make, store, method, shots):
    record = run.run(make(method, QUICK, shots=shots), store)
    assert 0 <= record["result"]["test"]["top1"] <= 1


# A head from outside.


@dataclass(frozen=True)
class Nearest(Head):
    """Somebody's head: the class of the nearest mean feature."""

    reads: ClassVar[tuple[str, ...]] = ()

    power: float = 1.0

    def chooses(self, support):
        return False

    def fit(self, given):
        features, labels = given.frozen.features(given.images), given.frozen.labels(given.images)
        means = [features[labels == y].mean(0) for y in range(len(given.frozen.text))]
        return {"means": torch.stack(means)}

    def logits(self, state, features, text):
        return -(torch.cdist(features, state["means"]) ** self.power)


def outside(head, **fields):
    return Method(
        "nearest",
        "Nearest mean",
        "#882255",
        head=head,
        **{"real": True, "generates": False, **fields},
    )


def test_a_head_from_outside_runs_to_a_record_and_is_loaded(make, dataset, store, registered):
    registered(outside(Nearest()))
    one = make("nearest", fold="")
    record = run.run(one, store)
    assert record["recipe"]["method"] == "nearest" and record["curve"] == []
    folder = store.folder(record["artifacts"]["train"])
    found = evaluate.accuracy(heads.load_trained(folder)[0], dataset, dataset.test)
    assert found["top1"] == record["result"]["test"]["top1"]
    registered(outside(Nearest(power=2.0)))
    assert Cell(one).key("train") != record["artifacts"]["train"]


def test_a_head_may_be_fitted_on_synthetic_images_and_on_both(make, dataset, store, registered):
    seen = []

    @dataclass(frozen=True)
    class Counting(Nearest):
        def fit(self, given):
            seen.append(len(given.images))
            return super().fit(given)

    registered(outside(Counting(), real=False, generates=True))
    for name in ("nearest", "nearest+real"):
        run.run(make(name), store)
    assert seen == [5 * 3, 5 * 3 + 2 * 3]


@pytest.mark.parametrize(
    "parts, error, words",
    [
        ({"fit": lambda *_: 5}, ConfigError, "its head's `fit` gives no dict of tensors"),
        ({"fit": lambda *_: {"a": torch.tensor(np.nan)}}, DivergedError, "'a' of its head has NaN"),
        ({"key": lambda *_: 1 / 0}, ConfigError, "failed in head.key: ZeroDivisionError"),
    ],
)
def test_a_faulty_head_ends_in_one_message_that_names_it(
    make, dataset, store, registered, parts, error, words
):
    registered(outside(type("Faulty", (Nearest,), parts)()))
    with pytest.raises(error, match=f"method 'nearest'.*{words}"):
        Cell(make("nearest"), dataset).compute(store, until="train")


def test_what_is_no_head_is_refused(make, dataset, registered):
    registered(outside("a head"))
    with pytest.raises(ConfigError, match="head='a head' of method 'nearest' is a str"):
        _ = Cell(make("nearest"), dataset).keys


def test_few_shots_are_what_a_real_only_head_sees(make, dataset, store, registered):
    kept = []

    @dataclass(frozen=True)
    class Keeping(Nearest):
        def fit(self, given):
            kept.append(given)
            return super().fit(given)

    registered(outside(Keeping()))
    Cell(make("nearest"), dataset).compute(store, until="train")
    (given_,) = kept
    own = few_shots(dataset, 2, 0)
    assert given_.images.sources == own.sources and given_.images.labels == own.labels
    assert not set(map(str, given_.val.sources)) & set(map(str, dataset.test.sources))
