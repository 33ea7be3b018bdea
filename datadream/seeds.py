"""Seeds that depend only on what they are used for."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed that depends on every integer or string in `parts`.

    It is stable across machines and versions.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def forked_rng() -> Iterator[None]:
    """Restore torch's global generators, those of the CPU and the current GPU, on exit.

    `torch.random.fork_rng` alone would also initialise and restore all other GPUs of the machine.
    """
    import torch

    used = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(used, device_type="cuda"):
        yield
