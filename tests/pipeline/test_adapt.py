"""LoRA-tuning the generator: the loss against its formula, what a run is trained on, and that a
kill changes nothing.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import Killed, dies_at
from diffusers import DDPMScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from datadream.data.datasets import DataError, Images, few_shots
from datadream.data.transforms import generator_image
from datadream.models.generators import latents
from datadream.models.generators.unet import load_generator, tokenize
from datadream.pipeline import adapt as package
from datadream.pipeline.adapt import adapt, adapter_inputs, diffusion_losses
from datadream.seeds import seed_for
from datadream.store.artifacts import Store
from datadream.store.keys import key
from datadream.training import checkpoint
from datadream.training.batch_size import BatchSize
from datadream.training.loop import DivergedError, fit

FILE = "pytorch_lora_weights.safetensors"


def tensors(folder):
    """Return the tensors of an adapter's folder."""
    return load_file(folder / FILE)


def same(one, other):
    """Return whether two adapters have the same tensors, bit for bit."""
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_is_a_folder_that_load_lora_weights_reads(make, dataset, shots, store):
    recipe = make("dset")
    folder = adapt(recipe, dataset, shots, store)
    assert folder == store.folder(key("adapt", **adapter_inputs(recipe, dataset))) and store.done(
        folder.name
    )
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", FILE], (
        "no checkpoint is left"
    )
    found = tensors(folder)
    assert {name.split(".")[0] for name in found} == {"unet", "text_encoder"}
    assert all(value.any() for value in found.values()), "every second matrix has left zero"
    assert all(torch.isfinite(value).all() for value in found.values())
    with safe_open(folder / FILE, "pt") as file:
        note = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (note["unet.r"], note["unet.lora_alpha"], note["text_encoder.lora_alpha"]) == (2, 6, 6)

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        recipe.generator, safety_checker=None, requires_safety_checker=False
    )
    pipe.load_lora_weights(folder)
    assert len(pipe.get_active_adapters()) == 1


def test_the_text_encoder_is_left_alone_on_request(make, dataset, shots, store):
    folder = adapt(make("dset", {"adapt.text_encoder": False}), dataset, shots, store)
    assert {name.split(".")[0] for name in tensors(folder)} == {"unet"}


def test_training_lowers_the_loss_on_the_few_shots(make, dataset, shots, tmp_path):
    recipe, pipe = (
        make("dset", {"adapt.epochs": 30, "adapt.batch": 6, "adapt.lr": 2e-2}),
        load_generator(make("dset").generator),
    )
    parameters = package.add_generator_lora(pipe, recipe.adapt)
    try:
        losses = package.train_adapter(
            pipe, parameters, recipe, dataset, shots, tmp_path / "checkpoint", BatchSize(2), (None,)
        )
    finally:
        package.remove_lora(pipe)
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_every_epoch_sees_every_image_once_with_its_own_prompt(
    make, dataset, shots, tmp_path, monkeypatch
):
    """Seven images in batches of two: three full batches and a rest of one an epoch, each image
    beside its class's text.
    """
    recipe = make("dset", {"adapt.batch": 2, "adapt.epochs": 3, "adapt.crop": "center"})
    images = Images((*shots.sources, shots.sources[0]), (*shots.labels, shots.labels[0]))
    pipe, seen = load_generator(recipe.generator), []

    def look(picture):
        return tuple(picture.flatten()[::97].tolist())

    def loss(pipe, scheduler, moments, tokens, side, *_):
        seen.append(
            [
                (look(picture), pipe.tokenizer.decode(row, skip_special_tokens=True))
                for picture, row in zip(moments, tokens[0].tolist(), strict=True)
            ]
        )
        return next(p for p in pipe.unet.parameters() if p.requires_grad).sum()

    monkeypatch.setattr(latents, "latent_moments", lambda pipe, images: images)
    monkeypatch.setattr(package, "diffusion_losses", loss)
    parameters = package.add_generator_lora(pipe, recipe.adapt)
    try:
        package.train_adapter(
            pipe,
            parameters,
            recipe,
            dataset,
            images,
            tmp_path / "checkpoint",
            BatchSize(2),
            (None,),
        )
    finally:
        package.remove_lora(pipe)
    assert [len(batch) for batch in seen] == [2, 2, 2, 1] * 3
    epochs = [[pair for batch in seen[start : start + 4] for pair in batch] for start in (0, 4, 8)]
    expected = [
        (
            look(generator_image(images.open(i), 16, "center")),
            f"a photo of a {dataset.classes[y].lower()}",
        )
        for i, y in enumerate(images.labels)
    ]
    normal = [
        sorted((value, text.replace(" ", "")) for value, text in epoch)
        for epoch in [expected, *epochs]
    ]
    assert normal[1] == normal[2] == normal[3] == normal[0]
    assert len({tuple(epoch) for epoch in epochs}) == 3, "each epoch has its own order"


