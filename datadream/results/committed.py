"""The committed test predictions: a Parquet file per dataset and number of shots.

With them a page can compare methods image by image on a machine that has not computed the results.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.predictions import Predictions
from ..paths import paths
from ..store.files import writing

COLUMNS = ("result", "image", "label", "predicted", "margin")


def predictions_file(dataset: str, shots: int) -> Path:
    """Return the file for a dataset and a number of shots; it need not exist."""
    return paths()["predictions"] / f"{dataset}-{shots}.parquet"


def write_committed(dataset: str, shots: int, results: Mapping[str, Predictions]) -> Path:
    """Write the test predictions of `results`, keyed by result, and return the file.

    Without results the file is removed.

    Each row is a test image: `result` is the `judge` artifact of a record, `image` the position in
    the test set, `margin` the predicted class's logit minus the next one's.
    """
    tables = [
        pd.DataFrame(
            {
                "result": name,
                "image": np.arange(len(own.labels), dtype=np.int32),
                "label": own.labels,
                "predicted": own.classes,
                "margin": own.margins,
            }
        )
        for name, own in sorted(results.items())
    ]
    file = predictions_file(dataset, shots)
    with writing(file.parent):
        if not tables:
            file.unlink(missing_ok=True)
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        found = pd.concat(tables, ignore_index=True).astype({"result": "category"})
        found.to_parquet(file, index=False, compression="zstd", compression_level=19)
    return file


def read_committed(dataset: str, shots: int) -> dict[str, Predictions]:
    """Return the committed test predictions by the key of their result; {} if none are kept."""
    file = predictions_file(dataset, shots)
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else {}


@lru_cache(maxsize=8)
def _read(file: Path, _: int) -> dict[str, Predictions]:
    table = pd.read_parquet(file, columns=list(COLUMNS))
    return {
        str(name): Predictions(
            *(rows[column].to_numpy() for column in ("label", "predicted", "margin"))
        )
        for name, rows in table.groupby("result", observed=True, sort=False)
    }
