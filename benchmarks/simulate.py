"""Simulate the paper's table on many GPUs: `python -m benchmarks.simulate`.

Uses the engine's own task graph and scheduling loop.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from datadream.engines import on_ray
from datadream.methods.base import Support
from datadream.methods.recipes import recipe
from datadream.methods.registry import method_of
from datadream.paths import paths
from datadream.store.artifacts import Store
from datadream.store.files import write_json
from datadream.store.provenance import provenance
from datadream.study.plan import described_cell, load_or_describe, profile_cells

from . import lengths, operations
from .virtual import VirtualRay

WORKERS, MANY = (1, 8, 64, 512), (64, 512)  # GPUs; the second, where the longest chain matters
EMPTY, ROUNDS = 4000, 3  # empty tasks; runs of sleeping tasks
LOCAL = 4  # Ray's workers for both: more than cores, since the tasks sleep
NAP = 15  # least seconds of a run of sleeping tasks
ALONE = 8  # GPUs of one node, over which a single training could be distributed


def chain(todo, seconds):
    """Return the names of the longest chain of dependent tasks."""
    reach, before = {}, {}
    for name, task in todo.items():
        before[name] = max(task.needs, key=reach.get, default=None)
        reach[name] = seconds[name] + reach.get(before[name], 0.0)
    found = [max(reach, key=reach.get)]
    while before[found[0]]:
        found.insert(0, before[found[0]])
    return found


def simulate(todo, workers, seconds, overhead):
    """Run the engine's loop over the graph on this many simulated GPUs.

    Returns makespan, utilisation, and lower bounds for any schedule.
    """
    ray = VirtualRay(workers, lambda task: seconds[task.name], overhead)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        on_ray._drive(ray, todo, Store(folder))
        spent = time.process_time() - start
    makespan, bounds = (
        max(ray.ends.values()),
        {
            "work": ray.busy / workers,
            "chain": sum(seconds[n] for n in chain(todo, seconds)),
            "driver": overhead * len(todo),
        },
    )
    return {
        "gpus": workers,
        "seconds": makespan,
        "utilisation": ray.busy / workers / makespan,
        "bounds": bounds,
        "bottleneck": max(bounds, key=bounds.get),
        "driver_cpu_per_task": spent / len(todo),
    }


def unordered(todo):
    """Return the graph without task lengths.

    Its tasks then run in the order of the table, as before the engine knew the lengths.
    """
    return {name: dataclasses.replace(task, length=0.0) for name, task in todo.items()}


def remedies(todo, seconds):
    """Return remedy -> seconds by task, each shortening part of the longest chain."""

    def decoded(task):
        found = lengths.parts(task)
        return sum(value for part, value in found.items() if part != "decoding")

    elsewhere = {
        name: decoded(task) if task.kind == "cell" else seconds[name] for name, task in todo.items()
    }
    shared = {
        name: seconds[name] / (ALONE if task.kind == "adapt" and task.where[0].label is None else 1)
        for name, task in todo.items()
    }
    both = {name: min(elsewhere[name], shared[name]) for name in todo}
    return {
        "images in memory": elsewhere,
        f"dataset-wise adapters on {ALONE} GPUs": shared,
        "both": both,
    }


def nap(task, root):
    """Sleep for the task's length: a task that uses no resources."""
    time.sleep(task.length)


def _timed(ray, todo):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        on_ray._drive(ray, todo, Store(folder), nap)
        return time.perf_counter() - start


