"""The one optimisation loop: its schedule, its random numbers, and that a killed run continues
to the same bytes.
"""

import math
import os

import pytest
import torch
from conftest import Killed
from hypothesis import given
from hypothesis import strategies as st

from datadream.seeds import seed_for
from datadream.training import late
from datadream.training.batch_size import BatchSize
from datadream.training.checkpoint import load_state, save_state
from datadream.training.loop import DivergedError, Shares, fit
from datadream.training.schedule import cosine_schedule


def problem():
    """Return fresh parameters and a loss that is noisy, so that a wrong seed after resuming
    shows.
    """
    torch.manual_seed(1)
    parameters = {
        "a": torch.nn.Parameter(torch.randn(3, 2)),
        "b": torch.nn.Parameter(torch.randn(2)),
    }

    def loss_at(step):
        return (
            ((parameters["a"] * (1 + torch.randn(3, 2))).sum(0) + parameters["b"] - step % 3)
            .pow(2)
            .sum()
        )

    return parameters, loss_at


def same(one, other):
    """Return whether two parameter dicts are equal bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_schedule_at_given_steps():
    # Ten steps of warm-up, then half a cosine over the ninety that are left.
    values = {0: 1 / 11, 4: 5 / 11, 9: 10 / 11, 10: 1.0, 55: 0.5, 100: 0.0}
    assert {step: cosine_schedule(step, 100, 10) for step in values} == pytest.approx(values)
    assert cosine_schedule(0, 100, 0) == 1.0
    assert cosine_schedule(100, 100, 10, minimum=0.2) == pytest.approx(0.2)
    assert cosine_schedule(55, 100, 10, minimum=0.2) == pytest.approx(0.6)


@given(st.integers(1, 500), st.integers(0, 600), st.floats(0, 1))
def test_the_schedule_rises_then_falls_and_stays_in_range(steps, warmup, minimum):
    values = [cosine_schedule(step, steps, warmup, minimum) for step in range(steps)]
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


@given(
    st.lists(st.integers() | st.text(), max_size=4), st.lists(st.integers() | st.text(), max_size=4)
)
def test_seeds_differ_where_their_parts_do(one, other):
    assert (seed_for(*one) == seed_for(*other)) == (one == other)
    assert 0 <= seed_for(*one) < 2**63


def test_a_seed_never_changes():
    # Written down: a change would make every artifact of every user irreproducible.
    assert (seed_for("image", 0, 3, 7), seed_for("shots", 1, None)) == (
        2615999912314519954,
        3745147323865807713,
    )


def test_adamw_step_by_hand():
    """One parameter, two steps: decoupled weight decay, bias-corrected moments, the schedule's
    learning rate.
    """
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    losses = fit(
        {"w": weight},
        lambda step, weight=weight: (weight**2).sum(),
        steps=2,
        lr=0.1,
        betas=(0.8, 0.9),
        weight_decay=0.5,
        eps=1e-3,
    )
    w, m, v = 2.0, 0.0, 0.0
    for step, rate in enumerate((0.1, 0.05)):  # half a cosine over two steps: 1, 1/2
        gradient = 2 * w
        w *= 1 - rate * 0.5
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        w -= rate * (m / (1 - 0.8 ** (step + 1))) / (math.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-3)
    assert weight.item() == pytest.approx(w, rel=1e-12)
    assert losses[0] == 4.0 and len(losses) == 2


def test_the_gradient_is_clipped_only_if_asked():
    """AdamW divides by the gradient's size, so the clip shows in a large eps: the step is then
    proportional to the gradient.
    """
    moved = {}
    for clip in (None, 1.0):
        weight = torch.nn.Parameter(torch.tensor([100.0], dtype=torch.float64))
        fit(
            {"w": weight},
            lambda step, weight=weight: (weight**2).sum(),
            steps=1,
            lr=1.0,
            weight_decay=0.0,
            eps=1e6,
            clip=clip,
        )
        moved[clip] = 100.0 - weight.item()
    assert moved[None] == pytest.approx(200e-6, rel=1e-3)  # the gradient is 200
    assert moved[1.0] == pytest.approx(1e-6, rel=1e-3)


def test_the_learning_rate_never_falls_below_the_minimum():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    places = []
    fit(
        {"w": weight},
        lambda step: weight.sum(),
        steps=50,
        lr=1e-3,
        minimum_lr=5e-4,
        weight_decay=0.0,
        after=lambda step, loss: places.append(weight.item()),
    )
    lengths = -torch.tensor(places).diff()  # a constant gradient moves AdamW by the learning rate
    assert lengths[0] > 9e-4 and lengths.min() == pytest.approx(5e-4, rel=1e-2)


def test_after_sees_every_step_once_with_its_loss():
    parameters, loss_at = problem()
    seen = []
    losses = fit(
        parameters, loss_at, steps=5, lr=0.1, after=lambda step, loss: seen.append((step, loss))
    )
    assert seen == list(enumerate(losses))


@given(
    st.integers(1, 12),
    st.integers(0, 11),
    st.integers(1, 5),
    st.sampled_from(["loss", "after", "save"]),
)
def test_a_killed_run_continues_to_the_same_bytes(tmp_path_factory, steps, kill, every, where):
    folder = tmp_path_factory.mktemp("fit")
    options = dict(steps=steps, lr=0.1, warmup=2, clip=1.0, seed=5, every=every)
    whole, loss_at = problem()
    losses = fit(whole, loss_at, checkpoint=folder / "whole", **options)

    parameters, loss_at = problem()
    with pytest.MonkeyPatch.context() as patch:
        if where == "save":
            # Killed with the checkpoint half written.
            patch.setattr(os, "replace", _raise_killed)
        try:
            fit(
                parameters,
                _kill_at(loss_at, kill) if where == "loss" else loss_at,
                checkpoint=folder / "killed",
                after=_kill_at(lambda step, loss: None, kill) if where == "after" else None,
                **options,
            )
        except Killed:
            pass
    parameters, loss_at = problem()
    again = fit(parameters, loss_at, checkpoint=folder / "killed", **options)
    assert same(parameters, whole)
    assert again == losses, "the losses of a resumed run are those of the whole run"


def _raise_killed(*_):
    raise Killed


def _kill_at(function, step):
    def wrapper(current, *rest):
        if current == step:
            raise Killed
        return function(current, *rest)

    return wrapper


def test_a_run_that_is_killed_again_and_again_ends_at_the_same_bytes(tmp_path):
    options = dict(steps=9, lr=0.1, warmup=2, every=2)
    whole, loss_at = problem()
    fit(whole, loss_at, **options)
    for kill in (1, 3, 5, 7, 99):
        parameters, loss_at = problem()
        try:
            fit(parameters, _kill_at(loss_at, kill), checkpoint=tmp_path / "state", **options)
        except Killed:
            assert kill < 9
    assert same(parameters, whole)


def test_no_step_s_call_is_lost_where_the_kill_follows_the_checkpoint(tmp_path):
    """`after` evaluates and may take long: a kill while it runs must not skip it for good."""
    finished = set()

    def run(kill):
        def after(step, loss):
            if step == kill:
                raise Killed
            finished.add(step)

        parameters, loss_at = problem()
        fit(
            parameters,
            loss_at,
            steps=6,
            lr=0.1,
            checkpoint=tmp_path / "state",
            every=2,
            after=after,
        )

    with pytest.raises(Killed):
        run(kill=3)  # the step after which the second checkpoint is written
    run(kill=None)
    assert finished == set(range(6))


def test_a_step_s_random_numbers_depend_on_the_seed_and_the_step_only():
    def draws(seed, warm):
        found, weight = [], torch.nn.Parameter(torch.zeros(1))
        torch.manual_seed(warm)

        def loss_at(step):
            found.append(torch.rand(()).item())
            return weight.sum()

        fit({"w": weight}, loss_at, steps=4, lr=0.1, seed=seed)
        return found

    assert draws(0, 1) == draws(0, 2) != draws(1, 1)
    assert len(set(draws(0, 1))) == 4


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    parameters, loss_at = problem()
    torch.manual_seed(3)
    fit(parameters, loss_at, steps=3, lr=0.1)
    assert torch.equal(torch.rand(5), expected)
    torch.manual_seed(3)
    with pytest.raises(DivergedError):
        fit(parameters, lambda step: parameters["a"].sum() * math.nan, steps=3, lr=0.1)
    assert torch.equal(torch.rand(5), expected), "nor where it raises"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, value):
    good, loss_at = problem()
    # Writes the state after three steps.
    fit(good, loss_at, steps=5, lr=0.1, seed=0, checkpoint=tmp_path / "good", every=3)

    parameters, loss_at = problem()
    with pytest.raises(DivergedError) as caught:
        fit(
            parameters,
            lambda step: loss_at(step) * (value if step == 3 else 1),
            steps=5,
            lr=0.1,
            warmup=0,
            checkpoint=tmp_path / "bad",
            every=2,
            description="adapt dog",
        )
    for word in (
        "adapt dog",
        str(value),
        "step 3 of 5",
        "lr=0.1",
        "warmup=0",
        str(tmp_path / "bad"),
    ):
        assert word in str(caught.value)
    one, other = load_state(tmp_path / "bad"), load_state(tmp_path / "good")
    assert one[1] == other[1] == 3 and same(one[0], other[0]), (
        "that of the step before, whenever the last one was written"
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "another file"])
def test_a_damaged_checkpoint_is_noticed_and_the_run_begins_anew(tmp_path, damage):
    def killed(step):
        if step == 4:
            raise Killed

    file, (parameters, loss_at) = tmp_path / "state", problem()
    with pytest.raises(Killed):
        fit(
            parameters,
            loss_at,
            steps=6,
            lr=0.1,
            checkpoint=file,
            every=2,
            after=lambda step, loss: killed(step),
        )
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(
        {"cut": content[:-7], "empty": b"", "a bit": content, "another file": b"{" * 99}[damage]
    )
    whole, (again, anew) = problem(), problem()
    losses = fit(whole[0], whole[1], steps=6, lr=0.1)
    assert fit(again, anew, steps=6, lr=0.1, checkpoint=file, every=100) == losses and same(
        again, whole[0]
    )
    assert not file.exists()


def test_a_run_that_diverges_at_once_promises_no_state(tmp_path):
    parameters, loss_at = problem()
    with pytest.raises(DivergedError, match="No state had been written yet"):
        fit(
            parameters,
            lambda step: loss_at(step) * math.nan,
            steps=4,
            lr=0.1,
            checkpoint=tmp_path / "state",
            every=2,
        )
    assert not (tmp_path / "state").exists()


def test_a_gradient_that_is_not_finite_is_no_good_state(tmp_path):
    """The loss may be finite while its gradient is not (a root at zero): the next checkpoint
    must not keep the broken weights.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(DivergedError):
        fit(
            {"w": weight},
            lambda step: weight.sum() + 1 if step < 2 else (weight - weight.detach()).sqrt().sum(),
            steps=4,
            lr=0.1,
            checkpoint=tmp_path / "state",
            every=1,
        )
    assert torch.isfinite(load_state(tmp_path / "state")[0]["parameter.w"]).all()


