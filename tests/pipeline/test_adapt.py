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
from conftest import Killed, adapt, adapter_key, dies_at
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from datadream.data.datasets import DataError, Images
from datadream.data.transforms import generator_image
from datadream.methods.base import Support
from datadream.models.generators import latents
from datadream.models.generators.base import Attached
from datadream.models.generators.load import generator_of, load_generator, load_pipeline
from datadream.models.generators.lora import add_generator_lora, remove_lora
from datadream.models.generators.unet import DDPM
from datadream.pipeline import adapt as package
from datadream.pipeline.adapt import diffusion_loss
from datadream.seeds import seed_for
from datadream.store.artifacts import Store
from datadream.store.gc import PART
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
    folder = adapt(recipe, dataset, store)
    assert folder == store.folder(adapter_key(recipe, dataset)) and store.done(folder.name)
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
    folder = adapt(make("dset", {"adapt.text_encoder": False}), dataset, store)
    assert {name.split(".")[0] for name in tensors(folder)} == {"unet"}


def test_training_lowers_the_loss_on_the_few_shots(make, dataset, shots, tmp_path):
    recipe = make("dset", {"adapt.epochs": 30, "adapt.batch": 6, "adapt.lr": 2e-2})
    generator = load_generator(recipe.generator)
    parameters = add_generator_lora(generator, recipe.adapt)
    try:
        losses = package.tune(
            generator,
            Attached(parameters, print),
            Support(recipe, dataset),
            shots,
            tmp_path / "checkpoint",
            BatchSize(2),
            (None,),
        )
    finally:
        remove_lora(generator)
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
    pipe, seen, texts = load_pipeline(recipe.generator), [], []
    generator = generator_of(pipe)

    def look(picture):
        return tuple(picture.flatten()[::97].tolist())

    def condition(tokens, side):
        decoded = [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in tokens[0]]
        texts.append(decoded)

    def loss(predict, moments, draws, schedule):
        seen.append(list(zip(map(look, moments), texts[-1], strict=True)))
        return next(p for p in pipe.unet.parameters() if p.requires_grad).sum()

    monkeypatch.setattr(generator, "moments", lambda images: images)
    monkeypatch.setattr(generator, "condition", condition)
    monkeypatch.setattr(package, "diffusion_loss", loss)
    parameters = add_generator_lora(generator, recipe.adapt)
    try:
        package.tune(
            generator,
            Attached(parameters, print),
            Support(recipe, dataset),
            images,
            tmp_path / "checkpoint",
            BatchSize(2),
            (None,),
        )
    finally:
        remove_lora(generator)
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
    real = package.tune
    monkeypatch.setattr(package, "tune", lambda *args: (seen.append(args[3]), real(*args)))
    folders = [adapt(make("cls"), dataset, store, label) for label in range(3)]
    assert [set(images.labels) for images in seen] == [{0}, {1}, {2}]
    assert [images.sources for images in seen] == [
        shots.sources[2 * c : 2 * c + 2] for c in range(3)
    ]
    assert not any(same(folders[a], folders[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_seed_changes_the_adapter_and_nothing_else_does(make, dataset, shots, tmp_path):
    """Two seeds on the same images differ; the same seed gives the same bytes in another store,
    after other work.
    """
    one = adapt(make("dset"), dataset, Store(tmp_path / "one"))
    other = adapt(make("dset", seed=1), dataset, Store(tmp_path / "one"))
    torch.manual_seed(99)
    again = adapt(make("dset"), dataset, Store(tmp_path / "two"))
    assert same(one, again) and not same(one, other)


# The loss.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_mean_square_of_the_error_in_the_predicted_noise(prediction):
    """DDPM (paper, equation 2): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, and the target is
    e, or v for v-prediction.
    """
    schedule = DDPM({"num_train_timesteps": 20, "prediction_type": prediction}, scaling=0.5)
    moments, seen = torch.stack([torch.randn(64, 4, 2, 2), torch.rand(64, 4, 2, 2)], 1), {}

    def predict(noisy, times):
        seen.update(noisy=noisy, times=times)
        return torch.full_like(noisy, 0.25)

    posterior, noise = torch.randn(2, 64, 4, 2, 2)
    times = schedule.times(64, torch.device("cpu"))
    loss = diffusion_loss(predict, moments, (posterior, noise, times), schedule)
    # The latent is sampled from the posterior, not its mean.
    clean = 0.5 * (moments[:, 0] + moments[:, 1] * posterior)
    share = schedule.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    target = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * clean
    torch.testing.assert_close(loss, (target - 0.25).square().mean())
    torch.testing.assert_close(seen["noisy"], share.sqrt() * clean + (1 - share).sqrt() * noise)
    assert torch.equal(seen["times"], times) and len(set(times.tolist())) > 12, (
        "each image has its own timestep"
    )
    assert 0 <= times.min() and times.max() <= 19


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
    generator, calls = load_generator(make("dset").generator), []
    one_picture = Images(
        (np.random.RandomState(0).randint(0, 255, (16, 16 if square else 64, 3), np.uint8),), (0,)
    )
    moments = generator.moments
    monkeypatch.setattr(
        generator, "moments", lambda images: (calls.append(len(images)), moments(images))[1]
    )
    options = make("dset", {"adapt.crop": crop, "adapt.crops": crops}).adapt
    source = latents.Views(generator, one_picture, 16, options, seed=3)
    seen = [source.at([0], epoch) for epoch in range(5)]
    assert len({tuple(one.flatten().tolist()) for one in seen}) == views and sum(calls) == encoded
    torch.manual_seed(4)
    again = latents.Views(generator, one_picture, 16, options, seed=3)
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
    assert torch.equal(seen[0], source.generator.moments(wanted[None])[0]) and source.open(
        0
    ).size == (24, 16)


def test_a_batch_in_parts_has_the_same_gradient(make, dataset, shots, tmp_path, monkeypatch):
    """Half the images at once, or activations computed twice, as a block that is passed twice
    shows: what is drawn and the sum are the same.
    """
    recipe = make("dset", {"adapt.batch": 5})
    generator, found, passes = load_generator(recipe.generator), [], []
    network = generator.network
    hook = network.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: passes.append(1))
    torch.manual_seed(0)
    parameters = add_generator_lora(generator, recipe.adapt)
    monkeypatch.setattr(package, "fit", lambda parameters, loss_at, **_: loss_at)
    loss_at = package.tune(
        *(generator, Attached(parameters, print), Support(recipe, dataset), shots.pick(range(5))),
        *(tmp_path / "checkpoint", BatchSize(5), (None,)),
    )
    try:
        for micro, checkpointing in ((5, False), (2, False), (1, False), (5, True)):
            if checkpointing:
                network.enable_gradient_checkpointing()
            torch.manual_seed(1)
            loss = loss_at(0)
            parts = [loss.of(rows) for rows in torch.arange(loss.count).split(micro)]
            passes.clear()
            whole = sum(parts)
            found.append([whole, *torch.autograd.grad(whole, list(parameters.values()))])
            assert bool(passes) == checkpointing
    finally:
        hook.remove()
        network.disable_gradient_checkpointing()
        remove_lora(generator)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_memory_options_share_the_adapter(make, dataset):
    keys = {
        adapter_key(make("dset", {"adapt.micro": micro, "adapt.checkpointing": again}), dataset)
        for micro in (0, 1)
        for again in (False, True)
    }
    assert len(keys) == 1


def test_an_adaptation_that_runs_out_of_memory_goes_on_in_parts_and_says_so(
    make, dataset, shots, tmp_path, monkeypatch
):
    recipe = make("dset", {"adapt.batch": 4})
    whole = adapt(recipe, dataset, Store(tmp_path / "whole"))
    forward = load_pipeline(recipe.generator).unet.forward

    def small(noisy, *args, **kwargs):
        if len(noisy) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(noisy, *args, **kwargs)

    monkeypatch.setattr(load_pipeline(recipe.generator).unet, "forward", small)
    store = Store(tmp_path / "small")
    folder = adapt(recipe, dataset, store)
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

    monkeypatch.setattr(load_pipeline(make("dset").generator).unet, "forward", none)
    with pytest.raises(torch.OutOfMemoryError):
        adapt(make("dset"), dataset, store)


def test_all_timesteps_are_drawn_equally_often():
    torch.manual_seed(0)
    times = DDPM({"num_train_timesteps": 10}, scaling=1.0).times(4000, torch.device("cpu"))
    counts = torch.bincount(times, minlength=10)
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
    whole = adapt(recipe, dataset, Store(tmp_path / "whole"), label)
    store = Store(tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "diffusion_loss", dies_at(diffusion_loss, call))
        with pytest.raises(Killed):
            adapt(recipe, dataset, store, label)
    assert not store.done(whole.name) and not store.folder(whole.name).exists()
    torch.manual_seed(call)  # the next session starts with other random numbers
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            package, "diffusion_loss", lambda *args: (done.append(1), diffusion_loss(*args))[1]
        )
        folder = adapt(recipe, dataset, store, label)
    assert same(folder, whole)
    assert len(done) == 9 - 3 * ((call - 1) // 3), "finished steps are not computed again"


def test_a_kill_while_the_checkpoint_is_written_leaves_no_trace(
    make, dataset, shots, tmp_path, often, monkeypatch
):
    recipe, store = make("dset", {"adapt.epochs": 3, "adapt.batch": 2}), Store(tmp_path / "killed")
    whole = adapt(recipe, dataset, Store(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dies_at(os.replace, 2))
        with pytest.raises(Killed):
            adapt(recipe, dataset, store)
    monkeypatch.setattr(package, "fit", fit)  # no later checkpoint replaces the half-written one
    folder = adapt(recipe, dataset, store)
    assert same(folder, whole)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", FILE]


KILL = """
import functools, os, signal, sys
from datadream.pipeline import adapt as package
from datadream.training import loop
from datadream.methods.base import Adapter
from datadream.methods.recipes import recipe
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store

def replace(part, path, calls=[]):
    calls.extend([path] if str(path).endswith("checkpoint.safetensors") else [])
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(part, path)

os.replace = replace
package.fit = functools.partial(loop.fit, every=3)
one = recipe(overrides=OVERRIDES)
Cell(one).make("adapt", Store(STORE), Adapter())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_after_a_real_kill_9_another_process_continues_to_the_same_bytes(
    make, dataset, shots, tmp_path, often
):
    from datadream.config import as_dict

    recipe = make("dset", {"adapt.epochs": 3, "adapt.batch": 2})
    whole = adapt(recipe, dataset, Store(tmp_path / "whole"))
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
    assert [PART.fullmatch(file.name) is not None for file in partial.glob("*.part")] == [True]
    folder = adapt(recipe, dataset, Store(tmp_path / "killed"))
    assert same(folder, whole)


def test_a_finished_adapter_is_not_made_again(make, dataset, shots, store, monkeypatch):
    folder = adapt(make("dset"), dataset, store)
    monkeypatch.setattr(package, "load_generator", lambda *args: pytest.fail("the store has it"))
    assert adapt(make("dset"), dataset, store) == folder


# Failures.


def test_a_diverged_adaptation_names_the_class_and_leaves_no_artifact_and_no_residue(
    make, dataset, shots, store, monkeypatch
):
    recipe, pipe = make("cls"), load_pipeline(make("cls").generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "diffusion_loss", lambda *args: diffusion_loss(*args) * float("nan"))
        with pytest.raises(DivergedError, match=f"adapt {dataset.classes[2]}.*lr=0.05"):
            adapt(recipe, dataset, store, 2)
    assert not store.done(adapter_key(recipe, dataset, 2))
    assert not any(
        "lora" in name
        for part in (pipe.unet, pipe.text_encoder)
        for name, _ in part.named_parameters()
    )
    adapt(recipe, dataset, store, 2)


def test_an_unreadable_few_shot_is_named(make, dataset, tmp_path, store):
    (tmp_path / "broken.png").write_bytes(b"no image")
    pool = dataset.train
    broken = dataclasses.replace(pool, sources=(str(tmp_path / "broken.png"),) * len(pool))
    with pytest.raises(DataError, match=r"broken\.png"):
        adapt(make("dset"), dataclasses.replace(dataset, train=broken), store)
