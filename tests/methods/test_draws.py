"""What a draw may carry: starts of another class, weights, strengths, soft labels; and the methods
that use them.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at, write_classes
from conftest import generate as make_set
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from datadream.config import require_strength
from datadream.data import png
from datadream.data.batches import Batches
from datadream.data.datasets import few_shots, load_dataset
from datadream.data.images import Images, fingerprint
from datadream.data.synthetic_set import read_synthetic_set
from datadream.data.transforms import square
from datadream.errors import ConfigError, DataError
from datadream.methods import base, checked
from datadream.methods.base import Adapter, Draw, Method, Support
from datadream.methods.checked import draws, own_adapter_key
from datadream.methods.contexts import contexts, read_captions
from datadream.methods.datadream import DatasetWise
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS, register
from datadream.methods.units import groups
from datadream.models.generators import sampling
from datadream.models.generators.load import generator_of, load_pipeline
from datadream.models.generators.lora import merged_lora
from datadream.pipeline.adapt import adapter_inputs
from datadream.pipeline.stages import Cell, stage_of
from datadream.store.artifacts import Store
from datadream.store.files import digest

FROM_OTHERS = ("genie", "genie_ada", "genie_dset", "diffmix")
MNIST = load_dataset("mnist")


@pytest.fixture
def own():
    """Register methods of one draw for a test: own(draw) -> name."""

    def add(draw):
        checked.draws.cache_clear()
        kind = type("Drawn", (DatasetWise,), {"draw": lambda self, *where: draw(*where)})
        return register(kind("drawn", "Drawn", "#882255")).name

    yield add
    METHODS.unregister("drawn")
    checked.draws.cache_clear()


def rows(folder):
    """Return the metadata of a synthetic set."""
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def digests(folder):
    """Return the digest of every file of a set but its manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): digest(file)
        for file in files
        if file.name != "manifest.json"
    }


# Starts of another class.


@pytest.mark.parametrize("method", FROM_OTHERS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), shots=st.sampled_from([1, 2, 4, 16]), label=st.integers(0, 9))
def test_a_start_is_a_shot_of_another_class(method, seed, shots, label):
    support = Support(recipe(method=method, seed=seed, shots=shots), MNIST)
    for one in draws(support, label):
        assert one.source != label and one.source in range(10) and one.start in range(shots)
        assert one.prompt == support.prompt(label)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), shots=st.sampled_from([1, 4, 16]), label=st.integers(0, 9))
def test_genie_takes_every_shot_once_before_one_again(seed, shots, label):
    made = recipe(method="genie", seed=seed, shots=shots, overrides={"generate.images": 200})
    used = [(one.source, one.start) for one in draws(Support(made, MNIST), label)]
    counts = [used.count(one) for one in set(used)]
    assert len(counts) == min(200, 9 * shots) and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("method", [*FROM_OTHERS, "bob"])
def test_draws_depend_on_the_seed_and_on_no_batch(make, dataset, method):
    one, same = (Support(make(method, {"generate.batch": b}), dataset) for b in (1, 5))
    other = Support(make(method, seed=1), dataset)
    assert [draws(one, label) for label in range(3)] == [draws(same, label) for label in range(3)]
    assert [draws(one, label) for label in range(3)] != [draws(other, label) for label in range(3)]


def test_the_start_is_the_shot_that_the_metadata_names(make, dataset, tmp_path):
    one = make("genie", {"generate.strength": 0.1, "generate.steps": 10, "generate.batch": 1})
    folder = make_set(one, dataset, Store(tmp_path))
    support, images = Support(one, dataset), read_synthetic_set(folder)
    with sampling.adapted(one) as pipe:
        for i, row in list(enumerate(rows(folder)))[::4]:
            source, shot = row["start"]["label"], row["start"]["shot"]
            assert source != row["label"]
            start = square(support.shots(source).open(shot), 16)
            text = pipe.embed([row["prompt"]], one.generate)
            expected = sampling.sample(pipe, text, [row["seed"]], one.generate, 16, [start])
            assert np.array_equal(images.open(i), expected[0])


