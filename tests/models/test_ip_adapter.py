"""Image prompts by an IP-Adapter, and DIPSY from its settings to its images, on tiny models of the
true classes and file layout.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at
from conftest import generate as make_set
from PIL import Image
from safetensors.torch import load_file, save_file

from datadream.cli import main
from datadream.data import png
from datadream.data.synthetic_set import read_synthetic_set
from datadream.errors import ConfigError, ModelMissingError
from datadream.methods.base import Draw, Method, Support
from datadream.methods.checked import draws, image_prompts
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.methods.similar import pairs
from datadream.models import catalog
from datadream.models.generators import sampling
from datadream.models.generators.ip_adapter import IP_WEIGHTS, prompted_by_images
from datadream.models.generators.load import generator_of, load_generator, load_pipeline
from datadream.models.identity import identity
from datadream.pipeline import generate
from datadream.pipeline.stages import Cell, stage_of
from datadream.store.artifacts import Store
from datadream.study import plan, run

TEXTS = [("a photo of a seven", ""), ("a photo of a one", "")]


def picture(seed):
    """Return a picture that differs from seed to seed."""
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (24, 24, 3), np.uint8))


PICTURES = [[picture(0), picture(1)], [picture(2), picture(3)]]


def sampled(models, overrides=None, pictures=PICTURES, seeds=(5, 6)):
    """Return images that are prompted by pictures too, as arrays."""
    made = recipe(
        overrides={
            "generate.guidance": 7.5,
            "generate.steps": 4,
            "generate.image_prompts": models.ip_adapter,
            **(overrides or {}),
        }
    ).generate
    with prompted_by_images(load_generator(models.generator), made.image_prompts) as generator:
        text = sampling.Prompts(generator, TEXTS[: len(seeds)], made).of(range(len(seeds)))
        text |= generator.look(pictures[: len(seeds)])
        found = sampling.sample(generator, text, seeds, made, 16)
    return [np.asarray(one, int) for one in found]


def distance(some, others):
    return max(np.abs(a - b).max() for a, b in zip(some, others, strict=True))


def weights(pipe):
    """Return every parameter of the parts of a pipeline, and what else an adapter would change."""
    parts = {
        f"{part}.{name}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }
    kinds = {name: type(one) for name, one in pipe.unet.attn_processors.items()}
    loaded = (pipe.unet.encoder_hid_proj, pipe.image_encoder, pipe.feature_extractor)
    return parts, kinds, loaded, pipe.unet.config.encoder_hid_dim_type


# The guidance.


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_without_weights_of_the_images_it_is_the_pipeline_s_own_guidance(models, guidance):
    none = {"generate.image_own": 0.0, "generate.image_other": 0.0, "generate.guidance": guidance}
    found = sampled(models, none)
    generator = load_generator(models.generator)
    options = recipe(overrides={"generate.guidance": guidance, "generate.steps": 4}).generate
    text = sampling.Prompts(generator, TEXTS, options).of([0, 1])
    plain = [np.asarray(one, int) for one in sampling.sample(generator, text, [5, 6], options, 16)]
    assert distance(found, plain) <= 1
    assert distance(sampled(models, {"generate.guidance": guidance}), plain) > 1


@pytest.mark.parametrize("field", ["image_own", "image_other", "image_scale", "guidance"])
def test_each_scale_matters(models, field):
    assert distance(sampled(models), sampled(models, {f"generate.{field}": 2.0})) > 1


@pytest.mark.parametrize("which", [0, 1])
def test_each_image_matters_and_only_with_its_weight(models, which):
    other = [[*pair] for pair in PICTURES]
    other[0][which] = picture(9)
    assert distance(sampled(models), sampled(models, pictures=other)) > 1
    # With equal weights e_own drops out, and the second image is seen in e_both alone.
    off = {"generate.image_own": 0.0} if which == 0 else {"generate.image_other": 0.0}
    if which == 1:
        assert distance(sampled(models, off), sampled(models, off, other)) == 0
    else:
        both = {**off, "generate.image_other": 0.0}
        assert distance(sampled(models, both), sampled(models, both, other)) == 0


def test_a_step_follows_the_published_formula(models):
    """The four predictions come from pipelines with one adapter, or none, at the same scale."""
    made = recipe(overrides={"generate.image_prompts": models.ip_adapter}).generate
    made = dataclasses.replace(made, guidance=7.5)
    noisy, time = torch.randn(1, 4, 8, 8), torch.tensor(500)

    def alone(text, pictures):
        """Return the UNet's prediction with as many adapters as there are pictures."""
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(models.generator, safety_checker=None)
        more = None
        if pictures:
            pipe.load_ip_adapter(
                models.ip_adapter, subfolder="models",
                weight_name=["ip-adapter-plus_sd15.safetensors"] * len(pictures),
            )  # fmt: skip
            pipe.set_ip_adapter_scale([0.6] * len(pictures))
            shown = pipe.prepare_ip_adapter_image_embeds(pictures, None, "cpu", 1, False)
            more = {"image_embeds": shown}
        words = pipe.encode_prompt(text, "cpu", 1, False)[0]
        with torch.no_grad():
            return pipe.unet(noisy, time, words, added_cond_kwargs=more).sample

    prompt, pair = TEXTS[0][0], PICTURES[0]
    e0, e_text = alone("", []), alone(prompt, [])
    e_own, e_both = alone(prompt, pair[:1]), alone(prompt, pair)
    expected = e0 + 7.5 * (e_text - e0) + 6 * (e_own - e_text) - 6 * (e_both - e_own)
    with prompted_by_images(load_generator(models.generator), models.ip_adapter) as generator:
        text = sampling.Prompts(generator, TEXTS[:1], made).of([0]) | generator.look([pair])
        with torch.no_grad():
            found = generator._guided(noisy, time, text, made)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_image_is_the_same_alone_and_in_a_batch(models):
    assert distance(sampled(models), sampled(models)) == 0
    assert distance(sampled(models)[:1], sampled(models, seeds=(5,))) <= 1


