"""The identity of a model in an artifact's key."""

from functools import lru_cache

from ..store.files import digest
from .catalog import IP_FILES, hub_of, local, revision


@lru_cache
def _digests(folder, patterns):
    files = sorted({p for pattern in patterns for p in folder.rglob(pattern) if p.is_file()})
    return [f"{p.relative_to(folder)}:{digest(p)[:12]}" for p in files]


def identity(name: str, part: str) -> list[str] | str:
    """Return what identifies a model in a key: its files' digests, or its hub id and commit.

    Digests are used for a local folder, so that its name does not matter. `part` is 'generator',
    'clip' or 'ip-adapter'.
    """
    folder = local(name, part)
    if folder is not None:
        return _digests(folder, IP_FILES if part == "ip-adapter" else ("*",))
    # An open_clip name includes the architecture.
    known = name if part == "clip" else hub_of(name, part)
    commit = revision(name, part)
    return f"{known}@{commit}" if commit else known
