"""A user's own photos: check them, estimate a classifier's accuracy, train the one to keep."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageOps
from safetensors import SafetensorError

from . import signals
from .data.colour import profile_of
from .data.copies import groups, sketch
from .data.entries import CAPTIONS, folder_names, image_files
from .data.folders import name_faults, require_inside, require_no_split
from .data.images import PREVIEW, Images, Previews, opened
from .data.synthetic_set import read_synthetic_set
from .errors import ConfigError, DataError, printable
from .methods.recipes import recipe
from .models.catalog import GENERATORS
from .paths import interpreter, relative_to_home
from .pipeline.stages import Cell
from .results.records import interval
from .statistics import wilson
from .store.artifacts import Store
from .store.files import reading, writing
from .store.open import open_store
from .study.run import run

ROTATED = range(2, 9)  # EXIF orientations other than upright
ALIKE = "are the same image, but for its size, its edges or how it was saved,"


def inspect(folder: str | Path, test_folder: str | Path = "", side: int = 0) -> pd.DataFrame:
    """Check a folder of class folders; return a table of level ('error' or 'note'), where, what.

    Errors prevent training: unreadable images, links out of the folder, class names that are
    unprintable or alike, the same image in two classes or in the test part. Notes do not: counts,
    copies within a class, images smaller than `side` pixels, EXIF rotation, transparency, further
    frames, colour profiles, unused files. Raises DataError if there are no class folders, or the
    parts of a split in their place.
    """
    if not folder or not Path(folder).is_dir() or not folder_names(Path(folder)):
        raise DataError(
            f"folder={str(folder)!r} has no class folders; put the photos of each class into a "
            "folder named after it"
        )
    if test_folder and not Path(test_folder).is_dir():
        raise DataError(
            f"test_folder={str(test_folder)!r} is not a directory; give one with the same class "
            "folders, or leave it empty"
        )
    require_no_split(Path(folder))
    found, seen = _beside(Path(folder)), []
    for part, root in (("", Path(folder)), ("test: ", Path(test_folder) if test_folder else None)):
        for name in folder_names(root) if root else []:
            found += _class(root, name, part, seen, side)
    found += [("error", name, what) for name, what in name_faults(folder_names(Path(folder)))]
    found += _alike(folder_names(Path(folder))) + _copies(seen)
    found = [
        (level, *(text if printable(text) else ascii(text) for text in words))
        for level, *words in found
    ]
    return pd.DataFrame(found, columns=["level", "where", "what"]).sort_values(
        "level", kind="stable", ignore_index=True
    )


def drawn_side(**fields: Any) -> int:
    """Return the side in pixels of the images that a recipe's generator draws.

    `fields` are the recipe's. Returns 0 if the generator is not in the table of models.
    """
    chosen = recipe(dataset="folder", **fields)
    return chosen.resolution or (
        GENERATORS[chosen.generator].side if chosen.generator in GENERATORS else 0
    )


def require(table: pd.DataFrame) -> None:
    """Raise a DataError that lists all errors in a table of `inspect`, if there are any."""
    errors = table.loc[table["level"] == "error"]
    if len(errors):
        count, them = (f"{len(errors)} errors", "them") if len(errors) > 1 else ("1 error", "it")
        raise DataError(
            f"{count} in the photos; mend {them} and run again:\n"
            + "\n".join(f"- {r['where']}: {r['what']}" for r in errors.to_dict("records"))
        )


def _beside(root):
    known = {*folder_names(root), CAPTIONS}
    others = sorted(p.name for p in root.iterdir() if p.name not in known)
    return (
        [
            (
                "note",
                "the folder itself",
                f"{len(others)} {'entry' if len(others) == 1 else 'entries'} beside the class "
                f"folders {'is' if len(others) == 1 else 'are'} not used, such as "
                f"{others[0]!r}",
            )
        ]
        if others
        else []
    )


def _class(root, folder, part, seen, side):
    (images, others), name = image_files(root / folder), part + folder
    found = [
        (
            "note" if images else "error",
            name,
            f"{len(images)} image{'' if len(images) == 1 else 's'}",
        )
    ]
    if others:
        found.append(
            (
                "note",
                name,
                f"{len(others)} other file{' is' if len(others) == 1 else 's are'} not used, such "
                f"as {others[0]!r}",
            )
        )
    for file in images:
        try:
            require_inside(file, root)
            drawn = sketch(Images((str(file),), (0,)).open(0))
            with opened(file) as image:
                notes = _notes(image, side)
        except DataError as error:
            found.append(
                ("error", f"{name}/{file.name}", str(error).removeprefix(f"{str(file)!r} "))
            )
            continue
        seen.append((name, file.name, drawn))
        found += [("note", f"{name}/{file.name}", what) for what in notes]
    return found


def _notes(image, side):
    """Return how a readable image is altered before use, or why it may be unsuitable."""
    (width, height), frames = image.size, getattr(image, "n_frames", 1)
    profile = profile_of(image)
    notes = {
        "is turned by its EXIF entry; it is used upright": image.getexif().get(0x0112, 1)
        in ROTATED,
        "is transparent in places; it is used on white": image.has_transparency_data,
        f"has {frames} frames; the first is used": frames > 1,
        f"has the colours of {profile!r}; it is used in sRGB": profile,
        f"is {width} x {height} pixels, less than the {side} that the generator draws": min(
            width, height
        )
        < side,
    }
    return [what for what, holds in notes.items() if holds]


def _alike(names):
    groups = defaultdict(list)
    for name in names:
        # A name may consist of a single emoji.
        groups["".join(c for c in name.casefold() if c.isalnum()) or name].append(name)
    return [
        (
            "error",
            ", ".join(group),
            "are named alike; merge them, or give them names that differ in more than case and "
            "punctuation",
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _copies(seen):
    sets, together = defaultdict(list), groups([drawn for *_, drawn in seen])
    for (name, file, drawn), group in zip(seen, together, strict=True):
        sets[group].append((name, file, drawn.digest))
    found = []
    for copies in (c for c in sets.values() if len(c) > 1):
        classes = {name for name, *_ in copies}
        where = ", ".join(f"{name}/{file}" for name, file, _ in copies)
        same = "are the same image" if len({digest for *_, digest in copies}) == 1 else ALIKE
        found.append(
            ("note", where, f"{same}; they stay together where parts are held out")
            if len(classes) == 1
            else (
                "error",
                where,
                f"{same} in two classes, or in training and test; keep it in one place",
            )
        )
    return found


def estimate(
    folder: str,
    test_folder: str = "",
    folds: int = 4,
    methods: Sequence[str] = ("real", "dset+real"),
    store: Store | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Estimate the methods' accuracy on photos not used for training, a row per method.

    With a `test_folder`, each method is trained once on all photos. Otherwise `folds`-fold
    cross-validation is used: the generator, too, is tuned without the held-out fold, and every
    photo is tested once. The interval is Wilson's over all tested photos, in percent. `fields` go
    to the recipe. Raises ConfigError on fewer than two folds.
    """
    if not test_folder and (not isinstance(folds, int) or folds < 2):
        raise ConfigError(
            f"folds={folds!r} cannot hold out anything; give a whole number of 2 or more, or a "
            "test_folder"
        )
    parts = (
        [{"test_folder": test_folder}]
        if test_folder
        else [{"fold": f"{i + 1}/{folds}"} for i in range(folds)]
    )
    rows = []
    for method in methods:
        records = [
            run(recipe(dataset="folder", folder=folder, method=method, **part, **fields), store)
            for part in parts
        ]
        tests = [record["result"]["test"] for record in records]
        total = sum(test["total"] for test in tests)
        correct = round(sum(test["top1"] * test["total"] for test in tests))
        low, high = wilson(correct, total)
        rows.append(
            {
                "method": method,
                "tested": total,
                "correct": correct,
                "top1": 100 * correct / total,
                "low": 100 * low,
                "high": 100 * high,
            }
        )
    return pd.DataFrame(rows)


