"""Sample images of cells for a page's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..config import Recipe
from ..data.datasets import SHOTS_TITLE, few_shots, load_for
from ..data.images import Previews
from ..data.synthetic_set import read_synthetic_set
from ..methods.registry import METHODS, method_of
from ..pipeline.stages import Cell
from ..store.artifacts import Store
from ..store.open import open_store

if TYPE_CHECKING:
    from PIL.Image import Image


def axis_sample_rows(
    by_label: Mapping[str, Sequence[Recipe]], store: Store | None = None
) -> dict[str, Sequence[list[Image]]]:
    """Return title -> one list of one image per class, with a row per value of an ablation.

    Each value shows its first method that generates images; equal sets are shown once.
    """
    rows, seen = {}, set()
    for label, recipes in by_label.items():
        made = [recipe for recipe in recipes if method_of(recipe).generates]
        artifact = Cell(made[0]).key("generate") if made else None
        if made and artifact not in seen:
            seen.add(artifact)
            title, columns = list(sample_rows(made[:1], store, 1).items())[-1]
            rows[f"{title}, {label}"] = columns
    return rows


def sample_rows(
    recipes: Sequence[Recipe], store: Store | None = None, depth: int = 3
) -> dict[str, Sequence[list[Image]]]:
    """Return title -> one list of `depth` images per class.

    The rows are the first seed's few shots, then the set of each method that generates images.
    """
    store, first = store or open_store(), recipes[0]
    dataset = load_for(first)
    sets = {SHOTS_TITLE: few_shots(dataset, first.shots, first.seed)}
    for recipe in recipes:
        if method_of(recipe).generates and recipe.seed == first.seed:
            # A method with real images uses the same synthetic set.
            title = METHODS[recipe.method.removesuffix("+real")].title
            made = Cell(recipe, dataset).keys["generate"]
            if not store.folder(made).exists():
                store.done(made)  # fetches it if another machine made it
            sets[title] = read_synthetic_set(store.folder(made))
    return {title: Previews(images, len(dataset.classes), depth) for title, images in sets.items()}
