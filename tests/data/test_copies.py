"""Copies of a photo: what is found, what is not taken for one, and where they may lie."""

import functools
import io
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_image, write_classes
from PIL import Image, ImageOps

from datadream import photos
from datadream.data import overlay
from datadream.data.copies import groups, sketch
from datadream.data.datasets import load_dataset
from datadream.errors import DataError

BICUBIC = Image.Resampling.BICUBIC


def photo(number, side=160):
    """Return a picture of soft shapes and fine grain, as a camera gives."""
    random = np.random.RandomState(number)
    soft = Image.fromarray(random.randint(0, 256, (7, 9, 3)).astype(np.uint8))
    soft = np.asarray(soft.resize((side + side // 3, side), BICUBIC), int)
    grain = random.randint(-30, 30, soft.shape)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8))


def saved(image, quality=75):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image, *shares):
    """Return an image without these shares at its left, top, right and bottom."""
    width, height = image.size
    left, top, right, bottom = shares
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(map(round, box)))


CHANGES = {
    "the same": lambda image: image.copy(),
    "JPEG": saved,
    "JPEG of little quality": lambda image: saved(image, 50),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "brighter": lambda image: image.point(lambda value: int(0.8 * value + 40)),
    "grey": ImageOps.grayscale,
    "grey, mirrored, saved": lambda image: saved(ImageOps.mirror(ImageOps.grayscale(image))),
    "grey, cropped at one side": lambda image: cropped(ImageOps.grayscale(image), 0.08, 0, 0, 0),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "cropped all round": lambda image: cropped(image, 0.04, 0.04, 0.04, 0.04),
    "cropped at one side": lambda image: cropped(image, 0.08, 0, 0, 0),
    "cropped anyhow": lambda image: cropped(image, 0.01, 0.05, 0.03, 0.02),
    "cropped, shrunk, saved": lambda image: saved(
        cropped(image, 0.03, 0.02, 0.05, 0.01).resize((150, 120)), 85
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_no_other_photo(change):
    originals = [photo(number) for number in range(12)]
    changed = [CHANGES[change](image).convert("RGB") for image in originals]
    found = groups([sketch(image) for image in [*originals, *changed]])
    assert found == [*range(12), *range(12)]


@pytest.mark.parametrize("change", ["JPEG", "twice the size", "mirrored", "cropped at one side"])
def test_copies_of_pictures_as_small_as_icons_are_found(change):
    originals = [draw_image(number % 3, number) for number in range(12)]
    found = groups([sketch(image) for image in [*originals, *map(CHANGES[change], originals)]])
    assert found == [*range(12), *range(12)]


@functools.cache
def sketched(name):
    """Return the sketches of an embedded set's training, validation and test images in turn."""
    dataset = load_dataset(name)
    parts = (dataset.train, dataset.val, dataset.test)
    return [sketch(part.open(i)) for part in parts for i in range(len(part))]


@pytest.mark.parametrize("name, side", [("mnist", 0), ("optdigits", 0), ("optdigits", 64)])
def test_two_digits_are_no_copies_however_alike(name, side):
    train = load_dataset(name).train
    some = sketched(name)[: len(train) : 2]
    if side:
        larger = [train.open(i).resize((side, side), BICUBIC) for i in range(0, len(train), 3)]
        some = [sketch(image) for image in larger]
    assert groups(some) == list(range(len(some)))


def test_the_digits_most_alike_of_the_embedded_sets_are_told_apart():
    """Over the nearest of 5,000 and of 1,797: a block of one strays further than a copy's may."""
    for name in ("mnist", "optdigits"):
        drawn = sketched(name)
        flat = np.stack([one.grey.ravel() for one in drawn]).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        alike = flat @ flat.T
        np.fill_diagonal(alike, 0)
        for i in np.argsort(-alike.max(1))[:100]:
            one, other = drawn[i].grey, drawn[int(alike[i].argmax())].grey
            place = overlay.align(one, other, overlay.WHOLE)
            assert not overlay.match(one, other, place).is_copy(small=False)


def test_alike_in_shape_and_not_in_colour_is_no_copy():
    shapes = []
    for colour in ("red", "green", "blue", "black"):
        shapes.append(Image.new("RGB", (100, 100), "white"))
        shapes[-1].paste(colour, (20, 30, 70, 60))
    assert groups([sketch(image) for image in shapes]) == [0, 1, 2, 3]


def test_photos_in_grey_and_in_colour_of_other_things_are_no_copies():
    """Also where they are as alike as two shapes of one outline, one of them black."""
    some = [photo(number) for number in range(40)]
    greyed = [ImageOps.grayscale(photo(number)).convert("RGB") for number in range(40, 80)]
    shapes = [Image.new("RGB", (100, 100), "white") for _ in range(2)]
    for shape, colour in zip(shapes, ("blue", "black"), strict=True):
        shape.paste(colour, (20, 30, 70, 60))
    found = groups([sketch(image) for image in [*some, *greyed, *shapes]])
    assert found == list(range(82))


def test_one_place_with_and_without_a_thing_is_no_copy():
    empty, there = photo(1), photo(1)
    there.paste((250, 250, 250), (60, 60, 90, 90))
    assert groups([sketch(empty), sketch(there)]) == [0, 1]


def test_uniform_pictures_are_copies_only_where_they_are_equal():
    tones = [Image.new("RGB", (40, 40), (tone,) * 3) for tone in (0, 1, 90, 90)]
    assert groups([sketch(image) for image in tones]) == [0, 1, 2, 2]


# Folders.


def copied(root, changes, count=6, classes=("cat", "dog")):
    """Write `count` photos per class and, of each, the changed copies."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = photo(100 * label + number)
            image.save(root / name / f"{number}.png")
            for place, change in enumerate(changes):
                CHANGES[change](image).save(root / name / f"{number} copy {place}.png")


def photo_of(source):
    """Return what tells a photo and its copies: the class, and the number before a space."""
    return Path(source).parent.name, Path(source).stem.split()[0]


CHANGED = ("the same", "JPEG", "cropped anyhow")


@pytest.mark.parametrize("folds", [2, 3])
def test_copies_are_never_trained_on_while_one_is_tested(tmp_path, folds):
    copied(tmp_path, CHANGED)
    tested = []
    for fold in range(1, folds + 1):
        part = load_dataset("folder", str(tmp_path), fold=f"{fold}/{folds}")
        assert not {photo_of(s) for s in part.train.sources} & {
            photo_of(s) for s in part.test.sources
        }
        assert len(part.train) + len(part.test) == 48
        tested += part.test.sources
    assert len(tested) == len(set(tested)) == 48


def test_copies_stay_in_one_part_of_a_split_that_is_made(tmp_path):
    copied(tmp_path, CHANGED)
    whole = load_dataset("folder", str(tmp_path))
    parts = [{photo_of(s) for s in part.sources} for part in (whole.train, whole.val, whole.test)]
    assert [len(part) for part in parts] == [6, 2, 4], "photos, and not files, are shared out"
    assert len(set.union(*parts)) == 12


def test_a_copy_in_another_class_is_in_the_same_fold(tmp_path):
    copied(tmp_path, ())
    for number in range(6):
        saved(Image.open(tmp_path / "cat" / f"{number}.png")).save(
            tmp_path / "dog" / f"cat{number}.png"
        )
    part = load_dataset("folder", str(tmp_path), fold="1/2")
    held = {Path(s).stem for s in part.test.sources if "/cat/" in s}
    assert {f"cat{name}" for name in held} == {
        Path(s).stem for s in part.test.sources if Path(s).stem.startswith("cat")
    }


def test_the_folds_of_a_folder_without_copies_are_those_of_before(folder):
    for part, parts in ((1, 4), (3, 4), (2, 3)):
        loaded = load_dataset("folder", folder, fold=f"{part}/{parts}")
        for label in range(3):
            rows = np.random.RandomState(label).permutation(np.arange(12 * label, 12 * label + 12))
            every = sorted(Path(folder).rglob("*.png"))
            assert {
                Path(s) for s in loaded.test.sources if every.index(Path(s)) // 12 == label
            } == {every[i] for i in rows[part - 1 :: parts]}


def test_too_few_photos_that_are_no_copies_are_too_few_for_the_folds(tmp_path):
    copied(tmp_path, CHANGED, count=3)
    with pytest.raises(DataError, match="'cat' .* has 12 images.*copies of 3 .*4 folds take 4"):
        load_dataset("folder", str(tmp_path), fold="1/4")
    copied(tmp_path / "two", CHANGED, count=2)
    with pytest.raises(DataError, match="copies of 2 .* take 3 or more"):
        load_dataset("folder", str(tmp_path / "two"))


@pytest.mark.parametrize("change", ["the same", "JPEG", "cropped all round", "mirrored"])
def test_a_copy_in_a_test_folder_is_an_error_with_both_names(tmp_path, change):
    copied(tmp_path / "own", ())
    copied(tmp_path / "new", ())
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            photo(500 + 100 * label + number).save(tmp_path / "new" / name / f"{number}.png")
    place = {"folder": str(tmp_path / "own"), "test_folder": str(tmp_path / "new")}
    assert len(load_dataset("folder", **place).test) == 12
    CHANGES[change](photo(3)).save(tmp_path / "new" / "cat" / "again.png")
    with pytest.raises(DataError, match=r"own/cat/3.png' .*new/cat/again.png' .*same image"):
        load_dataset("folder", **place)
    with pytest.raises(DataError, match="test: cat/again.png"):
        photos.require(photos.inspect(str(tmp_path / "own"), str(tmp_path / "new")))


@pytest.mark.parametrize("one, other", [("train", "test"), ("val", "test"), ("train", "val")])
@pytest.mark.parametrize("change", ["the same", "cropped, shrunk, saved"])
def test_a_copy_in_two_parts_of_the_users_split_is_an_error(tmp_path, one, other, change):
    for part, first in (("train", 0), ("val", 4), ("test", 8)):
        write_classes(tmp_path / part, ["cat", "dog"], 4, first)
    assert len(load_dataset("folder", str(tmp_path)).test) == 8
    photo(3).save(tmp_path / one / "cat" / "mine.png")
    CHANGES[change](photo(3)).save(tmp_path / other / "dog" / "again.png")
    with pytest.raises(DataError, match=r"cat/mine.png.*dog/again.png.*same image"):
        load_dataset("folder", str(tmp_path))


def test_a_copy_of_a_shot_in_the_test_part_is_an_error(tmp_path):
    copied(tmp_path / "own", ())
    whole = load_dataset("folder", str(tmp_path / "own"))
    (tmp_path / "shots").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "shots" / name).mkdir()
        photo(1000 + ord(name[0])).save(tmp_path / "shots" / name / "new.png")
    load_dataset("folder", str(tmp_path / "own"), shots_folder=str(tmp_path / "shots"))
    tested = whole.test.sources[0]
    saved(Image.open(tested)).save(tmp_path / "shots" / Path(tested).parent.name / "again.png")
    with pytest.raises(DataError, match="shots/.*again.png.*same image"):
        load_dataset("folder", str(tmp_path / "own"), shots_folder=str(tmp_path / "shots"))


def test_copies_are_told_in_the_report(tmp_path):
    copied(tmp_path, ("cropped anyhow",), count=3)
    table = photos.inspect(str(tmp_path))
    found = table[table["what"].str.contains("same image")]
    assert Counter(found["level"]) == {"note": 6}
    assert "cat/0 copy 0.png, cat/0.png" in set(found["where"])
    shutil.copy(tmp_path / "cat" / "1 copy 0.png", tmp_path / "dog" / "x.png")
    with pytest.raises(DataError, match="cat/1.png.*dog/x.png.*in two classes"):
        photos.require(photos.inspect(str(tmp_path)))


def test_the_demonstration_has_no_copies_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = photos.demonstration()
        assert len(load_dataset("folder", root, fold="1/4").test) == 12
    assert not photos.inspect(root)["what"].str.contains("same image").any()
