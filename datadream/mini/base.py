"""Train the embedded base models from scratch on printed characters.

They are an autoencoder, a text-to-image model and a CLIP. Each function trains one part, resumably
(its checkpoint lies in `work`), and saves it in the usual format: a `StableDiffusionPipeline`
folder and an open_clip model folder. `notebooks/mini_base.ipynb` calls these functions and
evaluates the models.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from .. import signals
from ..data import printed
from ..paths import paths, umask_modes
from ..store.files import write_json
from ..store.provenance import provenance
from ..training.loop import fit
from .quality import train_reader
from .tokens import clip_tokenizer, write_vocabulary

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TOKENS = 24  # context length of both text towers; the longest caption has 11
AUTOENCODER: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=8,
    sample_size=printed.SIDE,
    layers_per_block=1,
    norm_num_groups=8,
    block_out_channels=(16, 32, 64),
    mid_block_add_attention=False,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
)
TEXT: dict[str, Any] = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=TOKENS,
)
UNET: dict[str, Any] = dict(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    layers_per_block=1,
    block_out_channels=(64, 128),
    norm_num_groups=16,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    cross_attention_dim=128,
    attention_head_dim=2,
    use_linear_projection=True,
)
# Stable Diffusion's schedule with twice the final noise level: small latents keep their mean tone
# through the original's last step, and a generator that never sees pure noise cannot draw pure
# black or white.
NOISE: dict[str, Any] = dict(
    beta_start=0.00085,
    beta_end=0.02,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
)
CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": printed.SIDE,
        "patch_size": 8,
        "width": 128,
        "layers": 6,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": TOKENS,
        "width": 128,
        "heads": 4,
        "layers": 3,
        "hf_tokenizer_name": "local",
        "tokenizer_kwargs": {"clean": "lower"},
    },
}


def _parameters(**modules):
    return {
        f"{part}.{name}": p
        for part, module in modules.items()
        for name, p in module.named_parameters()
    }


def _mixed():
    """Compute matrix products in bfloat16 if the CPU supports it; weights stay in float32.

    With the instruction, bfloat16 is 1.6 times faster; without it, three times slower.
    """
    return torch.autocast(
        "cpu", torch.bfloat16, enabled=torch.cpu.get_capabilities().get("avx512_bf16", False)
    )


def _posterior(vae, images):
    """Return the posterior distribution of the images' latents."""
    return vae.encode(images).latent_dist


def _decoded(vae, latents):
    """Decode latents to images (B, 3, H, W)."""
    return vae.decode(latents).sample


def train_autoencoder(
    work: Path,
    bank: torch.Tensor,
    steps: int = 5000,
    batch: int = 64,
    lr: float = 2e-3,
    kl: float = 1e-4,
    seed: int = 0,
) -> list[float]:
    """Train and save the AutoencoderKL on strongly warped print; return the losses.

    The loss is L1 + 2 MSE + kl * KL; latents are scaled to unit standard deviation.
    """
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(seed)
    vae, latents = AutoencoderKL(**AUTOENCODER), UNET["in_channels"] * UNET["sample_size"] ** 2

    def loss_at(step: int) -> torch.Tensor:
        images = (
            2
            * printed.draw(bank, batch, warp=0.08, strokes=0.6, scale=0.25, shear=0.3, rotate=15)[0]
            - 1
        )
        with _mixed():
            posterior = _posterior(vae, images)
            out = _decoded(vae, posterior.sample())
        return (
            F.l1_loss(out.float(), images)
            + 2 * F.mse_loss(out.float(), images)
            + kl * posterior.kl().float().mean() / latents
        )

    losses = fit(
        _parameters(vae=vae),
        loss_at,
        steps=steps,
        lr=lr,
        warmup=100,
        weight_decay=0.0,
        clip=1.0,
        seed=seed,
        checkpoint=work / "autoencoder.safetensors",
        description="autoencoder",
    )
    with torch.no_grad():
        means = _posterior(vae, 2 * printed.draw(bank, 1024)[0] - 1).mean
    vae.register_to_config(scaling_factor=round(1 / means.std().item(), 4))
    vae.save_pretrained(work / "generator" / "vae")
    umask_modes(work / "generator" / "vae")
    return losses


