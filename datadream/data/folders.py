"""Image folders, one sub-folder per class, and safe folder names for classes."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import DataError, printable
from .images import Images, split
from .split_words import without_split_words

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def read_class_folders(folder: str | Path) -> tuple[list[str], list[Images]]:
    """Read class folders and split them: (class names, [train, val, test]).

    The layout is <folder>/<class>/*, or <folder>/{train,val,test}/<class>/* if the user made the
    split. Hidden folders and files, and files of other types, are passed over (`photos.inspect`
    counts them). Raises DataError on a missing folder, a class of too few images, a split that
    lacks a part, an image that cannot be read, a link that leads out of the folder, and class names
    that `name_faults` reports.
    """
    root, wanted = Path(folder), ("train", "val", "test")
    if not folder or not root.is_dir():
        raise DataError(
            f"folder={str(folder)!r} is no directory; give one with a sub-folder of images per "
            "class"
        )
    lacking = [part for part in wanted if not (root / part).is_dir()]
    if not lacking:
        names = _checked_names(root / "train")
        parts = [_read_folders(root / part, names, 1, root) for part in wanted]
    elif {"train", "test"} & set(folder_names(root)) and len(lacking) < 3:
        raise DataError(
            f"{root} has a split without {' and '.join(lacking)}; give train, val and test, or "
            "the class folders alone, which are then split for you"
        )
    else:
        names = _checked_names(root)
        whole = _read_folders(root, names, 3, root)  # three: at least one for each part
        parts = split(whole.sources, whole.labels, _shares)
    _open_all(parts)
    return names, parts


def _open_all(parts):
    """Raise DataError on an image that cannot be read: now, and not after hours of training."""
    for images in parts:
        for i in range(len(images)):
            images.open(i)


def read_photos(folder: str | Path, fold: str, test_folder: str) -> tuple[list[str], list[Images]]:
    """Read <folder>/<class>/* where images are few: (class names, [train, val, test]).

    With a `test_folder` of the same class folders all images of `folder` are for training. Else
    `fold` '2/4' cuts each class into four parts and tests on the second; '0/4' tests on none.
    Nothing is selected here, so the validation part is the training part. Raises DataError on bad
    values, on classes that differ, and on names, links and images as `read_class_folders` does.
    """
    root = Path(folder)
    if not folder or not root.is_dir():
        raise DataError(
            f"folder={str(folder)!r} is no directory; give one with a sub-folder of images per "
            "class"
        )
    names, match = _checked_names(root), re.fullmatch(r"(\d+)/(\d+)", fold or "0/2")
    part, parts = map(int, match.groups()) if match else (1, 0)
    if part > parts or parts < 2:
        raise DataError(
            f"fold={fold!r} is no part of a whole such as '2/4', of two parts or more; '0/4' "
            "holds out nothing"
        )
    whole = _read_folders(root, names, parts if part else 1, root)
    held = set()
    for label in range(len(names) if part else 0):
        own = np.flatnonzero(np.asarray(whole.labels) == label)
        held |= set(np.random.RandomState(label).permutation(own)[part - 1 :: parts].tolist())
    train, test = (
        whole.pick([i for i in range(len(whole)) if (i in held) == tested])
        for tested in (False, True)
    )
    if test_folder:
        test = _test_images(Path(test_folder), names)
    _open_all([train, test])
    return names, [train, train, test]


def _test_images(root, names):
    if not root.is_dir() or set(folder_names(root)) != set(names):
        raise DataError(
            f"test_folder={str(root)!r} needs the same class folders as the training images "
            f"({', '.join(names)}), and has "
            f"{', '.join(folder_names(root)) if root.is_dir() else 'none'}"
        )
    return _read_folders(root, names, 1, root)


def _shares(n):
    """Give half of n images (3 or more) to the few-shot pool, a fifth to validation, and at
    least one to the test.
    """
    val = max(1, round(0.2 * n))
    return min(max(1, round(0.5 * n)), n - val - 1), val


def folder_names(root: Path) -> list[str]:
    """Return the names of the sub-folders of `root` that may be classes, sorted."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _checked_names(root):
    names = folder_names(root)
    for name, what in name_faults(names):
        raise DataError(f"class folder {name!r} in {root} {what}")
    return names


def name_faults(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, what is wrong) of each class name that a prompt cannot use.

    Either it is not printable text, or it differs from another one only in case, spaces or the
    Unicode form of its accents.
    """
    faults, seen = [], {}
    for name in names:
        if printable(name):
            first = seen.setdefault(
                " ".join(unicodedata.normalize("NFC", name).casefold().split()), name
            )
            if first != name:
                faults.append(
                    (
                        name,
                        f"differs from {first!r} only in what a prompt does not show; merge them, "
                        "or rename one",
                    )
                )
        else:
            faults.append(
                (
                    name,
                    "has a control character, a line break or bytes that are no UTF-8; rename it",
                )
            )
    return faults


def image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """List a class folder: (image files, names of the other entries), both sorted.

    Links that lead nowhere count as images. Hidden files, such as the ._photo.jpg of a Mac, and
    sub-folders are among the others, whatever their suffix.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    images = [
        p
        for p in entries
        if p.suffix.lower() in SUFFIXES
        and not p.name.startswith(".")
        and (p.is_file() or not p.exists())
    ]
    return images, [p.name for p in sorted({*entries} - {*images})]


def require_inside(file: str | Path, root: Path) -> None:
    """Raise DataError if `file` is reached by a link that leads out of the folder `root`."""
    target = Path(os.path.realpath(file))  # of a link to itself, too
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{str(file)!r} leads out of {root}, to {target}; copy the images there, or name the "
            "folder where they are"
        )


def folder_state(folder: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Return (name, size, time) of every file under `folder`, as a cache key.

    A repaired, added or removed file changes it; the time is in ns. Empty where `folder` is ''.
    """
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file()) if folder else []
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


def _read_folders(root, names, least, home):
    if len(names) < 2:
        raise DataError(
            f"{root} has {len(names)} class folder(s); two or more are needed, one folder of "
            "images per class"
        )
    sources, labels = [], []
    for label, name in enumerate(names):
        files, _ = image_files(root / name)
        for entry in (root / name, *(f for f in files if f.is_symlink())):
            require_inside(entry, home)
        if len(files) < least:
            raise DataError(
                f"class {name!r} in {root} has {len(files)} image(s) "
                f"({', '.join(sorted(SUFFIXES))}); give {least} or more"
            )
        sources += [str(p) for p in files]
        labels += [label] * len(files)
    return Images(tuple(sources), tuple(labels))


def class_folders(classes: Iterable[str]) -> list[str]:
    """Return one file-system-safe folder name per class, in order.

    The names are distinct even where case is ignored, and name no split to `datasets`.
    """
    folders, taken = [], set()
    for name in classes:
        safe = re.sub(r"[^A-Za-z0-9_. -]+", "_", name).strip(" .")[:80].strip(" .") or "class"
        safe = without_split_words(safe)
        tries = itertools.chain([safe], (f"{safe}-{n}" for n in itertools.count(2)))
        folders.append(next(t for t in tries if t.lower() not in taken))
        taken.add(folders[-1].lower())
    return folders
