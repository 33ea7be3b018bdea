"""The one optimisation loop: AdamW, a schedule, and a checkpoint that resumes to the same bytes."""

import math
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from .. import progress, signals
from ..errors import ConfigError
from ..seeds import seed_for
from .checkpoint import load_state, save_state
from .distributed import ALONE
from .schedule import cosine_schedule


class DivergedError(RuntimeError):
    """A loss or an image became NaN or infinite; the state before that step, if there was one,
    and the images before it are kept.
    """


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


def _backward(loss_at, step, seed, optimiser, halve, team):
    """Set the gradients of one step and return its loss, both summed over the team."""
    loss = _own_backward(loss_at, step, seed, optimiser, halve)
    if team.size > 1:
        values = [value for group in optimiser.param_groups for value in group["params"]]
        for value in values:
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        sums = [value.grad for value in values] + [
            torch.tensor([loss], device=values[0].device, dtype=values[0].dtype)
        ]
        team.add(sums)
        loss = sums[-1].item()
    return loss


def _own_backward(loss_at, step, seed, optimiser, halve):
    while True:
        torch.manual_seed(seed)
        optimiser.zero_grad(set_to_none=True)
        try:
            loss, total = loss_at(step), 0.0
            for part in [loss] if isinstance(loss, torch.Tensor) else loss:
                part.backward()
                total += part.item()
            return total
        except RuntimeError as error:
            if not (halve and halve(error)):
                raise


def fit(
    parameters, loss_at, *, steps, lr, warmup=0, minimum_lr=0.0, betas=(0.9, 0.999),
    weight_decay=1e-2, eps=1e-8, clip=None, seed=0, checkpoint=None, every=200, after=None,
    buffers=None, halve=None, team=ALONE, description="training",
):  # fmt: skip
    """Minimise `loss_at(step)` over `parameters` (name -> Parameter) in place and return all
    losses, one float a step.

    The loss is a tensor, or an iterable of parts that sum to it, whose graphs are not held
    together. Where memory ends and `halve(error)` says that the parts are smaller now, the step is
    done again.

    Every step reseeds torch's global generator from (seed, step), so a run that was killed and
    resumed from `checkpoint` (written every `every` steps) draws the same noise, dropout and
    augmentation as one that was not. `buffers` are further tensors that a step changes (running
    statistics), kept with the parameters. `after(step, loss)` is called once a step is done. Each
    process of a `team` has its share of the loss; they read the checkpoint alike, and the first one
    writes it. Raises DivergedError on a loss that is not finite, ConfigError where a process of the
    team does not find the checkpoint that the first one found, and Stopped, once the state is
    saved, where the process was asked to end.
    """
    values, buffers = list(parameters.values()), buffers or {}
    optimiser = torch.optim.AdamW(
        values, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=True
    )
    first, losses = _begin(parameters, buffers, optimiser, checkpoint, team, description)
    with torch.random.fork_rng(), progress.track(description, "step", steps, first) as count:
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = max(minimum_lr, lr * cosine_schedule(step, steps, warmup))
            losses.append(_backward(loss_at, step, seed_for(seed, step), optimiser, halve, team))
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip or math.inf)
            if not (math.isfinite(losses[-1]) and torch.isfinite(norm)):
                # The parameters are still good; running statistics a bad number may have reached.
                if checkpoint and team.leads and step and buffers.keys() <= parameters.keys():
                    with suppress(OSError, SafetensorError):  # a full disk may not hide the error
                        state = _state(parameters, buffers, optimiser, losses[:-1])
                        save_state(checkpoint, state, step)
                what = _diverged(losses[-1], norm.item(), step, steps, lr, warmup, checkpoint)
                raise DivergedError(f"{description}: {what}")
            optimiser.step()
            if after:  # before the checkpoint: a run killed in it does it again when it resumes
                after(step, losses[-1])
            stop, more = team.first(signals.asked()), step + 1 < steps
            if checkpoint and team.leads and more and (stop or (step + 1) % every == 0):
                save_state(checkpoint, _state(parameters, buffers, optimiser, losses), step + 1)
            if stop and more:
                raise signals.Stopped(stop)
            count.update(loss=f"{losses[-1]:.4f}")
    return losses


def _begin(parameters, buffers, optimiser, checkpoint, team, description):
    """Return (first step, losses so far) after restoring the checkpoint, if there is one."""
    state = checkpoint and load_state(checkpoint)
    first, losses = _restore(parameters, buffers, optimiser, state) if state else (0, [])
    if team.first(first) != first:
        raise ConfigError(
            f"{description}: process {team.rank} would begin at step {first}, the first one at "
            f"another: {checkpoint} must be the same for all processes; start them on one "
            "machine, or on machines that share the store's folder"
        )
    return first, losses
