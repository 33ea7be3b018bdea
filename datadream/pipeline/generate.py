"""Synthesise a dataset with the base or the adapted generator, one seed per image (paper,
section 3.3).
"""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial

from .. import progress, signals
from ..config import as_dict
from ..data.datasets import few_shots
from ..data.folders import class_folders
from ..data.images import Images, fingerprint
from ..data.png import is_whole, save_png
from ..data.transforms import square
from ..methods.registry import method_of
from ..models.device import dtype_for
from ..models.generators.sampling import adapted, embed, require_sampler, sample
from ..models.generators.unet import image_side
from ..models.identity import identity
from ..store.files import remove
from ..store.keys import key
from ..training.batch_size import BatchSize
from .adapt import adapt, adapter_inputs
from .draws import (
    adapters,
    draws,
    image_seed,
    metadata_row,
    naming,
    own_key,
    prompts,
    reader,
    slices,
)

# the work folder's sub-folder in which a cluster's slices tell how their batches fitted
NOTES = "notes"


def sample_range(pipe, recipe, dataset, label, indices, folder, counter, size, read=None):
    """Write the images of a class that are missing in `folder`, in batches of fixed membership, so
    that a resumed run is the same where the size is given.

    One batch is written while the next is sampled. `size` is a `BatchSize`, shared by the classes;
    `read` says which class each of some images is read as, for the method to draw some again.
    """
    start, writing = indices.start, []
    draw = _drawing(pipe, recipe, dataset, label, bool(read))
    judge = read and partial(_misread, recipe, label, read)

    def make(count):
        rows = range(start, start + count)
        images, misread = {}, rows
        for again in range(recipe.generate.redraws + 1 if judge else 1):
            drawn = dict(zip(misread, draw(misread, *([again] if again else [])), strict=True))
            images |= drawn
            misread = judge(drawn) if judge else []
            if not misread:
                break
        return [images[i] for i in rows]

    with ThreadPoolExecutor(1) as writer:
        while start < indices.stop:
            signals.check()
            count = min(size.size, indices.stop - start)
            files = [folder / f"{i:06d}.png" for i in range(start, start + count)]
            if not all(is_whole(f) for f in files):
                images = size.run(make, count, len(indices))
                count = len(images)
                # At most one batch waits; an error of the writer ends the run here.
                for written in writing:
                    written.result()
                pairs = zip(images, files[:count], strict=True)
                writing = [writer.submit(save_png, image, file) for image, file in pairs]
            counter.update(count)
            start += count
        for written in writing:
            written.result()


def _misread(recipe, label, read, images):
    """Return the indices of those images (index -> PIL image) that the method does not accept."""
    method = method_of(recipe)
    with naming(method, f"accept, class {label}"):
        stay = list(method.accept(list(images.values()), label, read))
        return [i for i, stays in zip(images, stay, strict=True) if not stays]


def _drawing(pipe, recipe, dataset, label, seeded):
    """Return a function from image indices of a class to the images; `seeded` ones know their
    seed.
    """
    options, side = recipe.generate, image_side(pipe, recipe.resolution)
    made = draws(recipe, dataset, label)
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(one.prompt for one in made))}
    words = embed(pipe, list(place), options)
    shots = few_shots(dataset, recipe.shots, recipe.seed, label) if options.strength else None

    def draw(rows, *again):
        own = {
            name: tensor[[place[made[i].prompt] for i in rows]] for name, tensor in words.items()
        }
        begun = [made[i].start for i in rows]  # all of a group, or none
        starts = (
            [square(shots.open(i), side) for i in begun] if shots and None not in begun else None
        )
        seeds = [image_seed(recipe.seed, label, i, *again) for i in rows]
        images = sample(pipe, own, seeds, options, side, starts)
        for image, seed in zip(images, seeds, strict=True) if seeded else ():
            image.info["seed"] = seed
        return images

    return draw


def batch_size(recipe):
    """Return the BatchSize of a set or a slice: where it is searched for this process's, so that
    what one slice found holds for the next.
    """
    options = recipe.generate
    if options.batch:
        return BatchSize(options.batch)
    return _searched(
        recipe.generator,
        recipe.resolution,
        recipe.precision,
        options.compile,
        options.guidance > 1,
        options.images,
        method_of(recipe).together,
    )


