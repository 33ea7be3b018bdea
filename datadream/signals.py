"""Stop at a safe place: on SIGTERM, save the state at the next step and end.

A batch scheduler's SIGTERM only sets a mark, which the computation checks.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children, connection, parent_process
from pathlib import Path

# Names a file with the number of the signal on account of which this process gets SIGTERM.
CAUSE = "DATADREAM_CAUSE"
_asked: list[int] = []  # the numbers of the signals received


class Stopped(SystemExit):
    """The process was asked to end by a signal; finished work is in the store.

    `code` is 128 + the signal's number, as in shells. `cause` is the signal that a user or a
    scheduler sent, if this process received another one on its account.
    """

    def __init__(self, number: int, cause: int | None = None):
        super().__init__(128 + number)
        self.number, self.cause = number, cause or _cause(number)

    def __str__(self) -> str:
        name = "Ctrl-C (SIGINT)" if self.cause == signal.SIGINT else signal.Signals(self.cause).name
        return f"stopped by {name}; what was made is kept, and the same command goes on from there"

    def __reduce__(self) -> "tuple[type[Stopped], tuple[int, int]]":
        return Stopped, (self.number, self.cause)


def _cause(number):
    """Return the signal that a user or scheduler sent, if it reached this process as SIGTERM."""
    try:
        return int(Path(os.environ[CAUSE]).read_text()) if number == signal.SIGTERM else number
    except (KeyError, OSError, ValueError):
        return number


def _note(number, frame):
    _asked.append(number)
    forward()


def _note_or_interrupt(number, frame):
    _note(number, frame)
    if insisted():
        raise KeyboardInterrupt


def asked() -> int:
    """Return the number of the signal that asked this process to end, 0 if none did."""
    return _asked[0] if _asked else 0


def check() -> None:
    """Raise Stopped if this process was asked to end.

    Call it when everything worth keeping has been written.
    """
    if _asked:
        raise Stopped(_asked[0])


def insisted() -> bool:
    """True after a second Ctrl-C: the user does not want to wait."""
    return _asked.count(signal.SIGINT) > 1


def forward() -> None:
    """Ask this process's workers to end."""
    for child in active_children():
        with contextlib.suppress(ProcessLookupError):
            child.terminate()


def end_kernels(cause: Path | None = None) -> None:
    """Ask the kernels of this process's workers to end; kill them after a second Ctrl-C.

    `cause` is the file that $DATADREAM_CAUSE names for them, so that they report the signal
    received here.
    """
    import psutil

    if cause:
        with contextlib.suppress(OSError):
            cause.write_text(str(asked()))
    number = signal.SIGKILL if insisted() else signal.SIGTERM
    for child in active_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            for kernel in psutil.Process(child.pid).children():
                kernel.send_signal(number)


@contextlib.contextmanager
def listening(*numbers: int) -> Iterator[None]:
    """Within the context, signals (default: SIGTERM) set a mark for `check`.

    They do not end the process, and `check` is also called on exit. Outside the main thread, where
    Python cannot set handlers, the process keeps its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in numbers or (signal.SIGTERM,)}
    try:
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler not set from Python
        if _note not in before.values():
            _asked.clear()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set a mark for `check`; a second Ctrl-C interrupts at once.

    `check` is also called on exit. Without the mark, Ctrl-C could be lost: Python ignores an
    exception that a signal handler raises in a callback or a finaliser. Ctrl-C still raises
    KeyboardInterrupt in the end, after which consoles and notebooks continue. A process with its
    own Ctrl-C handler keeps it.
    """
    alone = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    with listening():
        if alone:
            signal.signal(signal.SIGINT, _note_or_interrupt)
        try:
            yield
            check()
        except Stopped:
            if alone and asked() == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise
        finally:
            if alone:
                signal.signal(signal.SIGINT, signal.default_int_handler)


def serve() -> None:
    """Make a pool worker stop at a safe place on SIGTERM and Ctrl-C, and end with its parent.

    The mark stays set: a worker that Ctrl-C merely interrupted would take up the next task. Without
    a parent it would wait for work forever.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)
    _leave_with_parent()


def shelter() -> None:
    """Make a worker that only waits for another process ignore SIGTERM and Ctrl-C.

    It ends when its parent is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, not inherited
    _leave_with_parent()


def _leave_with_parent():
    parent = parent_process()
    if parent is None:  # not a worker, but the first process
        return

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
