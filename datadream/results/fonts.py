"""Fallback fonts for scripts that the figures' font lacks, and numbers for words without any."""

import html
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib, so figures are the same on every machine
# matplotlib's fonts with other characters in place of letters, or a box for every character.
NO_TEXT = ("cm", "STIXNonUnicode", "STIXSize", "Last Resort")


def families(text: str) -> list[str]:
    """Return the font families that draw a text: the figures' own, then fallbacks as needed."""
    found = {family for character in missing(text) if (family := _family_of(character))}
    return [OWN, *sorted(found)]


def missing(text: str) -> set[str]:
    """Return the characters of a text that the figures' own font lacks."""
    known = _characters(font_manager.findfont(OWN))
    return {c for c in text if ord(c) not in known and not _invisible(c)}


def written(text: str, replaced: dict[str, str]) -> str:
    """Return a text with `#1`, `#2` ... in place of words that no font on this machine can draw.

    `replaced` maps each such word to its number, and is extended.
    """
    if not any(_family_of(character) is None for character in missing(text)):
        return text
    words = [
        replaced.setdefault(word, f"#{len(replaced) + 1}")
        if any(_family_of(character) is None for character in missing(word))
        else word
        for word in text.split()
    ]
    return " ".join(words)


def note(replaced: dict[str, str]) -> str:
    """Return an HTML paragraph that explains the numbers used by `written`."""
    which = ", ".join(f"{sign} is {html.escape(word)}" for word, sign in replaced.items())
    return (
        f"<p>No font of this machine can draw some names. In the figure {which}. With a font that "
        "has these characters installed (say, Noto Sans of that script) they stand in it.</p>"
    )


def _invisible(character):
    """True for characters without a glyph of their own: spaces, joiners, variation selectors."""
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")
        or "\ufe00" <= character <= "\ufe0f"
    )


@lru_cache(maxsize=4096)
def _family_of(character):
    """Return the first font family on this machine that has a character, or None."""
    for name, file in _others():
        if ord(character) in _characters(file):
            return name
    return None


@lru_cache(maxsize=1)
def _others():
    """Return (name, file) of the upright text fonts, sans-serif ones first.

    matplotlib's font list may be out of date, so newly installed fonts are added.
    """
    manager = font_manager.fontManager
    known = {font.fname for font in manager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            manager.addfont(file)
        except Exception:  # a bad font must not break the figure
            continue
    upright: Iterable[font_manager.FontEntry] = (
        font
        for font in manager.ttflist
        if font.style == "normal" and not font.name.startswith(NO_TEXT) and font.name != OWN
    )
    order = sorted(upright, key=lambda font: ("Sans" not in font.name, font.name, font.fname))
    return [(font.name, font.fname) for font in order]


@cache
def _characters(file):
    """Return the code points of an outline font file; none if it cannot be read."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except Exception:  # a colour font of bitmaps, a damaged file
        return frozenset()