def test_a_state_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    save_state(tmp_path / "state", {"a": torch.ones(2)}, 1)
    monkeypatch.setattr(os, "replace", _raise_killed)
    with pytest.raises(Killed):
        save_state(tmp_path / "state", {"a": torch.zeros(2)}, 2)
    tensors, step = load_state(tmp_path / "state")
    assert step == 1 and torch.equal(tensors["a"], torch.ones(2))


def test_a_state_keeps_tensors_of_any_layout(tmp_path):
    tensors = {"slice": torch.arange(12.0).view(3, 4)[:, 1], "scalar": torch.tensor(3.0)}
    save_state(tmp_path / "state", tensors, 7)
    loaded, step = load_state(tmp_path / "state")
    assert step == 7 and same(loaded, tensors)


@pytest.mark.parametrize("whole, sizes", [("", [2, 2, 1]), ("it compares images", [5])])
def test_only_a_loss_that_may_be_taken_in_parts_is(whole, sizes):
    weight, seen, numbers = torch.nn.Parameter(torch.ones(1)), [], torch.arange(5.0)

    def share(rows):
        seen.append(len(numbers[rows]))
        return (weight * numbers[rows]).sum()

    losses = fit(
        {"w": weight}, lambda step: Shares(5, share, whole), steps=1, lr=0.1, batch=BatchSize(2)
    )
    assert seen == sizes and losses == [10.0]


