"""A store at an address that fsspec resolves, such as object storage.

Artifacts are uploaded with the manifest last, and read from copies on this machine.
"""

import json
import os
import uuid
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from ..errors import ConfigError
from ..paths import atomic_write, copies, part_of
from .artifacts import SALVAGE, Store, parse, verified
from .files import FULL, MISSING, StoreError, digest, holds, inside, remove, write_json, writing

PARALLEL = 16  # concurrent transfers: most objects are small, so latency dominates


def resolve(address: str) -> tuple[Any, str]:
    """Resolve an address to (fsspec file system, path in it).

    Raises ConfigError, with the fix, if it cannot be resolved here.
    """
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    # Unlike object stores, a local folder needs a file's parent folders to be created.
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        fs, path = url_to_fs(address, **options)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or protocol
        raise ConfigError(
            f"the store {address} needs the package {package}, which is not installed here; `pip "
            f"install {package}`, or set DATADREAM_STORE to a folder ({error})"
        ) from error
    except ValueError as error:
        if protocol in available_protocols():
            raise ConfigError(
                f"the store {address} is not an address: {error}; give one such as "
                "s3://bucket/prefix, or a folder"
            ) from error
        raise ConfigError(
            f"the store {address} has the protocol {protocol!r}, which fsspec does not know; give "
            "one such as s3://, gs://, abfs:// or file://, or a folder, in DATADREAM_STORE"
        ) from error
    return fs, path.rstrip("/")