def test_a_class_adapter_sees_its_own_class_only(make, dataset, shots, store, monkeypatch):
    seen = []
    real = package.train_adapter
    monkeypatch.setattr(package, "train_adapter", lambda *args: (seen.append(args[4]), real(*args)))
    folders = [adapt(make("cls"), dataset, shots, store, label) for label in range(3)]
    assert [set(images.labels) for images in seen] == [{0}, {1}, {2}]
    assert [images.sources for images in seen] == [
        shots.sources[2 * c : 2 * c + 2] for c in range(3)
    ]
    assert not any(same(folders[a], folders[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_seed_changes_the_adapter_and_nothing_else_does(make, dataset, shots, tmp_path):
    """Two seeds on the same images differ; the same seed gives the same bytes in another store,
    after other work.
    """
    one = adapt(make("dset"), dataset, shots, Store(tmp_path / "one"))
    other = adapt(make("dset", seed=1), dataset, shots, Store(tmp_path / "one"))
    torch.manual_seed(99)
    again = adapt(make("dset"), dataset, shots, Store(tmp_path / "two"))
    assert same(one, again) and not same(one, other)


# The loss.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_mean_square_of_the_error_in_the_predicted_noise(prediction):
    """DDPM (paper, equation 2): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, and the target is
    e, or v for v-prediction.
    """
    from types import SimpleNamespace

    scheduler = DDPMScheduler(num_train_timesteps=20, prediction_type=prediction)
    moments, seen = torch.stack([torch.randn(64, 4, 2, 2), torch.rand(64, 4, 2, 2)], 1), {}

    def unet(noisy, times, text, added_cond_kwargs):
        seen.update(noisy=noisy, times=times, text=text, extra=added_cond_kwargs)
        return SimpleNamespace(sample=torch.full_like(noisy, 0.25))

    unet.dtype = torch.float32
    pipe = SimpleNamespace(
        unet=unet,
        text_encoder=lambda tokens: (tokens * 2,),
        vae=SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5)),
    )
    torch.manual_seed(0)
    (loss,) = diffusion_losses(pipe, scheduler, moments, (torch.arange(64),), 4)
    torch.manual_seed(0)
    # The latent is sampled from the posterior, not its mean.
    clean = 0.5 * (moments[:, 0] + moments[:, 1] * torch.randn(64, 4, 2, 2))
    share = scheduler.alphas_cumprod[seen["times"]].view(-1, 1, 1, 1)
    noise = (seen["noisy"] - share.sqrt() * clean) / (1 - share).sqrt()
    target = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * clean
    torch.testing.assert_close(loss, (target - 0.25).square().mean())
    assert torch.equal(seen["text"], 2 * torch.arange(64)) and seen["extra"] is None
    assert seen["times"].shape == (64,) and len(set(seen["times"].tolist())) > 12, (
        "each image has its own timestep"
    )
    assert 0 <= seen["times"].min() and seen["times"].max() <= 19
    assert 0.8 < noise.std() < 1.2 and abs(noise.mean()) < 0.2


@pytest.mark.parametrize(
    "crop, crops, square, views, encoded",
    [
        ("random", 0, False, 5, 5),  # the paper's: a new crop every epoch
        ("random", 2, False, 2, 2),
        ("random", 0, True, 1, 1),
        ("center", 0, False, 1, 1),
    ],
)
def test_each_view_is_encoded_once(
    make, tmp_path, monkeypatch, crop, crops, square, views, encoded
):
    """Five epochs of one picture: how many different views it has, and how often the autoencoder
    is asked.
    """
    pipe, calls = load_generator(make("dset").generator), []
    one_picture = Images(
        (np.random.RandomState(0).randint(0, 255, (16, 16 if square else 64, 3), np.uint8),), (0,)
    )
    moments = latents.latent_moments
    monkeypatch.setattr(
        latents,
        "latent_moments",
        lambda pipe, images: (calls.append(len(images)), moments(pipe, images))[1],
    )
    source = latents.Views(
        pipe,
        one_picture,
        16,
        make("dset", {"adapt.crop": crop, "adapt.crops": crops}).adapt,
        seed=3,
    )
    seen = [source.at([0], epoch) for epoch in range(5)]
    assert len({tuple(one.flatten().tolist()) for one in seen}) == views and sum(calls) == encoded
    torch.manual_seed(4)
    again = latents.Views(
        pipe,
        one_picture,
        16,
        make("dset", {"adapt.crop": crop, "adapt.crops": crops}).adapt,
        seed=3,
    )
    assert torch.equal(again.at([0], 4), seen[4]), "a resumed run sees the same crop"
    assert seen[0].shape == (1, 2, 4, 8, 8) and (seen[0][:, 1] > 0).all()


def test_a_large_photo_is_kept_at_the_size_that_its_crops_are_cut_from(make, tmp_path):
    """What a camera makes would fill the memory; the views are those of the file."""
    Image.effect_noise((900, 600), 60).convert("RGB").save(tmp_path / "photo.png")
    photo = Images((str(tmp_path / "photo.png"),), (0,))
    source = latents.Views(
        load_generator("mini"), photo, 16, make("dset", {"adapt.crop": "random"}).adapt, seed=3
    )
    seen = source.at([0], epoch=1)
    torch.manual_seed(seed_for(3, "crop", 0, 2))
    wanted = generator_image(photo.open(0), 16, "random")
    assert torch.equal(
        seen[0], latents.latent_moments(source.pipe, wanted[None])[0]
    ) and source.open(0).size == (24, 16)


def test_a_batch_in_parts_has_the_same_gradient(make, dataset, shots):
    """Half the images at once, or activations computed twice, as a block that is passed twice
    shows: what is drawn and the sum are the same.
    """
    recipe = make("dset")
    pipe = load_generator(recipe.generator)
    tokens = tokenize(
        pipe,
        [
            "a photo of a seven",
            "a photo of a one",
            "a photo of a seven",
            "a photo of a two",
            "a photo of a two",
        ],
    )
    moments, found, passes = torch.rand(5, 2, 4, 8, 8), [], []
    hook = pipe.unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: passes.append(1))
    torch.manual_seed(0)
    parameters = list(package.add_generator_lora(pipe, recipe.adapt).values())
    try:
        for micro, checkpointing in ((0, False), (2, False), (1, False), (0, True)):
            if checkpointing:
                pipe.unet.enable_gradient_checkpointing()
            torch.manual_seed(1)
            parts = list(
                diffusion_losses(
                    pipe,
                    DDPMScheduler.from_config(pipe.scheduler.config),
                    moments,
                    tokens,
                    16,
                    micro,
                )
            )
            assert len(parts) == -(-5 // (micro or 5))
            passes.clear()
            found.append([sum(parts), *torch.autograd.grad(sum(parts), parameters)])
            assert bool(passes) == checkpointing
    finally:
        hook.remove()
        pipe.unet.disable_gradient_checkpointing()
        package.remove_lora(pipe)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_memory_options_share_the_adapter(make, dataset):
    keys = {
        key(
            "adapt",
            **adapter_inputs(
                make("dset", {"adapt.micro": micro, "adapt.checkpointing": again}), dataset
            ),
        )
        for micro in (0, 1)
        for again in (False, True)
    }
    assert len(keys) == 1


def test_an_adaptation_that_runs_out_of_memory_goes_on_in_parts_and_says_so(
    make, dataset, shots, tmp_path, monkeypatch
):
    recipe = make("dset", {"adapt.batch": 4})
    whole = adapt(recipe, dataset, shots, Store(tmp_path / "whole"))
    forward = load_generator(recipe.generator).unet.forward

    def small(noisy, *args, **kwargs):
        if len(noisy) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(noisy, *args, **kwargs)

    monkeypatch.setattr(load_generator(recipe.generator).unet, "forward", small)
    store = Store(tmp_path / "small")
    folder = adapt(recipe, dataset, shots, store)
    assert store.manifest(folder.name)["batches"] == [
        f"out of memory with {n} images at once, went on with {n // 2}" for n in (4, 2)
    ]
    one, other = (load_file(f / "pytorch_lora_weights.safetensors") for f in (whole, folder))
    assert one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=1e-3) for name in one
    )


