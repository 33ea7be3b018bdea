"""The folder of a synthetic set: an image folder with a metadata row per image.

`datasets` and torchvision read it as it is. It holds `train/<class>/<index>.png`,
`train/metadata.jsonl`, and `classes.json`, which maps folder names to class names.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .images import Images, SoftLabel


def write_metadata(root: Path, rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """Write the metadata rows of a set, and the class name of each folder, to `root`."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "train" / "metadata.jsonl").write_text(lines)
    (root / "classes.json").write_text(json.dumps(names, indent=1))


def shares_row(shares: SoftLabel) -> list[dict[str, Any]]:
    """Return a soft label in the form of the metadata, with one type per column."""
    return [{"label": label, "share": share} for label, share in shares]


def read_synthetic_set(folder: Path) -> Images:
    """Return the images of a generated artifact in the order of its metadata."""
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return Images(
        tuple(str(folder / "train" / row["file_name"]) for row in rows),
        tuple(row["label"] for row in rows),
        shares=tuple(map(_soft_label, rows)) if any("shares" in row for row in rows) else (),
    )


def _soft_label(row):
    alone = [{"label": row["label"], "share": 1.0}]
    return tuple((one["label"], one["share"]) for one in row.get("shares", alone))