def test_afterwards_the_pipeline_is_as_it_was_bit_for_bit(models):
    pipe = load_pipeline(models.generator)
    before = weights(pipe)
    text = sampling.Prompts(generator_of(pipe), TEXTS, recipe().generate).of([0, 1])
    plain = sampling.sample(generator_of(pipe), text, [5, 6], recipe().generate, 16)
    with pytest.raises(Killed), prompted_by_images(generator_of(pipe), models.ip_adapter):
        assert pipe.unet.encoder_hid_proj is not None
        raise Killed
    after = weights(pipe)
    assert before[0].keys() == after[0].keys() and before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    again = sampling.sample(generator_of(pipe), text, [5, 6], recipe().generate, 16)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(plain, again, strict=True))


# The method.


def test_an_image_has_a_shot_of_its_class_and_one_of_a_class_that_looks_alike(make, dataset):
    support = Support(make("dipsy", {"generate.images": 200}), dataset)
    for label in range(3):
        found = [one.images for one in draws(support, label)]
        assert {own for own, _ in found} == {(label, 0), (label, 1)}
        shares = [sum(other[0] == y for _, other in found) / 200 for y in range(3)]
        np.testing.assert_allclose(shares, pairs(support)[label], atol=0.12)


def test_a_view_is_a_flip_a_square_and_a_turn_without_its_corners(make, dataset):
    dipsy, white = METHODS["dipsy"], Image.new("RGB", (90, 60), "white")
    gradient = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (60, 1))).convert("RGB")
    flipped = 0
    for seed in range(40):
        view = np.asarray(dipsy.view(white, np.random.default_rng(seed)))
        assert view.shape == (42, 42, 3) and (view == 255).all(), "no black corner"
        view = np.asarray(dipsy.view(gradient, np.random.default_rng(seed)), int)[..., 0]
        flipped += view[:, 0].mean() > view[:, -1].mean()
    assert 10 < flipped < 30
    support = Support(make("dipsy"), dataset)
    one, same, other = (image_prompts(support, 0, index) for index in (0, 0, 1))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in same]
    assert one[0].tobytes() != other[0].tobytes()


