"""Read the loss of each step one step late, so that the host need not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..progress import Count


class Late:
    """Device scalars that are copied to the host asynchronously.

    The copy goes into pinned memory, followed by an event. `read` waits for that event only, while
    `Tensor.item` would also wait for all work queued since.
    """

    def __init__(self, scalars: list[Tensor]) -> None:
        place = scalars[0].device
        # Double precision holds each of them exactly.
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
        """Wait for the copy and return the values."""
        if self.event:
            self.event.synchronize()
        return self.copy.tolist()


class LateLosses:
    """The losses of all steps: `losses`, and the last step's, which may still be on the device.

    `failed(step, loss, norm)`, which must raise, is called if a loss or a gradient norm is not
    finite.
    """

    def __init__(
        self, losses: list[float], failed: Callable[[int, float, float], NoReturn]
    ) -> None:
        self.losses, self.failed = losses, failed
        self.last: tuple[int, Late] | None = None

    def add(self, step: int, parts: list[Tensor], norm: Tensor) -> Tensor:
        """Add a step's loss, as parts of a sum, and its gradient norm.

        Returns 1.0 if one is not finite, else 0.0, on the device. A fused optimiser that gets this
        as `found_inf` skips the step, leaving parameters and moments unchanged.
        """
        late = Late([*parts, norm])
        self.last = step, late
        return late.broken()

    def settle(self) -> None:
        """Read the pending loss, if there is one."""
        if self.last:
            (step, late), self.last = self.last, None
            *parts, norm = late.read()
            loss = sum(parts)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.failed(step, loss, norm)
            self.losses.append(loss)

    def show(self, count: Count) -> None:
        """Count a step, and show the last loss that was read."""
        notes = {"loss": f"{self.losses[-1]:.4f}"} if self.losses else {}
        count.update(1, **notes)
