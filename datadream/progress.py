"""Progress: one source of counts for notebook bars, terminal lines and a cluster's tasks.

Everything that takes longer than a few seconds counts with `track`, which draws a bar. If
$DATADREAM_PROGRESS names a folder, each process also writes its state there: open counters, how far
each artifact is, and the planned work. `Run` reads such a folder from outside, e.g. for
`terminal.Terminal`. Nothing here may make the computation fail: if a state cannot be written, it is
skipped.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .paths import atomic_write, variable

PLACE = "DATADREAM_PROGRESS"  # names the folder of a run's states
THROTTLE = 0.5  # seconds between two states of a process
INTERVAL = 5.0  # seconds between two states of a cluster's file
SETTLED = 60.0  # seconds of measurement after which the planned speed is no longer used
WINDOW = 180.0  # seconds over which the speed is measured, since a machine's load changes
NOUNS = {"adapt": "adapter", "generate": "synthetic set", "train": "classifier", "judge": "result"}

Item = TypeVar("Item")


class Count:
    """A counter of `unit`s from `done` to `total`, shown by a bar and in the process's state."""

    def __init__(self, name: str, unit: str, total: int, done: int, bar: Any):
        self.name, self.unit, self.total, self.done, self.bar = name, unit, total, done, bar
        self.key = _process.keys[-1] if _process.keys else None  # the artifact being made

    def update(self, number: int = 1, **notes: str) -> None:
        """Count `number` more units as done; `notes` are shown after the bar."""
        self.done += number
        if notes:
            self.bar.set_postfix(refresh=False, **notes)
        self.bar.update(number)
        _process.moved(self)

    def state(self) -> dict[str, Any]:
        """Return the counter in the form stored in its process's state."""
        return {
            "name": self.name,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "key": self.key,
        }


@contextlib.contextmanager
def track(name: str, unit: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Count]:
    """Yield a `Count` of `total` units, `done` of which are finished, and show it as a bar.

    There is no bar unless `shown`.
    """
    from tqdm.auto import tqdm  # late: it reads its settings at import, see notebook.begin

    # tqdm's ipywidgets bars ignore the variable that notebook.begin sets.
    hidden = not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    with tqdm(
        total=total, initial=done, desc=name, leave=False, mininterval=2, disable=hidden
    ) as bar:
        count = Count(name, unit, total, done, bar)
        _process.counts.append(count)
        _process.moved(count)
        try:
            yield count
        finally:
            _process.counts.remove(count)
            _process.write(force=not _process.counts)


