"""Kill, stop, starve and confuse a small study in every stage, start it again, and compare its
records: `python tests/faults/campaign.py --help`.

It measures whether what goes on from there ends with the undisturbed run's records, and the seconds
that were lost. Cases that the results hold from the same commit are not run again, and those of
another commit are kept where the options leave them out.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import disturb
import psutil
from disturb import FAILED, STAGES, ended, family, left_behind, reached, records, start

from datadream.methods.recipes import recipe
from datadream.paths import paths
from datadream.results.benchmark_tables import fault_table, input_table, load_faults
from datadream.store.files import write_json
from datadream.store.provenance import provenance
from datadream.study import run

ROOT = Path(__file__).resolve().parents[2]
# The tiny models, the folder of images and the bad input are the tests'.
sys.path.insert(0, str(ROOT / "tests"))
ENGINES = ("one process", "two processes", "ray", "command line")
YEAR = 365 * 86400


@dataclass
class Box:
    """The place of one case: its folder, the cells, the engine, the address of a Ray cluster,
    and what the case has to say.
    """

    root: Path
    recipes: list
    engine: str
    cluster: object = None
    notes: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    sound: bool = True

    @property
    def store(self):
        """The folder of artifacts."""
        return self.root / "artifacts"

    def start(self, **options):
        """Start the study; `shared` lends it the Ray cluster that is there, else it starts its
        own.
        """
        address = self.cluster.address if options.pop("shared", False) and self.cluster else None
        if self.engine == "command line":
            return Command(self.root)
        return start(
            self.recipes,
            self.store,
            self.engine,
            self.root / "notes.txt",
            address=address,
            **options,
        )

    def end(self, process, *expected):
        """Wait for a process and note its exit status, which must be one of `expected`."""
        self.statuses.append(ended(process))
        if self.statuses[-1] not in expected:
            self.fail(
                f"exit status {self.statuses[-1]}, not {' or '.join(map(str, expected))}: "
                f"{last_line(self.root / 'notes.txt')}"
            )

    def reaches(self, stage, process):
        """Wait for the stage in a running process, and return whether it came to it."""
        found = reached(self.store, stage, process)
        if not found:
            self.fail("the stage was not met")
        return found

    def fail(self, what):
        """Note what went otherwise than it must."""
        self.sound = False
        self.notes.append(what)

    def finish(self, **options):
        """Start the study once more, which must end well."""
        self.end(self.start(**options), 0)


class Command:
    """`python -m datadream study` on a copy of the notebooks, as a process like those of
    `disturb.start`.
    """

    def __init__(self, root):
        place = {"DATADREAM_HOME": str(root / "home"), "DATADREAM_STORE": str(root / "artifacts")}
        with open(root / "notes.txt", "a") as notes:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "datadream", "study"],
                stdout=notes,
                stderr=subprocess.STDOUT,
                env={**os.environ, **place},
                process_group=0,
            )
        self.pid = self.process.pid

    def is_alive(self):
        """Return whether it runs."""
        return self.process.poll() is None

    def join(self, seconds):
        """Wait for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    @property
    def exitcode(self):
        """The exit status, None while it runs."""
        return self.process.poll()


