"""Figures: each plot_* function draws its arguments in the project's style and returns a Figure.

Filled dots and solid lines mark methods trained on real images. Intervals come from the tables;
seaborn computes none.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox
from PIL import Image, ImageOps

from ..data.images import shrunk
from ..methods.registry import METHODS
from . import style
from .comparison import cliques
from .distances import TITLES
from .style import BASE, LINE, SMALL, WIDTH, fitted, text_width, themed

NAMED = 30  # most classes whose names are written beside their dots
COLUMNS = 12  # most classes in a grid of samples; more would be too small to see on a phone
CELL = 1.1  # largest side of a sample, in inches
GAP = 0.12  # inches between panels
NAME = 1.25  # most inches for a class name along an axis
CONFUSED = ("#ffffff", "#7fb8db")  # of 0 and 100 %, light enough for dark numbers


def _dots(axis: Axes, methods: Sequence[str], titles: Sequence[str], values: pd.DataFrame) -> None:
    """Draw a dot, its interval and its number per row of `values`, the first on top.

    `values` has the columns value, low, high and text.
    """
    beside = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": SMALL}
    for y, (method, row) in enumerate(zip(methods, values.to_dict("records"), strict=True)):
        axis.plot([row["low"], row["high"]], [y, y], color=style.colour(method), lw=2)
        axis.plot(row["value"], y, **style.marks(method, linestyle="none"))
        axis.text(1.02, y, row["text"], **beside)
    axis.set_yticks(range(len(titles)), titles, parse_math=False)
    axis.set_ylim(len(titles) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _chart(
    methods: Sequence[str], titles: Sequence[str], values: pd.DataFrame, label: str, rest: float = 0
) -> tuple[Figure, Axes]:
    """Return a figure of `_dots`, with `rest` inches more than rows and axis take, and its axis."""
    shown = [fitted(text, 0.42 * WIDTH, lines=5) for text in titles]
    figure, axes = style.subplots((style.height_of(shown) + 0.12) * len(shown) + 0.9 + rest)
    _dots(axes[0, 0], methods, shown, values)
    axes[0, 0].set_xlabel(label)
    return figure, axes[0, 0]


@themed
def plot_main_table(summary: pd.DataFrame, title: str = "") -> Figure:
    """Draw one dot and interval per method; `summary` is what records.summary returns."""
    values = summary.assign(value=summary["top1"], text=[f"{top1:.1f}" for top1 in summary["top1"]])
    label = "top-1 accuracy on test images, %"
    figure, _ = _chart(list(summary["method"]), list(summary["title"]), values, label)
    style.set_title(figure, title)
    return figure


@themed
def plot_measures(summary: pd.DataFrame, title: str = "") -> Figure:
    """Draw a panel per measure, a dot and its interval over seeds per generator.

    `summary` is what analysis.over_seeds returns.
    """
    names = list(dict.fromkeys(summary["measure"]))
    methods = dict(zip(summary["method"], summary["title"], strict=True))
    titles = [fitted(text, 0.28 * WIDTH, lines=3) for text in methods.values()]
    rows = -(-len(names) // 2)
    height = rows * ((style.height_of(titles) + 0.1) * len(titles) + 1.0) + 0.3
    figure, axes = style.subplots(height, nrows=rows, ncols=2, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        own = summary[summary["measure"] == name].set_index("method").reindex(list(methods))
        texts = [f"{mean:.3g}" if np.isfinite(mean) else "" for mean in own["mean"]]
        _dots(axis, list(methods), titles, own.assign(value=own["mean"], text=texts))
        axis.set_title(fitted(TITLES[name], 0.32 * WIDTH, lines=3), fontsize=SMALL)
        axis.margins(x=0.15)
        axis.xaxis.set_major_locator(MaxNLocator(2))  # more labels would overlap
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    style.set_title(figure, title)
    return figure


def _line(axis: Axes, x: Any, y: Any, estimator: Any = None, **look: Any) -> None:
    """Draw a line without seaborn's interval; an `estimator` aggregates points with the same x."""
    x, y = np.asarray(x), np.asarray(y)
    sns.lineplot(x=x, y=y, estimator=estimator, errorbar=None, ax=axis, legend=False, **look)