def each(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, counting each one when the next is requested."""
    if total is None:
        items = list(items)
        total = len(items)
    with track(name, unit, total) as count:
        for item in items:
            yield item
            count.update()


@contextlib.contextmanager
def making(key: str) -> Iterator[None]:
    """Attribute counters to the artifact `key` within the context; mark it as done at the end."""
    _process.keys.append(key)
    try:
        yield
        ended(key)
    finally:
        _process.keys.remove(key)


def ended(key: str) -> None:
    """Record that this run has made the artifact `key`, as planned."""
    _process.artifacts.setdefault(key, [0.0, 0.0])[1] = 1.0
    _process.write(force=True)  # a pool worker may end without writing again


def found(key: str) -> None:
    """Record that the artifact `key` exists, whoever made it."""
    _process.artifacts.setdefault(key, [1.0, 1.0])[1] = 1.0
    _process.write(force=not _process.counts)


def announce(rows: list[dict[str, Any]], speed: float | None = None) -> None:
    """Publish what this run has to make: rows of `key`, `stage`, `seconds` and `done`.

    `speed` is how many of those seconds' work are done per second, None if it was never measured.
    """
    if rows:
        _write(f"plan-{os.getpid()}.json", {"rows": rows, "speed": speed})


def watched() -> bool:
    """True if the state of this process is being read."""
    return bool(variable(PLACE))


def _write(name: str, value: Any) -> None:
    place = variable(PLACE)
    if not place:
        return
    # The work itself reports a full disk; if the folder is gone, nobody is reading.
    with contextlib.suppress(OSError), atomic_write(Path(place, name)) as part:
        part.write_text(json.dumps(value))


class _Process:
    """What this process reports: open counters, outer ones first, and shares of artifacts.

    `artifacts` has [share at first, share now] of each.
    """

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self.keys: list[str] = []
        self.artifacts: dict[str, list[float]] = {}
        self.written = -THROTTLE

    def moved(self, count: Count) -> None:
        """Update the state after a counter has advanced."""
        outer = next((other for other in self.counts if other.key == count.key), count)
        if count.key and count.total and outer is count:
            share = min(1.0, count.done / count.total)
            own = self.artifacts.setdefault(count.key, [share, share])
            own[1] = max(own[1], share)
        self.write()

    def write(self, force: bool = False) -> None:
        """Write the state, unless the last one is younger than THROTTLE."""
        if watched() and (force or time.monotonic() - self.written >= THROTTLE):
            self.written = time.monotonic()
            counts = [count.state() for count in self.counts]
            _write(
                f"{os.getpid()}.json",
                {"counts": counts, "artifacts": self.artifacts, "time": time.time()},
            )


_process = _Process()
atexit.register(_process.write, force=True)


@contextlib.contextmanager
def state_folders() -> Iterator[Path | None]:
    """Yield a temporary folder for the states of some runs, or None if it cannot be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="datadream-", ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder:
        yield Path(folder.name)


class Estimate:
    """Share done and time left for a known amount of work.

    The speed is measured from what was done since the first update.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.share, self.rest, self.planned = clock, 0.0, 0.0, None
        self.samples: deque[tuple[float, float]] = deque()  # (time, work since the first update)

    def update(
        self, total: float, covered: float, made: float, planned: float | None = None
    ) -> None:
        """Record that `covered` of the `total` work exists, `made` of it by this run.

        `planned` is the expected speed, in work per second. The reported share never falls.
        """
        now = self.clock()
        self.share = max(self.share, min(1.0, covered / total if total > 0 else 0.0))
        self.rest, self.planned = max(0.0, total - covered), planned
        self.samples.append((now, made))
        while len(self.samples) > 2 and self.samples[1][0] <= now - WINDOW:
            self.samples.popleft()

    def speed(self) -> float | None:
        """Return the work per second: planned at first, measured after SETTLED seconds.

        A run that has made hardly anything, because it is starting or loading models, has no
        measured speed yet.
        """
        if not self.samples:
            return self.planned
        (start, before), (now, made) = self.samples[0], self.samples[-1]
        seconds = now - start
        trust = min(1.0, seconds / SETTLED)
        measured = (made - before) / seconds if seconds > 0 else 0.0
        if self.planned is None:
            return measured if seconds >= SETTLED / 6 and measured > 0 else None
        trust *= (
            min(1.0, 20 * (made - before) / (self.planned * SETTLED)) if self.planned > 0 else 1.0
        )
        return trust * measured + (1 - trust) * self.planned or None

    def left(self) -> float | None:
        """Return the seconds left, None if unknown."""
        speed = self.speed()
        return self.rest / speed if speed else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # removed in the meantime
        return None


def _alive(file: Path) -> bool:
    import psutil

    return file.stem.isdecimal() and psutil.pid_exists(int(file.stem))


class Run:
    """How far one run is, read from the `folder` that its processes write to.

    Without a folder (None) nothing is known.
    """

    def __init__(self, name: str, folder: Path | None, clock: Callable[[], float] = time.monotonic):
        self.name, self.folder, self.estimate = name, folder, Estimate(clock)
        self.where, self.told = "starting", 0  # what it is doing; bytes of messages read

    def look(self) -> None:
        """Read the states again."""
        files = sorted(self.folder.glob("*.json")) if self.folder else []
        plans = [plan for file in files if file.stem.startswith("plan-") and (plan := _json(file))]
        found = {file: state for file in files if file.stem.isdecimal() and (state := _json(file))}
        artifacts: dict[str, list[float]] = {}
        for state in found.values():
            for key, (start, now) in state["artifacts"].items():
                before = artifacts.setdefault(key, [start, now])
                before[:] = min(before[0], start), max(before[1], now)
        # Do not show what a killed process was doing, but count what it has finished.
        alive = [state for file, state in found.items() if state["counts"] and _alive(file)]
        alive.sort(key=lambda state: state["time"])
        if plans:
            self._planned(plans, artifacts, alive)
        elif alive:
            self._reported(alive)

    def _planned(
        self,
        plans: list[dict[str, Any]],
        artifacts: dict[str, list[float]],
        alive: list[dict[str, Any]],
    ) -> None:
        rows = {row["key"]: row for plan in plans for row in plan["rows"]}
        shares = {
            key: [1.0, 1.0] if row["done"] else artifacts.get(key, [0.0, 0.0])
            for key, row in rows.items()
        }
        covered = sum(row["seconds"] * shares[key][1] for key, row in rows.items())
        made = sum(row["seconds"] * (shares[key][1] - shares[key][0]) for key, row in rows.items())
        self.estimate.update(
            sum(row["seconds"] for row in rows.values()), covered, made, plans[-1]["speed"]
        )
        counts = [
            count for state in alive for count in reversed(state["counts"]) if count["key"] in rows
        ]
        if counts:
            stage = rows[counts[-1]["key"]]["stage"]
            own = [key for key, row in rows.items() if row["stage"] == stage]
            place = min(len(own), 1 + sum(shares[key][1] >= 1 for key in own))
            self.where = (
                f"{NOUNS.get(stage, stage)} {place:,} of {len(own):,}, {_position(counts[-1])}"
            )
        elif alive:
            self.where = _position(alive[-1]["counts"][-1], name=True)
        elif self.estimate.share >= 1:
            self.where = "finishing the page"

    def _reported(self, alive: list[dict[str, Any]]) -> None:
        first = min(alive, key=lambda state: state["counts"][0]["key"] is not None)
        outer, inner = first["counts"][0], alive[-1]["counts"][-1]
        rest = [count for state in alive for count in state["counts"][state is first :][:1]]
        done = outer["done"] + sum(
            count["done"] / count["total"] for count in rest if count["total"]
        )
        share = min(1.0, done / outer["total"]) if outer["total"] else 0.0
        self.estimate.update(1.0, max(share, self.estimate.share), max(share, self.estimate.share))
        parts = (
            []
            if outer is inner
            else [
                f"{outer['unit']} {min(outer['total'], outer['done'] + 1):,} of {outer['total']:,}"
            ]
        )
        self.where = ", ".join([*parts, _position(inner, name=True)])

    def messages(self) -> list[str]:
        """Return the lines that the run's processes wrote to standard error since the last call."""
        if self.folder is None:
            return []
        try:
            with open(self.folder / "stderr", "rb") as file:
                file.seek(self.told)
                text = file.read()
        except OSError:  # nothing has been written yet
            return []
        text = text[: text.rfind(b"\n") + 1]  # the last line may be incomplete
        self.told += len(text)
        return text.decode(errors="replace").splitlines()

    def line(self) -> str:
        """Return the state as one line of plain text."""
        left = self.time_left()
        return ", ".join(
            filter(
                None,
                [
                    f"{self.name}: {self.estimate.share:.0%}",
                    self.where,
                    left and f"about {left} left",
                ],
            )
        )

    def time_left(self) -> str:
        """Return the time left in minutes or hours, '' if unknown."""
        left = self.estimate.left()
        if not left:  # 0 while the page is being finished, for which there is no plan
            return ""
        return f"{left / 3600:.1f} h" if left >= 2 * 3600 else f"{max(0.1, left / 60):.1f} min"


def _position(count: dict[str, Any], name: bool = False) -> str:
    # For cells or jobs, the one being made.
    if name and count["name"].rstrip("s") == count["unit"]:
        return f"{count['unit']} {min(count['total'], count['done'] + 1):,} of {count['total']:,}"
    said = f"{count['unit']} {count['done']:,} of {count['total']:,}"
    return f"{count['name']}, {said}" if name else said


class Progress:
    """Counts of a cluster's tasks by kind, on a bar and in `file` (None: no file).

    The file is for `tail`, where no bar is shown. `kinds` lists the kind of every task; `clock`
    returns seconds. Use it as a context manager: the final state is written too.
    """

    def __init__(
        self,
        kinds: Iterable[str],
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.ended, self.failures = Counter(kinds), Counter(), {}
        self.file, self.clock, self.start, self.written = file and Path(file), clock, clock(), 0.0
        self.tracked = track("tasks", "task", self.total.total())

    def __enter__(self) -> Progress:
        self.count = self.tracked.__enter__()
        self._write()
        return self

    def __exit__(self, *error: Any) -> None:
        self.tracked.__exit__(*error)
        self._write()

    def ended_one(self, kind: str, name: str, error: BaseException | None = None) -> None:
        """Count a task as ended; show the `error` of a failed one at once.

        The other tasks may take hours.
        """
        self.ended[kind] += 1
        if error is not None:
            self.failures[f"{kind} {name}"] = (
                str(error).strip() or type(error).__name__
            ).splitlines()[-1]
        self.count.bar.set_postfix_str(self.line(), refresh=error is not None)
        self.count.update()
        if error is None:
            ended(name)
        if error is not None or self.clock() - self.written >= INTERVAL:
            self._write()

    def line(self) -> str:
        """Return the state as one line: tasks by kind, rate, minutes left, failures.

        For each kind it gives the tasks ended out of all, then overall tasks per minute and the
        minutes left at this rate.
        """
        seconds, ended, total = self.clock() - self.start, self.ended.total(), self.total.total()
        parts = [f"{kind} {self.ended[kind]}/{count}" for kind, count in self.total.items()]
        if ended and seconds > 0:
            parts.append(
                f"{60 * ended / seconds:.1f} tasks a minute, about "
                f"{(total - ended) * seconds / ended / 60:.1f} minutes left"
            )
        return ", ".join([*parts, *([f"{len(self.failures)} failed"] if self.failures else [])])

    def _write(self) -> None:
        self.written = self.clock()
        if self.file:
            text = "\n".join(
                [self.line(), *(f"failed: {task}: {why}" for task, why in self.failures.items())]
            )
            # The tasks themselves report a full disk.
            with contextlib.suppress(OSError), atomic_write(self.file) as part:
                part.write_text(text + "\n")