def last_line(file):
    """Return the last line of what a case printed, without what names its folder."""
    lines = (
        [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
        if file.exists()
        else []
    )
    return re.sub(r"/\S*/", "", lines[-1])[:200] if lines else "nothing was printed"


# The faults. Each takes a box and a stage, disturbs a run in that stage, and leaves the rest to
# `Box.finish`.


def kill_driver(box, stage):
    """SIGKILL, as the system's own when memory ends."""
    process = box.start()
    if box.reaches(stage, process):
        own = family(process)
        os.kill(process.pid, signal.SIGKILL)
        box.end(process, -signal.SIGKILL)
        if left_behind(own):
            box.fail(f"{left_behind(own)} processes of the killed one live on")


def kill_worker(box, stage):
    """SIGKILL of one of the processes that compute."""
    process = box.start(shared=True)
    if box.reaches(stage, process):
        if box.engine == "ray":
            (busy,) = [p for p in box.cluster.workers() if busy_with(p)][:1] or [None]
        else:
            (busy,) = sorted(family(process), key=lambda p: sum(p.cpu_times()[:2]))[-1:]
        busy.kill() if busy else box.fail("no worker was busy")
    box.end(process, 0 if box.engine == "ray" else FAILED)


def busy_with(process):
    """Return whether a Ray worker has a task."""
    with contextlib.suppress(psutil.Error):
        return re.match(r"ray::(adapt|slice|cell) ", " ".join(process.cmdline())) is not None
    return False


def end_worker(box, stage):
    """SIGTERM of a worker, as of a machine that a scheduler takes away."""
    process = box.start(shared=True)
    if box.reaches(stage, process):
        busy = [worker for worker in box.cluster.workers() if busy_with(worker)]
        busy[0].terminate() if busy else box.fail("no worker was busy")
    box.end(process, 0)


def kill_node(box, stage):
    """SIGKILL of the node's raylet and its workers; another node joins."""
    process = box.start(shared=True)
    if box.reaches(stage, process):
        box.cluster.replace()
    box.end(process, 0)


def signalled(number, code):
    """Return the fault of a signal to the process's group, as terminals and schedulers send it."""

    def fault(box, stage):
        process = box.start()
        if box.reaches(stage, process):
            os.killpg(process.pid, number)
        own = family(process) if process.is_alive() else []
        box.end(process, code)
        if left_behind(own):
            box.fail("processes of the stopped one live on")

    return fault


def injected(kind, *expected):
    """Return the fault that one process, whichever gets there first, has in the middle of the
    stage.
    """

    def fault(box, stage):
        codes = expected if box.engine != "ray" or kind != "memory" else (0, *expected)
        box.end(
            box.start(shared=True, faults={"inject": (kind, stage, str(box.root / "once"))}), *codes
        )
        if not (box.root / "once").exists():
            box.fail("the fault was not reached")

    return fault


def _interrupted(box, stage):
    process = box.start()
    if box.reaches(stage, process):
        os.killpg(process.pid, signal.SIGTERM)
    box.end(process, 128 + signal.SIGTERM)


def _killed(box, stage):
    """Kill all processes of a run at once: one that is asked to stop may come to its end first."""
    process = box.start()
    if box.reaches(stage, process):
        for one in [psutil.Process(process.pid), *family(process)]:
            one.kill()
    box.end(process, -signal.SIGKILL)


def _mount(box, options):
    way = (
        ["-o", f"remount,{options}"]
        if box.store.is_mount()
        else ["-t", "tmpfs", "-o", options, "tmpfs"]
    )
    box.store.mkdir(exist_ok=True)
    end = time.monotonic() + 20  # a worker that has only just lost its node still holds its files
    while subprocess.run(
        ["mount", *way, str(box.store)], check=time.monotonic() > end, capture_output=True
    ).returncode:
        time.sleep(0.2)


def full_disk(box, stage):
    """No room for another byte from the middle of the stage on; then there is."""
    _mount(box, "size=64m")
    process = box.start()
    if box.reaches(stage, process):
        used = shutil.disk_usage(box.store).used
        _mount(box, f"size={max(4096, used)}")
    box.end(process, FAILED)
    if "cannot take more" not in (box.root / "notes.txt").read_text():
        box.fail("the error does not name the full disk")
    _mount(box, "size=64m")


def read_only(box, stage):
    """The machine dies in the stage, and its store comes back read-only; then writable."""
    _mount(box, "size=64m")
    _killed(box, stage)
    _mount(box, "ro")
    box.end(box.start(), FAILED)
    if "cannot be written" not in (box.root / "notes.txt").read_text():
        box.fail("the error does not name the read-only store")
    _mount(box, "rw")


def other_times(box, stage):
    """The clock goes back a day after the stop, and every file is of another year, half in the
    past and half in the future.
    """
    _interrupted(box, stage)
    for place, file in enumerate(sorted(box.store.rglob("*"))):
        then = time.time() + YEAR * (-1) ** place
        os.utime(file, (then, then))
    box.end(box.start(shared=True, faults={"shift": (-86400,)}), 0)


def two_clocks(box, stage):
    """Two studies at once on one store, whose clocks are two days apart."""
    both = [box.start(shared=True, faults={"shift": (days * 86400,)}) for days in (-1, 1)]
    for process in both:
        box.end(process, 0)


def two_engines(box, stage):
    """A study of one process and one on a cluster at once on one store."""
    alone = Box(box.root, box.recipes, "one process")
    both = [alone.start(), box.start(shared=True)]
    for process in both:
        box.end(process, 0)


def _denied(box, stage, pattern, words, only_writing):
    """Kill the run in a stage, start it as one who may not open what the pattern names in the
    store, and have it stop with these words, all that was there as it was.
    """
    _killed(box, stage)
    before = disturb.contents(box.store)
    fault = {"deny": (f"{box.store}/{pattern}", only_writing)}
    box.end(box.start(shared=True, faults=fault), FAILED)
    if words not in (box.root / "notes.txt").read_text():
        box.fail(f"the error does not say: {words}")
    after = disturb.contents(box.store)
    if before != after:
        changed = sorted(path for path, _ in before.items() ^ after.items())
        box.fail(f"what was there has changed, such as {changed[0].relative_to(box.store)}")


def unreadable(box, stage):
    """What the stage needs, or was begun after, is another user's and cannot be read."""
    needed = {"adapt": "shots-*/*", "generate": "adapt-*/*.safetensors", "train": "generate-*/*"}
    _denied(box, stage, needed[stage], "is there and cannot be read", only_writing=False)


def closed_records(box, stage):
    """The store can be written, but for the folder that takes the record at the end."""
    (box.store / "records").mkdir(parents=True)
    _denied(box, stage, "records/*", "cannot be written", only_writing=True)


def closed_guard(box, stage):
    """The lock by which a run is marked as in use is another user's."""
    _denied(box, stage, ".clearing.lock", "could not be marked", only_writing=True)


FAULTS = {  # what happens, in which engines, in which stages
    "kill -9 of the driver": (kill_driver, ENGINES, STAGES),
    "kill -9 of a worker": (kill_worker, ("two processes", "ray"), STAGES),
    "SIGTERM of a worker": (end_worker, ("ray",), STAGES),
    "kill -9 of a node": (kill_node, ("ray",), STAGES),
    "SIGTERM": (signalled(signal.SIGTERM, 143), ENGINES, STAGES),
    "Ctrl-C": (signalled(signal.SIGINT, 130), ENGINES, STAGES),
    "disk full": (full_disk, ("one process", "ray"), STAGES),
    "store read-only": (read_only, ("one process", "ray"), STAGES),
    "artifact of another user": (unreadable, ("one process", "ray"), STAGES),
    "records of another user": (closed_records, ("one process", "ray"), STAGES),
    "guard of another user": (closed_guard, ("one process", "ray"), STAGES),
    "NaN": (injected("nan", FAILED), ("one process", "ray"), STAGES),
    "out of memory, once": (injected("memory once", 0), ("one process", "ray"), STAGES),
    "out of memory, for good": (
        injected("memory", FAILED, -signal.SIGSEGV, -signal.SIGABRT),
        ("one process", "ray"),
        STAGES,
    ),
    "other file times and clock": (other_times, ("one process", "ray"), STAGES),
    "two studies, two clocks": (two_clocks, ("one process", "ray"), ("all",)),
    "two studies, two engines": (two_engines, ("ray",), ("all",)),
}


class Cluster:
    """A Ray cluster of two nodes on this machine: a head without cores, and a node that computes
    and can be replaced.
    """

    def __init__(self):
        from ray.cluster_utils import Cluster as Nodes

        os.environ["RAY_DEDUP_LOGS"] = "0"
        self.nodes = Nodes(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": 80 * 2**20,
                "include_dashboard": False,
            },
        )
        self.address, self.node = self.nodes.address, self.add()

    def add(self):
        """Add a node of one core and return it."""
        return self.nodes.add_node(num_cpus=1, memory=6 * 10**9, object_store_memory=80 * 2**20)

    def workers(self):
        """Return the processes of the node that computes."""
        return psutil.Process(self.node.all_processes["raylet"][0].process.pid).children(
            recursive=True
        )

    def replace(self):
        """Kill the node that computes, and add another."""
        self.nodes.remove_node(self.node, allow_graceful=False)
        self.node = self.add()

    def shutdown(self):
        """End all nodes."""
        self.nodes.shutdown()


