"""Conversion of images with embedded colour profiles to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product
from typing import Any, cast

from PIL import Image, ImageCms

LARGEST = 4 * 2**20  # bytes of a profile; those of printers take two million
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode
GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
UNSEEN = 2  # largest shift, of 255 levels, that still counts as sRGB, whose profiles vary slightly
# PNG chunks that hold no pixels; Pillow refuses the whole image if one is too large.
NOTES = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


def profile_of(image: Image.Image) -> str:
    """Return the name of the embedded profile that `to_srgb` converts from, '' if there is none.

    Ignores profiles of sRGB itself, damaged ones, those larger than LARGEST, and those for another
    kind of pixel than the image has.
    """
    content = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not 0 < len(content) <= LARGEST:
        return ""
    name, mode = _opened(content)
    own = "L" if image.mode in GREY else "CMYK" if image.mode == "CMYK" else "RGB"
    return name if mode == own else ""


def to_srgb(image: Image.Image, content: bytes) -> Image.Image:
    """Convert an image without transparency from the colours of an ICC profile to sRGB."""
    mode = _opened(content)[1]
    made = ImageCms.applyTransform(image.convert(mode), _transform(content, mode))
    return made or image


@lru_cache(maxsize=32)
def _opened(content: bytes) -> tuple[str, str]:
    """Return (name, Pillow's mode) of a profile, both '' if it is damaged or sRGB's own."""
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(content))
        mode = SPACES[cast("Any", profile.profile).xcolor_space.strip()]
        if mode != "CMYK" and _moves(content, mode) <= UNSEEN:
            return "", ""
        _transform(content, mode)
        name = " ".join(ImageCms.getProfileDescription(profile).split())
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError):
        return "", ""
    return name or "a profile without a name", mode


@lru_cache(maxsize=32)
def _transform(content: bytes, mode: str) -> Any:
    """Return the conversion of pixels of `mode` to sRGB."""
    profile = ImageCms.getOpenProfile(io.BytesIO(content))
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")


def _moves(content, mode):
    """Return the largest change of a channel, in levels of 255, that a profile makes."""
    steps, channels = range(0, 256, 51), len(mode)
    values = bytes(value for colour in product(steps, repeat=channels) for value in colour)
    colours = Image.frombytes(mode, (len(values) // channels, 1), values)
    made = ImageCms.applyTransform(colours, _transform(content, mode))
    if made is None:
        raise ValueError("nothing was converted")
    pairs = zip(colours.convert("RGB").tobytes(), made.tobytes(), strict=True)
    return max(abs(one - other) for one, other in pairs)


def without_notes(content: bytes) -> bytes:
    """Return a PNG without the chunks that hold no pixels, such as a huge colour profile."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept, place = [content[:8]], 8
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] not in NOTES:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)
