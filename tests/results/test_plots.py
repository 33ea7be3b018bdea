"""Figures: each plot draws what it is given, in the one palette, readable on a phone and in the
dark.
"""

import io
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from unittest import mock

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from datadream.data.images import Images, Previews, shrunk
from datadream.methods.registry import METHODS
from datadream.results import fonts, plots, style
from datadream.store.artifacts import Store
from datadream.study.named_runs import load_study

# Linear RGB as it is seen: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "by most": np.eye(3),
    "in deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "in protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "in tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Of linear sRGB.
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# CIE76: a difference of 2.3 is just seen side by side; dots and lines lie apart, and are small.
TOLD_APART = {"light": 15, "dark": 10}
# More than about fifteen colours are no palette. Those of the main table differ this much from
# every other; two others, whose names stand beside their lines, half as much.
BESIDE = 0.5
ON_GROUND = {"light": 2, "dark": 3}  # contrast of a method's colour, at least
GROUND = {"light": style.GROUND, "dark": style.in_the_dark(style.GROUND)}
PHONE = 350  # pixels of a page's text on a screen of 390
LONG = [f"{'Handwritten ' * (i % 3)}Boeing 737-{i} of_a_long_name" for i in range(400)]


@pytest.fixture(params=style.THEMES)
def theme(request):
    """Draw in each theme, then in the light one again."""
    style.set_theme(request.param)
    yield request.param
    style.set_theme("light")


def summary(*methods):
    """Return a summary of these methods as records.summary gives it."""
    return pd.DataFrame(
        [
            {
                "method": m,
                "title": METHODS[m].title,
                "seeds": 2,
                "top1": 50.0 + i,
                "low": 48.0 + i,
                "high": 52.0 + i,
                "validation": 50.0,
            }
            for i, m in enumerate(methods)
        ]
    )


def curves(*rows):
    """Return a table with the columns that plot_curves reads: (method, curve of accuracies)."""
    points = [
        (m, [{"step": 10 * (i + 1), "val": v, "loss": 1.0} for i, v in enumerate(values)])
        for m, values in rows
    ]
    return pd.DataFrame(points, columns=["method", "curve"])


def measured(*methods):
    """Return a table of two measures as analysis.over_seeds gives it; the second has one seed,
    and so no interval.
    """
    return pd.DataFrame(
        [
            {
                "measure": name,
                "method": m,
                "title": METHODS[m].title,
                "seeds": 3,
                "mean": i + 0.5,
                "low": i + low,
                "high": i + 1 - low,
            }
            for name, low in (("kid", 0.25), ("coverage", np.nan), ("closer", 0.25))
            for i, m in enumerate(methods)
        ]
    )


