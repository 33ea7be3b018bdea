"""How far a cluster is: counts by kind, rate, time left, and failures, on one line and in one file."""

from datadream.progress import INTERVAL, Progress


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
        assert progress.line() == "adapt 0/2, slice 0/4, cell 0/1", "nothing is known of the rate yet"
        for kind in ("adapt", "slice"):
            clock.now += 30
            progress.ended_one(kind, f"{kind}-1")
        assert progress.line() == "adapt 1/2, slice 1/4, cell 0/1, 2.0 tasks a minute, about 2.5 minutes left"
    assert (tmp_path / "progress.txt").read_text() == progress.line() + "\n" and [p.name for p in tmp_path.iterdir()] == ["progress.txt"]


def test_a_failure_is_in_the_file_at_once_with_its_cause(tmp_path):
    clock, file = Clock(), tmp_path / "progress.txt"
    with Progress(KINDS, file, clock) as progress:
        clock.now = INTERVAL / 2
        progress.ended_one("adapt", "adapt-1")
        assert "adapt 0/2" in file.read_text(), "written every few seconds only"
        progress.ended_one("slice", "generate-1/0/0", RuntimeError("Traceback ...\nStoreError: the disk is full\n"))
        assert file.read_text().splitlines()[1:] == ["failed: slice generate-1/0/0: StoreError: the disk is full"]
        assert "adapt 1/2, slice 1/4" in file.read_text() and "1 failed" in file.read_text().splitlines()[0]
        clock.now += INTERVAL
        progress.ended_one("cell", "record-1", ValueError())
        assert file.read_text().splitlines()[-1] == "failed: cell record-1: ValueError"


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    with Progress(KINDS, tmp_path / "missing" / "progress.txt") as progress:
        progress.ended_one("adapt", "adapt-1", RuntimeError("x"))
    assert "1 failed" in progress.line()