def test_one_class_alone_has_no_other_to_start_from(make, tmp_path):
    write_classes(tmp_path / "one", ["owl", "fox"], 6)
    one = make("genie", folder=str(tmp_path / "one"))
    alone = dataclasses.replace(load_dataset("folder", str(tmp_path / "one")), classes=("owl",))
    with pytest.raises(DataError, match="'genie' needs other classes beside each.*one class"):
        draws(Support(one, alone), 0)


def test_a_support_draws_the_shots_of_a_class_once(make, dataset, monkeypatch):
    """A draw may ask for those of all other classes: hundreds of times for each image of a plan."""
    support, drawn = Support(make("genie"), dataset), []
    monkeypatch.setattr(base, "few_shots", lambda *args: drawn.append(args) or few_shots(*args))
    for label in (0, 1, None):
        again = [support.shots(label) for _ in range(3)]
        assert again == [few_shots(dataset, 2, 0, label)] * 3
    assert support.others(2) == [(0, 0), (0, 1), (1, 0), (1, 1)] and len(drawn) == 3


def test_a_draw_s_key_has_its_fields_in_order_and_the_later_ones_where_they_are_given():
    given = Draw("an owl", (Adapter(1, 0),), label=((0, 0.25), (1, 0.75)), negative="a fox")
    assert list(given.key().items()) == [
        ("prompt", "an owl"), ("adapters", ({"label": 1, "image": 0},)), ("start", None),
        ("label", ((0, 0.25), (1, 0.75))), ("negative", "a fox"),
    ]  # fmt: skip
    assert Draw("an owl").key() == {"prompt": "an owl", "adapters": (), "start": None}


# Soft labels.


@settings(max_examples=12)
@given(strength=st.floats(0.05, 1), label=st.integers(0, 9))
def test_diffmix_s_shares_sum_to_one_and_the_noise_decides(strength, label):
    made = recipe(method="diffmix", shots=4, overrides={"generate.strength": strength})
    for one in draws(Support(made, MNIST), label):
        shares = dict(one.label)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[label] == pytest.approx(strength**0.8)
        assert set(shares) == {label, one.source}


def test_shares_reach_the_metadata_the_images_and_the_loss(make, dataset, store):
    plain = {"classify.crop_low": 1.0, "classify.mix": 0.0, "classify.randaugment": False}
    one = make("diffmix", plain)
    folder = make_set(one, dataset, store)
    images, share = read_synthetic_set(folder), 0.7**0.8
    for row, soft in zip(rows(folder), images.shares, strict=True):
        assert row["shares"] == [
            {"label": row["start"]["label"], "share": pytest.approx(1 - share)},
            {"label": row["label"], "share": pytest.approx(share)},
        ]
        assert dict(soft) == {part["label"]: part["share"] for part in row["shares"]}
    _, targets, _ = Batches(None, images, one.classify, 3, 16, 0).at(0)
    torch.testing.assert_close(targets.max(1).values, torch.full((6,), share))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_the_datasets_library_reads_the_shares(make, dataset, store, tmp_path):
    import datasets

    folder = make_set(make("diffmix"), dataset, store)
    cache = str(tmp_path / "cache")
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)["train"]
    known = {row["seed"]: row for row in rows(folder)}
    assert all(row["shares"] == known[row["seed"]]["shares"] for row in table)


def tones(count=12, shares=()):
    """Return images whose tone is their class, with or without soft labels."""
    sources = tuple(np.full((16, 16), 100 * (i % 3), np.uint8) for i in range(count))
    return Images(sources, tuple(i % 3 for i in range(count)), shares=shares)


PLAIN = {
    **{f"classify.{n}": 0.0 for n in ("flip", "jitter", "grayscale", "blur", "solarize")},
    "classify.randaugment": False,
    "classify.crop_low": 1.0,
    "classify.batch": 8,
}


