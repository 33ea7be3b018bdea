"""Data-parallel training: several processes share every batch of one adapter.

`accelerate launch -m datadream adapt` starts them. The model is not wrapped in torch's
DistributedDataParallel, which reduces gradients during the backward pass: a process that runs out
of memory and halves its batch would leave the others waiting. Instead, each process finishes its
backward pass, then the gradients are summed. `accelerator` is None if a single process trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from ..store.artifacts import Store

# The others wait while rank 0 waits for a lock; the launcher notices a process that died.
PATIENCE = timedelta(days=1)


def accelerator() -> Accelerator:
    """Return the Accelerator of the processes that `accelerate launch` or `torchrun` started."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    waits = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waits])


def rank(accelerator: Accelerator | None) -> int:
    """Return this process's rank, 0 if it trains alone."""
    return 0 if accelerator is None else accelerator.process_index


def leads(accelerator: Accelerator | None) -> bool:
    """True on rank 0, the process that writes."""
    return rank(accelerator) == 0


def share(rows: Tensor, accelerator: Accelerator | None) -> Tensor:
    """Return this process's part of a step's rows; with too few rows, some processes get none."""
    if accelerator is None:
        return rows
    return rows[accelerator.process_index :: accelerator.num_processes]


def sum_step(
    parameters: Iterable[nn.Parameter], losses: list[Tensor], accelerator: Accelerator | None
) -> list[Tensor]:
    """Sum the gradients over all processes in place; return losses that sum to the whole loss.

    A process that trains alone gets its own `losses` back.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return losses
    values = list(parameters)
    grads = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
    flat: Any = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "sum")
    sums = flat.split([grad.numel() for grad in grads])
    for value, own in zip(values, sums, strict=True):
        value.grad = own.view_as(value).clone()
    # From 0.0, else a process without images would send an integer where the others send floats.
    own = torch.tensor([sum((one.item() for one in losses), 0.0)], device=accelerator.device)
    every: Any = accelerator.gather(own)
    return [every.sum()]


def broadcast(number: int, accelerator: Accelerator | None) -> int:
    """Broadcast rank 0's integer."""
    if accelerator is None or accelerator.num_processes == 1:
        return number
    from accelerate.utils import broadcast as send

    sent: Any = send(torch.tensor(number, device=accelerator.device))
    return int(sent)


def make_together(
    store: Store,
    key: str,
    inputs: dict[str, Any],
    build: Callable[[Path], None],
    accelerator: Accelerator | None,
    **notes: Any,
) -> Path:
    """Make an artifact as `store.make` does, with all processes calling `build` together.

    Rank 0 holds the lock and writes; the others must see the work folder but write nothing in it.
    Raises what `store.make` and `build` do.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return store.make(key, inputs, build, **notes)
    begun = []

    def lead(folder: Path) -> None:
        begun.append(broadcast(1, accelerator))
        build(folder)

    if accelerator.is_main_process:
        store.make(key, inputs, lead, **notes, processes=accelerator.num_processes)
    if not begun and broadcast(0, accelerator):  # rank 0 found it finished, or has begun
        build(store.work(key))
    return store.folder(key)
