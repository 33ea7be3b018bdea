"""Store operations per kind of task, counted on a run of the embedded models.

Counts every Python call on a path in the store's folder.
"""

import contextlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from datadream.engines import on_ray
from datadream.methods import recipes
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store, verified

SIZES = (2, 4)  # images per class of the two runs, whose difference gives the cost per image
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_counts, _root = None, ""  # of the run being counted; an audit hook cannot be removed


def _note(event, arguments):
    if _counts is None or event not in (
        "open",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.scandir",
        "os.listdir",
    ):
        return
    path = arguments[0] if isinstance(arguments[0], (str, os.PathLike)) else ""
    if not os.fspath(path).startswith(_root):
        return
    if str(path).endswith(".lock"):
        kind = "lock"
    elif event == "open":
        kind = "put" if arguments[2] & WRITING else "get"
    else:
        # A rename; on an object store it is a copy and a removal.
        kind = "list" if event in ("os.scandir", "os.listdir") else "put"
    _counts[kind] += 1


@contextlib.contextmanager
def counting(root):
    """Yield a Counter of exists, get, put, list and lock operations under `root`.

    It fills within the context. Files opened by compiled libraries are not seen.
    """
    global _counts, _root
    if not hasattr(counting, "hooked"):
        sys.addaudithook(_note)
        counting.hooked = True
    stat, _counts, _root = os.stat, Counter(), str(root)

    def noted(path, *args, **kwargs):
        if (
            isinstance(path, (str, os.PathLike))
            and str(path).startswith(_root)
            and _counts is not None
        ):
            _counts["exists"] += 1
        return stat(path, *args, **kwargs)

    os.stat = noted
    try:
        yield _counts
    finally:
        os.stat, _counts = stat, None


def _run(images, root):
    """Return kind of task -> (number of its images, Counter).

    The kinds are an adapter, a slice, assembling a set, and checking one that is already done.
    """
    small = {"adapt.epochs": 1, "adapt.warmup": 1, "generate.images": images, "generate.steps": 1}
    recipe, store, found = (
        recipes.recipe("mini", small, dataset="optdigits", method="dset", shots=1),
        Store(root),
        {},
    )
    for task in on_ray.tasks([recipe], store).values():
        if task.kind != "cell":
            with counting(root) as counts:
                on_ray.work(task, str(root))
            found[task.kind] = images if task.kind == "slice" else 0, counts
    cell = Cell(recipe)
    whole = images * len(cell.dataset.classes)
    with counting(root) as counts:
        cell.make("generate", store)
    found["assemble"] = whole, counts
    verified.clear()  # as in a new process
    with counting(root) as counts:
        assert store.done(cell.key("generate"))
    return found | {"check": (whole, counts)}


def count():
    """Return kind of task -> operation -> [calls of the task itself, calls per image]."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = (_run(images, Path(folder) / str(images)) for images in SIZES)
    found = {}
    for what, (images, counts) in small.items():
        more, other = large[what]
        slopes = {
            kind: (other[kind] - counts[kind]) / (more - images) if more > images else 0.0
            for kind in counts | other
        }
        found[what] = {
            kind: [counts[kind] - slope * images, slope] for kind, slope in slopes.items()
        }
    return found
