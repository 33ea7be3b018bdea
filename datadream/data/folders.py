"""Image folders, one sub-folder per class, and safe folder names for classes."""

import hashlib
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError, printable
from .copies import Sketch, groups, sketch
from .entries import SUFFIXES, alike, folder_names, image_files, named, unused
from .images import Images, members, shuffled, split
from .split_words import without_split_words

PARTS = {  # the names of the parts of a user's own split, in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class UnusedWarning(UserWarning):
    """Some files or folders of the user are not used; the message counts and names some."""


def read_class_folders(folder: str | Path) -> tuple[list[str], list[Images]]:
    """Read class folders and split them: (class names, [train, val, test]).

    The layout is <folder>/<class>/*, or <folder>/{train,val,test}/<class>/* if the user made the
    split. Copies of an image stay in one part. Unused entries give an UnusedWarning. Raises
    DataError on a missing folder, a class with too few images, a split that lacks a part or whose
    parts share an image, an unreadable image, a link that leads out of the folder, and class names
    that `name_faults` reports.
    """
    root = _root(folder)
    places = split_of(root)
    lacking = [part for part in PARTS if part not in places]
    if not lacking:
        names = _checked_names(places["train"])
        for place in places.values():
            _require_same_classes(place, names, places["train"])
        parts = [_read_folders(place, names, 1, root) for place in places.values()]
        require_apart(dict(zip(PARTS, parts, strict=True)))
        _warn_of_unused(root, [p.name for p in places.values()], ())
        for place in places.values():
            _warn_of_unused(place, folder_names(place), names)
    elif places:
        raise DataError(
            f"{root} has a split without {' and '.join(lacking)}; give train, val and test, or "
            "the class folders alone, which are then split for you"
        )
    else:
        names = _checked_names(root)
        whole = _read_folders(root, names, 3, root)  # three: at least one for each part
        together = groups(sketches(whole))
        _require_groups(root, names, whole, together, 3, "a training, a validation and a test part")
        parts = split(whole.sources, whole.labels, _shares, together)
        _warn_of_unused(root, names, names)
    return names, parts


def split_of(root: Path) -> dict[str, Path]:
    """Return the folders of a user's own split by part, in the order of PARTS.

    A part has class folders and no images of its own, since a class may be called `train` too.
    Raises DataError if two folders could be the same part.
    """
    places = {}
    for part, known in PARTS.items():
        found = [root / n for n in folder_names(root) if n.lower() in known and _is_part(root / n)]
        exact = [place for place in found if place.name == part]
        if len(found) > 1 and not exact:
            raise DataError(
                f"{root} has {' and '.join(repr(place.name) for place in found)}, and either may "
                f"be the {part} part; call the one that is {part!r}"
            )
        if found:
            places[part] = (exact or found)[0]
    return places


def require_no_split(root: Path) -> None:
    """Raise DataError if a folder that should hold class folders holds a split."""
    parts = [str(place) for place in split_of(root).values()]
    if parts:
        raise DataError(
            f"folder={str(root)!r} has the parts of a split ({', '.join(parts)}) and not class "
            "folders; give the one with the training photos as folder, the other as test_folder"
        )


def _is_part(folder):
    return bool(folder_names(folder)) and not image_files(folder)[0]


def _root(folder):
    if not folder or not Path(folder).is_dir():
        raise DataError(
            f"folder={str(folder)!r} is not a directory; give one with a sub-folder of images per "
            "class"
        )
    return Path(folder)


def _require_same_classes(root, names, train):
    known = set(map(alike, names))
    more = [name for name in folder_names(root) if alike(name) not in known]
    if more:
        raise DataError(
            f"{root} has {_count(more, 'class folder')} that {train} lacks: "
            f"{', '.join(map(repr, more[:5]))}; put their training images there, or remove them"
        )


def _count(items, noun):
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _warn_of_unused(root, known, classes):
    """Warn of entries of `root` other than `known`, and of non-images in its `classes`."""
    found = list(unused(root, known, classes))
    if found:
        warnings.warn(
            f"{_count(found, 'entry').replace('entrys', 'entries')} of {root} "
            f"{'is' if len(found) == 1 else 'are'} not used: "
            f"{', '.join(map(ascii, found[:5]))}{', ...' if len(found) > 5 else ''}",
            UnusedWarning,
            stacklevel=2,
        )


def sketches(images: Images) -> list[Sketch]:
    """Return the sketch of each image, by which copies are found.

    Raises DataError on an image that cannot be read: now, rather than after hours of training.
    """
    return [sketch(images.open(i)) for i in range(len(images))]


def require_apart(parts: Mapping[str, Images]) -> None:
    """Raise DataError if two parts share copies of an image, or an image cannot be read."""
    owners = [(name, str(file)) for name, images in parts.items() for file in images.sources]
    together = groups([one for images in parts.values() for one in sketches(images)])
    first, shared = {}, []
    for (part, file), group in zip(owners, together, strict=True):
        other, known = first.setdefault(group, (part, file))
        if other != part:
            shared.append((other, known, part, file))
    if shared:
        other, known, part, file = shared[0]
        more = f" (and {len(shared) - 1} more such pairs)" if len(shared) > 1 else ""
        raise DataError(
            f"{known!r} ({other}) and {file!r} ({part}) are the same image, or nearly{more}: what "
            "is tested would have been trained on; keep each photo and its copies in one part"
        )


class CopyWarning(UserWarning):
    """Some of the user's few shots are also test files; the message counts them."""


def warn_of_tested(shots: Images, test: Images) -> None:
    """Warn of few shots that are byte-identical to files of a test part too large to decode.

    Files of equal size are compared by digest. This is no error, since some public datasets share
    images between their own parts. Images in memory are not compared.
    """
    files, others = ([f for f in part.sources if isinstance(f, str)] for part in (shots, test))
    sizes = set(map(os.path.getsize, files))
    tested = {_digest(file): file for file in others if os.path.getsize(file) in sizes}
    pairs = [(file, tested[own]) for file in files if (own := _digest(file)) in tested]
    if pairs:
        warnings.warn(
            f"{_count(pairs, 'few shot')} of {len(shots)} {'is' if len(pairs) == 1 else 'are'} in "
            f"the test part too, such as {pairs[0][0]!r}, the same file as {pairs[0][1]!r}: what "
            "is tested would have been trained on",
            CopyWarning,
            stacklevel=2,
        )


def _digest(file):
    return hashlib.sha256(Path(file).read_bytes()).digest()


def _require_groups(root, names, images, together, least, what):
    """Raise DataError on a class with fewer than `least` distinct images, copies aside."""
    for label, name in enumerate(names):
        own = members(images, label).tolist()
        distinct = {together[i] for i in own}
        if len(distinct) < least:
            one, other = next((together[i], i) for i in own if together[i] != i)
            raise DataError(
                f"class {name!r} in {root} has {len(own)} images, but they are copies of "
                f"{len(distinct)} (such as {images.sources[one]!r} and {images.sources[other]!r}), "
                f"which stay together; {what} take {least} or more"
            )


def read_photos(folder: str | Path, fold: str, test_folder: str) -> tuple[list[str], list[Images]]:
    """Read <folder>/<class>/* when there are few images: (class names, [train, val, test]).

    With a `test_folder` of the same class folders, all images of `folder` are for training.
    Otherwise `fold` '2/4' means the second of four cross-validation folds per class, with copies of
    an image in the same fold; '0/4' holds out nothing. Nothing is selected here, so the validation
    part is the training part. Raises DataError on bad values, on class folders that differ, on
    images in both folders, and on names, links and images as `read_class_folders` does.
    """
    root = _root(folder)
    require_no_split(root)
    names, match = _checked_names(root), re.fullmatch(r"(\d+)/(\d+)", fold or "0/2")
    part, parts = map(int, match.groups()) if match else (1, 0)
    if part > parts or parts < 2:
        raise DataError(
            f"fold={fold!r} is not a part of a whole such as '2/4', of two parts or more; '0/4' "
            "holds out nothing"
        )
    whole = _read_folders(root, names, parts if part else 1, root)
    _warn_of_unused(root, names, names)
    together = groups(sketches(whole)) if part or not test_folder else []
    held = _held(root, names, whole, together, part, parts) if part else set()
    train, test = (
        whole.pick([i for i in range(len(whole)) if (i in held) == tested])
        for tested in (False, True)
    )
    if test_folder:
        test = _test_images(Path(test_folder), names)
        require_apart({"folder": whole, "test_folder": test})
    return names, [train, train, test]


def _held(root, names, whole, together, part, parts):
    """Return the positions of the images in the held-out fold."""
    _require_groups(root, names, whole, together, parts, f"{parts} folds")
    placed, held = {}, set()
    for label in range(len(names)):
        rows, own = shuffled(whole, label, together)
        for number, group in enumerate(own):
            placed.setdefault(group, number % parts == part - 1)
        held |= {i for i in rows if placed[together[i]]}
    return held


def _test_images(root, names):
    found = folder_names(root) if root.is_dir() else []
    if set(map(alike, found)) != set(map(alike, names)):
        raise DataError(
            f"test_folder={str(root)!r} needs the same class folders as the training images "
            f"({', '.join(names)}), and has {', '.join(found) or 'none'}"
        )
    images = _read_folders(root, names, 1, root)
    _warn_of_unused(root, found, names)
    return images


def _shares(n):
    """Return the sizes of pool (half) and validation (a fifth) for n >= 3 images.

    The test part gets the rest, at least one.
    """
    val = max(1, round(0.2 * n))
    return min(max(1, round(0.5 * n)), n - val - 1), val


def _checked_names(root):
    names = folder_names(root)
    for name, what in name_faults(names):
        raise DataError(f"class folder {name!r} in {root} {what}")
    return names


def name_faults(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, what is wrong) for each class name that a prompt cannot use.

    Such a name is not printable text, or differs from another one only in case, spaces or the
    Unicode form of its accents.
    """
    faults, seen = [], {}
    for name in names:
        if printable(name):
            first = seen.setdefault(" ".join(alike(name).casefold().split()), name)
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


def require_inside(file: str | Path, root: Path) -> None:
    """Raise DataError if `file` is reached by a link that leads out of the folder `root`."""
    target = Path(os.path.realpath(file))  # also resolves a link to itself
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{str(file)!r} leads out of {root}, to {target}; copy the images there, or name the "
            "folder where they are"
        )


def folder_state(folder: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Return (name, size, modification time in ns) of every file under `folder`, as a cache key.

    It changes when a file is repaired, added or removed. Empty if `folder` is ''.
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
        own = named(root, name)
        files, _ = image_files(own)
        for entry in (own, *(f for f in files if f.is_symlink())):
            require_inside(entry, home)
        if len(files) < least:
            raise DataError(
                f"class {name!r} in {root} has {len(files)} image(s) "
                f"({', '.join(sorted(SUFFIXES))}, or what Pillow reads); give {least} or more"
            )
        sources += [str(p) for p in files]
        labels += [label] * len(files)
    return Images(tuple(sources), tuple(labels))


def class_folders(classes: Iterable[str]) -> list[str]:
    """Return one file-system-safe folder name per class, in order.

    The names are distinct even if case is ignored, and `datasets` takes none of them for a split.
    """
    folders, taken = [], set()
    for name in classes:
        safe = re.sub(r"[^A-Za-z0-9_. -]+", "_", name).strip(" .")[:80].strip(" .") or "class"
        safe = without_split_words(safe)
        tries = itertools.chain([safe], (f"{safe}-{n}" for n in itertools.count(2)))
        folders.append(next(t for t in tries if t.lower() not in taken))
        taken.add(folders[-1].lower())
    return folders
