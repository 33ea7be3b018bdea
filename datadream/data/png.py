"""Write a PNG atomically, with its metadata, and tell a whole one from a cut one."""

import os
from pathlib import Path

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ..paths import atomic_write

END = b"\0\0\0\0IEND\xaeB`\x82"  # a PNG's last chunk


def is_whole(path: str | Path) -> bool:
    """True if a PNG is there with its last chunk.

    A power cut may leave it empty or cut.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-len(END), os.SEEK_END)
            return file.read() == END
    except OSError:
        return False


def save_png(image: Image, path: str | Path) -> None:
    """Write a PNG atomically, with `image.info` as its text entries."""
    notes = PngInfo()
    for name, value in image.info.items():
        notes.add_text(str(name), str(value))
    with atomic_write(path) as part:
        image.save(part, format="PNG", pnginfo=notes)
