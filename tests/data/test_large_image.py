"""An image over Pillow's limit of pixels is sound: it is to be scaled down, not replaced."""

import pytest
from PIL import Image

from datadream import photos
from datadream.data.images import Images
from datadream.errors import DataError


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Return a photo folder of which one image is over a limit of 2 x 200 pixels."""
    for name, colour in {"cat": "red", "dog": "blue"}.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (10, 10), colour).save(tmp_path / name / "small.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "dog" / "scan.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    return tmp_path


def test_an_image_over_pillows_limit_is_to_be_scaled_down(large):
    with pytest.raises(DataError, match="scan.tif' is larger.*scale it down to 400 pixels") as told:
        Images((str(large / "dog" / "scan.tif"),), (0,)).open(0)
    assert "replace" not in str(told.value)


def test_the_check_of_photos_says_so_too(large):
    table = photos.inspect(str(large))
    (what,) = table.loc[table["level"] == "error", "what"]
    assert "scale it down to 400 pixels" in what and "remove" not in what
