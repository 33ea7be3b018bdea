"""What a cluster has done and what is left: tasks by kind, their rate, the time left, and what is failing, as a bar and in one file."""

import contextlib
import os
import time
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

INTERVAL = 5.0  # seconds between two states of the file


class Progress:
    """Counts of tasks by kind, shown on a bar and written to `file` (None: nowhere), which `tail` reads where no page shows the bar.

    `kinds` has the kind of every task; `clock` gives seconds. Use it as a context: its end is written too.
    """

    def __init__(self, kinds, file=None, clock=time.monotonic):
        self.total, self.ended, self.failures = Counter(kinds), Counter(), {}
        self.file, self.clock, self.start, self.written = file and Path(file), clock, clock(), None
        self.bar = tqdm(total=self.total.total(), desc="tasks", leave=False, mininterval=2)

    def __enter__(self):
        self._write()
        return self

    def __exit__(self, *error):
        self.bar.close()
        self._write()

    def ended_one(self, kind, name, error=None):
        """Count a task as ended; `error`, if it failed, is shown at once: the other tasks may take hours."""
        self.ended[kind] += 1
        if error is not None:
            self.failures[f"{kind} {name}"] = (str(error).strip() or type(error).__name__).splitlines()[-1]
        self.bar.set_postfix_str(self.line(), refresh=error is not None)
        self.bar.update()
        if error is not None or self.clock() - self.written >= INTERVAL:
            self._write()

    def line(self):
        """Return the state as one line: tasks ended of all by kind, tasks a minute, minutes left at this rate, failures."""
        seconds, ended, total = self.clock() - self.start, self.ended.total(), self.total.total()
        parts = [f"{kind} {self.ended[kind]}/{count}" for kind, count in self.total.items()]
        if ended and seconds > 0:
            parts.append(f"{60 * ended / seconds:.1f} tasks a minute, about {(total - ended) * seconds / ended / 60:.1f} minutes left")
        return ", ".join([*parts, *([f"{len(self.failures)} failed"] if self.failures else [])])

    def _write(self):
        self.written = self.clock()
        if self.file:
            text = "\n".join([self.line(), *(f"failed: {task}: {why}" for task, why in self.failures.items())])
            with contextlib.suppress(OSError):  # a full disk is for the tasks to report
                part = Path(f"{self.file}.part")
                part.write_text(text + "\n")
                os.replace(part, self.file)
