"""Ending at a safe place: what a signal leaves, where it is looked at, and that no worker
outlives its parent.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from conftest import generate
from filelock import FileLock

from datadream import signals
from datadream.pipeline import generate as package
from datadream.signals import Stopped, asked, check, interruptible, listening
from datadream.store.artifacts import Store
from datadream.store.files import digest
from datadream.training import checkpoint, loop


def send(number=signal.SIGTERM):
    """Send a signal to this process, whose handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_a_signal_is_a_mark_until_it_is_looked_at():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        with listening():
            assert not asked()
            check()
            send()
            assert asked()
            check()
    assert (
        caught.value.code == 143
        and "SIGTERM" in str(caught.value)
        and "goes on" in str(caught.value)
    )
    assert not asked() and signal.getsignal(signal.SIGTERM) is before
    check()


def test_what_ends_without_a_look_is_stopped_at_its_end():
    done = []
    with pytest.raises(Stopped):
        with listening():
            send()
            done.append(1)
    assert done == [1]


def test_the_inner_of_two_keeps_the_mark_for_the_outer():
    with pytest.raises(Stopped):
        with listening(signal.SIGTERM, signal.SIGINT):
            with pytest.raises(Stopped) as caught:
                with listening():
                    send(signal.SIGINT)
            assert caught.value.code == 130 and asked()


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="own"), listening():
        send()
        raise ValueError("own")


def test_a_thread_changes_no_handler():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_it_comes_back_from_a_worker_as_it_was():
    again = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM)))
    assert (again.code, str(again)) == (143, str(Stopped(signal.SIGTERM)))


class Interrupts:
    """Sends Ctrl-C while it is deleted, where Python ignores what a handler raises."""

    def __del__(self):
        send(signal.SIGINT)


def test_ctrl_c_is_kept_where_an_exception_is_lost(ctrl_c):
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        with interruptible():
            with interruptible():
                Interrupts()
                done.append(1)
    assert (
        done == [1]
        and not asked()
        and signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
    )


def test_a_second_ctrl_c_interrupts_at_once(ctrl_c):
    with pytest.raises(KeyboardInterrupt), interruptible():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("it went on")
    assert not asked()


def test_a_workers_way_with_ctrl_c_is_kept():
    """Its pool's parent is told by Stopped, which a KeyboardInterrupt would not reach."""
    with (
        pytest.raises(Stopped) as caught,
        listening(signal.SIGTERM, signal.SIGINT),
        interruptible(),
    ):
        send(signal.SIGINT)
    assert caught.value.code == 130


def test_sigterm_is_no_ctrl_c():
    with pytest.raises(Stopped) as caught, interruptible():
        send()
    assert caught.value.code == 143


# What computes.


@pytest.mark.parametrize("at, saved", [(0, 1), (3, 4), (7, None)])
def test_a_training_saves_its_state_at_the_next_step(tmp_path, at, saved):
    """The last step has nothing left to save."""

    def run(checkpoint, after=None):
        parameters = {"x": torch.nn.Parameter(torch.full((3,), 2.0))}
        losses = loop.fit(
            parameters,
            lambda step: (parameters["x"] + torch.randn(3)).square().sum(),
            steps=8,
            lr=0.1,
            seed=1,
            checkpoint=checkpoint,
            after=after,
        )
        return losses, parameters["x"].tolist()

    whole, file = run(None), tmp_path / "state"
    with pytest.raises(Stopped), listening():
        run(file, lambda step, loss: send() if step == at else None)
    assert (checkpoint.load_state(file)[1] if saved else not file.exists()) == (saved or True)
    assert run(file) == whole


def test_a_generation_ends_with_a_batch_and_goes_on_to_the_same_bytes(
    make, dataset, shots, tmp_path, monkeypatch
):
    recipe, store, calls, sample = make("base"), Store(tmp_path / "stopped"), [], package.sample
    whole = generate(recipe, dataset, Store(tmp_path / "whole"))
    monkeypatch.setattr(
        package,
        "sample",
        lambda *args: (calls.append(1), len(calls) == 2 and send(), sample(*args))[2],
    )
    with pytest.raises(Stopped), listening():
        generate(recipe, dataset, store)
    assert len(calls) == 2 and len(list(store.root.rglob("*.png"))) == 4, (
        "what was sampled is written"
    )
    folder = generate(recipe, dataset, store)
    assert len(calls) == 9 and [digest(f) for f in sorted(folder.rglob("*.png"))] == [
        digest(f) for f in sorted(whole.rglob("*.png"))
    ]


def test_one_that_waits_for_another_process_can_be_stopped(store):
    store.root.mkdir()
    with FileLock(store.root / ".stage-1.lock"), pytest.raises(Stopped), listening():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        store.make("stage-1", {}, lambda work: pytest.fail("another process has it"))
    assert store.make("stage-1", {}, lambda work: (work / "a").write_text("x")) == store.folder(
        "stage-1"
    )


# Workers.

POOL = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from datadream import signals

def piece(number):
    signals.check()
    (Path(sys.argv[1]) / f"begun {number}").touch()
    for _ in range(3000):
        time.sleep(0.01)
        signals.check()

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), signals.serve) as pool:
        list(pool.map(piece, range(6)))
"""


@pytest.fixture
def pool(tmp_path):
    """Return (process, its workers, the folder that knows what has begun) of a pool of two with
    six pieces to do.
    """
    (tmp_path / "pool.py").write_text(POOL)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "pool.py", tmp_path], process_group=0, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("begun *"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    yield process, workers, tmp_path
    for one in workers:
        if one.is_running():
            one.kill()
    process.kill()
    process.wait()


def test_a_worker_ends_when_its_parent_is_killed(pool):
    process, workers, _ = pool
    process.kill()
    assert len(workers) >= 2 and psutil.wait_procs(workers, timeout=30)[1] == []


def test_ctrl_c_starts_no_further_piece(pool):
    process, workers, folder = pool
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0 and psutil.wait_procs(workers, timeout=30)[1] == []
    assert len(list(folder.glob("begun *"))) == 2


def test_a_sheltered_worker_is_deaf_to_both(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(signals, "_leave_with_parent", lambda: None)
    try:
        signals.shelter()
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert not asked()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