@contextmanager
def reaching(address: str, own: Collection[int] = ()) -> Iterator[None]:
    """Turn whatever a file system raises into a StoreError that names the address.

    Error numbers in `own` concern this machine's disk, and pass unchanged.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # Besides OSError, each backend has its own errors for credentials, time-outs and refusals.
        if getattr(error, "errno", None) in own:
            raise
        raise StoreError(
            f"{address} cannot be read or written ({type(error).__name__}: {error}). Check that "
            "it exists, its credentials and the network, and run again; what is finished is kept"
        ) from error


class _DamagedError(Exception):
    """A fetched file is missing or has the wrong digest."""


class RemoteStore(Store):
    """A store at an address; `root` is a folder on this machine, for builds and copies.

    An artifact is its files under `<key>/` plus their manifest, which is uploaded last: object
    stores have no atomic rename, so without its manifest an artifact is not done. A copy is
    verified against the manifest's sizes and digests when it is fetched, and read from then on; if
    it does not match, the artifact is not done, and is recomputed. If two machines race for an
    artifact, both make it; if two GPUs made different bytes, a mixture fails its digests. A killed
    build resumes only on the machine where it ran, except for the parts that `share` has uploaded.
    """

    fix = "move the copies of what lies elsewhere with DATADREAM_CACHE"

    def __init__(self, address: str) -> None:
        super().__init__(copies(address))
        self.address, (self.fs, self.base) = address, resolve(address)
        self._probed = False

    def probe(self) -> None:
        """Check that the address is usable, by writing and removing a small object.

        Raises StoreError if it is not.
        """
        path = self.at(f"probe-{uuid.uuid4().hex}")
        with reaching(self.address):
            self.fs.pipe_file(path, b"")
            self.fs.rm_file(path)

    def require_writable(self) -> None:
        """Test all places that a run will write to, here and, once per process, at the address."""
        super().require_writable()
        if not self._probed:  # else hours of work could end at an address that is not writable
            self.probe()
            self._probed = True

    def at(self, *parts: str) -> str:
        """Return the file-system path of something below the address."""
        return "/".join((self.base, *parts))

    def objects(self, *parts: str) -> dict[str, int]:
        """Return path -> bytes of all objects below the address, or below a folder there."""
        return {name: info["size"] for name, info in self.listed(*parts).items()}

    def listed(self, *parts: str) -> dict[str, dict[str, Any]]:
        """Return path -> fsspec's entry of all objects below the address, or a folder there."""
        top = self.at(*parts)
        with reaching(self.address):
            self.fs.invalidate_cache()  # some backends cache listings, while other machines write
            try:
                self._refuse_hidden(top)
                found = self.fs.find(top, detail=True)
            except FileNotFoundError:
                found = {}
        return {name[len(top) + 1 :]: info for name, info in found.items()}

    def _refuse_hidden(self, top):
        """Raise OSError if a local folder cannot be read: fsspec's `find` silently skips it, and
        what it holds would be recomputed or removed.
        """

        def refuse(error: OSError) -> None:
            if error.errno not in MISSING:
                raise error

        if self.address.partition("://")[0] in ("file", "local"):
            for _ in os.walk(top, onerror=refuse):
                pass

    def _content(self, *parts):
        with reaching(self.address):
            try:
                return self.fs.cat_file(self.at(*parts))
            except FileNotFoundError:
                return None

    def manifest(self, key: str) -> dict[str, Any] | None:
        """Return an artifact's manifest at the address; None if missing or damaged."""
        content = self._content(key, "manifest.json")
        manifest = None if content is None else parse(content)
        return manifest if manifest and all(inside(name) for name in manifest["files"]) else None

    def whole(self, key: str) -> bool:
        """True if an artifact looks complete at the address, by its manifest and object sizes."""
        return self._listed(key, self.manifest(key))

    def _listed(self, key, manifest):
        if manifest is None:
            return False
        sizes = self.objects(key)
        return all(sizes.get(name) == size for name, (size, _) in manifest["files"].items())

    def done(self, key: str) -> bool:
        """True if an artifact is complete: `whole`, and copied here with the recorded digests.

        It is fetched first, unless it is already here.
        """
        manifest = self.manifest(key)
        return self._listed(key, manifest) and (
            self._sound(key, manifest) or self._fetch(key, manifest)
        )

    def _fetch(self, key, manifest):
        """Fetch an artifact and return whether it matches the manifest; if not, nothing is kept."""
        part, folder = self.root / f"{key}.fetched", self.folder(key)
        with writing(self.root, self.fix):
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{key}-fetch.lock", mode=self._lock_mode()):
                if self._sound(key, manifest):  # another process on this machine was first
                    return True
                remove(part)
                part.mkdir()
                right = self._download(key, part, manifest["files"])
                if right:
                    write_json(part / "manifest.json", manifest)
                    remove(folder)
                    os.replace(part, folder)
                    verified[folder.absolute()] = self._state(key, manifest)
                remove(part)
        return right

    def _download(self, name, folder, files):
        """Fetch `files` (path -> size and digest) below `name` into a folder, and return whether
        all of them match.
        """

        def get(file: str) -> bool:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(_DamagedError), atomic_write(target) as part:
                with reaching(self.address, FULL), suppress(FileNotFoundError):
                    self.fs.get_file(self.at(name, file), str(part))
                if not holds(part, files[file][1]):
                    raise _DamagedError
                return True
            return False

        with ThreadPoolExecutor(PARALLEL) as pool:
            return all(list(pool.map(get, files)))  # a list, so that one failure stops no other

    def salvage(self, key: str) -> None:
        """Fetch the undamaged files of a damaged artifact into its work folder.

        `build` resumes from there.
        """
        super().salvage(key)
        manifest, work = self.manifest(key), self.work(key)
        if manifest is None:  # as for every set that is made for the first time
            return
        # If several slices find it damaged, only one fetches.
        with Store.lock(self, f"{key}-{SALVAGE}"):
            self._download(
                key,
                work,
                {
                    name: file
                    for name, file in manifest["files"].items()
                    if not holds(work / name, file[1])
                },
            )

    def _build(self, key, inputs, build, notes):
        before = self.manifest(key)
        # Otherwise it was made here before but not uploaded, or was damaged there since.
        if not self._sound(key, super().manifest(key)):
            for file in self.objects(self.work(key).name):
                if file.endswith(".json") and "/" not in file:
                    self.gather(key, file.removesuffix(".json"))
            super()._build(key, inputs, build, notes)
        folder, work = self.folder(key), self.work(key).name
        manifest = super().manifest(key)
        assert manifest is not None  # it was written above, or found sound
        there = self.manifest(key)
        # Another machine may have made the same meanwhile, and someone may be reading it.
        same = there and there != before and there["files"] == manifest["files"]
        if not (same and self._listed(key, there)):
            if there and there["files"] != manifest["files"]:
                self.drop(key)  # different bytes, as another device may produce
            self._upload(folder, key, manifest["files"])
            self._put(folder / "manifest.json", key, "manifest.json")
        self.drop(work)

    def _upload(self, folder, name, files):
        def put(file: str) -> None:
            with reaching(self.address):
                self.fs.put_file(str(folder / file), self.at(name, file))

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(put, files))

    def _put(self, file, *parts):
        """Upload a small file under a temporary name and move it, so that nobody reads a partial
        upload.
        """
        path = self.at(*parts)
        part = part_of(path)  # another machine may write the same file
        with reaching(self.address):
            self.fs.put_file(str(file), part)
            self.fs.mv(part, path)

    def drop(self, name: str) -> None:
        """Remove an artifact, or the shared parts of one, from the address, if it is there.

        The manifest goes first.
        """
        with reaching(self.address):
            self.fs.invalidate_cache()
            for path, below in ((self.at(name, "manifest.json"), False), (self.at(name), True)):
                with suppress(FileNotFoundError, NotADirectoryError):
                    self.fs.rm(path, recursive=below)

    def share(self, key: str, part: str, files: Iterable[Path]) -> None:
        """Upload `files` of an artifact's work folder as its `part`.

        A list of their sizes and digests is uploaded last.
        """
        work = self.work(key)
        found = {
            file.relative_to(work).as_posix(): (file.stat().st_size, digest(file)) for file in files
        }
        self._upload(work, work.name, found)
        listing = self.root / f".{key}-{part}.json"
        write_json(listing, found)
        self._put(listing, work.name, f"{part}.json")
        listing.unlink()

    def gather(self, key: str, part: str) -> bool:
        """Fetch a part that a machine has shared into the work folder; True if it is complete.

        It is complete if all of its files are there, undamaged.
        """
        work, content = self.work(key), self._content(self.work(key).name, f"{part}.json")
        files = _files(content)
        if not files:
            return False
        missing = {name: value for name, value in files.items() if not holds(work / name, value[1])}
        with writing(self.root, self.fix):
            return self._download(work.name, work, missing)

    def keys(self) -> list[str]:
        """List the names at the address that may be finished artifacts, sorted."""
        with reaching(self.address):
            self.fs.invalidate_cache()
            try:
                return sorted(
                    PurePosixPath(name).name for name in self.fs.ls(self.base, detail=False)
                )
            except FileNotFoundError:
                return []

    def save(self, file: Path, value: object) -> None:
        """Write a record or a note here and to the address.

        Raises StoreError if either cannot be written.
        """
        super().save(file, value)
        self._put(file, *file.relative_to(self.root).parts)

    def refresh(self, file: Path) -> Path:
        """Update the local file of a record or a note from the address, and return it.

        It is removed if the address has none.
        """
        content = self._content(*file.relative_to(self.root).parts)
        if content is None:
            file.unlink(missing_ok=True)
        elif not file.exists() or file.read_bytes() != content:
            with writing(self.root, self.fix):
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as part:
                    part.write_bytes(content)
        return file

    def refresh_all(self, folder: Path) -> list[Path]:
        """List the files of all records or of all notes at the address, up to date and sorted.

        Local copies of others are removed.
        """
        names = {
            name for name in self.objects(folder.name) if name.endswith(".json") and "/" not in name
        }
        for file in folder.glob("*.json"):
            if file.name not in names:
                file.unlink(missing_ok=True)
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(self.refresh, [folder / name for name in sorted(names)]))


def _files(content):
    """Return the list that `share` wrote, path -> (size, digest); {} if there is none or it is
    damaged.
    """
    try:
        files = json.loads(content)
        return (
            files
            if all(inside(name) and isinstance(sha, str) for name, (_, sha) in files.items())
            else {}
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
