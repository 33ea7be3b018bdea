"""Artifact folders, built under a temporary name, given a manifest and then atomically renamed.

A finished artifact is never made twice.
"""

import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import progress, signals
from ..paths import is_address, paths, umask_modes
from .files import (
    FULL,
    MOVE,
    StoreError,
    digest,
    holds,
    inside,
    json_files,
    reading,
    remove,
    try_writing,
    unlockable,
    write_json,
    writing,
)
from .provenance import provenance

# The names of the locks that keep studies and `gc` out of each other's way.
IN_USE, CLEARING = ("in-use-", "clearing")
NOTES = "notes"  # the folder in a work folder where parts leave notes on their batches
SALVAGE = "salvage"  # in the name of the lock for salvaging a damaged artifact


def parse(text: str | bytes) -> dict[str, Any] | None:
    """Parse the content of a manifest.json; None if it is damaged."""
    try:
        manifest = json.loads(text)
        sound = all(
            isinstance(size, int) and isinstance(sha, str)
            for size, sha in manifest["files"].values()
        )
        return manifest if sound and isinstance(manifest["seconds"], float) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


# folder of an artifact -> state (digests, sizes and times of its files) in which this process
# verified the digests
verified = {}


def _take_notes(work):
    """Return the notes that an artifact's parts left on their batches, and remove them."""
    found = []
    for file in json_files(work / NOTES):
        with suppress(ValueError), reading(file):  # a power cut may have left it empty
            found += json.loads(file.read_text())
    remove(work / NOTES)
    return found


