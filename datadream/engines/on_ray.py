"""Run the study's tasks on a Ray cluster.

A task adapts one class, generates one slice of one class, or trains and judges one classifier. It
is small and idempotent: its result is in the store under its key, so if its worker or node dies, it
is rerun elsewhere and resumes from what was saved.
"""

import heapq
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import progress, signals
from ..config import Recipe, base_profile
from ..errors import ConfigError
from ..methods.registry import adopt_methods, method_of, pack_methods
from ..models.device import FIXED, WORKSPACE
from ..models.download import fetch
from ..models.generators.load import use_gpu
from ..paths import paths
from ..pipeline.stages import STAGES, Cell, stage_of
from ..results.record import record_file
from ..store.artifacts import Store
from ..store.open import open_store
from .here import run_cell
from .rates import PROXY, seconds
from .ray_cluster import join

RETRIES = 5  # times that a task is retried on another worker if its own dies
# Seconds that a task has to save its state; batch schedulers give 30 from SIGTERM to SIGKILL.
GRACE = 20
# Tasks submitted to Ray beyond two per worker: enough that no worker idles, few enough that the
# order is decided late.
AHEAD = 8
# Upper bound of a task's memory in bytes; measured by benchmarks and
# tests/models/test_full_size.py.
MEMORY = {"mini": 1.5e9, "paper": 12e9}


@dataclass(frozen=True)
class Task:
    """A unit of work: one piece of a stage, or the rest of a cell.

    `name` is what it makes, `kind` its kind in reports, and `needs` are the names of the tasks that
    it waits for. `stage` and `where` identify a stage's piece; "" means the cell itself. `length`
    is a relative estimate of its duration, in seconds of the embedded models on one core.
    """

    name: str
    kind: str
    recipe: Recipe
    stage: str = ""
    where: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    length: float = 0.0
    methods: bytes = b""  # those defined in a notebook; see `registry.pack_methods`


def tasks(
    recipes: Iterable[Recipe], store: Store, cell_of: Callable[[Recipe], Cell] = Cell
) -> dict[str, Task]:
    """Return name -> Task for all that the cells need and the store lacks, in topological order.

    Each task appears once. `cell_of` returns a recipe's cell, whose dataset may be a mere
    description: see `plan.load_or_describe`.
    """
    found: dict[str, Task] = {}
    methods = pack_methods()
    for recipe in recipes:
        cell = cell_of(recipe)
        last, length = [], 0.0
        for stage in STAGES:
            if stage.pieces is None:  # within the cell's own task
                for part in cell.keys_of(stage.name):
                    length += seconds(cell, stage.name, PROXY, part)
            # `whole`, not `done`: the cell's task verifies the bytes where it reads them.
            elif cell.is_open(stage, store):
                pieces = [p for p in stage.pieces(cell) if not _is_whole(p, stage, cell, store)]
                for piece in pieces:
                    known = seconds(cell, stage.name, PROXY, piece.part) * piece.share
                    needs = tuple(name for name in piece.needs if name in found)
                    which = stage.name, piece.where, needs, known, methods
                    task = Task(piece.name, stage.piece, recipe, *which)
                    found.setdefault(piece.name, task)
                last += [] if stage.on_demand else [piece.name for piece in pieces]
        name = record_file(cell, store).name
        found[name] = Task(name, "cell", recipe, "", (), tuple(last), length, methods)
    return found


def _is_whole(piece, stage, cell, store):
    """True if a piece is an artifact of its own and complete in the store."""
    return piece.name == cell.keys_of(stage.name).get(piece.part) and store.whole(piece.name)


class Agenda:
    """Schedule tasks by critical path.

    Of the tasks that are ready, the one at the head of the longest chain comes first, so that no
    long chain is left for the end.
    """

    def __init__(self, todo: dict[str, Task]):
        self.after, self.lost, chain = defaultdict(list), set(), {}
        self.left = {name: len(task.needs) for name, task in todo.items()}
        for name, task in todo.items():
            for need in task.needs:
                self.after[need].append(name)
        for name in reversed(todo):  # in topological order, so dependants come first here
            chain[name] = todo[name].length + max(
                (chain[later] for later in self.after[name]), default=0.0
            )
        self.place = {name: (-chain[name], position) for position, name in enumerate(todo)}
        self.ready = [(*self.place[name], name) for name, count in self.left.items() if not count]
        heapq.heapify(self.ready)

    def next(self) -> str | None:
        """Return the name of the next task, or None if all that are left wait for others."""
        return heapq.heappop(self.ready)[-1] if self.ready else None

    def done(self, name: str) -> None:
        """Mark a task as done; those that waited for it alone become ready."""
        for later in self.after.pop(name, ()):
            self.left[later] -= 1
            if not self.left[later]:
                heapq.heappush(self.ready, (*self.place[later], later))

    def failed(self, name: str) -> list[str]:
        """Drop the tasks that depend on a failed one, directly or not, and return their names.

        `next` never returns them. Each is returned here once, even if several of its needs fail.
        """
        found, more = [], [name]
        while more:
            new = [later for later in self.after.pop(more.pop(), ()) if later not in self.lost]
            self.lost.update(new)
            found += new
            more += new
        return found


