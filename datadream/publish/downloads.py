"""What the book offers for download: the records as tables, test predictions, and whole sets.

The tables of the records are written when the book is built, and git ignores them. Predictions and
sets are in the repository. `book/_ext/data_pages.py` puts the texts where a page has the directive
`{downloads}`, as Markdown.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.entries import SUFFIXES
from ..methods.registry import METHODS
from ..paths import atomic_write, paths, relative_to_home
from ..results.agreement import STAGES
from ..results.records import in_profile
from ..results.tables import escape_markdown
from ..store.files import writing
from .freeze import MISSING, load_all_frozen
from .method_page import markdown_table

SHARED = "adapt"  # the stage that may have an artifact for each class or image: a list
SORTED = ["dataset", "shots", "method", "seed", "created"]
PARQUET, CSV = "records.parquet", "records.csv"
LISTS = "(a list, in the Parquet file only)"
# What a value of a recipe becomes in a table, with room for what a record lacks.
KINDS = {bool: "boolean", int: "Int64", float: "float64", str: "string"}


@dataclass(frozen=True)
class Column:
    """What a column of the records' tables holds, and in which unit."""

    about: str
    unit: str = ""
    nested: bool = False  # a list, which only the Parquet file has


COLUMNS = {
    "key": Column("Key of the record; each record is one row"),
    "runs": Column("Executed pages that show the record; in the CSV separated by spaces"),
    "compared": Column(
        "True if the book's comparisons include the record: the method has its profile's own "
        "settings, and no newer record has the same dataset, shots, method and seed"
    ),
    "profile": Column("Models and settings to begin with, such as `mini`"),
    "protocol": Column("`strict`, or `released` for the released code's choices"),
    "dataset": Column("Name of the dataset in commands"),
    "method": Column("Name of the method in commands"),
    "title": Column("Name of the method in the book"),
    "shots": Column("Real images of each class", "images"),
    "images": Column(
        "Synthetic images of each class in the recipe; a method that generates none ignores it",
        "images",
    ),
    "seed": Column("Draws the few shots and all noise"),
    "top1": Column("Test images that are classified correctly", "0 to 1"),
    "low": Column("Lower end of its 95 % Wilson interval over test images", "0 to 1"),
    "high": Column("Upper end of that interval", "0 to 1"),
    "total": Column("Test images", "images"),
    "val_top1": Column("Validation images that are classified correctly", "0 to 1"),
    "seconds": Column("Time of all stages; a stage that several records share counts in each", "s"),
    **{
        f"seconds.{stage}": Column(f"Time of the stage *{stage}*; empty if there was none", "s")
        for stage in STAGES
    },
    "device": Column("What it was computed on"),
    "commit": Column("Commit of the code"),
    "dirty": Column("True if the code differed from that commit"),
    "created": Column("When it was computed", "UTC, ISO 8601"),
    **{
        f"artifacts.{stage}": Column(f"Key of the artifact of the stage *{stage}*")
        for stage in STAGES
        if stage != SHARED
    },
    f"artifacts.{SHARED}": Column("Keys of the generator's adapters", nested=True),
    "per_class": Column("Accuracy by class, in label order", "0 to 1", nested=True),
    "confusion": Column("Row: true class, column: predicted", "test images", nested=True),
    "curve": Column(
        "Points of the classifier's training: `step` (optimiser steps), `loss`, and `val` "
        "(validation accuracy, 0 to 1)",
        nested=True,
    ),
}
RECIPE = Column(
    "Each setting of the recipe, such as `recipe.adapt.rank`, see {doc}`/book/deviations`; empty "
    "where the record is older than the setting",
    "its own",
)


def records_table() -> pd.DataFrame:
    """Return the committed records, one row each, with the columns of COLUMNS and the recipe's.

    Without a committed record the table is empty.
    """
    every = load_all_frozen()
    runs = {key: list(own) for key, own in every.groupby("key")["run"]}
    table = every.drop_duplicates("key").sort_values(SORTED, ignore_index=True)
    own = table.loc[:, table.columns.isin([*COLUMNS])].assign(
        runs=[runs[key] for key in table["key"]],
        compared=table["key"].isin(in_profile(every)["key"]),
        title=[METHODS[name].title if name in METHODS else name for name in table["method"]],
    )
    stages = {f"seconds.{stage}": _each(table["stages"], stage) for stage in STAGES}
    keys = {
        f"artifacts.{stage}": _each(table["artifacts"], stage)
        for stage in STAGES
        if stage != SHARED
    }
    keys[f"artifacts.{SHARED}"] = pd.Series([_adapters(one) for one in table["artifacts"]])
    names = sorted({name for recipe in table["recipe"] for name in recipe})
    settings = {f"recipe.{name}": _each(table["recipe"], name) for name in names}
    found = pd.concat([own, pd.DataFrame({**stages, **keys, **settings})], axis="columns")
    return found.loc[:, [*COLUMNS, *settings]]