def train_and_keep(
    folder: str,
    test_folder: str = "",
    method: str = "dset+real",
    store: Store | None = None,
    **fields: Any,
) -> tuple[Path | None, Path, Images, Images | None]:
    """Train on all photos; return (synthetic set, classifier adapter, few shots, synthetic images).

    The first two are folders; both synthetic ones are None if the method generates nothing. A file
    in the store's folder `kept` lists the artifacts, so that they are not cleared: nothing is
    evaluated here, so no record refers to them.
    """
    store, part = (
        store or open_store(),
        {"test_folder": test_folder} if test_folder else {"fold": "0/2"},
    )
    chosen = recipe(dataset="folder", folder=folder, method=method, **part, **fields)
    with signals.interruptible(), store.in_use(store.kept):
        return _keep(chosen, store)


def _keep(chosen, store):
    cell = Cell(chosen)
    folders = cell.compute(store, until="train")
    made, trained = folders.get("generate"), folders["train"]
    store.save(store.kept / f"{trained.name}.json", {"artifacts": cell.keys})
    return made, trained, cell.support.shots(), read_synthetic_set(made) if made else None


def classify_files(adapter: str | Path, files: Sequence[str | Path]) -> list[str]:
    """Classify image files with the adapter in a folder, and return their class names.

    The folder is the second that `train_and_keep` returns. Raises DataError on a damaged adapter
    and on an unreadable image, StoreError on an adapter that exists but cannot be read.
    """
    from .data.transforms import evaluation_batches
    from .methods.heads import load_trained
    from .pipeline.evaluate import predict

    try:
        for name in ("adapter.json", "adapter.safetensors"):
            with reading(Path(adapter) / name), open(Path(adapter) / name, "rb"):
                pass  # safetensors (0.8) reports an unreadable file as missing
        model, config = load_trained(adapter)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(
            f"{adapter} holds no whole classifier adapter ({error}); run the page again, which "
            "makes it anew"
        ) from error
    images = Images(tuple(str(f) for f in files), (0,) * len(files))
    return [
        config["classes"][i]
        for i in predict(
            model, model.prompts(config["prompts"]), evaluation_batches(images, model.size)
        )
    ]


