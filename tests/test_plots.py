"""Figures: each plot draws what it is given, on an opaque ground, in the one palette."""

import itertools
import warnings

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from datadream import plots
from datadream.config import METHODS

# Linear RGB as it is seen: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {"by most": np.eye(3),
        "in deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "in protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "in tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])  # of linear sRGB
TOLD_APART = 15  # CIE76: a difference of 2.3 is just seen side by side; dots and lines lie apart, and are small
ON_WHITE = 2  # contrast, at least


def summary(*methods):
    """Return a summary of these methods as records.summary gives it."""
    return pd.DataFrame([{"method": m, "title": METHODS[m].title, "seeds": 2, "top1": 50.0 + i, "low": 48.0 + i, "high": 52.0 + i,
                          "validation": 50.0} for i, m in enumerate(methods)])


def curves(*rows):
    """Return a table with the columns that plot_curves reads: (method, curve of accuracies)."""
    points = [(m, [{"step": 10 * (i + 1), "val": v, "loss": 1.0} for i, v in enumerate(values)]) for m, values in rows]
    return pd.DataFrame(points, columns=["method", "curve"])


def measured(*methods):
    """Return a table of two measures as analysis.over_seeds gives it; the second has one seed, and so no interval."""
    return pd.DataFrame([{"measure": name, "method": m, "title": METHODS[m].title, "seeds": 3, "mean": i + 0.5, "low": i + low, "high": i + 1 - low}
                         for name, low in (("kid", 0.25), ("coverage", np.nan), ("closer", 0.25)) for i, m in enumerate(methods)])


def gained(method, n):
    """Return a table of n classes as analysis.gains gives it."""
    return pd.DataFrame([{"method": method, "baseline": "real", "class": f"class {i}", "label": i, "seeds": 2, "gain": float(i), "low": i - 1.0,
                          "high": i + 1.0, "centroid": 0.5 + i / 100} for i in range(n)])