def latent_pool(
    vae: AutoencoderKL, bank: torch.Tensor, size: int, seed: int
) -> tuple[torch.Tensor, ...]:
    """Encode `size` random prints: posterior means and deviations, labels, light flags.

    Means and deviations are (size, 8, 8, 8), labels and flags (size,).
    """
    torch.manual_seed(seed)
    means, stds, labels, lights = [], [], [], []
    with torch.no_grad():
        for _ in range(size // 500):
            images, label, light = printed.draw(bank, 500)
            posterior = _posterior(vae, 2 * images - 1)
            for out, value in zip(
                (means, stds, labels, lights),
                (posterior.mean, posterior.std, label, light),
                strict=True,
            ):
                out.append(value)
    return tuple(torch.cat(parts) for parts in (means, stds, labels, lights))


def text_encoder(folder: Path, tokenizer: Any) -> CLIPTextModel:
    """Convert the text tower of the trained open_clip model in `folder` to a CLIPTextModel.

    Stable Diffusion also uses CLIP's text encoder. `tokenizer` is the CLIPTokenizer of the same
    folder. Raises RuntimeError if the weights do not fit.
    """
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    source = load_file(folder / "open_clip_model.safetensors")
    model = CLIPTextModel(
        CLIPTextConfig(
            **TEXT,
            vocab_size=len(tokenizer),
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    target = {
        "embeddings.token_embedding.weight": source["token_embedding.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "final_layer_norm.weight": source["ln_final.weight"],
        "final_layer_norm.bias": source["ln_final.bias"],
    }
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for layer in range(TEXT["num_hidden_layers"]):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            target |= {
                f"{new}.{theirs}.{kind}": source[f"{old}.{ours}.{kind}"]
                for ours, theirs in names.items()
            }
            parts = source[f"{old}.attn.in_proj_{kind}"].chunk(3)
            target |= {
                f"{new}.self_attn.{part}_proj.{kind}": value
                for part, value in zip("qkv", parts, strict=True)
            }
    missing, unexpected = model.load_state_dict(target, strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise RuntimeError(
            f"the CLIP text tower in {folder} does not fit a CLIPTextModel: missing {missing}, "
            f"unexpected {unexpected}"
        )
    return model


def random_times(n: int) -> torch.Tensor:
    """Draw n timesteps, three quarters logit-normal around the middle and the rest uniform.

    The middle is where a sampler decides on shapes.
    """
    shares = torch.where(torch.rand(n) < 0.75, torch.sigmoid(torch.randn(n)), torch.rand(n))
    return (shares * NOISE["num_train_timesteps"]).long()


def train_generator(
    work: Path, bank: torch.Tensor, steps: int = 5500, seed: int = 0, **options: Any
) -> list[float]:
    """Train the UNet from scratch, and CLIP's text tower further, on captioned print.

    Saves the pipeline and returns the losses. Needs the autoencoder and the CLIP in `work`.
    `options` go to `denoise`.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    vae = AutoencoderKL.from_pretrained(work / "generator" / "vae").eval()
    tokenizer = clip_tokenizer(work / "clip", TOKENS)
    torch.manual_seed(seed)
    unet, text = UNet2DConditionModel(**UNET), text_encoder(work / "clip", tokenizer)
    return denoise(
        work, bank, vae, tokenizer, unet, text, "generator", steps=steps, seed=seed, **options
    )


def refine_generator(
    work: Path, bank: torch.Tensor, steps: int = 6000, seed: int = 0, **options: Any
) -> list[float]:
    """Train the generator of `work` for a second learning-rate schedule, on new prints.

    After the first alone, unguided samples are worse. Returns the losses; `options` go to
    `denoise`.
    """
    from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipe = StableDiffusionPipeline.from_pretrained(
        work / "generator", dtype=torch.float32, safety_checker=None
    )
    return denoise(
        work,
        bank,
        pipe.vae.eval(),
        pipe.tokenizer,
        pipe.unet.train(),
        pipe.text_encoder.train(),
        "generator_refined",
        steps=steps,
        seed=seed + 1,
        **options,
    )


def denoise(
    work: Path,
    bank: torch.Tensor,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    name: str,
    *,
    steps: int,
    seed: int,
    batch: int = 64,
    lr: float = 1e-3,
    pool: int = 60_000,
) -> list[float]:
    """Minimise the DDPM loss on a pool of captioned prints, and save the pipeline.

    10 % of the captions are empty (for classifier-free guidance), and 30 % name the tones. `name`
    is the checkpoint's. Returns the losses.
    """
    from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]

    means, stds, labels, lights = latent_pool(vae, bank, pool, seed)
    scale = vae.config["scaling_factor"]
    noise_scheduler: Any = DDPMScheduler(**NOISE)  # its annotation wants 32-bit times

    def loss_at(step: int) -> torch.Tensor:
        rows = torch.randint(pool, (batch,))
        kind = torch.rand(batch)
        texts = printed.captions(labels[rows], lights[rows], kind < 0.3)
        tokens = tokenizer(
            [t if k < 0.9 else "" for t, k in zip(texts, kind, strict=True)],
            padding="max_length",
            return_tensors="pt",
        ).input_ids
        latents = scale * (means[rows] + stds[rows] * torch.randn_like(means[rows]))
        noise, times = torch.randn_like(latents), random_times(batch)
        with _mixed():
            out = unet(
                noise_scheduler.add_noise(latents, noise, times),
                times,
                text(tokens).last_hidden_state,
            ).sample
        return F.mse_loss(out.float(), noise)

    losses = fit(
        _parameters(unet=unet, text=text),
        loss_at,
        steps=steps,
        lr=lr,
        warmup=200,
        weight_decay=1e-2,
        clip=1.0,
        seed=seed,
        checkpoint=work / f"{name}.safetensors",
        description=name,
    )
    save_generator(work / "generator", vae, text, tokenizer, unet)
    return losses


def save_generator(
    folder: Path,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write a StableDiffusionPipeline folder with a PNDM scheduler, the paper's sampler.

    The UNet is stored in half precision, which halves the repository's largest file; it is loaded
    and used in float32.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    for part in (unet, vae):  # otherwise its configuration keeps the path it was loaded from
        part.register_to_config(_name_or_path="")
    scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    parts: dict[str, Any] = {  # any scheduler and None are accepted, though not by the annotations
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "unet": unet.half(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    umask_modes(folder)


def train_clip(
    work: Path,
    bank: torch.Tensor,
    steps: int = 6000,
    batch: int = 144,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train and save the open_clip model with the symmetric contrastive loss; return the losses.

    A batch holds each of the 36 characters four times, and each distinct caption once (36 plain
    ones, or 72 with tones, in alternate batches); images with the same caption share a target.
    """
    from open_clip import CLIP as Model

    folder = work / "clip"
    write_vocabulary(folder)
    tokenizer = clip_tokenizer(folder, TOKENS)
    torch.manual_seed(seed)
    text = {
        key: value
        for key, value in CLIP["text_cfg"].items()
        if not key.startswith(("hf_", "tokenizer_"))
    }
    model = Model(**dict(CLIP, text_cfg=dict(text, vocab_size=len(tokenizer))))
    labels = torch.arange(batch) % len(printed.CHARACTERS)

    def loss_at(step: int) -> torch.Tensor:
        images, _, light = printed.draw(bank, batch, labels=labels, **printed.READING)
        texts = printed.captions(labels, light, torch.full((batch,), step % 2 == 1))
        unique = sorted(set(texts))
        target = torch.tensor([unique.index(t) for t in texts])
        tokens = tokenizer(unique, padding="max_length", return_tensors="pt").input_ids
        with _mixed():
            pictures, words, scale = model(images, tokens)
        logits = scale.clamp(max=100.0) * pictures.float() @ words.float().T
        shared = F.one_hot(target, len(unique)).float()
        to_image = -(F.log_softmax(logits.T, 1) * (shared / shared.sum(0)).T).sum(1).mean()
        return 0.5 * (F.cross_entropy(logits, target) + to_image)

    losses = fit(
        _parameters(clip=model),
        loss_at,
        steps=steps,
        lr=lr,
        warmup=200,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        clip=1.0,
        seed=seed,
        checkpoint=work / "clip.safetensors",
        description="CLIP",
    )
    save_clip(folder, model, tokenizer)
    return losses


def save_clip(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Write an open_clip model folder (weights, JSON config, tokenizer) for `local-dir:`."""
    from safetensors.torch import save_file

    text = dict(CLIP["text_cfg"], vocab_size=len(tokenizer))
    preprocess = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": dict(CLIP, text_cfg=text), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    tokenizer.save_pretrained(folder)
    umask_modes(folder)


# In this order: the generator builds on the autoencoder and the CLIP's text tower.
PARTS = {
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "generator": train_generator,
    "generator_refined": refine_generator,
    "reader": train_reader,
}
SMOKE = {
    part: {"steps": 3} | ({"pool": 500} if part.startswith("generator") else {}) for part in PARTS
}
SHIPPED = ("generator", "clip", "reader.safetensors", "training.json")


def prepare(retrain: bool = False, smoke: bool = False, seed: int = 0) -> Path:
    """Return the folder of the models to evaluate: those shipped, or newly trained ones.

    `retrain` first trains everything from scratch with `seed` and ships it; a killed training
    resumes. Its working folder under the store is removed at the end, so that the next one starts
    afresh. `smoke` trains everything for a few steps in a temporary folder.
    """
    if smoke:
        work = Path(tempfile.mkdtemp())
        train_all(work, seed, **SMOKE)
        return work
    if retrain:
        work = paths()["training"] / f"seed {seed}"
        train_all(work, seed)
        ship(work)
        shutil.rmtree(work)
    return paths()["mini"]


def train_all(work: Path, seed: int = 0, **options: dict[str, Any]) -> None:
    """Train every part into `work`, skipping those already done.

    training.json records steps, seconds, losses and device. `options` gives keyword arguments by
    part. A killed training resumes from its checkpoint. Raises Stopped on SIGTERM,
    KeyboardInterrupt on Ctrl-C.
    """
    work.mkdir(parents=True, exist_ok=True)
    file, bank = work / "training.json", printed.glyph_bank()
    notes = json.loads(file.read_text()) if file.exists() else {}
    with signals.interruptible():
        for part, train in PARTS.items():
            if part not in notes:
                start = time.perf_counter()
                losses = train(work, bank, seed=seed, **options.get(part, {}))
                notes[part] = note(losses, time.perf_counter() - start, seed)
                write_json(file, notes)


def note(losses: Sequence[float], seconds: float, seed: int, points: int = 50) -> dict[str, Any]:
    """Summarise the training of a part for training.json, with its loss as `points` means."""
    size = -(-len(losses) // points)
    groups = [losses[i : i + size] for i in range(0, len(losses), size)]
    return {
        "step": [min((i + 1) * size, len(losses)) for i in range(len(groups))],
        "loss": [sum(g) / len(g) for g in groups],
        "steps": len(losses),
        "seconds": round(seconds),
        "seed": seed,
        "device": provenance()["device"],
        "torch": provenance()["versions"]["torch"],
    }


def ship(work: Path) -> None:
    """Copy a finished training from `work` into the package, replacing what shipped before."""
    for name in SHIPPED:
        source, target = work / name, paths()["mini"] / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


def load_training(folder: Path) -> dict[str, dict[str, Any]]:
    """Load training.json: part -> step, loss, steps, seconds, seed, device, torch."""
    return json.loads((folder / "training.json").read_text())
