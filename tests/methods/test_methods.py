"""What each method samples with: templates in turn, starts from few shots, pairs of per-image
adapters, and what is drawn again.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import generate as make_set
from PIL import Image

from datadream.data.datasets import few_shots, prompt
from datadream.data.synthetic_set import read_synthetic_set
from datadream.errors import ConfigError, DataError
from datadream.methods.base import Adapter, Support
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.methods.units import groups
from datadream.models.generators import sampling
from datadream.models.generators.load import generator_of, load_pipeline
from datadream.models.generators.lora import merged_lora
from datadream.pipeline import generate
from datadream.pipeline.generate import image_seed, reader
from datadream.pipeline.stages import STAGES, Cell, stage_of
from datadream.store.artifacts import Store
from datadream.study import run


def rows(folder):
    """Return the metadata of a synthetic set."""
    return [
        json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "clip"])
def test_every_method_runs_to_a_record(make, tmp_path, method):
    own, few = recipe(method=method), {}
    if own.generate.redraws:
        few["generate.redraws"] = 1
    if own.classify.steps:  # thousands, of a head
        few["classify.steps"] = 20
    record = run.run(make(method, few), Store(tmp_path))
    test = record["result"]["test"]
    matrix = np.array(test["confusion"])
    assert (
        record["recipe"]["method"] == method
        and test["total"] == matrix.sum() > 0
        and test["top1"] == matrix.trace() / matrix.sum()
    )
    made = {name.rstrip("0123456789") for name in record["artifacts"]}
    assert made >= {"train", "judge"} and ("generate" in made) == bool(METHODS[method].generates)
    adapted = ("cls", "dset", "loft", "bob", "genie_dset", "diffmix", "protoaug", "contrast")
    adapted += ("chimera", "dafusion")
    assert ("adapt" in made) == (method.removesuffix("+real") in adapted)


def test_a_method_s_settings_are_overrides_that_a_reader_may_override():
    assert (
        recipe(method="loft").adapt.rank == 2 and not recipe(method="loft+real").adapt.text_encoder
    )
    assert (
        recipe("paper", method="loft").adapt.epochs == 600
        and recipe("paper", method="dset").adapt.epochs == 200
    )
    assert recipe(method="loft", overrides={"adapt.rank": 5}).adapt.rank == 5
    for name, row in METHODS.items():
        if name.endswith("+real"):
            assert row.settings == METHODS[name.removesuffix("+real")].settings, (
                "they share the synthetic set"
            )


def test_templates_are_taken_in_turn_and_the_first_is_the_papers(make, dataset, shots, store):
    one = make("issynth", {"generate.templates": 3})
    found = rows(make_set(one, dataset, store))
    expected = [prompt("", name, i % 3) for name in dataset.classes for i in range(5)]
    assert [row["prompt"] for row in found] == expected and expected[
        0
    ] == f"a photo of a {dataset.classes[0]}"
    assert len({prompt("bird", "owl", i) for i in range(7)}) == 7 and all(
        "bird" in prompt("bird", "owl", i) for i in range(7)
    )


def test_an_image_does_not_depend_on_what_its_neighbours_are_asked_for(
    make, dataset, shots, tmp_path
):
    """The second image of a class has the second template whatever the batch."""
    folders = [
        make_set(
            make("issynth", {"generate.templates": 2, "generate.batch": b}),
            dataset,
            Store(tmp_path / str(b)),
        )
        for b in (1, 5)
    ]
    one, other = (
        [np.asarray(Image.open(f)).astype(int) for f in sorted(folder.rglob("*.png"))]
        for folder in folders
    )
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(one, other, strict=True))


def test_a_weak_noise_leaves_the_few_shot_and_a_full_one_does_not(make, dataset, shots, tmp_path):
    """Image i starts from few shot i of its class, in turn."""
    distance = {}
    for strength in (0.1, 1.0):
        options = {
            "generate.strength": strength,
            "generate.redraws": 0,
            "generate.steps": 10,
            "generate.scheduler": "DDIMScheduler",
        }
        one = make("disef", options)
        folder = make_set(one, dataset, Store(tmp_path / str(strength)))
        images = read_synthetic_set(folder)
        own = few_shots(dataset, 2, 0, 0)
        found = [np.asarray(images.open(i)).astype(float) for i in range(4)]
        starts = [own.open(i % 2) for i in range(4)]
        seeds = [image_seed(0, 0, i) for i in range(4)]
        with sampling.adapted(one) as pipe:
            text = pipe.embed([prompt("", dataset.classes[0])], one.generate)
            expected = sampling.sample(
                pipe, text, seeds, one.generate, 16, [generate.square(s, 16) for s in starts]
            )
        assert all(
            np.abs(a - np.asarray(b)).max() <= 1 for a, b in zip(found, expected, strict=True)
        )
        with sampling.adapted(one) as pipe:
            swapped = sampling.sample(
                pipe, text, seeds, one.generate, 16, [generate.square(s, 16) for s in starts[::-1]]
            )
        distance[strength] = np.mean(
            [
                np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean()
                for a, b in zip(expected, swapped, strict=True)
            ]
        )
    assert distance[0.1] > 3 * distance[1.0], "the less noise, the more of the start is left"


def test_what_is_misread_is_drawn_again_with_another_seed_which_is_kept(
    make, dataset, shots, tmp_path, monkeypatch
):
    """A reader that takes every first drawing of class 1 for class 0: those images get the seed
    of the second.
    """
    first = []

    def strict(support):
        def judge(images):
            known = [image.info["seed"] for image in images]
            first.extend(known)
            return [
                0 if seed in {image_seed(0, 1, i) for i in range(5)} else label_of[seed]
                for seed in known
            ]

        return judge

    label_of = {
        image_seed(0, label, i, *again): label
        for label in range(3)
        for i in range(5)
        for again in ((), (1,))
    }
    monkeypatch.setattr(generate, "reader", strict)
    one = make("base", {"generate.redraws": 3})
    folder = make_set(one, dataset, Store(tmp_path / "again"))
    seeds = {(row["label"], int(row["file_name"][-10:-4])): row["seed"] for row in rows(folder)}
    assert seeds == {
        (label, i): image_seed(0, label, i, *([1] if label == 1 else []))
        for label in range(3)
        for i in range(5)
    }
    plain = make_set(make("base"), dataset, Store(tmp_path / "plain"))
    pairs = [
        (
            np.asarray(read_synthetic_set(folder).open(i)),
            np.asarray(read_synthetic_set(plain).open(i)),
        )
        for i in range(15)
    ]
    assert [np.array_equal(a, b) for a, b in pairs] == [True] * 5 + [False] * 5 + [True] * 5


def test_redraws_end_and_the_last_image_is_kept(make, dataset, shots, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "reader", lambda support: lambda images: [-1] * len(images))
    folder = make_set(make("base", {"generate.redraws": 2}), dataset, Store(tmp_path))
    assert [row["seed"] for row in rows(folder)] == [
        image_seed(0, label, i, 2) for label in range(3) for i in range(5)
    ]


def test_the_untouched_classifier_is_the_reader(make, dataset):
    read = reader(Support(make("disef", {"generate.redraws": 1}), dataset))
    found = read([dataset.test.open(i) for i in range(5)])
    assert len(found) == 5 and all(0 <= label < 3 for label in found)
    assert reader(Support(make("base"), dataset)) is None


def test_lofts_pairs_are_two_images_of_the_class_and_all_are_used(make, dataset):
    one = make("loft", {"generate.images": 400}, shots=4)
    for label in range(3):
        found = groups(Support(one, dataset), label)
        assert [i for indices, _ in found for i in indices] == list(range(400))
        assert all(
            len(own) == len(set(own)) == 2 and {which.label for which in own} == {label}
            for _, own in found
        )
        counts = Counter(which.image for _, own in found for which in own)
        assert set(counts) == {0, 1, 2, 3} and len({own for _, own in found}) == 6, (
            "every pair of four"
        )
        used = Counter(own for _, own in found)
        assert set(used.values()) == {16, 17}, "each once before one is used again"
        order = [own for _, own in found]
        assert order == [order[i % 6] for i in range(len(order))], "and in the same order again"
    other, same = (make("loft", seed=seed, shots=4) for seed in (1, 0))
    assert groups(Support(other, dataset), 0) != groups(Support(same, dataset), 0)
    alone = groups(Support(make("loft", shots=1), dataset), 2)
    assert [own for _, own in alone] == [(Adapter(2, 0),)] * 2, "one shot has no pair"


def test_an_adapter_per_image_sees_that_image_only(make, dataset, shots, store):
    folder = make_set(make("loft"), dataset, store)
    made = sorted(path.name for path in store.root.glob("adapt-*"))
    assert len(made) == 3 * 2
    for row in rows(folder):
        names = row["adapter"].split(" + ")
        assert len(names) == 2 and set(names) <= set(made)
        assert {
            (store.manifest(name)["inputs"]["label"], store.manifest(name)["inputs"]["image"])
            for name in names
        } == {(row["label"], 0), (row["label"], 1)}


def test_two_fused_adapters_have_half_a_weight_each(make, dataset, shots, store):
    make_set(make("loft"), dataset, store)
    one, other = sorted(store.root.glob("adapt-*"))[:2]
    pipe = load_pipeline(make("loft").generator)
    base = {name: p.clone() for name, p in pipe.unet.named_parameters()}

    def change(*folders):
        with merged_lora(generator_of(pipe), *folders):
            return {name: p - base[name] for name, p in pipe.unet.named_parameters()}

    single, second, both = change(one), change(other), change(one, other)
    assert any(delta.abs().max() > 1e-3 for delta in single.values())
    for name in base:
        np.testing.assert_allclose(both[name], (single[name] + second[name]) / 2, atol=1e-5)
    assert all((p == base[name]).all() for name, p in pipe.unet.named_parameters())


def test_heavy_augmentation_differs_from_real_only_in_its_classifier(make):
    plain, heavy = recipe(method="real"), recipe(method="heavy")
    assert (
        plain.adapt == heavy.adapt
        and plain.generate == heavy.generate
        and heavy.classify.randaugment
        and not plain.classify.randaugment
    )


# One shot.

# What needs more says so; all else runs.
NEED_MORE = dict.fromkeys(("bob", "bob+real"), "what sets it apart.*give shots=2")


@pytest.mark.parametrize("dataset", ["mnist", "optdigits"])
@pytest.mark.parametrize("profile", ["mini", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_one_shot_a_class_is_enough_or_the_method_says_why_not(method, profile, dataset):
    models = {"generator": "mini", "classifier": "mini"}
    one = recipe(profile, models, dataset=dataset, method=method, shots=1)
    if method in NEED_MORE:
        with pytest.raises(DataError, match=f"{re.escape(repr(method))}.*{NEED_MORE[method]}"):
            _ = Cell(one).keys
        return
    cell = Cell(one)
    assert cell.keys
    if method.startswith("dipsy"):  # of any number of shots
        with pytest.raises(ConfigError, match=f"{re.escape(method)}'.*generator='mini'.*take"):
            stage_of("generate").require(cell)
        return
    for stage in STAGES:
        stage.require(cell)
