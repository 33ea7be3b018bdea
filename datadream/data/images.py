"""Labelled images: in memory or in files, a folder of class folders, and safe names for writing
them.
"""

import hashlib
import itertools
import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, printable

PIXEL = 1.5  # bytes of a PNG per pixel, about
# Decoded training images kept in memory; the others lie in a temporary file.
CACHE_BYTES = 4 * 2**30
# Bytes of a file from which threads decode faster than one thread does.
LARGE = 2**14
SPARE_BYTES = 10 * 2**30  # that such a file leaves free on its disk, which others use too
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
# a longer side over this many shorter ones is refused: resized by its short side it would fill the
# memory
STRIP = 50


# Compared by identity, so that caches may key on a set without hashing its pixels.
@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set: `sources` are uint8 arrays (H, W) or file paths, `labels` their class
    indices.

    `stamp` stands for the content in the fingerprint of a set that is too large to be read for it.
    """

    sources: Sequence
    labels: Sequence
    stamp: str = ""

    def __len__(self):
        return len(self.sources)

    def open(self, i):
        """Return image i as an RGB PIL image: turned by its EXIF entry, its first frame,
        transparency on white, 16-bit grey in 8 bits.

        Raises DataError on an unreadable file, on one of 32 bits a pixel and channel, and on a
        strip of over STRIP to 1.
        """
        source = self.sources[i]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert("RGB")
        with opened(source) as image:
            return _rgb(ImageOps.exif_transpose(image))

    def pick(self, rows):
        """Return the subset at integer positions `rows`."""
        return Images(tuple(self.sources[i] for i in rows), tuple(self.labels[i] for i in rows))


def _cause(error):
    """Return what is wrong with an image without its path, which the message names already."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow knows no image format of such content"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(file):
    """Yield the PIL image of a file. Raises DataError, with the file's name, on whatever goes
    wrong with it meanwhile.
    """
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(
            f"{str(file)!r} does not exist; give the path of an image that does"
        ) from error
    # Pillow raises what its decoder stumbles over: OSError, SyntaxError, struct.error, a
    # decompression bomb
    except Exception as error:
        raise DataError(
            f"{str(file)!r} is not a readable image ({_cause(error)}); replace or remove the file"
        ) from error


def _rgb(image):
    if max(image.size) > STRIP * min(image.size):
        raise ValueError(
            f"{image.size[0]} x {image.size[1]} pixels, a strip of more than {STRIP} to 1"
        )
    if image.mode.startswith("I;16"):  # `convert` would make all but the darkest pixels white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:  # what lies behind transparent pixels is not meant to be seen
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@lru_cache(maxsize=4096)
def fingerprint(*parts):
    """Return 16 hex digits that change whenever an image's bytes or shape, a label, or the split
    changes; read once per set.
    """
    digest = hashlib.sha256()
    for images in parts:
        digest.update(images.stamp.encode())
        for source, label in (
            () if images.stamp else zip(images.sources, images.labels, strict=True)
        ):
            digest.update(
                repr(source.shape).encode() + source.tobytes()
                if isinstance(source, np.ndarray)
                else Path(source).read_bytes()
            )
            digest.update(str(label).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=16)
def _by_label(images):
    labels = np.asarray(images.labels, int)
    order = np.argsort(labels, kind="stable")
    return order, labels[order]


def members(images, label):
    """Return the positions of a class's images, ascending; a set is sorted once, since a
    thousand classes ask for theirs.
    """
    order, labels = _by_label(images)
    return order[slice(*np.searchsorted(labels, [label, label + 1]))]


def split(sources, labels, counts):
    """Split per class into parts of fixed size by a permutation that never changes; `counts(n)`
    gives two sizes, test takes the rest.
    """
    parts, whole = ([], [], []), Images((), labels)
    for label in sorted(set(np.asarray(labels).tolist())):
        # RandomState is frozen by numpy's policy.
        rows = np.random.RandomState(label).permutation(members(whole, label))
        first, second = counts(len(rows))
        for part, some in zip(parts, np.split(rows, [first, first + second]), strict=True):
            part.extend(int(i) for i in some)
    return [
        Images(tuple(sources[i] for i in part), tuple(int(labels[i]) for i in part))
        for part in parts
    ]


