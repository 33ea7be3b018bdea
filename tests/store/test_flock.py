"""A file system without `flock` is named, whatever error it gives."""

import errno

import pytest
from filelock import _unix

from datadream.store.files import StoreError, unlockable, writing
from datadream.study import run

CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, errno.EBADF, errno.EPERM]


@pytest.fixture
def refusing(monkeypatch, request):
    """Let the system refuse every lock."""

    def refuse(fd):
        raise OSError(request.param, "no locks")

    monkeypatch.setattr(_unix, "lock_fd_nonblocking", refuse)


@pytest.mark.parametrize("refusing", CODES, indirect=True, ids=errno.errorcode.get)
def test_a_store_that_cannot_lock_says_so(refusing, store):
    with pytest.raises(StoreError, match="does not lock files .flock: no locks.*DATADREAM_STORE"):
        store.make("stage-1", {}, lambda folder: None)


@pytest.mark.parametrize("refusing", CODES[:2], indirect=True, ids=errno.errorcode.get)
def test_a_cell_says_so_too_before_anything_is_made(refusing, make, store):
    with pytest.raises(StoreError, match="does not lock files"):
        run.run(make("real"), store)
    assert not store.keys()


def test_another_error_is_not_taken_for_a_lock(tmp_path):
    with pytest.raises(OSError, match="other"), writing(tmp_path):
        raise OSError(errno.EIO, "other")
    assert "another place" in str(unlockable(tmp_path, OSError(), "take another place"))


@pytest.mark.parametrize("refusing", [errno.ENOSYS], indirect=True)
def test_a_system_without_the_call_is_locked_by_files(refusing, store):
    folder = store.make("stage-1", {}, lambda folder: (folder / "x").touch())
    assert (folder / "x").exists()
