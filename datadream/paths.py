"""Every folder that the package reads or writes, how a page names them, and the atomic write."""

import hashlib
import os
import shlex
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def expanded(place: str) -> str:
    """Return a place with the user's home for a leading "~", as a shell would write it.

    No shell has been at what stands in a file of settings, in quotes or in a cell. "~name" and an
    address stay as they are.
    """
    if place == "~" or place.startswith(("~/", "~" + os.sep)):
        return os.path.expanduser(place)
    return place


def variable(name: str) -> str:
    """Return an environment variable that names a place; '' if it is unset or empty."""
    return expanded(os.environ.get(name, ""))


def home() -> Path:
    """Return the project's folder.

    That is $DATADREAM_HOME, else the checkout that holds this package, else the working directory.
    """
    checkout = Path(__file__).resolve().parents[1]
    fallback = checkout if (checkout / "notebooks").is_dir() else Path.cwd()
    return Path(variable("DATADREAM_HOME") or fallback)


def is_address(place: str | Path) -> bool:
    """True if a place is an fsspec address, such as s3://bucket/prefix, and no folder."""
    return "://" in str(place)


def store_place() -> str:
    """Return where the artifacts are stored, as text: a folder or an address.

    That is $DATADREAM_STORE, else `artifacts` in the project's folder.
    """
    return variable("DATADREAM_STORE") or str(home() / "artifacts")


def copies(address: str) -> Path:
    """Return this machine's folder for copies of what is stored at an address.

    It is under $DATADREAM_CACHE, else in the user's cache.
    """
    cache = (
        variable("DATADREAM_CACHE")
        or Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache") / "datadream"
    )
    return Path(cache) / hashlib.sha256(str(address).encode()).hexdigest()[:16]


def relative_to_home(path: str | Path) -> str:
    """Return a path as a page shows it: relative to the project's folder if it is inside.

    So no page has this machine's name for it. The folder of copies of the store's address is shown
    as the address.
    """
    if is_address(store_place()) and Path(path) == copies(store_place()):
        return store_place()
    path, root = Path(path).resolve(), home().resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def interpreter() -> str:
    """Return the running Python, quoted for a command line in the project's folder.

    Its path is relative where it lies inside that folder, else absolute.
    """
    # The file itself is not resolved: an environment's Python is a link to one outside, which knows
    # nothing of the environment.
    path, root = Path(sys.executable).parent.resolve() / Path(sys.executable).name, home().resolve()
    return shlex.quote(str(path.relative_to(root)) if path.is_relative_to(root) else str(path))


def part_of(path: str | Path) -> str:
    """Return a unique temporary name beside `path`, on this machine or on an address.

    `store.gc` knows what a killed process left by the form of this name, `<path>.<32 hex>.part`.
    """
    return f"{path}.{uuid.uuid4().hex}.part"


def umask_mode(path: str | Path) -> None:
    """Give a file or a folder the mode that the umask, or its folder's default ACL, gives.

    safetensors (0.8) and `tempfile` write for their owner alone whatever the umask, and the others
    of a shared store could not read it. What its group or all may use already stays as it is.
    """
    mode = os.stat(path).st_mode
    if mode & 0o077:
        return
    probe = part_of(path)
    if stat.S_ISDIR(mode):
        os.mkdir(probe)
        given = os.stat(probe).st_mode
        os.rmdir(probe)
    else:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        given = os.stat(probe).st_mode
        os.unlink(probe)
    if stat.S_IMODE(given) != stat.S_IMODE(mode):
        with suppress(OSError):  # a file system without modes, or somebody else's file
            os.chmod(path, stat.S_IMODE(given))


def umask_modes(folder: str | Path) -> None:
    """Call `umask_mode` on all that a library wrote to a folder; links stay as they are."""
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_symlink():
            umask_mode(path)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`, which is renamed to `path` on success.

    A reader sees the old file or the new one, never half of it, even where two processes write at
    once. It has the mode that the umask gives. If the body raises, `path` stays as it was and the
    temporary file is removed; only a kill leaves it.
    """
    part = Path(part_of(path))
    try:
        yield part
        umask_mode(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the error to report is the one that stopped the writing
            part.unlink(missing_ok=True)
        raise


def paths() -> dict[str, Path]:
    """Return every folder and file that the package reads or writes, by name.

    $DATADREAM_STORE moves the artifacts, $DATADREAM_DATA the datasets. Where $DATADREAM_STORE is an
    address, `store` is the folder of its copies.
    """
    root, place = home(), store_place()
    results = root / "benchmarks" / "results"
    store = copies(place) if is_address(place) else Path(place)
    data = Path(variable("DATADREAM_DATA") or root / "data")
    return {
        "home": root,
        "store": store,
        "records": store / "records",
        "kept": store / "kept",
        "data": data,
        "notebooks": root / "notebooks",
        "study": root / "notebooks" / "study.yaml",
        "runs": root / "book" / "runs",
        "training": store / "mini_base",
        "kept_pages": root / "book" / "study",
        "kept_records": root / "book" / "study" / "records.jsonl",
        "predictions": root / "book" / "study" / "predictions",
        "samples": root / "book" / "samples",
        "sets": root / "book" / "sets",
        "generated": root / "book" / "generated",
        "contrib": root / "contrib",
        "contents": root / "_build" / "toc.yml",
        "smoke": root / "_build" / "smoke",
        "benchmarks": results,
        "faults": results / "faults.json",
        "scale": results / "scale.json",
        "together": results / "together.json",
        "engines": results / "engines.json",
        "mini": Path(__file__).parent / "mini",
    }
