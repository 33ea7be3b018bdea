"""The look of every figure: seaborn's theme, the methods' colours, sizes, light and dark.

Figures are narrow enough for a phone, with type legible there. A user's matplotlibrc (LaTeX, fonts,
a tight box) is ignored: all settings are ours or matplotlib's defaults, from layout to saving.
Figures bypass pyplot, so no backend is needed.
"""

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from cycler import cycler
from IPython.core.pylabtools import retina_figure
from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..methods.registry import METHODS
from . import fonts

WIDTH = 5.0  # inches: 500 pixels on a desktop, scaled to about 350 on a phone
DPI = 100  # pixels per inch as displayed; a high-density screen gets twice as many
SMALL, BASE = 9.5, 10.5  # points; 9.5 are 9.2 pixels on a phone
LINE = 1.25 * SMALL / 72  # inches, a line of small text
GROUND, INK, GRID = "#ffffff", "#1a1a1a", "#d9d9d9"
BOTH = "#767676"  # text on transparent figures: contrast 4.5 to 1 on white and on black
ACCENT = "#0072B2"  # for what belongs to no method
# The filter that turns a figure dark in the book (style.css): white becomes the theme's #121212,
# and hues are kept.
INVERT, HUE, SATURATE = 0.93, 180, 1.3

THEMES = ("light", "dark")
# matplotlib settings that do not affect a figure's look, but the program that draws it.
_NO_LOOK = ("backend", "interactive", "toolbar", "webagg.", "tk.", "keymap.", "animation.")
_current = {"theme": "light"}
# The current figure's settings, and the words that no font can draw with their numbers.
_drawing: dict[str, Any] = {"settings": None, "replaced": {}}
P = ParamSpec("P")


def set_theme(name: str) -> None:
    """Draw every later figure in this theme, "light" or "dark"."""
    if name not in THEMES:
        raise ValueError(f"theme {name!r} is unknown; accepted: {', '.join(THEMES)}")
    _current["theme"] = name


def _towards_grey(saturation: float) -> np.ndarray:
    grey = np.tile([0.213, 0.715, 0.072], (3, 1))
    return grey + saturation * (np.eye(3) - grey)


