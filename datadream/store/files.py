"""Atomic JSON writes, file digests, and clear errors for full or unwritable disks."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import Timeout

from ..paths import atomic_write, part_of


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
}
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
MOVE = "move the artifacts with DATADREAM_STORE"


class StoreError(RuntimeError):
    """A folder or an address cannot be read or written.

    The message names it, the cause and the fix.
    """


# The errors for a file that does not exist, or for a folder or a broken link in its place.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the error for a file that exists but cannot be read into a StoreError.

    The file may be sound, and readable for another user or later. If it were taken for damaged, it
    would be removed or recomputed. A missing file still raises OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in MISSING:
            raise
        file = error.filename or path
        fix = "check the disk or the network and run again; remove it only if it is lost"
        if error.errno in CLOSED:
            fix = (
                f"ask {owner(file)} to let the others read it (`chmod -R g+rX` on its folder), or "
                f"{MOVE}"
            )
        what = error.strerror or type(error).__name__
        raise StoreError(
            f"{file} is there and cannot be read ({what}); nothing was removed or made anew: {fix}"
        ) from error


def owner(path: str | Path) -> str:
    """Say who owns a path, or the nearest folder above it that can be inspected."""
    for place in (Path(path), *Path(path).parents):
        with suppress(OSError):
            number = place.stat().st_uid
            try:
                return f"its owner {place.owner()}"
            except (KeyError, NotImplementedError):  # a user of another machine, or Windows
                return f"its owner (user {number})"
    return "its owner"


def holds(file: Path, sha: str) -> bool:
    """True if a file exists and has this SHA-256.

    Raises StoreError if it exists but cannot be read.
    """
    try:
        with reading(file):
            return digest(file) == sha
    except (OSError, ValueError):  # it is missing, or its name is impossible
        return False


def json_files(folder: Path) -> list[Path]:
    """List the JSON files of a folder, sorted; none if it is missing.

    Raises StoreError if the folder cannot be read; `glob` would silently find nothing.
    """
    try:
        with reading(folder):
            names = os.listdir(folder)
    except OSError:
        return []
    return sorted(folder / name for name in names if name.endswith(".json"))


def unreadable(folder: Path) -> list[Path]:
    """List the files and folders below a folder that this user may not read, except locks."""
    found = []
    if not os.access(folder, os.R_OK | os.X_OK):
        return [folder]
    for top, folders, files in os.walk(folder):
        found += [Path(top, name) for name in files if not os.access(Path(top, name), os.R_OK)]
        found += [Path(top, n) for n in folders if not os.access(Path(top, n), os.R_OK | os.X_OK)]
    return sorted(path for path in found if path.suffix != ".lock" and os.path.lexists(path))


def try_writing(folder: Path) -> None:
    """Write and remove an empty file in a folder, or in the nearest one above it that exists.

    Raises the OSError that a later write would.
    """
    place = next(one for one in (folder, *folder.parents) if one.exists())
    probe = Path(part_of(place / "probe"))
    probe.touch(exist_ok=False)
    probe.unlink()


def inside(name: str) -> bool:
    """True if a relative path stays within its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def remove(path: Path) -> None:
    """Remove a file, or a folder with all its content, if it exists; of a link, only the link."""
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


@contextmanager
def writing(root: str | Path, fix: str = MOVE) -> Iterator[None]:
    """Turn the errors of a full disk or a read-only folder into a StoreError about `root`.

    They are recognised whatever their type; the message names the `fix`.
    """
    try:
        yield
    except Exception as error:
        # safetensors and shutil.copytree give the error number only in their message.
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
        # A file elsewhere that we may not write is another matter.
        own = str(getattr(error, "filename", None) or root)
        place, top = Path(own).absolute(), Path(root).absolute()
        if code in CLOSED and (place.is_relative_to(top) or top.is_relative_to(place)):
            raise StoreError(
                f"{root} cannot be written ({os.strerror(code)}: {own}). Give yourself the right "
                f"to, or {fix}"
            ) from error
        if isinstance(error, OSError) and not isinstance(error, Timeout) and _of_a_lock(error):
            raise unlockable(root, error, fix) from error
        raise


def _of_a_lock(error):
    """True if the system refused a lock, whatever the errno: an error of `flock` names no file."""
    trace, names = error.__traceback__, []
    while trace:
        names.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return error.filename is None and bool(names) and names[-1].startswith("filelock")


def unlockable(root: str | Path, error: OSError, fix: str = MOVE) -> StoreError:
    """Return the StoreError for a file system without file locks, such as some network mounts."""
    what = error.strerror or type(error).__name__
    return StoreError(
        f"the file system of {root} does not lock files (flock: {what}), by which runs keep out of "
        f"each other's way. Mount it with locks (for NFS a lock service, for Lustre the option "
        f"flock), or {fix} to a disk of this machine"
    )
