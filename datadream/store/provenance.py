"""Provenance of a result: commit, versions, device."""

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .cores import usable_cores

RESULTS = ("book/study", "book/samples", "book/sets", "benchmarks/results")
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip_torch", "numpy")


@lru_cache
def provenance() -> dict[str, Any]:
    """Return the commit, dirty flag, package versions, Python and device of this process.

    They are determined once. The commit is that of the checkout that holds this package; for an
    installed package, or without git, it is "unknown", and `source` says why.
    """
    import torch

    commit, dirty, source = _checkout()

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {usable_cores()} cores"
    )
    return {
        "commit": commit,
        "dirty": dirty,
        "source": source,
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device,
    }


def _checkout():
    """Return (commit, dirty flag, source) of the code of this package."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(package), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    installed = f"installed, version {_version('datadream')}"
    try:
        # The environment may lie in another repository of the user's, whose commit is irrelevant.
        if git("ls-files", "--error-unmatch", "__init__.py") is None:
            return "unknown", False, f"{installed}, or a copy without its repository"
        # Results kept since the commit are no change to the code.
        code = ("--", "..", *(f":(top,exclude){folder}" for folder in RESULTS))
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno", *code)
    except OSError as error:
        return "unknown", False, f"git cannot be run ({error.strerror}); {installed}"
    return commit or "unknown", bool(changes), "checkout"


def _version(name):
    """Return the version of an installed package, "unknown" if it is merely on the path."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
