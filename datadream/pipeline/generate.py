"""Synthesise a dataset with the base or an adapted generator (paper, section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .. import progress
from ..config import Recipe, key_fields
from ..data.folders import class_folders
from ..data.images import fingerprint
from ..data.png import is_whole, write_images
from ..data.synthetic_set import write_metadata
from ..data.transforms import square
from ..methods.base import Adapter, Reader, Support
from ..methods.checked import draws, image_prompts, naming, own_key, prompts
from ..methods.registry import method_of
from ..methods.units import Slice, slices
from ..models.classifiers.untouched import Untouched
from ..models.device import dtype_for
from ..models.generators.sampling import Prompts, adapted, sample
from ..models.identity import identity
from ..seeds import seed_for
from ..training.batch_size import BatchSize, shared_batch_size

if TYPE_CHECKING:
    from ..models.generators.base import Generator
    from ..store.artifacts import Store


def image_seed(seed: int, label: int, index: int, *again: int) -> int:
    """Return an image's seed, independent of batch and order; `again` counts its redraws."""
    return seed_for("image", seed, label, index, *again)


def generation_inputs(support: Support, adapter_keys: Sequence[str]) -> dict[str, Any]:
    """Return what a synthetic set depends on; not batch size, compilation or file compression."""
    recipe = support.recipe
    options = key_fields(recipe.generate)
    for name in ("batch", "compile", "compression"):
        options.pop(name, None)
    if prompts_by := options.pop("image_prompts", ""):
        options["image_prompts"] = identity(prompts_by, "ip-adapter")
    return {
        "generator": identity(recipe.generator, "generator"),
        "generate": options,
        "resolution": recipe.resolution,
        "precision": str(dtype_for(recipe.precision, training=False)),
        "prompts": [prompts(support, label) for label in range(len(support.classes))],
        "seed": recipe.seed,
        "adapters": list(adapter_keys),
        "starts": fingerprint(support.shots()) if recipe.generate.shown else None,
        "judge": identity(recipe.classifier, "clip") if recipe.generate.redraws else None,
        **own_key(support),
    }


def generation_work(support: Support) -> tuple[int, int, float]:
    """Return (images made, optimiser steps, passes of the UNet over all images)."""
    made = support.recipe.generate.images * len(support.classes)
    return made, 0, made * support.recipe.generate.passes


def generate(
    support: Support, trained: Mapping[Adapter, Path], root: Path,
    lock: Callable[[str], AbstractContextManager[None]],
) -> list[str]:  # fmt: skip
    """Write `train/<class>/<index>.png`, metadata.jsonl and classes.json to `root`.

    Returns notes on the batches. `trained` has the adapters' folders. Image i of a class has the
    same seed whatever the batch size, and images of a killed run are kept. `lock(name)` keeps a
    cluster from making the same slice at the same time.
    """
    folders = class_folders(support.classes)
    size, read, rows = batch_size(support.recipe), reader(support), []
    total = len(folders) * support.recipe.generate.images
    with progress.track(f"generate {support.recipe.method}", "image", total) as counter:
        for label, name in enumerate(folders):
            folder = root / "train" / name
            for position, part in enumerate(slices(support, label)):
                with lock(f"{root.stem}-{label}-{position}"):  # a cluster may be making it
                    write_slice(support, trained, label, part, folder, counter, size, read)
                for indices, own in part:
                    used = " + ".join(trained[one].name for one in own) or None
                    rows += [_metadata(support, label, i, folder, used) for i in indices]
    write_metadata(root, rows, dict(zip(folders, support.classes, strict=True)))
    return size.notes


def share_slice(
    support: Support, adapter: Callable[[Adapter], Path], label: int, position: int,
    artifact: str, store: Store,
) -> None:  # fmt: skip
    """Write and share one of a class's `slices`, for `generate` to find in its work folder.

    `adapter` returns an adapter's folder.
    """
    part, size = slices(support, label)[position], batch_size(support.recipe)
    folder = store.work(artifact) / "train" / class_folders(support.classes)[label]
    files = [folder / f"{i:06d}.png" for indices, _ in part for i in indices]

    def build() -> list[str]:
        if all(map(is_whole, files)):
            return []
        trained = {one: adapter(one) for _, own in part for one in own}
        with progress.track("slice", "image", len(files), shown=False) as counter:
            write_slice(support, trained, label, part, folder, counter, size, reader(support))
        return size.notes

    store.make_part(artifact, f"{label}-{position}", files, build)