def tiny_models(root):
    """Return what the recipes of all cases have in common: the tests' models and images, written
    to `root` once.
    """
    import conftest

    if not (root / "done").exists():
        shutil.rmtree(root, ignore_errors=True)
        (root / "models").mkdir(parents=True)
        conftest.build_generator(root / "models" / "generator")
        conftest.build_classifier(root / "models" / "clip")
        conftest.write_classes(root / "photos", conftest.CLASSES, 12)
        (root / "done").touch()
    return {
        "folder": str(root / "photos"),
        "overrides": {
            **conftest.TINY,
            "generator": str(root / "models" / "generator"),
            "classifier": str(root / "models" / "clip"),
            **disturb.LONG,
        },
    }


def cells(common, engine):
    """Return the cells of an engine's cases: one, and two where two processes share them by
    seed.
    """
    return [
        recipe(
            overrides=common["overrides"],
            dataset="folder",
            folder=common["folder"],
            shots=2,
            method="dset+real",
            seed=seed,
        )
        for seed in ((0, 1) if engine == "two processes" else (0,))
    ]


def write_home(root, common):
    """Write what `python -m datadream study` reads: the notebook, and a study file of one run."""
    import yaml

    shutil.copytree(ROOT / "notebooks", root / "home" / "notebooks")
    run = {
        "notebook": "dataset",
        "parameters": {
            "dataset": "folder",
            "folder": common["folder"],
            "shots": 2,
            "methods": ["dset+real"],
            "seeds": [0],
            "overrides": common["overrides"],
        },
    }
    (root / "home" / "notebooks" / "study.yaml").write_text(
        yaml.safe_dump({"runs": {"run": run}, "smoke": {}})
    )


