"""Write a PNG atomically, with notes in it, and tell a whole one from a cut one."""

import os

from PIL.PngImagePlugin import PngInfo

from ..paths import atomic_write

END = b"\0\0\0\0IEND\xaeB`\x82"  # a PNG's last chunk


def is_whole(path):
    """Return whether a PNG is there with its end: what a machine that lost its power leaves may
    be empty or cut.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-len(END), os.SEEK_END)
            return file.read() == END
    except OSError:
        return False


def save_png(image, path):
    """Write a PNG atomically, with what `image.info` says of it."""
    notes = PngInfo()
    for name, value in image.info.items():
        notes.add_text(name, str(value))
    with atomic_write(path) as part:
        image.save(part, format="PNG", pnginfo=notes)
