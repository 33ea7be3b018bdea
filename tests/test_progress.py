"""How far the work is: counts, states of processes, shares, the time left, and a cluster's file."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadream import progress
from datadream.paths import part_of
from datadream.progress import INTERVAL, PLACE, SETTLED, THROTTLE, Estimate, Progress, Run
from datadream.store.artifacts import Store


class Clock:
    """A clock that goes only when it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


KINDS = ["adapt"] * 2 + ["slice"] * 4 + ["cell"]


def test_the_line_has_counts_rate_and_time_left(tmp_path):
    clock = Clock()
    with Progress(KINDS, tmp_path / "progress.txt", clock) as progress:
        assert progress.line() == "adapt 0/2, slice 0/4, cell 0/1", (
            "nothing is known of the rate yet"
        )
        for kind in ("adapt", "slice"):
            clock.now += 30
            progress.ended_one(kind, f"{kind}-1")
        assert (
            progress.line()
            == "adapt 1/2, slice 1/4, cell 0/1, 2.0 tasks a minute, about 2.5 minutes left"
        )
    assert (tmp_path / "progress.txt").read_text() == progress.line() + "\n" and [
        p.name for p in tmp_path.iterdir()
    ] == ["progress.txt"]


def test_a_failure_is_in_the_file_at_once_with_its_cause(tmp_path):
    clock, file = Clock(), tmp_path / "progress.txt"
    with Progress(KINDS, file, clock) as progress:
        clock.now = INTERVAL / 2
        progress.ended_one("adapt", "adapt-1")
        assert "adapt 0/2" in file.read_text(), "written every few seconds only"
        progress.ended_one(
            "slice", "generate-1/0/0", RuntimeError("Traceback ...\nStoreError: the disk is full\n")
        )
        assert file.read_text().splitlines()[1:] == [
            "failed: slice generate-1/0/0: StoreError: the disk is full"
        ]
        assert (
            "adapt 1/2, slice 1/4" in file.read_text()
            and "1 failed" in file.read_text().splitlines()[0]
        )
        clock.now += INTERVAL
        progress.ended_one("cell", "record-1", ValueError())
        assert file.read_text().splitlines()[-1] == "failed: cell record-1: ValueError"


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    with Progress(KINDS, tmp_path / "missing" / "progress.txt") as progress:
        progress.ended_one("adapt", "adapt-1", RuntimeError("x"))
    assert "1 failed" in progress.line()


# The estimate.

SPEEDS = st.floats(0.2, 5)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=30))
def test_the_share_never_falls_and_stays_within_its_bounds(looks):
    """Whatever is reported: amounts that shrink, more covered than there is, no work at all."""
    clock, shares = Clock(), [0.0]
    estimate = Estimate(clock)
    for total, covered in looks:
        clock.now += 1
        estimate.update(total, covered, covered)
        shares.append(estimate.share)
        assert estimate.left() is None or estimate.left() >= 0
    assert shares == sorted(shares) and 0 <= shares[-1] <= 1