@contextlib.contextmanager
def boxed(root, common, engine, cluster=None):
    """Yield the Box of a case, in an empty folder that is removed at the end."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    if engine == "command line":
        write_home(root, common)
    box = Box(root, cells(common, engine), engine, cluster)
    try:
        yield box
    finally:
        if box.store.is_mount():
            subprocess.run(["umount", "-l", str(box.store)], check=True)


def undisturbed(root, common, engine, cluster):
    """Return (seconds, records) of an engine's run that nothing disturbs, after a process that
    loads what the first one loads.
    """
    with boxed(root, common, engine, cluster) as box:
        ended(start([], box.store, "one process", box.root / "notes.txt"))
        begun = time.perf_counter()
        box.finish(shared=True)
        if not box.sound:
            raise RuntimeError(f"the undisturbed run of {engine} failed: {box.notes}")
        return time.perf_counter() - begun, records(box.store)


def run_case(name, stage, engine, root, common, cluster, reference):
    """Return the result of one case: disturbed, started again, and compared."""
    seconds, expected = reference
    with boxed(root, common, engine, cluster) as box:
        begun = time.perf_counter()
        try:
            FAULTS[name][0](box, stage)
        except (OSError, psutil.Error, subprocess.CalledProcessError) as error:
            # The others are tried all the same.
            box.fail(f"{type(error).__name__} while it was disturbed")
        box.finish(shared=True)
        spent, found = time.perf_counter() - begun, records(box.store)
        split = disturb.split(box.store)
    apart = max(
        (
            abs(one - other)
            for one, other in zip(
                disturb.accuracies(found[0]), disturb.accuracies(expected[0]), strict=True
            )
        ),
        default=None,
    )
    return {
        "fault": name,
        "stage": stage,
        "engine": engine,
        "commit": provenance()["commit"],
        "survived": box.sound,
        "equal": found[0] == expected[0],
        "bytes": found == expected,
        "split": split,
        "apart": apart,
        "statuses": box.statuses,
        "seconds": round(spent, 2),
        "undisturbed": round(seconds, 2),
        "lost": round(spent - seconds, 2),
        "load": round(os.getloadavg()[0], 1),
        "notes": box.notes,
    }


def count_inputs(root, common):
    """Return, by class of bad input, how many cases of the tests' table ended in which way; one
    that ends otherwise than it must is named.
    """
    import bad_input

    from datadream.store.artifacts import Store

    shutil.rmtree(root, ignore_errors=True)
    os.environ["DATADREAM_STORE"] = str(root / "artifacts")
    one = recipe(
        overrides=common["overrides"] | disturb.SHORT,
        dataset="folder",
        folder=common["folder"],
        shots=2,
        method="real",
    )
    finished, ends = (one, Store(root / "finished"), run.run(one, Store(root / "finished"))), {}
    for case in bad_input.CASES:
        place = root / "case"
        place.mkdir()
        try:
            end = bad_input.attempt(case, place, finished)
        except Exception as error:  # the class counts what came, whatever it is
            end = f"WRONG: {type(error).__name__}"
        if end != case.end:
            end = f"{end if end.startswith('WRONG') else f'WRONG: {end}'} in {case.name}"
        group = ends.setdefault(case.group, {})
        group[end] = group.get(end, 0) + 1
        shutil.rmtree(place)
    return ends


def pending(results, options):
    """Return the (fault, stage, engine) that the options choose and the results lack of this
    commit: every fault in one stage, then in the others.

    What the results have of these from another commit is taken out.
    """
    every = [
        (name, stages[(place + turn) % len(stages)], engine)
        for turn in range(len(STAGES))
        for engine in ENGINES
        for place, (name, (_, engines, stages)) in enumerate(FAULTS.items())
        if engine in engines and turn < len(stages)
    ]
    results["planned"] = len(every)
    chosen = [
        (name, stage, engine)
        for name, stage, engine in every
        if all(
            not wanted or value in wanted
            for value, wanted in (
                (name, options.fault),
                (stage, options.stage),
                (engine, options.engine),
            )
        )
    ]
    results["cases"] = [
        row
        for row in results["cases"]
        if row["commit"] == results["commit"] or (named(row) in every and named(row) not in chosen)
    ]
    have = {named(row) for row in results["cases"]}
    return [case for case in chosen if case not in have]


def named(row):
    """Return the (fault, stage, engine) of a result."""
    return row["fault"], row["stage"], row["engine"]


def main(arguments=None):
    """Run the cases that are missing, write benchmarks/results/faults.json after each, and
    return 1 if one did not survive as it must.
    """
    parser = argparse.ArgumentParser(prog="python tests/faults/campaign.py", description=__doc__)
    parser.add_argument(
        "--fault",
        action="append",
        choices=FAULTS,
        help="only this one; may be repeated (default: all)",
    )
    parser.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        help="only this one; may be repeated (default: all)",
    )
    parser.add_argument(
        "--stage",
        action="append",
        choices=(*STAGES, "all"),
        help="only this one; may be repeated (default: every one)",
    )
    parser.add_argument(
        "--inputs",
        action="store_true",
        help="only the table of bad input, which is otherwise tried first",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=paths()["faults"],
        help="the file to write (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    results = load_faults(options.out)
    if results.get("commit") != provenance()["commit"]:
        results = {"cases": results.get("cases", []), "inputs": {}}
    results |= provenance()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    root, references, clusters = paths()["home"] / "_build" / "faults", {}, []
    common = tiny_models(root / "common")
    if options.inputs or not results["inputs"]:
        results["inputs"] = count_inputs(root / "inputs", common)
        write_json(options.out, results)
    try:
        for name, stage, engine in () if options.inputs else pending(results, options):
            cluster = clusters[0] if clusters else None
            if engine == "ray" and not clusters:
                cluster = Cluster()
                clusters.append(cluster)
            if engine not in references:
                references[engine] = undisturbed(root / "case", common, engine, cluster)
            results["cases"].append(
                run_case(name, stage, engine, root / "case", common, cluster, references[engine])
            )
            write_json(options.out, results)
            print({k: v for k, v in results["cases"][-1].items() if v or k == "equal"}, flush=True)
    finally:
        for cluster in clusters:
            cluster.shutdown()
    print(
        fault_table(results).to_string(index=False),
        input_table(results).to_string(index=False),
        sep="\n",
    )
    wrong = [end for ends in results["inputs"].values() for end in ends if end.startswith("WRONG")]
    return int(
        bool(wrong)
        or not all(row["survived"] and (row["equal"] or row["split"]) for row in results["cases"])
    )


if __name__ == "__main__":
    sys.exit(main())
