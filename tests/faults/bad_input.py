"""Bad input: one table of what is tried and how each must end. tests/test_bad_input.py holds to
it, `python tests/faults/campaign.py` counts it.
"""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import types
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import draw_image, write_classes
from PIL import Image

from datadream import config, photos
from datadream.data import datasets, folders, paper_datasets
from datadream.errors import ConfigError, DataError, ModelMissingError, printable
from datadream.methods import recipes
from datadream.publish import export
from datadream.results import plots, records
from datadream.results.tables import show_table
from datadream.store.artifacts import Store
from datadream.store.files import StoreError
from datadream.study import cells, named_runs, run
from datadream.training import checkpoint

HOUSE = (ConfigError, DataError, ModelMissingError, StoreError)
Case = namedtuple("Case", "group name end attempt")
PICKLED = []  # what a pickle asked for while a case ran


def _watch(event, arguments):
    if event == "pickle.find_class":
        PICKLED.append(arguments)


sys.addaudithook(_watch)


class Payload:
    """Unpickled, it writes the file `ran` into the working directory."""

    def __reduce__(self):
        return os.system, ("touch ran",)


EVIL = pickle.dumps(Payload())

# Files in a class folder.


def saved(image, **options):
    """Return a function that writes `image` to a path in the format of its suffix, or as
    `options` say.
    """
    return lambda file: image.save(file, **options)


def coded(image, form, **options):
    """Return the bytes of an image in a format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb():
    """Return a PNG of a few bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(draw_image(0, 9), exif=exif)


GREY = Image.fromarray(np.full((16, 16), 100 * 257, np.uint16))
GREY_GREEN = Image.new("RGB", (16, 16), (60, 90, 60))
CLEAR = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
FRAMES = dict(save_all=True, append_images=[draw_image(1, 1)])
RED = Image.new("CMYK", (16, 16), (0, 255, 255, 0))


def photo(name, write, end, tone=None):
    """Return a case: a file of the class `cat`, beside three good ones; `tone` is the mean
    colour that it must have where it is used.
    """

    def attempt(box):
        write_classes(box.photos, ["cat", "dog"], 3)
        file = box.photos / "cat" / name
        file.write_bytes(write) if isinstance(write, bytes) else write(file)
        table = photos.inspect(str(box.photos))
        about = table[
            table["where"].str.startswith("cat")
            & table["what"].str.contains("not used", regex=False)
        ]
        errors = table[table["level"] == "error"]
        read = datasets.load_dataset("folder", str(box.photos))
        assert errors.empty, "what is an error to the check is one to the reader"
        if not about.empty:
            assert (
                len(read.train) + len(read.val) + len(read.test) == 6
                and "1 other file is" in about["what"].iloc[0]
            )
            return "skipped and counted"
        found = next(
            part.open(i)
            for part in (read.train, read.val, read.test)
            for i, s in enumerate(part.sources)
            if Path(s).name == name
        )
        assert found.mode == "RGB" and (
            tone is None or np.abs(np.asarray(found).mean((0, 1)) - tone).max() < 4
        )
        return "used"

    return Case(
        "image files", f"{name} ({end})" if isinstance(write, bytes) else name, end, attempt
    )


def link(target):
    """Return a function that makes a link to `target`, relative to the folder `outside` of the
    box.
    """
    return lambda file: file.symlink_to(file.parents[2] / "outside" / target)


