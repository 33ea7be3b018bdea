"""The last outcome of each named run, kept in a small file beside the executed pages.

A long build reports them at its end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from IPython.display import Markdown

from ..paths import paths, relative_to_home
from ..results.tables import bullets
from ..store.files import StoreError, reading, write_json

BAD = ("failed", "stopped")


def status_file() -> Path:
    """Return the file of outcomes."""
    return paths()["runs"] / "status.json"


def load_outcomes() -> dict[str, dict[str, Any]]:
    """Return run -> `status`, `minutes`, `note`, `time` of each run's last execution.

    A damaged file counts as empty. Raises StoreError on one that cannot be read.
    """
    try:
        with reading(status_file()):
            content = json.loads(status_file().read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(content, dict) and all(
        isinstance(one, dict) and {"status", "minutes", "note", "time"} <= one.keys()
        for one in content.values()
    )
    return content if sound else {}


def save(row: dict[str, Any], known: set[str]) -> None:
    """Record how a run ended, and forget the runs that are not `known`.

    `row` is a row of run_study's table. If the file cannot be written, says so and goes on.
    """
    file = status_file()
    try:
        with FileLock(f"{file}.lock", timeout=10):  # another study may finish a run at this moment
            content = {name: one for name, one in load_outcomes().items() if name in known}
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json(
                file,
                content
                | {
                    row["run"]: {
                        **{name: row[name] for name in ("status", "minutes", "note")},
                        "time": when,
                    }
                },
            )
    except (OSError, StoreError, Timeout) as error:
        print(
            f"{relative_to_home(file)} cannot be written ({error}); `datadream outcome` will not "
            f"know of the run {row['run']}",
            file=sys.stderr,
        )


def failures() -> list[dict[str, Any]]:
    """Return the runs that failed or were stopped when last executed, sorted by name.

    Each has `run`, its outcome, and the paths of the `page` and its `html` that remain (or None).
    """
    found = []
    for name, one in sorted(load_outcomes().items()):
        if one["status"] in BAD:
            page = paths()["runs"] / f"{name}.failed.ipynb"
            found.append(
                {
                    "run": name,
                    **one,
                    "page": relative_to_home(page) if page.exists() else None,
                    "html": _html(name),
                }
            )
    return found


def _html(name: str) -> str | None:
    page = paths()["home"] / "_build" / "html" / "book" / "runs" / f"{name}.failed.html"
    return relative_to_home(page) if page.exists() else None


def failure_report() -> str:
    """Return the runs that did not end well, a paragraph each with the path of its page.

    One line if all is well.
    """
    outcomes, bad = load_outcomes(), failures()
    if not outcomes:
        return f"no run has been executed here yet: {relative_to_home(status_file())} is not there"
    if not bad:
        return f"all {len(outcomes)} runs ended well"
    lines = [f"{len(bad)} of {len(outcomes)} runs did not end well:"]
    for one in bad:
        lines.append(
            f"  {one['run']}: {one['status']} after {one['minutes']} min: "
            f"{' '.join(one['note'].split())}"
        )
        lines += [
            f"    {what}: {one[name]}"
            for name, what in (("page", "what it had done"), ("html", "in the book"))
            if one[name]
        ]
        lines.append(f"    again: python -m datadream study {one['run']}")
    return "\n".join(lines)


def notice() -> Markdown | None:
    """Return the front page's note on runs that did not end well; None if all did."""
    lines = []
    for one in failures():
        way = f" Its page, up to there, is {one['page']}." if one["page"] else ""
        lines.append(
            f"{one['run']} {one['status']} after {one['minutes']} minutes: {one['note']}.{way}"
        )
    if not lines:
        return None
    head = (
        f"**{len(lines)} of {len(load_outcomes())} runs on this machine did not end well.** Pages "
        "of your own run may be older."
    )
    return Markdown(f"{head}\n\n{bullets(lines).data}")
