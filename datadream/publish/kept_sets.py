"""Committed samples of the synthetic sets: a sheet of images each, and a few whole sets."""

import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..config import Recipe, as_dict
from ..data.datasets import few_shots
from ..data.images import Images, Previews, shrunk
from ..data.synthetic_set import read_synthetic_set
from ..errors import DataError
from ..paths import paths
from ..results.records import in_own_settings
from ..store.artifacts import Store
from ..store.files import writing
from .export import export

SHOTS = "shots"  # name of the sheet of real images; no method is called so
DEPTH, SIDE, GAP = 4, 64, 2  # images per class, their largest width, gap between two (pixels)
WHOLE = ("dset", 4)  # the method and number of shots whose whole set is kept
LIMIT = 10_000_000  # most bytes of a whole set


def sheet_file(dataset: str, shots: int, name: str) -> Path:
    """Return the file of a sheet, for a method (without `+real`) or for SHOTS."""
    return paths()["samples"] / dataset / str(shots) / f"{name}.png"


def set_file(dataset: str, shots: int, method: str) -> Path:
    """Return the file of a whole set."""
    return paths()["sets"] / f"{dataset}-{shots}-{method}.zip"


def keep_sets(recipes: Iterable[Recipe], store: Store) -> list[Path]:
    """Write the sheets, and whole sets, of the cells with their profile's own settings.

    For each method, the first seed in `recipes` is shown. A set that the store lacks is left out.
    Returns the files. Raises DataError on a whole set that is too large for git.
    """
    from ..pipeline.stages import Cell  # here, since it loads torch and pages need only the names

    found: dict[Path, None] = {}
    for recipe in recipes:
        cell, where = Cell(recipe), (recipe.dataset, recipe.shots)
        name, made = recipe.method.removesuffix("+real"), cell.key("generate")
        sheet = sheet_file(*where, name)
        if made is None or sheet in found or not in_own_settings(as_dict(recipe)):
            continue
        if not store.done(made):
            continue
        classes, shots = len(cell.dataset.classes), sheet_file(*where, SHOTS)
        if shots not in found:
            _save(draw_sheet(few_shots(cell.dataset, recipe.shots, recipe.seed), classes), shots)
        _save(draw_sheet(read_synthetic_set(store.folder(made)), classes), sheet)
        found |= {shots: None, sheet: None}
        if (name, recipe.shots) == WHOLE:
            found[_save_whole(made, set_file(*where, name), store)] = None
    return list(found)


def draw_sheet(images: Images, classes: int) -> Image.Image:
    """Draw the first DEPTH images of each class, a column per class; in grey if all are grey."""
    columns = [[shrunk(one, SIDE) for one in found] for found in Previews(images, classes, DEPTH)]
    every = [one.convert("RGB") for found in columns for one in found]
    side, rows = max(max(one.size) for one in every), max(map(len, columns))
    sheet = Image.new("RGB", (classes * (side + GAP) - GAP, rows * (side + GAP) - GAP), "white")
    for x, found in enumerate(columns):
        for y, one in enumerate(found):
            sheet.paste(one.convert("RGB"), (x * (side + GAP), y * (side + GAP)))
    return sheet.convert("L") if all(map(_is_grey, every)) else sheet


def _is_grey(image):
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _save(sheet, file):
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file, optimize=True)


def _save_whole(made, file, store):
    """Write a set as a reproducible zip of an image folder: always the same bytes."""
    with tempfile.TemporaryDirectory() as place, writing(file.parent):
        (folder,) = export(made, place, ["imagefolder"], store)
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
            for one in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(f"{file.stem}/{one.relative_to(folder)}")
                entry.external_attr = 0o644 << 16
                # PNG is compressed already.
                kind = zipfile.ZIP_STORED if one.suffix == ".png" else zipfile.ZIP_DEFLATED
                whole.writestr(entry, one.read_bytes(), kind)
    if (size := file.stat().st_size) > LIMIT:
        file.unlink()
        raise DataError(
            f"the set {file.name} takes {size / 1e6:.1f} MB, at most {LIMIT / 1e6:g} are kept; "
            "name another one in kept_sets.WHOLE"
        )
    return file
