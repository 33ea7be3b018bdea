"""Run cells in this process, in several, or on an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from .. import progress, signals
from ..config import Recipe
from ..engines.here import run_cell
from ..engines.names import engine_parts
from ..errors import ConfigError
from ..methods.registry import adopt_methods, pack_methods
from ..pipeline.stages import Cell
from ..results.record import record_file
from ..results.records import load_records
from ..store.artifacts import Store
from ..store.cores import usable_cores
from ..store.open import open_store
from .cells import groups

if TYPE_CHECKING:
    import pandas as pd


def run(recipe: Recipe, store: Store | None = None) -> dict[str, Any]:
    """Run one cell of the study and return its record, computing only what the store lacks.

    The record has the whole recipe, validation and test results, the curve, seconds per stage, and
    provenance. Raises Stopped on SIGTERM and KeyboardInterrupt on Ctrl-C once the state is saved.
    """
    store = store or open_store()
    with signals.interruptible(), store.in_use(store.records):
        return run_cell(recipe, store)


def find(recipes: Sequence[Recipe], store: Store | None = None) -> pd.DataFrame:
    """Return the tidy table of exactly these cells.

    Raises LookupError, naming the command that makes it, if one has no record.
    """
    store = store or open_store()
    files = [record_file(Cell(recipe), store) for recipe in recipes]
    missing = [
        f"{r.dataset}, {r.method}, seed {r.seed}"
        for r, file in zip(recipes, files, strict=True)
        if not store.refresh(file).exists()
    ]
    if missing:
        raise LookupError(
            f"{len(missing)} of {len(files)} cells have no record in {store.address}, the first: "
            f"{missing[0]}; run them again with `python -m datadream study`, or by their notebook"
        )
    return load_records(files)


def run_cells(
    recipes: Sequence[Recipe], store: Store | None = None, workers: int = 1, engine: str = "local"
) -> pd.DataFrame:
    """Run every recipe and return the tidy table of exactly these cells.

    `engine` "local" runs them in this process or in `workers` processes. "ray" distributes their
    tasks over a Ray cluster (see `engines.on_ray.run_ray`): the one at RAY_ADDRESS, else one on
    this machine; "ray:<address>", as in "ray:auto", names the cluster.

    `workers` processes share the cells in the groups of `cells.groups` (one dataset, number of
    shots and seed): on a CPU, two processes with one thread each finish earlier than one with two.
    """
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(
            f"workers={workers!r} is not a number of processes; give a whole number of 1 or more"
        )
    from .plan import announce_plan  # here, since it imports this module

    store = store or open_store()
    name, address = engine_parts(engine)
    with signals.interruptible(), store.in_use(store.records):
        if name == "ray":
            from ..engines.on_ray import run_ray

            run_ray(recipes, store, address)
            return find(recipes, store)
        announce_plan(recipes, store, workers)
        return _run_here(recipes, store, workers)


def _run_here(recipes, store, workers):
    shared = groups(recipes)
    if min(workers, len(shared)) > 1:
        parts = in_processes(_run_group, [(group, store) for group in shared], workers)
    else:
        parts = [_run_group([recipe], store) for recipe in progress.each(recipes, "cells", "cell")]
    return load_records(
        [
            store.refresh(store.records / f"{k}.json")
            for k in dict.fromkeys(k for part in parts for k in part)
        ]
    )


def in_processes(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int
) -> list[Any]:
    """Return `function(*job)` for every job, in order, computed by `workers` processes.

    They divide the threads among them; a single worker is this process.
    """
    if workers == 1:
        return [function(*job) for job in jobs]
    with ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        _begin_worker,
        (max(1, usable_cores() // workers), pack_methods()),
    ) as pool:
        try:
            return list(
                progress.each(
                    pool.map(function, *zip(*jobs, strict=True)), "jobs", "job", len(jobs)
                )
            )
        except (KeyboardInterrupt, signals.Stopped):
            # Otherwise the workers would finish all that they were given.
            signals.forward()
            raise


def _begin_worker(threads, methods):
    import torch

    signals.serve()
    adopt_methods(methods)
    torch.set_num_threads(threads)


def _run_group(recipes, store):
    keys = []
    for recipe in recipes:
        signals.check()
        keys.append(run(recipe, store)["key"])
    return keys
