"""JSON written atomically, digests of files, and clear errors of full or closed disks."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..paths import atomic_write


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(file: Path, sha: str) -> bool:
    """True if a file is there and has this SHA-256."""
    try:
        return digest(file) == sha
    except (OSError, ValueError):  # a disk that no longer reads it, or a name that no file can have
        return False


def inside(name: str) -> bool:
    """True if a relative path stays within its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def remove(path: Path) -> None:
    """Remove a file or a folder with all its content, if it is there; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically, see `paths.atomic_write`.

    Raises ValueError on NaN and infinity, which other programs could not read.
    """
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


class StoreError(RuntimeError):
    """A folder or an address cannot be read or written.

    The message names it, the cause and the fix.
    """


FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
}
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
MOVE = "move the artifacts with DATADREAM_STORE"


@contextmanager
def writing(root: str | Path, fix: str = MOVE) -> Iterator[None]:
    """Turn the errors of a full disk or a read-only folder into a StoreError on `root`.

    In whatever words they are raised; the message names the `fix`.
    """
    try:
        yield
    except Exception as error:
        # safetensors and shutil.copytree tell the number in their text only.
        told = re.search(
            r"\[Errno (\d+)\]" if isinstance(error, shutil.Error) else r"\(os error (\d+)\)",
            str(error),
        )
        code = int(told[1]) if told else getattr(error, "errno", None)
        if code in FULL:
            raise StoreError(
                f"{root} cannot take more: {FULL[code]}. Free some space, or {fix}, and run "
                "again; what is finished is kept"
            ) from error
        # A file elsewhere that is not ours to write is another matter.
        own = str(getattr(error, "filename", None) or root)
        if code in CLOSED and Path(own).absolute().is_relative_to(Path(root).absolute()):
            raise StoreError(
                f"{root} cannot be written ({os.strerror(code)}: {own}). Give yourself the right "
                f"to, or {fix}"
            ) from error
        raise
