"""Checkpoints with a digest, written atomically."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..paths import atomic_write
from ..store.files import remove


def _digest(tensors):
    """Return the SHA-256 of tensors on the CPU, name -> tensor: safetensors files have no check
    sum of their own.
    """
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_state(path, tensors, step):
    """Write `tensors` (name -> tensor) and the number of finished steps to one safetensors file,
    atomically.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with atomic_write(path) as part:
        save_file(tensors, part, {"step": str(step), "sha256": _digest(tensors)})


def load_state(path):
    """Return (tensors, finished steps) of a file that `save_state` wrote; None of one that is
    not there or damaged, which is removed.
    """
    try:
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
