"""Artifact folders: written under a temporary name, listed in a manifest, renamed, and never made twice."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from .config import home, paths

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip_torch", "numpy")


@lru_cache
def provenance():
    """Return where a result comes from: commit, dirty flag, package versions, Python, device; asked once a process."""
    def git(*words):
        done = subprocess.run(["git", "-C", str(home()), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return {"commit": git("rev-parse", "HEAD") or "unknown", "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "versions": {name: metadata.version(name) for name in PACKAGES}, "python": platform.python_version(), "device": device}


def digest(path):
    """Return the SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
    os.replace(part, path)


class Store:
    """A directory of artifacts; an artifact is a folder named by its key, whose manifest.json is written last."""

    def __init__(self, root=None):
        self.root = Path(root or paths()["store"])
        self.records = self.root / paths()["records"].name  # one JSON file per measured cell

    def folder(self, key):
        """Return the folder of a finished artifact; whether it exists is for `done` to say."""
        return self.root / key

    def manifest(self, key):
        """Return an artifact's manifest, or None if it is missing or damaged."""
        try:
            manifest = json.loads((self.folder(key) / "manifest.json").read_text())
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None

    def done(self, key):
        """Return whether an artifact is complete: its manifest is readable and every file has the recorded size."""
        manifest = self.manifest(key)
        folder = self.folder(key)
        return bool(manifest) and all((folder / name).is_file() and (folder / name).stat().st_size == size
                                      for name, (size, _) in manifest["files"].items())

    def make(self, key, inputs, build, **notes):
        """Return the artifact's folder, calling `build(work_folder)` first unless it is done; `notes` go into its manifest, not its key.

        The work folder `<key>.partial` survives a kill, so that `build` can go on from what it finds there. A second process
        that wants the same artifact waits for the first, and then finds it done.
        """
        if not self.done(key):
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{key}.lock"):
                if not self.done(key):
                    self._build(key, inputs, build, notes)
        return self.folder(key)

    def _build(self, key, inputs, build, notes):
        final, work = self.folder(key), self.root / f"{key}.partial"
        work.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        build(work)
        for stale in [*work.rglob("*.part"), work / "manifest.json"]:  # left by a process that was killed while it wrote
            stale.unlink(missing_ok=True)
        files = {str(p.relative_to(work)): (p.stat().st_size, digest(p)) for p in sorted(work.rglob("*")) if p.is_file()}
        manifest = {"key": key, "inputs": inputs, "files": files, "seconds": round(time.perf_counter() - start, 2),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **notes, **provenance()}
        write_json(work / "manifest.json", manifest)
        if final.exists():  # damaged: `done` said no
            shutil.rmtree(final)
        os.replace(work, final)
