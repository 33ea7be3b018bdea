"""Copies of host tensors to the device that do not block the host.

A copy from pageable memory blocks the host until the GPU has finished all queued work; a copy from
pinned memory does not.
"""

from collections.abc import Sequence

import torch


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a host tensor to `device` without blocking the host."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_together(
    tensors: Sequence[torch.Tensor], device: torch.device | str
) -> list[torch.Tensor]:
    """Copy host tensors of one dtype and any shapes to `device` in a single copy."""
    if not tensors or torch.device(device).type == "cpu":
        return list(tensors)
    flat = sent(torch.cat([one.flatten() for one in tensors]), device)
    parts = flat.split([one.numel() for one in tensors])
    return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def places(masks: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """Return where host masks are true, as index tensors on `device`.

    Indexing with a mask blocks the host until the number of rows is known; indexing with these does
    not.
    """
    return sent_together([mask.nonzero()[:, 0] for mask in masks], device)
