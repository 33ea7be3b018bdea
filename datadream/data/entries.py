"""What lies in a folder: class folders, images, and the litter that systems leave beside them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff"}
# Formats tried for a file without such a suffix: those recognised by their first bytes.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
# Left by Mac archives, network disks and Windows, in lower case. Names that begin with a dot, such
# as .DS_Store and .ipynb_checkpoints, are skipped too.
LITTER = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}
CAPTIONS = "captions.tsv"  # beside class folders: what each image shows, for methods that need it


def is_litter(name: str) -> bool:
    """True if a file or folder of this name is hidden, or is litter of an operating system."""
    return name.startswith(".") or name.lower() in LITTER


def folder_names(root: Path) -> list[str]:
    """Return the names of the sub-folders of `root` that may be classes, sorted."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not is_litter(p.name))


def image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """List a class folder: (image files, names of the other entries), both sorted.

    A file is an image if its suffix or its content says so. Broken links count as images.
    Sub-folders and hidden files, such as a Mac's ._photo.jpg, are among the others, whatever their
    suffix.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    images = [p for p in entries if not is_litter(p.name) and _is_image(p)]
    return images, [p.name for p in sorted({*entries} - {*images})]


def _is_image(path):
    if path.suffix.lower() in SUFFIXES:
        return path.is_file() or not path.exists()
    if not path.is_file():
        return False
    Image.init()
    try:
        with Image.open(path, formats=[form for form in FORMATS if form in Image.OPEN]):
            return True
    except (ValueError, Image.DecompressionBombError):  # an image; opening it says what is wrong
        return True
    except (OSError, SyntaxError):
        return False


def unused(root: Path, known: Iterable[str], classes: Iterable[str] = ()) -> Iterator[str]:
    """Yield the entries of `root` that no reader uses, relative to it, except litter.

    These are entries other than `known` and the captions, and files in the folders of `classes`
    that are not images.
    """
    wanted = {*known, CAPTIONS}
    for entry in sorted(root.iterdir()):
        if entry.name not in wanted and not is_litter(entry.name):
            yield entry.name
    for name in classes:
        others = image_files(named(root, name))[1]
        yield from (f"{name}/{other}" for other in others if not is_litter(other))


def alike(name: str) -> str:
    """Return a name with its accents in one normal form (NFC), for comparison across systems."""
    return unicodedata.normalize("NFC", name)


def named(root: Path, name: str) -> Path:
    """Return the entry `name` of a folder, even if its accents are in the other Unicode form.

    Mac archives write them as letter and accent (NFD), other systems as one character (NFC).
    """
    place = root
    for step in Path(name).parts:
        found = place / step
        if not found.exists() and place.is_dir():
            same = [p for p in sorted(place.iterdir()) if alike(p.name) == alike(step)]
            found = same[0] if same else found
        place = found
    return place
