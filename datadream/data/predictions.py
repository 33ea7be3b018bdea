"""A classifier's prediction for each image, as a small file beside a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """The true and the predicted class of each image, in the order of the set.

    `margins` are the classifier's confidence: the largest logit minus the second largest, at least
    0.
    """

    labels: np.ndarray
    classes: np.ndarray
    margins: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which images are classified correctly, booleans (n,)."""
        return self.labels == self.classes


def write_predictions(folder: Path, parts: Mapping[str, Predictions]) -> None:
    """Write the predictions for each part of the dataset, 'val' or 'test', to `folder`.

    Classes take two bytes per image, or four if there are many, and margins two.
    """
    from safetensors.numpy import save_file

    from ..paths import atomic_write

    found: dict[str, np.ndarray] = {}
    for part, own in parts.items():
        largest = max([0, *own.labels, *own.classes])
        kind = np.int16 if largest < 2**15 else np.int32
        found[f"{part}.labels"] = np.asarray(own.labels, kind)
        found[f"{part}.classes"] = np.asarray(own.classes, kind)
        found[f"{part}.margins"] = np.clip(own.margins, 0, 6e4).astype(np.float16)
    with atomic_write(folder / FILE) as file:
        save_file(found, file)


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """Read what `write_predictions` wrote.

    Raises LookupError if the result comes from an earlier version and has none.
    """
    from safetensors.numpy import load_file

    if not (folder / FILE).is_file():
        raise LookupError(
            f"{folder.name} has no {FILE}, since an earlier version made it; remove the folder, "
            "and its cell judges the test images again when it is run"
        )
    found = load_file(folder / FILE)
    parts = dict.fromkeys(name.partition(".")[0] for name in found)
    return {
        part: Predictions(*(found[f"{part}.{name}"] for name in ("labels", "classes", "margins")))
        for part in parts
    }