# The loss is read late, so that the host need not wait for the device.


def test_a_loss_is_read_once_the_next_step_is_on_its_way(tmp_path, monkeypatch):
    """But before a checkpoint, at a point that is asked for, and at the end."""
    order, read, add = [], late.Late.read, late.LateLosses.add
    monkeypatch.setattr(late.Late, "read", lambda self: (order.append("read"), read(self))[1])
    monkeypatch.setattr(
        late.LateLosses,
        "add",
        lambda self, step, *rest: (order.append(step), add(self, step, *rest))[1],
    )
    parameters, loss_at = problem()

    def launched(step):
        order.append(f"launch {step}")
        return loss_at(step)

    called = []
    losses = fit(
        parameters, launched, steps=6, lr=0.1, every=3, checkpoint=tmp_path / "state",
        after=lambda *seen: called.append(seen), points={4},
    )  # fmt: skip
    assert order == [
        "launch 0", 0, "launch 1", "read", 1, "launch 2", "read", 2, "read",  # the checkpoint
        "launch 3", 3, "launch 4", "read", 4, "read", "launch 5", 5, "read",
    ]  # fmt: skip
    assert called == [(4, losses[4])] and len(losses) == 6


def test_no_step_makes_the_host_wait_for_a_number():
    """`item`, `bool` and the like of a tensor are one operator, which must not be asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "local_scalar_dense" in str(function) or "is_nonzero" in str(function):
                waits.append(function)
            return function(*args, **(kwargs or {}))

    parameters = {"a": torch.nn.Parameter(torch.randn(3, 2))}
    shares = Shares(6, lambda rows: parameters["a"].pow(2).sum() / 3)
    with Watch():
        assert torch.ones(()).item() == 1.0 and waits, "it sees one"
        waits.clear()
        losses = fit(parameters, lambda step: shares, steps=4, lr=0.1, clip=1.0, batch=BatchSize(2))
    assert len(losses) == 4 and not waits


@given(st.integers(0, 6), st.sampled_from(["loss", "gradient"]), st.integers(1, 4), st.booleans())
def test_the_step_before_the_broken_one_is_kept_to_the_bit(
    tmp_path_factory, broken, what, every, called
):
    """Though it is known only when the next step has begun: the optimiser leaves it out."""
    folder = tmp_path_factory.mktemp("late")
    options = dict(steps=7, lr=0.1, warmup=2, clip=1.0, seed=5)
    good, loss_at = problem()
    losses = []
    if broken:  # what a run to the broken step holds
        with pytest.raises(Killed):
            fit(
                good, _kill_at(loss_at, broken), every=broken, checkpoint=folder / "good",
                after=lambda step, loss: losses.append(loss), **options,
            )  # fmt: skip
    parameters, loss_at = problem()

    def breaks(step):
        loss = loss_at(step)
        if step != broken:
            return loss
        a = parameters["a"]
        return loss * math.inf if what == "loss" else loss + (a - a.detach()).sqrt().sum()

    with pytest.raises(DivergedError, match=f"at step {broken} of 7") as caught:
        fit(
            parameters, breaks, every=every, checkpoint=folder / "bad",
            after=(lambda step, loss: None) if called else None, **options,
        )  # fmt: skip
    assert ("the loss is inf" in str(caught.value)) == (what == "loss")
    if broken:
        (one, step), (other, _) = load_state(folder / "bad"), load_state(folder / "good")
        assert step == broken and one.keys() == other.keys() and same(one, other)
        assert one["losses"].tolist() == torch.tensor(losses).tolist()
        assert same(parameters, good)
