"""Export a synthetic dataset as an image folder, WebDataset shards or Parquet, with a card."""

import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from huggingface_hub import DatasetCardData

from ..errors import ConfigError, did_you_mean
from ..methods.registry import METHODS
from ..models.catalog import GENERATORS
from ..paths import umask_modes
from ..store.artifacts import Store
from ..store.files import writing
from ..store.open import open_store

SHARD = 1000  # images in a WebDataset shard
Rows = list[dict[str, Any]]  # the metadata, one row per image


def export(
    key: str,
    target: str | Path,
    formats: Sequence[str] | None = None,
    store: Store | None = None,
    licence: str = "unknown",
) -> list[Path]:
    """Write the synthetic set of artifact `key` to `target`, one folder per format.

    Returns the folders. `formats` are names from FORMATS (None: all); `licence` is the images'
    licence on the cards, a Hugging Face Hub identifier. Existing folders are never overwritten.
    Raises ConfigError on an unknown artifact or format, a malformed licence or a folder that
    already exists, and StoreError if the target cannot be written.
    """
    store, formats = store or open_store(), list(FORMATS) if formats is None else list(formats)
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise ConfigError(
            f"format {unknown[0]!r} is unknown; accepted: "
            f"{', '.join(FORMATS)}{did_you_mean(unknown[0], FORMATS)}"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ConfigError(
            f"licence {licence!r} is not an identifier of the hub; give one such as cc-by-4.0, "
            "apache-2.0, other or unknown"
        )
    if not key.startswith("generate-") or not store.done(key):
        sets = [name for name in store.keys() if name.startswith("generate-") and store.whole(name)]
        raise ConfigError(
            f"{key!r} is not a finished synthetic set in {store.address}; there are: "
            f"{', '.join(sets) or 'none'}"
        )
    if "parquet" in formats and find_spec("datasets") is None:
        raise ConfigError(
            "Parquet needs the package datasets: `pip install datasets`, or leave it out with "
            "--format imagefolder --format webdataset"
        )
    folders = [Path(target) / f for f in formats]
    taken = [folder for folder in folders if folder.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists already; remove it or choose another target")
    source = store.folder(key)
    rows = [
        json.loads(line) for line in (source / "train" / "metadata.jsonl").read_text().splitlines()
    ]
    by_folder = json.loads((source / "classes.json").read_text())
    # Two classes may share a name; then use the folder names.
    classes = list(
        by_folder.values() if len(set(by_folder.values())) == len(by_folder) else by_folder
    )
    for folder, name in zip(folders, formats, strict=True):
        with writing(Path(target), "choose another target"):
            part = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            FORMATS[name](source, rows, classes, part)
            (part / "README.md").write_text(card(key, rows, classes, name, store, licence))
            umask_modes(part)  # copies keep the mode of their source
            part.rename(folder)
    return folders


def write_imagefolder(source: Path, rows: Rows, classes: Sequence[str], folder: Path) -> None:
    """Copy the images as train/<class>/<index>.png with their metadata.

    Both `imagefolder` of datasets and torchvision's ImageFolder can read them. Label names need
    Parquet metadata, and so the package `datasets`; without it the metadata stay JSON lines and the
    labels numbers. If the folders do not sort in label order, which is how torchvision numbers
    classes, their names get the label as a prefix.
    """
    shutil.copytree(source / "train", folder / "train")
    names = json.loads((source / "classes.json").read_text())
    places = _in_label_order(list(names))
    for old, new in places.items():
        if new != old:
            (folder / "train" / old).rename(folder / "train" / new)
    rows = [{**row, "file_name": _moved(row["file_name"], places)} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(lines)
    named = {places[old]: name for old, name in names.items()}
    (folder / "classes.json").write_text(json.dumps(named, indent=1))
    if find_spec("datasets"):
        from datasets import Dataset, Features, Value

        names = {name: Value("string") for name in ("file_name", "prompt", "class", "adapter")}
        features = Features({**names, "label": _label(classes), "seed": Value("int64")})
        Dataset.from_list(rows, features=features).to_parquet(folder / "train" / "metadata.parquet")
        (folder / "train" / "metadata.jsonl").unlink()


def _in_label_order(folders):
    """Return folder -> its name in the export, such that names sort in label order."""
    if folders == sorted(folders):
        return {folder: folder for folder in folders}
    width = len(str(len(folders) - 1))
    return {folder: f"{label:0{width}d} {folder}" for label, folder in enumerate(folders)}


def _moved(file, places):
    folder, slash, name = file.partition("/")
    return f"{places[folder]}{slash}{name}"


def _label(classes):
    from datasets import ClassLabel

    return ClassLabel(names=classes)


def write_webdataset(source: Path, rows: Rows, classes: Sequence[str], folder: Path) -> None:
    """Write shards of SHARD images: <number>.png, .cls (the label) and .json (the metadata).

    They are not shuffled and carry no dates, so that the same set gives the same bytes.
    """
    for start in range(0, len(rows), SHARD):
        with tarfile.open(folder / f"train-{start // SHARD:06d}.tar", "w") as tar:
            for number, row in enumerate(rows[start : start + SHARD], start):
                image = (source / "train" / row["file_name"]).read_bytes()
                for suffix, content in (
                    ("png", image),
                    ("cls", str(row["label"]).encode()),
                    ("json", json.dumps(row).encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def write_parquet(source: Path, rows: Rows, classes: Sequence[str], folder: Path) -> None:
    """Write one Parquet file as `datasets` does: image bytes, label, prompt, seed, adapter.

    The label column carries the class names.
    """
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {
            "image": Image(),
            "label": _label(classes),
            "prompt": Value("string"),
            "seed": Value("int64"),
            "adapter": Value("string"),
        }
    )

    def entries() -> Iterator[dict[str, Any]]:  # one image in memory at a time
        for row in rows:
            image = {
                "bytes": (source / "train" / row["file_name"]).read_bytes(),
                "path": row["file_name"],
            }
            yield {
                "image": image,
                **{name: row[name] for name in ("label", "prompt", "seed", "adapter")},
            }

    with tempfile.TemporaryDirectory() as cache:
        made = Dataset.from_generator(entries, features=features, cache_dir=cache)
        made.to_parquet(folder / "train-00000-of-00001.parquet")


FORMATS = {
    "imagefolder": write_imagefolder,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
}


def card(
    key: str, rows: Rows, classes: Sequence[str], form: str, store: Store, licence: str
) -> str:
    """Return the dataset card: method, base model, licences, recipe, seeds and known limitations.

    It is Markdown with YAML front matter. Class names and prompts come from users, so they are
    quoted in the YAML and put in code spans in the text.
    """
    manifest = cast("dict[str, Any]", store.manifest(key))  # None only if it is damaged
    recipe, inputs = manifest["recipe"], manifest["inputs"]
    row, adapted = GENERATORS.get(recipe["generator"]), len(inputs["adapters"])
    options = "\n".join(
        f"| {name} | {json.dumps(value)} |"
        for name, value in sorted({**inputs["generate"], **_tuning(recipe, adapted)}.items())
    )
    method = METHODS.get(recipe["method"])
    kind = {0: "none: the base model as it is", 1: "one adapter"}.get(
        adapted, f"{adapted} adapters"
    )
    kind += f" ({method.title if method else recipe['method']})"
    front = DatasetCardData(
        pretty_name=f"DataDream synthetic set {key}",
        license=licence,
        task_categories=["image-classification"],
        tags=["synthetic", "few-shot", "datadream"],
        class_names=dict(enumerate(classes)),
    )
    return CARD.format(
        front=front.to_yaml(),
        key=key,
        form=form,
        count=len(rows),
        classes=len(classes),
        kind=kind,
        options=options,
        seed=inputs["seed"],
        base=_text(recipe["generator"]),
        prompt=_text(rows[0]["prompt"]),
        model=row.licence if row else "see the model's own card",
        hub=f" ({row.hub})" if row and row.hub else "",
        created=manifest["created"],
        commit=manifest["commit"],
        shots=recipe["shots"] or "all",
        columns=COLUMNS[form],
        order=ORDER.get(form, ""),
        data="a folder of photos"
        if recipe["dataset"] == "folder"
        else f"the dataset {_text(recipe['dataset'])}",
        licence=LICENCE if licence == "unknown" else f"{licence}, as whoever exported it says",
    )


def _text(value):
    """Return a value as JSON in a code span, so that nothing in it is read as markup.

    The fence is longer than any run of backticks in the text.
    """
    text = json.dumps(value, ensure_ascii=False)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}"


def _tuning(recipe, adapted):
    return {name: value for name, value in recipe.items() if name.startswith("adapt.") and adapted}


LICENCE = "nobody has chosen one yet (`--licence` of the export)"
COLUMNS = {
    "imagefolder": "image, label, prompt, class, seed, adapter",
    "webdataset": "png, cls (the label), json (prompt, class, seed, adapter)",
    "parquet": "image, label, prompt, seed, adapter",
}
ORDER = {"imagefolder": ", which is also the sort order of the folders"}
CARD = """---
{front}
---

# Synthetic training set {key}

{count} images of {classes} classes, made by a text-to-image model with the method of
*DataDream: Few-shot Guided Dataset Generation* (Kim et al., ECCV 2024). No image
is a photograph. Format: {form}.

```python
from datasets import load_dataset

images = load_dataset("path/to/{form}", split="train")  # columns: {columns}
```

- Labels: the numbers of `class_names` above{order}.
- Licence of these images: {licence}.
- Base model: {base}{hub}. Its licence also applies to images made with it: {model}.
- LoRA: {kind}, tuned on {shots} real images per class of {data}.
- Prompt for the first class: {prompt}.
- Seed of the study: {seed}; each image has its own seed, in the metadata.
- Created: {created}, with commit {commit} of the reproduction.

## Recipe

| setting | value |
|---|---|
{options}

## Known limitations

- The images were not filtered: some do not show the class of their label.
- Images resemble the few real ones that the adapter was tuned on, and may copy parts of
  them. Check that those may be published before you publish this set.
- The images have the biases of the base model.
"""