def read_class_folders(folder):
    """Return (class names, [train, val, test]) of <folder>/<class>/*, or of
    <folder>/{train,val,test}/<class>/* if the user made the split.

    Hidden folders and files, and files of other types, are passed over (`photos.inspect` counts
    them). Raises DataError on a missing folder, a class of too few images, a split that lacks a
    part, an image that cannot be read, a link that leads out of the folder, and on class names as
    `name_faults` has them.
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
    elif {"train", "test"} & set(_class_names(root)) and len(lacking) < 3:
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


def read_photos(folder, fold, test_folder):
    """Return (class names, [train, val, test]) of <folder>/<class>/* where few images are to be
    used well.

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
    if not root.is_dir() or set(_class_names(root)) != set(names):
        raise DataError(
            f"test_folder={str(root)!r} needs the same class folders as the training images "
            f"({', '.join(names)}), and has "
            f"{', '.join(_class_names(root)) if root.is_dir() else 'none'}"
        )
    return _read_folders(root, names, 1, root)


def _shares(n):
    """Give half of n images (3 or more) to the few-shot pool, a fifth to validation, and at
    least one to the test.
    """
    val = max(1, round(0.2 * n))
    return min(max(1, round(0.5 * n)), n - val - 1), val


def _class_names(root):
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _checked_names(root):
    names = _class_names(root)
    for name, what in name_faults(names):
        raise DataError(f"class folder {name!r} in {root} {what}")
    return names


def name_faults(names):
    """Return (name, what is wrong) of each class name that is no text for a prompt, or is
    another one but for case, spaces or accents' form.
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


def image_files(folder):
    """Return (the image files of a class folder, the names of its other entries), sorted; links
    that lead nowhere count as images.

    Hidden files, such as the ._photo.jpg of a Mac, and sub-folders are among the others, whatever
    their suffix.
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


def require_inside(file, root):
    """Raise DataError if `file` is reached by a link that leads out of the folder `root`."""
    target = Path(os.path.realpath(file))  # of a link to itself, too
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{str(file)!r} leads out of {root}, to {target}; copy the images there, or name the "
            "folder where they are"
        )


def folder_state(folder):
    """Return the names, sizes and times of all files under `folder`, so that a cache sees a
    repaired, added or removed one.
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


def class_folders(classes):
    """Return one file-system-safe folder name per class, in order, distinct even where case is
    ignored.
    """
    folders, taken = [], set()
    for name in classes:
        safe = re.sub(r"[^A-Za-z0-9_. -]+", "_", name).strip(" .")[:80].strip(" .") or "class"
        tries = itertools.chain([safe], (f"{safe}-{n}" for n in itertools.count(2)))
        folders.append(next(t for t in tries if t.lower() not in taken))
        taken.add(folders[-1].lower())
    return folders


def to_image(tensor):
    """Return a tensor (3, H, W) in [0, 1] as a PIL image."""
    return Image.fromarray((255 * tensor).round().byte().permute(1, 2, 0).numpy())


def large(images):
    """Return whether the images are files that threads decode faster: the first one stands for
    all.
    """
    first = next(iter(images.sources), None)
    try:
        return isinstance(first, (str, Path)) and Path(first).stat().st_size >= LARGE
    except OSError:  # whoever opens it says what is wrong
        return False


class Decoded:
    """Images as bytes by (kind, position), each decoded once; of large files threads decode what is
    needed next.

    The first CACHE_BYTES stay in memory; the rest go to a file in the folder for temporary files
    (TMPDIR, on a disk), which nobody else sees and which ends with the process, and where that has
    no room left are decoded anew at each use. What came first stays in memory: an epoch visits
    every image once, so that the image used longest ago is the one that is needed soonest.
    """

    def __init__(self, sets):
        self.sets, self.kept, self.coming, self.room = sets, {}, {}, CACHE_BYTES
        self.file, self.places, self.end, self.full = None, {}, 0, False
        self.pool = ThreadPoolExecutor(os.cpu_count()) if any(map(large, sets.values())) else None

    def start(self, keys):
        """Begin to decode these images, or to read them back, in the background."""
        if self.pool is None:
            return
        for key in keys:
            if key not in self.kept and key not in self.coming:
                self.coming[key] = self.pool.submit(self._load, key)

    def take(self, keys):
        """Return these images, uint8 (3, H, W) each. Raises DataError on an unreadable file."""
        self.start(keys)
        fresh = {
            key: self.coming.pop(key).result() if self.pool else self._load(key)
            for key in dict.fromkeys(keys)
            if key not in self.kept
        }
        images = [self.kept[key] if key in self.kept else fresh[key] for key in keys]
        for key, image in fresh.items():
            if image.nbytes <= self.room:
                self.kept[key], self.room = image, self.room - image.nbytes
            elif key not in self.places and not self.full:
                self._write(key, image)
        return images

    def _write(self, key, image):
        try:
            self.file = self.file or tempfile.TemporaryFile(buffering=0)
            disk = os.fstatvfs(self.file.fileno())
            if (
                disk.f_bavail * disk.f_frsize < SPARE_BYTES
                or os.pwrite(self.file.fileno(), image.numpy(), self.end) < image.nbytes
            ):
                raise OSError("the disk has no room left")
        except OSError:  # a cache is no reason to end
            self.full = True
        else:
            self.places[key], self.end = (self.end, tuple(image.shape)), self.end + image.nbytes

    def _read(self, place, shape):
        """Return the pixels at a place of the file, None where the disk no longer gives them."""
        pixels = np.empty(shape, np.uint8)
        if self.file is None:
            return None
        with suppress(OSError):
            read = os.preadv(self.file.fileno(), [pixels.reshape(-1).data], place)
            return pixels if read == pixels.nbytes else None

    def _load(self, key):
        from torch import from_numpy

        pixels = self._read(*self.places[key]) if key in self.places else None
        if pixels is not None:
            return from_numpy(pixels)
        kind, i = key
        return from_numpy(
            np.ascontiguousarray(np.asarray(self.sets[kind].open(i)).transpose(2, 0, 1))
        )
