"""The one optimisation loop: AdamW, a schedule, and a checkpoint that resumes to the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import progress, signals
from ..errors import ConfigError
from ..seeds import seed_for
from .batch_size import BatchSize
from .checkpoint import load_state, save_state
from .distributed import broadcast, leads, rank, share, sum_step
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


def _diverged(loss, norm, step, steps, lr, warmup, checkpoint):
    what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
    written = checkpoint and Path(checkpoint).exists()
    kept = f"The last good state is {checkpoint}." if written else "No state had been written yet."
    return (
        f"the {what} is {value} at step {step} of {steps}; lower lr={lr} or raise "
        f"warmup={warmup}. {kept}"
    )


@dataclass(frozen=True)
class Shares:
    """The loss of a step as a sum over its images, for gradient accumulation.

    `of(rows)` is the share of some of the `count` images in the loss, a scalar with its graph;
    `rows` is an index tensor or `slice(None)`. Shares that cover all images sum to the loss.
    """

    count: int
    of: Callable[[Any], Tensor]


def _backward(loss_at, step, seed, optimiser, batch, accelerator):
    """Set the gradients of this process's part of a step, in micro-batches, and return its loss.

    On out-of-memory, the step is repeated from its seed in micro-batches of half the size.
    """
    while True:
        torch.manual_seed(seed)
        optimiser.zero_grad(set_to_none=True)
        try:
            loss, total = loss_at(step), 0.0
            if isinstance(loss, Tensor):
                loss.backward()
                return loss.item()
            rows = share(torch.arange(loss.count), accelerator)
            # An epoch's last batch may be smaller than the number of processes.
            for part in rows.split(batch.size if batch else loss.count) if len(rows) else ():
                value = loss.of(slice(None) if len(part) == loss.count else part)
                value.backward()
                total += value.item()
            return total
        except RuntimeError as error:
            loss = value = None  # frees the graph that did not fit
            if not (batch and batch.halve(error)):
                raise


def fit(
    parameters: Mapping[str, nn.Parameter], loss_at: Callable[[int], Tensor | Shares], *,
    steps: int, lr: float, warmup: int = 0, minimum_lr: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 1e-2, eps: float = 1e-8,
    clip: float | None = None, seed: int = 0, checkpoint: str | Path | None = None,
    every: int = 200, after: Callable[[int, float], None] | None = None,
    buffers: Mapping[str, Tensor] | None = None, batch: BatchSize | None = None,
    accelerator: Accelerator | None = None, description: str = "training",
    rates: Mapping[str, float] | None = None,
) -> list[float]:  # fmt: skip
    """Minimise `loss_at(step)` over `parameters` in place with AdamW; return the loss of each step.

    The loss is a tensor, or `Shares` of one, which are taken in micro-batches of `batch.size`
    images (gradient accumulation) and spread over the processes of an `accelerator`. The learning
    rate rises for `warmup` of the `steps`, then falls to `minimum_lr` along half a cosine;
    parameters named in `rates` have it times their number there.

    Every step reseeds torch's global generator from (seed, step), so a run that was killed and
    resumed from `checkpoint` (written every `every` steps) draws the same noise, dropout and
    augmentation as one that was not. `buffers` are further tensors that a step changes (running
    statistics), kept with the parameters. `after(step, loss)` is called once a step is done.

    Raises DivergedError on a loss or gradient that is not finite; Stopped, once the state is saved,
    where the process was asked to end; ConfigError where a process does not find rank 0's
    checkpoint.
    """
    values, buffers = list(parameters.values()), buffers or {}
    optimiser = torch.optim.AdamW(
        _groups(parameters, rates or {}), lr=lr, betas=betas, weight_decay=weight_decay, eps=eps,
        fused=True,
    )  # fmt: skip
    first, losses = _begin(parameters, buffers, optimiser, checkpoint, accelerator, description)
    writes = checkpoint if leads(accelerator) else None
    with torch.random.fork_rng(), progress.track(description, "step", steps, first) as count:
        for step in range(first, steps):
            for group in optimiser.param_groups:
                rate = max(minimum_lr, lr * cosine_schedule(step, steps, warmup))
                group["lr"] = rate * group["factor"]
            own = _backward(loss_at, step, seed_for(seed, step), optimiser, batch, accelerator)
            losses.append(sum_step(values, own, accelerator))
            norm = torch.nn.utils.clip_grad_norm_(values, clip or math.inf)
            if not (math.isfinite(losses[-1]) and torch.isfinite(norm)):
                # The parameters are still good; running statistics may not be.
                if writes and step and buffers.keys() <= parameters.keys():
                    with suppress(OSError, SafetensorError):  # a full disk must not hide the error
                        state = _state(parameters, buffers, optimiser, losses[:-1])
                        save_state(writes, state, step)
                what = _diverged(losses[-1], norm.item(), step, steps, lr, warmup, checkpoint)
                raise DivergedError(f"{description}: {what}")
            optimiser.step()
            if after:  # before the checkpoint, so that a run killed in it repeats it
                after(step, losses[-1])
            stop, more = broadcast(signals.asked(), accelerator), step + 1 < steps
            if writes and more and (stop or (step + 1) % every == 0):
                save_state(writes, _state(parameters, buffers, optimiser, losses), step + 1)
            if stop and more:
                raise signals.Stopped(stop)
            count.update(loss=f"{losses[-1]:.4f}")
    return losses


def _groups(parameters, rates):
    """Return the optimiser's groups, parameters of one factor of the learning rate in each."""
    found = {}
    for name, value in parameters.items():
        found.setdefault(rates.get(name, 1.0), []).append(value)
    return [{"params": values, "factor": factor} for factor, values in found.items()]


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
