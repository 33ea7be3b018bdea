"""What the store holds for nobody: artifacts that no record refers to, builds that never ended,
locks that nobody holds.
"""

import json
import re
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath

from filelock import FileLock, Timeout

from ..errors import ConfigError, DataError
from .address import RemoteStore, reaching
from .artifacts import CLEARING, IN_USE, SALVAGE
from .files import remove, writing
from .leases import running

# A key; a folder of another name is not this program's to remove.
ARTIFACT = re.compile(r"[a-z]+-[0-9a-f]{16}")
# an artifact, a slice or the salvage of one, a study
HELD = rf"({ARTIFACT.pattern}(-\d+-\d+|-{SALVAGE})?|{IN_USE}\w+)"
LOCK, LEASE = re.compile(rf"\.{HELD}\.lock"), re.compile(rf"{HELD}\.lease(\.dead)?")

PART = re.compile(r".+\.[0-9a-f]{32}\.part")  # what a process that was killed meanwhile wrote


@dataclass(frozen=True)
class Entry:
    """One thing that could go: its path, its kind ('artifact', 'unfinished', 'lock' or 'copy') and
    its size in bytes.

    `away`: it lies on the store's address rather than on this machine.
    """

    path: PurePath
    kind: str
    size: int
    away: bool = False


def referred(store):
    """Return the keys that the records, and the notes on kept classifiers, refer to.

    Raises DataError on one that cannot be read: what it needs is then unknown.
    """
    keys = set()
    for file in [*store.refresh_all(store.records), *store.refresh_all(store.kept)]:
        try:
            keys |= {str(name) for name in json.loads(file.read_text())["artifacts"].values()}
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise DataError(
                f"{file} is damaged ({error!r}), so that nobody knows what it needs; remove it, "
                "or run its cell again"
            ) from error
    return keys


def unused(store):
    """Return the entries that could go, by name: artifacts without a record, `.partial` folders and
    locks that nobody holds.

    Whatever else lies in the store is left out. Of a store on an address both the address and the
    copies on this machine are looked through; where leases are left there, this watches their
    heartbeats for up to leases.PATIENCE seconds. Raises ConfigError while a study runs or a process
    is making an artifact: those of a cell that is not finished have no record yet.
    """
    needed, own, found = (
        referred(store),
        "copy" if isinstance(store, RemoteStore) else "artifact",
        [],
    )
    for path in sorted(store.root.iterdir()) if store.root.is_dir() else []:
        if LOCK.fullmatch(path.name):
            _require_free(path)
            found.append(Entry(path, "lock", path.lstat().st_size))
        elif (
            path.suffix in (".partial", ".fetched")
            and ARTIFACT.fullmatch(path.stem)
            and path.stem not in needed
        ):
            found.append(Entry(path, "unfinished", _size(path)))
        elif ARTIFACT.fullmatch(path.name) and path.name not in needed:
            found.append(Entry(path, own, _size(path)))
    parts = [
        path
        for folder in (store.root, store.records, store.kept)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
    ]
    found += [
        Entry(path, "unfinished", path.lstat().st_size)
        for path in parts
        if PART.fullmatch(path.name)
    ]
    return found + (_away(store, needed) if isinstance(store, RemoteStore) else [])


def _away(store, needed):
    """Return the entries on a store's address."""
    groups = {}
    for name, size in store.objects().items():
        top, _, rest = name.partition("/")
        groups.setdefault(top, {})[rest] = size
    leases = [name for name in groups if LEASE.fullmatch(name)]
    with reaching(store.address):
        busy = running(store.fs, [store.at(name) for name in leases])
    if busy:
        what = (
            "a study runs"
            if PurePosixPath(busy).name.startswith(IN_USE)
            else f"a process is making {PurePosixPath(busy).name}"
        )
        raise ConfigError(
            f"{what} in {store.address}; wait for it to end, since what it has made so far has no "
            "record yet"
        )
    kinds = dict.fromkeys(leases, "lock")
    for name, files in groups.items():
        if name.endswith(".partial") and ARTIFACT.fullmatch(name.removesuffix(".partial")):
            kinds[name] = "unfinished"
        elif ARTIFACT.fullmatch(name) and name not in needed:
            kinds[name] = "artifact" if "manifest.json" in files else "unfinished"
    return [
        Entry(PurePosixPath(store.at(name)), kinds[name], sum(groups[name].values()), True)
        for name in sorted(kinds)
    ]


def listing(store, entries):
    """Return the entries as text, a line each but one for all locks, and their total."""
    lines = [
        f"{entry.size / 1e6:10.2f} MB  {entry.kind:10s}  {entry.path.name}"
        for entry in entries
        if entry.kind != "lock"
    ]
    locks = sum(entry.kind == "lock" for entry in entries)
    lines += [f"{0:10.2f} MB  {'lock':10s}  {locks} files that no process holds"] if locks else []
    total = (
        f"{sum(entry.size for entry in entries) / 1e6:.2f} MB in {len(entries)} of "
        f"{store.address} that no record refers to"
    )
    return "\n".join([*lines, total])


def clear(store, entries):
    """Remove those of the entries that are still unused; a link is removed and what it leads to is
    not.

    A study that begins meanwhile waits. Raises ConfigError if one has begun since, StoreError where
    the store cannot be written.
    """
    with writing(store.root, store.fix), store.lock(CLEARING):
        still = {entry.path for entry in unused(store)}
        for entry in entries:
            if entry.path in still:
                (store.drop(entry.path.name) if entry.away else remove(entry.path))


def _size(path):
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if p.is_symlink() or p.is_file())


def _require_free(path):
    try:
        with writing(path.parent), FileLock(path, timeout=0):
            pass
    except Timeout as error:
        what = (
            "a study runs"
            if path.name.startswith(f".{IN_USE}")
            else f"a process is making {path.stem[1:]}"
        )
        raise ConfigError(
            f"{what} in {path.parent}; wait for it to end, since what it has made so far has no "
            "record yet"
        ) from error
