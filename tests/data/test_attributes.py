"""What is measured of drawn characters: strokes whose slant, width and tone are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from datadream.data.attributes import ATTRIBUTES, descriptions, measure


def stroke(lean=0.0, width=3, ink=255, ground=0, side=48, height=32):
    """Return a blurred line whose upper end lies `lean` * height to the right of its lower one."""
    image = Image.new("L", (side, side), ground)
    shift, top = lean * height / 2, (side - height) / 2
    ends = (side / 2 + shift, top, side / 2 - shift, side - top)
    ImageDraw.Draw(image).line(ends, fill=ink, width=width)
    return image.filter(ImageFilter.GaussianBlur(0.7))


@settings(max_examples=25)
@given(lean=st.floats(-0.8, 0.8), width=st.integers(2, 6), ink=st.integers(120, 255))
def test_the_slant_is_the_line_s_whatever_its_width_and_tone(lean, width, ink):
    """Downwards y grows, so that a stroke which leans to the right has a negative slant."""
    found = measure(stroke(lean, width, ink))["slant"]
    assert abs(found + lean) < 0.12
    assert abs(lean) < 0.1 or (found < 0) == (lean > 0)


@settings(max_examples=15)
@given(widths=st.lists(st.integers(2, 9), min_size=2, max_size=2, unique=True), ink=st.just(255))
def test_a_wider_stroke_has_the_larger_width(widths, ink):
    one, other = (measure(stroke(width=width, ink=ink))["stroke"] for width in widths)
    assert (one < other) == (widths[0] < widths[1])
    assert one == pytest.approx(widths[0] / 48, rel=0.5)


def test_tone_is_the_ink_s_grey_on_either_ground():
    tones = [measure(stroke(ink=ink))["tone"] for ink in (90, 160, 250)]
    assert tones == sorted(tones)
    assert measure(stroke(ink=0, ground=255))["tone"] < 0.4 < measure(stroke(ink=255))["tone"]


def test_size_and_proportions_are_those_of_the_ink_box():
    tall, short = stroke(height=40), stroke(height=16)
    assert measure(tall)["size"] > measure(short)["size"]
    assert measure(tall)["aspect"] < measure(short)["aspect"] < measure(tall.rotate(90))["aspect"]


def test_an_empty_image_has_no_measures():
    assert set(measure(Image.new("L", (8, 8), 30)).values()) == {0.0}


def test_words_are_of_the_class_s_own_spread():
    """One class leans to the left as a whole, the other to the right: no word says so."""
    leans = [-0.6, -0.5, -0.4, 0.4, 0.5, 0.6]
    found = descriptions([stroke(lean) for lean in leans], (0, 0, 0, 1, 1, 1))
    assert ["left" in words for words in found] == [True, False, False] * 2
    assert ["right" in words for words in found] == [False, False, True] * 2


def test_one_image_a_class_has_no_spread_of_its_own():
    assert descriptions([stroke(lean) for lean in (-0.5, 0.0, 0.5)], (0, 1, 2)) == ["", "", ""]


def test_what_hardly_differs_has_no_word():
    found = descriptions([stroke(0.2), stroke(0.2), stroke(0.21), stroke(0.2)], (0, 0, 1, 1))
    assert set(found) == {""}
    names = {one.name for one in ATTRIBUTES}
    assert names == set(measure(stroke()))
    assert len({word for one in ATTRIBUTES for word in (one.low, one.high)}) == 2 * len(names)


def test_the_embedded_digits_differ_in_stroke_and_slant_and_not_in_tone():
    from datadream.data.datasets import few_shots, load_dataset

    shots = few_shots(load_dataset("mnist"), 16, 0)
    words = descriptions([shots.open(i) for i in range(len(shots))], shots.labels)
    counts = {w: np.mean([w in own.split() for own in words]) for w in ("thin", "left")}
    assert all(0.25 < share < 0.42 for share in counts.values())
    assert not any("dark" in own or "light" in own for own in words)