def _each(column: Iterable[dict[str, Any]], name: str) -> pd.Series:
    """Return one field of a column of mappings, in the narrowest type that holds all values."""
    values = [one.get(name) for one in column]
    kinds = {type(value) for value in values if value is not None}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
    if kind not in KINDS:  # of several kinds, or none at all
        return pd.Series(
            [None if value is None else str(value) for value in values], dtype="string"
        )
    return pd.Series(values, dtype=KINDS[kind])


def _adapters(artifacts):
    """Return the keys of the adapters, which are called adapt0, adapt1, ..., in this order."""
    numbers = {name: name.removeprefix(SHARED) for name in artifacts if name.startswith(SHARED)}
    return [artifacts[name] for name in sorted(numbers, key=lambda name: int(numbers[name] or 0))]


def write_records(folder: Path | None = None) -> list[Path]:
    """Write `records_table` as Parquet and, without nested columns, as CSV; return the files.

    `folder` None is book/generated. Without a committed record nothing is written, and files of an
    earlier call are removed.
    """
    place = folder or paths()["generated"]
    table, files = records_table(), [place / PARQUET, place / CSV]
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        if table.empty:
            for file in files:
                file.unlink(missing_ok=True)
            return []
        with atomic_write(files[0]) as part:
            table.to_parquet(part, index=False, compression="zstd")
        flat = table.drop(columns=[name for name, own in COLUMNS.items() if own.nested])
        with atomic_write(files[1]) as part:
            flat.assign(runs=flat["runs"].map(" ".join)).to_csv(part, index=False)
    return files


def records_text() -> str:
    """Tabulate the files of the records with a link to each, or say that none is committed."""
    folder, raw = paths()["generated"], paths()["kept_records"]
    if not (folder / PARQUET).exists():
        return MISSING
    table = pd.read_parquet(folder / PARQUET, columns=["key"])
    about = {
        folder / PARQUET: "All columns, with their types",
        folder / CSV: "The same without lists, for any program",
        raw: "As the study keeps them, with package versions and what each stage spent",
    }
    rows = [
        {"File": _link(file), "Size": _size(file), "What it holds": text}
        for file, text in about.items()
    ]
    told = f"Each of these files holds all {len(table)} records."
    return f"{told}\n\n{markdown_table(pd.DataFrame(rows), sorts=False)}"


def columns_text() -> str:
    """Tabulate the columns of the records' tables: name, unit, and meaning."""
    rows = [
        {
            "Column": f"`{name}`",
            "Unit": own.unit or "-",
            "Meaning": f"{own.about} {LISTS}" if own.nested else own.about,
        }
        for name, own in {**COLUMNS, "recipe.*": RECIPE}.items()
    ]
    return markdown_table(pd.DataFrame(rows), sorts=False)


def predictions_text() -> str:
    """Tabulate the committed files of test predictions with a link to each, if there are any."""
    rows = []
    for file in sorted(paths()["predictions"].glob("*.parquet"), key=_by_shots):
        dataset, _, shots = file.stem.rpartition("-")
        results = pd.read_parquet(file, columns=["result"])["result"]
        rows.append(
            {
                "File": _link(file),
                "Dataset": escape_markdown(dataset),
                "Shots": shots,
                "Results": f"{results.nunique():,}",
                "Rows": f"{len(results):,}",
                "Size": _size(file),
            }
        )
    return markdown_table(pd.DataFrame(rows)) if rows else MISSING


def _by_shots(file):
    dataset, _, shots = file.stem.rpartition("-")
    return dataset, int(shots)


def sets_text() -> str:
    """Tabulate the committed synthetic sets with a link to each, if there are any."""
    rows = []
    for file in sorted(paths()["sets"].glob("*.zip")):
        dataset, shots, method = file.stem.split("-", 2)
        known = METHODS.get(method)
        rows.append(
            {
                "File": _link(file),
                "Dataset": escape_markdown(dataset),
                "Shots": shots,
                "Method": escape_markdown(known.title if known else method),
                "Images": f"{_images_in(file):,}",
                "Size": _size(file),
            }
        )
    return markdown_table(pd.DataFrame(rows)) if rows else MISSING


def measures_text() -> str:
    """Tabulate the committed measures of synthetic sets with a link to each file."""
    rows = []
    for file in sorted(paths()["kept_pages"].glob("*_analysis.csv")):
        table = pd.read_csv(file, usecols=["dataset", "shots"])
        where = {
            "Dataset": ", ".join(map(escape_markdown, table["dataset"].unique())),
            "Shots": ", ".join(map(str, table["shots"].unique())),
        }
        rows.append({"File": _link(file), **where, "Rows": f"{len(table):,}", "Size": _size(file)})
    return markdown_table(pd.DataFrame(rows)) if rows else MISSING


def _images_in(file):
    with zipfile.ZipFile(file) as whole:
        return sum(Path(name).suffix.lower() in SUFFIXES for name in whole.namelist())


def _link(file):
    return f"{{download}}`{file.name} </{relative_to_home(file)}>`"


def _size(file):
    size = file.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, size // 1000)} kB"


TEXTS = {
    "records": records_text,
    "columns": columns_text,
    "predictions": predictions_text,
    "sets": sets_text,
    "measures": measures_text,
}
