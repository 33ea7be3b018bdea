"""A user's own photos: check them, estimate what a classifier makes of them, and train the one that is kept."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pandas as pd
from PIL import Image

from .classify import train
from .config import interpreter, recipe, shown
from .data import few_shots, load_for
from .generate import generate, read
from .hub import GENERATORS
from .images import SUFFIXES, DataError, Images, _class_names
from .metrics import wilson
from .store import Store
from .study import artifact_keys, run

ROTATED = range(2, 9)  # EXIF orientations other than upright


def inspect(folder, test_folder="", side=0):
    """Return a table of what is noticed in a folder of class folders: level ('error' or 'note'), where, what.

    Errors stop a training: unreadable images, two classes that differ only in case, the same image in two classes or in the test.
    Notes do not: counts, duplicates within a class, images smaller than `side` pixels, EXIF rotation, files that are no images.
    Raises DataError if there are no class folders.
    """
    if not folder or not Path(folder).is_dir() or not _class_names(Path(folder)):
        raise DataError(f"folder={str(folder)!r} has no class folders; put the photos of each class into a folder named after it")
    found, seen = [], defaultdict(list)
    for part, root in (("", Path(folder)), ("test: ", Path(test_folder) if test_folder else None)):
        for name in _class_names(root) if root else []:
            found += _class(root / name, part + name, seen, side)
    found += _alike(_class_names(Path(folder))) + _duplicates(seen)
    return pd.DataFrame(found, columns=["level", "where", "what"]).sort_values("level", kind="stable", ignore_index=True)


def drawn_side(**fields):
    """Return the side in pixels of what the generator of a recipe's `fields` draws, 0 if it is not in the table of models."""
    chosen = recipe(dataset="folder", **fields)
    return chosen.resolution or (GENERATORS[chosen.generator].side if chosen.generator in GENERATORS else 0)


def require(table):
    """Raise DataError, with all of them, if a table of `inspect` has errors."""
    errors = table[table["level"] == "error"]
    if len(errors):
        count, them = (f"{len(errors)} errors", "them") if len(errors) > 1 else ("1 error", "it")
        raise DataError(f"{count} in the photos; mend {them} and run again:\n" + "\n".join(f"- {r.where}: {r.what}" for r in errors.itertuples()))


def _class(folder, name, seen, side):
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    images, found = [p for p in files if p.suffix.lower() in SUFFIXES], []
    others = [p.name for p in files if p not in images]
    found.append(("note" if images else "error", name, f"{len(images)} image{'' if len(images) == 1 else 's'}"))
    if others:
        found.append(("note", name, f"{len(others)} other file{' is' if len(others) == 1 else 's are'} not used, such as {others[0]}"))
    for file in images:
        try:
            Images((str(file),), (0,)).open(0)
            with Image.open(file) as image:
                size, orientation = image.size, image.getexif().get(0x0112, 1)
        except DataError as error:
            found.append(("error", f"{name}/{file.name}", str(error).removeprefix(f"{file} ")))
            continue
        seen[hashlib.sha256(file.read_bytes()).hexdigest()].append((name, file.name))
        if orientation in ROTATED:
            found.append(("note", f"{name}/{file.name}", "is turned by its EXIF entry; it is used upright"))
        if min(size) < side:
            found.append(("note", f"{name}/{file.name}", f"is {size[0]} x {size[1]} pixels, less than the {side} that the generator draws"))
    return found


def _alike(names):
    groups = defaultdict(list)
    for name in names:
        groups["".join(c for c in name.casefold() if c.isalnum())].append(name)
    return [("error", ", ".join(group), "are named alike; merge them, or give them names that differ in more than case and punctuation")
            for group in groups.values() if len(group) > 1]


def _duplicates(seen):
    found = []
    for copies in (c for c in seen.values() if len(c) > 1):
        classes = sorted({name for name, _ in copies})
        where = ", ".join(f"{name}/{file}" for name, file in copies)
        found.append(("note", where, "are the same image") if len(classes) == 1 else
                     ("error", where, "are the same image in two classes, or in training and test; keep it in one place"))
    return found


def estimate(folder, test_folder="", folds=4, methods=("real", "dset+real"), store=None, **fields):
    """Return the table of the methods' accuracy on photos that they were not trained on: one row per method.

    With a `test_folder` each method is trained once on all photos. Else `folds`-fold cross-validation: the generator, too, is tuned
    without the held-out part, and every photo is tested once. The interval is Wilson's over all tested photos. `fields` go to the recipe.
    """
    parts = [{"test_folder": test_folder}] if test_folder else [{"fold": f"{i + 1}/{folds}"} for i in range(folds)]
    rows = []
    for method in methods:
        records = [run(recipe(dataset="folder", folder=folder, method=method, **part, **fields), store) for part in parts]
        tests = [record["result"]["test"] for record in records]
        total = sum(test["total"] for test in tests)
        correct = round(sum(test["top1"] * test["total"] for test in tests))
        low, high = wilson(correct, total)
        rows.append({"method": method, "tested": total, "correct": correct, "top1": 100 * correct / total, "low": 100 * low, "high": 100 * high})
    return pd.DataFrame(rows)


