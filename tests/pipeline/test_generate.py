"""Synthesis: one seed per image, per-class adapters, no residue, and a folder that other
libraries read.
"""

import dataclasses
import json
import os
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Killed, adapt, adapter_key, dies_at, generate, generate_slice
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open

import datadream.pipeline.adapt as adapt_module
from datadream.data import png
from datadream.data.png import save_png
from datadream.data.synthetic_set import read_synthetic_set
from datadream.errors import ConfigError
from datadream.models.generators import sampling
from datadream.models.generators.load import generator_of, load_pipeline
from datadream.models.generators.sampling import adapted, levels, sample
from datadream.models.generators.unet import UNet
from datadream.pipeline import generate as package
from datadream.pipeline.generate import image_seed
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store
from datadream.store.files import digest
from datadream.training.batch_size import BatchSize
from datadream.training.loop import DivergedError


def pixels(folder):
    """Return the PNG files of an artifact as arrays by relative path."""
    return {
        str(file.relative_to(folder)): np.asarray(Image.open(file)).astype(int)
        for file in sorted(folder.rglob("*.png"))
    }


def digests(folder):
    """Return the digest of every file of an artifact but its manifest, which has the time in it."""
    files = (
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    )
    return {str(file.relative_to(folder)): digest(file) for file in files}


def metadata(folder):
    """Return the rows of an artifact's metadata."""
    return [
        json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()
    ]


def draw(recipe, adapter=None, text="a photo of a seven", seeds=(1, 2, 3)):
    """Return images sampled with an adapter, as one array."""
    with adapted(recipe, *([adapter] if adapter else [])) as generator:
        found = sample(
            generator,
            generator.embed([text], recipe.generate),
            list(seeds),
            recipe.generate,
            recipe.resolution,
        )
    return np.stack([np.asarray(image).astype(int) for image in found])


# One seed per image.


def test_an_image_is_the_same_whatever_the_batch_size(make, dataset, shots, tmp_path):
    """The noise is the same to the bit; a matrix product rounds a little differently with the
    number of rows, so that a pixel at the edge between two of its 256 values may fall to the
    other side.
    """
    found = {}
    for batch in (1, 2, 5, 64):
        folder = generate(
            make("base", {"generate.batch": batch}), dataset, Store(tmp_path / str(batch))
        )
        found[batch] = pixels(folder)
        assert digest(folder / "train" / "metadata.jsonl") == digest(
            tmp_path / "1" / folder.name / "train" / "metadata.jsonl"
        )
    assert len(found[1]) == 15
    for batch in (2, 5, 64):
        assert found[batch].keys() == found[1].keys()
        assert all(np.abs(found[batch][name] - found[1][name]).max() <= 1 for name in found[1])


def test_an_image_is_the_same_whatever_stands_beside_it(make):
    recipe = make("base")
    seeds = [5, 6, 7, 8]
    forward, backward = draw(recipe, seeds=seeds), draw(recipe, seeds=seeds[::-1])
    assert np.abs(forward - backward[::-1]).max() <= 1
    assert np.abs(forward[0] - forward[1]).max() > 10, "two seeds give two images"


def test_images_and_classes_and_seeds_all_differ_in_their_seed():
    seeds = {
        image_seed(seed, label, index)
        for seed in range(3)
        for label in range(4)
        for index in range(50)
    }
    assert len(seeds) == 3 * 4 * 50


def test_more_images_leave_the_first_ones_as_they_are(make, dataset, shots, store):
    few = pixels(generate(make("base", {"generate.images": 2}), dataset, store))
    many = pixels(generate(make("base", {"generate.images": 4}), dataset, store))
    assert len(few) == 6 and len(many) == 12
    # The batch is two, so the first batches are the same.
    assert all(np.array_equal(few[name], many[name]) for name in few)


def test_the_callers_random_state_has_no_say(make, dataset, shots, tmp_path):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(digests(generate(make("base"), dataset, Store(tmp_path / str(seed)))))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "field, value",
    [("generate.guidance", 4.0), ("generate.steps", 3), ("generate.scheduler", "DDIMScheduler")],
)
def test_each_option_reaches_the_pipeline(make, field, value):
    recipe = make("base", {field: value})
    assert not np.array_equal(draw(recipe), draw(make("base")))


