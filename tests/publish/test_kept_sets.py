"""What the repository keeps of synthetic sets: sheets of images, and whole sets as zips."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from datadream.data.images import Images
from datadream.errors import DataError
from datadream.pipeline.stages import Cell
from datadream.publish import kept_sets


def pictures(tmp_path, colour, sides, labels):
    """Return images of one colour with these sides and labels."""
    files = []
    for i, side in enumerate(sides):
        files.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (side, side), colour).save(files[-1])
    return Images(tuple(files), tuple(labels))


def test_a_sheet_has_a_column_for_each_class(tmp_path):
    images = pictures(tmp_path, (9, 9, 9), [8] * 7, [0, 0, 0, 0, 0, 1, 1])
    sheet = kept_sets.draw_sheet(images, 2)
    gap, depth = kept_sets.GAP, kept_sets.DEPTH
    assert sheet.mode == "L" and sheet.size == (2 * 8 + gap, depth * (8 + gap) - gap)
    found = np.asarray(sheet)
    assert found[0, 0] == 9 and found[0, 8] == 255 and found[0, 8 + gap] == 9
    assert found[2 * (8 + gap), 8 + gap] == 255, "the second class has two images"


def test_a_sheet_of_colour_keeps_it_and_photos_are_made_small(tmp_path):
    images = pictures(tmp_path, (200, 9, 9), [300], [0])
    sheet = kept_sets.draw_sheet(images, 1)
    assert sheet.mode == "RGB" and sheet.size == (kept_sets.SIDE, kept_sets.SIDE)


@pytest.fixture
def own(make, monkeypatch, tmp_path):
    """Let tiny cells count as in their profile's own settings; return a maker of cells."""
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kept_sets, "in_own_settings", lambda recipe: recipe["classify.lr"] != 0.001)
    return make


def test_the_sets_of_the_first_seed_are_kept_as_sheets(own, store):
    cells = [own("real"), own("base"), own("base+real"), own("base", seed=1)]
    for one in cells[1:]:
        Cell(one).make("generate", store)
    files = kept_sets.keep_sets(cells, store)
    where = cells[0].dataset, cells[0].shots
    assert files == [kept_sets.sheet_file(*where, name) for name in ("shots", "base")]
    assert all(Image.open(file).mode in ("L", "RGB") for file in files)


def test_what_is_not_the_profiles_own_or_not_there_is_left_out(own, store):
    assert kept_sets.keep_sets([own("base")], store) == []
    changed = own("base", overrides={"classify.lr": 0.001})
    Cell(changed).make("generate", store)
    assert kept_sets.keep_sets([changed], store) == []


def test_a_whole_set_is_a_zip_with_the_same_bytes_each_time(own, store, monkeypatch):
    one = own("base")
    Cell(one).make("generate", store)
    monkeypatch.setattr(kept_sets, "WHOLE", ("base", one.shots))
    (*_, file) = kept_sets.keep_sets([one], store)
    first = file.read_bytes()
    names = zipfile.ZipFile(file).namelist()
    images = [name for name in names if name.endswith(".png")]
    assert len(images) == one.generate.images * len(Cell(one).dataset.classes)
    assert f"{file.stem}/README.md" in names and f"{file.stem}/classes.json" in names
    kept_sets.keep_sets([one], store)
    assert file.read_bytes() == first
    monkeypatch.setattr(kept_sets, "LIMIT", 10)
    with pytest.raises(DataError, match="at most 1e-05 are kept"):
        kept_sets.keep_sets([one], store)
    assert not file.exists()
