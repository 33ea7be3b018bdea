"""Describe the context of an image: what is in it but not part of its class.

For photographs a file says it. Drawn characters are measured, a proposal of this project: see
`data.attributes`.
"""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..data.attributes import descriptions
from ..data.entries import CAPTIONS
from ..data.images import Images
from ..errors import DataError, brief
from .base import Support

COLUMNS = ("file", "background", "pose")


@lru_cache(maxsize=8)
def contexts(support: Support) -> tuple[str, ...]:
    """Return the text to append to the class's prompt for each few shot, of all classes in order.

    Raises DataError on photographs without a captions file, and on one character per class.
    """
    shots = support.shots()
    if all(isinstance(one, np.ndarray) and one.ndim == 2 for one in shots.sources):
        if len(set(shots.labels)) == len(shots):
            raise DataError(
                f"method {support.recipe.method!r} describes a character by what sets it apart "
                "from the others of its class, and with shots=1 there are no others; give "
                "shots=2 or more"
            )
        pictures = [shots.open(i) for i in range(len(shots))]
        words = descriptions(pictures, shots.labels)
        return tuple(f", {own}" if own else "" for own in words)
    return tuple(_phrase(*own) for own in _captions(support, shots))


def _phrase(background: str, pose: str) -> str:
    first = f" in the {background} background" if background else ""
    return first + (f" with the {pose} pose" if pose else "")


def _captions(support: Support, shots: Images) -> list[tuple[str, str]]:
    """Return the background and the pose of each shot from its folder's captions file."""
    recipe = support.recipe
    files = [Path(one) if isinstance(one, str) else Path() for one in shots.sources]
    folder = Path(recipe.shots_folder or recipe.folder or files[0].parent.parent)
    place = next((up / CAPTIONS for up in files[0].parents if (up / CAPTIONS).is_file()), None)
    how = (
        f"a text in UTF-8 with a line for each image, its columns parted by tabs and called "
        f"{', '.join(COLUMNS)}; `file` is the path below that folder, 'robin/0001.jpg', or the "
        "name alone where no two are the same; describe the background and the pose in a few "
        "words without naming the class"
    )
    if place is None:
        raise DataError(
            f"method {recipe.method!r} needs to know the context of each few shot, and there is no "
            f"{str(folder / CAPTIONS)!r}; write it: {how}"
        )
    found = read_captions(place)
    rows = [found.get(_below(file, place.parent), found.get(file.name)) for file in files]
    if None in rows:
        missing = files[rows.index(None)]
        raise DataError(f"{str(place)!r} has no line for the few shot {str(missing)!r}; add {how}")
    return [row for row in rows if row]


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def read_captions(path: Path) -> dict[str, tuple[str, str]]:
    """Return file -> (background, pose) from a captions file.

    Raises DataError if it is not such a table, or lists a file twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as UTF-8 text: {error}") from error
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if lacking := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
        raise DataError(
            f"the first line of {str(path)!r} lacks {', '.join(lacking)}; name the columns "
            f"{', '.join(COLUMNS)}, parted by tabs"
        )
    found = {}
    for row in table:
        file, background, pose = ((row[name] or "").strip().rstrip(".") for name in COLUMNS)
        file = (row["file"] or "").strip()
        if file in found:
            raise DataError(f"{str(path)!r} has two lines for {brief(file)}; keep one")
        found[file] = background, pose
    return found