def test_guidance_one_is_the_conditional_prediction_alone(make):
    """At scale 1 the prompt still matters and the empty prompt does not: the pipeline runs the
    network on no other text.
    """
    recipe, texts = make("base", {"generate.guidance": 1.0}), []
    pipe = load_pipeline(recipe.generator)
    handle = pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: texts.extend(
            (args[0] if args else kwargs["input_ids"]).tolist()
        ),
        with_kwargs=True,
    )
    try:
        draw(recipe, seeds=(1,))
    finally:
        handle.remove()
    assert [
        pipe.tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") for row in texts
    ] == ["aphotoofaseven"]


@pytest.mark.parametrize("generator", ["generator", "xl"])
@pytest.mark.parametrize(
    "guided, calls", [(1.0, [6, 6, 6, 6]), (0.5, [6, 6, 3, 3]), (0.0, [3, 3, 3, 3])]
)
def test_guidance_on_a_share_of_the_steps_asks_the_network_once_on_the_others(
    make, models, generator, guided, calls
):
    """The sizes of the batches that the network sees: under guidance each image stands there
    twice.
    """
    options = {
        "generator": getattr(models, generator),
        "generate.guidance": 3.0,
        "generate.guided": guided,
        "generate.steps": 4,
        "generate.scheduler": "DDIMScheduler",
    }
    recipe = make("base", options)
    sizes = []
    handle = load_pipeline(recipe.generator).unet.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    try:
        images = draw(recipe)
    finally:
        handle.remove()
    assert sizes == calls
    assert np.array_equal(images, draw(make("base", {**options, "generate.guided": 1.0}))) == (
        guided == 1.0
    )
    assert np.array_equal(images, draw(make("base", {**options, "generate.guidance": 1.0}))) == (
        guided == 0.0
    )


def test_a_compiled_network_survives_a_change_of_adapters(
    make, dataset, shots, tmp_path, monkeypatch
):
    """The backend counts what it compiles and runs it as it is, so the images are those of the
    plain network.
    """
    graphs = []
    monkeypatch.setattr(
        sampling, "BACKEND", lambda graph, inputs: (graphs.append(graph), graph.forward)[1]
    )
    plain = pixels(generate(make("cls"), dataset, Store(tmp_path / "plain")))
    pipe = load_pipeline(make("cls").generator)
    try:
        fast = pixels(
            generate(
                make("cls", {"generate.compile": True, "generate.batch": 5}),
                dataset,
                Store(tmp_path / "fast"),
            )
        )
    finally:
        del pipe.unet.compiled_once
    assert len(graphs) == 1, "three adapters, one compilation"
    assert fast.keys() == plain.keys() and all(
        np.abs(fast[name] - plain[name]).max() <= 1 for name in plain
    )
    assert pipe.unet._compiled_call_impl is None


# What is written.


def test_the_folder_its_metadata_and_its_map_of_names(make, slashed, store):
    recipe = make("dset")
    folder = generate(recipe, slashed, store)
    names = json.loads((folder / "classes.json").read_text())
    assert list(names.values()) == list(slashed.classes)
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(
        [*names, "metadata.jsonl"]
    )
    rows = metadata(folder)
    adapter = adapter_key(recipe, slashed)
    expected = [
        {
            "file_name": f"{directory}/{index:06d}.png",
            "prompt": f"a photo of a {name}",
            "class": name,
            "label": label,
            "seed": image_seed(0, label, index),
            "adapter": adapter,
        }
        for label, (directory, name) in enumerate(names.items())
        for index in range(5)
    ]
    assert rows == expected
    for row in rows:
        with Image.open(folder / "train" / row["file_name"]) as image:
            assert image.size == (16, 16) and image.mode == "RGB" and image.format == "PNG"
    assert folder.name == Cell(recipe, slashed).key("generate") and store.done(folder.name)


