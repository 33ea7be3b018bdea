"""Run a pipeline: the prompt encoded once, one seed per image, guidance on a share of the steps, a batch that fits the device."""

import gc
import os
import time
from functools import partial

import torch

EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")  # as encode_prompt orders them
PAIRED = ("prompt_embeds", "add_text_embeds", "add_time_ids")  # what a pipeline holds twice under guidance: without the text, and with it
SMALLEST, GAIN = 8, 1.05  # the search for a batch starts here, and goes on while twice the images are made this much faster


def embed(pipe, texts, options):
    """Return what the pipeline takes in place of the prompts `texts`, (texts, ...) tensors by argument: encoded once for many images."""
    guided = options.guidance > 1 and options.guided > 0
    values = pipe.encode_prompt(texts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=guided)
    return {name: value for name, value in zip(EMBEDDINGS, values) if value is not None}


def sample(pipe, text, seeds, options, resolution):
    """Return one uint8 RGB PIL image per seed, guided by `options.guidance` on the first `options.guided` of the steps.

    `text` is `embed`'s, of one prompt for all images or of one for each.
    """
    generators = [torch.Generator().manual_seed(s) for s in seeds]  # on the CPU: the same noise on every device
    part, each = {}, len(seeds) // len(text["prompt_embeds"])
    if 0 < options.guided < 1:
        paired = [name for name in PAIRED if name in pipe._callback_tensor_inputs]
        part = {"callback_on_step_end": partial(_end_guidance, options.guided), "callback_on_step_end_tensor_inputs": paired}
    return pipe(**text, num_images_per_prompt=each, num_inference_steps=options.steps, generator=generators,
                guidance_scale=options.guidance if options.guided else 1.0, height=resolution, width=resolution, **part).images


def _end_guidance(share, pipe, step, time, tensors):
    """Leave the unconditional half out of the pipeline's remaining steps once this share of them is done."""
    if step + 1 != round(share * pipe.num_timesteps) or not pipe.do_classifier_free_guidance:
        return {}
    pipe._guidance_scale = 1.0
    return {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}


class BatchSize:
    """How many images the device makes at once: `size`, which halves where memory ends; 0 is doubled while that pays.

    The images that a search makes are kept, so that it costs nothing. `notes` says what was found.
    """

    def __init__(self, size):
        self.searching, self.size, self.rate, self.notes = size == 0, size or SMALLEST, 0.0, []

    def run(self, make, count):
        """Return `make(n)`'s list of n images for an n of at most `count`, the size now; raises the device's error where one image is too many."""
        while True:
            n, start = min(self.size, count), time.perf_counter()
            try:
                images = make(n)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if n == 1 or not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
                    raise
                error.__traceback__ = None  # its frames hold the tensors that did not fit
            else:
                self._learn(n, time.perf_counter() - start)
                return images
            self.size, self.searching = n // 2, False
            self.notes.append(f"out of memory with {n} images at once, went on with {self.size}")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _learn(self, n, seconds):
        if not self.searching or n < self.size:
            return
        rate = n / seconds
        faster, self.rate = rate > GAIN * self.rate, max(rate, self.rate)
        self.size, self.searching = (2 * n, True) if faster else (n // 2, False)
        if not self.searching:
            self.notes.append(f"{self.size} images at once are fastest")


def save(image, path):
    """Write a PNG atomically."""
    image.save(f"{path}.part", format="PNG")
    os.replace(f"{path}.part", path)
