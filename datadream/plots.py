"""Figures: the colours of config.METHODS, the filled marker has real images, an opaque background; plot_* draws what it is given and returns a Figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .config import METHODS

STYLE = {"figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "text.color": "black",
         "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 100, "savefig.dpi": 200}
WIDTH = 7.0  # inches, of every figure
LABEL = 30  # characters of a class name: a longer one would leave no room for the figure


def _figure(height, **options) -> tuple[Figure, np.ndarray]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)  # the notebook shows the returned figure once, not twice
    return figure, axes


def _labels(classes):
    return [name if len(name) <= LABEL else f"{name[:LABEL - 1]}\u2026" for name in classes]


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


def plot_samples(rows, classes):
    """Draw sample grids: `rows` maps a title to one list of PIL images per class; a panel a title, a column a class."""
    depth = max(len(column) for columns in rows.values() for column in columns)
    figure, axes = _figure(len(rows) * (0.62 * depth + 0.5), nrows=len(rows))
    for axis, (title, columns) in zip(axes[:, 0], rows.items()):
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
    for i, j in zip(*np.nonzero(shares >= 0.5)):
        axis.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 55 else "black")
    axis.set_xticks(range(len(classes)), _labels(classes), rotation=45, ha="right", parse_math=False)
    axis.set_yticks(range(len(classes)), _labels(classes), parse_math=False)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def plot_curves(table, title=""):
    """Draw validation accuracy against optimiser steps, one line per method, the mean over seeds."""
    figure, axes = _figure(3.8)
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
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def plot_lines(series, xlabel, ylabel, title="", log=False):
    """Draw named lines: `series` maps a label to (x values, y values); `log` makes the y axis logarithmic."""
    figure, axes = _figure(3.2)
    axis = axes[0, 0]
    for label, (x, y) in series.items():
        axis.plot(x, y, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
    axis.grid(alpha=0.3)
    if len(series) > 1:
        axis.legend(fontsize=8, frameon=False)
    return figure


def plot_ratios(measured):
    """Draw how many times faster each stage is than the baseline: a panel per device, a bar and its interval per row of the benchmark."""
    figure, axes = _figure(sum(0.45 * len(results["rows"]) + 0.9 for results in measured), nrows=len(measured))
    for axis, results in zip(axes[:, 0], measured):
        rows = results["rows"][::-1]
        ratios = [row["ratio"][0] for row in rows]
        spread = [[mean - low, high - mean] if low is not None else [0, 0] for mean, low, high in (row["ratio"] for row in rows)]
        axis.barh(range(len(rows)), ratios, color="#0072B2", xerr=np.transpose(spread), error_kw={"lw": 1.5, "capsize": 3})
        axis.axvline(1, color="black", ls="--", lw=1)
        axis.set_yticks(range(len(rows)), [row["row"] for row in rows])
        axis.set(xlabel="times faster", title=f"{results['device']}, {results['profile']}")
        axis.title.set_fontsize(10)
    return figure
