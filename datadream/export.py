"""Export a synthetic dataset: an image folder, WebDataset shards or Parquet, each with a dataset card."""

import io
import json
import shutil
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import yaml

from .config import METHODS, ConfigError, _near
from .models import GENERATORS
from .store import Store, writing

SHARD = 1000  # images in a WebDataset shard


def export(key, target, formats=None, store=None):
    """Write the synthetic set of artifact `key` into folders of `target`, one per format, and return them.

    `formats` are names of FORMATS (None: all). A folder that exists is left alone. Raises ConfigError on an unknown artifact or format
    or a folder that is in the way, and StoreError where the target cannot be written.
    """
    store, formats = store or Store(), list(FORMATS) if formats is None else list(formats)
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise ConfigError(f"format {unknown[0]!r} is unknown; accepted: {', '.join(FORMATS)}{_near(unknown[0], FORMATS)}")
    if not key.startswith("generate-") or not store.done(key):
        sets = sorted(p.name for p in store.root.glob("generate-*") if store.whole(p.name))
        raise ConfigError(f"{key!r} is no finished synthetic set in {store.root}; there are: {', '.join(sets) or 'none'}")
    if "parquet" in formats and find_spec("datasets") is None:
        raise ConfigError("Parquet needs the package datasets: `pip install datasets`, or leave it out with --format imagefolder --format webdataset")
    folders = [Path(target) / f for f in formats]
    taken = [folder for folder in folders if folder.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists already; remove it or choose another target")
    source = store.folder(key)
    rows = [json.loads(line) for line in (source / "train" / "metadata.jsonl").read_text().splitlines()]
    by_folder = json.loads((source / "classes.json").read_text())
    classes = list(by_folder.values() if len(set(by_folder.values())) == len(by_folder) else by_folder)  # two classes may share a name
    for folder, name in zip(folders, formats):
        with writing(Path(target), "choose another target"):
            part = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            FORMATS[name](source, rows, classes, part)
            (part / "README.md").write_text(card(key, rows, classes, name, store))
            part.rename(folder)
    return folders


def write_imagefolder(source, rows, classes, folder):
    """Copy the images as train/<class>/<index>.png with metadata.jsonl, which `imagefolder` of datasets and torchvision read."""
    shutil.copytree(source / "train", folder / "train")
    shutil.copy2(source / "classes.json", folder)


def write_webdataset(source, rows, classes, folder):
    """Write shards of SHARD images: <number>.png, .cls (the label) and .json (the metadata), shuffled by nothing, dated by nothing."""
    for start in range(0, len(rows), SHARD):
        with tarfile.open(folder / f"train-{start // SHARD:06d}.tar", "w") as tar:
            for number, row in enumerate(rows[start:start + SHARD], start):
                image = (source / "train" / row["file_name"]).read_bytes()
                for suffix, content in (("png", image), ("cls", str(row["label"]).encode()), ("json", json.dumps(row).encode())):
                    entry = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def write_parquet(source, rows, classes, folder):
    """Write one Parquet file as `datasets` does: image bytes, label with the class names, prompt, seed, adapter."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features({"image": Image(), "label": ClassLabel(names=classes), "prompt": Value("string"), "seed": Value("int64"),
                         "adapter": Value("string")})

    def entries():  # one image in memory at a time
        for row in rows:
            image = {"bytes": (source / "train" / row["file_name"]).read_bytes(), "path": row["file_name"]}
            yield {"image": image, **{name: row[name] for name in ("label", "prompt", "seed", "adapter")}}

    with tempfile.TemporaryDirectory() as cache:
        made = Dataset.from_generator(entries, features=features, cache_dir=cache)
        made.to_parquet(folder / "train-00000-of-00001.parquet")


FORMATS = {"imagefolder": write_imagefolder, "webdataset": write_webdataset, "parquet": write_parquet}


def card(key, rows, classes, form, store):
    """Return the dataset card: method, base model and licence, recipe, seeds and known faults, as Markdown with YAML in front.

    Class names and prompts come from users, so they are quoted where they are YAML and escaped where they are text.
    """
    manifest = store.manifest(key)
    recipe = manifest["recipe"]
    base = recipe["generator"]
    row = GENERATORS.get(base)
    inputs, adapted = manifest["inputs"], len(manifest["inputs"]["adapters"])
    options = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in sorted({**inputs["generate"], **_tuning(recipe)}.items()))
    kind = {0: "none: the base model as it is", 1: "one adapter for the dataset (DataDream_dset)"}.get(adapted, f"{adapted} adapters, one per class")
    names = "\n".join(f"  {label}: {_quoted(name)}" for label, name in enumerate(classes))
    return CARD.format(key=key, form=form, count=len(rows), classes=len(classes), names=names, kind=kind, options=options, seed=inputs["seed"],
                       base=_text(base), licence=row.licence if row else "see the model's own card", prompt=_text(rows[0]["prompt"]),
                       hub=f" ({row.hub})" if row and row.hub else "", created=manifest["created"], commit=manifest["commit"],
                       data=_text(recipe["dataset"]), shots=recipe["shots"] or "all")


def _quoted(name):
    """Return a text as YAML in double quotes on one line; JSON writes an emoji as two halves, of which YAML makes no character."""
    return yaml.safe_dump(name, default_style='"', width=float("inf")).strip()


def _text(value):
    """Return a text as code in which neither HTML nor Markdown is read: Markdown looks into tags, but takes no character reference for its own."""
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in json.dumps(value, ensure_ascii=False)) + "</code>"


def _tuning(recipe):
    return {name: value for name, value in recipe.items() if name.startswith("adapt.") and METHODS[recipe["method"]].generator != "base"}


CARD = """---
pretty_name: DataDream synthetic set {key}
task_categories: [image-classification]
tags: [synthetic, few-shot, datadream]
class_names:
{names}
---

# Synthetic training set {key}

{count} images of {classes} classes, made by a text-to-image model with the method of *DataDream: Few-shot Guided Dataset Generation*
(Kim et al., ECCV 2024). No image is a photograph. Format: {form}.

- Base model: {base}{hub}. Its licence, which also holds for what is made with it: {licence}.
- LoRA: {kind}, tuned on {shots} real images per class of the dataset {data}.
- Prompt of the first class: {prompt}.
- Seed of the study: {seed}; each image has its own seed, in the metadata.
- Made: {created}, by commit {commit} of the reproduction.

## Recipe

| setting | value |
|---|---|
{options}

## Known faults

- Nothing was filtered: some images do not show the class that their label names.
- Images resemble the few real ones that the adapter was tuned on, and may copy parts of them; whoever publishes this set should know
  whether those may be published.
- The base model's own biases are in the images.
"""
