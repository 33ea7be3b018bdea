"""The atomic write: no reader sees half a file, and nothing is left after a failure."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Killed
from hypothesis import given
from hypothesis import strategies as st

from datadream.paths import atomic_write, part_of
from datadream.store.gc import PART


def content(path):
    return path.read_bytes() if path.exists() else None


@given(
    old=st.none() | st.binary(),
    chunks=st.lists(st.binary()),
    fails=st.none() | st.integers(0, 5),
    error=st.sampled_from([OSError, ValueError, KeyboardInterrupt, Killed]),
)
def test_a_reader_sees_the_old_file_or_the_whole_new_one(
    tmp_path_factory, old, chunks, fails, error
):
    path = tmp_path_factory.mktemp("atomic") / "file.txt"
    if old is not None:
        path.write_bytes(old)
    raised = False
    try:
        with atomic_write(path) as part, part.open("wb", buffering=0) as file:
            for i, chunk in enumerate([*chunks, b"end"]):
                if i == fails:
                    raise error
                file.write(chunk)
                assert content(path) == old and PART.fullmatch(part.name)
    except error:
        raised = True
    assert raised == (fails is not None and fails <= len(chunks))
    assert content(path) == (old if raised else b"".join([*chunks, b"end"]))
    assert [other for other in path.parent.iterdir() if other != path] == [], "nothing is left"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file.txt"

    def write(writer):
        for _ in range(100):
            with atomic_write(path) as part, part.open("w") as file:
                for line in [writer] * 50 + ["end"]:
                    print(line, file=file, flush=True)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, f"writer {number}") for number in range(4)]
        while not all(writer.done() for writer in running):
            lines = (content(path) or b"").decode().splitlines()
            assert not lines or lines == [lines[0]] * 50 + ["end"]
        for writer in running:
            writer.result()
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_nothing_and_tells_why(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "folder") as part:
        part.write_text("content")
    assert caught.value.filename == str(part)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_error_that_is_reported_is_that_of_the_writing(tmp_path):
    """Where the temporary file cannot be removed either, such as in a folder that has gone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="the first"), atomic_write(folder / "file"):
        folder.rmdir()
        folder.write_text("no folder any more")
        raise ValueError("the first")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_a_kill_leaves_the_old_file_and_a_part_that_gc_knows(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom datadream.paths import atomic_write\n"
        "with atomic_write(sys.argv[1]) as part:\n    part.write_text('half')\n    "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    (part,) = (other for other in tmp_path.iterdir() if other != path)
    assert path.read_text() == "old" and PART.fullmatch(part.name)


def test_no_two_parts_have_one_name(tmp_path):
    names = {part_of(tmp_path / "file") for _ in range(1000)}
    assert len(names) == 1000 and {Path(name).parent for name in names} == {tmp_path}
