"""Figures: the colours of config.METHODS, the filled marker has real images, an opaque background; plot_* draws what it is given and returns a Figure."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.pylabtools import retina_figure
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import ScalarFormatter

from .config import METHODS
from .distances import TITLES

STYLE: dict[Any, Any] = {"figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "text.color": "black",
         "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 100, "savefig.dpi": 200,
         "axes.prop_cycle": cycler(color=list(dict.fromkeys(row.colour for row in METHODS.values() if row.generator)))}
WIDTH = 7.0  # inches, of every figure
NAMED = 30  # classes at most whose names stand beside their dots
LABEL = 30  # characters of a class name: a longer one would leave no room for the figure


class _Sharp(Figure):
    """A figure that a notebook shows in its size and in twice the pixels, whatever the kernel's settings: pages are read on dense screens."""

    def _ipython_display_(self):  # before any other form, which the inline backend has registered its own for
        drawn = retina_figure(self, base64=True)
        if drawn is None:  # nothing to see: no axes
            return
        picture, size = drawn
        display({"image/png": picture, "text/plain": repr(self)}, metadata={"image/png": size}, raw=True)


def _figure(height, **options) -> tuple[Figure, np.ndarray]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained", squeeze=False, FigureClass=_Sharp, **options)
    plt.close(figure)  # the notebook shows the returned figure once, not twice
    return figure, axes


def _labels(classes):
    return [name if len(name) <= LABEL else f"{name[:LABEL - 1]}\u2026" for name in classes]


def _legend_below(figure):
    """Put the legend under the axes: up to fifteen methods would cover the lines."""
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def plot_main_table(summary, title=""):
    """Draw one dot and interval per method; `summary` is what records.summary returns."""
    figure, axes = _figure(0.34 * len(summary) + 1.0)
    axis, rows = axes[0, 0], summary.iloc[::-1].reset_index(drop=True)
    for i, row in rows.iterrows():
        colour = METHODS[row["method"]].colour
        axis.plot([row["low"], row["high"]], [i, i], color=colour, lw=2)
        axis.plot(row["top1"], i, "o", ms=8, color=colour, mfc=colour if METHODS[row["method"]].real else "white", mew=2)
        axis.annotate(f"{row['top1']:.1f}", (row["top1"], i), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(rows)), rows["title"])
    axis.set_ylim(-0.6, len(rows) - 0.2)
    axis.set(xlabel="top-1 accuracy on test images, %", title=title)
    axis.grid(axis="x", alpha=0.3)
    return figure


def plot_along(summaries, axis_title, title=""):
    """Draw top-1 along an axis, a line and its interval per method; `summaries` is what curves.along returns.

    Numbers that span a factor of four or more stand on a logarithmic scale; other labels stand side by side.
    """
    figure, axes = _figure(4.2)
    axis, labels = axes[0, 0], list(dict.fromkeys(summaries["value"]))
    x, log = _positions(labels)
    for i, (method, rows) in enumerate(summaries.groupby("method", sort=False)):
        where = np.array([x[labels.index(value)] for value in rows["value"]])
        row = METHODS[method]
        shift = 1 + 0.012 * i if log else 0.012 * i * (max(x) - min(x) or 1)  # so that intervals do not hide each other
        axis.errorbar(where * shift if log else where + shift, rows["top1"], [rows["top1"] - rows["low"], rows["high"] - rows["top1"]], color=row.colour,
                      ls="-" if row.real else "--", marker="o", mfc=row.colour if row.real else "white", capsize=2, lw=1.5, label=row.title)
    axis.set(xlabel=axis_title, ylabel="top-1 on test images, %", title=title, xscale="log" if log else "linear")
    axis.set_xticks(x, labels, rotation=0 if max(map(len, labels)) < 9 else 20, ha="center" if max(map(len, labels)) < 9 else "right")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    _legend_below(figure)
    return figure


def _positions(labels):
    """Return (x of each label, whether on a logarithmic scale)."""
    try:
        numbers = np.array([float(label) for label in labels])
    except ValueError:
        return np.arange(len(labels)), False
    log = numbers.min() > 0 and numbers.max() >= 4 * numbers.min()
    return numbers, log


def plot_samples(rows, classes):
    """Draw sample grids: `rows` maps a title to one list of PIL images per class; a panel a title, a column a class."""
    depth = max(len(column) for columns in rows.values() for column in columns)
    figure, axes = _figure(len(rows) * (0.62 * depth + 0.5), nrows=len(rows))
    for axis, (title, columns) in zip(axes[:, 0], rows.items(), strict=True):
        size = columns[0][0].size
        canvas = np.full((depth * (size[1] + 1), len(columns) * (size[0] + 1), 3), 255, np.uint8)
        for x, column in enumerate(columns):
            for y, image in enumerate(column):
                top, left = y * (size[1] + 1), x * (size[0] + 1)
                canvas[top:top + size[1], left:left + size[0]] = np.asarray(image.convert("RGB").resize(size))
        axis.imshow(canvas, interpolation="nearest", aspect="auto")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_yticks([])
        axis.set_xticks([(x + 0.5) * (size[0] + 1) for x in range(len(classes))], _labels(classes), fontsize=8, parse_math=False)  # a name may hold a $
        for side in axis.spines.values():
            side.set_visible(False)
    return figure


