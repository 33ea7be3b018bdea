"""Host tensors on their way to the device, without a wait of the host.

A copy from pageable memory makes the host wait until the GPU has done all that it was asked before;
one from pinned memory does not.
"""

from collections.abc import Sequence

import torch


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor of the host on `device`; the host does not wait for the copy."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_together(
    tensors: Sequence[torch.Tensor], device: torch.device | str
) -> list[torch.Tensor]:
    """Return tensors of the host, of one dtype and any shapes, on `device`, in one copy."""
    if not tensors or torch.device(device).type == "cpu":
        return list(tensors)
    flat = sent(torch.cat([one.flatten() for one in tensors]), device)
    parts = flat.split([one.numel() for one in tensors])
    return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def places(masks: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """Return where masks of the host are true, as index tensors on `device`.

    Indexing with a mask makes the host wait for its number of rows, indexing with these does not.
    """
    return sent_together([mask.nonzero()[:, 0] for mask in masks], device)
