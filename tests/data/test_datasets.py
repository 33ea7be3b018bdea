"""Datasets: sizes, disjoint parts, the few-shot draw, folders of a user's own photos, prompts,
and the image transforms.
"""

import re
import shutil
import threading

import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_image, write_classes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datadream.data import datasets, decode_cache, images, transforms
from datadream.data.datasets import few_shots, load_dataset, prompt
from datadream.data.entries import SUFFIXES
from datadream.data.folders import class_folders
from datadream.data.images import Images, members
from datadream.errors import ConfigError, DataError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def identities(images):
    """Return what tells one source from another: the path, or the pixels of an array."""
    return [
        source.tobytes() if isinstance(source, np.ndarray) else source for source in images.sources
    ]


@pytest.mark.parametrize(
    "name, total, test, pool", [("mnist", 5000, 2000, 16), ("optdigits", 1797, 800, 16)]
)
def test_the_embedded_digits_have_three_disjoint_parts_of_a_useful_size(name, total, test, pool):
    dataset = load_dataset(name)
    parts = [identities(part) for part in (dataset.train, dataset.val, dataset.test)]
    assert sum(len(part) for part in parts) == total == len(set().union(*parts)), (
        "an image is in two parts, or lost"
    )
    assert len(dataset.test) >= test
    for part in (dataset.train, dataset.val, dataset.test):
        assert set(part.labels) == set(range(10))
    assert min(np.bincount(dataset.train.labels)) >= pool
    assert dataset.classes == load_dataset("mnist").classes == tuple(DIGITS), (
        "both sets have the same prompts"
    )


def test_the_digits_have_their_own_labels():
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    dataset = load_dataset("optdigits")
    for part in (dataset.train, dataset.val, dataset.test):
        assert [known[source.tobytes()] for source in part.sources] == list(part.labels)


def test_digits_use_the_whole_range_of_tones():
    for name in ("mnist", "optdigits"):
        images = load_dataset(name).train.sources[:50]
        assert (
            min(image.min() for image in images) == 0
            and max(image.max() for image in images) == 255
        )


@given(st.lists(st.integers(0, 6), min_size=1))
def test_the_members_of_a_class_are_its_positions_in_order(labels):
    whole = Images((), tuple(labels))
    for label in range(8):
        assert members(whole, label).tolist() == [i for i, own in enumerate(labels) if own == label]


def test_a_thousand_classes_are_drawn_from_one_sort_of_the_labels():
    """As many images as ImageNet has: a pass over all labels for each class took a minute."""
    classes = 1000
    labels = tuple(i % classes for i in range(1281 * classes))
    pool = Images(labels, labels)
    dataset = datasets.Dataset("many", "", tuple(map(str, range(classes))), pool, pool, pool)
    before = images._by_label.cache_info().misses
    drawn = few_shots(dataset, 16, 0)
    assert [few_shots(dataset, 16, 0, label).labels for label in range(classes)] == [
        (label,) * 16 for label in range(classes)
    ]
    assert images._by_label.cache_info().misses == before + 1 and len(drawn) == 16 * classes
    own = np.random.RandomState(datasets.seed_for("shots", 0, 7) % 2**32).choice(
        np.flatnonzero(np.asarray(labels) == 7), 16, replace=False
    )
    assert few_shots(dataset, 16, 0, 7).sources == (7,) * 16 and datasets.draw_shots(
        dataset, 16, 0, 7
    )[0] == sorted(own.tolist()), "the draw of before"


@given(st.integers(1, 60), st.integers(0, 2**40))
def test_few_shots_are_drawn_by_seed_without_repetition_from_the_pool(shots, seed):
    dataset = load_dataset("optdigits")
    drawn, again, other = (few_shots(dataset, shots, s) for s in (seed, seed, seed + 1))
    assert np.bincount(drawn.labels, minlength=10).tolist() == [shots] * 10
    assert len(set(identities(drawn))) == 10 * shots
    known = dict(zip(identities(dataset.train), dataset.train.labels, strict=True))
    assert [known[source] for source in identities(drawn)] == list(drawn.labels)
    assert identities(drawn) == identities(again)
    if shots < 30:  # beyond, two draws of nearly the whole pool may agree
        assert identities(drawn) != identities(other)


def test_the_draw_of_a_seed_never_changes():
    # Positions in the pool of the first class, written down: a change here would change every
    # published number.
    dataset = load_dataset("optdigits")
    place = {source: i for i, source in enumerate(identities(dataset.train))}
    assert [place[source] for source in identities(few_shots(dataset, 4, 0))[:4]] == [0, 10, 17, 44]


