"""Where a result comes from: commit, versions, device."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata

from ..paths import home

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip_torch", "numpy")


@lru_cache
def provenance():
    """Return where a result comes from: commit, dirty flag, package versions, Python, device;
    asked once a process.
    """

    def git(*words):
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
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device,
    }