def measure(todo, seconds):
    """Return Ray's overhead per task on this machine, and the error of the simulation.

    The latter is measured against real runs of sleeping tasks.
    """
    import ray

    some = {name: task for name, task in todo.items() if task.recipe.dataset == "eurosat"}
    scale = NAP * LOCAL / sum(seconds[name] for name in some)
    naps = {
        name: dataclasses.replace(task, length=seconds[name] * scale) for name, task in some.items()
    }
    ray.init(
        num_cpus=LOCAL,
        _memory=LOCAL * on_ray.MEMORY["paper"],
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        warm, empty = (
            {
                f"{n}-{i}": on_ray.Task(f"{n}-{i}", "cell", recipe("paper"), length=length)
                for i in range(n)
            }
            for n, length in ((2 * LOCAL, 1.0), (EMPTY, 0.0))
        )
        _timed(ray, warm)  # starts the workers
        # As many tasks in flight as on the largest cluster, since each `wait` gets slower with
        # them.
        with mock.patch.object(on_ray, "AHEAD", 2 * max(WORKERS) + on_ray.AHEAD):
            overheads = sorted(_timed(ray, empty) / EMPTY for _ in range(ROUNDS))
        real = [_timed(ray, naps) for _ in range(ROUNDS)]
    finally:
        ray.shutdown()
    overhead = overheads[ROUNDS // 2]
    expected = simulate(naps, LOCAL, {name: task.length for name, task in naps.items()}, overhead)[
        "seconds"
    ]
    return {
        "overhead": overhead,
        "overheads": overheads,
        "empty": EMPTY,
        "workers": LOCAL,
        "naps": {
            "tasks": len(naps),
            "simulated": expected,
            "real": real,
            "deviation": [expected / value - 1 for value in real],
        },
    }


def _images(recipe):
    return recipe.generate.images * len(load_or_describe(recipe).classes)


def describe(todo, seconds):
    """Return figures on the graph.

    They are the tasks and hours by kind, the longest chain task by task, and what the cells read.
    """
    kinds = {
        kind: [name for name, task in todo.items() if task.kind == kind]
        for kind in ("adapt", "slice", "cell")
    }
    rows = [todo[name] for name in chain(todo, seconds)]
    sets = {name.partition("/")[0]: todo[name].recipe for name in kinds["slice"]}
    cells = [todo[name].recipe for name in kinds["cell"] if method_of(todo[name].recipe).generates]
    return {
        "tasks": {kind: len(names) for kind, names in kinds.items()},
        "images": sum(_images(recipe) for recipe in sets.values()),
        "hours": {
            kind: sum(seconds[name] for name in names) / 3600 for kind, names in kinds.items()
        },
        "chain": [
            {
                "kind": task.kind,
                "dataset": task.recipe.dataset,
                "method": task.recipe.method,
                "seconds": seconds[task.name],
                "parts": lengths.parts(task),
            }
            for task in rows
        ],
        "sets": len(sets),
        "cells": [
            {
                "dataset": recipe.dataset,
                "images": _images(recipe),
                "read": round(lengths.decoded(Support(recipe, load_or_describe(recipe)))[1]),
            }
            for recipe in cells
        ],
    }


def main(arguments=None):
    """Simulate, measure and count; write the results to benchmarks/results/scale.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="of the table, as `plan` takes them (default: %(default)s)",
    )
    parser.add_argument(
        "--dataset", action="append", help="may be repeated (default: the paper's ten)"
    )
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: benchmarks/results/scale.json)"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        todo = on_ray.tasks(
            profile_cells("paper", options.dataset, options.seeds), Store(folder), described_cell
        )
    seconds = {name: lengths.length(task) for name, task in todo.items()}
    counted = operations.count()
    eurosat = on_ray.tasks(
        profile_cells("paper", ["eurosat"], 1), Store(paths()["store"] / "none"), described_cell
    )
    measured = measure(eurosat, {name: lengths.length(task) for name, task in eurosat.items()})
    runs = {
        "engine": (todo, seconds),
        "order of the table": (unordered(todo), seconds),
        **{name: (todo, other) for name, other in remedies(todo, seconds).items()},
    }
    simulated = {
        name: [
            simulate(graph, n, length, measured["overhead"])
            for n in (WORKERS if name == "engine" else MANY)
        ]
        for name, (graph, length) in runs.items()
    }
    assumed = {
        name.lower(): getattr(lengths, name)
        for name in ("PEAK", "SHARE", "CORES", "MEMORY", "DISK")
    }
    results = {
        "seeds": options.seeds,
        "assumed": assumed,
        "flops": lengths.flops(),
        "rates": lengths.rates(),
        "measured": measured,
        "graph": describe(todo, seconds),
        "operations": counted,
        "runs": simulated,
        **provenance(),
    }
    file = options.out or paths()["scale"]
    write_json(file, results)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
