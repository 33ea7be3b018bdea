"""Leases: who makes an artifact where no file lock reaches, as on object storage."""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress

from .. import signals

BEAT = 10.0  # seconds between two heartbeats of a holder
# seconds without one after which a holder is taken for dead: several beats, since a busy machine
# may miss some
PATIENCE = 60.0
POLL = 1.0  # seconds between two looks of a worker that waits


class Lease:
    """An object at `path` of an fsspec file system that names its holder and counts its heartbeats:
    "<owner> <beat>".

    A worker that waits watches the content, and removes the lease once it has not changed for
    PATIENCE seconds of its own monotonic clock; no time is written or compared, so that clocks that
    differ between machines do no harm. A second object, `<path>.dead`, lets one worker at a time do
    so, since another may have found the same holder dead and be the new one.

    What is guaranteed: a holder that dies is replaced. Two workers hold a lease together only where
    the file system cannot create an object exclusively (fsspec's mode "xb"; local folders and S3
    can), after a holder was cut off for longer than PATIENCE and came back, or where one that
    removed a lease died in that moment. What a lease guards must therefore be harmless if it is
    done twice.
    """

    def __init__(self, fs, path):
        self.fs, self.path = fs, path
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop, self._seen = threading.Event(), {}
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self):
        """Wait until the lease is this worker's, and keep its heartbeat going in a thread;
        raises Stopped if it is asked to end while it waits.
        """
        while True:
            content = read_lease(self.fs, self.path)
            if content is None and create(self.fs, self.path, f"{self.owner} 0"):
                break
            signals.check()
            if not (self._dead(self.path, content) and self._remove_dead(content)):
                time.sleep(POLL)
        self._thread.start()

    def _dead(self, path, content):
        """Return whether the object at `path` has had this content for PATIENCE seconds."""
        if content is None or self._seen.get(path, (None,))[0] != content:
            self._seen[path] = content, time.monotonic()
        return content is not None and time.monotonic() - self._seen[path][1] >= PATIENCE

    def _remove_dead(self, content):
        """Remove a dead holder's lease unless it has another by now, and return True; False
        while another worker does so.
        """
        mark = f"{self.path}.dead"
        if create(self.fs, mark, self.owner):
            if read_lease(self.fs, self.path) == content:
                remove_lease(self.fs, self.path)
            remove_lease(self.fs, mark)
            return True
        if self._dead(mark, read_lease(self.fs, mark)):
            remove_lease(self.fs, mark)
        return False

    def release(self):
        """End the heartbeat and remove the lease if it is still this worker's; one that cannot
        be removed expires.
        """
        self._stop.set()
        self._thread.join()
        with suppress(Exception):  # the work is done, and must not fail for a network that is gone
            if self._own():
                remove_lease(self.fs, self.path)

    def _own(self):
        return (read_lease(self.fs, self.path) or "").startswith(f"{self.owner} ")

    def _beat(self):
        beat = 0
        while not self._stop.wait(BEAT):
            beat += 1
            # Whatever a network raises: the next beat may come through, or the lease expires.
            with suppress(Exception):
                if not self._own():
                    return
                self.fs.pipe_file(self.path, f"{self.owner} {beat}".encode())


def read_lease(fs, path):
    """Return the content of a lease as text, None if there is none."""
    try:
        return fs.cat_file(path).decode(errors="replace")
    except FileNotFoundError:
        return None


def create(fs, path, content):
    """Create an object that is not there and return whether this call did; exclusive where the
    file system's mode "xb" is.
    """
    try:
        with fs.open(path, "xb") as file:
            file.write(content.encode())
        return True
    except FileExistsError:
        return False


def remove_lease(fs, path):
    """Remove a lease, if it is there."""
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def running(fs, paths):
    """Return the first lease of `paths` whose heartbeat goes on, as "path (owner)", or None once
    none did for PATIENCE seconds.
    """
    first, start = {path: read_lease(fs, path) for path in paths}, time.monotonic()
    while any(content is not None for content in first.values()):
        for path, content in first.items():
            now = read_lease(fs, path)
            if now and now != content:  # an empty one is being written
                return f"{path} ({now.split()[0]})"
        if time.monotonic() - start >= PATIENCE:
            break
        time.sleep(POLL)
    return None