def _hue_rotation(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = [[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]]
    return _towards_grey(cosine) + sine * np.array(turn)


def in_the_dark(colour: str) -> str:
    """Return what the book's dark theme makes of a colour, by its style sheet's filter."""
    rgb = INVERT - (2 * INVERT - 1) * np.array(to_rgb(colour))
    for matrix in (_hue_rotation(HUE), _towards_grey(SATURATE)):
        rgb = np.clip(matrix @ rgb, 0, 1)
    return to_hex(tuple(rgb.tolist()))


def shade(colour: str) -> str:
    """Convert a colour of the light theme to the theme that figures are drawn in."""
    return in_the_dark(colour) if _current["theme"] == "dark" else colour


def colour(method: str) -> str:
    """Return a method's colour in the current theme."""
    return shade(METHODS[method].colour)


def marks(method: str, **others: Any) -> dict[str, Any]:
    """Return the keywords of a method's line and dots, filled and solid with real images."""
    own, real = colour(method), METHODS[method].real
    return {
        "color": own,
        "linestyle": "-" if real else "--",
        "marker": METHODS[method].marker,
        "markeredgecolor": own,
        "markerfacecolor": own if real else shade(GROUND),
        "markeredgewidth": 2,
        **others,
    }


def _settings() -> Any:  # a dict with matplotlib's keys
    ground, ink, grid = shade(GROUND), shade(INK), shade(GRID)
    colours = list(dict.fromkeys(shade(row.colour) for row in METHODS.values() if row.generates))
    return {
        **{name: value for name, value in mpl.rcParamsDefault.items() if _is_look(name)},
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("notebook"),
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": ink,
        "grid.color": grid,
        "axes.linewidth": 0.8,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.prop_cycle": cycler(color=colours),
        "lines.linewidth": 1.6,
        "lines.markersize": 7,
        "font.family": [fonts.OWN],
        "font.sans-serif": [fonts.OWN],
        "font.size": BASE,
        "axes.titlesize": BASE,
        "figure.titlesize": BASE,
        "axes.labelsize": SMALL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "figure.dpi": DPI,
    }


def _is_look(name: str) -> bool:
    return not name.startswith(_NO_LOOK)


@contextmanager
def _styled(settings: Any = None, replaced: dict[str, str] | None = None) -> Iterator[None]:
    """Draw with these settings, by default the theme's, unless a drawing is under way."""
    if _drawing["settings"] is not None:
        yield
        return
    settings = settings or _settings()
    with mpl.rc_context(settings):
        _drawing.update(settings=settings, replaced={} if replaced is None else replaced)
        try:
            yield
        finally:
            _drawing.update(settings=None, replaced={})


def themed(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure, so that it uses the project's style."""

    @functools.wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _styled():
            return plot(*args, **kwargs)

    return styled


class SharpFigure(Figure):
    """A figure that a notebook shows at twice its resolution, whatever the notebook's settings.

    Ticks and boxes are only made when it is drawn, so it remembers the settings it was created
    with.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.settings, self.replaced = _drawing["settings"], _drawing["replaced"]
        super().__init__(*args, **options)

    def draw(self, renderer: Any) -> None:
        """Draw the figure with the settings it was created with."""
        with _styled(self.settings, self.replaced):
            super().draw(renderer)

    def savefig(self, *args: Any, **options: Any) -> None:
        """Save the figure with the settings it was created with."""
        with _styled(self.settings, self.replaced):
            super().savefig(*args, **options)

    def _ipython_display_(self) -> None:  # takes precedence over the inline backend's formatter
        with _styled(self.settings, self.replaced):
            picture, size = cast(tuple, retina_figure(self, base64=True, bbox_inches=None))
        display(
            {"image/png": picture, "text/plain": repr(self)}, metadata={"image/png": size}, raw=True
        )
        if self.replaced:
            display(HTML(fonts.note(self.replaced)))


def blank(height: float, **options: Any) -> Figure:
    """Return an empty figure, unknown to pyplot so that a notebook shows it only once."""
    figure = SharpFigure(figsize=(WIDTH, height), **options)
    FigureCanvasAgg(figure)
    return figure


def subplots(height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes as a matrix; `options` are those of Figure.subplots."""
    figure = blank(height, layout="constrained")
    return figure, figure.subplots(squeeze=False, **options)


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float = SMALL) -> float:
    """Return the width in inches of one line of text of `size` points."""
    with _styled():
        figure = Figure(dpi=DPI)
        renderer = FigureCanvasAgg(figure).get_renderer()
        look = {"family": fonts.families(text), "parse_math": False}
        line = Text(0, 0, text, fontsize=size, figure=figure, **look)
        return line.get_window_extent(renderer).width / DPI


def drawable(text: str) -> str:
    """Return a text as it can be drawn, and register the fonts it needs with the figure.

    A word that no font on this machine can draw becomes a number, which the figure's note explains.
    """
    text = fonts.written(text, _drawing["replaced"])
    settings, lacking = _drawing["settings"], fonts.families(text)
    if settings is not None and len(lacking) > 1:
        families = list(dict.fromkeys([*settings["font.family"], *lacking]))
        settings["font.family"] = mpl.rcParams["font.family"] = families
    return text


def _fits(text: str, width: float, size: float, end: str = "") -> int:
    """Return how many leading characters, followed by `end`, fit `width` inches; at least one."""
    lengths = range(1, len(text) + 1)
    return max(1, bisect_right(lengths, width, key=lambda n: text_width(text[:n] + end, size)))


def fitted(text: str, width: float, size: float = SMALL, lines: int = 2) -> str:
    """Wrap a text to at most `lines` lines of `width` inches, ending in an ellipsis if cut."""
    words, found = drawable(text).split(), []
    while words:
        last = len(found) == lines - 1
        line = " ".join(words) if last else words.pop(0)
        if last:
            words = []
        while words and text_width(f"{line} {words[0]}", size) <= width:
            line += f" {words.pop(0)}"
        if text_width(line, size) > width:
            if last:
                line = line[: _fits(line, width, size, "\u2026")].rstrip() + "\u2026"
            else:  # a word wider than the line continues on the next one
                cut = _fits(line, width, size)
                words, line = [line[cut:], *words], line[:cut]
        found.append(line)
    return "\n".join(found)


def height_of(texts: Iterable[str]) -> float:
    """Return the height in inches of the tallest of some wrapped small texts."""
    return LINE * max((text.count("\n") + 1 for text in texts), default=1)


def set_title(figure: Figure, title: str) -> None:
    """Put a wrapped title above a figure, aligned with its left edge."""
    if title:
        figure.suptitle(
            fitted(title, WIDTH - 0.2, BASE, lines=4), x=0.02, ha="left", parse_math=False
        )


def legend_below(figure: Figure) -> None:
    """Put the legend below the axes, in as many columns as fit, and make the figure taller."""
    for columns in (3, 2, 1):
        legend = figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.2
        )
        box = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