def work(task: Task, address: str) -> str:
    """Run one task on the store at `address` in this process and return its name.

    SIGINT, which `ray.cancel` sends, ends the task once its state is saved. SIGTERM, which a batch
    scheduler sends before it reclaims a machine, also ends the worker, and Ray reruns the task
    elsewhere.
    """
    _take_gpu()
    try:
        with signals.listening(signal.SIGINT, signal.SIGTERM):
            _do(task, open_store(address))
    except signals.Stopped as error:
        if error.number == signal.SIGTERM:
            os._exit(128 + error.number)
        # Ray would take a SystemExit for the end of the worker.
        raise RuntimeError(str(error)) from None
    return task.name


def _take_gpu():
    """Use the GPU that Ray gave this task; on a node with several it may not be the last task's."""
    import ray

    if torch.cuda.is_available() and (ids := ray.get_gpu_ids()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        use_gpu(visible.index(str(ids[0])) if str(ids[0]) in visible else int(ids[0]))


def _do(task, store):
    adopt_methods(task.methods)
    do = stage_of(task.stage).do if task.stage else None
    if do:
        do(Cell(task.recipe), task.where, store)
    else:
        run_cell(task.recipe, store)


def run_ray(recipes: Sequence[Recipe], store: Store, address: str | None = None) -> None:
    """Run the cells on the Ray cluster at `address`, or on this machine's cores and GPUs.

    The address "auto" means this node's cluster. Raises RuntimeError with the failures once all
    other tasks are done; tasks that need a failed one are skipped. On Ctrl-C and SIGTERM, running
    tasks have GRACE seconds to save their state, and a later run resumes.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine='ray' needs Ray, which is not installed; `pip install 'datadream[ray]'`, or "
            "set engine='local'"
        ) from error

    cells = {}
    for recipe in recipes:
        fetch(recipe, method_of(recipe).generates)
        cells[recipe] = Cell(recipe)
        cells[recipe].require_runnable(store)
    own = not ray.is_initialized()
    if own:
        # This process reports the tasks' states, since a worker may be on another machine.
        names = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("DATADREAM_", "HF_")) and name != progress.PLACE
        }
        # Otherwise Ray hides all GPUs but its first task's from a reused worker.
        env = {
            **names,
            "DATADREAM_HOME": str(paths()["home"]),
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        }
        if any(recipe.deterministic for recipe in recipes):  # workers use the GPU before any task
            env[WORKSPACE] = os.environ.get(WORKSPACE, FIXED[0])
        join(ray, address, env)
    try:
        with signals.interruptible():  # after `init`, which sets its own handler for SIGTERM
            todo = tasks(recipes, store, cells.__getitem__)
            _require_places(todo, store)
            _require_room(ray, todo, _scarce(ray))
            _drive(ray, todo, store)
    finally:
        if own:
            ray.shutdown()


def _require_places(todo, store):
    """Raise StoreError if something has to be written and the store cannot be written.

    The workers do not mark the store as in use: this process does it for them.
    """
    if any(
        task.stage or not store.refresh(store.records / name).exists()
        for name, task in todo.items()
    ):
        store.require_writable()


def _scarce(ray):
    return "GPU" if ray.cluster_resources().get("GPU") else "CPU"


def gpu_cores(nodes: Iterable[dict[str, float]]) -> float:
    """Return the CPU cores of a GPU task: the smallest number of cores per GPU on any node.

    With the smallest, every GPU can be used. Below one core it is a fraction, which Ray accepts.
    1 if no node has both.
    """
    both = [node for node in nodes if node.get("GPU") and node.get("CPU")]
    share = min((node["CPU"] / node["GPU"] for node in both), default=1.0)
    return int(share) if share >= 1 else int(1e4 * share) / 1e4


def _cores(ray, resource):
    """Return the cores that a task requests; Ray limits its threads to the same number."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return gpu_cores(nodes) if resource == "GPU" else 1


def _demand(task, resource, cores):
    """Return a task's Ray resources: cores, a GPU if the cluster has any, and bytes of memory."""
    return {
        "num_cpus": cores,
        "num_gpus": int(resource == "GPU"),
        "memory": MEMORY.get(base_profile(task.recipe.profile), 0),
    }


def _require_room(ray, todo, resource):
    """Raise ConfigError if no node of the cluster can take a task; Ray would silently wait."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = _cores(ray, resource)
    for task in {task.recipe.profile: task for task in todo.values()}.values():
        asked = _demand(task, resource, cores)
        wanted = dict(zip(("CPU", "GPU", "memory"), asked.values(), strict=True))
        if not any(
            all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes
        ):
            most = max((node.get("memory", 0) for node in nodes), default=0)
            raise ConfigError(
                f"no node of the Ray cluster has {'a core' if cores == 1 else f'{cores:g} cores'}"
                f"{' and a GPU' * wanted['GPU']} and "
                f"{wanted['memory'] / 1e9:g} GB of memory, which a task of profile "
                f"{task.recipe.profile!r} asks for; the most that a node offers is "
                f"{most / 1e9:.1f} GB. Start a larger one, or, if its memory suffices, `ray start "
                "--memory <bytes>`"
            )


def _drive(ray, todo, store, do=work):
    """Have Ray run `do(task, address)` for every task, a few at a time.

    `ray.wait` takes longer the more tasks it is given.
    """
    resource = _scarce(ray)
    remote, agenda, flying, failures = ray.remote(do), Agenda(todo), {}, {}

    def hand_out() -> None:
        # Asked again each time: nodes come and go.
        room = 2 * int(ray.cluster_resources().get(resource, 0)) + AHEAD
        cores = _cores(ray, resource)
        while len(flying) < room and (name := agenda.next()):
            task = todo[name]
            options = {**_demand(task, resource, cores), "max_retries": RETRIES}
            flying[
                remote.options(name=f"{task.kind} {name}", **options).remote(task, store.address)
            ] = name

    def end(ref: Any) -> dict[str, Exception | None]:
        name = flying.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            return dict.fromkeys([name, *agenda.failed(name)], error)
        agenda.done(name)
        return {name: None}

    try:
        progress.announce(
            [
                {"key": name, "stage": task.kind, "seconds": task.length, "done": False}
                for name, task in todo.items()
            ]
        )
        with progress.Progress(
            [task.kind for task in todo.values()], store.root / "progress.txt"
        ) as counted:
            hand_out()
            while flying:
                ray.wait(list(flying), num_returns=1, timeout=1)
                ready, _ = ray.wait(list(flying), num_returns=len(flying), timeout=0)
                signals.check()
                for name, error in (ended for ref in ready for ended in end(ref).items()):
                    failures |= {name: error} if error else {}
                    counted.ended_one(todo[name].kind, name, error)
                hand_out()
    except (KeyboardInterrupt, signals.Stopped):
        _cancel(ray, list(flying))
        raise
    if failures:
        raise RuntimeError(_report(todo, failures)) from next(iter(failures.values()))


def _cancel(ray, pending):
    """Ask running tasks to save their state and end; kill them after GRACE s or a second Ctrl-C."""
    for ref in pending:
        ray.cancel(ref)
    end = time.monotonic() + GRACE
    while pending and time.monotonic() < end and not signals.insisted():
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=1)
    for ref in pending:
        ray.cancel(ref, force=True)


def _report(todo, failures):
    """List the tasks that failed themselves, one per line, and count those that needed them."""
    first = {
        name: error
        for name, error in failures.items()
        if not any(need in failures for need in todo[name].needs)
    }
    lines = [
        f"{todo[name].kind} {name} ({todo[name].recipe.dataset}, {todo[name].recipe.method}, seed "
        f"{todo[name].recipe.seed}): "
        f"{str(getattr(error, 'cause', None) or error).strip().splitlines()[-1]}"
        for name, error in first.items()
    ]
    return "\n".join(
        [
            f"{len(first)} of {len(todo)} tasks failed, {len(failures) - len(first)} waited for "
            "them; the others are done:",
            *lines,
        ]
    )