FIGURES = {
    "measures": lambda: plots.plot_measures(measured("real", "base", "dset"), "title"),
    "gains": lambda: plots.plot_gains(gained("dset+real", 3)),
    "main table": lambda: plots.plot_main_table(summary(*METHODS), "title"),
    "samples": lambda: plots.plot_samples({"Real": [[Image.new("L", (8, 8), 9)] * 2] * 3, "Base": [[Image.new("RGB", (16, 16))] * 2] * 3},
                                          ["a", "b", "c"]),
    "confusion": lambda: plots.plot_confusion([[3, 1], [0, 4]], ["a", "b"]),
    "curves": lambda: plots.plot_curves(curves(("real", [0.4, 0.5]), ("dset", [0.3, 0.6]))),
    "lines": lambda: plots.plot_lines({"x": ([1, 2], [3, 4]), "y": ([1, 2], [4, 5])}, "step", "loss", log=True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_returns_an_opaque_figure_that_can_be_saved(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        figure.savefig(tmp_path / "figure.png")
    assert isinstance(figure, Figure)
    corner = np.asarray(Image.open(tmp_path / "figure.png").convert("RGBA"))[0, 0]
    assert corner.tolist() == [255, 255, 255, 255], "white, so that it can be read in dark mode"


def test_a_figure_is_shown_once():
    """pyplot keeps no figure open: a notebook would draw it twice, and a long study would fill the memory."""
    import matplotlib.pyplot as plt

    for name in FIGURES:
        FIGURES[name]()
    assert plt.get_fignums() == []


def test_every_method_has_a_colour_and_a_generator_keeps_its_own():
    for name, row in METHODS.items():
        if row.generator and row.real:
            assert row.colour == METHODS[name.removesuffix("+real")].colour
    alone = [row.colour for row in METHODS.values() if not (row.generator and row.real)]
    assert len(set(alone)) == len(alone)


def linear(colour):
    """Return the linear RGB (3,) of a colour."""
    values = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Return CIELAB (3,) of linear RGB under D65."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / (XYZ @ np.ones(3))
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_colour_blind_readers_tell_the_methods_apart(eyes):
    colours = dict.fromkeys(row.colour for row in METHODS.values())
    seen = {colour: lab(np.array(SEEN[eyes]) @ linear(colour)) for colour in colours}
    near = {(a, b): d for a, b in itertools.combinations(seen, 2) if (d := np.linalg.norm(seen[a] - seen[b])) < TOLD_APART}
    assert not near


def test_every_colour_is_seen_on_white():
    contrast = {row.colour: 1.05 / (XYZ[1] @ linear(row.colour) + 0.05) for row in METHODS.values()}
    assert not {colour: value for colour, value in contrast.items() if value < ON_WHITE}


def test_lines_without_a_method_have_the_palettes_colours():
    drawn = plots.plot_lines({str(i): ([1, 2], [i, i]) for i in range(4)}, "x", "y").axes[0].lines
    assert {line.get_color() for line in drawn} <= {row.colour for row in METHODS.values()}
    assert len({line.get_color() for line in drawn}) == 4


def test_the_main_table_draws_each_method_at_its_number():
    axis = plots.plot_main_table(summary("real", "dset", "dset+real")).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["DataDream (dataset) + real", "DataDream (dataset)", "Real only"]
    dots = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() == "o"}
    assert {y: line.get_xdata()[0] for y, line in dots.items()} == {2: 50.0, 1: 51.0, 0: 52.0}
    hollow = {y for y, line in dots.items() if line.get_markerfacecolor() == "white"}
    assert hollow == {1}, "a filled dot has real images"
    spans = [tuple(line.get_xdata()) for line in axis.lines if line.get_marker() != "o"]
    assert sorted(spans) == [(48.0, 52.0), (49.0, 53.0), (50.0, 54.0)]


def test_samples_are_drawn_a_column_per_class():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    figure = plots.plot_samples({"Real": [[red, red], [blue, blue]], "Few": [[red], [blue, blue]]}, ["r", "b"])
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    assert canvas.shape[:2] == (18, 18)
    assert canvas[4, 4].tolist() == [255, 0, 0] and canvas[4, 13].tolist() == [0, 0, 255] and canvas[13, 4].tolist() == [255, 0, 0]
    few = np.asarray(figure.axes[1].images[0].get_array())
    assert few[13, 4].tolist() == [255, 255, 255], "a class with fewer images leaves white"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["r", "b"]


def test_the_confusion_matrix_is_shown_as_shares_of_the_true_class():
    axis = plots.plot_confusion([[6, 2], [0, 0]], ["a", "b"]).axes[0]
    assert np.asarray(axis.images[0].get_array()).tolist() == [[75.0, 25.0], [0.0, 0.0]]  # an empty class is no division by zero
    assert sorted(text.get_text() for text in axis.texts) == ["25", "75"]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")


def test_curves_are_averaged_over_seeds():
    axis = plots.plot_curves(curves(("real", [0.4, 0.6]), ("real", [0.6, 0.8]), ("clip", []), ("dset", [0.1, 0.2]))).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"Real only", "DataDream (dataset)"}
    assert lines["Real only"].get_xdata().tolist() == [10, 20]
    assert lines["Real only"].get_ydata().tolist() == pytest.approx([50.0, 70.0])
    assert matplotlib.colors.same_color(lines["DataDream (dataset)"].get_color(), METHODS["dset"].colour)
    assert lines["Real only"].get_linestyle() == "-" and lines["DataDream (dataset)"].get_linestyle() == "--"


def test_curves_of_an_untrained_method_alone_are_an_empty_figure():
    """`methods = ["clip"]` in the notebook: nothing was trained, so there is no curve, no legend and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not plots.plot_curves(curves(("clip", []))).axes[0].lines


def test_lines_have_their_labels_and_scale():
    figure = plots.plot_lines({"a": ([1, 2], [3, 4])}, "step", "loss", "title")
    assert not figure.legends and figure.axes[0].get_yscale() == "linear"
    figure = FIGURES["lines"]()
    axis = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"] and axis.get_yscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss")


def test_ratios_have_a_bar_each_and_an_interval_where_there_is_one():
    rows = [{"row": "adapt", "ratio": [2.0, 1.5, 2.7]}, {"row": "train", "ratio": [3.0, None, None]}]
    figure = plots.plot_ratios([{"device": "a CPU", "profile": "mini", "rows": rows}, {"device": "a GPU", "profile": "paper", "rows": rows[:1]}])
    assert [axis.get_title() for axis in figure.axes] == ["a CPU, mini", "a GPU, paper"]
    bars = [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches] for axis in figure.axes]
    assert bars == [[(1, 3), (1, 2)], [(1, 2)]] and figure.axes[0].get_xscale() == "log", "from the baseline on"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["train", "adapt"]


def test_a_measure_is_drawn_per_generator_at_its_number():
    shown = [axis for axis in plots.plot_measures(measured("real", "dset")).axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [plots.TITLES[name] for name in ("kid", "coverage", "closer")]
    assert [label.get_text() for label in shown[0].get_yticklabels()] == ["DataDream (dataset)", "Real only"]
    dots = {line.get_ydata()[0]: line for line in shown[0].lines if line.get_marker() == "o"}
    assert {y: line.get_xdata()[0] for y, line in dots.items()} == {1: 0.5, 0: 1.5}
    assert {y for y, line in dots.items() if line.get_markerfacecolor() == "white"} == {0}, "a filled dot has real images"
    assert sorted(tuple(line.get_xdata()) for line in shown[0].lines if line.get_marker() != "o") == [(0.25, 0.75), (1.25, 1.75)]


def test_a_gain_is_drawn_against_its_measure_and_few_classes_are_named():
    axis = plots.plot_gains(gained("dset", 3)).axes[0]
    (dots,) = [line for line in axis.lines if line.get_marker() == "o"]
    assert list(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(0.5, 0.0), (0.51, 1.0), (0.52, 2.0)]
    assert [text.get_text() for text in axis.texts] == ["class 0", "class 1", "class 2"]
    assert axis.get_xlabel() == plots.TITLES["centroid"] and axis.get_ylabel() == "gain over Real only, points"
    assert not plots.plot_gains(gained("dset", plots.NAMED + 1)).axes[0].texts