def plot_confusion(matrix, classes, title=""):
    """Draw a confusion matrix (classes, classes) as shares of each true class, in percent."""
    matrix = np.asarray(matrix)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes = _figure(5.6)
    axis = axes[0, 0]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in zip(*np.nonzero(shares >= 0.5), strict=True):
        axis.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 55 else "black")
    axis.set_xticks(range(len(classes)), _labels(classes), rotation=45, ha="right", parse_math=False)
    axis.set_yticks(range(len(classes)), _labels(classes), parse_math=False)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def plot_curves(table, title=""):
    """Draw validation accuracy against optimiser steps, one line per method, the mean over seeds."""
    figure, axes = _figure(4.2)
    axis = axes[0, 0]
    for method, group in table.groupby("method", sort=False):
        curves = [curve for curve in group["curve"] if curve]
        if curves:
            steps = [point["step"] for point in curves[0]]
            mean = np.mean([[100 * point["val"] for point in curve] for curve in curves], axis=0)
            axis.plot(steps, mean, color=METHODS[method].colour, ls="-" if METHODS[method].real else "--", marker=".",
                      label=METHODS[method].title)
    axis.set(xlabel="optimiser steps", ylabel="validation accuracy, %", title=title)
    axis.grid(alpha=0.3)
    if axis.lines:
        _legend_below(figure)
    return figure


def plot_lines(series, xlabel, ylabel, title="", log=False):
    """Draw named lines: `series` maps a label to (x values, y values); `log` makes the y axis logarithmic."""
    figure, axes = _figure(3.6)
    axis = axes[0, 0]
    for label, (x, y) in series.items():
        axis.plot(x, y, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
    axis.grid(alpha=0.3)
    if len(series) > 1:
        _legend_below(figure)
    return figure


def plot_measures(summary, title=""):
    """Draw one panel per measure, a dot and its interval over seeds per generator; `summary` is what analysis.over_seeds returns."""
    names, titles = list(dict.fromkeys(summary["measure"])), dict(zip(summary["method"], summary["title"], strict=True))
    methods = [*titles][::-1]
    rows = -(-len(names) // 2)
    figure, axes = _figure(rows * (0.34 * len(methods) + 0.8) + 0.3, nrows=rows, ncols=2, sharey=True)
    for axis, name in zip(axes.flat[:len(names)], names, strict=True):
        for row in summary[summary["measure"] == name].itertuples():
            colour, y = METHODS[row.method].colour, methods.index(row.method)
            axis.plot([row.low, row.high], [y, y], color=colour, lw=2)
            axis.plot(row.mean, y, "o", ms=8, color=colour, mfc=colour if METHODS[row.method].real else "white", mew=2)
            axis.annotate(f"{row.mean:.3g}", (row.mean, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axis.set_yticks(range(len(methods)), [titles[method] for method in methods])
        axis.set_ylim(-0.5, len(methods) - 0.3)
        axis.set_title(TITLES[name], fontsize=9)
        axis.margins(x=0.15)
        axis.locator_params(axis="x", nbins=4)  # more numbers than that run into each other
        axis.grid(axis="x", alpha=0.3)
    for axis in axes.flat[len(names):]:
        axis.set_visible(False)
    figure.suptitle(title)
    return figure


def plot_gains(joined, measure="centroid", title=""):
    """Draw each class's accuracy gain, with its interval over seeds, against a measure of its images; `joined` is of analysis.gains."""
    figure, axes = _figure(4.2)
    axis, first = axes[0, 0], joined.iloc[0]
    method = METHODS[first["method"]]
    axis.axhline(0, color="black", ls="--", lw=1)
    axis.vlines(joined[measure], joined["low"], joined["high"], color=method.colour, alpha=0.5, lw=2)
    axis.plot(joined[measure], joined["gain"], "o", ms=7, color=method.colour, mfc=method.colour if method.real else "white", mew=2)
    if len(joined) <= NAMED:
        for row in joined.to_dict("records"):
            axis.annotate(row["class"], (row[measure], row["gain"]), (7, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel=TITLES[measure], ylabel=f"gain over {METHODS[first['baseline']].title}, points", title=title or method.title)
    axis.margins(x=0.12)  # room for the last name
    axis.grid(alpha=0.3)
    return figure


def plot_ratios(measured):
    """Draw how many times faster each stage is than the baseline: a panel per device, a bar and its interval per row of the benchmark."""
    figure, axes = _figure(sum(0.45 * len(results["rows"]) + 0.9 for results in measured), nrows=len(measured))
    for axis, results in zip(axes[:, 0], measured, strict=True):
        rows = results["rows"][::-1]
        ratios = [row["ratio"][0] for row in rows]
        spread = [[mean - low, high - mean] if low is not None else [0, 0] for mean, low, high in (row["ratio"] for row in rows)]
        axis.barh(range(len(rows)), np.subtract(ratios, 1), left=1, color="#0072B2", xerr=np.transpose(spread), error_kw={"lw": 1.5, "capsize": 3})
        axis.axvline(1, color="black", ls="--", lw=1)
        axis.set_xscale("log")  # some gains are of percents, others of hundreds
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_yticks(range(len(rows)), [row["row"] for row in rows])
        axis.set(xlabel="times faster", title=f"{results['device']}, {results['profile']}")
        axis.title.set_fontsize(10)
    return figure
