"""Stable Diffusion 1, 2 and XL: load a pipeline, encode prompts, make a sampler."""

import gc
from functools import lru_cache
from typing import Any, cast

import torch
from safetensors import SafetensorError

from ...errors import ConfigError, ModelMissingError, did_you_mean
from ..catalog import fetching, hub_id, local
from ..device import device

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def use_gpu(number):
    """Work on this GPU from here on, as CUDA counts; models that lie on another one are loaded
    again when they are asked for.
    """
    if number != torch.cuda.current_device():
        forget_generators()
        gc.collect()
        torch.cuda.empty_cache()  # else the memory stays this worker's
        torch.cuda.set_device(number)


def load_generator(name, dtype=torch.float32):
    """Return a Stable Diffusion pipeline (1, 2 or XL) in evaluation mode, frozen, without safety
    checker or progress bar.

    `name` is a row of hub.GENERATORS, a hub id or a folder in diffusers format; everything else
    follows from the pipeline's own configuration; the last two are kept. Raises ModelMissingError
    with the way to get it, ConfigError on a pipeline of another kind.
    """
    return _load_generator(name, dtype)


def forget_generators():
    """Drop the cached pipelines, so that their memory can be used by another."""
    _load_generator.cache_clear()


@lru_cache(maxsize=2)
def _load_generator(name, dtype):
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", between our own bars
    folder, hub = local(name, "generator"), hub_id(name)
    try:
        pipeline = diffusers.DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
        config = pipeline.load_config(folder or hub)
        kind = cast("dict[str, Any]", config)["_class_name"]  # a tuple only where more is asked for
        if kind not in PIPELINES:
            raise ConfigError(
                f"the generator {name!r} is a {kind}; accepted: {', '.join(PIPELINES)}"
            )
        checker = (
            {"safety_checker": None, "requires_safety_checker": False}
            if kind == PIPELINES[0]
            else {}
        )
        # No pickle.
        pipe = getattr(diffusers, kind).from_pretrained(
            folder or hub, dtype=dtype, use_safetensors=True, **checker
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelMissingError(
            f"the generator {name!r} cannot be loaded: {_way(name, folder)}, or set "
            "generator=<folder in diffusers format>; generator='mini' needs no download. Cause: "
            f"{error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, *text_encoders(pipe).values()):
        module.requires_grad_(False).eval()
    # The layout of its convolutions in half precision; two CPU cores gain nothing by it.
    if device().type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe.to(device())


def _way(name, folder):
    if folder:
        return f"its folder {folder} is damaged or in another format; copy or download it again"
    return f"where a network is at hand, {fetching(name)}; point HF_HOME to that cache"


def text_encoders(pipe):
    """Return the pipeline's text encoders by name: one, or Stable Diffusion XL's two."""
    names = ("text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def image_side(pipe, resolution):
    """Return the side of the generator's images in pixels: `resolution`, or for 0 the one that
    the pipeline was trained at.
    """
    return resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor


def tokenize(pipe, texts):
    """Return the token ids of `texts` for each text encoder, a tuple of tensors (texts, length)."""
    tokenizers = [
        getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in text_encoders(pipe)
    ]
    return tuple(
        t(
            texts,
            padding="max_length",
            max_length=t.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(pipe.device)
        for t in tokenizers
    )


def condition(pipe, tokens, side):
    """Return what the UNet is conditioned on: the texts' hidden states, and Stable Diffusion XL's
    pooled text and time ids.

    `tokens` is what `tokenize` returns; XL is told an uncropped image of side `side`, as it is when
    it samples. A prompt that stands in several rows, as all of a class's do, is encoded once.
    """
    encoders = list(text_encoders(pipe).values())
    distinct, rows = torch.unique(torch.stack(tokens, 1), dim=0, return_inverse=True)
    if len(encoders) == 1:
        return encoders[0](distinct[:, 0])[0][rows], None
    outputs = [
        encoder(ids, output_hidden_states=True)
        for encoder, ids in zip(encoders, distinct.unbind(1), strict=True)
    ]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)[rows]
    ids = torch.tensor([[side, side, 0, 0, side, side]], device=hidden.device, dtype=hidden.dtype)
    return hidden, {"text_embeds": outputs[-1][0][rows], "time_ids": ids.expand(len(hidden), -1)}


def make_scheduler(pipe, name):
    """Return a fresh sampler: the pipeline's own for 'pipeline', else a diffusers class on the same
    noise schedule.

    Raises ConfigError on an unknown name.
    """
    import diffusers

    if name == "pipeline":
        return type(pipe.scheduler).from_config(pipe.scheduler.config)
    known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if name not in known:
        raise ConfigError(
            f"generate.scheduler={name!r} is unknown; accepted: 'pipeline' or a scheduler class "
            f"of diffusers{did_you_mean(name, known)} For example DPMSolverMultistepScheduler."
        )
    # Made for pixels, DDIM and DDPM clip what they predict to -1 ... 1 by default, which is no
    # range of latents.
    return getattr(diffusers, name).from_config({"clip_sample": False, **pipe.scheduler.config})
