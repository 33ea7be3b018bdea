"""The identity of a model in an artifact's key."""

from functools import lru_cache

from ..store.files import digest
from .catalog import hub_id, local, revision


@lru_cache
def _digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [f"{p.relative_to(folder)}:{digest(p)[:12]}" for p in files]


def identity(name: str, part: str) -> list[str] | str:
    """Return what a stage's key holds of a model: its files' digests, or its hub id and commit.

    The digests are of a folder, whatever it is called. `part` is 'generator' or 'clip'.
    """
    folder = local(name, part)
    if folder is not None:
        return _digests(folder)
    # An open_clip name tells the architecture too.
    known = hub_id(name) if part == "generator" else name
    commit = revision(name, part)
    return f"{known}@{commit}" if commit else known
