"""Image prompts: two IP-Adapters and the guidance of DIPSY (Boudier et al., BMVC 2025).

An IP-Adapter (Ye et al., 2023) adds to each layer of a UNet a second cross-attention, to an image's
features. DIPSY loads it twice: for an image to guide towards and one to guide away from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ...config import Generate, Recipe
from ...errors import ConfigError, ModelMissingError
from ..catalog import (
    IP_ADAPTERS,
    IP_ENCODER,
    IP_FILES,
    IP_WEIGHTS,
    absent,
    hub_of,
    local,
    misplaced,
)
from .base import Generator
from .unet import UNet

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

NONE, OWN, BOTH = (0, 0), (1, 0), (1, 1)  # which of the two adapters are active


class ImagePrompted(UNet):
    """A Stable Diffusion 1 pipeline with an IP-Adapter loaded twice."""

    @torch.no_grad()
    def look(self, pictures: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """Encode two image prompts for each image, (images, 2, tokens, D).

        These are the encoder's penultimate hidden states, as IP-Adapter Plus expects.
        """
        encoder, every = self.pipe.image_encoder, [one for pair in pictures for one in pair]
        pixels = self.pipe.feature_extractor(every, return_tensors="pt").pixel_values
        pixels = pixels.to(encoder.device, encoder.dtype)
        hidden = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return {"image_embeds": hidden.unflatten(0, (len(pictures), 2))}

    @torch.no_grad()
    def draw(
        self,
        text: Mapping[str, Tensor],
        noise: Sequence[torch.Generator],
        options: Generate,
        side: int,
        starts: Sequence[Image] | None = None,
    ) -> Tensor:
        """Sample as the pipeline does, guided by text and two images; `text` has a row for each."""
        pipe, scheduler = self.pipe, self.pipe.scheduler
        scheduler.set_timesteps(options.steps, device=pipe.device)
        latents = pipe.prepare_latents(
            len(noise), pipe.unet.config.in_channels, side, side, text["prompt_embeds"].dtype,
            pipe.device, list(noise),
        )  # fmt: skip
        more = pipe.prepare_extra_step_kwargs(list(noise), 0.0)
        for time in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, time)
            guided = self._guided(noisy, time, text, options)
            latents = scheduler.step(guided, time, latents, **more, return_dict=False)[0]
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        return pipe.image_processor.postprocess(image, output_type="pt")

    def _guided(self, noisy, time, text, options):
        """Return e0 + wt (e_text - e0) + w1 (e_own - e_text) + w2 (e_both - e_own).

        The index says what conditions the UNet: nothing, the prompt, the prompt and the first
        image, the prompt and both images. Without text guidance (wt = 1), e0 drops out.
        """
        words, away = text["prompt_embeds"], text.get("negative_prompt_embeds")

        def asked(prompts, which):
            self.pipe.set_ip_adapter_scale([options.image_scale * one for one in which])
            count = len(prompts)
            images = [torch.cat([one[:, None]] * count) for one in text["image_embeds"].unbind(1)]
            found = self.pipe.unet(
                torch.cat([noisy] * count),
                time,
                torch.cat(prompts),
                added_cond_kwargs={"image_embeds": images},
                return_dict=False,
            )
            return found[0].chunk(count)

        *empty, plain = asked([words] if away is None else [away, words], NONE)
        (own,), (both,) = asked([words], OWN), asked([words], BOTH)
        base = empty[0] + options.guidance * (plain - empty[0]) if empty else plain
        return base + options.image_own * (own - plain) + options.image_other * (both - own)


@contextmanager
def prompted_by_images(generator: Generator, name: str) -> Iterator[Generator]:
    """Yield the generator with the IP-Adapter `name` loaded twice; "" yields it unchanged.

    The pipeline's attention and modules are restored afterwards. Raises as `ip_adapter_folder`
    does.
    """
    if not name:
        yield generator
        return
    from diffusers.utils import logging
    from transformers import CLIPVisionModelWithProjection

    pipe, folder = generator.pipe, ip_adapter_folder(name)
    attention, extractor = dict(pipe.unet.attn_processors), pipe.feature_extractor
    heard = logging.get_verbosity()
    logging.set_verbosity_error()  # in half precision it warns of an empty list of modules
    try:
        try:
            encoder: Any = CLIPVisionModelWithProjection.from_pretrained(
                folder, subfolder=IP_ENCODER, dtype=pipe.unet.dtype, use_safetensors=True
            )
            pipe.register_modules(image_encoder=encoder.eval().to(pipe.device))
            place, _, file = IP_WEIGHTS.rpartition("/")
            pipe.load_ip_adapter(folder, subfolder=place, weight_name=[file] * 2)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise _missing(name, error) from error
        finally:
            logging.set_verbosity(heard)
        yield ImagePrompted(pipe)
    finally:
        pipe.unload_ip_adapter()
        pipe.unet.set_attn_processor(attention)
        pipe.register_modules(feature_extractor=extractor)


def ip_adapter_folder(name: str) -> Path:
    """Return the folder of an IP-Adapter, fetching it into the hub's cache if it is not there.

    `name` is a row of catalog.IP_ADAPTERS or a folder that holds catalog.IP_FILES. Raises
    ModelMissingError, which says how to get it.
    """
    from huggingface_hub import snapshot_download

    folder = local(name, "ip-adapter")
    try:
        if wrong := misplaced(name, "ip-adapter") or (folder and absent(name, "ip-adapter")):
            raise OSError(wrong)
        here = not absent(name, "ip-adapter")
        return folder or Path(
            snapshot_download(
                hub_of(name, "ip-adapter"), allow_patterns=[*IP_FILES], local_files_only=here
            )
        )
    except (OSError, ValueError) as error:
        raise _missing(name, error) from error


def _missing(name, error):
    way = absent(name, "ip-adapter") or "its files are damaged; copy or download them again"
    return ModelMissingError(
        f"the IP-Adapter {name!r} cannot be loaded: {way}, or set generate.image_prompts=<folder "
        f"with {', '.join(IP_FILES)}>. Cause: {error}"
    )


def require_image_prompts(recipe: Recipe) -> None:
    """Raise ConfigError if a recipe's settings rule out its image prompts; loads nothing."""
    options = recipe.generate
    name = options.image_prompts
    if not name:
        return
    if recipe.generator == "mini":
        raise ConfigError(
            f"method {recipe.method!r} prompts with images by the IP-Adapter {name!r}, and nobody "
            "has trained one for generator='mini', whose images have 32 pixels; take the profile "
            "'paper' or a Stable Diffusion 1.5, or leave the method out"
        )
    if options.strength or options.guided < 1:
        raise ConfigError(
            f"generate.image_prompts={name!r} goes with generate.strength=0 and generate.guided=1, "
            f"and they are {options.strength:g} and {options.guided:g}: images are prompts for "
            "sampling from noise, with all steps guided"
        )


def require_suits(generator: Generator, recipe: Recipe) -> None:
    """Raise ConfigError if an IP-Adapter's layers do not match the generator's UNet."""
    name, pipe = recipe.generate.image_prompts, generator.pipe
    wanted, found = [], []
    if type(pipe).__name__ == "StableDiffusionPipeline":
        for layer in pipe.unet.attn_processors:
            if not layer.endswith("attn1.processor"):
                keys = pipe.unet.get_submodule(layer.removesuffix(".processor")).to_k
                wanted.append([*keys.weight.shape])
    try:
        with safe_open(ip_adapter_folder(name) / IP_WEIGHTS, "pt") as file:
            names = [*file.keys()]
            if "image_proj.latents" in names:  # IP-Adapter Plus
                own = [n for n in names if n.endswith(".to_k_ip.weight")]
                own.sort(key=lambda n: int(n.split(".")[1]))
                found = [file.get_slice(n).get_shape() for n in own]
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise _missing(name, error) from error
    if not wanted or found != wanted:
        raise ConfigError(
            f"the IP-Adapter {name!r} does not suit generator={recipe.generator!r}: its layers are "
            f"another UNet's; {', '.join(IP_ADAPTERS)} is for 'sd1.5' and models tuned from it"
        )
