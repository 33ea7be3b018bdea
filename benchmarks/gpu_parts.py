"""The parts of `benchmarks.gpu`.

They show whether each stage runs, how fast it is, where the time of a step goes, and what a change
would gain.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear
from PIL import Image

from datadream.data import batches, datasets
from datadream.data.images import Images
from datadream.engines.here import run_cell
from datadream.models import device
from datadream.models.classifiers import base
from datadream.models.generators import load, lora, sampling
from datadream.pipeline import train
from datadream.store.artifacts import Store
from datadream.store.cores import usable_cores
from datadream.training import batch_size

from . import stages, together
from .gpu_bench import Bench, part

WAYS = (("released way", "baseline"), ("ours", "product"))


@part(40)
def whole_cell(bench: Bench) -> dict[str, Any]:
    """Run one cell on two classes of noise, from photos to its record.

    Returns, among others, the precision used.
    """
    folder = Path(tempfile.mkdtemp(dir=bench.root))
    for label, name in enumerate(("heron", "wren")):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.RandomState(10 * label + i).randint(0, 255, (300, 400, 3), np.uint8)
            Image.fromarray(noise).save(folder / "photos" / name / f"{i}.jpg")
    small = {
        "adapt.epochs": 2,
        "adapt.batch": 2,
        "adapt.warmup": 1,
        "generate.images": 2,
        "generate.steps": 2,
        "classify.epochs": 2,
        "classify.warmup": 1,
        "classify.batch": 4,
        "classify.evaluations": 1,
    }
    cell = bench.recipe(
        overrides=small,
        dataset="folder",
        folder=str(folder / "photos"),
        method="dset+real",
        shots=1,
        noun="bird",
    )
    record = run_cell(cell, Store(folder / "store"))
    files = sorted((folder / "store").glob("generate-*/train/*/*.png"))
    images = [np.asarray(Image.open(file)) for file in files]
    if record["result"]["test"]["total"] != 4 or len(images) != 4:
        raise RuntimeError(
            f"{record['result']['test']['total']} test images and {len(images)} drawn, not 4"
        )
    return {
        "seconds_by_stage": record["seconds"],
        "image": list(images[0].shape),
        "dtypes": [str(device.dtype_for("auto", training=t)) for t in (True, False)],
        "spread": [float(image.std()) for image in images],
        "peak_GB": bench.peak_gigabytes(),
    }


@part(15)
def half_against_single(bench: Bench) -> dict[str, Any]:
    """Return the relative errors of half precision, and the largest activation.

    float16 overflows beyond 65504.
    """
    found: dict[str, Any] = {}
    exact: tuple[torch.Tensor, ...] = ()
    inputs: tuple[torch.Tensor, ...] = ()
    for dtype in (
        (torch.float32, torch.float16, torch.bfloat16)
        if bench.cuda
        else (torch.float32, torch.bfloat16)
    ):
        pipe, largest = bench.load(dtype), [0.0]
        unet, decoder = pipe.unet, pipe.vae.decoder
        if not inputs:
            side, width = unet.config.sample_size, unet.config.cross_attention_dim
            torch.manual_seed(0)
            inputs = (
                torch.randn(2, unet.config.in_channels, side, side),
                torch.randn(2, pipe.tokenizer.model_max_length, width),
            )

        def watch(module, given, out, largest=largest):
            largest[0] = max(largest[0], float(out.abs().max()))

        hooks = [
            m.register_forward_hook(watch)
            for n in (unet, decoder)
            for m in n.modules()
            if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
        ]
        with torch.no_grad():
            x, text = (t.to(bench.device, dtype) for t in inputs)
            times = torch.tensor([500, 20], device=bench.device)
            outs = (
                unet(x, times, text).sample.float(),
                pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample.float(),
            )
        for hook in hooks:
            hook.remove()
        exact = exact or outs
        errors = [float((o - e).norm() / e.norm()) for o, e in zip(outs, exact, strict=True)]
        found[str(dtype)] = {
            "unet": errors[0],
            "decoder": errors[1],
            "largest": largest[0],
            "finite": bool(all(o.isfinite().all() for o in outs)),
        }
        del pipe, unet, decoder
        bench.forget()
    return found


def rates(bench: Bench, name: str, ways, units: int, repeats: int = 2) -> dict[str, Any]:
    """Return units per second, seconds and peak memory of a stage, by label.

    `ways` has (label, way, context).
    """
    found = {}
    for label, way, around in ways:
        bench.forget()
        held = torch.cuda.memory_allocated() if bench.cuda else 0
        with around():
            stage = bench.stage(name, way)
            stage.measure()  # warm-up
            times, peaks = zip(*(stage.measure() for _ in range(repeats)), strict=True)
        found[label] = {
            "per_s": units / statistics.median(times),
            "seconds": times,
            "peak_GB": (max(peaks) - held) / 1e9,
        }
        if hasattr(stage, "generator"):
            lora.remove_lora(stage.generator)
        del stage
    bench.forget()
    return found


def plain(ways=WAYS) -> list[tuple[str, str, Callable]]:
    """Return `ways` for `rates` without any context around the stage."""
    return [(label, way, contextlib.nullcontext) for label, way in ways]


@part(45)
def adapt_steps(bench: Bench) -> dict[str, Any]:
    """Return optimiser steps per second of ours and of the released code.

    The latter runs in float32 and in mixed precision.
    """

    def half():
        return torch.autocast("cuda", torch.float16) if bench.cuda else contextlib.nullcontext()

    ways = [
        ("released way, float32", "baseline", contextlib.nullcontext),
        ("released way, float16 autocast", "baseline", half),
        *plain(WAYS[1:]),
    ]
    return rates(bench, "adapt", ways, bench.size.adapt)


@part(60)
def generate_images(bench: Bench) -> dict[str, Any]:
    """Return images per second at equal guided steps, and adapter swaps per second."""
    found = rates(bench, "generate", plain(), bench.size.images, repeats=1)
    return found | {"exchange": rates(bench, "exchange", plain(), bench.size.swaps, repeats=1)}


def write_sets(bench: Bench) -> None:
    """Write the classifier's training and test images, using all cores."""
    size = bench.size
    dataset = stages.work(bench.profile, bench.root, size=size)[1]
    many = dataset.train.pick([i % len(dataset.train) for i in range(size.train)])
    for folder, images in (("train", many), ("test", dataset.test.pick(range(size.test)))):
        (bench.root / folder).mkdir(exist_ok=True)

        def write(i, images=images, folder=folder):
            image = images.open(i).resize((size.side, size.side), Image.Resampling.BICUBIC)
            image.save(bench.root / folder / f"{i:05d}.png")

        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(write, range(len(images))))


