"""Execute named runs with papermill, in parallel, each in its own process."""

import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from .. import progress, signals
from ..engines.names import engine_parts
from ..errors import ConfigError
from ..paths import paths, relative_to_home
from ..store.cores import usable_cores
from ..store.files import digest, reading, try_writing, write_json, writing
from . import outcome
from . import parameters as notebook_parameters
from .named_runs import JOBS, choose, load_study, page_cells, page_parameters
from .terminal import Terminal

MOVE_PAGES = "name another project folder with DATADREAM_HOME"


@lru_cache
def _package():
    """Return a digest of the package's code and embedded weights.

    A page made by another version is executed again, from the store.
    """
    files = sorted(
        p
        for p in Path(__file__).parents[1].rglob("*")
        if p.suffix in (".py", ".json", ".safetensors")
    )
    return hashlib.sha256("".join(digest(p) for p in files).encode()).hexdigest()


def _fingerprint(template, parameters):
    source = [cell["source"] for cell in json.loads(template.read_text())["cells"]]
    return hashlib.sha256(
        json.dumps([source, parameters, _package()], sort_keys=True).encode()
    ).hexdigest()[:16]


def _finished(output, fingerprint):
    """True if a page was executed without exception from this template, parameters and package.

    Raises StoreError on a page that cannot be read.
    """
    try:
        with reading(output):
            notes = json.loads(output.read_text())["metadata"]
        return notes.get("datadream") == fingerprint and not notes.get("papermill", {}).get(
            "exception", True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _recorded(name, entry):
    """True if the store has the records that a finished page of notebooks/dataset.ipynb shows.

    The book reads them anew.
    """
    from .run import find  # here: it imports torch, which takes seconds

    try:
        return entry["notebook"] != "dataset" or len(find(page_cells(name))) > 0
    except LookupError:
        return False


def execute(
    name: str, entry: Mapping[str, Any], parameters: Mapping[str, Any], runs: Path
) -> tuple[str, float, str]:
    """Execute one named run with papermill and return (status, seconds, note).

    A failed notebook is kept as <name>.failed.ipynb.
    """
    import papermill

    template, output = paths()["notebooks"] / f"{entry['notebook']}.ipynb", runs / f"{name}.ipynb"
    part, start = runs / f"{name}.failed.ipynb", time.perf_counter()
    try:
        fingerprint = _fingerprint(template, parameters)
        if _finished(output, fingerprint) and _recorded(name, entry):
            return "done before", 0.0, relative_to_home(output)
        papermill.execute_notebook(
            template,
            part,
            parameters=parameters,
            progress_bar=False,
            start_timeout=300,
            config=_quiet_kernel(),
            **_kernel(template),
        )
    except papermill.PapermillExecutionError as error:
        return (
            "failed",
            time.perf_counter() - start,
            f"{error.ename}: {error.evalue} (see {relative_to_home(part)})",
        )
    except Exception as error:
        # A dead or missing kernel, a broken template: the other runs must go on.
        return "failed", time.perf_counter() - start, f"{type(error).__name__}: {error}"
    notebook = json.loads(part.read_text())
    # papermill can end normally after a failed cell (its issue 501).
    if notebook["metadata"]["papermill"].get("exception"):
        return (
            "failed",
            time.perf_counter() - start,
            f"a cell raised (see {relative_to_home(part)})",
        )
    notebook["metadata"]["datadream"] = fingerprint
    write_json(output, notebook)
    part.unlink()
    return "done", time.perf_counter() - start, relative_to_home(output)


def _execute_apart(name, entry, parameters, runs, place=None):
    """Call `execute` in a process of its own, so that a killed one does not end the other runs.

    `place` is the folder of its states (see `progress`), or None.
    """
    start = time.perf_counter()
    try:
        signals.check()
        with ProcessPoolExecutor(1, get_context("spawn"), signals.shelter) as pool:
            status, seconds, note = pool.submit(
                _execute_watched, name, entry, parameters, runs, place
            ).result()
    except BrokenProcessPool as error:
        status, seconds, note = "failed", time.perf_counter() - start, f"its process died: {error}"
    except signals.Stopped:
        status, seconds, note = "stopped", 0.0, "had not begun"
    if status == "failed" and signals.asked():
        dead = note.startswith("DeadKernelError")  # in a cell that had no state to save
        return "stopped", seconds, str(signals.Stopped(signals.asked())) if dead else note
    return status, seconds, note


def _execute_watched(name, entry, parameters, runs, place):
    """Call `execute` with its states and its standard error in the folder `place`.

    The kernel's standard error goes there too.
    """
    # The run's note already says so.
    logging.getLogger("papermill").addFilter(lambda entry: "Kernel died" not in entry.getMessage())
    if place:
        os.environ.update({progress.PLACE: str(place), signals.CAUSE: str(place.parent / "cause")})
        with suppress(OSError), open(place / "stderr", "ab") as file:
            # A line in the middle of the terminal's live display would garble it.
            os.dup2(file.fileno(), 2)
    return execute(name, entry, parameters, runs)


def smoke_home() -> None:
    """Copy the sources to _build/smoke and make that this process's project folder.

    There, tiny results cannot be mistaken for real ones.
    """
    source, target = paths()["home"], paths()["smoke"]
    shutil.rmtree(target, ignore_errors=True)
    for name in ("_config.yml", "_toc.yml"):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    # The book's pages include code from the package.
    for name in ("book", "datadream", "notebooks", "benchmarks"):
        shutil.copytree(
            source / name, target / name, ignore=shutil.ignore_patterns("runs", "__pycache__")
        )
    os.environ.update(DATADREAM_HOME=str(target), DATADREAM_STORE=str(target / "artifacts"))


def run_study(
    names: Collection[str] = (),
    group: str = "default",
    smoke: bool = False,
    file: str | Path | None = None,
    jobs: int = 1,
    engine: str = "local",
) -> pd.DataFrame:
    """Execute the pending named runs, `jobs` at once, and return a table of their outcomes.

    A failed run does not end the others. `names` chooses runs; without names, all of `group` are
    run. `smoke` shrinks every run to the tiny parameters of the study file, and adds one run of
    each notebook that the group leaves out. `engine` is passed to the notebooks that have such a
    parameter.

    Raises Stopped on SIGTERM and Ctrl-C once the runs have saved their state; a second Ctrl-C does
    not wait for that. Raises StoreError if the pages cannot be written, and ConfigError if several
    simultaneous runs would each start a Ray cluster on the same cores and GPUs.
    """
    _require_one_cluster(jobs, engine)
    study = load_study(file)
    chosen, runs = choose(study, names, group), paths()["runs"]
    if smoke and not names:  # every notebook once, whatever its group
        covered = {entry["notebook"] for entry in chosen.values()}
        rest = {
            entry["notebook"]: name
            for name, entry in reversed(study["runs"].items())
            if entry["notebook"] not in covered
        }
        chosen |= {name: study["runs"][name] for name in rest.values()}
    with writing(runs, MOVE_PAGES):  # before hours of work whose page cannot be written
        runs.mkdir(parents=True, exist_ok=True)
        try_writing(runs)
    # Kernels are separate processes that take their number of threads from the environment.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
    os.environ[JOBS] = str(min(jobs, len(chosen)))  # for the time estimates on the pages
    with (
        signals.listening(signal.SIGTERM, signal.SIGINT),
        progress.state_folders() as place,
        ThreadPoolExecutor(jobs) as pool,
        Terminal() as terminal,
    ):
        futures = {}
        terminal.say(f"{len(chosen)} runs: {', '.join(chosen)}")
        for name, entry in chosen.items():
            parameters = {
                **entry.get("parameters", {}),
                **(study["smoke"].get(entry["notebook"], {}) if smoke else {}),
            }
            if engine != "local" and "engine" in page_parameters(entry["notebook"]):
                parameters["engine"] = engine
            own = _place(place, name)
            futures[pool.submit(_execute_apart, name, entry, parameters, runs, own)] = progress.Run(
                name, own
            )
        return pd.DataFrame(
            _collect(futures, terminal, set(study["runs"]), place and place / "cause")
        )


def _require_one_cluster(jobs: int, engine: str) -> None:
    name, address = engine_parts(engine)
    if name == "ray" and jobs > 1 and not (address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            f"jobs={jobs} with engine='ray': every run would start a cluster of its own on the "
            "same cores and GPUs; leave --jobs at 1, since Ray uses all of them, or name one "
            "cluster, as in --engine ray:auto"
        )


def _place(place, name):
    """Return the folder for a run's states in `place`, or None if it cannot be made."""
    try:
        own = place and place / name
        if own:
            own.mkdir()
        return own
    except OSError:
        return None


def _collect(futures, terminal, known, cause):
    """Return a row per named run, in the order in which they end, showing progress meanwhile.

    `futures` maps what `_execute_apart` returns to the progress.Run. Each outcome is saved beside
    the pages, with those of other `known` runs. `cause` is the file of signals.end_kernels.
    """
    rows, pending = [], set(futures)
    while pending:
        ended, pending = wait(pending, progress.THROTTLE, FIRST_COMPLETED)
        if signals.asked():
            signals.end_kernels(cause)  # repeatedly: one may only just have started
        for future in ended:
            status, seconds, note = future.result()
            name = futures[future].name
            rows.append(
                {"run": name, "status": status, "minutes": round(seconds / 60, 1), "note": note}
            )
            outcome.save(rows[-1], known)
            terminal.complaints(futures[future])
            terminal.say(f"  {name}: {status} in {seconds / 60:.1f} min: {note}")
        terminal.show(run for future, run in futures.items() if future.running())
    return rows


def _kernel(template) -> dict[str, Any]:
    """Return papermill's kernel arguments for a Python notebook.

    This interpreter's kernel is used if the notebook names none, or one that this machine lacks,
    such as that of its author's environment.
    """
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager

    notebook = json.loads(template.read_text(encoding="utf-8"))
    if notebook_parameters.language_of(notebook) != "python":
        return {}
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    known = name in KernelSpecManager().find_kernel_specs()
    return {"language": "python", **({} if known else {"kernel_name": NATIVE_KERNEL_NAME})}


def _quiet_kernel():
    """Return kernel settings with encrypted messages.

    Otherwise the kernel warns of plain text on a local port.
    """
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"}) if zmq.has("curve") else Config()