def gained(method, n):
    """Return a table of n classes as analysis.gains gives it."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "baseline": "real",
                "class": f"class {i}",
                "label": i,
                "seeds": 2,
                "gain": float(i),
                "low": i - 1.0,
                "high": i + 1.0,
                "centroid": 0.5 + i / 100,
            }
            for i in range(n)
        ]
    )


FIGURES = {
    "measures": lambda: plots.plot_measures(measured("real", "base", "dset"), "title"),
    "gains": lambda: plots.plot_gains(gained("dset+real", 3)),
    "main table": lambda: plots.plot_main_table(summary(*METHODS), "title"),
    "samples": lambda: plots.plot_samples(
        {
            "Real": [[Image.new("L", (8, 8), 9)] * 2] * 3,
            "Base": [[Image.new("RGB", (16, 16))] * 2] * 3,
        },
        ["a", "b", "c"],
    ),
    "pictures": lambda: plots.plot_pictures(
        {
            "Missed": [(Image.new("L", (8, 8), 9), "asked: seven\nread: three")] * 7,
            "A title that is too long for one line, as titles of a dataset and method are": [
                (Image.new("RGB", (16, 8)), "Boeing 737-800 of a long name, seed 12\n13 % | 100 %")
            ]
            * 5,
            "Found": [],
        }
    ),
    "confusion": lambda: plots.plot_confusion([[3, 1], [0, 4]], ["a", "b"]),
    "curves": lambda: plots.plot_curves(curves(("real", [0.4, 0.5]), ("dset", [0.3, 0.6]))),
    "overview": lambda: plots.plot_overview(
        {title: [[Image.new("L", (8, 8), 9)]] * 10 for title in ("Real", "Drawn")},
        summary("clip", "dset+real"),
    ),
    "lines": lambda: plots.plot_lines(
        {"x": ([1, 2], [3, 4]), "y": ([1, 2], [4, 5])}, "step", "loss", log=True
    ),
}


CLEAR = ("samples", "pictures", "overview")  # without a ground of their own


def texts(figure):
    """Return the box in pixels of every text that drawing a figure writes; a tick beyond the
    axis is not written.
    """
    found, draw = {}, Text.draw

    def noting(text, renderer):
        if text.get_visible() and text.get_text().strip():
            found[text] = None
        return draw(text, renderer)

    with mock.patch.object(Text, "draw", noting):
        figure.canvas.draw()
    return {text: text.get_window_extent() for text in found}


def faults(figure):
    """Return what a reader on a phone could not read: texts on one another, beyond the figure,
    or too small.
    """
    boxes, (width, height) = texts(figure), figure.bbox.size
    assert boxes
    names = {text: repr(text.get_text()) for text in boxes}
    covered = [
        (names[a], names[b])
        for (a, x), (b, y) in itertools.combinations(boxes.items(), 2)
        if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1
    ]
    beyond = [
        names[text]
        for text, box in boxes.items()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    small = [
        names[text] for text in boxes if text.get_fontsize() * figure.dpi / 72 * PHONE / width < 9
    ]
    return covered + beyond + small


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_returns_a_figure_on_its_theme_s_ground_that_can_be_saved(name, theme, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        figure.savefig(tmp_path / "figure.png")
    assert isinstance(figure, Figure) and figure.get_figwidth() == style.WIDTH
    corner = np.asarray(Image.open(tmp_path / "figure.png").convert("RGBA"))[-1, -1].tolist()
    ground = [int(GROUND[theme][i : i + 2], 16) for i in (1, 3, 5)]
    assert corner[3] == 0 if name in CLEAR else corner == [*ground, 255]


@pytest.mark.parametrize("name", FIGURES)
def test_a_phone_can_show_every_text(name):
    assert not faults(FIGURES[name]())


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_stands_out_in_the_light_and_in_the_dark(name):
    for text in texts(FIGURES[name]()):
        if name in (
            "samples",
            "pictures",
        ):  # transparent: the book puts black behind it in the dark
            pairs = [(text.get_color(), "#ffffff"), (text.get_color(), "#000000")]
        else:
            grounds = [style.GROUND, *(plots.CONFUSED if name == "confusion" else ())]
            own = matplotlib.colors.to_hex(text.get_color())
            pairs = [(f(own), f(ground)) for ground in grounds for f in (str, style.in_the_dark)]
        assert min(contrast(*pair) for pair in pairs) >= 4.5, text.get_text()


def test_the_book_darkens_figures_as_the_dark_theme_is_computed():
    css = (ROOT / "book" / "_static" / "style.css").read_text()
    assert (
        f"filter: invert({style.INVERT}) hue-rotate({style.HUE}deg) saturate({style.SATURATE});"
        in css
    )


def test_the_readme_s_picture_is_there_in_both_themes_and_small():
    for theme in style.THEMES:
        file = ROOT / "book" / "_static" / f"overview-{theme}.png"
        assert file.stat().st_size < 300_000
        with Image.open(file) as picture:
            assert (
                picture.width == 2 * style.DPI * style.WIDTH
                and picture.getpixel((picture.width - 1, picture.height - 1))[3] == 0
            )


def test_the_readme_s_picture_is_drawn_by_its_script(folder, tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book")
    import overview

    rows = overview.sample_rows(
        Store(tmp_path), dataset="folder", folder=folder, shots=2, overrides=tiny
    )
    assert [title.partition(",")[0] for title in rows] == [
        "Real images: handwritten digits",
        METHODS["base"].title,
        METHODS["dset"].title,
    ]
    assert (
        all(len(column) == 1 for columns in rows.values() for column in columns)
        and len({len(columns) for columns in rows.values()}) == 1
    )
    monkeypatch.setattr(overview, "sample_rows", lambda store: rows)
    light, dark = overview.draw(tmp_path)
    pixels = [np.asarray(Image.open(file).convert("RGBA")) for file in (light, dark)]
    assert (
        pixels[0].shape == pixels[1].shape
        and (pixels[0] != pixels[1]).any()
        and style.shade("#ffffff") == "#ffffff"
    )


@pytest.mark.parametrize("seeds, said", [([3, 3], "over 3 seeds"), ([10, 3], "over 3 to 10 seeds")])
def test_the_readme_s_picture_says_how_many_seeds_its_rows_have(seeds, said):
    rows = {"Real": [[Image.new("L", (8, 8), 9)]] * 10}
    figure = plots.plot_overview(rows, summary("real", "dset+real").assign(seeds=seeds))
    assert any(said in axis.get_xlabel() for axis in figure.axes)


def test_the_front_page_s_strips_are_drawn_by_the_same_script(folder, tiny, tmp_path, monkeypatch):
    """With as many shots as the page says; each of the three is there, as wide as the others."""
    monkeypatch.syspath_prepend(ROOT / "book")
    import overview

    shots = load_study()["runs"][overview.RUN]["parameters"]["shots"]
    assert shots == 4 and "four MNIST digits per class" in (ROOT / "book/index.md").read_text()
    changes = dict(dataset="folder", folder=folder, shots=2, overrides=tiny)
    files = overview.draw_strips(tmp_path, Store(tmp_path), **changes)
    strips = [Image.open(file).convert("RGBA") for file in files]
    assert len({strip.size for strip in strips}) == 1
    assert len({strip.tobytes() for strip in strips}) == 3, "real, untuned and tuned differ"
    kept = [Image.open(ROOT / "book" / "_static" / file.name) for file in files]
    assert {one.size for one in kept} == {(10 * 64 + 9 * 4, 64)}


def test_every_cell_that_shows_photos_says_so():
    """The book's dark theme would show them as negatives otherwise."""
    pages = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book" / "study").glob("*.ipynb")]
    cells = [
        (page.name, cell)
        for page in pages
        for cell in json.loads(page.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    for page in (ROOT / "book").glob("*.md"):
        for block in re.findall(r"(?ms)^```\{code-cell\} ipython3\n(.*?)^```$", page.read_text()):
            head = re.match(r"(?s)---\n(.*?)^---\n", block, re.M)
            metadata = yaml.safe_load(head[1]) if head else {}
            cells.append((page.name, {"source": block, "metadata": metadata}))
    photos = {True: [], False: []}
    for name, cell in cells:
        shown = re.search(
            r"^(?!\s+return).*(plot_(samples|pictures)\(|show_kept\(.*png)",
            "".join(cell["source"]),
            re.M,
        )
        photos[bool(shown)].append(
            (name, cell["metadata"].get("mystnb", {}).get("image", {}).get("classes"))
        )
    assert (
        len(photos[True]) >= 6
        and {classes for _, classes in photos[True]} == {"photos"}
        and {classes for _, classes in photos[False]} == {None}
    )


def test_an_unknown_theme_is_refused():
    with pytest.raises(ValueError, match="'sepia' is unknown; accepted: light, dark"):
        style.set_theme("sepia")


def test_a_figure_is_shown_once():
    """pyplot keeps no figure open: a notebook would draw it twice, and a long study would fill
    the memory.
    """
    import matplotlib.pyplot as plt

    for name in FIGURES:
        FIGURES[name]()
    assert plt.get_fignums() == []


def test_every_method_has_a_colour_and_a_generator_keeps_its_own():
    for name, row in METHODS.items():
        if row.generates and row.real:
            assert row.colour == METHODS[name.removesuffix("+real")].colour
    alone = [
        (row.colour, row.marker) for row in METHODS.values() if not (row.generates and row.real)
    ]
    assert len(set(alone)) == len(alone), "methods of one colour differ by their marks"


def linear(colour):
    """Return the linear RGB (3,) of a colour."""
    values = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Return CIELAB (3,) of linear RGB under D65."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / (XYZ @ np.ones(3))
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first, second):
    """Return the contrast of two colours, WCAG 2's, in [1, 21]."""
    dark, light = sorted(XYZ[1] @ linear(colour) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("eyes", SEEN)
def test_colour_blind_readers_tell_the_methods_apart(eyes, theme):
    colours = dict.fromkeys(style.colour(method) for method in METHODS)
    main = {style.colour(name) for name, row in METHODS.items() if row.main}
    seen = {colour: lab(np.array(SEEN[eyes]) @ linear(colour)) for colour in colours}
    near = {
        (a, b): d
        for a, b in itertools.combinations(seen, 2)
        if (d := np.linalg.norm(seen[a] - seen[b]))
        < TOLD_APART[theme] * (1 if {a, b} & main else BESIDE)
    }
    assert not near


def test_every_colour_is_seen_on_its_ground(theme):
    found = {method: contrast(style.colour(method), GROUND[theme]) for method in METHODS}
    assert not {method: value for method, value in found.items() if value < ON_GROUND[theme]}


def test_lines_without_a_method_have_the_palettes_colours():
    drawn = plots.plot_lines({str(i): ([1, 2], [i, i]) for i in range(4)}, "x", "y").axes[0].lines
    assert {line.get_color() for line in drawn} <= {row.colour for row in METHODS.values()}
    assert len({line.get_color() for line in drawn}) == 4


def test_the_main_table_draws_each_method_at_its_number():
    axis = plots.plot_main_table(summary("real", "dset", "dset+real")).axes[0]
    assert axis.yaxis_inverted() and len(axis.get_yticklabels()) == 3, (
        "from top to bottom as in the table"
    )
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "Real only",
        "DataDream (dataset)",
        "DataDream (dataset) + real",
    ]
    dots = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() == "o"}
    assert {y: line.get_xdata()[0] for y, line in dots.items()} == {0: 50.0, 1: 51.0, 2: 52.0}
    hollow = {y for y, line in dots.items() if line.get_markerfacecolor() == style.GROUND}
    assert hollow == {1}, "a filled dot has real images"
    spans = [tuple(line.get_xdata()) for line in axis.lines if line.get_marker() != "o"]
    assert sorted(spans) == [(48.0, 52.0), (49.0, 53.0), (50.0, 54.0)]
    assert [text.get_text() for text in axis.texts] == ["50.0", "51.0", "52.0"]