def keep(folder, test_folder="", method="dset+real", store=None, **fields):
    """Train on all photos and return (folder of the synthetic set or None, folder of the classifier's adapter, few shots, synthetic images)."""
    store, part = store or Store(), {"test_folder": test_folder} if test_folder else {"fold": "0/2"}
    chosen = recipe(dataset="folder", folder=folder, method=method, **part, **fields)
    dataset, row, keys = load_for(chosen), chosen.row, artifact_keys(chosen)
    shots, synthetic, made = few_shots(dataset, chosen.shots, chosen.seed), None, None
    if row.generator:
        made = generate(chosen, dataset, shots, store)
        synthetic = read(made)
    trained = train(chosen, dataset, shots if row.real else None, synthetic, keys.get("generate"), store)
    return made, trained, shots, synthetic


def classify_files(adapter, files):
    """Return the class name of each image file, by the classifier adapter in a folder (what `keep` returns)."""
    from .classify import predict
    from .data import evaluation_batches
    from .models import load_classifier_lora

    model, config = load_classifier_lora(adapter)
    images = Images(tuple(str(f) for f in files), (0,) * len(files))
    return [config["classes"][i] for i in predict(model, model.prompts(config["prompts"]), evaluation_batches(images, model.size))]


def how_to_classify(adapter):
    """Return a script that classifies a photo with the adapter in a folder, and the command that runs it, for a page."""
    return (f"# classify.py, in the project's folder; run it there: {interpreter()} classify.py\n"
            f"from datadream.photos import classify_files\n\n"
            f"print(classify_files({shown(adapter)!r}, ['a photo.jpg']))")


def how_to_export(made):
    """Return the command that exports the synthetic set in a folder, for a page."""
    return f"{interpreter()} -m datadream export {Path(made).name} my_set"


def answers(adapter, shots, count=4):
    """Return a table of a few of the photos that a classifier was trained on, spread over the classes, and what it takes them for."""
    count = min(count, len(shots))
    files = [Path(shots.sources[i * len(shots) // count]) for i in range(count)]
    return pd.DataFrame({"training photo": [f"{file.parent.name}/{file.name}" for file in files], "taken for": classify_files(adapter, files)})


def demonstration(classes=3, per_class=16):
    """Write a few handwritten digits as photos into the store's folder `demonstration` and return it: what a user's folder looks like."""
    from .data import load

    dataset, root = load("optdigits"), Store().root / "demonstration"
    for label in range(classes):
        folder = root / dataset.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        rows = [i for i, y in enumerate(dataset.train.labels) if y == label][:per_class]
        for number, i in enumerate(rows):
            dataset.train.open(i).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return str(root)


def what_to_expect(profile):
    """Return a paragraph on what the models of a profile can do with photos."""
    if profile == "mini":
        return ("**The embedded generator knows printed digits and capital letters, and nothing else.** On photos of other things this page "
                "shows the mechanics and not the quality: run it with `profile=\"paper\"` on a GPU for the latter.")
    return "Full-size models: adapting and generating take a GPU, and hours for many classes."


def verdict(table):
    """Return one sentence per method of an `estimate`, and what the intervals allow to say."""
    lines = [f"- **{row.method}**: {row.correct} of {row.tested} held-out photos right, {row.top1:.1f} %, 95 % interval {row.low:.1f} to {row.high:.1f}."
             for row in table.itertuples()]
    apart = len(table) > 1 and (table["low"].max() > table["high"].min())
    lines.append("The intervals do not overlap." if apart else f"The intervals overlap: with {table['tested'].min()} photos no method is shown to be "
                 "better. More photos, or a test folder, would tell.")
    return "\n".join(lines[:-1]) + "\n\n" + lines[-1]


def class_names(adapter):
    """Return the class names of a classifier adapter's folder."""
    return json.loads((Path(adapter) / "adapter.json").read_text())["classes"]


def columns(sets, classes, depth=3):
    """Return title -> one list of `depth` images per class, for plots.plot_samples; a set that is None is left out."""
    return {title: [[images.open(i).resize((64, 64)) for i, y in enumerate(images.labels) if y == label][:depth] for label in range(classes)]
            for title, images in sets.items() if images is not None}
