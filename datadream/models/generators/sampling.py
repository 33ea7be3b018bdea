"""Run a pipeline: the prompt encoded once, one seed per image, guidance on a share of the steps,
a batch that fits the device.
"""

import math
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from ...errors import ConfigError
from ...training.loop import DivergedError
from ..device import dtype_for
from .lora import merged_lora
from .unet import load_generator, make_scheduler

BACKEND = "inductor"
# As encode_prompt orders them.
EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
# What a pipeline holds twice under guidance: without the text, and with it.
PAIRED = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def embed(pipe, texts, options):
    """Return what the pipeline takes in place of the prompts `texts`, (texts, ...) tensors by
    argument: encoded once for many images.
    """
    guided = options.guidance > 1 and options.guided > 0
    values = pipe.encode_prompt(
        texts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    found = zip(EMBEDDINGS, values, strict=False)  # one text encoder has no pooled embeddings
    return {name: value for name, value in found if value is not None}


def sample(pipe, text, seeds, options, resolution, starts=None):
    """Return one uint8 RGB PIL image per seed, guided by `options.guidance` on the first
    `options.guided` of the steps.

    `text` is `embed`'s, of one prompt for all images or of one for each. `starts`, square PIL
    images, are what `options.strength` of the schedule's noise is added to (Meng et al., 2022,
    SDEdit); None starts from pure noise. Raises DivergedError on NaN.
    """
    # On the CPU: the same noise on every device.
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    part, each = {}, len(seeds) // len(text["prompt_embeds"])
    place = {"height": resolution, "width": resolution}
    if starts is not None:
        pipe, place = _from_images(pipe), {"image": starts, "strength": options.strength}
    if 0 < options.guided < 1:
        paired = [name for name in PAIRED if name in pipe._callback_tensor_inputs]
        part = {
            "callback_on_step_end": partial(_end_guidance, options.guided),
            "callback_on_step_end_tensor_inputs": paired,
        }
    images = pipe(
        **text,
        num_images_per_prompt=each,
        num_inference_steps=options.steps,
        generator=generators,
        output_type="pt",
        guidance_scale=options.guidance if options.guided else 1.0,
        **place,
        **part,
    ).images
    broken = [
        seed for seed, image in zip(seeds, images, strict=True) if not torch.isfinite(image).all()
    ]
    if broken:
        raise DivergedError(
            f"the generator made NaN for {len(broken)} of {len(seeds)} images, the first with "
            f"seed {broken[0]}, which would be black; half precision may be too little for it, "
            "precision='float32' is not"
        )
    return pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(images))


def _from_images(pipe):
    """Return the pipeline's twin that starts from images, on the same networks."""
    from diffusers import AutoPipelineForImage2Image  # pyright: ignore[reportPrivateImportUsage]

    twin = AutoPipelineForImage2Image.from_pipe(pipe)
    twin.set_progress_bar_config(disable=True)
    return twin


def _end_guidance(share, pipe, step, time, tensors):
    """Leave the unconditional half out of the pipeline's remaining steps once this share of them
    is done.
    """
    if (
        step + 1 != max(1, round(share * pipe.num_timesteps))
        or not pipe.do_classifier_free_guidance
    ):
        return {}
    pipe._guidance_scale = 1.0
    return {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}


def require_sampler(recipe):
    """Raise ConfigError on a sampler or a resolution that the generator cannot use, before
    anything is trained for it.
    """
    pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    make_scheduler(pipe, recipe.generate.scheduler)
    unit = math.lcm(8, pipe.vae_scale_factor)  # what the pipeline accepts
    if recipe.resolution % unit:
        raise ConfigError(
            f"resolution={recipe.resolution} does not suit the generator {recipe.generator!r}; "
            f"give a multiple of {unit}"
        )


@contextmanager
def adapted(recipe, *adapters):
    """Yield the recipe's pipeline and sampler with the LoRA of the artifact folders in its
    weights, in equal shares (none: the base).
    """
    pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    own, pipe.scheduler = pipe.scheduler, make_scheduler(pipe, recipe.generate.scheduler)
    try:
        with (
            merged_lora(pipe, *adapters),
            compiled(pipe.unet) if recipe.generate.compile else nullcontext(),
        ):
            yield pipe
    finally:
        pipe.scheduler = own


@contextmanager
def compiled(network):
    """Let `network` run compiled: once for the process, since adapters that are merged into its
    weights change no shape.
    """
    if not hasattr(network, "compiled_once"):
        network.compiled_once = torch.compile(network._call_impl, backend=BACKEND)
    network._compiled_call_impl = network.compiled_once
    try:
        yield
    finally:
        network._compiled_call_impl = None