def test_samples_are_drawn_a_column_per_class():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    figure = plots.plot_samples(
        {"Real": [[red, red], [blue, blue]], "Few": [[red], [blue, blue]]}, ["r", "b"]
    )
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    assert canvas.shape[:2] == (18, 18)
    assert [canvas[y, x].tolist() for y, x in ((4, 4), (4, 13), (13, 4))] == [
        [255, 0, 0, 255],
        [0, 0, 255, 255],
        [255, 0, 0, 255],
    ]
    few = np.asarray(figure.axes[1].images[0].get_array())
    assert few[13, 4, 3] == 0, "a class with fewer images leaves a hole"
    assert [text.get_text() for text in figure.axes[0].texts] == ["Real", "r", "b"]


def test_pictures_stand_in_rows_each_over_its_own_caption():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    figure = plots.plot_pictures(
        {"Both": [(red, "a\nb"), (blue, "c"), (blue, "d")], "Few": []}, columns=2
    )
    first, second = figure.axes
    canvases = [np.asarray(axis.images[0].get_array()) for axis in (first, second)]
    assert [canvas.shape[:2] for canvas in canvases] == [(9, 18), (9, 9)]
    assert canvases[0][4, 4].tolist() == [255, 0, 0, 255]
    assert canvases[0][4, 13].tolist() == canvases[1][4, 4].tolist() == [0, 0, 255, 255]
    assert [text.get_text() for text in first.texts] == ["Both", "a", "b", "c"]
    assert [text.get_text() for text in second.texts] == ["", "d"]
    assert [text.get_text() for text in figure.texts] == ["Few: none"]
    boxes = [axis.get_window_extent() for axis in (first, second)]
    assert boxes[0].height == pytest.approx(boxes[1].height), "all pictures are of one size"
    assert boxes[0].width == pytest.approx(2 * boxes[0].height, rel=0.01)
    assert not faults(figure) and not plots.plot_pictures({}).axes


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_no_image_is_stretched(sizes, classes):
    """Whatever their shapes, images fill a square cell one way and are centred the other, and a
    pixel is as wide as high.
    """
    pictures = [Image.new("RGB", size, "red") for size in sizes]
    axis = plots.plot_samples({"x": [pictures] * classes}, ["a"] * classes).axes[0]
    canvas = np.asarray(axis.images[0].get_array())
    box = axis.get_window_extent()
    assert box.width / box.height == pytest.approx(canvas.shape[1] / canvas.shape[0], rel=0.01)
    pitch = canvas.shape[0] // len(sizes)
    for i, (width, height) in enumerate(sizes):
        ys, xs = np.nonzero(canvas[i * pitch : (i + 1) * pitch, :pitch, 3])
        drawn, cell = (np.ptp(xs) + 1, np.ptp(ys) + 1), pitch - max(1, pitch // 21)
        assert max(drawn) == pytest.approx(cell, abs=1)
        assert min(drawn) == pytest.approx(
            max(1, max(drawn) * min(width, height) / max(width, height)), abs=1
        )
        assert xs.min() + xs.max() == pytest.approx(
            cell, abs=2
        ) and ys.min() + ys.max() == pytest.approx(cell, abs=2)


@pytest.mark.parametrize("n", [1, 2, 10, 12, 37, 102])
def test_the_names_of_samples_never_cover_one_another(n):
    figure = plots.plot_samples(
        {title: [[Image.new("RGB", (9, 9))]] * n for title in ("Real few shots", "DataDream")},
        LONG[:n],
    )
    assert not faults(figure)
    titles = [axis.texts[0].get_text() for axis in figure.axes]
    assert titles == [
        f"{title}, 12 of {n} classes" if n > 12 else title
        for title in ("Real few shots", "DataDream")
    ]
    assert len(figure.axes[-1].texts) == 1 + min(n, 12), "every class that is shown is named"


@given(
    st.lists(
        st.text(st.characters(max_codepoint=0x24F, exclude_categories=["C"]), max_size=60),
        min_size=1,
        max_size=15,
    )
)
@settings(max_examples=15, deadline=None)
def test_any_names_have_room_under_samples(names):
    assert not faults(plots.plot_samples({"x": [[Image.new("RGB", (4, 4))]] * len(names)}, names))


@given(
    st.text(st.characters(max_codepoint=0x24F, exclude_categories=["C"]), max_size=80),
    st.floats(0.3, 4),
    st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_a_fitted_text_has_its_width_and_its_lines_and_loses_nothing_unsaid(text, width, lines):
    found = style.fitted(text, width, lines=lines)
    assert found.count("\n") < lines and all(
        style.text_width(line) <= width for line in found.split("\n")
    )
    squeezed = "".join(text.split())
    assert "".join(found.split()) == squeezed or (
        found.endswith("\u2026") and squeezed.startswith("".join(found[:-1].split()))
    )


def test_the_confusion_matrix_is_shown_as_shares_of_the_true_class():
    axis = plots.plot_confusion([[6, 2], [0, 0]], ["a", "b"]).axes[0]
    # An empty class is no division by zero.
    assert np.asarray(axis.collections[0].get_array()).tolist() == [[75.0, 25.0], [0.0, 0.0]]
    assert sorted(text.get_text() for text in axis.texts if text.get_text()) == ["25", "75"]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")


@pytest.mark.parametrize("n", [2, 10, 20, 47, 102, 397])
def test_a_confusion_matrix_of_any_size_can_be_read(n):
    figure = plots.plot_confusion(np.eye(n), LONG[:n], "title")
    assert not faults(figure)
    numbers = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(numbers) in (0, n) and bool(numbers) == (n <= 10), "numbers only where they fit"
    named = len(figure.axes[0].get_yticklabels())
    assert named == n if n <= 10 else 10 <= named < n, (
        "otherwise some of the classes are named, and the axis says which"
    )
    assert ("is named" in figure.axes[0].get_xlabel()) == (named < n)


def test_fifteen_methods_have_room_in_every_figure():
    main = summary(*METHODS)
    along = pd.concat(
        [
            main.assign(value=value)
            for value in ("none", "the profile's", "stronger crops and mixing", "and RandAugment")
        ]
    )
    for figure in (
        plots.plot_main_table(
            main, "A title that is too long to stand in a single line over a figure of this width"
        ),
        plots.plot_along(along, "augmentation", "title"),
        plots.plot_measures(measured(*METHODS), "title"),
        plots.plot_curves(curves(*((method, [0.1, 0.2]) for method in METHODS)), "title"),
    ):
        assert not faults(figure)


@pytest.mark.parametrize(
    "values",
    [
        ["PNDM, 50, the paper's", "DDIM, 25", "DPM-Solver++, 12", "UniPC, 6", "DPM-Solver++, 3"],
        ["1", "2", "4", "8", "16"],
        ["12", "25", "50", "100", "200", "400"],
        ["True", "False"],
        ["0.8"],
    ],
)
def test_the_values_along_an_axis_have_room(values):
    table = pd.concat([summary("real", "dset").assign(value=value) for value in values])
    assert not faults(plots.plot_along(table, "x"))


def test_the_released_protocol_is_named_in_full():
    table = summary("real", "dset").assign(
        title="DataDream (dataset) + real [RELEASED PROTOCOL, for comparison only: the epoch is "
        "chosen on the test images]"
    )
    figure = plots.plot_main_table(table)
    assert not faults(figure) and "test images]" in " ".join(
        figure.axes[0].get_yticklabels()[0].get_text().split()
    )


def test_curves_are_averaged_over_seeds():
    axis = plots.plot_curves(
        curves(("real", [0.4, 0.6]), ("real", [0.6, 0.8]), ("clip", []), ("dset", [0.1, 0.2]))
    ).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"Real only", "DataDream (dataset)"}
    assert lines["Real only"].get_xdata().tolist() == [10, 20]
    assert lines["Real only"].get_ydata().tolist() == pytest.approx([50.0, 70.0])
    assert matplotlib.colors.same_color(
        lines["DataDream (dataset)"].get_color(), METHODS["dset"].colour
    )
    assert (
        lines["Real only"].get_linestyle() == "-"
        and lines["DataDream (dataset)"].get_linestyle() == "--"
    )


def test_curves_of_an_untrained_method_alone_are_an_empty_figure():
    """`methods = ["clip"]` in the notebook: nothing was trained, so there is no curve, no legend
    and no warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not plots.plot_curves(curves(("clip", []))).axes[0].lines


def test_lines_have_their_labels_and_scale():
    figure = plots.plot_lines({"a": ([1, 2], [3, 4])}, "step", "loss", "title")
    assert not figure.legends and figure.axes[0].get_yscale() == "linear"
    figure = FIGURES["lines"]()
    axis = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "x",
        "y",
    ] and axis.get_yscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss")


def test_ratios_have_a_bar_each_and_an_interval_where_there_is_one():
    rows = [
        {"row": "adapt", "ratio": [2.0, 1.5, 2.7]},
        {"row": "train", "ratio": [3.0, None, None]},
    ]
    figure = plots.plot_ratios(
        [
            {"device": "a CPU", "profile": "mini", "rows": rows},
            {"device": "a GPU", "profile": "paper", "rows": rows[:1]},
        ]
    )
    assert [axis.get_title("left") for axis in figure.axes] == ["a CPU, mini", "a GPU, paper"]
    bars = [
        [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches]
        for axis in figure.axes
    ]
    assert bars == [[(1, 2), (1, 3)], [(1, 2)]] and figure.axes[0].get_xscale() == "log", (
        "from the baseline on"
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "adapt",
        "train",
    ] and figure.axes[0].yaxis_inverted()
    assert not faults(figure)


def test_a_measure_is_drawn_per_generator_at_its_number():
    shown = [
        axis for axis in plots.plot_measures(measured("real", "dset")).axes if axis.get_visible()
    ]
    assert [" ".join(axis.get_title("left").split()) for axis in shown] == [
        plots.TITLES[name] for name in ("kid", "coverage", "closer")
    ]
    assert [" ".join(label.get_text().split()) for label in shown[0].get_yticklabels()] == [
        "Real only",
        "DataDream (dataset)",
    ]
    dots = {line.get_ydata()[0]: line for line in shown[0].lines if line.get_marker() == "o"}
    assert {y: line.get_xdata()[0] for y, line in dots.items()} == {0: 0.5, 1: 1.5}
    assert {y for y, line in dots.items() if line.get_markerfacecolor() == style.GROUND} == {1}, (
        "a filled dot has real images"
    )
    assert sorted(
        tuple(line.get_xdata()) for line in shown[0].lines if line.get_marker() != "o"
    ) == [(0.25, 0.75), (1.25, 1.75)]


def test_a_gain_is_drawn_against_its_measure_and_few_classes_are_named():
    axis = plots.plot_gains(gained("dset", 3)).axes[0]
    (dots,) = [line for line in axis.lines if line.get_marker() == "o"]
    assert list(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [
        (0.5, 0.0),
        (0.51, 1.0),
        (0.52, 2.0),
    ]
    assert [text.get_text() for text in axis.texts] == ["class 0", "class 1", "class 2"]
    assert (
        axis.get_xlabel() == plots.TITLES["centroid"]
        and axis.get_ylabel() == "gain over Real only, points"
    )
    assert not plots.plot_gains(gained("dset", plots.NAMED + 1)).axes[0].texts


def photos_of(tmp_path, classes, each, size=(4000, 3000)):
    """Return files of a camera's pictures, `each` per class."""
    files = [tmp_path / f"{i}.jpg" for i in range(classes * each)]
    for i, file in enumerate(files):
        Image.new("RGB", size, (40 * (i % 6), 80, 120)).save(file)
    return Images(tuple(map(str, files)), tuple(i // each for i in range(len(files))))


PEAK = """
import resource, sys
from datadream.data.images import Images, Previews
from datadream.results import plots
from datadream import photos
files = sys.argv[1:]
images = Images(tuple(files), tuple(i // 3 for i in range(len(files))))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for rows in (Previews(images, 4), photos.columns({"x": images}, 4)["x"]):
    plots.plot_samples({"x": rows}, list("abcd")).savefig(sys.argv[1] + ".png")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


def test_a_grid_of_a_camera_s_pictures_takes_the_memory_of_a_few(tmp_path):
    """Twelve of 12 megapixels: 430 MB decoded, and gigabytes on a canvas of their size."""
    files = photos_of(tmp_path, 4, 3).sources
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300


def test_pictures_given_whole_are_drawn_as_their_previews_are():
    whole = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
    small = shrunk(whole, 256)
    assert small.size == (256, 192) and shrunk(small, 256) is small
    assert shrunk(Image.new("RGB", (5000, 10)), 256).size == (256, 1)
    assert shrunk(whole.convert("P"), 256).mode == "RGB"
    drawn = [
        np.asarray(plots.plot_samples({"x": [[one]]}, ["a"]).axes[0].images[0].get_array(), int)
        for one in (whole, small)
    ]
    assert drawn[0].shape == drawn[1].shape and np.abs(drawn[0] - drawn[1]).mean() < 2


def test_previews_open_what_is_shown_and_nothing_else(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        Images, "open", lambda self, i, real=Images.open: (opened.append(i), real(self, i))[1]
    )
    previews = Previews(photos_of(tmp_path, 3, 4, (300, 200)), 3, 2)
    assert len(previews) == 3 and not opened
    assert [image.size for image in previews[1]] == [(256, 171)] * 2 and opened == [4, 5]
    assert [len(column) for column in previews[1:]] == [2, 2]
    with pytest.raises(IndexError):
        previews[3]


# Every figure as a notebook shows it and as a file, a line each.
DIGESTS = """
import base64, hashlib, io, sys, types
sys.path[:0] = sys.argv[2:]
# In place of the one that imports torch, which no figure needs.
sys.modules["conftest"] = types.SimpleNamespace(ROOT=sys.argv[1])
import test_plots
from datadream.results import style
shown = []
style.display = lambda data, **_: shown.append(base64.b64decode(data["image/png"]))
for name, plot in test_plots.FIGURES.items():
    for theme in style.THEMES:
        style.set_theme(theme)
        figure = plot()
        style.set_theme("light")
        figure._ipython_display_()
        figure.savefig(file := io.BytesIO())
        for picture in (shown.pop(), file.getvalue()):
            print(name, theme, hashlib.sha256(picture).hexdigest())
"""
NASTY = """
backend: {backend}
text.usetex: True
text.latex.preamble: \\usepackage{{nowhere}}
font.family: serif
font.size: 30
figure.facecolor: black
figure.autolayout: True
savefig.bbox: tight
savefig.dpi: 30
savefig.transparent: True
savefig.format: pdf
xtick.labelsize: 40
xtick.direction: in
ytick.color: red
axes.grid: False
axes.xmargin: 0.5
axes.unicode_minus: False
axes.formatter.limits: -1, 1
lines.linewidth: 9
path.sketch: 5, 100, 2
image.cmap: jet
image.origin: lower
legend.loc: upper left
"""


def digests(**variables):
    folders = str(ROOT), str(ROOT / "tests/results")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIGESTS, *folders],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | variables,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_user_s_matplotlibrc_changes_no_figure(tmp_path):
    """LaTeX, fonts, a backend without a screen, tick labels that are made when it is drawn."""
    plain = digests()
    assert len(plain) == 4 * len(FIGURES)
    for backend in ("TkAgg", "module://nowhere"):
        (tmp_path / "matplotlibrc").write_text(NASTY.format(backend=backend))
        assert digests(MATPLOTLIBRC=str(tmp_path)) == plain
    assert digests(MPLBACKEND="QtAgg") == plain


def test_a_style_that_a_user_sets_in_the_notebook_changes_no_figure():
    plain, nasty = [], {"text.usetex": True, "savefig.bbox": "tight", "ytick.labelsize": 40}
    for own in ({}, nasty, {"font.family": ["cmr10"], "xtick.color": "red"}):
        with matplotlib.rc_context(own):
            for name in ("main table", "curves"):
                FIGURES[name]().savefig(file := io.BytesIO())
                plain.append(file.getvalue())
    assert plain[:2] * 3 == plain


NAMES = ["\u732b", "\u0642\u0637", "\U0001f431", "red fox", "\U0001fabf goose"]  # cat, cat, cat
FALLBACK = "the installed font"


@pytest.fixture
def installed(monkeypatch):
    """Have one more font installed, which has the Chinese cat; return nothing."""
    real = fonts._characters
    others = [(FALLBACK, "a file"), *fonts._others()]
    fonts._family_of.cache_clear()
    monkeypatch.setattr(fonts, "_others", lambda: others)
    monkeypatch.setattr(
        fonts, "_characters", lambda file: {0x732B} if file == "a file" else real(file)
    )
    yield
    fonts._family_of.cache_clear()


def grids(names):
    """Return the figures that name classes."""
    tiny = [[Image.new("RGB", (8, 8))]] * len(names)
    table = gained("dset+real", len(names)).assign(**{"class": names})
    return (
        plots.plot_samples({"x": tiny}, names),
        plots.plot_confusion(np.eye(len(names)), names),
        plots.plot_gains(table),
    )


def test_a_name_that_no_font_has_gets_a_sign_and_a_note(capsys):
    """No box, no warning; the page's own font shows the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in grids(NAMES):
            shown = {text.get_text() for text in texts(figure)}
            assert {"#1", "red fox"} <= {" ".join(text.split()) for text in shown}
            assert not any(fonts.missing(text) for text in shown)
            assert set(figure.replaced) == {"\u732b", "\U0001fabf"} and not faults(figure)
            figure._ipython_display_()
    assert not FIGURES["confusion"]().replaced, "each figure has its own signs"
    assert "#1 is \u732b, #2 is \U0001fabf" in fonts.note(figure.replaced)
    assert "&lt;b&gt;" in fonts.note({"<b>": "#1"})


def test_a_font_that_is_installed_draws_what_the_own_one_lacks(installed):
    assert fonts.families("\u732b") == [fonts.OWN, FALLBACK]
    assert fonts.families("red fox \u0642\u0637\ufe0f") == [fonts.OWN]
    replaced = {}
    assert fonts.written("\u732b cat", replaced) == "\u732b cat" and not replaced
    with style._styled():
        assert style.drawable("\u732b") == "\u732b"
        assert matplotlib.rcParams["font.family"] == [fonts.OWN, FALLBACK]
