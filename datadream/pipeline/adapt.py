"""Tune the generator on the shots of one or all classes, or on one shot (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import key_fields
from ..data.images import Images, fingerprint
from ..methods.base import Adapter, Support
from ..methods.checked import own_adapter_key, tuning_prompts
from ..models.device import dtype_for
from ..models.generators.base import Attached, Generator, Schedule
from ..models.generators.kinds import KINDS
from ..models.generators.latents import Views
from ..models.generators.load import load_generator
from ..models.generators.words import Words
from ..models.identity import identity
from ..seeds import seed_for
from ..training.batch_size import BatchSize
from ..training.distributed import leads
from ..training.loop import Shares, fit

if TYPE_CHECKING:
    from accelerate import Accelerator


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    moments: Tensor,
    draws: tuple[Tensor, Tensor, Tensor],
    schedule: Schedule,
) -> Tensor:
    """Return the mean squared error of a network's prediction (paper, eq. 2).

    `moments` (B, 2, C, h, w) are mean and standard deviation of the latents' posterior. `draws` are
    the standard normals that sample the posterior and the added noise, both (B, C, h, w), and the
    timesteps (B,). `predict(noisy, times)` is the network. The schedule defines the target, which
    is the noise in the paper.
    """
    mean, std = moments.unbind(1)
    posterior, noise, times = draws
    latents = schedule.latents(mean + std * posterior)
    prediction = predict(schedule.add_noise(latents, noise, times), times)
    return F.mse_loss(prediction.float(), schedule.target(latents, noise, times).float())


def adapter_inputs(support: Support, adapter: Adapter) -> dict[str, Any]:
    """Return what an adapter depends on: model, options, prompts, seed, and its shots' pixels."""
    recipe, label = support.recipe, adapter.label
    options = key_fields(recipe.adapt)
    for name in ("micro", "checkpointing"):  # these only save memory
        options.pop(name)
    return {
        "generator": identity(recipe.generator, "generator"),
        "adapt": options,
        "seed": recipe.seed,
        "label": label,
        "image": adapter.image,
        "resolution": recipe.resolution,
        "precision": str(dtype_for(recipe.precision, training=True)),
        "prompts": support.class_prompts() if label is None else [support.prompt(label)],
        "shots": fingerprint(adapter.images(support)),
        **own_adapter_key(support, adapter),
    }


def adapter_work(support: Support, adapter: Adapter) -> tuple[int, int, int]:
    """Return an adapter's (images made, optimiser steps, images over all steps)."""
    options, shots = support.recipe.adapt, adapter.shots(support)
    steps = options.length(shots)
    return 0, steps, steps * shots // options.per_epoch(shots)


def train_adapter(
    support: Support, adapter: Adapter, folder: Path, accelerator: Accelerator | None = None
) -> list[str]:
    """Train one adapter, write it to `folder` in diffusers' format, and return batch notes.

    A killed run resumes from the checkpoint in `folder`, on a CPU with the same bytes in the end,
    on a GPU only if the recipe is `deterministic`. All processes of an `accelerator` call this;
    rank 0 writes. Their sums differ from a single process's in rounding. Raises DivergedError if a
    loss is not finite.
    """
    recipe = support.recipe
    which = (adapter.label,) if adapter.image is None else (adapter.label, adapter.image)
    shots, texts = adapter.images(support), tuning_prompts(support, adapter)
    batch = BatchSize(recipe.adapt.micro or recipe.adapt.batch)
    generator = load_generator(recipe.generator, dtype_for(recipe.precision, training=True))
    network: Any = generator.network
    torch.manual_seed(seed_for("adapter", recipe.seed, *which))
    try:
        kind = KINDS[recipe.adapt.kind]
        with kind.attached(generator, recipe.adapt, adapter.label, len(shots)) as own:
            if recipe.adapt.checkpointing:
                network.enable_gradient_checkpointing()
            checkpoint = folder / "checkpoint.safetensors"
            tune(generator, own, support, shots, checkpoint, batch, which, accelerator, texts)
            if leads(accelerator):
                own.save(folder)
                checkpoint.unlink(missing_ok=True)
    finally:
        network.disable_gradient_checkpointing()
    return batch.notes


def tune(
    generator: Generator, own: Attached, support: Support, images: Images,
    checkpoint: Path | None, batch: BatchSize, which: tuple[int | None, ...],
    accelerator: Accelerator | None = None, texts: Sequence[str | tuple[str, ...]] | None = None,
) -> list[float]:  # fmt: skip
    """Train the attached adaptation on `images` as in the paper, and return the losses.

    Every epoch has a new order and, if an image is not square, a new crop. `which` names the
    adapter: (None,), (label,) or (label, image). `texts` are the images' prompts, by default those
    of their classes.
    """
    options, schedule = support.recipe.adapt, generator.schedule()
    side, per_epoch = generator.side(support.recipe.resolution), options.per_epoch(len(images))
    shape, seed = generator.latent_shape(side), seed_for("adapt", support.recipe.seed, *which)
    words = Words(generator, texts or [support.prompt(y) for y in images.labels], seed)
    views = Views(generator, images, side, options, seed)

    def loss_at(step: int) -> Shares:
        epoch, part = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(seed_for(seed, "epoch", epoch))
        members = torch.randperm(len(images), generator=order)
        members = members[part * options.batch : (part + 1) * options.batch]
        # Drawn for the whole batch, so that noise does not depend on micro-batches.
        count, device = len(members), generator.device
        posterior, noise = (torch.randn(count, *shape, device=device) for _ in range(2))
        times = schedule.times(count, device)

        def share(rows: Any) -> Tensor:
            some = members[rows]
            own.select(some)
            read = generator.condition(words.at(some.tolist(), step), side)
            loss = diffusion_loss(
                lambda noisy, times: generator.predict(noisy, times, read),
                views.at(some.tolist(), epoch),
                (posterior[rows], noise[rows], times[rows]),
                schedule,
            )
            return loss * len(some) / count

        return Shares(count, share)

    name = "dataset"
    if which != (None,):
        name = ", image ".join([support.classes[which[0] or 0], *map(str, which[1:])])
    return fit(
        own.parameters, loss_at, steps=options.length(len(images)), lr=options.lr,
        warmup=options.warmup, betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay, eps=options.eps, clip=options.clip, seed=seed,
        checkpoint=checkpoint, batch=batch, accelerator=accelerator, rates=own.rates,
        description=f"adapt {name}",
    )  # fmt: skip