def test_reading_a_set_back_keeps_images_with_labels(make, dataset, shots, store):
    images = read_synthetic_set(generate(make("base"), dataset, store))
    assert images.labels == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert all(
        f"/{CLASSES[label]}/" in source
        for source, label in zip(images.sources, images.labels, strict=True)
    )
    assert images.open(14).size == (16, 16)


def test_torchvision_reads_the_set(make, slashed, store):
    from torchvision.datasets import ImageFolder

    folder = generate(make("base"), slashed, store)
    names = json.loads((folder / "classes.json").read_text())
    found = ImageFolder(folder / "train")
    assert found.classes == sorted(names) and len(found) == 15
    assert sorted(names[found.classes[label]] for _, label in found.samples) == sorted(
        list(slashed.classes) * 5
    )


def test_the_datasets_library_reads_the_set_with_its_metadata(make, slashed, store, tmp_path):
    import datasets

    folder = generate(make("base"), slashed, store)
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 15
    rows = {row["seed"]: row for row in metadata(folder)}
    for row in table:
        known = rows[row["seed"]]
        assert (row["prompt"], row["class"], row["label"]) == (
            known["prompt"],
            known["class"],
            known["label"],
        )
        assert np.array_equal(
            np.asarray(row["image"]), np.asarray(Image.open(folder / "train" / known["file_name"]))
        )


SPLIT_WORDS = [
    ("test tube", "dev board", "red fox"),
    ("train", "val", "test"),  # all of them
    ("eval 2", "crash_test.dummy", "trains"),
    ("__dunder", "7-validation", "tests tube"),  # `datasets` passes "__" over as hidden
]


@pytest.mark.parametrize("classes", SPLIT_WORDS)
@pytest.mark.parametrize("place", ["", "train"])
def test_no_class_name_is_a_split_to_the_datasets_library(
    make, dataset, store, tmp_path, classes, place
):
    import datasets

    folder = generate(make("base"), dataclasses.replace(dataset, classes=classes), store)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / place), cache_dir=str(tmp_path / "cache")
    )
    assert set(found) == {"train"} and len(found["train"]) == 15
    assert sorted(set(found["train"]["class"])) == sorted(classes), "the names stay in the metadata"


# Adapters.


def test_the_base_generator_is_the_same_before_and_after_an_adapter(make, dataset, shots, store):
    recipe, pipe = make("dset"), load_pipeline(make("dset").generator)
    own, before = pipe.scheduler, draw(make("base"))
    for text_encoder in (True, False):
        adapter = adapt(make("dset", {"adapt.text_encoder": text_encoder}), dataset, store)
        tuned = draw(recipe, adapter)
        assert np.abs(tuned - before).max() > 1, "the adapter changes the images"
        assert np.array_equal(draw(make("base")), before), "bit for bit"
        assert np.array_equal(draw(recipe, adapter), tuned)
    assert pipe.scheduler is own
    assert not any(
        "lora" in name
        for part in (pipe.unet, pipe.text_encoder)
        for name, _ in part.named_parameters()
    )


def test_a_failure_while_sampling_leaves_no_residue_either(make, dataset, shots, store):
    recipe, before = make("dset", {"generate.scheduler": "DDIMScheduler"}), draw(make("base"))
    pipe = load_pipeline(recipe.generator)
    own = pipe.scheduler

    with (
        pytest.raises(RuntimeError, match="no memory"),
        adapted(recipe, adapt(recipe, dataset, store)),
    ):
        raise RuntimeError("no memory")
    assert pipe.scheduler is own and np.array_equal(draw(make("base")), before)


def test_class_wise_generation_uses_each_classs_own_adapter(make, dataset, shots, store):
    recipe = make("cls")
    folder = generate(recipe, dataset, store)
    keys = [adapter_key(recipe, dataset, label) for label in range(3)]
    rows = metadata(folder)
    assert [row["adapter"] for row in rows] == [k for k in keys for _ in range(5)] and len(
        set(keys)
    ) == 3
    found = pixels(folder)
    for label, name in enumerate(CLASSES):
        seeds = [image_seed(0, label, i) for i in range(2)]  # the first batch
        images = [draw(recipe, store.folder(k), f"a photo of a {name}", seeds) for k in keys]
        written = np.stack([found[f"train/{name}/{i:06d}.png"] for i in range(2)])
        assert np.array_equal(images[label], written)
        assert all(
            np.abs(images[other] - written).max() > 1 for other in range(3) if other != label
        )


