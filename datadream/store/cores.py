"""How many CPU cores this process may use; in a container or a batch job that is not all."""

import math
import os
import re
from pathlib import Path


def usable_cores(proc: str | Path = "/proc/self") -> int:
    """Return the CPU cores that this process may use, at least one.

    The affinity (taskset, Slurm) and the cgroup quota (Docker, Kubernetes) limit it; a fraction of
    a core counts as one. `proc` is the process's folder in procfs; without it, as on macOS, there
    is no quota.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have none
        allowed = os.cpu_count() or 1
    allowed = min(allowed, os.cpu_count() or 1)
    return max(1, math.ceil(min(allowed, _quota(Path(proc)))))


def own_cores() -> int:
    """Return the cores for this process alone: `usable_cores`, or a GPU's share of them.

    A node with several visible GPUs runs one process on each; if each started threads for all
    cores, they would compete.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return max(1, usable_cores() // max(1, gpus))


def _quota(proc):
    """Return the cores that the cgroups of a process allow it, infinity without a limit.

    A parent's limit applies to its children, so the path is followed to the top.
    """
    granted = [math.inf]
    for folder, top in _groups(proc):
        while True:
            granted.append(_limit(folder))
            if folder in (top, folder.parent):
                break
            folder = folder.parent
    return min(granted)


def _groups(proc):
    """Yield (the process's folder in a hierarchy with a CPU controller, that hierarchy's top)."""
    mounted = [line.split() for line in _text(proc / "mountinfo").splitlines()]
    for line in _text(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for words in mounted:
            # id, parent, device, root, place, options, ..., "-", type, source, options of the type
            kind, options = words[words.index("-") + 1], words[-1].split(",")
            new = not controllers and kind == "cgroup2"
            old = kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options
            if new or old:
                root, top = (_plain(word) for word in words[3:5])
                inside = os.path.relpath(path, root)
                # Inside a container the path may be the host's, of which only the end is mounted.
                yield (top if inside.startswith("..") else top / inside), top


def _plain(word):
    """Decode a path from mountinfo, where a space is written as \\040."""
    return Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word))


def _limit(folder):
    """Return the cores that one cgroup allows, from version 2's file or version 1's two."""
    quota, period = [*_text(folder / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    try:
        quota, period = int(quota), int(period)
    except ValueError:  # "max", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _text(file):
    try:
        return file.read_text()
    except (OSError, UnicodeError):
        return ""
