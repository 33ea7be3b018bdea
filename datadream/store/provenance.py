"""Provenance of a result: commit, versions, device."""

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from typing import Any

from ..paths import home
from .cores import usable_cores

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip_torch", "numpy")


@lru_cache
def provenance() -> dict[str, Any]:
    """Return the commit, dirty flag, package versions, Python and device of this process.

    They are determined once.
    """

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(home()), *words], capture_output=True, text=True, check=False
            )
        except OSError:  # git is not installed, or may not be run
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {usable_cores()} cores"
    )
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device,
    }