@lru_cache(maxsize=1)
def _searched(*settings):
    return BatchSize(0)


def generation_inputs(recipe, dataset):
    """Return what a synthetic set depends on; the batch size and compilation are left out, since
    they change no image's noise.
    """
    options = {
        k: v
        for k, v in dataclasses.asdict(recipe.generate).items()
        if k not in ("batch", "compile")
    }
    started = (
        fingerprint(few_shots(dataset, recipe.shots, recipe.seed))
        if recipe.generate.strength
        else None
    )
    return {
        "generator": identity(recipe.generator, "generator"),
        "generate": options,
        "resolution": recipe.resolution,
        "precision": str(dtype_for(recipe.precision, training=False)),
        "prompts": [prompts(recipe, dataset, label) for label in range(len(dataset.classes))],
        "seed": recipe.seed,
        "adapters": [
            key("adapt", **adapter_inputs(recipe, dataset, one.label, one.image))
            for one in adapters(recipe, dataset)
        ],
        "starts": started,
        "judge": identity(recipe.classifier, "clip") if recipe.generate.redraws else None,
        **own_key(recipe, dataset),
    }


def generate(recipe, dataset, shots, store):
    """Return the artifact folder `train/<class>/<index>.png` with `metadata.jsonl` and
    `classes.json`, adapting first if needed.

    Image i of a class keeps its seed whatever the batch size; images that a killed run left are
    kept. Raises ConfigError on a sampler or a resolution that the generator cannot use, before
    anything is adapted.
    """
    inputs, folders = generation_inputs(recipe, dataset), class_folders(dataset.classes)
    if store.done(key("generate", **inputs)):
        progress.found(key("generate", **inputs))
        return store.folder(key("generate", **inputs))
    require_sampler(recipe)
    trained = {
        one: adapt(recipe, dataset, shots, store, one.label, one.image)
        for one in adapters(recipe, dataset)
    }
    judge, notes = reader(recipe, dataset), []

    def build(root):
        rows, size = [], batch_size(recipe)
        total = len(folders) * recipe.generate.images
        with progress.track(f"generate {recipe.method}", "image", total) as counter:
            for label, name in enumerate(folders):
                folder = root / "train" / name
                folder.mkdir(parents=True, exist_ok=True)
                for position, part in enumerate(slices(recipe, dataset, label)):
                    for indices, own in part:
                        used = [trained[which] for which in own]
                        # A cluster may be making the same slice.
                        with store.lock(f"{root.stem}-{label}-{position}"):
                            if not all(is_whole(folder / f"{i:06d}.png") for i in indices):
                                with adapted(recipe, *used) as pipe:
                                    where = label, indices, folder, counter
                                    sample_range(pipe, recipe, dataset, *where, size, judge)
                        row = partial(metadata_row, recipe, dataset, label)
                        rows += [row(i, root / "train", name, used) for i in indices]
        _write_index(root, rows, dict(zip(folders, dataset.classes, strict=True)))
        notes.extend(size.notes)
        notes.extend(note for note in _slice_notes(root) if note not in notes)

    # The recipe is for the card.
    return store.make(
        key("generate", **inputs), inputs, build, batches=notes, recipe=as_dict(recipe)
    )


def _write_index(root, rows, classes):
    """Write metadata.jsonl and classes.json, folder name -> class name, of a set."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "train" / "metadata.jsonl").write_text(lines)
    (root / "classes.json").write_text(json.dumps(classes, indent=1))


def _slice_notes(root):
    """Take away, and return, what a cluster's slices noted of their batches, each note once."""
    notes = {}
    for file in sorted((root / NOTES).glob("*.json")):
        with suppress(ValueError):  # a power cut left it empty
            notes |= {json.dumps(note): note for note in json.loads(file.read_text())}
    remove(root / NOTES)
    return list(notes.values())


def read_synthetic_set(folder):
    """Return the images of a generated artifact as `data.Images`, in the order of its metadata."""
    rows = [
        json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()
    ]
    return Images(
        tuple(str(folder / "train" / row["file_name"]) for row in rows),
        tuple(row["label"] for row in rows),
    )