def test_two_classes_are_drawn_independently():
    """One draw for all classes would pick the same positions of each, and two seeds would share
    their noise.
    """
    dataset = load_dataset("mnist")
    drawn = identities(few_shots(dataset, 16, 0))
    place = {source: i % 200 for i, source in enumerate(identities(dataset.train))}
    rows = [tuple(place[source] for source in drawn[16 * c : 16 * c + 16]) for c in range(10)]
    assert len(set(rows)) == 10


def test_too_few_images_for_the_shots(dataset):
    with pytest.raises(DataError) as caught:
        few_shots(dataset, 50, 0)
    for word in (CLASSES[0], "6 training images", "shots=50", "lower shots"):
        assert word in str(caught.value)


def test_an_unknown_dataset_names_the_near_miss():
    with pytest.raises(ConfigError) as caught:
        load_dataset("minst")
    assert (
        "'minst'" in str(caught.value)
        and "optdigits" in str(caught.value)
        and "Did you mean 'mnist'" in str(caught.value)
    )


# A user's own folder.


def test_a_folder_of_classes_is_split_per_class(folder, dataset):
    assert dataset.classes == CLASSES
    parts = [identities(part) for part in (dataset.train, dataset.val, dataset.test)]
    assert [len(part) for part in parts] == [18, 6, 12]
    assert len(set().union(*parts)) == 36
    for part in (dataset.train, dataset.val, dataset.test):
        for source, label in zip(part.sources, part.labels, strict=True):
            assert source.startswith(f"{folder}/{CLASSES[label]}/")
    assert seen_in(load_dataset("folder", folder)) == seen_in(dataset)


@pytest.mark.parametrize("count", range(3, 13))
def test_every_class_has_an_image_in_every_part_from_the_smallest_accepted_folder_on(
    tmp_path, count
):
    write_classes(tmp_path / "photos", ["a", "b"], count)
    dataset = load_dataset("folder", str(tmp_path / "photos"))
    for part in (dataset.train, dataset.val, dataset.test):
        assert set(part.labels) == {0, 1}
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 2 * count


def test_the_users_own_split_is_kept(tmp_path):
    for part, first, count in (("train", 0, 5), ("val", 5, 3), ("test", 8, 4)):
        write_classes(tmp_path / part, ["cat", "dog"], count, first)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()  # what an editor leaves is no class
    dataset = load_dataset("folder", str(tmp_path))
    assert dataset.classes == ("cat", "dog")
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        images = getattr(dataset, part)
        assert len(images) == 2 * count and all(f"/{part}/" in source for source in images.sources)


def test_a_users_validation_and_test_may_have_one_image_a_class(tmp_path):
    for part, first, count in (("train", 0, 2), ("val", 2, 1), ("test", 3, 1)):
        write_classes(tmp_path / part, ["cat", "dog"], count, first)
    assert [
        len(part)
        for part in (
            load_dataset("folder", str(tmp_path)).train,
            load_dataset("folder", str(tmp_path)).test,
        )
    ] == [4, 2]


def test_a_damaged_test_image_is_found_before_anything_is_trained(tmp_path):
    for part in ("train", "val", "test"):
        write_classes(tmp_path / part, ["cat", "dog"], 2)
    file = tmp_path / "test" / "dog" / "image 1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match="test/dog/image 1.png' is not a readable image"):
        load_dataset("folder", str(tmp_path))


def test_a_folder_that_would_be_ignored_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="would be ignored by dataset='mnist'"):
        load_dataset("mnist", str(tmp_path))


