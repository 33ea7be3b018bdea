"""Garbage collection of the store.

It finds artifacts that no record refers to, unfinished builds, and locks that nobody holds.
"""

import json
import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ConfigError, DataError
from .address import RemoteStore
from .artifacts import CLEARING, IN_USE, SALVAGE, Store
from .files import CLOSED, StoreError, owner, reading, remove, writing
from .keys import stage_of_key

# A key; a folder with any other name is not this program's to remove.
ARTIFACT = re.compile(r"[a-z]+-[0-9a-f]{16}")
# what a lock is on: an artifact, a slice or the salvage of one, a study
HELD = rf"({ARTIFACT.pattern}(-\d+-\d+|-{SALVAGE})?|{IN_USE}\w+)"
LOCK = re.compile(rf"\.{HELD}\.lock")
LEASE = re.compile(rf"{HELD}\.lease(\.dead)?")  # left on an address by versions before 0.2
DAYS = 14  # anything younger may belong to a study on another machine; git's default too

PART = re.compile(r".+\.[0-9a-f]{32}\.part")  # left by a process that was killed while it wrote


@dataclass(frozen=True)
class Entry:
    """An entry of the store that could be removed: its path, kind and size in bytes.

    The kinds are 'artifact', 'unfinished', 'lock' and 'copy'. `away`: it is at the store's address
    rather than on this machine.
    """

    path: PurePath
    kind: str
    size: int
    away: bool = False


def referred(store: Store) -> set[str]:
    """Return the keys that the records and the notes on kept classifiers refer to.

    Raises DataError if one is damaged, StoreError if one cannot be read: what it refers to is then
    unknown.
    """
    keys = set()
    for file in [*store.refresh_all(store.records), *store.refresh_all(store.kept)]:
        try:
            with reading(file):
                text = file.read_text()
            keys |= {str(name) for name in json.loads(text)["artifacts"].values()}
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


def unused(store: Store, days: float = DAYS, stages: Collection[str] | None = None) -> list[Entry]:
    """List what could be removed: unused artifacts, partial builds, temporary files, free locks.

    The entries are sorted by name. Whatever was written in the last `days` is spared, since a study
    on another machine may have made it and have no record yet. Anything else in the store is left
    out, and so are artifacts of stages other than `stages` (None: all), which may be another
    program's. For a store at an address, the address and the local copies are searched. Raises
    ConfigError while a study runs or an artifact is being made on this machine, StoreError if
    something cannot be read.
    """
    with reading(store.root):
        return _unused(store, days, stages)


def _unused(store, days, stages):
    needed, before = referred(store), time.time() - 86400 * days

    def ours(name: str) -> bool:
        found = ARTIFACT.fullmatch(name)
        return bool(found) and (stages is None or stage_of_key(name) in stages)

    own, found = "copy" if isinstance(store, RemoteStore) else "artifact", []
    for path in sorted(store.root.iterdir()) if store.root.is_dir() else []:
        if LOCK.fullmatch(path.name):
            _require_free(path)
            found.append(Entry(path, "lock", path.lstat().st_size))
        elif path.suffix in (".partial", ".fetched") and ours(path.stem):
            if path.stem not in needed and _written(path) <= before:
                found.append(Entry(path, "unfinished", _size(path)))
        elif ours(path.name) and path.name not in needed:
            if _written(path) <= before:
                found.append(Entry(path, own, _size(path)))
    for folder in (store.root, store.records, store.kept):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if PART.fullmatch(path.name) and _written(path) <= before:
                found.append(Entry(path, "unfinished", path.lstat().st_size))
    return found + (_away(store, needed, before, ours) if isinstance(store, RemoteStore) else [])


def _away(store, needed, before, ours):
    """Return the entries at a store's address whose last object was written before a time."""
    groups = {}
    for name, info in store.listed().items():
        top, _, rest = name.partition("/")
        groups.setdefault(top, {})[rest] = info
    found = []
    for name, files in sorted(groups.items()):
        if LEASE.fullmatch(name):
            kind = "lock"
        elif name.endswith(".partial") and ours(name.removesuffix(".partial")):
            kind = "unfinished"
        elif ours(name) and name not in needed:
            kind = "artifact" if "manifest.json" in files else "unfinished"
        else:
            continue
        if max(map(object_time, files.values())) <= before:
            size = sum(info["size"] for info in files.values())
            found.append(Entry(PurePosixPath(store.at(name)), kind, size, True))
    return found


def object_time(info: dict[str, Any]) -> float:
    """Return when an object was written, in seconds since 1970.

    If its file system does not say, that is now, so that it is spared.
    """
    told = (info.get(name) for name in ("LastModified", "last_modified", "updated", "mtime"))
    value = next((one for one in (*told, info.get("created")) if one is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    return float(value) if isinstance(value, int | float) else time.time()


def _written(path):
    """Return when a file, or the last file of a folder, was written, in seconds since 1970."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_mtime
    times = (p.lstat().st_mtime for p in path.rglob("*") if not p.is_dir())
    return max(times, default=path.stat().st_mtime)


def listing(store: Store, entries: Sequence[Entry]) -> str:
    """Format the entries as text, one line each, one for all locks, and one for the total."""
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


def clear(
    store: Store,
    entries: Iterable[Entry],
    days: float = DAYS,
    stages: Collection[str] | None = None,
) -> None:
    """Remove the entries that are still unused; of a link, only the link.

    A study that begins meanwhile waits. Raises ConfigError if one has begun since the listing,
    StoreError if the store cannot be written or, after all others are gone, if an entry may not be
    removed.
    """
    refused = []
    with writing(store.root, store.fix), store.lock(CLEARING):
        still = {entry.path for entry in unused(store, days, stages)}
        for entry in (one for one in entries if one.path in still):
            try:
                if entry.away and isinstance(store, RemoteStore):
                    store.drop(entry.path.name)
                else:
                    remove(Path(entry.path))
            except OSError as error:
                if error.errno not in CLOSED:
                    raise
                refused.append((entry.path, error))
    if refused:
        path, error = refused[0]
        raise StoreError(
            f"{len(refused)} entries could not be removed, the first {path} ({error.strerror}); "
            f"the others are gone. Let {owner(Path(path))} run `datadream gc`"
        ) from error


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
