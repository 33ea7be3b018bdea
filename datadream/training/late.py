"""The losses of steps, which the host reads a step late so that it need not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..progress import Count


class Late:
    """Scalars of a device, on their way to the host since they were made.

    The copy goes into pinned memory, behind an event: `read` waits for it, and not for what the
    device was asked to do afterwards, as `Tensor.item` would.
    """

    def __init__(self, scalars: list[Tensor]) -> None:
        place = scalars[0].device
        # In double precision, which holds each of them exactly.
        self.values = torch.stack([one.detach().to(place, torch.double) for one in scalars])
        self.copy, self.event = self.values, None
        if self.values.is_cuda:
            self.copy = torch.empty(self.values.shape, dtype=torch.double, pin_memory=True)
            self.copy.copy_(self.values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def broken(self) -> Tensor:
        """Return 1.0 if one of the values is not finite, else 0.0, on the device."""
        return (~torch.isfinite(self.values).all()).float()

    def read(self) -> list[float]:
        """Return the values, once they have come."""
        if self.event:
            self.event.synchronize()
        return self.copy.tolist()


class LateLosses:
    """The losses of all steps: `losses`, and that of the last step, which may be on its way.

    `failed(step, loss, norm)` is called, and raises, where a loss or a gradient's norm is not
    finite.
    """

    def __init__(
        self, losses: list[float], failed: Callable[[int, float, float], NoReturn]
    ) -> None:
        self.losses, self.failed = losses, failed
        self.last: tuple[int, Late] | None = None

    def add(self, step: int, parts: list[Tensor], norm: Tensor) -> Tensor:
        """Take a step's loss, as parts of a sum, and its gradient's norm.

        Returns 1.0 if one is not finite, else 0.0, on the device: a fused optimiser that has it as
        `found_inf` leaves such a step out, parameters, moments and all.
        """
        late = Late([*parts, norm])
        self.last = step, late
        return late.broken()

    def settle(self) -> None:
        """Read what is on its way, if anything is."""
        if self.last:
            (step, late), self.last = self.last, None
            *parts, norm = late.read()
            loss = sum(parts)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.failed(step, loss, norm)
            self.losses.append(loss)

    def show(self, count: Count) -> None:
        """Count a step, beside the last loss that was read."""
        notes = {"loss": f"{self.losses[-1]:.4f}"} if self.losses else {}
        count.update(1, **notes)