def digests(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.png"))} | {
        "rows": (folder / "train" / "metadata.jsonl").read_bytes()
    }


def test_from_the_settings_to_the_images(make, dataset, tmp_path, models):
    """The batch does not matter but for rounding, and the next method sees the bare UNet."""
    before = weights(load_pipeline(models.generator))
    first = make_set(make("dipsy"), dataset, Store(tmp_path / "a"))
    again = make_set(make("dipsy"), dataset, Store(tmp_path / "b"))
    other = make_set(make("dipsy", {"generate.batch": 5}), dataset, Store(tmp_path / "c"))
    assert digests(first) == digests(again)
    images, alike = read_synthetic_set(first), read_synthetic_set(other)
    for i in range(len(images)):
        assert np.abs(np.asarray(images.open(i), int) - np.asarray(alike.open(i), int)).max() <= 1
    after = weights(load_pipeline(models.generator))
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    support = Support(make("dipsy"), dataset)
    lines = (first / "train" / "metadata.jsonl").read_text().splitlines()
    named = [tuple((one["label"], one["shot"]) for one in json.loads(x)["images"]) for x in lines]
    assert named == [one.images for label in range(3) for one in draws(support, label)]


def test_a_killed_run_goes_on_to_the_same_images(make, dataset, tmp_path, monkeypatch):
    whole = digests(make_set(make("dipsy"), dataset, Store(tmp_path / "a")))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(generate, "write_images", dies_at(png.write_images, 2))
        make_set(make("dipsy"), dataset, Store(tmp_path / "b"))
    calls = []
    monkeypatch.setattr(
        generate, "write_images", lambda *a: calls.append(a[1]) or png.write_images(*a)
    )
    assert digests(make_set(make("dipsy"), dataset, Store(tmp_path / "b"))) == whole
    assert len(calls) == 2, "the first class was there"


# Its model: named, fetched, checked, in the key.


def key(make, dataset, overrides=None):
    return stage_of("generate").inputs(Cell(make("dipsy", overrides), dataset), None)


