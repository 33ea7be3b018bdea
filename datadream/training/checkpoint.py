"""Checkpoints with a digest, written atomically."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..paths import atomic_write
from ..store.files import reading, remove


def _digest(tensors):
    """Return the SHA-256 of CPU tensors by name; safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_state(path: str | Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write tensors and the number of finished steps to one safetensors file, atomically."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with atomic_write(path) as part:
        save_file(tensors, part, {"step": str(step), "sha256": _digest(tensors)})


def load_state(path: str | Path) -> tuple[dict[str, Tensor], int] | None:
    """Return (tensors, finished steps) of a file that `save_state` wrote.

    None if it is absent or damaged; a damaged file is removed. Raises StoreError if it exists but
    cannot be read.
    """
    try:
        # safetensors (0.8) reports a file without read permission as missing.
        with reading(path), open(path, "rb"):
            pass
        with safe_open(path, "pt") as file:
            tensors, notes = (
                {name: file.get_tensor(name) for name in file.keys()},
                file.metadata() or {},
            )
        if _digest(tensors) != notes.get("sha256"):
            raise ValueError("its content has not the digest that it was written with")
        return tensors, int(notes["step"])
    except FileNotFoundError:
        return None
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        tqdm.write(f"{path} is damaged ({error}); the training begins anew")
        remove(Path(path))
        return None
