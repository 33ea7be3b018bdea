"""LoRA-tune the generator on the few shots, for one class or for the whole dataset (paper,
section 3.2).
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from ..data.datasets import few_shots, prompt
from ..data.images import fingerprint
from ..models.device import dtype_for
from ..models.generators.latents import Views, prediction_target
from ..models.generators.lora import add_generator_lora, remove_lora, save_generator_lora
from ..models.generators.unet import condition, image_side, load_generator, tokenize
from ..models.identity import identity
from ..seeds import seed_for
from ..store.keys import key
from ..training.batch_size import BatchSize
from ..training.distributed import ALONE
from ..training.loop import fit


def diffusion_losses(
    pipe, noise_scheduler, moments, tokens, side, micro=0, places=None, batch=None
):
    """Yield the DDPM loss at uniform timesteps (paper, eq. 2) in parts of `micro` images (0: all at
    once), which sum to it.

    The images have `side` pixels and are given as `latent_moments`, their prompts as `tokenize`
    does. The latent is sampled from the posterior; the target follows the scheduler's prediction
    type. Where they are only these `places` of a step's `batch`, the parts sum to their share of
    its loss, with the noise that they have in it. Raises ConfigError on a target that is neither
    noise nor velocity.
    """
    mean, std = moments.unbind(1)
    if places is None or batch is None:  # all images of the step are here
        batch, places = len(mean), slice(None)
    latents = (
        mean + std * torch.randn(batch, *mean.shape[1:], device=mean.device)[places]
    ) * pipe.vae.config.scaling_factor
    noise = torch.randn(batch, *mean.shape[1:], device=mean.device)[places]
    times = torch.randint(
        noise_scheduler.config.num_train_timesteps, (batch,), device=latents.device
    )[places]
    noisy = noise_scheduler.add_noise(latents, noise, times).to(pipe.unet.dtype)
    target = prediction_target(noise_scheduler, latents, noise, times)
    for rows in torch.arange(len(latents), device=latents.device).split(micro or len(latents)):
        text, extra = condition(pipe, tuple(ids[rows] for ids in tokens), side)
        predicted = pipe.unet(noisy[rows], times[rows], text, added_cond_kwargs=extra).sample
        yield F.mse_loss(predicted.float(), target[rows].float()) * len(rows) / batch


def adapter_inputs(recipe, dataset, label=None, image=None):
    """Return what an adapter depends on: model, options, prompts, seed, and the few shots' pixels.

    `label` chooses one class's images (DataDream_cls), with `image` one of them (LoFT); None takes
    all (DataDream_dset).
    """
    shots = few_shots(dataset, recipe.shots, recipe.seed, label)
    names = dataset.classes if label is None else (dataset.classes[label],)
    # These save memory only.
    options = {
        k: v
        for k, v in dataclasses.asdict(recipe.adapt).items()
        if k not in ("micro", "checkpointing")
    }
    return {
        "generator": identity(recipe.generator, "generator"),
        "adapt": options,
        "seed": recipe.seed,
        "label": label,
        "image": image,
        "resolution": recipe.resolution,
        "precision": str(dtype_for(recipe.precision, training=True)),
        "prompts": [prompt(dataset.noun, n) for n in names],
        "shots": fingerprint(shots if image is None else shots.pick([image])),
    }


def adapt(recipe, dataset, shots, store, label=None, image=None, team=ALONE):
    """Train one adapter and return its artifact folder, which `load_lora_weights` reads; `label`
    and `image` as for `adapter_inputs`.

    A killed training goes on from its last checkpoint to the same bytes. All processes of a `team`
    call this at once, and their sums differ from those of one process in their rounding. Raises
    DivergedError on a loss that is not finite.
    """
    inputs, micro = (
        adapter_inputs(recipe, dataset, label, image),
        BatchSize(recipe.adapt.micro or recipe.adapt.batch),
    )
    which = (label,) if image is None else (label, image)

    def build(folder):
        checkpoint = folder / "checkpoint.safetensors"
        rows = [i for i, y in enumerate(shots.labels) if label in (None, y)]
        rows = rows if image is None else [rows[image]]
        pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=True))
        torch.manual_seed(seed_for("adapter", recipe.seed, *which))
        try:
            parameters = add_generator_lora(pipe, recipe.adapt)
            if recipe.adapt.checkpointing:
                pipe.unet.enable_gradient_checkpointing()
            train_adapter(
                pipe, parameters, recipe, dataset, shots.pick(rows), checkpoint, micro, which, team
            )
            if team.leads:
                save_generator_lora(pipe, folder, recipe.adapt)
                checkpoint.unlink(missing_ok=True)
        finally:
            pipe.unet.disable_gradient_checkpointing()
            remove_lora(pipe)

    return team.make(store, key("adapt", **inputs), inputs, build, batches=micro.notes)


def train_adapter(pipe, parameters, recipe, dataset, images, checkpoint, micro, which, team=ALONE):
    """Run the paper's optimisation of the attached LoRA on `images`; every epoch is a new order
    and, where there is room, a new crop.

    `which` names the adapter: (None,), (label,) or (label, image); of a `team` each process
    computes its share of a step's images.
    """
    from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]

    options = recipe.adapt
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    name = (
        "dataset"
        if which == (None,)
        else ", image ".join([dataset.classes[which[0]], *map(str, which[1:])])
    )
    tokens = tokenize(pipe, [prompt(dataset.noun, dataset.classes[y]) for y in images.labels])
    side, per_epoch = image_side(pipe, recipe.resolution), math.ceil(len(images) / options.batch)
    seed = seed_for("adapt", recipe.seed, *which)
    views = Views(pipe, images, side, options, seed)

    def loss_at(step):
        epoch, part = divmod(step, per_epoch)
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(seed_for(seed, "epoch", epoch))
        )
        batch = order[part * options.batch : (part + 1) * options.batch]
        places = team.share(torch.arange(len(batch)))
        if not len(places):  # an epoch's last batch may be smaller than the team
            return []
        rows = batch[places]
        ids = tuple(part[rows.to(part.device)] for part in tokens)
        return diffusion_losses(
            pipe,
            noise_scheduler,
            views.at(rows.tolist(), epoch),
            ids,
            side,
            micro.size,
            places,
            len(batch),
        )

    return fit(
        parameters,
        loss_at,
        steps=options.epochs * per_epoch,
        lr=options.lr,
        warmup=options.warmup,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
        eps=options.eps,
        clip=options.clip,
        seed=seed,
        checkpoint=checkpoint,
        halve=micro.halve,
        team=team,
        description=f"adapt {name}",
    )
