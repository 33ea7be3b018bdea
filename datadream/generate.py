"""Synthesise a dataset with the base or the adapted generator, one seed per image (paper, section 3.3)."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from tqdm.auto import tqdm

from .adapt import adapt, adapter_inputs
from .config import ConfigError, as_dict, key
from .data import prompt
from .images import Images, class_folders
from .memory import BatchSize
from .models import dtype_for, identity, image_side, load_generator, make_scheduler, merged_lora
from .sampling import compiled, embed, sample, save
from .training import seed_for


def image_seed(seed, label, index):
    """Return the seed of image `index` of class `label`: it depends on nothing else, so neither batch size nor order matters."""
    return seed_for("image", seed, label, index)


def sample_class(pipe, recipe, text, label, folder, bar, size):
    """Write the class's images that are missing in `folder`, in batches of fixed membership so that a resumed run is the same.

    One batch is written while the next is sampled. `size` is a `BatchSize`, shared by the classes.
    """
    options, side, start, writing = recipe.generate, image_side(pipe, recipe.resolution), 0, []
    words = embed(pipe, [text], options)

    def make(count):
        return sample(pipe, words, [image_seed(recipe.seed, label, i) for i in range(start, start + count)], options, side)

    with ThreadPoolExecutor(1) as writer:
        while start < options.images:
            count = min(size.size, options.images - start)
            files = [folder / f"{i:06d}.png" for i in range(start, start + count)]
            if not all(f.exists() for f in files):
                images = size.run(make, count)
                count = len(images)
                for written in writing:  # at most one batch waits; an error of the writer ends the run here
                    written.result()
                writing = [writer.submit(save, image, file) for image, file in zip(images, files)]
            bar.update(count)
            start += count
        for written in writing:
            written.result()


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
    """Return what a synthetic set depends on; the batch size and compilation are left out, since they change no
    image's noise."""
    options = {k: v for k, v in dataclasses.asdict(recipe.generate).items() if k not in ("batch", "compile")}
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

    size = BatchSize(recipe.generate.batch)

    def build(root):
        rows = []
        with tqdm(total=len(folders) * recipe.generate.images, desc=f"generate {kind}", leave=False, mininterval=2) as bar:
            for label, (name, folder) in enumerate(zip(dataset.classes, folders)):
                adapter = adapters.get(label, adapters.get(None))
                (root / "train" / folder).mkdir(parents=True, exist_ok=True)
                text = prompt(dataset.noun, name)
                with adapted(recipe, adapter) as pipe:
                    sample_class(pipe, recipe, text, label, root / "train" / folder, bar, size)
                rows += [{"file_name": f"{folder}/{i:06d}.png", "prompt": text, "class": name, "label": label,
                          "seed": image_seed(recipe.seed, label, i), "adapter": adapter.name if adapter else None}
                         for i in range(recipe.generate.images)]
        (root / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / "classes.json").write_text(json.dumps(dict(zip(folders, dataset.classes)), indent=1))

    return store.make(key("generate", **inputs), inputs, build, recipe=as_dict(recipe),  # what the key's digests stand for, for the card
                      batches=size.notes)


@contextmanager
def adapted(recipe, adapter):
    """Yield the recipe's pipeline and sampler with the LoRA of the artifact folder `adapter` in its weights (None: the base)."""
    pipe = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    own, pipe.scheduler = pipe.scheduler, make_scheduler(pipe, recipe.generate.scheduler)
    try:
        with (nullcontext() if adapter is None else merged_lora(pipe, adapter),
              compiled(pipe.unet) if recipe.generate.compile else nullcontext()):
            yield pipe
    finally:
        pipe.scheduler = own


def read(folder):
    """Return the images of a generated artifact as `data.Images`, in the order of its metadata."""
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    return Images(tuple(str(folder / "train" / row["file_name"]) for row in rows), tuple(row["label"] for row in rows))
