"""JSON written atomically, digests of files, and clear errors of full or closed disks."""

import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..paths import atomic_write


def digest(path):
    """Return the SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(file: Path, sha: str) -> bool:
    """Return whether a file is there with this SHA-256."""
    try:
        return digest(file) == sha
    except (OSError, ValueError):  # a disk that no longer reads it, or a name that no file can have
        return False


def inside(name):
    """Return whether a relative path leads nowhere out of its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def remove(path):
    """Remove a file or a folder with all that is in it, if it is there; of a link the link
    alone.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path, value):
    """Write JSON atomically: a reader sees the old file or the new one, never half of it, even
    where two processes write it at once.
    """
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


class StoreError(RuntimeError):
    """A folder or an address cannot be read or written; the message names it, the cause and the
    fix.
    """


FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
}
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
MOVE = "move the artifacts with DATADREAM_STORE"


@contextmanager
def writing(root, fix=MOVE):
    """Turn what a full disk or a read-only folder raises, in whatever words, into a StoreError
    on `root` that names the `fix`.
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
