"""The optimisation loop: AdamW, a schedule, and a checkpoint from which a killed run resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import progress, signals
from ..errors import ConfigError
from ..seeds import forked_rng, seed_for
from .batch_size import BatchSize, out_of_memory
from .checkpoint import load_state, save_state
from .distributed import broadcast, leads, rank, share, sum_step
from .late import LateLosses
from .schedule import cosine_schedule

if TYPE_CHECKING:
    from accelerate import Accelerator


class DivergedError(RuntimeError):
    """A loss or an image became NaN or infinite; the last good state is kept."""


def _state(parameters, buffers, optimiser, losses):
    tensors = {f"parameter.{name}": value for name, value in {**parameters, **buffers}.items()} | {
        "losses": torch.tensor(losses)
    }
    for name, value in parameters.items():
        for key, moment in optimiser.state.get(value, {}).items():
            tensors[f"{key}.{name}"] = moment
    return tensors


def _restore(parameters, buffers, optimiser, state):
    tensors, step = state
    with torch.no_grad():
        for name, value in {**parameters, **buffers}.items():
            value.copy_(tensors[f"parameter.{name}"])
        for name, value in parameters.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimiser.state[value] = {
                key: tensors[f"{key}.{name}"].to(value.device) for key in keys
            }
    return step, tensors["losses"].tolist()


def _save(writes, parameters, buffers, optimiser, losses, step):
    if writes:
        save_state(writes, _state(parameters, buffers, optimiser, losses), step)


def _fail(keep, told, step, loss, norm):
    """Save the state before a step whose loss or norm is not finite, and raise DivergedError.

    The optimiser has skipped the step. `keep` is None if running statistics may include it.
    """
    description, steps, lr, warmup, checkpoint = told
    if keep and step:
        with suppress(OSError, SafetensorError):  # a full disk must not hide the error
            keep(step)
    what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
    written = checkpoint and Path(checkpoint).exists()
    kept = f"The last good state is {checkpoint}." if written else "No state had been written yet."
    raise DivergedError(
        f"{description}: the {what} is {value} at step {step} of {steps}; lower lr={lr} or raise "
        f"warmup={warmup}. {kept}"
    )


@dataclass(frozen=True)
class Shares:
    """The loss of a step as micro-batch losses that sum to it (gradient accumulation).

    `of(rows)` is the share of some of the `count` images in the loss, a scalar with its graph;
    `rows` is an index tensor or `slice(None)`. If the loss cannot be split, `whole` says why, and
    what to do when memory runs out.
    """

    count: int
    of: Callable[[Any], Tensor]
    whole: str = ""


def _backward(loss_at, step, seed, optimiser, batch, accelerator):
    """Compute the gradients of this process's part of a step; return its micro-batch losses.

    The losses stay on the device, since reading them would make the host wait. On out-of-memory,
    the step is repeated from its seed in micro-batches of half the size. Raises ConfigError if it
    cannot be split.
    """
    while True:
        torch.manual_seed(seed)
        optimiser.zero_grad(set_to_none=True)
        try:
            loss, found = loss_at(step), []
            if isinstance(loss, Tensor):
                loss.backward()
                return [loss.detach()]
            rows = share(torch.arange(loss.count), accelerator)
            # An epoch's last batch may be smaller than the number of processes.
            size = batch.size if batch and not loss.whole else loss.count
            for part in rows.split(size) if len(rows) else ():
                value = loss.of(slice(None) if len(part) == loss.count else part)
                value.backward()
                found.append(value.detach())
            return found
        except RuntimeError as error:
            if isinstance(loss, Shares) and loss.whole and out_of_memory(error):
                raise ConfigError(
                    f"{loss.count} images at once do not fit in memory, and {loss.whole}"
                ) from error
            loss = value = None  # frees the graph that did not fit
            if not (batch and batch.halve(error)):
                raise


def fit(
    parameters: Mapping[str, nn.Parameter], loss_at: Callable[[int], Tensor | Shares], *,
    steps: int, lr: float, warmup: int = 0, minimum_lr: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 1e-2, eps: float = 1e-8,
    clip: float | None = None, seed: int = 0, checkpoint: str | Path | None = None,
    every: int = 200, after: Callable[[int, float], None] | None = None,
    points: Container[int] | None = None, buffers: Mapping[str, Tensor] | None = None,
    batch: BatchSize | None = None, accelerator: Accelerator | None = None,
    description: str = "training", rates: Mapping[str, float] | None = None,
) -> list[float]:  # fmt: skip
    """Minimise `loss_at(step)` over `parameters` in place with AdamW; return the loss of each step.

    The loss is a tensor, or `Shares`, which are computed in micro-batches of `batch.size` images
    (gradient accumulation) and spread over the processes of an `accelerator`. The learning rate
    rises for `warmup` of the `steps`, then falls to `minimum_lr` along half a cosine; `rates` has
    factors for single parameters.

    Every step reseeds torch's global generator from (seed, step), so a run that was killed and
    resumed from `checkpoint` (written every `every` steps) draws the same noise, dropout and
    augmentation as an uninterrupted one. On a CPU it ends with the same bytes, on a GPU only within
    `models.device.deterministic`: attention's backward pass sums in no fixed order. `buffers` are
    other tensors that a step changes (running statistics), saved too. `after(step, loss)` is called
    after each step in `points` (None: all); other losses are read during the next step.

    Raises DivergedError if a loss or gradient is not finite; Stopped, once the state is saved, if
    the process was asked to end; ConfigError if a process does not find rank 0's checkpoint.
    """
    values, buffers = list(parameters.values()), buffers or {}
    own = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
    optimiser = _adamw(parameters, rates or {}, own)
    first, losses = _begin(parameters, buffers, optimiser, checkpoint, accelerator, description)
    writes = checkpoint if leads(accelerator) else None
    keep = partial(_save, writes, parameters, buffers, optimiser, losses)
    told = description, steps, lr, warmup, checkpoint
    good = keep if buffers.keys() <= parameters.keys() else None
    seen = LateLosses(losses, partial(_fail, good, told))
    with forked_rng(), progress.track(description, "step", steps, first) as count:
        for step in range(first, steps):
            for group in optimiser.param_groups:
                rate = max(minimum_lr, lr * cosine_schedule(step, steps, warmup))
                group["lr"] = rate * group["factor"]
            parts = _backward(loss_at, step, seed_for(seed, step), optimiser, batch, accelerator)
            parts = sum_step(values, parts, accelerator)
            seen.settle()  # the previous step, while the device works on this one
            norm = torch.nn.utils.clip_grad_norm_(values, clip or math.inf)
            optimiser.found_inf = seen.add(step, parts, norm)
            optimiser.step()
            if after and (points is None or step in points):
                seen.settle()
                after(step, losses[-1])  # before the checkpoint, so a run killed here repeats it
            stop, more = broadcast(signals.asked(), accelerator), step + 1 < steps
            if more and (stop or (step + 1) % every == 0):
                seen.settle()
                keep(step + 1)
            if stop and more:
                raise signals.Stopped(stop)
            seen.show(count)
        seen.settle()
    return losses


def _adamw(parameters, rates, options) -> Any:
    """Return the optimiser, with one parameter group per learning-rate factor."""
    found = {}
    for name, value in parameters.items():
        found.setdefault(rates.get(name, 1.0), []).append(value)
    groups = [{"params": values, "factor": factor} for factor, values in found.items()]
    return torch.optim.AdamW(groups, fused=True, **options)


def _begin(parameters, buffers, optimiser, checkpoint, accelerator, description):
    """Return (first step, losses so far) after restoring the checkpoint, if there is one."""
    state = checkpoint and load_state(checkpoint)
    first, losses = _restore(parameters, buffers, optimiser, state) if state else (0, [])
    if broadcast(first, accelerator) != first:
        raise ConfigError(
            f"{description}: process {rank(accelerator)} would begin at step {first}, the first "
            f"one at another: {checkpoint} must be the same for all processes; start them on one "
            "machine, or on machines that share the store's folder"
        )
    return first, losses