def _titled(method: str, **others: Any) -> dict[str, Any]:
    """Return a method's line keywords, with its title for the legend."""
    return style.marks(method, label=fitted(METHODS[method].title, 0.8 * WIDTH), **others)


@themed
def plot_along(summaries: pd.DataFrame, axis_title: str, title: str = "") -> Figure:
    """Draw top-1 along an axis, with the points and intervals of each method.

    `summaries` is what ablation_statistics.along returns. Numeric values are joined by lines, on a
    logarithmic scale if they span a factor of four or more; other labels stand side by side.
    """
    figure, axes = style.subplots(3.4)
    axis, labels = axes[0, 0], list(dict.fromkeys(summaries["value"]))
    x, log = _positions(labels)
    joined = {} if all(map(_is_number, labels)) else {"linestyle": "none"}
    methods = list(dict.fromkeys(summaries["method"]))
    apart = min(0.012, 0.15 / len(methods))  # or many methods reach the next value
    for i, method in enumerate(methods):
        rows = summaries[summaries["method"] == method]
        where = np.array([x[labels.index(value)] for value in rows["value"]])
        step = apart * i  # so that intervals do not hide each other
        where = where * (1 + step) if log else where + step * (max(x) - min(x) or 1)
        _line(axis, where, rows["top1"], **_titled(method, **joined))
        axis.vlines(where, rows["low"], rows["high"], color=style.colour(method), lw=1.5)
    axis.set(xlabel=axis_title, ylabel="top-1 on test images, %", xscale="log" if log else "linear")
    style.set_title(figure, title)
    _value_labels(axis, x, labels, log)
    style.legend_below(figure)
    return figure