@given(
    speed=SPEEDS,
    planned=st.none() | SPEEDS,
    done=st.floats(0, 0.9),
    seconds=st.floats(SETTLED, 900),
    step=st.sampled_from([0.5, 3, 20]),
)
def test_the_time_left_is_right_after_a_minute_of_steady_work(speed, planned, done, seconds, step):
    """Also where the plan expected another speed, and where the store had much of it before:
    that is no speed.
    """
    clock, total = Clock(), 2000 * speed / (1 - done)
    estimate = Estimate(clock)
    while clock.now <= seconds:
        made = speed * (clock.now // step) * step  # reported in steps
        estimate.update(total, done * total + made, made, planned)
        truth = (total * (1 - done) - speed * clock.now) / speed
        clock.now += 0.5
    assert estimate.left() == pytest.approx(truth, rel=0.3)


def test_the_planned_speed_counts_at_first_and_the_last_minutes_count_later():
    clock = Clock()
    estimate = Estimate(clock)
    estimate.update(1000, 0, 0, 2.0)
    assert estimate.left() == 500
    made = 0.0
    for second in range(1200):  # four times as slow once another run has begun
        clock.now += 1
        made += 1.0 if second < 600 else 0.25
        estimate.update(2000, made, made, 2.0)
    assert estimate.left() == pytest.approx((2000 - made) / 0.25, rel=0.01)


def test_without_plan_and_progress_no_time_is_told():
    clock = Clock()
    estimate = Estimate(clock)
    estimate.update(1, 0, 0)
    clock.now = 100
    estimate.update(1, 0, 0)
    assert estimate.left() is None


# The states of processes.


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return the folder that the states of this process go to."""
    monkeypatch.setenv(PLACE, str(tmp_path / "place"))
    monkeypatch.setattr(progress, "_process", progress._Process())
    monkeypatch.setattr(progress, "THROTTLE", 0.0)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


PLAN = [
    {"key": "adapt-1", "stage": "adapt", "seconds": 30.0, "done": True},
    {"key": "adapt-2", "stage": "adapt", "seconds": 30.0, "done": False},
    {"key": "train-1", "stage": "train", "seconds": 40.0, "done": False},
]


def test_a_run_tells_its_stage_its_place_and_its_share(place, tmp_path):
    run, store = Run("mnist", place), Store(tmp_path / "store")
    run.look()
    assert run.line() == "mnist: 0%, starting"
    progress.announce(PLAN, 1.0)
    lines = []

    def build(work):
        with progress.track("adapt zero", "step", 320, 80) as count:
            count.update(40, loss="0.1")
            run.look()
            lines.append(run.line())

    with progress.track("cells", "cell", 2):
        run.look()
        assert run.line() == "mnist: 30%, cell 1 of 2, about 1.2 min left", (
            "the store has one adapter"
        )
        store.make("adapt-2", {}, build)
        assert lines[0].startswith("mnist: 41%, adapter 2 of 2, step 120 of 320, about ")
        assert run.estimate.samples[-1][1] == pytest.approx(30 * 40 / 320), (
            "what an earlier run had done is no speed"
        )
        run.look()
        assert run.estimate.share == pytest.approx(0.6)
        progress.found("train-1")  # by another run
    run.look()
    assert run.line() == "mnist: 100%, finishing the page"


def test_a_run_without_a_plan_goes_by_its_outermost_counter(place):
    run = Run("mini_base", place)
    with progress.track("jobs", "job", 4, 1), progress.track("train classifier", "step", 10, 5):
        run.look()
        assert run.line() == "mini_base: 38%, job 2 of 4, train classifier, step 5 of 10"
    with progress.track("features", "part", 4):
        run.look()
        assert run.line().startswith("mini_base: 38%, features, part 0 of 4"), (
            "the share does not fall"
        )


def test_a_killed_process_leaves_no_line_and_what_it_finished_counts(place):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    count = {"name": "adapt", "unit": "step", "done": 1, "total": 9, "key": "adapt-2"}
    (place / f"{gone.pid}.json").write_text(
        json.dumps({"counts": [count], "artifacts": {"adapt-2": [0, 1]}, "time": time.time()})
    )
    Path(part_of(place / "1.json")).write_text("{")
    run = Run("mnist", place)
    progress.announce(PLAN)
    run.look()
    assert run.where == "starting" and run.estimate.share == pytest.approx(0.6)


def test_the_workers_of_a_pool_report_to_the_same_folder(place):
    code = (
        "from datadream import progress\n"
        "with progress.making('train-1'), progress.track('train', 'step', 2) as count:\n    "
        "count.update(2)\nimport os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    run = Run("mnist", place)
    progress.announce(PLAN)
    run.look()
    assert run.estimate.share == pytest.approx(0.7)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda place: place.rmdir(),
        lambda place: place.chmod(0o500),
        lambda place: os.environ.update({PLACE: "/dev/full"}),
    ],
)
def test_a_state_that_cannot_be_written_ends_nothing(place, spoil):
    spoil(place)
    with progress.making("a"), progress.track("work", "step", 2) as count:
        count.update(2)
    progress.announce(PLAN)
    run = Run("mnist", place)
    run.look()
    assert run.estimate.share in (0.0, 0.3), "root may write into a closed folder"
    Run("mnist", None).look()


def test_states_are_written_every_half_second_at_most(place, monkeypatch):
    monkeypatch.setattr(progress, "THROTTLE", THROTTLE)
    written = []
    monkeypatch.setattr(progress, "_write", lambda name, value: written.append(name))
    start = time.monotonic()
    with progress.track("work", "step", 100_000) as count:
        for _ in range(1000):
            count.update()
    assert len(written) <= 2 + (time.monotonic() - start) / THROTTLE


def test_messages_are_read_once_and_whole(place):
    run = Run("mnist", place)
    assert run.messages() == []
    with open(place / "stderr", "a") as file:
        for text, lines in (("a\nb", ["a"]), ("c\n", ["bc"]), ("", [])):
            file.write(text)
            file.flush()
            assert run.messages() == lines


def test_each_counts_what_was_done_with(place):
    seen = []
    for item in progress.each("ab", "letters", "letter"):
        seen.append((item, progress._process.counts[0].done))
    assert seen == [("a", 0), ("b", 1)] and not progress._process.counts


def test_a_run_that_has_only_started_is_told_the_planned_time():
    """A study that loads its models for a minute on a busy machine had hours left."""
    now = [0.0]
    estimate = Estimate(lambda: now[0])
    for now[0] in (0.0, 30.0, 75.0):
        estimate.update(100.0, 49.0, 0.02 * (now[0] > 70), planned=1.0)
    assert 40 < estimate.left() < 70