def test_one_image_too_many_is_an_error(make, dataset, shots, store, monkeypatch):
    def none(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(load_generator(make("dset").generator).unet, "forward", none)
    with pytest.raises(torch.OutOfMemoryError):
        adapt(make("dset"), dataset, shots, store)


def test_all_timesteps_are_drawn_equally_often():
    from types import SimpleNamespace

    times = []

    def unet(noisy, t, text, added_cond_kwargs):
        times.extend(t.tolist())
        return SimpleNamespace(sample=noisy)

    unet.dtype = torch.float32

    pipe = SimpleNamespace(
        unet=unet,
        text_encoder=lambda tokens: (tokens,),
        vae=SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0)),
    )
    torch.manual_seed(0)
    list(
        diffusion_losses(
            pipe,
            DDPMScheduler(num_train_timesteps=10),
            torch.zeros(4000, 2, 1, 1, 1),
            (torch.zeros(4000),),
            1,
        )
    )
    counts = torch.bincount(torch.tensor(times), minlength=10)
    # 400 expected, a standard deviation of 19.
    assert len(counts) == 10 and counts.min() > 300 and counts.max() < 500


# Killed and continued.


@pytest.fixture
def often(monkeypatch):
    """Write a checkpoint every third step, so that nine steps have some."""
    monkeypatch.setattr(package, "fit", functools.partial(fit, every=3))


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("call", [1, 4, 6])
def test_a_killed_adaptation_continues_to_the_same_bytes(
    make, dataset, shots, tmp_path, often, label, call
):
    recipe = make(
        "dset" if label is None else "cls",
        {"adapt.epochs": 3 if label is None else 9, "adapt.batch": 2},
    )
    whole = adapt(recipe, dataset, shots, Store(tmp_path / "whole"), label)
    store = Store(tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "diffusion_losses", dies_at(diffusion_losses, call))
        with pytest.raises(Killed):
            adapt(recipe, dataset, shots, store, label)
    assert not store.done(whole.name) and not store.folder(whole.name).exists()
    torch.manual_seed(call)  # the next session starts with other random numbers
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            package, "diffusion_losses", lambda *args: (done.append(1), diffusion_losses(*args))[1]
        )
        folder = adapt(recipe, dataset, shots, store, label)
    assert same(folder, whole)
    assert len(done) == 9 - 3 * ((call - 1) // 3), "finished steps are not computed again"


def test_a_kill_while_the_checkpoint_is_written_leaves_no_trace(
    make, dataset, shots, tmp_path, often, monkeypatch
):
    recipe, store = make("dset", {"adapt.epochs": 3, "adapt.batch": 2}), Store(tmp_path / "killed")
    whole = adapt(recipe, dataset, shots, Store(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", dies_at(os.replace, 2))
        with pytest.raises(Killed):
            adapt(recipe, dataset, shots, store)
    monkeypatch.setattr(package, "fit", fit)  # no later checkpoint replaces the half-written one
    folder = adapt(recipe, dataset, shots, store)
    assert same(folder, whole)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", FILE]


KILL = """
import functools, os, signal, sys
from datadream.pipeline import adapt as package
from datadream.training import checkpoint, loop
from datadream.data import datasets
from datadream.methods.recipes import recipe
from datadream.store.artifacts import Store

def replace(part, path, calls=[]):
    calls.append(path)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(part, path)

checkpoint.os = type("os", (), {"replace": staticmethod(replace)})
package.fit = functools.partial(loop.fit, every=3)
one = recipe(overrides=OVERRIDES)
dataset = datasets.load_dataset("folder", one.folder)
package.adapt(one, dataset, datasets.few_shots(dataset, one.shots, one.seed), Store(STORE))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_after_a_real_kill_9_another_process_continues_to_the_same_bytes(
    make, dataset, shots, tmp_path, often
):
    from datadream.config import as_dict

    recipe = make("dset", {"adapt.epochs": 3, "adapt.batch": 2})
    whole = adapt(recipe, dataset, shots, Store(tmp_path / "whole"))
    values = {name: value for name, value in as_dict(recipe).items() if name != "profile"}
    script = KILL.replace("OVERRIDES", repr(values)).replace(
        "STORE", repr(str(tmp_path / "killed"))
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = tmp_path / "killed" / f"{whole.name}.partial"
    assert (partial / "checkpoint.safetensors").exists(), (
        "the first checkpoint outlives the process"
    )
    assert checkpoint.load_state(partial / "checkpoint.safetensors")[1] == 3
    folder = adapt(recipe, dataset, shots, Store(tmp_path / "killed"))
    assert same(folder, whole)


def test_a_finished_adapter_is_not_made_again(make, dataset, shots, store, monkeypatch):
    folder = adapt(make("dset"), dataset, shots, store)
    monkeypatch.setattr(package, "load_generator", lambda *args: pytest.fail("the store has it"))
    assert adapt(make("dset"), dataset, shots, store) == folder


# Failures.


def test_a_diverged_adaptation_names_the_class_and_leaves_no_artifact_and_no_residue(
    make, dataset, shots, store, monkeypatch
):
    recipe, pipe = make("cls"), load_generator(make("cls").generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            package, "diffusion_losses", lambda *args: sum(diffusion_losses(*args)) * float("nan")
        )
        with pytest.raises(DivergedError, match=f"adapt {dataset.classes[2]}.*lr=0.05"):
            adapt(recipe, dataset, shots, store, 2)
    assert not store.done(key("adapt", **adapter_inputs(recipe, dataset, 2)))
    assert not any(
        "lora" in name
        for part in (pipe.unet, pipe.text_encoder)
        for name, _ in part.named_parameters()
    )
    adapt(recipe, dataset, shots, store, 2)


def test_an_unreadable_few_shot_is_named(make, dataset, tmp_path, store):
    shots = few_shots(dataset, 2, 0)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = dataclasses.replace(shots, sources=(str(tmp_path / "broken.png"), *shots.sources[1:]))
    with pytest.raises(DataError, match="broken.png"):
        adapt(make("dset"), dataset, broken, store)