def batch(images, step, mix=1.0):
    options = recipe(overrides={**PLAIN, "classify.mix": mix}).classify
    torch.manual_seed(step)
    return Batches(None, images, options, 3, 16, 0).at(step)


@pytest.mark.parametrize("step", range(6))
def test_hard_labels_give_the_batches_that_they_gave(step, monkeypatch):
    """torchvision mixes class indices as it does their one-hot vectors, to the bit."""
    hard = batch(tones(), step)
    for name in ("CutMix", "MixUp"):
        kind = getattr(v2, name)
        monkeypatch.setattr(
            v2,
            name,
            lambda num_classes, kind=kind: (
                lambda images, targets: kind(num_classes=num_classes)(images, targets.argmax(1))
            ),
        )
    assert all(map(torch.equal, hard, batch(tones(), step)))
    monkeypatch.undo()
    one_hot = tuple(((i % 3, 1.0),) for i in range(12))
    assert all(map(torch.equal, hard, batch(tones(shares=one_hot), step)))


@settings(max_examples=15)
@given(share=st.floats(0.0, 1.0), step=st.integers(0, 500))
def test_mixing_mixes_the_shares(share, step):
    """A soft label is linear in its share, and so are CutMix and MixUp in the labels."""

    def at(share):
        soft = tuple(((i % 3, 1 - share), ((i + 1) % 3, share)) for i in range(12))
        return batch(tones(shares=soft), step)[1]

    torch.testing.assert_close(at(share), (1 - share) * at(0.0) + share * at(1.0))
    torch.testing.assert_close(at(share).sum(1), torch.ones(8))


def test_a_subset_keeps_its_shares_and_a_fingerprint_tells_them():
    soft = tuple(((i % 3, 0.5), ((i + 1) % 3, 0.5)) for i in range(12))
    some = tones(shares=soft).pick([3, 4])
    assert some.shares == (soft[3], soft[4]) and tones().pick([3]).shares == ()
    assert len({fingerprint(tones()), fingerprint(tones(shares=soft))}) == 2


# Resuming.


