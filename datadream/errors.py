"""Errors that a user can fix, and helpers for their messages."""

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable


class ConfigError(ValueError):
    """A recipe is wrong; the message names the value, what is accepted and the fix."""


class ModelMissingError(RuntimeError):
    """A model is neither on disk nor on the hub.

    The message names it, what to download, and which setting points to it.
    """


def printable(text: str) -> bool:
    """True if a text has no control character, line break or lone surrogate.

    Such a text is safe in a prompt, on a page and in a terminal.
    """
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200  # characters


def brief(value: object) -> str:
    """Return a value as text for a message, shortened if it is long or deeply nested."""
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to print integers of over 4,300 digits
        return f"<{type(value).__name__} of too many digits>"


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """Return `. Did you mean 'x'?` for the closest of `words`, or '' if none is close."""
    close = difflib.get_close_matches(str(word), list(words), 1)
    return f". Did you mean {close[0]!r}?" if close else ""


class DataError(ValueError):
    """A dataset, a class or an image cannot be used; the message names it and the fix."""