def how_to_classify(adapter: str | Path) -> str:
    """Return a script that classifies a photo with the adapter in a folder.

    Its first line says how to run it.
    """
    return (
        f"# classify.py, in the project's folder; run it there: {interpreter()} classify.py\n"
        f"from datadream.photos import classify_files\n\n"
        f"print(classify_files({relative_to_home(adapter)!r}, ['a photo.jpg']))"
    )


def how_to_export(made: str | Path) -> str:
    """Return the command that exports the synthetic set in a folder, for a page."""
    return f"{interpreter()} -m datadream export {Path(made).name} my_set"


def answers(adapter: str | Path, shots: Images, count: int = 4) -> pd.DataFrame:
    """Return a table of a classifier's predictions for some of its training photos.

    The `count` photos are spread over the classes.
    """
    count = min(count, len(shots))
    files = [Path(str(shots.sources[i * len(shots) // count])) for i in range(count)]
    return pd.DataFrame(
        {
            "training photo": [f"{file.parent.name}/{file.name}" for file in files],
            "taken for": classify_files(adapter, files),
        }
    )


def demonstration(classes: int = 3, per_class: int = 16) -> str:
    """Write a few handwritten digits as photos and return their folder, as an example.

    It is the store's folder `demonstration`; files that another user wrote there are reused.
    """
    from .data.datasets import load_dataset
    from .data.png import is_whole, save_png

    store = open_store()
    dataset, root = load_dataset("optdigits"), store.root / "demonstration"
    for label in range(classes):
        folder = root / dataset.classes[label]
        rows = [i for i, y in enumerate(dataset.train.labels) if y == label][:per_class]
        for number, i in enumerate(rows):
            if is_whole(file := folder / f"{number:02d}.png"):
                continue
            with writing(store.root, store.fix):
                folder.mkdir(parents=True, exist_ok=True)
                small = dataset.train.open(i).resize((64, 64), Image.Resampling.BICUBIC)
                save_png(small, file)
    return str(root)


def what_to_expect(profile: str) -> str:
    """Return a paragraph on what the models of a profile can do with photos."""
    if profile == "mini":
        return (
            "**The embedded generator knows printed digits and capital letters, and nothing "
            "else.** On photos of other things this page "
            'shows the mechanics and not the quality: run it with `profile="paper"` on a GPU for '
            "the latter."
        )
    return "Full-size models: adapting and generating take a GPU, and hours for many classes."


def estimate_verdict(table: pd.DataFrame) -> str:
    """Return one sentence per method of an `estimate`, and what the intervals allow to conclude."""
    lines = [
        f"- **{row['method']}**: {row['correct']} of {row['tested']} held-out photos right, "
        f"{row['top1']:.1f} %, 95 % interval {interval(row)}."
        for row in table.to_dict("records")
    ]
    apart = len(table) > 1 and max(table["low"]) > min(table["high"])
    lines.append(
        "The intervals do not overlap."
        if apart
        else f"The intervals overlap: {table['tested'].min()} photos cannot tell which method is "
        "better. Add photos or a test folder."
    )
    return "\n".join(lines[:-1]) + "\n\n" + lines[-1]


def adapter_classes(adapter: str | Path) -> list[str]:
    """Return the class names of the classifier adapter in a folder."""
    return json.loads((Path(adapter) / "adapter.json").read_text())["classes"]


def columns(
    sets: Mapping[str, Images | None], classes: int, depth: int = 3
) -> dict[str, list[list[Image.Image]]]:
    """Return title -> one list of `depth` images per class, for plots.plot_samples.

    A set that is None is left out.
    """
    return {
        title: [
            # Small ones are enlarged, so that they look no coarser than their neighbours.
            [ImageOps.contain(image, (PREVIEW, PREVIEW)) for image in column]
            for column in Previews(images, classes, depth)
        ]
        for title, images in sets.items()
        if images is not None
    }
