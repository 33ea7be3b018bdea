"""Tables and lists for a page, whose text is never read as HTML, Markdown or mathematics."""

import html
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

Formats = str | Callable | Mapping[str, str | Callable] | None

# Jupyter typesets text between dollar signs as mathematics, even in tables; these classes stop it.
NO_MATH = 'class="tex2jax_ignore mathjax_ignore"'


class Link:
    """A table cell that links to an address."""

    def __init__(self, text: str, address: str) -> None:
        self.text, self.address = text, address

    def __str__(self) -> str:
        return f'<a href="{html.escape(self.address)}">{html.escape(self.text)}</a>'


def show_table(
    frame: pd.DataFrame,
    formats: Formats = None,
    *,
    precision: int | None = None,
    index: bool = False,
    caption: str | None = None,
) -> Styler:
    """Return a table for a page with cells, headers and caption escaped for HTML.

    Class names, file names and error messages come from users and may contain anything, such as
    `<wnid>` or `a & b`; only a `Link` becomes markup. `formats` and `precision` are those of
    pandas' `Styler.format`. The index is shown if it has a name or more than row numbers, and
    always with `index`. Missing values, also None, are shown as "-".
    """
    # pandas escapes only strings: convert a path or a list first, but not a Link.
    texts = frame.map(_text).rename(index=_text, columns=_text)
    texts = texts.rename_axis(index=_name, columns=_name)
    styler = texts.style  # its methods change it in place
    styler.format(formats, na_rep="-", precision=precision, escape="html")
    for axis in (0, 1):
        styler.format_index(axis=axis, escape="html")
    if any(name is not None for name in texts.index.names):
        styler.format_index_names(axis=0, escape="html")
    if any(name is not None for name in texts.columns.names):
        styler.format_index_names(axis=1, escape="html")
    styler.set_table_attributes(NO_MATH)
    if caption is not None:
        styler.set_caption(html.escape(caption))
    return styler if index or _tells(frame.index) else styler.hide(axis="index")


def _tells(index):
    """Return whether an index does more than number the rows."""
    return any(name is not None for name in index.names) or index.dtype.kind not in "iu"


def _text(value):
    if isinstance(value, numbers.Number | Link):
        return value
    return math.nan if value is None or value is pd.NA or value is pd.NaT else str(value)


def _name(value):
    return None if value is None else str(value)


def listed(texts: Sequence[str]) -> str:
    """Return texts as "a", "a and b" or "a, b and c"."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def escape_markdown(text: object) -> str:
    """Return text on one line, escaped so that Markdown shows it as it is."""
    line = " ".join(str(text).split())
    line = re.sub(r"[\\`*_\[\]{}<>&|$~#^!]", r"\\\g<0>", line)
    return re.sub(r"^(\d*)([-+.)=:])", r"\1\\\2", line)  # would start a list at the start of a line


def bullets(lines: Iterable[str], otherwise: str = "") -> Markdown:
    """Return sentences as a Markdown list of plain text; `otherwise` if there are none."""
    return Markdown("\n".join(f"- {escape_markdown(line)}" for line in lines) or otherwise)
