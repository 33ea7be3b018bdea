"""Synthesise a dataset with the base or the adapted generator, one seed per image (paper, section 3.3)."""

import dataclasses
import json
import math
import os
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from tqdm.auto import tqdm

from .adapt import adapt, adapter_inputs
from .config import ConfigError, as_dict, key
from .data import prompt
from .images import Images, class_folders
from .models import dtype_for, identity, image_side, load_generator, make_scheduler, merged_lora
from .training import seed_for


PAIRED = ("prompt_embeds", "add_text_embeds", "add_time_ids")  # what a pipeline holds twice under guidance: without the text, and with it


def image_seed(seed, label, index):
    """Return the seed of image `index` of class `label`: it depends on nothing else, so neither batch size nor order matters."""
    return seed_for("image", seed, label, index)


def sample(pipe, texts, seeds, options, resolution):
    """Return one uint8 RGB PIL image per prompt and seed, guided by `options.guidance` on the first `options.guided` of the steps."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]  # on the CPU: the same noise on every device
    part = {}
    if 0 < options.guided < 1:
        paired = [name for name in PAIRED if name in pipe._callback_tensor_inputs]
        part = {"callback_on_step_end": partial(_end_guidance, options.guided), "callback_on_step_end_tensor_inputs": paired}
    return pipe(texts, num_inference_steps=options.steps, guidance_scale=options.guidance if options.guided else 1.0, generator=generators,
                height=resolution, width=resolution, **part).images


def _end_guidance(share, pipe, step, time, tensors):
    """Leave the unconditional half out of the pipeline's remaining steps once this share of them is done."""
    if step + 1 != round(share * pipe.num_timesteps) or not pipe.do_classifier_free_guidance:
        return {}
    pipe._guidance_scale = 1.0
    return {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}


def _save(image, path):
    image.save(f"{path}.part", format="PNG")
    os.replace(f"{path}.part", path)


def sample_class(pipe, recipe, text, label, folder, bar):
    """Write the class's images that are missing in `folder`, in batches of fixed membership so that a resumed run is the same."""
    options = recipe.generate
    for start in range(0, options.images, options.batch):
        indices = range(start, min(start + options.batch, options.images))
        files = [folder / f"{i:06d}.png" for i in indices]
        if not all(f.exists() for f in files):
            seeds = [image_seed(recipe.seed, label, i) for i in indices]
            side = image_side(pipe, recipe.resolution)
            for image, file in zip(sample(pipe, [text] * len(seeds), seeds, options, side), files):
                _save(image, file)
        bar.update(len(files))


def adapted_labels(recipe, dataset):
    """Return which adapters a method needs: none, one for the dataset (None), or one per class index."""
    return {"base": [], "dataset": [None], "class": list(range(len(dataset.classes)))}[recipe.row.generator]


def check(recipe):
    """Raise ConfigError on a sampler or a resolution that the generator cannot use, before anything is trained for it."""
    pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    make_scheduler(pipe, recipe.generate.scheduler)
    unit = math.lcm(8, pipe.vae_scale_factor)  # what the pipeline accepts
    if recipe.resolution % unit:
        raise ConfigError(f"resolution={recipe.resolution} does not suit the generator {recipe.generator!r}; give a multiple of {unit}")


def generation_inputs(recipe, dataset):
    """Return what a synthetic set depends on; the batch size is left out, since it changes no image's seed."""
    options = {k: v for k, v in dataclasses.asdict(recipe.generate).items() if k != "batch"}
    adapters = [key("adapt", **adapter_inputs(recipe, dataset, label)) for label in adapted_labels(recipe, dataset)]
    return {"generator": identity(recipe.generator, "generator"), "generate": options, "resolution": recipe.resolution, "precision": recipe.precision,
            "prompts": [prompt(dataset.noun, name) for name in dataset.classes], "seed": recipe.seed, "adapters": adapters}


def generate(recipe, dataset, shots, store):
    """Return the artifact folder `train/<class>/<index>.png` with `metadata.jsonl` and `classes.json`, adapting first if needed.

    Image i of a class keeps its seed whatever the batch size; images that a killed run left are kept. Raises ConfigError on a
    sampler or a resolution that the generator cannot use, before anything is adapted.
    """
    inputs = generation_inputs(recipe, dataset)
    kind, folders = recipe.row.generator, class_folders(dataset.classes)
    if store.done(key("generate", **inputs)):
        return store.folder(key("generate", **inputs))
    check(recipe)
    labels = adapted_labels(recipe, dataset)
    adapters = dict(zip(labels, [adapt(recipe, dataset, shots, store, label) for label in labels]))

    def build(root):
        rows = []
        with tqdm(total=len(folders) * recipe.generate.images, desc=f"generate {kind}", leave=False, mininterval=2) as bar:
            for label, (name, folder) in enumerate(zip(dataset.classes, folders)):
                adapter = adapters.get(label, adapters.get(None))
                (root / "train" / folder).mkdir(parents=True, exist_ok=True)
                text = prompt(dataset.noun, name)
                with adapted(recipe, adapter) as pipe:
                    sample_class(pipe, recipe, text, label, root / "train" / folder, bar)
                rows += [{"file_name": f"{folder}/{i:06d}.png", "prompt": text, "class": name, "label": label,
                          "seed": image_seed(recipe.seed, label, i), "adapter": adapter.name if adapter else None}
                         for i in range(recipe.generate.images)]
        (root / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / "classes.json").write_text(json.dumps(dict(zip(folders, dataset.classes)), indent=1))

    return store.make(key("generate", **inputs), inputs, build, recipe=as_dict(recipe))  # what the key's digests stand for, for the card


@contextmanager
def adapted(recipe, adapter):
    """Yield the recipe's pipeline and sampler with the LoRA of the artifact folder `adapter` in its weights (None: the base)."""
    pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    own, pipe.scheduler = pipe.scheduler, make_scheduler(pipe, recipe.generate.scheduler)
    try:
        with nullcontext() if adapter is None else merged_lora(pipe, adapter):
            yield pipe
    finally:
        pipe.scheduler = own


def read(folder):
    """Return the images of a generated artifact as `data.Images`, in the order of its metadata."""
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    return Images(tuple(str(folder / "train" / row["file_name"]) for row in rows), tuple(row["label"] for row in rows))