FILES = [
    photo("truncated.jpg", coded(draw_image(0, 9), "JPEG")[:400], "DataError"),
    photo("header only.png", coded(draw_image(0, 9), "PNG")[:20], "DataError"),
    photo("bomb.png", bomb(), "DataError"),
    photo("nothing.png", b"", "DataError"),
    photo("text.png", b"I am no image\n", "DataError"),
    photo("page.jpg", b"<html><script>alert(1)</script></html>", "DataError"),
    photo("pickle.png", EVIL, "DataError"),
    photo("strip.png", saved(Image.new("RGB", (2, 300))), "DataError"),
    photo("float.tiff", saved(Image.new("F", (16, 16))), "DataError"),
    photo(
        "exif.jpg",
        coded(draw_image(0, 9), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
        "used",
    ),
    photo("cmyk.jpg", saved(RED), "used", (254, 0, 0)),
    photo("grey16.png", saved(GREY), "used", (100, 100, 100)),
    photo("grey16.tif", saved(GREY), "used", (100, 100, 100)),
    photo("two-tone.png", saved(Image.new("1", (16, 16), 1)), "used", (255, 255, 255)),
    photo("palette.png", saved(CLEAR.quantize(), transparency=0), "used", (255, 255, 255)),
    photo("clear.png", saved(CLEAR), "used", (255, 255, 255)),
    photo("grey and clear.png", saved(Image.new("LA", (16, 16), (0, 0))), "used", (255, 255, 255)),
    photo("animated.gif", saved(draw_image(0, 9), **FRAMES), "used"),
    photo("phone.jfif", saved(draw_image(0, 9), format="JPEG"), "used"),
    photo("no suffix", saved(draw_image(0, 9), format="PNG"), "used"),
    photo("page.jfif", b"<html>", "DataError"),
    photo("photo.heic", b"\0\0\0\x18ftypheic" + bytes(40), "skipped and counted"),
    photo("Thumbs.db", b"left by Windows", "skipped and counted"),
    photo("profile.jpg", saved(GREY_GREEN, icc_profile=EVIL), "used", (60, 90, 60)),
    photo(
        "large profile.png", saved(GREY_GREEN, icc_profile=bytes(3_000_000)), "used", (60, 90, 60)
    ),
    photo("animation.png", saved(draw_image(0, 9), format="GIF", **FRAMES), "used"),
    photo("animated.webp", saved(draw_image(0, 9), **FRAMES), "used"),
    photo("turned.jpg", turned(), "used"),
    photo(".hidden.png", saved(draw_image(0, 9)), "skipped and counted"),
    photo("._photo.jpg", b"\0\5\x16\7 of a Mac", "skipped and counted"),
    photo("notes.txt", b"mine", "skipped and counted"),
    photo("folder.png", Path.mkdir, "skipped and counted"),
    photo("pipe.png", os.mkfifo, "skipped and counted"),
    photo("out.png", link("secret.png"), "DataError"),
    photo("nowhere.png", link("missing.png"), "DataError"),
    photo("loop.png", lambda file: file.symlink_to(file), "DataError"),
    photo("device.png", lambda file: file.symlink_to("/dev/zero"), "skipped and counted"),
    photo("within.png", lambda file: file.symlink_to(file.with_name("image 0.png")), "used"),
]


def class_link(box):
    write_classes(box.photos, ["cat", "dog"], 3)
    (box.photos / "eel").symlink_to(box.outside)
    assert "leads out" in " ".join(photos.inspect(str(box.photos))["what"])
    return datasets.load_dataset("folder", str(box.photos)) and "used"


FILES.append(Case("image files", "a class folder that is a link out", "DataError", class_link))


def copied_photos(box):
    """Six photos and, of each, a copy saved anew: folds and parts are those of the photos."""
    for label, name in enumerate(("cat", "dog")):
        (box.photos / name).mkdir()
        for number in range(6):
            image = draw_image(label, number).resize((96, 64))
            image.save(box.photos / name / f"{number}.png")
            image.save(box.photos / name / f"{number} copy.jpg", quality=90)
    for fields in ({}, {"fold": "1/3"}):
        read = datasets.load_dataset("folder", str(box.photos), **fields)
        held = {(Path(s).parent.name, Path(s).stem.split()[0]) for s in read.test.sources}
        assert len(held) == 4 and len(read.test) == 8
    return "used"


def shared_photo(box):
    for number, part in enumerate(("train", "val", "test")):
        write_classes(box.photos / part, ["cat", "dog"], 3, 3 * number)
    image = Image.open(box.photos / "train" / "cat" / "image 1.png").resize((96, 64))
    image.save(box.photos / "test" / "dog" / "again.jpg", quality=90)
    return datasets.load_dataset("folder", str(box.photos)) and "used"


def class_of_one_part(box):
    for number, part in enumerate(("Train", "valid", "test")):
        write_classes(box.photos / part, ["cat", "dog"], 3, 3 * number)
    write_classes(box.photos / "test", ["eel"], 2, 20)
    return datasets.load_dataset("folder", str(box.photos)) and "used"


def class_called_train(box):
    write_classes(box.photos, ["train", "bus", "car"], 3)
    read = datasets.load_dataset("folder", str(box.photos))
    return "used" if read.classes == ("bus", "car", "train") else "taken for a split"


def one_prompt(box):
    write_classes(box.photos, [f"{'very ' * 20}{colour} bird" for colour in ("red", "blue")], 3)
    chosen = recipes.recipe(dataset="folder", folder=str(box.photos), method="clip")
    return run.run(chosen, box.store) and "used"


FILES += [
    Case("image files", name, end, attempt)
    for name, end, attempt in (
        ("copies of photos, saved anew", "used", copied_photos),
        ("a photo of train in test", "DataError", shared_photo),
        ("a class that test has and train lacks", "DataError", class_of_one_part),
        ("a class called train", "used", class_called_train),
        ("two names that are one prompt", "DataError", one_prompt),
    )
]

# Code of Markdown, in as many backticks before as behind.
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", re.DOTALL)

# Names of class folders. A name is text wherever it goes: prompt, folder, card, page, figure,
# command.


def markup(box, names, noun=""):
    """Put class names through everything that writes them, and return 'used' if they stayed
    text.
    """
    loaded = datasets.load_dataset("folder", str(box.photos), noun)
    assert sorted(loaded.classes) == sorted(names)
    safe = folders.class_folders(loaded.classes)
    assert len({f.lower() for f in safe}) == len(names) and not any(
        set(f) & set("/\\<>:\"|?*$`;&'") or f.startswith(".") for f in safe
    )
    rows = [
        {
            "file_name": f"{f}/000000.png",
            "prompt": datasets.prompt(noun, n),
            "class": n,
            "label": i,
            "seed": i,
            "adapter": None,
        }
        for i, (f, n) in enumerate(zip(safe, loaded.classes, strict=True))
    ]

    def build(root):
        for row in rows:
            (root / "train" / row["file_name"]).parent.mkdir(parents=True)
            draw_image(0, 0).save(root / "train" / row["file_name"])
        (root / "train" / "metadata.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        (root / "classes.json").write_text(json.dumps(dict(zip(safe, loaded.classes, strict=True))))

    recipe = recipes.recipe(dataset="folder", folder=str(box.photos), method="base", noun=noun)
    key = "generate-0123456789abcdef"
    box.store.make(
        key, {"generate": {}, "seed": 0, "adapters": []}, build, recipe=config.as_dict(recipe)
    )
    front, body = (
        (export.export(key, box.root / "out", ["imagefolder"], box.store)[0] / "README.md")
        .read_text()
        .split("\n---\n", 1)
    )
    assert yaml.safe_load(front.removeprefix("---\n"))["class_names"] == dict(
        enumerate(loaded.classes)
    )
    shown = SPAN.sub("", body)  # Markdown reads nothing within
    assert not [word for word in ("<script", "<img", "](", "`", "${", "alert(") if word in shown]
    table = show_table(photos.inspect(str(box.photos))).to_html()
    assert not [word for word in ("<script", "<img", "<b>") if word in table]
    plots.plot_confusion(np.eye(len(names)), loaded.classes).savefig(io.BytesIO())
    plots.plot_samples({"x": [[draw_image(0, 0)] for _ in names]}, loaded.classes).savefig(
        io.BytesIO()
    )
    return "used as text"


def named(*names, end="used as text", noun=""):
    def attempt(box):
        classes = [*(names or ["cat"]), "dog"]
        write_classes(box.photos, classes, 3)
        return markup(box, classes, noun)

    return Case("class names and prompts", ascii(names[0] if names else noun)[:60], end, attempt)


TEXTS = [
    "two words",
    "it's",
    'say "x"',
    "a\u2215b",
    "a\\b",
    "\U0001f431",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "x" * 255,
    "\U0001f431" * 63,
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)<\u2215script>",
    "[x](javascript:alert(1))",
    "`id`",
    "$(touch ran)",
    "; touch ran",
    "-rf",
    "--yes",
    "x...",
    "- {a: b}",
    "!!python-object x",
    "key: [value",
    "--- x",
    "{{ x }}",
    "{0}",
    "%s%n",
    "$\\frac$",
    "${HOME}",
    "# x",
    "| a | b |",
    "*x*",
    "CON",
    "nul.",
    "~",
    "null",
    "1e3",
    "yes",
    "\u202etxt",
    "\ufeffx",
    "e\u0301",
    "\u0660",
    "&amp;",
    "<b>x<",
]
NAMES = [named(text) for text in TEXTS] + [
    named("Dog", end="DataError"),
    named("DOG ", end="DataError"),
    named("\u00e9", "e\u0301", end="DataError"),
    named("stra\u00dfe", "STRASSE", end="DataError"),
    named("a\nb", end="DataError"),
    named("\x1b[31mred", end="DataError"),
    named("a\u2028b", end="DataError"),
    named(os.fsdecode(b"\xff\xfe"), end="DataError"),
    named(noun="<script>alert(1)</script>"),
    named(noun="](javascript:alert(1))"),
    named(noun="`touch ran`"),
    named(noun="bird\nclass_names: {0: x}", end="ConfigError"),
]


def hidden_class(box):
    write_classes(box.photos, ["cat", "dog", ".git"], 3)
    (box.photos / "readme.md").write_text("mine")
    assert "2 entries beside the class folders" in " ".join(photos.inspect(str(box.photos))["what"])
    return (
        "skipped and counted"
        if datasets.load_dataset("folder", str(box.photos)).classes == ("cat", "dog")
        else "used"
    )


NAMES.append(
    Case(
        "class names and prompts",
        "a hidden folder and a loose file",
        "skipped and counted",
        hidden_class,
    )
)

# Recipes.

RECIPES = [
    {"profile": []},
    {"profile": None},
    {"profile": "mini\ud800"},
    {"overrides": [1]},
    {"overrides": "adapt.rank=4"},
    {"overrides": {1: 2}},
    {"overrides": {"adapt": {"rank": 4}}},
    {"overrides": {"adapt.rank": "4"}},
    {"overrides": {"adapt.rank": 4.0}},
    {"overrides": {"adapt.rank": None}},
    {"overrides": {"adapt.rank": [4]}},
    {"overrides": {"adapt.rank": True}},
    {"overrides": {"adapt.rank": 0}},
    {"overrides": {"adapt.rank": -1}},
    {"overrides": {"adapt.rank": 10**9}},
    {"overrides": {"adapt.lr": float("nan")}},
    {"overrides": {"adapt.lr": float("inf")}},
    {"overrides": {"adapt.lr": -float("inf")}},
    {"overrides": {"adapt.lr": -1e-300}},
    {"overrides": {"adapt.lr": 10**400}},
    {"overrides": {"adapt.lr": 1j}},
    {"overrides": {"adapt.text_encoder": 1}},
    {"overrides": {"adapt.crop": []}},
    {"overrides": {"generate.images": 10**12}},
    {"overrides": {"generate.steps": 10**6}},
    {"overrides": {"generate.guidance": 1e300}},
    {"overrides": {"classify.epochs": 10**30}},
    {"overrides": {"classify.hue": 0.6}},
    {"seed": 10**5000},
    {"seed": -1},
    {"seed": 2**63},
    {"shots": 2**31},
    {"shots": -1},
    {"resolution": 10**6},
    {"dataset": ["mnist"]},
    {"dataset": "a\0b"},
    {"folder": "\x1b]0;x\x07"},
    {"folder": "x" * 300},
    {"generator": "y" * 300},
    {"noun": "a\r\nb"},
    {"noun": "\ud800"},
    {"method": {}},
    {"adapt": 5},
    {"x" * 10_000: 1},
    {"a\x1bb": 1},
]


def settings_case(fields):
    def attempt(box):
        recipes.recipe(**fields)
        return "used"

    name = "a seed of 5,001 digits" if fields.get("seed", 0) > 2**64 else ascii(fields)[:60]
    return Case("recipes", name, "ConfigError", attempt)


def lists(name, **values):
    return Case("recipes", name, "ConfigError", lambda box: cells.cells(**values) and "used")


SETTINGS = [settings_case(fields) for fields in RECIPES] + [
    lists("methods as a text", methods="real"),
    lists("no seeds", seeds=[]),
    lists("overrides as a text", overrides="x"),
    lists("a method that is a list", methods=[["real"]]),
    Case(
        "recipes",
        "workers='2'",
        "ConfigError",
        lambda box: run.run_cells([], box.store, "2") and "used",
    ),
    Case(
        "recipes",
        "folds=0",
        "ConfigError",
        lambda box: len(photos.estimate(str(box.photos), folds=0)) and "used",
    ),
    Case(
        "recipes",
        "a test folder that is missing",
        "DataError",
        lambda box: (
            (
                write_classes(box.photos, ["a", "b"], 1),
                photos.inspect(str(box.photos), str(box.root / "no")),
            )
            and "used"
        ),
    ),
]

# What the store holds.


def junk(name, content):
    """Return (name, function that puts `content`, bytes or a function of the old ones, into a
    file).
    """
    return name, lambda file: file.write_bytes(
        content(file.read_bytes()) if callable(content) else content
    )


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


JUNK = [
    junk("empty", b""),
    junk("cut", lambda b: b[: len(b) // 2]),
    junk("of zeros", lambda b: bytes(len(b))),
    junk("with one bit flipped", flipped),
    junk("a pickle", EVIL),
    junk("a pickle of its length", lambda b: EVIL.ljust(len(b), b"\0")[: max(len(b), len(EVIL))]),
]
ODD = [
    junk("null", b"null"),
    junk("[]", b"[]"),
    junk("no UTF-8", b"\xff\xfe\0"),
    junk("deep", b"[" * 100_000),
    junk("NaN", b"NaN"),
    junk("of digits", b"9" * 5000),
]
SHAPES = [
    junk("with numbers for files", b'{"files": {"a": 5}, "seconds": 1.0}'),
    junk("with a list of files", b'{"files": [], "seconds": 1.0}'),
    junk(
        "with a file outside", b'{"files": {"../../outside/secret.png": [1, "0"]}, "seconds": 1.0}'
    ),
    junk("with a name of no file", b'{"files": {"a\\u0000b": [1, "0"]}, "seconds": 1.0}'),
    junk("without seconds", b'{"files": {}}'),
]


def damaged(stage, file, title, write):
    """Return a case: a finished cell, one of whose files is damaged; it must be recomputed, and
    nothing else, with the same record.
    """

    def attempt(box):
        first, store = box.cell()
        key = first["artifacts"][stage]
        mended, before = (
            store.folder(key) / file,
            {p: p.read_bytes() for p in sorted(store.root.rglob("*.[js]*")) if p.is_file()},
        )
        write(mended)
        built, build = [], Store._build
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datadream.store.artifacts.verified", {})
            patch.setattr(
                Store,
                "_build",
                lambda self, key, *rest: (built.append(key), build(self, key, *rest)),
            )
            second = run.run(box.recipe, store)
        assert built == [key] and second == first
        assert all(
            p.read_bytes() == content for p, content in before.items() if p.name != "manifest.json"
        ), "the same bytes again"
        return "recomputed"

    return Case(f"damaged {file}", title, "recomputed", attempt)


def record(title, write, end):
    def attempt(box):
        first, store = box.cell()
        (file,) = store.records.glob("*.json")
        write(file)
        if end == "recomputed":
            assert (
                run.run(box.recipe, store)["result"] == first["result"]
                and len(run.find([box.recipe], store)) == 1
            )
            return end
        return records.load_records(store.records) is not None and "used"

    return Case(
        "damaged record", f"{title}, {'run' if end == 'recomputed' else 'read'}", end, attempt
    )


def adapter(title, write):
    def attempt(box):
        first, store = box.cell()
        folder = store.folder(first["artifacts"]["train"])
        write(folder / "adapter.safetensors")
        return photos.classify_files(folder, [box.outside / "secret.png"]) and "used"

    return Case(
        "damaged adapter.safetensors", f"{title}, given to classify_files", "DataError", attempt
    )


MANIFESTS = [damaged("train", "manifest.json", *one) for one in [*JUNK[:3], JUNK[4], *ODD, *SHAPES]]
WEIGHTS = [damaged("train", "adapter.safetensors", *one) for one in JUNK] + [
    adapter(*one) for one in [*JUNK[:3], *JUNK[4:]]
]
RESULTS = [damaged("judge", "result.json", *one) for one in JUNK]
RECORDS = [
    record(*one, end)
    for one in [*JUNK[:3], *JUNK[4:5], *ODD, junk("without numbers", b'{"recipe": {}}')]
    for end in ("DataError", "recomputed")
]
RECORDS.append(
    record(
        "with another number",
        lambda file: file.write_text(file.read_text().replace('"top1": ', '"top1": 1')),
        "recomputed",
    )
)

# Locks, and what a killed training left.


def lock(title, write, end="used"):
    """Return a case: the content of a lock has no say; what is no plain file is named."""

    def attempt(box):
        file = box.store.root / ".draw-1.lock"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"what stood there before")
        write(file)
        with box.store.lock("draw-1"):
            return "used"

    return Case("damaged lock", title, end, attempt)


def replaced(make_other):
    """Return a function that puts something else into a file's place."""
    return lambda file: (file.unlink(), make_other(file))


def damaged_checkpoint(title, write):
    def attempt(box):
        file = box.root / "checkpoint.safetensors"
        checkpoint.save_state(file, {"parameter.a": torch.ones(9)}, 5)
        write(file)
        assert checkpoint.load_state(file) is None and not file.exists()
        return "removed, restarted"

    return Case("damaged checkpoint.safetensors", title, "removed, restarted", attempt)


LOCKS = [lock(*one) for one in JUNK] + [
    lock("a folder", replaced(Path.mkdir), "StoreError"),
    lock(
        "a link out",
        replaced(lambda file: file.symlink_to(file.parents[1] / "outside" / "other")),
        "StoreError",
    ),
]
LEFT = LOCKS + [damaged_checkpoint(*one) for one in JUNK]

# Split files of the paper's datasets.

ROW = b'["Forest/Forest_0.jpg", 1, "forest"]'


def split_file(name, content, dataset="eurosat", file=None):
    def attempt(box):
        base, own = box.root / dataset, file or paper_datasets.SOURCES[dataset].split
        (base / "2750").mkdir(parents=True)
        (base / own).write_bytes(content)
        parts = paper_datasets.read_split_file(dataset, ("a", "b"), base, base / "2750")
        return paper_datasets._images(base / "2750", parts[0]) and "used"

    return Case("split files", name, "DataError", attempt)


SPLITS = [
    split_file(f"JSON {name}", content)
    for name, content in [
        ("empty", b""),
        ("cut", b'{"train": [["a", '),
        ("no UTF-8", b"\xff\xfe"),
        ("a list", b"[]"),
        ("deep", b"[" * 100_000),
        ("a pickle", EVIL),
        ("without a part", b'{"train": []}'),
        ("with short rows", b'{"train": [["a"]], "val": [], "test": []}'),
        ("with numbers for rows", b'{"train": 5, "val": [], "test": []}'),
        *[
            (f"with {what}", b'{"train": [%s], "val": [], "test": []}' % row)
            for what, row in [
                ("an infinite label", b'["a.jpg", Infinity, "a"]'),
                ("a label that is text", b'["a.jpg", "x", "a"]'),
                ("a missing image", ROW),
                ("a path out", b'["../../outside/secret.png", 0, "a"]'),
                ("an absolute path", b'["/etc/passwd", 0, "a"]'),
                ("a path by the folder's name out", b'["2750/../x.jpg", 0, "a"]'),
                ("a NUL", b'["a\\u0000b", 0, "a"]'),
                ("an escape sequence", b'["\\u001b[2J", 0, "a"]'),
                ("a path that is too long", b'["%s", 0, "a"]' % (b"x" * 5000)),
                ("a null path", b'[null, 0, "a"]'),
            ]
        ],
    ]
] + [
    split_file(f"CSV {name}", content, *rest, file="split_coop.csv")
    for name, content, *rest in [
        ("empty of columns", b"a,b\n1,2\n"),
        ("with a short row", b"split,filename\ntrain\n"),
        ("no UTF-8", b"split,filename\ntrain,\xff\xfe\n"),
        ("a pickle", EVIL),
        ("with a NUL", b"split,filename\ntrain,a\0b\n"),
        ("with a path out", b"split,filename\ntrain,../../outside/secret.png\n"),
        ("a flower without number", b"split,filename\ntrain,x.jpg\n", "flowers102"),
    ]
]


def labels(name, content):
    def attempt(box):
        (box.root / "jpg").mkdir()
        (box.root / "imagelabels.mat").write_bytes(content)
        return paper_datasets._label_by_number([], box.root / "jpg") and "used"

    return Case("split files", f"imagelabels.mat {name}", "DataError", attempt)


def variants(box):
    (box.root / "images").mkdir()
    (box.root / "images_variant_train.txt").write_bytes(b"0034309\n\xff\xfe\n")
    return (
        paper_datasets.read_variants("fgvc_aircraft", ("707",), box.root, box.root / "images")
        and "used"
    )


SPLITS += [
    labels("empty", b""),
    labels("a pickle", EVIL),
    labels("text", b"x" * 200),
    Case("split files", "a list of variants of no two words", "DataError", variants),
]

# Study files.

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RUN = "runs: {%s}\nsmoke: {}\n"


def study_file(name, content):
    def attempt(box):
        file = box.root / "study.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return named_runs.load_study(file) and "used"

    return Case("study files", name, "ConfigError", attempt)


STUDIES = [
    study_file(name, content)
    for name, content in [
        ("empty", ""),
        ("cut", "runs: {mnist: {noteb"),
        ("no UTF-8", b"\xff\xfe\0"),
        ("a NUL", "runs: \0"),
        ("a pickle", EVIL),
        ("a list", "[]"),
        ("a tab", "runs:\n\t- x"),
        ("another key", "runs: {}\nsmoke: {}\nx: 1"),
        ("deep", "[" * 5000),
        ("billion laughs", LAUGHS),
        ("billion laughs of merges", MERGES),
        ("a list in itself", "runs: &a [*a]\nsmoke: {}"),
        ("a mapping in itself", "runs: &a {x: *a}\nsmoke: {}"),
        ("bombs in the parameters", LAUGHS.replace("a: &a", "runs: &a", 1)),
        ("python/object/apply", RUN % "x: !!python/object/apply:os.system ['touch ran']"),
        ("python/object/new", RUN % "x: !!python/object/new:os.system ['touch ran']"),
        ("python/name", RUN % "x: !!python/name:os.system"),
        ("python/module", RUN % "x: !!python/module:os"),
        ("another tag", RUN % "x: !evil y"),
        ("an int of nothing", RUN % "x: !!int ''"),
        ("a bool of a word", RUN % "x: !!bool maybe"),
        ("a date that is none", RUN % "x: 2024-99-99"),
        ("a time of a word", RUN % "x: !!timestamp x"),
        ("5,000 digits", RUN % f"x: {'9' * 5000}"),
        ("a list as a key", RUN % "? [a] : b"),
        ("a run that leads out", RUN % "../../evil: {notebook: dataset}"),
        ("a run with a slash", RUN % "a/b: {notebook: dataset}"),
        ("a run that is a command", RUN % "'; touch ran': {notebook: dataset}"),
        ("a run of markup", RUN % "<script>: {notebook: dataset}"),
        ("a run that is a number", RUN % "1: {notebook: dataset}"),
        ("a hidden run", RUN % ".x: {notebook: dataset}"),
        ("a notebook that leads out", RUN % "x: {notebook: ../outside/dataset}"),
        ("an absolute notebook", RUN % "x: {notebook: /etc/passwd}"),
        ("no notebook", RUN % "x: {}"),
        ("a null run", RUN % "x: null"),
        ("a list for a notebook", RUN % "x: {notebook: [dataset]}"),
        ("a missing notebook", RUN % "x: {notebook: datset}"),
        ("groups of mappings", RUN % "x: {notebook: dataset, groups: [{a: b}]}"),
        ("a text for groups", RUN % "x: {notebook: dataset, groups: a}"),
        ("a list of parameters", RUN % "x: {notebook: dataset, parameters: [shots]}"),
        ("a null for parameters", RUN % "x: {notebook: dataset, parameters: null}"),
        ("numbers for parameters", RUN % "x: {notebook: dataset, parameters: {1: 2, shot: 4}}"),
        ("a parameter that is none", RUN % "x: {notebook: dataset, parameters: {shot: 4}}"),
        ("a number for smoke", "runs: {x: {notebook: dataset}}\nsmoke: {dataset: 5}"),
        ("a list for smoke", "runs: {}\nsmoke: []"),
    ]
]

CASES = [
    *FILES,
    *NAMES,
    *SETTINGS,
    *MANIFESTS,
    *WEIGHTS,
    *RESULTS,
    *RECORDS,
    *LEFT,
    *SPLITS,
    *STUDIES,
]


def attempt(case, root, finished):
    """Try a case in the empty folder `root` and return how it ended: "used ...", "skipped ...", or
    the name of the house's error.

    `finished` is (recipe, store, record) of one finished cell, which is copied where a case damages
    it. Raises AssertionError where a message is no message, or where something was run, or written
    outside.
    """
    box = types.SimpleNamespace(
        root=root / "box",
        photos=root / "photos",
        outside=root / "outside",
        store=Store(root / "artifacts"),
        recipe=finished[0],
    )
    for folder in (box.root, box.photos, box.outside, root / "work"):
        folder.mkdir()
    draw_image(2, 2).save(box.outside / "secret.png")
    box.cell = lambda: (
        shutil.copytree(finished[1].root, box.store.root),
        (finished[2], box.store),
    )[1]
    secret = (box.outside / "secret.png").read_bytes()
    PICKLED.clear()
    try:
        with contextlib.chdir(root / "work"), contextlib.redirect_stderr(io.StringIO()):
            end = case.attempt(box)
    except HOUSE as error:
        kinds = (kind.__name__ for kind in type(error).__mro__)
        end, message = next(kind for kind in kinds if not kind.startswith("_")), str(error)
        assert (
            printable(message)
            and 20 < len(message) < 12_000
            and "Errno" not in message.split("(")[0]
        )
    assert ("posix", "system") not in PICKLED and list((root / "work").iterdir()) == [], (
        "nothing was run"
    )
    assert (
        sorted(p.name for p in box.outside.iterdir()) == ["secret.png"]
        and (box.outside / "secret.png").read_bytes() == secret
    )
    return end
