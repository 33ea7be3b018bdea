"""The record of a cell: its recipe, result and provenance as one JSON file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Recipe, as_dict, key_fields
from ..errors import DataError
from ..store.files import reading
from ..store.keys import key, stage_of_key
from ..store.provenance import provenance

if TYPE_CHECKING:
    from ..pipeline.stages import Cell
    from ..store.artifacts import Store


def read_record(file: Path) -> dict[str, Any]:
    """Return the record in a file.

    Raises DataError, with the fix, if it is damaged, since skipping it would silently shorten a
    table. Raises StoreError if it cannot be read.
    """
    try:
        with reading(file):
            text = file.read_text()
        record = json.loads(text)
        record_row(record)
        return record
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"the record {file} is damaged ({error!r}); remove it and run its cell again, which "
            "reads the stored artifacts"
        ) from error


def record_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's row of the tidy table."""
    recipe, test = record["recipe"], record["result"]["test"]
    return {
        "profile": recipe["profile"],
        "protocol": recipe["protocol"],
        "dataset": recipe["dataset"],
        "method": recipe["method"],
        "shots": recipe["shots"],
        "images": recipe["generate.images"],
        "seed": recipe["seed"],
        **{k: test[k] for k in ("top1", "low", "high", "total")},
        "val_top1": record["result"]["val"]["top1"],
        "seconds": sum(record["seconds"].values()),
        "stages": record["seconds"],
        "curve": record["curve"],
        "per_class": test["per_class"],
        "confusion": test["confusion"],
        **{
            k: record[k]
            for k in ("artifacts", "recipe", "commit", "dirty", "device", "created", "key")
        },
    }


def record_file(cell: Cell, store: Store) -> Path:
    """Return the file of a cell's record; its name depends on recipe, data and weights."""
    return store.records / f"{record_key(as_dict(cell.recipe), cell.keys)}.json"


def record_key(recipe: Mapping[str, Any], artifacts: Mapping[str, str]) -> str:
    """Return the key of a record from its recipe, a flat dict, and its artifacts."""
    return key("record", **key_fields(Recipe(), recipe), artifacts=artifacts)


def work_of(cell: Cell) -> dict[str, dict[str, Any]]:
    """Return the work of a cell's stages: stage -> artifacts, images generated, steps and units.

    Units are those of `Stage.work`: images times steps, or generator passes.
    """
    from ..pipeline.stages import STAGES

    found = {}
    for stage in STAGES:
        every = [stage.work(cell, part) for part in cell.keys_of(stage.name)] if stage.work else []
        if every:
            images, steps, units = (sum(column) for column in zip(*every, strict=True))
            own = {"artifacts": len(every), "images": images, "steps": steps, "units": units}
            found[stage.name] = own
    return found


def write_record(cell: Cell, made: Mapping[str, Path], store: Store) -> dict[str, Any]:
    """Write a cell's record to the store and return it.

    `made` are the folders of its stages. An existing record with the same result is kept, with the
    time and commit of its computation.
    """
    file, keys = record_file(cell, store), cell.keys
    result = json.loads((made["judge"] / "result.json").read_text())
    curve = json.loads((made["train"] / "curve.json").read_text()) if "train" in made else []
    try:
        first = read_record(store.refresh(file))
        # The same cell: keep the time and commit of its computation.
        if (first["result"], first["curve"]) == (result, curve):
            return first
    except DataError:  # missing or damaged: rebuild it from the artifacts
        pass
    seconds, commits = {}, {}
    for artifact in keys.values():
        stage = stage_of_key(artifact)
        # An adapter may have been deleted while its images remain.
        manifest = store.manifest(artifact) or {"seconds": 0.0, "commit": "unknown"}
        seconds[stage] = seconds.get(stage, 0.0) + manifest["seconds"]
        commits[stage] = sorted({*commits.get(stage, []), manifest["commit"]})
    record = {
        "key": file.stem,
        "recipe": as_dict(cell.recipe),
        "result": result,
        "curve": curve,
        "seconds": seconds,
        "work": work_of(cell),
        "commits": commits,
        "artifacts": keys,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **provenance(),
    }
    store.save(file, record)
    return record
