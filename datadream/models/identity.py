"""What the key of an artifact knows of a model."""

from functools import lru_cache

from ..store.files import digest
from .catalog import hub_id, local, revision


@lru_cache
def _digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [f"{p.relative_to(folder)}:{digest(p)[:12]}" for p in files]


def identity(name, part):
    """Return what a stage's key knows of a model: a digest of a folder's files, whatever it is
    called, or the hub's id and commit.
    """
    folder = local(name, part)
    if folder is not None:
        return _digests(folder)
    # An open_clip name tells the architecture too.
    known = hub_id(name) if part == "generator" else name
    commit = revision(name, part)
    return f"{known}@{commit}" if commit else known