def write_slice(
    support: Support, trained: Mapping[Adapter, Path], label: int, part: Slice, folder: Path,
    counter: progress.Count, size: BatchSize, read: Reader | None = None,
) -> None:  # fmt: skip
    """Write the images of a slice that are missing in `folder`.

    `size` is shared by the slices. `read` classifies images, so that the method can redraw those
    that it rejects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for indices, own in part:
        if all(is_whole(folder / f"{i:06d}.png") for i in indices):
            counter.update(len(indices))
            continue
        weights = draws(support, label)[indices.start].weights
        with adapted(support.recipe, *(trained[one] for one in own), weights=weights) as generator:
            draw = drawing(generator, support, label, read)
            level = support.recipe.generate.compression
            write_images(draw, indices, folder, size, counter.update, level)


def drawing(
    generator: Generator, support: Support, label: int, read: Reader | None = None
) -> Callable[[int, int], list[Image.Image]]:
    """Return a function (start, count) -> images of a class; it redraws what the method rejects."""
    recipe, options = support.recipe, support.recipe.generate
    made, side = draws(support, label), generator.side(recipe.resolution)
    words = Prompts(generator, [(one.prompt, one.negative) for one in made], options)

    def sampled(rows: Sequence[int], again: int) -> dict[int, Image.Image]:
        text, starts = words.of(rows), None
        strengths = made[rows[0]].strengths or (options.strength,)
        if made[rows[0]].images:
            text |= generator.look([image_prompts(support, label, i) for i in rows])
        if made[rows[0]].start is not None:  # then all of the batch have one
            starts = [_start(support, label, made[i], side) for i in rows]
        # All strengths in turn with the same noise, then again with new noise.
        turn, which = divmod(again, len(strengths))
        asked = dataclasses.replace(options, strength=strengths[which])
        seeds = [image_seed(recipe.seed, label, i, *(turn,) * (turn > 0)) for i in rows]
        images = sample(generator, text, seeds, asked, side, starts)
        for image, seed in zip(images, seeds, strict=True) if read else ():
            image.info["seed"] = seed
            image.info |= {"strength": asked.strength} if made[rows[0]].strengths else {}
        return dict(zip(rows, images, strict=True))

    def draw(start: int, count: int) -> list[Image.Image]:
        rows = range(start, start + count)
        latest = sampled(rows, 0)
        tries = {i: [image] for i, image in latest.items()}
        for again in range(options.redraws if read else 0):
            refused = _refused(recipe, label, read, latest)
            if not refused:
                break
            latest = sampled(refused, again + 1)
            for i, image in latest.items():
                tries[i].append(image)
        return [_chosen(support, label, made[i], tries[i], read) for i in rows]

    return draw


def _start(support, label, one, side):
    """Return the shot that an image starts from, as a square."""
    shots = support.shots(label if one.source is None else one.source)
    return square(shots.open(one.start), side, support.recipe.generate.fit)


def _chosen(support, label, one, tries, read):
    """Return the one of an image's draws that the method keeps."""
    if len(tries) == 1:
        return tries[0]
    method = method_of(support.recipe)
    with naming(method, f"choose, class {label}"):
        return tries[method.choose(support, label, one, tries, read)]


def _refused(recipe, label, read, images):
    """Return the indices of those `images` (index -> PIL image) that the method rejects."""
    method = method_of(recipe)
    with naming(method, f"accept, class {label}"):
        stay = list(method.accept(list(images.values()), label, read))
        return [i for i, stays in zip(images, stay, strict=True) if not stays]


def reader(support: Support) -> Reader | None:
    """Return the untouched classifier, or None if no image is redrawn."""
    recipe = support.recipe
    if not recipe.generate.redraws:
        return None
    return Untouched(recipe.classifier, support.class_prompts(), recipe.precision)


def batch_size(recipe: Recipe) -> BatchSize:
    """Return the BatchSize for generating a set or a slice."""
    options = recipe.generate
    return shared_batch_size(
        *(options.batch, recipe.generator, recipe.resolution, recipe.precision, options.compile),
        *(options.guidance > 1, options.images, options.image_prompts),
        method_of(recipe).together,
    )


def _metadata(support, label, index, folder, used):
    """Return an image's row of metadata.jsonl, with the seed of its last draw."""
    file, one = folder / f"{index:06d}.png", draws(support, label)[index]
    row = {
        "file_name": f"{folder.name}/{file.name}",
        "prompt": one.prompt,
        "class": support.classes[label],
        "label": label,
        "seed": image_seed(support.recipe.seed, label, index),
        "adapter": used,
    }
    if support.recipe.generate.redraws:
        with Image.open(file) as image:
            row["seed"] = int(image.info["seed"])
            row |= {"strength": float(image.info["strength"])} if one.strengths else {}
    return row | one.metadata()