def test_the_data_sets_adapter_is_one(make, dataset, shots, store):
    recipe = make("dset")
    rows = metadata(generate(recipe, dataset, store))
    assert {row["adapter"] for row in rows} == {adapter_key(recipe, dataset)}


def test_the_un_adapted_generator_trains_nothing(make, dataset, shots, store):
    rows = metadata(generate(make("base"), dataset, store))
    assert {row["adapter"] for row in rows} == {None}
    assert not list(store.root.glob("adapt-*"))


def test_the_time_of_the_adapters_is_counted_once(make, dataset, shots, store, monkeypatch):
    """A record adds up the seconds of its artifacts; here the clock moves by ten in each
    adaptation and stands still else.
    """
    from datadream.pipeline import adapt as adaptation
    from datadream.store import artifacts as clockwork

    clock = [0.0]
    monkeypatch.setattr(clockwork.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(adaptation, "tune", lambda *args: clock.__setitem__(0, clock[0] + 10))
    folder = generate(make("cls"), dataset, store)
    assert [
        store.manifest(path.name)["seconds"] for path in sorted(store.root.glob("adapt-*"))
    ] == [10, 10, 10]
    assert store.manifest(folder.name)["seconds"] == 0


# Killed and continued.


@pytest.mark.parametrize(
    "method, call", [("base", 1), ("base", 2), ("base", 8), ("base", 15), ("cls", 8)]
)
def test_a_killed_generation_continues_to_the_same_bytes(
    make, dataset, shots, tmp_path, method, call
):
    recipe, store = make(method), Store(tmp_path / "killed")
    whole = generate(recipe, dataset, Store(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "save_png", dies_at(png.save_png, call))
        with pytest.raises(Killed):
            generate(recipe, dataset, store)
    assert not store.folder(whole.name).exists()
    torch.manual_seed(call)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "sample", lambda *args: (calls.append(1), sample(*args))[1])
        folder = generate(recipe, dataset, store)
    assert digests(folder) == digests(whole)
    assert len(calls) == {1: 9, 2: 9, 8: 5, 15: 1}[call], (
        "finished batches are not sampled again; an unfinished one is, whole"
    )


def test_a_kill_while_an_image_is_written_leaves_no_half_image(make, dataset, shots, tmp_path):
    recipe, store = make("base"), Store(tmp_path / "killed")
    whole = generate(recipe, dataset, Store(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dies_at(os.replace, 7))
        with pytest.raises(Killed):
            generate(recipe, dataset, store)
    assert digests(generate(recipe, dataset, store)) == digests(whole)


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda image: image.write_bytes(b"")],
    ids=["missing", "left empty by a power cut"],
)
def test_an_image_that_is_missing_or_empty_among_those_left_is_made_again(
    make, dataset, shots, tmp_path, monkeypatch, spoil
):
    """A batch is finished if all its files are there, with their ends: peers look at its last
    one only.
    """
    recipe, store = make("base"), Store(tmp_path / "killed")
    whole = generate(recipe, dataset, Store(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(png, "save_png", dies_at(png.save_png, 8))
        with pytest.raises(Killed):
            generate(recipe, dataset, store)
    # The first of the second batch.
    spoil(store.work(whole.name) / "train" / CLASSES[0] / "000002.png")
    assert digests(generate(recipe, dataset, store)) == digests(whole)


def test_a_finished_set_is_not_made_again(make, dataset, shots, store, monkeypatch):
    folder = generate(make("cls"), dataset, store)
    monkeypatch.setattr(sampling, "load_generator", lambda *args: pytest.fail("the store has it"))
    assert generate(make("cls+real", {"generate.batch": 3}), dataset, store) == folder


def damage(image, how):
    """Cut an image, empty it, or change a bit in its middle, the time as it was."""
    content, times = bytearray(image.read_bytes()), image.stat()
    content[len(content) // 2] ^= 1
    image.write_bytes({"cut": content[:20], "empty": b"", "a bit": content}[how])
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "how, as_slices", [("cut", False), ("empty", True), ("a bit", False), ("a bit", True)]
)
def test_of_a_damaged_set_only_what_is_damaged_is_made_again(
    make, dataset, shots, store, monkeypatch, how, as_slices
):
    """By the batch that the image belongs to, whose members are fixed; in one process, or as a
    cluster's slices.
    """
    folder = generate(make("base"), dataset, store)
    found, image = digests(folder), sorted(folder.rglob("*.png"))[6]
    damage(image, how)
    monkeypatch.setattr("datadream.store.artifacts.verified", {})  # as in another process
    seeds = []
    monkeypatch.setattr(
        package,
        "sample",
        lambda pipe, text, own, *rest: (seeds.extend(own), sample(pipe, text, own, *rest))[1],
    )
    for label in range(3) if as_slices else ():
        generate_slice(make("base"), dataset, store, label, 0)
    assert digests(generate(make("base"), dataset, store)) == found and len(seeds) == 2


def test_what_a_slice_notes_of_its_batches_comes_into_the_manifest(
    make, dataset, shots, tmp_path, monkeypatch
):
    recipe, stores = (
        make("base", {"generate.batch": 4}),
        [Store(tmp_path / "slices"), Store(tmp_path / "whole")],
    )

    def small(pipe, text, seeds, *rest):
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(pipe, text, seeds, *rest)

    monkeypatch.setattr(package, "sample", small)
    for label in range(3):
        generate_slice(recipe, dataset, stores[0], label, 0)
    folders = [generate(recipe, dataset, store) for store in stores]
    assert digests(folders[0]) == digests(folders[1])
    assert [
        store.manifest(folder.name)["batches"]
        for store, folder in zip(stores, folders, strict=True)
    ] == [["out of memory with 4 images at once, went on with 2"]] * 2


# Failures.


def test_an_unknown_scheduler_names_the_near_miss_before_anything_is_trained(
    make, dataset, shots, store
):
    with pytest.raises(ConfigError) as caught:
        generate(make("dset", {"generate.scheduler": "DDIMSchedular"}), dataset, store)
    assert "'DDIMSchedular'" in str(caught.value) and "Did you mean 'DDIMScheduler'" in str(
        caught.value
    )
    assert not list(store.root.glob("adapt-*")), (
        "hours of adaptation must not come before the message"
    )


def test_a_resolution_that_the_autoencoder_cannot_make_is_refused_before_anything_is_trained(
    make, dataset, shots, store
):
    with pytest.raises((ConfigError, ValueError), match="20"):
        generate(make("dset", {"resolution": 20}), dataset, store)
    assert not list(store.root.glob("adapt-*"))


def test_a_scheduler_keeps_the_pipelines_noise_schedule(make):
    pipe = load_pipeline(make("base").generator)
    for name in ("pipeline", "DPMSolverMultistepScheduler", "DDIMScheduler"):
        scheduler = generator_of(pipe).scheduler(name)
        assert scheduler is not pipe.scheduler and torch.equal(
            scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod
        )
        assert type(scheduler).__name__ == {"pipeline": "PNDMScheduler"}.get(name, name)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_no_scheduler_clips_latents_to_the_range_of_pixels(make, name):
    """DDIM lost a study 13 points before this: latents reach beyond 1."""
    pipe = load_pipeline(make("base").generator)
    scheduler = generator_of(pipe).scheduler(name)
    scheduler.set_timesteps(4)
    time, large = scheduler.timesteps[-1], torch.full((1, 4, 8, 8), 3.0)
    found = scheduler.step(torch.zeros_like(large), time, large).pred_original_sample
    torch.testing.assert_close(found, large / scheduler.alphas_cumprod[time] ** 0.5)
    own = generator_of(pipe).scheduler("pipeline")
    own.register_to_config(clip_sample=True)
    assert UNet(types.SimpleNamespace(scheduler=own)).scheduler(name).config.clip_sample, (
        "what the pipeline says of itself holds"
    )


def test_the_recipes_seed_changes_every_image(make, dataset, shots, tmp_path):
    one, other = (
        pixels(generate(make("base", seed=seed), dataset, Store(tmp_path / "store")))
        for seed in (0, 1)
    )
    assert all(not np.array_equal(one[name], other[name]) for name in one)


# Other generators.


@pytest.mark.parametrize("kind", ["generator", "velocity", "xl"])
@pytest.mark.parametrize("method", ["dset", "cls"])
def test_every_kind_of_pipeline_is_adapted_and_sampled_by_the_same_code(
    kind, method, make, models, dataset, shots, store
):
    recipe = make(
        method,
        {"generator": getattr(models, kind), "resolution": 0, "adapt.lr": 0.05, "adapt.epochs": 6},
    )
    images = read_synthetic_set(generate(recipe, dataset, store))
    plain = read_synthetic_set(generate(dataclasses.replace(recipe, method="base"), dataset, store))
    assert len(images) == len(plain) == 15 and images.open(0).size == (16, 16)
    assert any(not np.array_equal(images.open(i), plain.open(i)) for i in range(15)), (
        "the adapter does something"
    )
    parts = {
        "generator": {"unet", "text_encoder"},
        "velocity": {"unet", "text_encoder"},
        "xl": {"unet", "text_encoder", "text_encoder_2"},
    }
    with safe_open(
        next(store.root.glob("adapt-*")) / "pytorch_lora_weights.safetensors", "pt"
    ) as file:
        assert {name.split(".")[0] for name in file.keys()} == parts[kind]
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())


def test_stable_diffusion_xl_is_conditioned_as_its_own_pipeline_does(models):
    """The hidden states, the pooled text and the time ids that the pipeline hands to its UNet
    when it samples.
    """
    pipe, seen, texts = (
        load_pipeline(models.xl),
        {},
        ["a photo of a red fox", "a photo of a old truck"],
    )
    forward = pipe.unet.forward

    def spy(sample, timestep, encoder_hidden_states, added_cond_kwargs, **rest):
        seen.update(hidden=encoder_hidden_states, **added_cond_kwargs)
        return forward(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=added_cond_kwargs,
            **rest,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.unet, "forward", spy)
        pipe(texts, num_inference_steps=1, guidance_scale=1.0, height=16, width=16)
    hidden, extra = generator_of(pipe).condition(generator_of(pipe).tokenize(texts), 16)
    assert torch.allclose(hidden, seen["hidden"], atol=1e-6) and torch.allclose(
        extra["text_embeds"], seen["text_embeds"], atol=1e-6
    )
    assert torch.equal(extra["time_ids"], seen["time_ids"].to(extra["time_ids"].dtype))


@pytest.mark.parametrize("kind", ["generator", "xl"])
def test_half_precision_keeps_the_adapter_in_single(
    kind, make, models, dataset, shots, store, monkeypatch
):
    """bfloat16 works on a CPU too, so that what a GPU does is tried here."""
    asked = []
    monkeypatch.setattr(
        adapt_module,
        "dtype_for",
        lambda precision, training: asked.append((precision, training)) or torch.bfloat16,
    )
    recipe = make("dset", {"generator": getattr(models, kind), "resolution": 0})
    folder = adapt(recipe, dataset, store)
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]
    assert set(asked) == {("auto", True)} and all(
        t.dtype == torch.float32 and t.isfinite().all() for t in tensors
    )
    assert load_pipeline(recipe.generator, torch.bfloat16).unet.dtype == torch.bfloat16