@pytest.mark.parametrize("method, call", [("diffmix", 4), ("genie_ada", 2)])
def test_a_killed_generation_of_the_new_fields_continues_to_the_same_bytes(
    make, dataset, tmp_path, method, call
):
    one, store = make(method, {"generate.images": 3}), Store(tmp_path / "killed")
    whole = make_set(one, dataset, Store(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "save_png", dies_at(png.save_png, call))
        with pytest.raises(Killed):
            make_set(one, dataset, store)
    assert digests(make_set(one, dataset, store)) == digests(whole)


# Keys.

FIELDS = {
    "source": dict(start=0, source=2),
    "weights": dict(adapters=(Adapter(),), weights=(0.5,)),
    "strengths": dict(start=0, strengths=(0.5,)),
    "label": dict(label=((0, 0.5), (1, 0.5))),
}


def test_a_field_that_is_not_given_is_not_in_the_key():
    """The draws of a package's method stand in its key as they did before there were others."""
    assert Draw("a cat", (Adapter(1),), 3).key() == {
        "prompt": "a cat",
        "adapters": ({"label": 1, "image": None},),
        "start": 3,
    }
    assert set(Draw("a cat").key()) == {"prompt", "adapters", "start"}


@pytest.mark.parametrize("field", FIELDS)
def test_each_new_field_changes_the_key(make, dataset, own, field):
    base = {name: value for name, value in FIELDS[field].items() if name != field}
    found = []
    for given_ in (base, FIELDS[field]):
        name = own(lambda support, label, index, rng, g=given_: Draw("a cat", **g))
        options = {"generate.strength": 0.5, "generate.steps": 10}
        cell = Cell(make(name, options), dataset)
        found.append(stage_of("generate").inputs(cell, None)["draws"])
    assert found[0] != found[1]


def test_prompts_that_are_the_class_s_leave_an_adapter_s_key_alone(make, dataset):
    plain, bob = (Support(make(name), dataset) for name in ("dset", "loft"))
    for support in (plain, bob):
        adapter = Adapter() if support is plain else Adapter(1, 0)
        assert own_adapter_key(support, adapter) == {}
        assert "tuning_prompts" not in adapter_inputs(support, adapter)


# Groups, weights, strengths.


def test_images_of_other_weights_or_strengths_share_no_batch(make, dataset, own):
    weights = own(lambda s, y, i, r: Draw("a", (Adapter(),), weights=(1.0 if i < 2 else 0.5,)))
    found = groups(Support(make(weights), dataset), 0)
    assert [indices for indices, _ in found] == [range(0, 2), range(2, 5)]
    options = {"generate.strength": 0.5, "generate.steps": 10}
    strengths = own(lambda s, y, i, r: Draw("a", start=0, strengths=(0.5 if i < 1 else 0.8,)))
    found = groups(Support(make(strengths, options), dataset), 0)
    assert [indices for indices, _ in found] == [range(0, 1), range(1, 5)]


def test_an_adapter_of_weight_zero_is_the_base_and_of_one_itself(make, dataset, store, own):
    made = {}
    for weight in (0.0, 1.0):
        name = own(lambda s, y, i, r, w=weight: Draw(s.prompt(y), (Adapter(),), weights=(w,)))
        folder = make_set(make(name), dataset, store)
        assert all(row["weights"] == [weight] for row in rows(folder))
        images = read_synthetic_set(folder)
        made[weight] = [np.asarray(images.open(i)) for i in range(15)]
    for weight, method in ((0.0, "base"), (1.0, "dset")):
        images = read_synthetic_set(make_set(make(method), dataset, store))
        assert all(np.array_equal(images.open(i), made[weight][i]) for i in range(15))


def test_adapters_are_merged_by_their_weights(make, dataset, store):
    make_set(make("loft"), dataset, store)
    folders = sorted(store.root.glob("adapt-*"))[:2]
    pipe = load_pipeline(make("loft").generator)
    base = {name: p.clone() for name, p in pipe.unet.named_parameters()}

    def change(*some, weights=()):
        with merged_lora(generator_of(pipe), *some, weights=weights):
            return {name: p - base[name] for name, p in pipe.unet.named_parameters()}

    one, other = map(change, folders)
    both = change(*folders, weights=(0.3, 0.9))
    for name in base:
        np.testing.assert_allclose(both[name], 0.3 * one[name] + 0.9 * other[name], atol=1e-5)


def test_strengths_are_taken_in_turn_with_the_same_noise(make, dataset, store, monkeypatch, own):
    from datadream.pipeline import generate

    asked = []
    real = generate.sample

    def seen(generator, text, seeds, options, *rest):
        asked.append((options.strength, tuple(seeds)))
        return real(generator, text, seeds, options, *rest)

    class Never(Method):
        def draw(self, support, label, index, rng):
            return Draw("a", start=0, strengths=(0.5, 0.8))

        def accept(self, images, label, read):
            return [False] * len(images)

    monkeypatch.setattr(generate, "sample", seen)
    register(Never("drawn", "Drawn", "#882255"))
    options = {"generate.strength": 0.5, "generate.steps": 10, "generate.redraws": 2}
    try:
        make_set(make("drawn", {**options, "generate.images": 1}), dataset, store)
    finally:
        METHODS.unregister("drawn")
    first = asked[:3]
    assert [strength for strength, _ in first] == [0.5, 0.8, 0.5]
    assert first[0][1] == first[1][1] != first[2][1], "a second turn has noise of its own"


@given(steps=st.integers(1, 60), strength=st.floats(0.01, 1))
def test_two_strengths_that_pass_are_two_numbers_of_steps(steps, strength):
    """What is refused names strengths that pass."""
    try:
        require_strength("s", strength, steps)
    except ConfigError as error:
        names = str(error).partition("the nearest: ")[2].partition(", or")[0].split(" or ")
        for name in names:
            assert abs(float(name) - strength) < 2 / steps
            require_strength("s", round(float(name) * steps) / steps, steps)
    else:
        assert int(steps * strength) == pytest.approx(steps * strength, abs=1e-8)


def test_a_strength_that_six_steps_cannot_tell_is_refused_with_the_nearest():
    require_strength("generate.strength", 0.5, 6)
    with pytest.raises(ConfigError, match=r"generate.strength=0.6 cannot be told from 0.5 with.*"
                       "the nearest: 0.5 or 0.666667"):  # fmt: skip
        require_strength("generate.strength", 0.6, 6)


# GeNIe-Ada.


class Places:
    """A reader whose feature of an image is its grey on a line; the classes lie at both ends."""

    def features(self, images):
        greys = np.array([np.asarray(image.convert("L"), float).mean() / 255 for image in images])
        return np.stack([greys, 1 - greys], 1)


@given(st.integers(1, 4))
def test_genie_ada_keeps_the_drawing_after_the_largest_step(jump):
    from PIL import Image

    dark, light = (np.full((8, 8), grey, np.uint8) for grey in (10, 240))
    data = dataclasses.replace(
        MNIST, classes=("dark", "light"), train=Images((dark, light), (0, 1)), val=MNIST.val
    )
    support = Support(recipe(method="genie_ada", shots=1), data)
    greys = [20 + 3 * i + (150 if i >= jump else 0) for i in range(5)]
    tries = [Image.new("L", (8, 8), grey) for grey in greys]
    one = Draw("a light", start=0, source=0)
    assert METHODS["genie_ada"].choose(support, 1, one, tries, Places()) == jump


def test_genie_ada_draws_all_strengths_and_records_the_one_it_kept(make, dataset, store):
    folder = make_set(make("genie_ada", {"generate.images": 1}), dataset, store)
    kept = {row["strength"] for row in rows(folder)}
    assert kept <= {0.6, 0.7, 0.8, 0.9}, "the first has no step before it"


# BOB.


def test_bob_s_contexts_are_the_same_for_every_class_and_of_all_classes():
    support = Support(recipe(method="bob", shots=4), MNIST)
    tails = []
    for label in range(10):
        plain = support.prompt(label)
        found = [one.prompt for one in draws(support, label)]
        assert all(text.startswith(plain) for text in found)
        tails.append([text.removeprefix(plain) for text in found])
    assert all(own == tails[0] for own in tails)
    assert len(set(tails[0])) > 20 and set(tails[0]) <= set(contexts(support))


def test_bob_tunes_one_adapter_with_each_image_s_own_context():
    support = Support(recipe(method="bob", shots=4), MNIST)
    (adapter,) = METHODS["bob"].adapters(support)
    found = checked.tuning_prompts(support, adapter)
    expected = [
        support.prompt(label) + own
        for label, own in zip(support.shots().labels, contexts(support), strict=True)
    ]
    assert found == expected and len(set(found)) > 20
    inputs = adapter_inputs(support, adapter)
    assert inputs["tuning_prompts"] == expected
    plain = Support(recipe(method="dset", shots=4), MNIST)
    shared = adapter_inputs(plain, adapter)
    assert {name: inputs[name] for name in shared} == shared, "all else is DataDream's"


def test_bob_tunes_on_the_texts(make, dataset, store, monkeypatch):
    from datadream.pipeline import adapt

    seen, real = [], adapt.tune
    monkeypatch.setattr(adapt, "tune", lambda *args: (seen.append(args[-1]), real(*args))[1])
    Cell(make("bob"), dataset).make("adapt", store, Adapter())
    assert seen == [checked.tuning_prompts(Support(make("bob"), dataset), Adapter())]


def test_bob_refuses_single_characters_with_one_sentence():
    support = Support(recipe(method="bob", shots=1), MNIST)
    with pytest.raises(DataError, match="'bob' describes a character by what sets it apart.*shots"):
        draws(support, 0)


def photos(root, text=None):
    """Write two classes of photographs, with the text of captions.tsv."""
    write_classes(root, ["owl", "fox"], 9)
    if text is not None:
        (root / "captions.tsv").write_text(text)
    return root


def captions(root):
    """Return a table with a line for each photograph below a folder."""
    files = sorted(root.rglob("*.png"))
    lines = [
        f"{file.relative_to(root).as_posix()}\t{file.parent.name} {i}.\tlow\n"
        for i, file in enumerate(files)
    ]
    return "file\tbackground\tpose\n" + "".join(lines)


def test_the_captions_of_photographs_come_from_a_file(make, tmp_path):
    root = photos(tmp_path / "photos")
    (root / "captions.tsv").write_text(captions(root))
    support = Support(make("bob", folder=str(root)), load_dataset("folder", str(root)))
    found = contexts(support)
    assert len(found) == 4
    for label, own in zip(support.shots().labels, found, strict=True):
        name = support.classes[label]
        assert own.startswith(f" in the {name} ") and own.endswith(" background with the low pose")
    assert draws(support, 0)[0].prompt.startswith("a photo of a fox in the ")


def test_photographs_without_captions_end_in_one_message(make, tmp_path):
    root = photos(tmp_path / "photos")
    support = Support(make("bob", folder=str(root)), load_dataset("folder", str(root)))
    with pytest.raises(DataError) as caught:
        draws(support, 0)
    for part in (str(root / "captions.tsv"), "file, background, pose", "tabs", "'bob'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("file\tbackground\n", "lacks pose; name the columns file, background, pose"),
        ("file\tbackground\tpose\na\tb\tc\na\td\te\n", "two lines for 'a'"),
        ("", "lacks file, background, pose"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "captions.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(tmp_path / "captions.tsv")


def test_a_few_shot_without_a_line_is_named(make, tmp_path):
    root = photos(tmp_path / "photos", "file\tbackground\tpose\nowl/none.png\ta\tb\n")
    support = Support(make("bob", folder=str(root)), load_dataset("folder", str(root)))
    with pytest.raises(DataError, match="has no line for the few shot .*image"):
        contexts(support)


# Faults.

FAULTS = {
    "weights": (dict(adapters=(Adapter(),), weights=(1, 2)), "weights=.*each of its 1 adapters"),
    "infinite": (dict(adapters=(Adapter(),), weights=(float("nan"),)), "give a finite number"),
    "shares": (dict(label=((0, 0.5), (1, 0.4))), "whose shares sum to one"),
    "class twice": (dict(label=((0, 0.5), (0, 0.5))), "each class of 0 to 2 once"),
    "no such class": (dict(label=((7, 1.0),)), "each class of 0 to 2 once"),
    "source": (dict(start=0, source=9), "source=9; give a class, 0 to 2"),
    "source alone": (dict(source=1), "start=None, but it has a source or strengths"),
    "strength": (dict(start=0, strengths=(1.5,)), r"give numbers in \(0, 1\]"),
    "start": (dict(start=5, source=1), "start=5; give the place of a shot, 0 to 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_field_ends_in_a_message_that_names_the_method(make, dataset, own, fault):
    parts, message = FAULTS[fault]
    name = own(lambda *_: Draw("a", **parts))
    with pytest.raises(ConfigError, match=message) as caught:
        _ = Cell(make(name, {"generate.strength": 0.5}), dataset).keys
    assert "method 'drawn'" in str(caught.value)


@pytest.mark.parametrize(
    "prompts, message", [([], "0 for 6 images"), (["a\nb"] * 6, "give printable text")]
)
def test_faulty_tuning_prompts_end_in_a_message(make, dataset, prompts, message):
    kind = type("Tuned", (DatasetWise,), {"tuning_prompts": lambda *_: prompts})
    register(kind("drawn", "Drawn", "#882255"))
    try:
        with pytest.raises(ConfigError, match=f"'drawn', tuning_prompts of .*{message}"):
            _ = Cell(make("drawn"), dataset).keys
    finally:
        METHODS.unregister("drawn")


# Strengths and squares.


@pytest.fixture(scope="module")
def embedded():
    """Return the embedded generator as a pipeline that starts from images."""
    return generator_of(load_pipeline("mini"))


STARTING = [name for name in METHODS if recipe(method=name).generate.strength]


@pytest.mark.parametrize("method", STARTING)
def test_two_strengths_of_a_method_are_two_numbers_of_steps(embedded, method):
    """Of the embedded model, with its scheduler: the first step differs in its noise too."""
    strengths, options = set(), recipe(method=method).generate
    for shots in (1, 2, 4, 8, 16):
        cell = Cell(recipe(method=method, shots=shots), MNIST)
        stage_of("generate").require(cell)  # refuses what the steps cannot tell apart
        for one in draws(cell.support, 3):
            strengths |= set(one.strengths or [options.strength])
    pipe = embedded._from_images()
    pipe.scheduler = embedded.scheduler(options.scheduler)
    noises = {}
    for strength in strengths:
        pipe.scheduler.set_timesteps(options.steps)
        times, count = pipe.get_timesteps(options.steps, strength, "cpu")
        assert count == round(options.steps * strength) == len(times)
        noises[strength] = float(times[0])
    assert len(set(noises.values())) == len(strengths)
    assert sorted(noises, key=noises.__getitem__) == sorted(strengths), "more strength, more noise"


@pytest.mark.parametrize("method", STARTING)
def test_a_strength_that_the_steps_cannot_tell_is_refused_for_every_method(method):
    """Whether it is the recipe's or the method's own."""
    cell = Cell(recipe(method=method, shots=4, overrides={"generate.steps": 7}), MNIST)
    with pytest.raises(ConfigError, match="cannot be told from.*generate.steps=7"):
        stage_of("generate").require(cell)


@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_a_padded_square_holds_the_whole_image_on_black(width, height):
    from PIL import Image

    found = np.asarray(square(Image.new("RGB", (width, height), "white"), 32, "pad"))
    assert found.shape == (32, 32, 3)
    rows, columns = (found[..., 0] > 0).any(1), (found[..., 0] > 0).any(0)
    longer = max(width, height)
    assert rows.sum() == pytest.approx(32 * height / longer, abs=1)
    assert columns.sum() == pytest.approx(32 * width / longer, abs=1)
    for line in (rows, columns):  # in the middle
        assert abs(int(line.argmax()) - int(line[::-1].argmax())) <= 1
    cut = np.asarray(square(Image.new("RGB", (width, height), "white"), 32))
    assert cut.shape == (32, 32, 3) and cut.min() == 255


def test_an_image_starts_from_a_padded_shot_where_it_is_asked_to(make, dataset, tmp_path):
    """The shots are 24 x 16 pixels: at little noise, what is made of a padded one has dark bars."""
    options = {"generate.strength": 0.05, "generate.redraws": 0}
    bars = {}
    for fit in ("crop", "pad"):
        one = make("disef", {**options, "generate.fit": fit})
        with sampling.adapted(one) as pipe:
            starts = seen_starts(one, dataset, pipe)
        bars[fit] = np.asarray(starts[0])[:2].max()
    assert bars["pad"] == 0 < bars["crop"]


def seen_starts(one, dataset, pipe):
    """Return the squares that the images of class 0 start from."""
    from datadream.pipeline import generate

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "sample", lambda *args: seen.extend(args[-1]) or list(args[-1]))
        generate.drawing(pipe, Support(one, dataset), 0)(0, 2)
    return seen


def test_the_fit_is_in_the_key_where_it_pads(make, dataset):
    cells = [Cell(make("disef", {"generate.fit": fit}), dataset) for fit in ("crop", "pad")]
    inputs = [stage_of("generate").inputs(cell, None)["generate"] for cell in cells]
    assert "fit" not in inputs[0] and inputs[1]["fit"] == "pad"
    assert recipe("paper", method="disef").generate.fit == "pad"