def test_hidden_folders_and_other_files_are_no_data(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 4)
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("mine")
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    (tmp_path / "cat" / "image 0.png").rename(tmp_path / "cat" / "IMAGE.PNG")
    dataset = load_dataset("folder", str(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 8


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda root: None, ["nothing", "not a directory", "sub-folder"]),
        (lambda root: (root / "nothing").mkdir(), ["0 class folder", "two or more"]),
        (
            lambda root: write_classes(root / "nothing", ["cat"], 4),
            ["1 class folder", "two or more"],
        ),
        (
            lambda root: (
                write_classes(root / "nothing", ["cat", "dog"], 4),
                (root / "nothing" / "eel").mkdir(),
            ),
            ["'eel'", "0 image"],
        ),
        (
            lambda root: (
                write_classes(root / "nothing", ["dog"], 4),
                write_classes(root / "nothing", ["cat"], 2),
            ),
            ["'cat'", "2 image", "3 or more"],
        ),
        (
            lambda root: [
                write_classes(root / "nothing" / part, ["cat", "dog"], 2)
                for part in ("train", "test")
            ],
            ["a split without val", "train, val and test"],
        ),
    ],
)
def test_an_unusable_folder_says_why(tmp_path, prepare, words):
    prepare(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset("folder", str(tmp_path / "nothing"))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_folder_is_needed():
    with pytest.raises(DataError, match="folder=''"):
        load_dataset("folder")


def seen_in(dataset):
    """Return the fingerprint of a whole data set."""
    return images.fingerprint(dataset.train, dataset.val, dataset.test)


def test_the_fingerprint_sees_pixels_labels_and_the_split(tmp_path):
    write_classes(tmp_path / "a", ["cat", "dog"], 4)
    seen = {seen_in(load_dataset("folder", str(tmp_path / "a")))}
    for name, change in {
        "pixels": lambda root: draw_image(7, 7).save(root / "cat" / "image 1.png"),
        "more": lambda root: draw_image(7, 7).save(root / "cat" / "image 9.png"),
        "label": lambda root: (root / "cat" / "image 1.png").rename(root / "dog" / "image 8.png"),
    }.items():
        shutil.copytree(tmp_path / "a", tmp_path / name)
        change(tmp_path / name)
        seen.add(seen_in(load_dataset("folder", str(tmp_path / name))))
    assert len(seen) == 4
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert seen_in(load_dataset("folder", str(tmp_path / "copy"))) in seen, (
        "a moved folder is the same data"
    )


def test_the_fingerprint_sees_the_shape_of_an_image():
    wide, tall = (Images((np.zeros(shape, np.uint8),), (0,)) for shape in ((2, 3), (3, 2)))
    assert images.fingerprint(wide) != images.fingerprint(tall)


def test_an_image_that_was_repaired_is_read_again(tmp_path):
    """The message asks to replace or remove the file; a notebook's user then runs the same cell
    again.
    """
    write_classes(tmp_path, ["cat", "dog"], 4)
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="cat/image .*png' is not a readable image"):
        load_dataset("folder", str(tmp_path))
    for index, file in enumerate(sorted((tmp_path / "cat").iterdir())):
        draw_image(0, index).save(file)
    after = load_dataset("folder", str(tmp_path))
    after.train.open(0)
    before = seen_in(after)
    (tmp_path / "dog" / "image 0.png").write_bytes((tmp_path / "cat" / "image 0.png").read_bytes())
    assert seen_in(load_dataset("folder", str(tmp_path))) != before, "a replaced file is other data"


# One image.


def encoded(tmp_path, suffix):
    """Return the bytes of a picture in a file format."""
    file = tmp_path / f"whole{suffix}"
    draw_image(0, 0).resize((64, 64)).save(file)
    return file.read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".jpeg", ".tiff"}))
def test_a_broken_file_is_named(tmp_path, suffix):
    whole, file = encoded(tmp_path, suffix), tmp_path / f"broken{suffix}"
    for content in (b"", b"no image at all", whole[:20], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            Images((str(file),), (0,)).open(0)
        assert str(file) in str(caught.value) and "replace or remove" in str(caught.value)


# Pillow raises a SyntaxError on the first and a ValueError on the second: found by damaging
# thousands of files as above.
@pytest.mark.parametrize("place", [35, 11], ids=["length of the data", "length of the header"])
def test_a_png_with_a_damaged_header_is_named(tmp_path, place):
    content, file = bytearray(encoded(tmp_path, ".png")), tmp_path / "damaged.png"
    content[place] = 5
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged.png"):
        Images((str(file),), (0,)).open(0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on what it could not read
@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".jpeg", ".tiff"}))
def test_a_damaged_file_opens_or_is_named_but_never_raises_anything_else(tmp_path, suffix):
    whole, file, random = (
        encoded(tmp_path, suffix),
        tmp_path / f"damaged{suffix}",
        np.random.RandomState(0),
    )
    for _ in range(60):
        content = bytearray(whole)
        for place in random.randint(0, min(len(content), 200), 4):  # the headers are at the front
            content[place] = random.randint(256)
        file.write_bytes(content)
        try:
            assert Images((str(file),), (0,)).open(0).mode == "RGB"
        except DataError as error:
            assert str(file) in str(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.png"):
        Images((str(tmp_path / "gone.png"),), (0,)).open(0)


def test_the_rotation_that_a_camera_noted_is_applied(tmp_path):
    picture = Image.new("RGB", (20, 10), "black")
    picture.paste("white", (0, 0, 10, 10))  # the left half is white
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    opened = Images((str(tmp_path / "turned.png"),), (0,)).open(0)
    assert opened.size == (10, 20)
    assert opened.getpixel((5, 2)) == (255, 255, 255) and opened.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    draw_image(1, 1).convert(mode).save(file)
    opened = Images((str(file),), (0,)).open(0)
    assert opened.mode == "RGB" and opened.size == (24, 16)


def test_pick_keeps_sources_with_labels():
    images = Images(("a", "b", "c", "d"), (0, 1, 0, 1))
    assert (images.pick([3, 0]).sources, images.pick([3, 0]).labels) == (("d", "a"), (1, 0))


# Names.


@pytest.mark.parametrize(
    "noun, name, text",
    [
        ("", "seven", "a photo of a seven"),
        ("pet", "Abyssinian", "a pet photo of a Abyssinian"),
        ("satellite", "annual crop land", "a satellite photo of a annual crop land"),
        ("food", "apple_pie", "a food photo of a apple_pie"),  # raw, as in the released code
    ],
)
def test_the_prompt_is_the_papers(noun, name, text):
    assert prompt(noun, name) == text


odd_names = ["a/c", "a_c", "A/C", "../../etc", "..", ".", "", "x" * 79 + " y"]
names = st.lists(st.text(max_size=120) | st.sampled_from(odd_names), max_size=8)


@given(names)
def test_folders_of_class_names_are_safe_and_distinct(classes):
    folders = class_folders(classes)
    assert len(folders) == len(classes)
    assert len({folder.lower() for folder in folders}) == len(classes), "a Mac's disk ignores case"
    for folder in folders:
        assert re.fullmatch(r"[A-Za-z0-9_. -]{1,100}", folder), folder
        assert folder.strip(" .") == folder, (
            f"{folder!r}: Windows drops a final dot or space, a leading dot hides"
        )


@given(
    st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True), unique_by=str.lower, max_size=8)
)
def test_safe_names_stay_as_they_are(classes):
    assert class_folders(classes) == classes