def test_an_image_that_is_not_a_number_is_an_error_and_no_black_image(
    make, dataset, shots, store, monkeypatch
):
    """A decoder in half precision can overflow: the pipeline itself only warns, and writes
    black.
    """
    decode, calls = AutoencoderKL.decode, []

    def overflow(self, *args, **options):
        calls.append(1)
        decoded = decode(self, *args, **options)
        return tuple(part * (float("nan") if len(calls) == 3 else 1) for part in decoded)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", overflow)
        with pytest.raises(
            DivergedError, match="NaN for 1 of 1 images.*black.*precision='float32'"
        ):
            generate(make("base"), dataset, store)
    assert len(list(store.root.rglob("*.png"))) == 4, "two batches of two"
    assert len(list(generate(make("base"), dataset, store).rglob("*.png"))) == 15


# Bytes and files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_images_have_the_bytes_that_diffusers_gives_them(dtype):
    """All levels, the edges between two of them and the floats beside those, and the ends."""
    from diffusers.image_processor import VaeImageProcessor

    whole = torch.arange(256, dtype=torch.float64)
    edges = torch.cat([whole, whole[:-1] + 0.5]).float() / 255
    beside = [torch.nextafter(edges, torch.full_like(edges, end)) for end in (0.0, 1.0)]
    values = torch.cat(
        [edges, *beside, torch.rand(10_000, generator=torch.Generator().manual_seed(0))]
    )
    values = values[: len(values) // 9 * 9].clamp(0, 1).to(dtype).view(3, 3, -1, 1)
    expected = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(values))
    found = levels(values).numpy()
    assert found.dtype == np.uint8 and found.shape == (3, values.shape[2], 1, 3)
    assert found.tobytes() == b"".join(one.tobytes() for one in expected)
    assert dtype is not torch.float32 or len(set(found.ravel().tolist())) == 256


