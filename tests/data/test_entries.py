"""Folders as they come: what is a class, an image, a part of a split, and what is not used."""

import io
import unicodedata
import warnings
from pathlib import Path

import pytest
from conftest import draw_image, write_classes
from PIL import Image

from datadream import photos
from datadream.data import entries, folders, paper_datasets
from datadream.data.datasets import load_dataset
from datadream.errors import DataError

LEFT = ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "#recycle", ".DS_Store", "Thumbs.db")


def litter(root):
    """Leave in a folder what machines leave, folders with an image in them."""
    for name in LEFT:
        if name.endswith((".db", "Store")):
            (root / name).write_bytes(b"left")
        else:
            (root / name).mkdir()
            draw_image(0, 99).save(root / name / "image 0.png")


def split(root, names=("train", "val", "test"), classes=("cat", "dog"), count=3):
    for number, part in enumerate(names):
        write_classes(root / part, classes, count, count * number)


def quiet(*arguments, **fields):
    """Load a dataset where a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", folders.UnusedWarning)
        return load_dataset("folder", *arguments, **fields)


# Images.


@pytest.mark.parametrize("name", ["a.jfif", "photo", "a.gif", "a.ppm", "a.JPG_large", "a.jp2"])
def test_what_pillow_reads_is_an_image_whatever_it_is_called(tmp_path, name):
    write_classes(tmp_path, ["cat", "dog"], 3)
    form = {".gif": "GIF", ".ppm": "PPM", ".jp2": "JPEG2000"}.get(Path(name).suffix, "JPEG")
    draw_image(0, 9).save(tmp_path / "cat" / name, format=form)
    assert "4 images" in set(photos.inspect(str(tmp_path))["what"])
    whole = quiet(str(tmp_path), fold="0/2")
    assert len(whole.train) == 7 and str(tmp_path / "cat" / name) in whole.train.sources


def test_a_damaged_image_by_another_suffix_is_an_error(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 3)
    (tmp_path / "cat" / "a.jfif").write_bytes(b"no image")
    with pytest.raises(DataError, match="a.jfif' is not a readable image"):
        load_dataset("folder", str(tmp_path))


def test_what_is_not_used_is_counted_and_named(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 3)
    (tmp_path / "cat" / "IMG.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "dog" / "more").mkdir()
    (tmp_path / "readme.md").write_text("mine")
    litter(tmp_path / "cat")
    for fields in ({}, {"fold": "1/2"}):
        with pytest.warns(
            folders.UnusedWarning, match="3 entries .*readme.md.*cat/IMG.HEIC.*dog/more"
        ):
            load_dataset("folder", str(tmp_path), **fields)


def test_what_a_test_folder_and_a_split_do_not_use_is_named(tmp_path):
    write_classes(tmp_path / "own", ["cat", "dog"], 3)
    write_classes(tmp_path / "new", ["cat", "dog"], 3, 5)
    (tmp_path / "new" / "dog" / "notes.txt").write_text("mine")
    with pytest.warns(folders.UnusedWarning, match="1 entry of .*new is not used: 'dog/notes.txt'"):
        load_dataset("folder", str(tmp_path / "own"), test_folder=str(tmp_path / "new"))
    split(tmp_path / "split")
    write_classes(tmp_path / "split" / "extra", ["cat"], 2, 20)
    with pytest.warns(folders.UnusedWarning, match="not used: 'extra'"):
        load_dataset("folder", str(tmp_path / "split"))


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_the_training_lacks_is_an_error(tmp_path, part):
    split(tmp_path)
    write_classes(tmp_path / part, ["eel"], 2, 20)
    with pytest.raises(DataError, match=rf"{part} has 1 class folder that .*train lacks: 'eel'"):
        load_dataset("folder", str(tmp_path))


# Litter.


def test_what_machines_leave_is_no_data_anywhere_and_no_news(tmp_path):
    split(tmp_path / "split")
    for place in ("", "train", "val/cat", "test"):
        litter(tmp_path / "split" / place)
    whole = quiet(str(tmp_path / "split"))
    assert [len(part) for part in (whole.train, whole.val, whole.test)] == [6, 6, 6]
    write_classes(tmp_path / "own", ["cat", "dog"], 4)
    litter(tmp_path / "own")
    litter(tmp_path / "own" / "dog")
    assert quiet(str(tmp_path / "own"), fold="1/2").classes == ("cat", "dog")
    photos.require(photos.inspect(str(tmp_path / "own")))


def test_what_machines_leave_is_no_part_of_imagenet(tmp_path):
    for part in ("train", "val"):
        for own in ("n01", "n02"):
            (tmp_path / part / own).mkdir(parents=True)
            (tmp_path / part / own / f"{own}_1.JPEG").write_bytes(b"x")
            litter(tmp_path / part / own)
        litter(tmp_path / part)
    train, _, test = paper_datasets.read_imagenet("imagenet", ("a", "b"), tmp_path, tmp_path)
    assert train == [("train/n01/n01_1.JPEG", 0), ("train/n02/n02_1.JPEG", 1)] and len(test) == 2


def test_what_machines_leave_is_no_shot(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 2)
    litter(tmp_path / "cat")
    assert len(paper_datasets.read_shots(tmp_path, ("cat", "dog"))) == 4


# Splits.


@pytest.mark.parametrize("names", [("train", "bus", "car"), ("Test", "bus"), ("train", "test")])
def test_a_class_may_be_called_as_a_part_is(tmp_path, names):
    write_classes(tmp_path, names, 4)
    assert quiet(str(tmp_path)).classes == tuple(sorted(names))
    assert quiet(str(tmp_path), fold="1/2").classes == tuple(sorted(names))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Val", "Test"),
        ("TRAIN", "validation", "test"),
        ("training", "val", "testing"),
    ],
)
def test_a_split_by_other_names_is_one(tmp_path, names):
    split(tmp_path, names)
    whole = quiet(str(tmp_path))
    assert whole.classes == ("cat", "dog")
    for part, name in zip((whole.train, whole.val, whole.test), names, strict=True):
        assert {Path(source).parents[1].name for source in part.sources} == {name}


def test_two_folders_for_one_part_are_named(tmp_path):
    split(tmp_path, ("train", "valid", "validation", "test"))
    with pytest.raises(DataError, match="'valid' and 'validation', and either may be the val part"):
        load_dataset("folder", str(tmp_path))


def test_a_split_where_photos_are_wanted_says_what_to_give(tmp_path):
    split(tmp_path)
    for attempt in (
        lambda: photos.inspect(str(tmp_path)),
        lambda: quiet(str(tmp_path), fold="1/2"),
    ):
        with pytest.raises(DataError, match="has the parts of a split .*test_folder"):
            attempt()


# Unicode.

ACCENTS = ("\u00c4pfel", "caf\u00e9", "na\u00efve")


@pytest.mark.parametrize("one, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_the_same_class(tmp_path, one, other):
    first, second = (
        [unicodedata.normalize(form, name) for name in ACCENTS] for form in (one, other)
    )
    write_classes(tmp_path / "own", first, 3)
    write_classes(tmp_path / "new", second, 2, 5)
    whole = quiet(str(tmp_path / "own"), test_folder=str(tmp_path / "new"))
    assert len(whole.test) == 6 and whole.classes == tuple(sorted(first))
    for source, label in zip(whole.test.sources, whole.test.labels, strict=True):
        assert entries.alike(Path(source).parent.name) == entries.alike(whole.classes[label])
    for part, names, start in (("train", first, 0), ("val", second, 3), ("test", second, 6)):
        write_classes(tmp_path / "split" / part, names, 3, start)
    assert [len(part) for part in (quiet(str(tmp_path / "split")).val,)] == [9]
    assert len(paper_datasets.read_shots(tmp_path / "new", first)) == 6


# Colours.


def profile(kind="Adobe RGB"):
    """Return a small ICC profile with the primaries of Adobe RGB or Display P3, and its gamma."""
    primaries = {
        "Adobe RGB": "0.60974 0.31111 0.01947 0.20528 0.62567 0.06087 0.14919 0.06322 0.74457",
        "Display P3": "0.51512 0.24120 -0.00105 0.29198 0.69225 0.04189 0.15710 0.06657 0.78407",
    }[kind].split()

    rows = [list(map(float, primaries[i : i + 3])) for i in (0, 3, 6)]

    def fixed(value):
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    text = kind.encode() + b"\0"
    name = b"desc\0\0\0\0" + len(text).to_bytes(4, "big") + text + bytes(78)
    gamma = b"curv\0\0\0\0\0\0\0\1" + round(2.2 * 256).to_bytes(2, "big") + b"\0\0"
    content = {b"desc": name + bytes(-len(name) % 4), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    content[b"wtpt"] = xyz((0.9642, 1.0, 0.8249))
    content |= {key: xyz(v) for key, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), rows, strict=True)}
    content |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma)
    place, table, data = 132 + 12 * len(content), b"", b""
    for key, value in content.items():
        table += key + (place + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value
    size = place + len(data)
    head = size.to_bytes(4, "big") + b"\0\0\0\0\2\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + len(content).to_bytes(4, "big") + table + data


GREEN = Image.new("RGB", (40, 30), (60, 180, 60))


def seen(file):
    from datadream.data.images import Images

    return Images((str(file),), (0,)).open(0).getpixel((20, 15))


@pytest.mark.parametrize("kind", ["Adobe RGB", "Display P3"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photo_of_another_colour_space_is_used_in_srgb(tmp_path, kind, suffix):
    GREEN.save(tmp_path / f"a.{suffix}", icc_profile=profile(kind))
    red, green, blue = seen(tmp_path / f"a.{suffix}")
    assert red < 40 and green > 175 and blue < 60, "a green that sRGB's numbers would make duller"


def test_transparent_turned_and_palette_photos_are_converted_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    GREEN.save(tmp_path / "turned.jpg", icc_profile=profile(), exif=exif)
    assert seen(tmp_path / "turned.jpg")[0] < 40
    clear = GREEN.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png", icc_profile=profile())
    GREEN.quantize(4).save(tmp_path / "palette.png", icc_profile=profile())
    assert seen(tmp_path / "clear.png")[0] < 40 and seen(tmp_path / "palette.png")[0] < 40


def test_a_profile_of_srgb_changes_no_pixel(tmp_path):
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    draw_image(0, 3).save(tmp_path / "a.png", icc_profile=own)
    draw_image(0, 3).save(tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").info["icc_profile"]
    from datadream.data.images import Images

    one, other = (Images((str(tmp_path / n),), (0,)).open(0).tobytes() for n in ("a.png", "b.png"))
    assert one == other


def test_a_damaged_profile_is_passed_over_and_not_the_image(tmp_path):
    for number, content in enumerate((b"no profile", profile()[:200], b"\0" * 5_000_000)):
        GREEN.save(tmp_path / f"{number}.jpg", icc_profile=content, quality=95)
        assert abs(seen(tmp_path / f"{number}.jpg")[0] - 60) < 4
    Image.new("L", (40, 30), 90).save(tmp_path / "grey.png", icc_profile=profile())
    assert seen(tmp_path / "grey.png") == (90, 90, 90), "a profile of another kind of pixels"


def test_an_oversized_profile_or_text_of_a_png_is_passed_over(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    GREEN.save(tmp_path / "profile.png", icc_profile=b"\0" * 5_000_000)
    notes = PngInfo()
    notes.add_text("workflow", "x" * 5_000_000, zip=True)
    GREEN.save(tmp_path / "text.png", pnginfo=notes)
    for name in ("profile.png", "text.png"):
        assert seen(tmp_path / name) == (60, 180, 60)


def test_the_report_notes_a_profile(tmp_path):
    write_classes(tmp_path, ["cat", "dog"], 3)
    buffer = io.BytesIO()
    draw_image(0, 9).save(buffer, "JPEG", icc_profile=profile())
    (tmp_path / "cat" / "wide.jpg").write_bytes(buffer.getvalue())
    table = photos.inspect(str(tmp_path))
    row = table[table["where"] == "cat/wide.jpg"].iloc[0]
    assert row["level"] == "note" and "'Adobe RGB'; it is used in sRGB" in row["what"]