# Transforms.


def test_the_generators_view_is_a_square_of_minus_one_to_one():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (10, 0, 30, 20))  # the centre square is white
    centre = transforms.generator_image(image, 16, "center")
    assert centre.shape == (3, 16, 16) and centre.mean() > 0.9 and centre.max() == 1.0
    torch.manual_seed(0)
    crops = [transforms.generator_image(image, 16, "random") for _ in range(8)]
    assert all(crop.shape == (3, 16, 16) and crop.min() >= -1 for crop in crops)
    assert len({crop.mean().item() for crop in crops}) > 1, "a random crop moves"
    assert torch.equal(
        transforms.generator_image(Image.new("RGB", (16, 16)), 16, "random"), -torch.ones(3, 16, 16)
    )


def test_the_evaluation_view_is_the_centre_and_keeps_bytes():
    image = Image.new("RGB", (40, 20), "black")
    image.paste((10, 200, 30), (8, 0, 32, 20))
    view = transforms.evaluation_tensor(image, 20)
    assert view.dtype == torch.uint8 and view.shape == (3, 20, 20)
    assert view.flatten(1).unique(dim=1).T.tolist() == [[10, 200, 30]]


def test_the_evaluation_batches_keep_order(dataset):
    batches = list(transforms.evaluation_batches(dataset.test, 16, batch=5))
    stack = torch.cat(batches)
    assert [len(part) for part in batches] == [5, 5, 2] and stack.shape == (
        len(dataset.test),
        3,
        16,
        16,
    )
    assert all(
        torch.equal(stack[i], transforms.evaluation_tensor(dataset.test.open(i), 16))
        for i in range(len(dataset.test))
    )


def test_a_tensor_becomes_an_image_of_the_same_tones():
    tensor = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3).expand(3, 2, 3)
    assert np.asarray(images.to_image(tensor))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


# Decoding ahead.


@pytest.mark.parametrize(
    "room, spare, kept, filed",
    [(10**9, 0, 6, 0), (3 * 16 * 24 * 2, 0, 2, 4), (0, 0, 0, 6), (0, 2**62, 0, 0)],
)
def test_decoded_images_are_the_same_wherever_they_are_kept(
    dataset, monkeypatch, room, spare, kept, filed
):
    """In memory, in the temporary file, or nowhere since the disk has no room: what has a place
    is decoded once.
    """
    opened = []
    monkeypatch.setattr(
        Images, "open", lambda self, i, real=Images.open: (opened.append(i), real(self, i))[1]
    )
    monkeypatch.setattr(decode_cache, "CACHE_BYTES", room)
    monkeypatch.setattr(decode_cache, "SPARE_BYTES", spare)
    sets = {True: dataset.train.pick([0, 1, 2]), False: dataset.train.pick([3, 4, 5])}
    wanted = {(kind, i): np.array(sets[kind].open(i)) for kind in sets for i in range(3)}
    opened.clear()
    source, keys = (
        decode_cache.Decoded(sets),
        [(kind, i) for kind in (True, False) for i in (2, 0, 1)],
    )
    for _ in range(3):
        source.start(keys)
        for key, image in zip(keys, source.take(keys), strict=True):
            assert np.array_equal(image.permute(1, 2, 0), wanted[key])
    assert (len(source.kept), len(source.places)) == (kept, filed) and not source.coming
    assert len(opened) == 6 + 2 * (6 - kept - filed)