def test_the_compression_changes_files_and_neither_pixels_nor_the_key(make, dataset, tmp_path):
    folders, keys = [], set()
    for level in (6, 0):
        recipe = make("base", {"generate.compression": level})
        folders.append(generate(recipe, dataset, Store(tmp_path / str(level))))
        keys.add(folders[-1].name)
        assert Store(tmp_path / str(level)).done(folders[-1].name), "the manifest fits the files"
    files = [sorted(folder.rglob("*.png")) for folder in folders]
    assert len(keys) == 1 and len(files[0]) == 15
    for one, other in zip(*files, strict=True):
        assert Image.open(one).tobytes() == Image.open(other).tobytes()
        assert one.read_bytes() != other.read_bytes()


def test_the_default_compression_is_pillows(tmp_path):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 90, (64, 64, 3), np.uint8))
    image.save(tmp_path / "own.png")
    save_png(image, tmp_path / "ours.png")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "ours.png").read_bytes()


def test_images_are_written_by_as_many_threads_as_there_are_cores_for(tmp_path, monkeypatch):
    monkeypatch.setattr(png, "own_cores", lambda: 16)
    both, saved = threading.Barrier(2, timeout=30), png.save_png

    def together(image, path, level):
        both.wait()  # ends only if two write at once
        saved(image, path, level)

    monkeypatch.setattr(png, "save_png", together)
    image = Image.new("RGB", (8, 8))
    draw, size = (lambda start, count: [image] * count), BatchSize(2)
    png.write_images(draw, range(4), tmp_path, size, lambda n: None)
    assert sorted(file.stem for file in tmp_path.iterdir()) == [f"{i:06d}" for i in range(4)]
    writers = set()
    monkeypatch.setattr(png, "own_cores", lambda: 1)
    monkeypatch.setattr(png, "save_png", lambda *_: writers.add(threading.get_ident()))
    png.write_images(draw, range(4, 10), tmp_path, size, lambda n: None)
    assert len(writers) == 1


def test_an_error_of_any_writer_ends_the_run(tmp_path, monkeypatch):
    image, saved = Image.new("RGB", (8, 8)), png.save_png

    def full(image, path, level):
        if path.stem.endswith("3"):
            raise OSError("no space left")
        saved(image, path, level)

    monkeypatch.setattr(png, "save_png", full)
    with pytest.raises(OSError, match="no space"):
        png.write_images(
            lambda start, count: [image] * count, range(6), tmp_path, BatchSize(2), lambda n: None
        )