def _positions(labels: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Return (x of each label, whether on a logarithmic scale)."""
    if not all(map(_is_number, labels)):
        return np.arange(len(labels)), False
    numbers = np.array([float(label) for label in labels])
    return numbers, bool(numbers.min() > 0 and numbers.max() >= 4 * numbers.min())


def _is_number(label: str) -> bool:
    try:
        return bool(np.isfinite(float(label)))
    except ValueError:
        return False


def _value_labels(axis: Axes, x: np.ndarray, labels: Sequence[str], log: bool) -> None:
    """Label an axis at `x`: horizontally if every label has room, else vertically."""
    labels = [style.drawable(label) for label in labels]
    places = np.sort(np.log(x) if log else x)
    span, room = np.ptp(places) or 1, 0.75 * WIDTH
    gap = room * min(np.diff(places), default=span) / span if len(x) > 1 else room
    lines = [fitted(label, 0.9 * gap, lines=3) for label in labels]
    level = all(text_width(word) <= 0.9 * gap for label in labels for word in label.split())
    level = level and not any("\u2026" in line for line in lines)
    upright = [fitted(label, NAME, lines=2 if gap > 2.2 * LINE else 1) for label in labels]
    axis.set_xticks(x, lines if level else upright, rotation=0 if level else 90, parse_math=False)
    axis.minorticks_off()


@themed
def plot_curves(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw validation accuracy against optimiser steps: a line per method, the mean over seeds."""
    figure, axes = style.subplots(3.4)
    axis = axes[0, 0]
    for method in dict.fromkeys(table["method"]):
        curves = table.loc[table["method"] == method, "curve"]
        points = pd.DataFrame([point for curve in curves for point in curve])
        if len(points):
            look = _titled(method, marker=".")
            _line(axis, points["step"], 100 * points["val"], estimator="mean", **look)
    axis.set(xlabel="optimiser steps", ylabel="validation accuracy, %")
    style.set_title(figure, title)
    if axis.lines:
        style.legend_below(figure)
    return figure


@themed
def plot_lines(
    series: Mapping[str, tuple[Any, Any]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
) -> Figure:
    """Draw named lines: `series` maps a label to (x values, y values).

    `log` makes the y axis logarithmic.
    """
    figure, axes = style.subplots(3.2)
    axis = axes[0, 0]
    for label, (x, y) in series.items():
        _line(axis, x, y, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    style.set_title(figure, title)
    if len(series) > 1:
        style.legend_below(figure)
    return figure


@themed
def plot_samples(
    rows: Mapping[str, Sequence[Sequence[Image.Image]]], classes: Sequence[str]
) -> Figure:
    """Draw sample grids, a panel per title and a column per class.

    `rows` maps a title to one list of PIL images per class. Of more than COLUMNS classes an even
    choice is shown, and the titles say so. Images keep their shape: they are fitted into square
    cells. The figure is transparent, with text that can be read on white and on black.
    """
    chosen = np.unique(
        np.linspace(0, len(classes) - 1, min(len(classes), COLUMNS)).round().astype(int)
    )
    note = "" if len(chosen) == len(classes) else f", {len(chosen)} of {len(classes)} classes"
    side = min(CELL, WIDTH / max(1, len(chosen)))
    names, rotation, room = _column_names([str(classes[i]) for i in chosen], side)
    titles = [fitted(title + note, WIDTH, BASE) for title in rows]
    panels = [[columns[i] for i in chosen] for columns in rows.values()]
    last = len(panels) - 1
    # Long names are written only once.
    feet = [room if not rotation or i == last else GAP for i in range(len(panels))]
    height = sum(
        side * _depth(own) + _head(title) for title, own in zip(titles, panels, strict=True)
    )
    figure, top = style.blank(height + sum(feet), facecolor="none"), 0.0
    for title, columns, foot in zip(titles, panels, feet, strict=True):
        axis = _panel(figure, top, side, title, columns, style.BOTH)
        look = {"color": style.BOTH, "fontsize": SMALL, "parse_math": False}  # a name may hold a $
        for x, name in enumerate(names if foot == room else ()):
            place = (x + 0.5, _depth(columns) + 0.06 / side)
            axis.text(*place, name, rotation=rotation, ha="center", va="top", **look)
        top += _head(title) + side * _depth(columns) + foot
    return figure


@themed
def plot_pictures(
    rows: Mapping[str, Sequence[tuple[Image.Image, str]]], columns: int = 5
) -> Figure:
    """Draw single images, a panel per title, each with its own caption below.

    `rows` maps a title to (PIL image, caption); a caption keeps its line breaks. A panel without
    an image says "none". As in `plot_samples`, images keep their shape, and the figure is
    transparent.
    """
    side, panels = min(CELL, WIDTH / columns), []
    for title, own in rows.items():
        lines = [own[i : i + columns] for i in range(0, len(own), columns)] or [()]
        heads = [fitted(title if own else f"{title}: none", WIDTH, BASE), *[""] * (len(lines) - 1)]
        panels += list(zip(heads, [_captioned(line, side) for line in lines], strict=True))
    heights = [
        _head(title) + (side + style.height_of(texts) + GAP if texts else 0.0)
        for title, (_, texts) in panels
    ]
    figure = style.blank(sum(heights) or GAP, facecolor="none")
    look = {"color": style.BOTH, "fontsize": SMALL, "parse_math": False}
    for i, (title, (pictures, texts)) in enumerate(panels):
        if not pictures:
            height = 1 - sum(heights[: i + 1]) / figure.get_figheight()
            figure.text(0, height, title, va="bottom", **{**look, "fontsize": BASE})
            continue
        axis = _panel(figure, sum(heights[:i]), side, title, pictures, style.BOTH)
        for x, text in enumerate(texts):
            for number, line in enumerate(text.split("\n")):  # one by one: on one height in a row
                below = 0.04 + (number + 0.8) * LINE
                axis.text(x + 0.5, 1 + below / side, line, ha="center", **look)
    return figure


def _captioned(
    own: Sequence[tuple[Image.Image, str]], side: float
) -> tuple[list[list[Image.Image]], list[str]]:
    """Return images as columns of one, and their captions, each line as wide as a cell."""
    texts = ["\n".join(fitted(line, 0.94 * side) for line in text.split("\n")) for _, text in own]
    return [[image] for image, _ in own], texts


def _depth(columns: Sequence[Sequence[Image.Image]]) -> int:
    """Return how many images the longest column has, at least one."""
    return max(map(len, columns), default=0) or 1


def _head(title: str) -> float:
    """Return the height in inches of a panel's title, 0 without one."""
    return (title.count("\n") + 1) * 1.25 * BASE / 72 + 0.06 if title else 0.0


def _panel(
    figure: Figure,
    top: float,
    side: float,
    title: str,
    columns: Sequence[Sequence[Image.Image]],
    colour: str,
) -> Axes:
    """Draw a titled grid of images in cells of `side` inches, `top` inches below the edge."""
    height, deep = figure.get_figheight(), _depth(columns)
    bottom = height - top - _head(title) - deep * side
    box = (0, bottom / height, len(columns) * side / WIDTH, deep * side / height)
    axis = figure.add_axes(box)
    canvas = _grid(columns, deep, round(2 * style.DPI * side))
    axis.imshow(canvas, interpolation="nearest", extent=(0, len(columns), deep, 0))
    axis.set_axis_off()
    axis.text(0, -0.06 / side, title, va="bottom", fontsize=BASE, color=colour, parse_math=False)
    return axis


@themed
def plot_overview(
    rows: Mapping[str, Sequence[Sequence[Image.Image]]], summary: pd.DataFrame
) -> Figure:
    """Draw the study in one picture: sample grids over the main table, on a transparent ground.

    `rows` is as for plot_samples, and `summary` is what records.summary returns.
    """
    side, ink = WIDTH / len(next(iter(rows.values()))), style.shade(style.INK)
    titles = [fitted(title, WIDTH, BASE) for title in rows]
    names = [fitted(text, 0.42 * WIDTH, lines=5) for text in summary["title"]]
    table = (style.height_of(names) + 0.1) * len(names)
    grids = [
        _head(title) + side * _depth(own) + GAP
        for title, own in zip(titles, rows.values(), strict=True)
    ]
    heading = fitted("A classifier trained on them: top-1 accuracy on test images, %", WIDTH, BASE)
    height = sum(grids) + GAP + _head(heading) + table + 0.65
    figure = style.blank(height, facecolor="none")
    for i, (title, columns) in enumerate(zip(titles, rows.values(), strict=True)):
        _panel(figure, sum(grids[:i]), side, title, columns, ink)
    figure.text(0, (table + 0.71) / height, heading, va="bottom", fontsize=BASE)
    left = 0.2 + max(text_width(line) for name in names for line in name.split("\n"))
    box = (left / WIDTH, 0.65 / height, (WIDTH - left - 0.45) / WIDTH, table / height)
    axis = figure.add_axes(box, facecolor="none")
    values = summary.assign(value=summary["top1"], text=[f"{top1:.1f}" for top1 in summary["top1"]])
    _dots(axis, list(summary["method"]), names, values)
    least, *more = sorted({*summary["seeds"].tolist()})
    seeds = f"{least} to {more[-1]}" if more else least
    axis.set_xlabel(f"mean and 95 % interval over {seeds} seeds; filled: with the real images")
    axis.xaxis.set_label_coords((WIDTH / 2 - left) / (WIDTH - left - 0.45), -0.38 / table)
    return figure


def _column_names(names: Sequence[str], side: float) -> tuple[list[str], int, float]:
    """Return (names that fit columns of `side` inches, their rotation, their height in inches)."""
    width, names = 0.94 * side, [style.drawable(name) for name in names]
    level = [fitted(name, width, lines=3) for name in names]
    whole = all(text_width(word) <= width for name in names for word in name.split())
    if whole and not any("\u2026" in name for name in level):
        return level, 0, (style.height_of(level) + GAP) if any(level) else GAP
    upright = [fitted(name, NAME, lines=2 if side > 2.2 * LINE else 1) for name in names]
    return (
        upright,
        90,
        max(text_width(line) for name in upright for line in name.split("\n")) + 0.16,
    )


def _near(image: Image.Image, side: int) -> Image.Image:
    """Downscale an image much larger than its cell to about four times the cell's size."""
    return shrunk(image, 4 * side) if max(image.size) > 8 * side else image


def _grid(columns: Sequence[Sequence[Image.Image]], depth: int, finest: int) -> np.ndarray:
    """Return an RGBA canvas of square cells, a column per list, with fitted and centred images.

    A cell has as many pixels as the largest image's longer side, at most `finest`; what no image
    covers is transparent.
    """
    cell = min(finest, max((max(image.size) for column in columns for image in column), default=1))
    pitch = cell + max(1, cell // 20)
    canvas = np.zeros((depth * pitch, len(columns) * pitch, 4), np.uint8)
    for x, column in enumerate(columns):
        for y, image in enumerate(column):
            fits = np.asarray(ImageOps.contain(_near(image, cell).convert("RGB"), (cell, cell)))
            top, left = (
                pitch * y + (cell - fits.shape[0]) // 2,
                pitch * x + (cell - fits.shape[1]) // 2,
            )
            canvas[top : top + fits.shape[0], left : left + fits.shape[1]] = np.dstack(
                [fits, np.full(fits.shape[:2], 255, np.uint8)]
            )
    return canvas


@themed
def plot_confusion(matrix: Any, classes: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix (classes, classes) as shares of each true class, in percent.

    Numbers stand where they fit. Of more classes than there are lines of text, every n-th is named.
    """
    matrix = np.asarray(matrix)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [fitted(name, NAME, lines=1) for name in classes]
    left = max(map(text_width, names), default=0) + 0.45
    side = WIDTH - left - 0.1
    numbers = text_width("100") <= 0.9 * side / len(names)
    if not numbers:  # a colour bar shows the scale instead
        side -= 0.75
    every = math.ceil(1.1 * LINE * len(names) / side)
    level = left - 0.45 <= 0.9 * every * side / len(names)
    below = (LINE if level else left - 0.45) + 0.45
    title = fitted(title, WIDTH - 0.2, BASE, lines=4)
    height = below + side + (0.2 + 1.25 * BASE / 72 * len(title.splitlines()) if title else 0.1)
    # Laid out by hand, so that the side of the square, and what fits, is known.
    figure = style.blank(height)
    axis = figure.add_axes((left / WIDTH, below / height, side / WIDTH, side / height))
    bar = (
        None
        if numbers
        else figure.add_axes(
            ((left + side + 0.1) / WIDTH, below / height, 0.12 / WIDTH, side / height)
        )
    )
    labels = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "") if numbers else None
    sns.heatmap(
        shares,
        vmin=0,
        vmax=100,
        cmap=sns.blend_palette([*map(style.shade, CONFUSED)], as_cmap=True),
        ax=axis,
        cbar=not numbers,
        cbar_ax=bar,
        annot=labels,
        fmt="",
        annot_kws={"fontsize": SMALL, "color": style.shade(style.INK)},
        cbar_kws={"label": "share of the true class, %"},
    )
    places = np.arange(0, len(names), every)
    axis.set_xticks(
        places + 0.5, [names[i] for i in places], rotation=0 if level else 90, parse_math=False
    )
    axis.set_yticks(places + 0.5, [names[i] for i in places], rotation=0, parse_math=False)
    axis.set(
        xlabel="predicted" if every == 1 else f"predicted (one class in {every} is named)",
        ylabel="true",
    )
    axis.yaxis.set_label_coords((0.28 - left) / side, 0.5)
    axis.xaxis.set_label_coords(0.5, (0.28 - below) / side)
    style.set_title(figure, title)
    return figure


@themed
def plot_gains(joined: pd.DataFrame, measure: str = "centroid", title: str = "") -> Figure:
    """Draw each class's accuracy gain and its interval against a measure of its images.

    `joined` is of analysis.gains. Up to NAMED classes are named, where their names do not cover
    one another.
    """
    figure, axes = style.subplots(3.6)
    axis, first = axes[0, 0], joined.iloc[0]
    marks = style.marks(first["method"], linestyle="none")
    axis.axhline(0, color=style.shade(style.INK), ls="--", lw=1)
    axis.vlines(
        joined[measure], joined["low"], joined["high"], color=marks["color"], alpha=0.5, lw=2
    )
    axis.plot(joined[measure], joined["gain"], **marks)
    baseline = METHODS[first["baseline"]].title
    axis.set(xlabel=TITLES[measure], ylabel=fitted(f"gain over {baseline}, points", 2.6, lines=3))
    style.set_title(figure, title or METHODS[first["method"]].title)
    axis.margins(x=0.16, y=0.1)  # room for the last name
    if len(joined) <= NAMED:
        _name_dots(figure, axis, joined, measure)
    return figure


def _name_dots(figure: Figure, axis: Axes, joined: pd.DataFrame, measure: str) -> None:
    """Write names beside dots where they overlap nothing; one without room is left out."""
    figure.draw_without_rendering()  # this fixes the positions of the dots
    dots = axis.transData.transform(joined[[measure, "gain"]].to_numpy())
    taken = [Bbox.from_extents(*(dot - 4), *(dot + 4)) for dot in dots]
    for row in joined.to_dict("records"):
        name, place = fitted(row["class"], NAME, lines=1), (row[measure], row["gain"])
        for right, up in itertools.product((7, -7), (4, -13)):
            look = {"ha": "left" if right > 0 else "right", "fontsize": SMALL, "parse_math": False}
            text = axis.annotate(name, place, (right, up), textcoords="offset points", **look)
            box = text.get_window_extent()
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


@themed
def plot_differences(differences: pd.DataFrame, base: str, title: str = "") -> Figure:
    """Draw a forest plot: each method's paired difference to `base` with its interval.

    `differences` is of comparison.averaged.
    """
    titles = [METHODS[name].title for name in differences["method"]]
    label = f"difference from {METHODS[base].title}, points"
    return _forest(differences, list(differences["method"]), titles, label, title)


@themed
def plot_settings(differences: pd.DataFrame, titles: Sequence[str], title: str = "") -> Figure:
    """Draw a forest plot of one paired difference in several settings, called by `titles`.

    `differences` has the columns of records.paired, a row per setting.
    """
    better, base = (
        METHODS[str(differences.iloc[0][name])].title for name in ("better", "baseline")
    )
    label = f"{better} minus {base}, points"
    return _forest(differences, list(differences["better"]), titles, label, title)


def _forest(differences, methods, titles, label, title):
    """Return a figure of differences in points with their intervals, and a line at zero."""
    values = differences.assign(
        value=differences["difference"],
        text=[f"{difference:+.1f}" for difference in differences["difference"]],
    )
    figure, axis = _chart(methods, titles, values, fitted(label, 3.4))
    axis.axvline(0, color=style.shade(style.INK), ls="--", lw=1, zorder=1)  # behind the dots
    style.set_title(figure, title)
    return figure


@themed
def plot_ranks(ranks: pd.Series, apart: float, title: str = "") -> Figure:
    """Draw methods by average rank, the best on top; a bar joins those no test tells apart.

    `ranks` and `apart`, the critical difference, are of comparison.ranks (Demsar, 2006, figure 1).
    """
    order = ranks.sort_values()
    values = pd.DataFrame({"value": order, "low": order, "high": order})
    values["text"] = [f"{rank:.1f}" for rank in order]
    methods, label = list(order.index), f"average rank (critical difference {apart:.1f})"
    titles = [METHODS[str(name)].title for name in methods]
    figure, axis = _chart(methods, titles, values, label, rest=0.2)
    worst = float(order.max())
    for number, (first, last) in enumerate(cliques(list(order), apart)):
        x = worst + 0.25 * (number + 1)
        axis.plot([x, x], [first, last], color=style.shade(style.INK), lw=2, solid_capstyle="round")
    style.set_title(figure, title)
    return figure


@themed
def plot_ratios(measured: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how many times faster each stage is than the baseline.

    A panel shows a device, with a bar and its interval per row of the benchmark.
    """
    titles = [
        [fitted(row["row"], 0.36 * WIDTH, lines=3) for row in results["rows"]]
        for results in measured
    ]
    heights = [(style.height_of(own) + 0.16) * len(own) + 0.9 for own in titles]
    figure, axes = style.subplots(sum(heights), nrows=len(measured), height_ratios=heights)
    for axis, results, own in zip(axes[:, 0], measured, titles, strict=True):
        means, lows, highs = np.array([row["ratio"] for row in results["rows"]], float).T
        places = np.arange(len(own))
        axis.barh(places, means - 1, left=1, color=style.shade(style.ACCENT))
        axis.hlines(places, lows, highs, color=style.shade(style.INK), lw=1.5)
        axis.axvline(1, color=style.shade(style.INK), ls="--", lw=1)
        axis.set_xscale("log")  # some gains are a few percent, others a factor of hundreds
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_yticks(places, own)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("times faster")
        axis.set_title(
            fitted(f"{results['device']}, {results['profile']}", 0.55 * WIDTH, BASE, lines=4)
        )
    return figure
