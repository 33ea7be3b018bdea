"""Stable Diffusion 1, 2 and XL: a UNet on a DDPM schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...config import Generate
from ...errors import ConfigError, did_you_mean
from .base import Generator

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

# In the order that `encode_prompt` returns them.
EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
# The tensors that a pipeline doubles under guidance: unconditional, then conditional.
PAIRED = ("prompt_embeds", "add_text_embeds", "add_time_ids")


class DDPM:
    """The schedule of Ho et al. (2020), with uniform timesteps; predicts noise or velocity."""

    def __init__(self, config: dict[str, Any], scaling: float):
        from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]

        self.scheduler: Any = DDPMScheduler.from_config(config)
        self.scaling = scaling

    def latents(self, sample: Tensor) -> Tensor:
        """Scale a sample of the autoencoder's posterior to about unit variance."""
        return sample * self.scaling

    def times(self, count: int, device: torch.device) -> Tensor:
        """Draw `count` timesteps uniformly."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), device=device)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the latents noised to the timesteps `times`."""
        return self.scheduler.add_noise(latents, noise, times)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the noise, or the velocity if the model predicts that.

        Raises ConfigError on another prediction type.
        """
        kind = self.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"the generator predicts {kind!r}; accepted: 'epsilon' (the paper's) and "
                "'v_prediction'"
            )
        return noise if kind == "epsilon" else self.scheduler.get_velocity(latents, noise, times)


class UNet(Generator):
    """A Stable Diffusion pipeline: version 1, 2 or XL."""

    network_name: ClassVar[str] = "unet"
    targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")  # paper, section 3.2
    text_targets: ClassVar[Sequence[str]] = ("q_proj", "k_proj", "v_proj", "out_proj")

    def text_encoders(self) -> dict[str, nn.Module]:
        """Return the text encoders by the pipeline's names: one, or Stable Diffusion XL's two."""
        found = {n: getattr(self.pipe, n, None) for n in ("text_encoder", "text_encoder_2")}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def side(self, resolution: int = 0) -> int:
        """Return the images' side in pixels: `resolution`, or for 0 the model's native one."""
        return resolution or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    @property
    def unit(self) -> int:
        """The number of pixels that a side must be a multiple of."""
        return math.lcm(8, self.pipe.vae_scale_factor)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) in [-1, 1] to mean and standard deviation, (B, 2, C, h, w)."""
        vae = self.pipe.vae
        posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
        # float32, since the ends of the noise schedule do not fit into half precision.
        return torch.stack([posterior.mean, posterior.std], 1).float()

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of an image of `side` pixels."""
        small = side // self.pipe.vae_scale_factor
        return self.pipe.vae.config.latent_channels, small, small

    def schedule(self) -> DDPM:
        """Return the noise schedule that the model was trained with."""
        return DDPM(self.pipe.scheduler.config, self.pipe.vae.config.scaling_factor)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Return the token ids for each text encoder, a tuple of tensors (texts, length)."""
        names = [name.replace("text_encoder", "tokenizer") for name in self.text_encoders()]
        tokenizers = [getattr(self.pipe, name) for name in names]
        return tuple(
            t(
                list(texts),
                padding="max_length",
                max_length=t.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self.pipe.device)
            for t in tokenizers
        )

    def condition(
        self, tokens: tuple[Tensor, ...], side: int
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the texts' hidden states, and Stable Diffusion XL's pooled text and time ids.

        Each distinct prompt is encoded once. The time ids say "uncropped, `side` pixels", as in
        XL's sampling.
        """
        encoders: list[Any] = list(self.text_encoders().values())
        distinct, rows = torch.unique(torch.stack(tokens, 1), dim=0, return_inverse=True)
        if len(encoders) == 1:
            return encoders[0](distinct[:, 0])[0][rows], None
        outputs = [
            encoder(ids, output_hidden_states=True)
            for encoder, ids in zip(encoders, distinct.unbind(1), strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)[rows]
        ids = torch.tensor(
            [[side, side, 0, 0, side, side]], device=hidden.device, dtype=hidden.dtype
        )
        extra = {"text_embeds": outputs[-1][0][rows], "time_ids": ids.expand(len(hidden), -1)}
        return hidden, extra

    def predict(self, noisy: Tensor, times: Tensor, condition: Any) -> Tensor:
        """Return the UNet's prediction, of the shape of `noisy`."""
        text, extra = condition
        unet = self.pipe.unet
        return unet(noisy.to(unet.dtype), times, text, added_cond_kwargs=extra).sample

    def scheduler(self, name: str) -> Any:
        """Return a fresh sampler: the pipeline's own for 'pipeline', else a class of diffusers.

        Both keep the pipeline's noise schedule. Raises ConfigError on an unknown name.
        """
        import diffusers

        own = self.pipe.scheduler
        if name == "pipeline":
            return type(own).from_config(own.config)
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        if name not in known:
            raise ConfigError(
                f"generate.scheduler={name!r} is unknown; accepted: 'pipeline' or a scheduler "
                f"class of diffusers{did_you_mean(name, known)} For example "
                "DPMSolverMultistepScheduler."
            )
        # DDIM and DDPM were made for pixels: by default they clip predictions to [-1, 1], a range
        # that latents exceed.
        return getattr(diffusers, name).from_config({"clip_sample": False, **own.config})

    def embed(self, texts: Sequence[str], options: Generate) -> dict[str, Tensor]:
        """Encode prompts once for many images, as tensors with a row per prompt.

        They are named after the pipeline's arguments.
        """
        values = self.pipe.encode_prompt(
            list(texts),
            device=self.pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=options.guidance > 1 and options.guided > 0,
        )
        found = zip(EMBEDDINGS, values, strict=False)  # one text encoder has no pooled embeddings
        return {name: value for name, value in found if value is not None}

    def draw(
        self,
        text: Mapping[str, Tensor],
        noise: Sequence[torch.Generator],
        options: Generate,
        side: int,
        starts: Sequence[Image] | None = None,
    ) -> Tensor:
        """Sample one image per noise generator, (B, 3, S, S) in [0, 1].

        Guidance acts on the first `options.guided` (a fraction) of the steps. `text` and `starts`
        as in `Generator.draw`.
        """
        pipe, place, part = self.pipe, {"height": side, "width": side}, {}
        if starts is not None:
            pipe, place = self._from_images(), {"image": starts, "strength": options.strength}
        if 0 < options.guided < 1:
            part = {
                "callback_on_step_end": partial(_end_guidance, options.guided),
                "callback_on_step_end_tensor_inputs": [
                    name for name in PAIRED if name in pipe._callback_tensor_inputs
                ],
            }
        return pipe(
            **text,
            num_images_per_prompt=len(noise) // len(text["prompt_embeds"]),
            num_inference_steps=options.steps,
            generator=list(noise),
            output_type="pt",
            guidance_scale=options.guidance if options.guided else 1.0,
            **place,
            **part,
        ).images

    def _from_images(self):
        """Return the image-to-image pipeline on the same networks."""
        import diffusers

        kind = diffusers.AutoPipelineForImage2Image  # pyright: ignore[reportPrivateImportUsage]
        twin = kind.from_pipe(self.pipe)
        twin.set_progress_bar_config(disable=True)
        return twin


def _end_guidance(share, pipe, step, time, tensors):
    """Drop the unconditional half of a pipeline's batch after this fraction of the steps."""
    last = max(1, round(share * pipe.num_timesteps))
    if step + 1 != last or not pipe.do_classifier_free_guidance:
        return {}
    pipe._guidance_scale = 1.0
    return {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}