class Store:
    """A folder of artifacts, each a folder named by its key with its manifest.json written last.

    `open.open_store` opens one or, for an address, an `address.RemoteStore`, which has the same
    methods.
    """

    fix = MOVE  # what helps against a full disk

    def __init__(self, root: str | Path) -> None:
        if is_address(root):
            raise StoreError(f"{root} is not a folder; use `open_store` to open one on an address")
        self.root = Path(root)
        self.address = str(self.root.absolute())  # what `open_store` takes, on any machine
        self.records = self.root / paths()["records"].name  # one JSON file per measured cell
        # One JSON file per classifier that a user keeps without a measurement.
        self.kept = self.root / paths()["kept"].name
        # Within `in_use`: why it could not set its mark, and where the run writes at its end.
        self._unmarked: StoreError | None = None
        self._places: tuple[Path, ...] = ()

    def folder(self, key: str) -> Path:
        """Return the folder of a finished artifact; `done` tells whether there is one."""
        return self.root / key

    def work(self, key: str) -> Path:
        """Return the folder in which an artifact is made; it survives a kill."""
        return self.root / f"{key}.partial"

    def manifest(self, key: str) -> dict[str, Any] | None:
        """Return an artifact's manifest, or None if it is missing or damaged.

        Raises StoreError if it exists but cannot be read.
        """
        file = self.folder(key) / "manifest.json"
        try:
            with reading(file):
                return parse(file.read_bytes())
        except OSError:
            return None

    def whole(self, key: str) -> bool:
        """True if an artifact looks complete, by its manifest and the sizes of its files."""
        return self._state(key, self.manifest(key)) is not None

    def done(self, key: str) -> bool:
        """True if an artifact is complete: `whole`, and with the recorded digests.

        Digests are computed once per process, and again if the size or time of a file has changed.
        Nothing is locked or written. Raises StoreError if a file exists but cannot be read, which
        does not count as damage.
        """
        return self._sound(key, self.manifest(key))

    def _sound(self, key, manifest):
        folder, state = self.folder(key).absolute(), self._state(key, manifest)
        if state is None or verified.get(folder) == state:
            return state is not None
        with ThreadPoolExecutor() as pool:
            right = all(
                pool.map(
                    lambda file: holds(folder / file[0], file[1][1]), manifest["files"].items()
                )
            )
        if right:
            verified[folder] = state
        return right

    def _state(self, key, manifest):
        """Return a hash of the digests, sizes and times of an artifact's files, or None if it is
        not complete.
        """
        if manifest is None:
            return None
        folder = self.folder(key)
        try:
            with reading(folder):
                stats = [(folder / name).stat() for name in ("manifest.json", *manifest["files"])]
        except (OSError, ValueError):
            return None
        sizes, digests = (
            zip(*manifest["files"].values(), strict=True) if manifest["files"] else ((), ())
        )
        return (
            hash((digests, *((s.st_size, s.st_mtime_ns) for s in stats)))
            if tuple(s.st_size for s in stats[1:]) == sizes
            else None
        )

    def make(
        self, key: str, inputs: dict[str, Any], build: Callable[[Path], object], **notes: Any
    ) -> Path:
        """Return the artifact's folder, calling `build(work_folder)` first unless it is done.

        `notes` go into its manifest, not its key. The work folder `<key>.partial` survives a kill,
        so that `build` can resume from it. A second process that wants the same artifact waits for
        the first, and then finds it done. Raises StoreError, before anything is computed, if the
        store cannot be written.
        """
        if not self.done(key):
            self.require_writable()
            with writing(self.root, self.fix), self.lock(key):
                signals.check()
                if not self.done(key):
                    with progress.making(key):
                        self._build(key, inputs, build, notes)
        progress.found(key)
        return self.folder(key)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of this name, which only one process can hold at a time.

        Raises Stopped if this process is asked to end while it waits, StoreError if there is a link
        or a folder in the lock's place.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / f".{name}.lock"
        lock = FileLock(file, mode=self._lock_mode())
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                signals.check()
            except OSError as error:
                if file.is_symlink() or file.is_dir():
                    raise StoreError(
                        f"{file} is a {'link' if file.is_symlink() else 'folder'}, where a lock "
                        "is a plain file; remove it"
                    ) from error
                if error.filename is None and error.errno not in FULL:  # from `flock` itself
                    raise unlockable(self.root, error, self.fix) from error
                raise
        try:
            yield
        finally:
            lock.release()

    def _lock_mode(self):
        """Return the mode of a new lock file: whoever may write to the store may lock it, whatever
        its creator's umask.
        """
        return stat.S_IMODE(self.root.stat().st_mode) & 0o666

    @contextmanager
    def in_use(self, *places: Path) -> Iterator[None]:
        """Keep `gc` from removing anything meanwhile, since unfinished cells have no record yet.

        `places` are the folders that the run writes to at its end, which `require_writable` tests
        first. If the mark cannot be set, finished artifacts are readable, and `make` raises
        StoreError.
        """
        before = self._unmarked, self._places
        with ExitStack() as marks:
            self._unmarked, self._places = None, places
            try:
                # Wait for a removal that has begun.
                with writing(self.root, self.fix), self.lock(CLEARING):
                    marks.enter_context(self.mark(f"{IN_USE}{uuid.uuid4().hex}"))
            except StoreError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                self._unmarked = error
            try:
                yield
            finally:
                self._unmarked, self._places = before

    def require_writable(self) -> None:
        """Test all places that a run will write to, before it computes anything.

        Raises StoreError if one cannot be written, or if `in_use` could not set its mark: another
        user's `gc` could then remove what the run makes.
        """
        if self._unmarked:
            raise StoreError(
                f"{self._unmarked}. Nothing was computed: the run could not be marked as one that "
                "uses the store, so that `datadream gc` could remove what it makes"
            ) from self._unmarked
        with writing(self.root, self.fix):
            self.root.mkdir(parents=True, exist_ok=True)
            for place in (self.root, *self._places):
                try_writing(place)

    @contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Signal to others that something of this name is running; nobody waits for it."""
        mark = FileLock(self.root / f".{name}.lock", mode=self._lock_mode())
        mark.acquire()
        try:
            yield
        finally:
            Path(mark.lock_file).unlink(missing_ok=True)
            mark.release()

    def _build(self, key, inputs, build, notes):
        final, work = self.folder(key), self.work(key)
        work.mkdir(parents=True, exist_ok=True)
        for place in (work, *(path for path in work.rglob("*") if path.is_dir())):
            try_writing(place)  # another user may have begun it
        self.salvage(key)
        start = time.perf_counter()
        build(work)
        told = _take_notes(work)
        if told:
            notes["batches"] = list(dict.fromkeys([*notes.get("batches", []), *told]))
        # Left by a process that was killed while it wrote.
        for stale in [*work.rglob("*.part"), work / "manifest.json"]:
            stale.unlink(missing_ok=True)
        umask_modes(work)  # whatever wrote it: a library, or a user's own method
        files = {
            str(p.relative_to(work)): (p.stat().st_size, digest(p))
            for p in sorted(work.rglob("*"))
            if p.is_file()
        }
        manifest = {
            "key": key,
            "inputs": inputs,
            "files": files,
            "seconds": round(time.perf_counter() - start, 2),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **notes,
            **provenance(),
        }
        write_json(work / "manifest.json", manifest)
        remove(final)  # does nothing unless someone else made it too
        os.replace(work, final)
        verified[final.absolute()] = self._state(key, manifest)

    def salvage(self, key: str) -> None:
        """Move the undamaged files of a damaged artifact into its work folder; remove the rest.

        `build` resumes from there. A finished artifact stays: a process that does not wait for this
        one may have completed it meanwhile. Raises StoreError, and changes nothing, if a file
        cannot be read.
        """
        folder, work = self.folder(key), self.work(key)
        if not folder.exists() and not folder.is_symlink():
            return
        # Every build salvages before it begins, so none can finish while this lock is held.
        with Store.lock(self, f"{key}-{SALVAGE}"):
            manifest = Store.manifest(self, key)
            if self._sound(key, manifest):
                return
            listed = manifest["files"] if manifest and not folder.is_symlink() else {}
            sound = [  # all are checked before the first is moved
                name
                for name, (_, sha) in listed.items()
                if inside(name) and not holds(work / name, sha) and holds(folder / name, sha)
            ]
            for name in sound:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / name, work / name)
            remove(folder)

    def make_part(
        self, key: str, part: str, files: Sequence[Path], build: Callable[[], list[str]]
    ) -> None:
        """Make some files of an artifact's work folder and share them, for `make` to find there.

        `build()` writes the files and returns notes on its batches, which go into the artifact's
        manifest. Raises StoreError if the store cannot be written.
        """
        self.require_writable()
        with writing(self.root, self.fix), self.lock(f"{key}-{part}"):
            # Another process may have made the part, or the whole, while this one waited.
            if self.done(key) or self.gather(key, part):
                return
            self.salvage(key)
            told = self.work(key) / NOTES / f"{part}.json"
            if notes := build():
                told.parent.mkdir(parents=True, exist_ok=True)
                write_json(told, notes)
            self.share(key, part, [*files, *([told] if told.exists() else [])])

    def share(self, key: str, part: str, files: Iterable[Path]) -> None:
        """Share `files` of an artifact's work folder with other machines, as its `part`.

        Does nothing in a folder, which the machines share.
        """

    def gather(self, key: str, part: str) -> bool:
        """Fetch a part that another machine has shared into the work folder; True if it was there.

        Always False in a folder.
        """
        return False

    def keys(self) -> list[str]:
        """List the names that may be finished artifacts, sorted."""
        with reading(self.root):
            return (
                sorted(path.name for path in self.root.iterdir() if path.is_dir())
                if self.root.is_dir()
                else []
            )

    def save(self, file: Path, value: object) -> None:
        """Write a record or a note, a JSON file in `records` or `kept`.

        Raises StoreError if it cannot be written.
        """
        with writing(self.root, self.fix):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, value)

    def refresh(self, file: Path) -> Path:
        """Update the local file of a record or a note, and return its path; it need not exist."""
        return file

    def refresh_all(self, folder: Path) -> list[Path]:
        """List the files of all records or of all notes, up to date and sorted.

        Raises StoreError if their folder cannot be read.
        """
        return json_files(folder)