@part(55)
def classifier_epoch(bench: Bench) -> dict[str, Any]:
    """Return training images per second over an epoch, including its share of evaluation."""
    write_sets(bench)
    return rates(bench, "train", plain(), bench.size.train, repeats=1)


@part(20)
def classifier_parts(bench: Bench) -> dict[str, Any]:
    """Return the time of a classifier step: assembling the batch, and the model's passes."""
    recipe, _, source, step = classifier_step(bench)
    found = {
        "batch": recipe.classify.batch,
        "batch_ms": bench.milliseconds(lambda: source.at(0), 4, 1),
        "model_ms": bench.milliseconds(step, 4, 1),
        "batch_profile": bench.profiled(lambda: source.at(0), "classifier's batch"),
        "model_profile": bench.profiled(step, "classifier's passes"),
    }
    with bench.cudnn_attention():
        found["model_ms, cuDNN attention"] = bench.milliseconds(step, 4, 1)
    return found


def classifier_step(bench: Bench):
    """Return (recipe, model, batches, a function that runs the passes of one batch)."""
    recipe, size = bench.recipe(), bench.size
    if not (bench.root / "train").exists():
        write_sets(bench)
    files = sorted(str(file) for file in (bench.root / "train").glob("*.png"))
    made = Images(tuple(files), tuple(i % 10 for i in range(len(files))))
    model = base.load_classifier(recipe.classifier)
    parameters = model.attach(recipe.classify)
    source = batches.Batches(None, made, recipe.classify, 10, model.size, 0, model.mean.device)
    tokens = model.prompts([datasets.prompt("", str(i)) for i in range(10)])
    model.train()
    for step in range(max(1, size.train // recipe.classify.batch)):
        source.at(step)  # each file is decoded once
    images, targets, real = source.at(0)

    def passes():
        loss = train.mixed_loss(model(images, tokens), targets, real, recipe.classify.real_weight)
        loss.backward()
        for parameter in parameters.values():
            parameter.grad = None

    return recipe, model, source, passes


def unet_pass(bench: Bench, pipe):
    """Return (a function that runs one guided UNet pass, as in sampling; its number of images)."""
    unet, count = pipe.unet, 2 if bench.tiny else 20
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    shapes = (
        (count, unet.config.in_channels, side, side),
        (count, pipe.tokenizer.model_max_length, width),
    )
    x, text = (torch.randn(shape, device=bench.device).to(unet.dtype) for shape in shapes)
    time_ = torch.tensor(500, device=bench.device)

    def once():
        with torch.no_grad():
            unet(x, time_, text)

    return once, count // 2


@part(30)
def sampling_pass(bench: Bench) -> dict[str, Any]:
    """Return the time of a guided UNet pass in several variants, and the costs around it.

    These are the decoder by batch size, and the host's work per image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    pipe = bench.load()
    once, images = unet_pass(bench, pipe)
    with FlopCounterMode(display=False) as counter:
        once()
    milliseconds = {"as shipped": bench.milliseconds(once)}
    found = {"TFLOP": counter.get_total_flops() / 1e12, "images": images, "ms": milliseconds}
    found["profile"] = bench.profiled(once, "sampling")
    with bench.cudnn_attention():
        milliseconds["cuDNN attention"] = bench.milliseconds(once)
    found["decoder"], decoded = decoder_batches(bench, pipe)
    processor, count = pipe.image_processor, len(decoded)
    to_pil = bench.milliseconds(
        lambda: processor.numpy_to_pil(processor.pt_to_numpy(decoded)), 4, 1
    )
    rounded = bench.milliseconds(
        lambda: [Image.fromarray(one) for one in sampling.levels(decoded).cpu().numpy()], 4, 1
    )
    found["host_ms_an_image"] = {
        "to PIL, float32 on the host": to_pil / count,
        "to PIL": rounded / count,
    }
    photo = stages.noise(Images((0,), (0,))).open(0).resize((512, 512), Image.Resampling.BICUBIC)
    for level in (6, 1):
        found["host_ms_an_image"][f"PNG, level {level}"] = bench.milliseconds(
            lambda level=level: photo.save(bench.root / "photo.png", compress_level=level), 4, 1
        )
    return found


def decoder_batches(bench: Bench, pipe) -> tuple[dict[int, Any], torch.Tensor]:
    """Return (decoder results by batch size, ten images).

    The results are milliseconds per image, peak memory, and the difference from decoding in two
    halves.
    """
    found, images = {}, torch.zeros(1, 3, 8, 8)
    channels, side = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    for n in (1, 2) if bench.tiny else (10, 32, 64):
        z = torch.randn(n, channels, side, side, device=bench.device).to(pipe.vae.dtype)

        def decode(latents):
            with torch.no_grad():
                return pipe.vae.decode(latents).sample

        try:
            seconds = bench.seconds(lambda z=z, decode=decode: decode(z), 2, 1)
            whole = decode(z).float()
            halves = torch.cat([decode(half) for half in z.split(max(1, n // 2))]).float()
            found[n] = {
                "ms_an_image": 1e3 * seconds / n,
                "peak_GB": bench.peak_gigabytes(),
                "apart_from_halves": float((whole - halves).norm() / halves.norm()),
            }
            images = whole[:10].clamp(-1, 1) / 2 + 0.5
        except RuntimeError as error:
            found[n] = {
                "error": repr(error)[:300],
                "taken_for_want_of_memory": batch_size.out_of_memory(error),
            }
        bench.forget()
    return found, images


def unet_step(bench: Bench):
    """Return (generator, a function that runs one optimiser step of its UNet's LoRA)."""
    options = bench.recipe().adapt
    generator = load.generator_of(bench.load(training=True))
    work = together.problem(generator.pipe, options, 1)
    parameters = lora.add_generator_lora(generator, options)
    own = [p for name, p in parameters.items() if name.startswith("unet")]
    optimiser = torch.optim.AdamW(own, lr=1e-4, fused=True)
    return generator, lambda: together.step(generator.network, optimiser, *work)


@part(70)
def adapt_parts(bench: Bench) -> dict[str, Any]:
    """Return where the time of an optimiser step goes, and the UNet's with variants of LoRA."""
    stage = bench.stage("adapt", "product")
    found: dict[str, Any] = {"profile": bench.profiled(stage.run, "adapting", bench.size.adapt)}
    lora.remove_lora(stage.generator)
    del stage
    bench.forget()
    generator, once = unet_step(bench)
    milliseconds = found["unet_ms"] = {"as shipped": bench.milliseconds(once)}
    found["unet_profile"] = bench.profiled(once, "UNet's step")
    # Without peft's cast to single precision, which autocast undoes anyway, the LoRA's products run
    # in bfloat16.
    half = torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda)
    with half, disable_input_dtype_casting(generator.network, active=bench.cuda):
        milliseconds["LoRA in bfloat16"] = bench.milliseconds(once)
        with bench.cudnn_attention():
            milliseconds["LoRA in bfloat16, cuDNN attention"] = bench.milliseconds(once)
    before, Linear.forward = Linear.forward, lean_lora
    try:
        milliseconds["LoRA as one addmm in the base's dtype"] = bench.milliseconds(once)
        found["lean_profile"] = bench.profiled(once, "UNet's step, LoRA as one addmm")
    finally:
        Linear.forward = before
    lora.remove_lora(generator)
    return found


@part(30)
def four_adapters(bench: Bench) -> dict[str, Any]:
    """Return the seconds of one step of four adapters.

    They are trained one after the other, and in one batched pass.
    """
    ways = together.ways(bench.profile, 4, bench.generator)
    found = {way: statistics.median([run() for _ in range(5)][2:]) for way, run in ways.items()}
    return found


def lean_lora(self, x):
    """Compute peft's linear layer with the low-rank update fused into one product.

    That product adds to the base's.
    """
    down, up = (layer["default"].weight.to(x.dtype) for layer in (self.lora_A, self.lora_B))
    flat = x.reshape(-1, x.shape[-1])
    scale = self.scaling["default"]
    return torch.addmm(self.base_layer(flat), flat @ down.T, up.T, alpha=scale).view(
        *x.shape[:-1], -1
    )


@part(70)
def sampling_compiled(bench: Bench) -> dict[str, Any]:
    """Return the compiled UNet pass's milliseconds, and the seconds of compilation."""
    pipe = bench.load()
    once, images = unet_pass(bench, pipe)
    with compiling(bench), sampling.compiled(pipe.unet), bench.cudnn_attention():
        found = {
            "images": images,
            "compile_s": first_seconds(bench, once),
            "ms": bench.milliseconds(once),
            "profile": bench.profiled(once, "sampling, compiled"),
        }
    return found


@part(35)
def classifier_compiled(bench: Bench) -> dict[str, Any]:
    """Return the classifier's passes with its image tower compiled."""
    _, model, _, step = classifier_step(bench)
    model.clip.visual.compile(backend=bench.backend)
    found = {"compile_s": first_seconds(bench, step), "model_ms": bench.milliseconds(step, 4, 1)}
    return found


@part(400)
def adapt_compiled(bench: Bench) -> dict[str, Any]:
    """Return the time of the UNet's compiled optimiser step, with peft's layers unchanged.

    Compilation takes minutes.
    """
    generator, once = unet_step(bench)
    with compiling(bench), sampling.compiled(generator.network):
        found = {"compile_s": first_seconds(bench, once), "unet_ms": bench.milliseconds(once)}
    lora.remove_lora(generator)
    return found


@contextlib.contextmanager
def compiling(bench: Bench):
    """Make `sampling.compiled` use the requested backend."""
    before, sampling.BACKEND = sampling.BACKEND, bench.backend
    try:
        yield
    finally:
        sampling.BACKEND = before


def first_seconds(bench: Bench, run: Callable[[], Any]) -> float:
    """Return the seconds of the first `run()`, including compilation."""
    start = time.perf_counter()
    run()
    bench.sync()
    return time.perf_counter() - start