def test_the_adapter_s_files_are_in_the_key_and_its_place_is_not(make, dataset, models, tmp_path):
    shutil.copytree(models.ip_adapter, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("another file of the repository")
    moved = {"generate.image_prompts": str(tmp_path / "moved")}
    assert key(make, dataset, moved) == key(make, dataset)
    state = load_file(tmp_path / "moved" / IP_WEIGHTS)
    state["ip_adapter.1.to_k_ip.weight"] += 1
    save_file(state, tmp_path / "other.safetensors")
    shutil.copy(tmp_path / "other.safetensors", tmp_path / "moved" / IP_WEIGHTS)
    shutil.move(tmp_path / "moved", tmp_path / "changed")
    changed = {"generate.image_prompts": str(tmp_path / "changed")}
    assert key(make, dataset, changed) != key(make, dataset)
    assert identity("ip-adapter-plus_sd15", "ip-adapter").startswith("h94/IP-Adapter")


def test_a_missing_adapter_is_named_with_its_download(make, store):
    with pytest.raises(ModelMissingError) as caught:
        run.run(make("dipsy", {"generate.image_prompts": "ip-adapter-plus_sd15"}), store)
    row = catalog.IP_ADAPTERS["ip-adapter-plus_sd15"]
    for words in (
        "the IP-Adapter 'ip-adapter-plus_sd15' cannot be loaded",
        "datadream download ip-adapter-plus_sd15", row.hub, "2.6 GB", row.licence,
        "set generate.image_prompts=<folder",
    ):  # fmt: skip
        assert words in str(caught.value)
    lacking = plan.missing([recipe("paper", method="dipsy", dataset="mnist")])
    assert any(line.startswith("IP-Adapter ip-adapter-plus_sd15: ") for line in lacking)


def test_a_folder_that_lacks_a_file_or_has_a_damaged_one_is_named(make, store, models, tmp_path):
    shutil.copytree(models.ip_adapter, tmp_path / "half")
    one = make("dipsy", {"generate.image_prompts": str(tmp_path / "half")})
    (tmp_path / "half" / IP_WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ModelMissingError, match="its files are damaged"):
        run.run(one, store)
    (tmp_path / "half" / IP_WEIGHTS).unlink()
    with pytest.raises(ModelMissingError, match="has no models/ip-adapter-plus_sd15.safetensors"):
        run.run(one, store)
    assert not list(store.root.glob("generate-*"))


# What it cannot go with, refused before anything is made.


def test_the_embedded_model_refuses_in_one_sentence_and_is_planned_all_the_same(store, capsys):
    one = recipe(dataset="mnist", method="dipsy")
    with pytest.raises(ConfigError) as caught:
        run.run(one, store)
    said = str(caught.value)
    assert "nobody has trained one for generator='mini'" in said and "\n" not in said
    assert not store.root.exists() or not [*store.root.glob("*-*")]
    assert "generate" in plan.overview([one], store)
    assert "dipsy" not in str(plan.profile_cells("mini", ["mnist"], 1))


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"generate.strength": 0.5, "generate.steps": 2}, "generate.strength=0 and .* are 0.5"),
        ({"generate.guided": 0.5}, "generate.guided=1, and they are 0 and 0.5"),
        ({"classifier": "resnet50"}, "classifier='resnet50' starts from random weights"),
    ],
)
def test_settings_that_cannot_work(make, store, overrides, said):
    with pytest.raises(ConfigError, match=said):
        run.run(make("dipsy", overrides), store)
    assert not list(store.root.glob("generate-*"))


@pytest.mark.parametrize("generator", ["xl", "wide"])
def test_a_generator_with_other_layers(make, store, models, tmp_path, generator):
    place = getattr(models, generator, "")
    if generator == "wide":
        from diffusers import UNet2DConditionModel

        place = str(tmp_path / "wide")
        shutil.copytree(models.generator, place)
        config = UNet2DConditionModel.load_config(place, subfolder="unet")
        wide = UNet2DConditionModel.from_config({**config, "layers_per_block": 2})
        wide.save_pretrained(tmp_path / "wide" / "unet")
    with pytest.raises(ConfigError, match="does not suit generator=.*is for 'sd1.5'"):
        run.run(make("dipsy", {"generator": place}), store)


def test_a_method_that_gives_no_images(make, store, models):
    with pytest.raises(ConfigError, match="method 'base' gives no images to prompt with"):
        run.run(make("base", {"generate.image_prompts": models.ip_adapter}), store)


@pytest.mark.parametrize(
    "images, prompts, said",
    [
        (((0, 0), (1, 0)), False, "generate.image_prompts='' names no IP-Adapter"),
        (((0, 0),), True, "give .class, place. of two few shots"),
        (((0, 2), (1, 0)), True, "give .class, place. of two few shots"),
        (((0, 0), (3, 0)), True, "give .class, place. of two few shots"),
    ],
)
def test_images_that_are_no_two_few_shots(make, dataset, models, registered, images, prompts, said):
    kind = type("Shown", (Method,), {"draw": lambda *_: Draw("a", images=images)})
    registered(kind("shown", "Shown", "#882255"))
    one = make("shown", {"generate.image_prompts": models.ip_adapter if prompts else ""})
    with pytest.raises(ConfigError, match=said):
        draws(Support(one, dataset), 0)


def test_a_near_miss_of_its_name_is_named(capsys):
    assert main(["download", "ip-adapter-plus"]) == 2
    assert "Did you mean 'ip-adapter-plus_sd15'?" in capsys.readouterr().err
