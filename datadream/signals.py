"""Stop at a safe place: on SIGTERM, save the state at the next step and end.

A batch scheduler's SIGTERM only leaves a mark, which the computation looks for.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children, connection, parent_process
from pathlib import Path

# names a file with the number of the signal for which this process is sent SIGTERM
CAUSE = "DATADREAM_CAUSE"
_asked: list[int] = []  # the numbers of the signals that came


class Stopped(SystemExit):
    """The process was asked to end by a signal; what it has made is in the store.

    `code` is 128 + the signal's number, as shells count. `cause` is the signal that a user or a
    scheduler sent, where the process got another one for it.
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
    """Return the signal that a user or a scheduler sent, where this process only got SIGTERM for
    it.
    """
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

    Call it where all that is worth keeping has been written.
    """
    if _asked:
        raise Stopped(_asked[0])


def insisted() -> bool:
    """True after a second Ctrl-C: the user does not want to wait."""
    return _asked.count(signal.SIGINT) > 1


def forward() -> None:
    """Ask the worker processes of this one to end."""
    for child in active_children():
        with contextlib.suppress(ProcessLookupError):
            child.terminate()


def end_kernels(cause: Path | None = None) -> None:
    """Ask the kernels of this process's workers to end; kill them after a second Ctrl-C.

    `cause` is the file that $DATADREAM_CAUSE names for them, so that they tell of the signal that
    came here.
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
    """Within, let signals (default: SIGTERM) leave a mark for `check` and not end the process.

    `check` is called at the end too. In a thread other than the main one, where Python sets no
    handlers, the process keeps those that it has.
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
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that is not Python's
        if _note not in before.values():
            _asked.clear()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, let SIGTERM and Ctrl-C leave a mark for `check`; a second Ctrl-C interrupts at once.

    `check` is called at the end too. An exception that a signal's handler raises in a callback or a
    finaliser is ignored there, and Ctrl-C would be lost. Raises KeyboardInterrupt for it all the
    same, which consoles and notebooks go on after; a process that has its own handler of Ctrl-C
    keeps that.
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
    """Make a pool's worker stop at a safe place on SIGTERM and Ctrl-C, and with its parent.

    The mark stays. Without a parent the worker would wait for work for ever; and one that Ctrl-C
    only interrupted would take up the next piece.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)
    _leave_with_parent()


def shelter() -> None:
    """Make a worker that only waits for another process ignore SIGTERM and Ctrl-C.

    It ends once its parent is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN not inherited
    _leave_with_parent()


def _leave_with_parent():
    parent = parent_process()
    if parent is None:  # no worker, but the first process
        return

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
