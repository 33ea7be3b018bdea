"""A user's own photos: what is noticed, the cross-validation, and the classifier that is kept."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest
from conftest import CLASSES, ROOT, draw_image, write_classes
from PIL import Image

from datadream import photos
from datadream.data import datasets
from datadream.data.datasets import few_shots, load_dataset
from datadream.data.images import Images
from datadream.errors import DataError


def noticed(table):
    return [(row.level, row.where, row.what) for row in table.itertuples()]


def test_photos_in_order_have_no_errors_and_are_counted(folder):
    table = photos.inspect(folder)
    assert set(table["level"]) == {"note"} and sorted(table["where"]) == sorted(CLASSES)
    assert all(what == "12 images" for what in table["what"])
    photos.require(table)


@pytest.mark.parametrize(
    "change, level, words",
    [
        (
            lambda root: (root / "cat" / "image 1.png").write_bytes(b"no image"),
            "error",
            ["cat/image 1.png", "not a readable image"],
        ),
        (lambda root: (root / "eel").mkdir(), "error", ["eel", "0 images"]),
        (
            lambda root: shutil.copytree(root / "cat", root / "CAT"),
            "error",
            ["CAT, cat", "named alike"],
        ),
        (
            lambda root: shutil.copy(root / "cat" / "image 1.png", root / "dog" / "x.png"),
            "error",
            ["cat/image 1.png, dog/x.png", "in two classes"],
        ),
        (
            lambda root: shutil.copy(root / "cat" / "image 1.png", root / "cat" / "x.png"),
            "note",
            ["cat/image 1.png, cat/x.png", "the same image"],
        ),
        (
            lambda root: (root / "cat" / "notes.txt").write_text("mine"),
            "note",
            ["1 other file is not used", "notes.txt"],
        ),
        (
            lambda root: Image.new("RGB", (5, 9)).save(root / "cat" / "tiny.png"),
            "note",
            ["cat/tiny.png", "5 x 9 pixels, less than the 8"],
        ),
    ],
)
def test_what_is_wrong_is_noticed_and_only_errors_stop(tmp_path, change, level, words):
    write_classes(tmp_path, ["cat", "dog"], 3)
    change(tmp_path)
    table = photos.inspect(str(tmp_path), side=8)
    hits = [row for row in noticed(table) if all(word in " ".join(row) for word in words)]
    assert hits and hits[0][0] == level, noticed(table)
    if level == "error":
        with pytest.raises(DataError) as caught:
            photos.require(table)
        assert all(word in str(caught.value) for word in words)
    else:
        photos.require(table)


def test_an_error_is_counted_and_names_its_file_once(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 3)
    (tmp_path / "cat" / "image 1.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        photos.require(photos.inspect(str(tmp_path)))
    assert str(caught.value) == (
        "1 error in the photos; mend it and run again:\n- cat/image 1.png: is not a readable "
        "image (Pillow knows no image format of such content); replace or remove the file"
    )


def test_a_photo_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(DataError) as caught:
        Images((str(tmp_path / "a photo.jpg"),), (0,)).open(0)
    assert (
        str(caught.value)
        == f"{str(tmp_path / 'a photo.jpg')!r} does not exist; give the path of an image that does"
    )


def test_a_truncated_photo_is_named_once_with_what_is_wrong(tmp_path):
    draw_image(0, 0).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with pytest.raises(DataError, match="truncated.*; replace or remove the file") as caught:
        Images((str(tmp_path / "cut.png"),), (0,)).open(0)
    assert str(caught.value).count("cut.png") == 1


def test_a_turned_photo_is_noted_and_used_upright(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_image(0, 9).save(tmp_path / "cat" / "turned.jpg", exif=exif)
    assert any(
        where == "cat/turned.jpg" and "upright" in what
        for _, where, what in noticed(photos.inspect(str(tmp_path)))
    )


def test_a_test_photo_that_is_also_for_training_is_an_error(tmp_path):
    write_classes(tmp_path / "train", ["cat", "dog"], 3)
    write_classes(tmp_path / "test", ["cat", "dog"], 4)
    with pytest.raises(DataError, match="test: cat/image 0.png.*training and test"):
        photos.require(photos.inspect(str(tmp_path / "train"), str(tmp_path / "test")))


def test_a_folder_without_classes_is_refused(tmp_path):
    for folder in ("", str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(DataError, match="no class folders"):
            photos.inspect(folder)


@pytest.mark.parametrize("entry", range(1, 9))
def test_every_exif_orientation_is_read_upright(tmp_path, entry):
    """A phone stores the sensor's rows and says how to turn them: mirrored, by 90, 180 or 270
    degrees.
    """
    upright, exif = draw_image(0, 9), Image.Exif()
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    exif[0x0112] = entry
    write_classes(tmp_path, ["cat", "dog"], 1)
    stored = upright.transpose(Image.Transpose[undo[entry]]) if entry in undo else upright
    stored.save(tmp_path / "cat" / "phone.png", exif=exif)
    whole = load_dataset("folder", str(tmp_path), fold="0/2").train
    (place,) = [i for i, source in enumerate(whole.sources) if source.endswith("phone.png")]
    assert np.array_equal(np.asarray(whole.open(place)), np.asarray(upright))
    assert photos.inspect(str(tmp_path))["what"].str.contains("turned by its EXIF entry").any() == (
        entry > 1
    )


# Folds.


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_photo_is_tested_once_and_never_trained_on_then(folder, folds):
    tested = []
    for i in range(folds):
        part = load_dataset("folder", folder, fold=f"{i + 1}/{folds}")
        assert not set(part.train.sources) & set(part.test.sources)
        assert len(part.train) + len(part.test) == 36 and set(part.test.labels) == {0, 1, 2}
        tested += part.test.sources
    assert len(tested) == len(set(tested)) == 36


def test_nothing_is_held_out_for_the_classifier_that_is_kept(folder):
    whole = load_dataset("folder", folder, fold="0/2")
    assert len(whole.train) == 36 and len(whole.test) == 0
    assert len(few_shots(whole, 0, 0)) == 36, "0 shots are all"


@pytest.mark.parametrize("fold", ["5/4", "1/1", "a/b", "1", "-1/4"])
def test_a_fold_that_is_no_part_is_refused(folder, fold):
    with pytest.raises(DataError, match="not a part of a whole such as '2/4'"):
        load_dataset("folder", folder, fold=fold)


def test_a_test_folder_of_other_classes_is_refused(folder, tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 2)
    with pytest.raises(DataError, match="needs the same class folders.*cat, dog"):
        load_dataset("folder", folder, test_folder=str(tmp_path))


# From photos to a classifier.


def test_the_estimate_counts_every_photo_and_the_kept_classifier_reads_files(
    make, folder, tiny, store
):
    settings = dict(shots=0, overrides={**tiny, "classify.lr": 2e-2, "classify.epochs": 6})
    table = photos.estimate(folder, folds=2, store=store, **settings)
    assert table["method"].tolist() == ["real", "dset+real"] and table["tested"].tolist() == [
        36,
        36,
    ]
    assert ((table["low"] <= table["top1"]) & (table["top1"] <= table["high"])).all()
    text = photos.estimate_verdict(table)
    assert f"{table['correct'][0]} of 36 held-out photos right" in text and "intervals" in text
    made, adapter, shots, synthetic = photos.train_and_keep(folder, store=store, **settings)
    assert (
        len(shots) == 36 and len(synthetic) == 15 and (made / "train" / "metadata.jsonl").is_file()
    )
    found = photos.classify_files(adapter, shots.sources[:5])
    assert (
        len(found) == 5
        and set(found) <= set(CLASSES)
        and photos.adapter_classes(adapter) == list(CLASSES)
    )
    with pytest.raises(DataError, match="a photo.jpg' does not exist"):
        photos.classify_files(adapter, ["a photo.jpg"])
    table = photos.answers(adapter, shots)
    assert table["training photo"].tolist() == [
        f"{CLASSES[i // 12]}/{Path(shots.sources[i]).name}" for i in (0, 9, 18, 27)
    ]
    assert table["taken for"].tolist() == photos.classify_files(
        adapter, [shots.sources[i] for i in (0, 9, 18, 27)]
    )


def test_a_test_folder_is_tested_once(folder, tiny, store, tmp_path):
    for label, name in enumerate(CLASSES):
        (tmp_path / "test" / name).mkdir(parents=True)
        draw_image(label, 77).save(tmp_path / "test" / name / "new.png")
    table = photos.estimate(
        folder, str(tmp_path / "test"), methods=("real",), store=store, shots=0, overrides=tiny
    )
    assert table["tested"].tolist() == [3]


def printed(page, mark):
    """Return what the cell of a page printed whose source has `mark`."""
    (cell,) = [cell for cell in page["cells"] if mark in "".join(cell["source"])]
    return "".join(text for output in cell["outputs"] for text in output["text"])


@pytest.mark.long
def test_the_notebook_runs_on_a_folder_of_photos_and_what_it_prints_works(
    folder, tiny, tmp_path, monkeypatch
):
    monkeypatch.delenv("DATADREAM_HOME", raising=False)
    papermill.execute_notebook(
        ROOT / "notebooks" / "your_data.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        start_timeout=300,
        parameters={"folder": folder, "folds": 2, "overrides": tiny},
    )
    text = (tmp_path / "out.ipynb").read_text()
    assert (
        "held-out photos right" in text
        and "The classifier was trained on these photos" in text
        and "knows printed digits" in text
    )
    assert "TqdmWarning" not in text and "it/s]" not in text and '"stderr"' not in text
    page = json.loads(text)
    photo = str(Path(folder) / CLASSES[0] / "image 0.png")
    (tmp_path / "classify.py").write_text(
        printed(page, "how_to_classify").replace("a photo.jpg", photo)
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "classify.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() in [repr([name]) for name in CLASSES], done.stderr
    command = next(
        line for line in printed(page, "how_to_export").splitlines() if " export " in line
    )
    done = subprocess.run(
        command.replace("my_set", shlex.quote(str(tmp_path / "set"))) + " --format webdataset",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == str(tmp_path / "set" / "webdataset"), done.stderr


def test_the_demonstration_is_a_folder_of_photos():
    root = photos.demonstration(2, 3)
    photos.require(photos.inspect(root))
    assert (
        datasets.load_dataset("folder", root).classes == ("one", "zero")
        and len(json.dumps(root)) > 2
    )
    assert np.asarray(datasets.load_dataset("folder", root).train.open(0)).shape == (64, 64, 3)
