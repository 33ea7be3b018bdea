"""Draw the picture of the README: real images, what the generator draws, and the claim's table.

    python book/overview.py

The images have the settings of the run `mnist_seeds`, seed 0; of each class the first is shown.
Where the store lacks them they are computed, in about a quarter of an hour on two cores. The table
is that of the committed records.
"""

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

RUN = "mnist_seeds"
METHOD = "dset"


def sample_rows(store: Store, **changes: object) -> dict[str, Sequence[list[Image.Image]]]:
    """Return title -> the first image of each class: real, and drawn untuned and tuned.

    `changes` are other parameters than the run's. Only one image per class is made.
    """
    run = load_study()["runs"][RUN]["parameters"]
    known = {
        name: value for name, value in run.items() if name not in ("seeds", "workers", "images")
    }
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
        figure = plots.plot_overview(rows, records.summary(freeze.load_frozen(RUN)))
        figure.savefig(files[-1], dpi=2 * style.DPI)
    style.set_theme("light")
    return files


if __name__ == "__main__":
    for file in draw(paths()["home"] / "book" / "_static"):
        print(file)
