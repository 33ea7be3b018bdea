"""Leases: one holder at a time, the dead replaced, whatever the clocks say."""

import threading
import time

import pytest
from fsspec.core import url_to_fs

from datadream.store import leases
from datadream.store.leases import Lease, create, read_lease, running


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return (file system, path of a lease) in a folder, with the times of leases shortened."""
    for name, seconds in {"BEAT": 0.02, "PATIENCE": 0.5, "POLL": 0.02}.items():
        monkeypatch.setattr(leases, name, seconds)
    return url_to_fs(f"file://{tmp_path}/address/stage-1.lease", auto_mkdir=True)


def until(condition, seconds=60):
    """Wait until a condition holds, and return whether it ever did."""
    start = time.monotonic()
    while not condition() and time.monotonic() - start < seconds:
        time.sleep(0.01)
    return condition()


def in_thread(lease):
    """Let a thread wait for the lease; return an event that is set once it is held."""
    held = threading.Event()
    threading.Thread(target=lambda: (lease.acquire(), held.set()), daemon=True).start()
    return held


def test_a_lease_is_there_while_it_is_held(place):
    lease = Lease(*place)
    lease.acquire()
    assert read_lease(*place).split()[0] == lease.owner
    lease.release()
    assert read_lease(*place) is None


def test_a_second_one_waits_for_as_long_as_the_heart_beats(place):
    first, second = Lease(*place), Lease(*place)
    first.acquire()
    held = in_thread(second)
    assert not held.wait(2 * leases.PATIENCE), "the holder lives"
    first.release()
    assert held.wait(60) and read_lease(*place).startswith(second.owner)
    second.release()


def test_of_many_that_come_at_once_each_holds_it_alone(place, monkeypatch):
    monkeypatch.setattr(leases, "PATIENCE", 60)
    inside, most, done = [], [], []

    def work(lease):
        lease.acquire()
        inside.append(lease)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(lease)
        lease.release()
        done.append(lease)

    threads = [threading.Thread(target=work, args=(Lease(*place),), daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 5 and set(most) == {1}


@pytest.mark.parametrize(
    "shift", [-(10**8), 10**8], ids=["three years behind", "three years ahead"]
)
def test_a_dead_one_s_lease_is_taken_over_whatever_the_clock_says(place, monkeypatch, shift):
    fs, path = place
    assert create(fs, path, "dead-1 7")
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + shift)
    lease, start = Lease(fs, path), time.monotonic()
    lease.acquire()
    assert time.monotonic() - start >= leases.PATIENCE and read_lease(fs, path).startswith(
        lease.owner
    )
    lease.release()


def test_of_two_that_find_it_dead_at_once_one_waits(place, monkeypatch):
    monkeypatch.setattr(leases, "POLL", 0.2)
    fs, path = place
    assert create(fs, path, "dead-1 7")
    first, second = Lease(fs, path), Lease(fs, path)
    one, other = in_thread(first), in_thread(second)
    assert until(lambda: one.is_set() or other.is_set())
    time.sleep(0.3)
    assert one.is_set() != other.is_set()
    (first if one.is_set() else second).release()
    assert one.wait(60) and other.wait(60)
    (second if read_lease(fs, path).startswith(second.owner) else first).release()
    assert until(lambda: read_lease(fs, path) is None)


def test_one_that_found_the_holder_dead_too_late_leaves_the_new_one_its_lease(place, monkeypatch):
    """Between its look and its removal the dead holder's lease is another's: the removal looks
    again, alone.
    """
    fs, path = place
    assert create(fs, path, "dead-1 7")
    lease, look = Lease(fs, path), Lease._remove_dead

    def late(self, content):
        monkeypatch.setattr(Lease, "_remove_dead", look)
        fs.pipe_file(path, b"new-2 0")
        return look(self, content)

    monkeypatch.setattr(Lease, "_remove_dead", late)
    monkeypatch.setattr(leases, "PATIENCE", 0.2)
    held = in_thread(lease)
    assert until(lambda: read_lease(fs, path) == "new-2 0")
    assert not held.wait(0.1) and read_lease(fs, path) == "new-2 0"
    assert held.wait(60), "which dies in its turn"
    lease.release()


def test_one_that_died_while_it_removed_a_dead_lease_is_replaced_too(place):
    fs, path = place
    assert create(fs, path, "dead-1 7") and create(fs, f"{path}.dead", "dead-2")
    lease = Lease(fs, path)
    lease.acquire()
    assert read_lease(fs, path).startswith(lease.owner) and read_lease(fs, f"{path}.dead") is None
    lease.release()


def test_a_holder_that_was_replaced_leaves_the_lease_to_the_other(place):
    fs, path = place
    lease = Lease(fs, path)
    lease.acquire()
    fs.pipe_file(path, b"other-2 0")
    assert until(lambda: not lease._thread.is_alive()), "its heart has stopped"
    lease.release()
    assert read_lease(fs, path) == "other-2 0"


def test_a_network_that_is_gone_for_a_while_ends_neither_the_work_nor_the_heartbeat(
    place, monkeypatch
):
    fs, path = place
    lease = Lease(fs, path)
    lease.acquire()
    failed = []

    def fail(*_, **__):
        failed.append(1)
        raise ConnectionError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "cat_file", fail)
        assert until(lambda: len(failed) > 2)
    beat = read_lease(fs, path)
    assert until(lambda: read_lease(fs, path) not in (beat, "")), "it goes on"
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "cat_file", fail)
        lease.release()
    assert read_lease(fs, path).startswith(lease.owner), "it stays, and expires"


def test_a_running_holder_is_told_from_a_dead_one(place):
    fs, path = place
    assert running(fs, [path]) is None
    assert create(fs, path, "dead-1 7") and running(fs, [path]) is None
    lease = Lease(fs, f"{path}2")
    lease.acquire()
    assert running(fs, [path, f"{path}2"]) == f"{path}2 ({lease.owner})"
    lease.release()
