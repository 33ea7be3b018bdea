"""Every path that the package reads or writes, how pages show them, and the atomic write."""

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
    """Expand a leading "~" in a path to the user's home, as a shell does.

    Paths in a settings file, in quotes or in a cell have not passed through a shell. "~name" and
    URLs are left as they are.
    """
    if place == "~" or place.startswith(("~/", "~" + os.sep)):
        return os.path.expanduser(place)
    return place


def variable(name: str) -> str:
    """Return an environment variable that holds a path; '' if it is unset or empty."""
    return expanded(os.environ.get(name, ""))


def home() -> Path:
    """Return the project's folder.

    That is $DATADREAM_HOME, else the checkout that contains this package, else the working
    directory.
    """
    checkout = Path(__file__).resolve().parents[1]
    fallback = checkout if (checkout / "notebooks").is_dir() else Path.cwd()
    return Path(variable("DATADREAM_HOME") or fallback)


def is_address(place: str | Path) -> bool:
    """True if a place is an fsspec URL, such as s3://bucket/prefix, rather than a folder."""
    return "://" in str(place)


def store_place() -> str:
    """Return where the artifacts are stored, as text: a folder or a URL.

    That is $DATADREAM_STORE, else `artifacts` in the project's folder.
    """
    return variable("DATADREAM_STORE") or str(home() / "artifacts")


def copies(address: str) -> Path:
    """Return the local cache folder of a remote store.

    It lies under $DATADREAM_CACHE, else in the user's cache.
    """
    cache = (
        variable("DATADREAM_CACHE")
        or Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache") / "datadream"
    )
    return Path(cache) / hashlib.sha256(str(address).encode()).hexdigest()[:16]


def relative_to_home(path: str | Path) -> str:
    """Return a path as a page shows it: relative to the project's folder if inside it.

    Pages thus do not depend on the machine. The local cache of a remote store is shown as its URL.
    """
    if is_address(store_place()) and Path(path) == copies(store_place()):
        return store_place()
    path, root = Path(path).resolve(), home().resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def interpreter() -> str:
    """Return the running Python, quoted for a command line in the project's folder.

    Its path is relative if it lies inside that folder, else absolute.
    """
    # The file itself is not resolved: a virtual environment's Python links to one outside that does
    # not know the environment.
    path, root = Path(sys.executable).parent.resolve() / Path(sys.executable).name, home().resolve()
    return shlex.quote(str(path.relative_to(root)) if path.is_relative_to(root) else str(path))


def part_of(path: str | Path) -> str:
    """Return a unique temporary name beside `path`, local or remote.

    `store.gc` recognises what a killed process left by its form, `<path>.<32 hex>.part`.
    """
    return f"{path}.{uuid.uuid4().hex}.part"


def umask_mode(path: str | Path) -> None:
    """Give a file or folder the mode prescribed by the umask or its folder's default ACL.

    safetensors (0.8) and `tempfile` write files that only their owner can read, whatever the umask,
    which locks out other users of a shared store. A file or folder that its group or others may
    access already is not changed.
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
        with suppress(OSError):  # a file system without modes, or another user's file
            os.chmod(path, stat.S_IMODE(given))


def umask_modes(folder: str | Path) -> None:
    """Call `umask_mode` on everything that a library wrote to a folder, except links."""
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_symlink():
            umask_mode(path)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on success it is renamed to `path`.

    Readers see the old file or the new one, never a partial one, even if two processes write at
    once. The file gets the umask's mode. If the body raises, `path` is unchanged and the temporary
    file is removed; only a kill leaves it behind.
    """
    part = Path(part_of(path))
    try:
        yield part
        umask_mode(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # report the error that stopped the writing, not this one
            part.unlink(missing_ok=True)
        raise


def paths() -> dict[str, Path]:
    """Return every folder and file that the package reads or writes, by name.

    $DATADREAM_STORE moves the artifacts, $DATADREAM_DATA the datasets. If $DATADREAM_STORE is a
    URL, `store` is its local cache.
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