@pytest.mark.parametrize("least, threads", [(1, True), (10**9, False)])
def test_small_files_are_decoded_by_one_thread_and_large_ones_by_several(
    dataset, tmp_path, monkeypatch, least, threads
):
    """The same images and evaluation views either way."""
    monkeypatch.setattr(decode_cache, "LARGE", least)
    files = [str(tmp_path / f"{i}.png") for i in range(7)]
    for i, file in enumerate(files):
        dataset.test.open(i).save(file)
    sets, seen = {True: Images(tuple(files), (0,) * 7)}, set()
    monkeypatch.setattr(
        Images,
        "open",
        lambda self, i, real=Images.open: (seen.add(threading.current_thread()), real(self, i))[1],
    )
    source, keys = decode_cache.Decoded(sets), [(True, i) for i in range(7)]
    source.start(keys)
    assert all(
        np.array_equal(image.permute(1, 2, 0), np.asarray(dataset.test.open(i)))
        for i, image in enumerate(source.take(keys))
    )
    made = torch.cat(list(transforms.evaluation_batches(sets[True], 16, batch=3)))
    assert torch.equal(
        made, torch.cat(list(transforms.evaluation_batches(dataset.test.pick(range(7)), 16)))
    )
    assert (seen != {threading.current_thread()}) == threads


def test_no_more_is_decoded_beforehand_than_there_is_room_for(dataset, tmp_path, monkeypatch):
    """A batch of a camera's pictures, decoded before it is its turn, would fill the memory."""
    monkeypatch.setattr(decode_cache, "LARGE", 1)
    files = [str(tmp_path / f"{i}.png") for i in range(7)]
    for i, file in enumerate(files):
        dataset.test.open(i).save(file)
    source = decode_cache.Decoded({True: Images(tuple(files), (0,) * 7)})
    (first,) = source.take([(True, 0)])
    monkeypatch.setattr(decode_cache, "AHEAD", 2 * first.nbytes)
    keys = [(True, i) for i in range(1, 7)]
    source.start(keys)
    assert len(source.coming) == 2
    assert len(source.take(keys)) == 6 and not source.coming


def test_a_disk_that_no_longer_reads_ends_no_training(dataset, monkeypatch):
    monkeypatch.setattr(decode_cache, "CACHE_BYTES", 0)
    monkeypatch.setattr(decode_cache, "SPARE_BYTES", 0)
    source, keys = decode_cache.Decoded({True: dataset.train}), [(True, 0), (True, 1)]
    first = source.take(keys)
    monkeypatch.setattr(decode_cache.os, "preadv", lambda *_: 5)
    assert len(source.places) == 2 and all(
        torch.equal(one, other) for one, other in zip(first, source.take(keys), strict=True)
    )


def test_a_disk_that_is_full_ends_no_training(dataset, monkeypatch):
    monkeypatch.setattr(decode_cache, "CACHE_BYTES", 0)
    # As where the last block is taken: a part is written.
    monkeypatch.setattr(decode_cache.os, "pwrite", lambda *_: 1)
    source, keys = decode_cache.Decoded({True: dataset.train}), [(True, 0), (True, 1)]
    for _ in range(2):
        assert [
            np.array_equal(image.permute(1, 2, 0), np.asarray(dataset.train.open(i)))
            for (_, i), image in zip(keys, source.take(keys), strict=True)
        ] == [True] * 2
    assert source.full and not source.places


def test_an_image_that_a_batch_wants_twice_is_decoded_once(dataset, monkeypatch):
    opened = []
    monkeypatch.setattr(
        Images, "open", lambda self, i, real=Images.open: (opened.append(i), real(self, i))[1]
    )
    one, two = decode_cache.Decoded({True: dataset.train}).take([(True, 0), (True, 0)])
    assert torch.equal(one, two) and opened == [0]


def test_an_unreadable_image_is_named_by_the_thread_that_finds_it(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = decode_cache.Decoded({True: Images((str(tmp_path / "bad.png"),), (0,))})
    source.start([(True, 0)])
    with pytest.raises(DataError, match="bad.png"):
        source.take([(True, 0)])
