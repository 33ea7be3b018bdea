"""Draw the README's picture and the front page's strips of images.

    python book/overview.py           # both
    python book/overview.py strips    # the strips alone

The README's picture has real images, what the generator draws, and the accuracies of the run
`mnist_4`; the strips have its images too. All are of seed 0, the first of each class. Where the
store lacks them they are computed, in about a minute. The table is that of the committed records.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datadream.data.images import Previews
from datadream.data.synthetic_set import read_synthetic_set
from datadream.methods.registry import METHODS
from datadream.paths import paths
from datadream.pipeline.stages import Cell
from datadream.publish import freeze
from datadream.results import plots, records, style
from datadream.store.artifacts import Store
from datadream.store.open import open_store
from datadream.study.cells import cells
from datadream.study.named_runs import load_study

RUN = "mnist_4"
METHOD = "dset"
SHOWN = ("clip", "base", METHOD, "real", "base+real", f"{METHOD}+real")  # rows of the table
SIDE, GAP = 64, 4  # pixels of an image in a strip, and between two


def sample_rows(
    store: Store, run: str = RUN, **changes: object
) -> dict[str, Sequence[list[Image.Image]]]:
    """Return title -> the first image of each class: real, and drawn untuned and tuned.

    `changes` are other parameters than the run's. Only one image per class is made.
    """
    parameters, own = (
        load_study()["runs"][run]["parameters"],
        ("seeds", "workers", "images", "methods"),
    )
    known = {name: value for name, value in parameters.items() if name not in own}
    rows = {}
    for recipe in cells(["base", METHOD], [0], images=1, **known | changes):
        cell = Cell(recipe)
        shots, classes = cell.support.shots(), len(cell.dataset.classes)
        rows.setdefault("Real images: handwritten digits", Previews(shots, classes, 1))
        made = Previews(read_synthetic_set(cell.make("generate", store)), classes, 1)
        title = METHODS[recipe.method].title
        rows[title if recipe.method == "base" else f"{title}, same prompts and noise"] = made
    return rows


def draw(folder: Path, store: Store | None = None, **changes: object) -> list[Path]:
    """Draw the picture for a light and a dark page into a folder, and return the files."""
    rows, files = sample_rows(store or open_store(), **changes), []
    for theme in style.THEMES:
        style.set_theme(theme)
        files.append(folder / f"overview-{theme}.png")
        figure = plots.plot_overview(rows, records.summary(_table()))
        figure.savefig(files[-1], dpi=2 * style.DPI)
    style.set_theme("light")
    return files


def _table():
    """Return the committed records of the methods that the picture shows."""
    run = load_study()["runs"][RUN]["parameters"]
    where = {name: run[name] for name in ("dataset", "shots")}
    table = records.select(freeze.load_compared(), **where)
    return table[table["method"].isin(SHOWN)]


def draw_strips(place: Path, store: Store | None = None, **changes: object) -> list[Path]:
    """Write a row of images each for the real, untuned and tuned ones, and return the files."""
    files = []
    rows = sample_rows(store or open_store(), **changes)
    for name, columns in zip(("real", "untuned", "tuned"), rows.values(), strict=True):
        images = [column[0].convert("RGB") for column in columns]
        strip = Image.new("RGBA", (len(images) * (SIDE + GAP) - GAP, SIDE))
        for i, image in enumerate(images):
            large = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            strip.paste(large, (i * (SIDE + GAP), 0))
        files.append(place / f"strip-{name}.png")
        strip.save(files[-1], optimize=True)
    return files


if __name__ == "__main__":
    static = paths()["home"] / "book" / "_static"
    for file in [*draw_strips(static), *([] if sys.argv[1:] == ["strips"] else draw(static))]:
        print(file)
