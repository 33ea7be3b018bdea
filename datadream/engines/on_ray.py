"""The study's tasks on a Ray cluster: adapt one class, generate one slice of one class, train and
judge one classifier.

A task is small and may be done twice: what it makes lies in the store under its key, so one whose
worker or node died is simply done again elsewhere, and goes on from what the dead one left.
"""

import heapq
import logging
import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass

import torch

from .. import progress, signals
from ..config import Recipe
from ..data.datasets import few_shots, load_for
from ..data.folders import class_folders
from ..data.png import is_whole
from ..errors import ConfigError
from ..methods.registry import method_of
from ..models.download import fetch
from ..models.generators.sampling import adapted
from ..models.generators.unet import use_gpu
from ..paths import paths
from ..pipeline.adapt import adapt
from ..pipeline.costs import PROXY, seconds
from ..pipeline.draws import adapters, reader, slices
from ..pipeline.generate import NOTES, batch_size, generation_inputs, sample_range
from ..pipeline.record import record_file
from ..pipeline.stages import artifact_keys, compute
from ..store.files import write_json, writing
from ..store.keys import key
from ..store.open import open_store

RETRIES = 5  # times that a task is given to another worker after its own died
# seconds that a task has to save its state; batch schedulers give 30 from SIGTERM to SIGKILL
GRACE = 20
# tasks given to Ray over two for each worker, so that none waits for the next and little is decided
# early
AHEAD = 8
# Bytes of a task's process, at most; measured by benchmarks and tests/models/test_full_size.py.
MEMORY = {"mini": 1.5e9, "paper": 12e9}


@dataclass(frozen=True)
class Task:
    """A unit of work: `name` is what it makes, `kind` one of "adapt", "slice" and "cell", `needs`
    the names that must be there first.

    `where` is for "adapt" the (label, image) of `adapt`, for "slice" (label, position in `slices`),
    and empty for "cell". `length` says about how long it takes beside the others, in seconds of the
    embedded models on one core.
    """

    name: str
    kind: str
    recipe: Recipe
    where: tuple = ()
    needs: tuple = ()
    length: float = 0.0


def tasks(recipes, store, load=load_for):
    """Return name -> Task for what the cells need and the store has not, each once, in an order in
    which needs come first.

    `load` gives the Dataset of a recipe; `plan.load_or_describe` needs no images.
    """
    found = {}
    for recipe in recipes:
        dataset = load(recipe)
        keys, lengths = artifact_keys(recipe, dataset), seconds(recipe, dataset, PROXY)
        name, needs = record_file(recipe, keys, store).name, []
        # Not `done`: the cell's task checks the bytes, where it reads them.
        if method_of(recipe).generates and not store.whole(keys["generate"]):
            trained = {one: keys[f"adapt{i}"] for i, one in enumerate(adapters(recipe, dataset))}
            for one, adapter in trained.items():
                if not store.whole(adapter):
                    where = (one.label, one.image)
                    found.setdefault(
                        adapter, Task(adapter, "adapt", recipe, where, (), lengths["adapt"])
                    )
            for label in range(len(dataset.classes)):
                for position, groups in enumerate(slices(recipe, dataset, label)):
                    part = f"{keys['generate']}/{label}/{position}"
                    own = dict.fromkeys(trained[which] for _, used in groups for which in used)
                    share = (
                        sum(len(indices) for indices, _ in groups)
                        / recipe.generate.images
                        / len(dataset.classes)
                    )
                    found.setdefault(
                        part,
                        Task(
                            part,
                            "slice",
                            recipe,
                            (label, position),
                            tuple(a for a in own if a in found),
                            lengths["generate"] * share,
                        ),
                    )
                    needs.append(part)
        found[name] = Task(
            name,
            "cell",
            recipe,
            (),
            tuple(needs),
            lengths["train"] if method_of(recipe).trained else 0.0,
        )
    return found


class Agenda:
    """Which task is next: of those whose needs are done the one that the longest chain waits
    for, so that no long one is left for the end.
    """

    def __init__(self, todo):
        self.after, self.lost, chain = defaultdict(list), set(), {}
        self.left = {name: len(task.needs) for name, task in todo.items()}
        for name, task in todo.items():
            for need in task.needs:
                self.after[need].append(name)
        for name in reversed(todo):  # what comes after a task stands after it
            chain[name] = todo[name].length + max(
                (chain[later] for later in self.after[name]), default=0.0
            )
        self.place = {name: (-chain[name], position) for position, name in enumerate(todo)}
        self.ready = [(*self.place[name], name) for name, count in self.left.items() if not count]
        heapq.heapify(self.ready)

    def next(self):
        """Return the name of the next task, None if all that are left wait for others."""
        return heapq.heappop(self.ready)[-1] if self.ready else None

    def done(self, name):
        """Let go what waited for this task alone."""
        for later in self.after.pop(name, ()):
            self.left[later] -= 1
            if not self.left[later]:
                heapq.heappush(self.ready, (*self.place[later], later))

    def failed(self, name):
        """Return the names of all that waited for this task, directly or not, each once: they
        will never be next.
        """
        found, more = [], [name]
        while more:
            new = [later for later in self.after.pop(more.pop(), ()) if later not in self.lost]
            self.lost.update(new)
            found += new
            more += new
        return found


def generate_slice(recipe, dataset, shots, store, label, position):
    """Write one of the `slices` of a class into the work folder of its synthetic set and share it,
    so that `generate` finds it there.

    Raises StoreError where nothing can be written.
    """
    artifact, name = key("generate", **generation_inputs(recipe, dataset)), f"{label}-{position}"
    folder, part = (
        store.work(artifact) / "train" / class_folders(dataset.classes)[label],
        slices(recipe, dataset, label)[position],
    )
    files = [folder / f"{i:06d}.png" for indices, _ in part for i in indices]
    size, judge, notes = (
        batch_size(recipe),
        reader(recipe, dataset),
        store.work(artifact) / NOTES / f"{name}.json",
    )
    with writing(store.root, store.fix), store.lock(f"{artifact}-{name}"):
        # Another study may have made the slice, and the artifact of it, while this one waited.
        if store.done(artifact) or store.gather(artifact, name):
            return
        store.salvage(artifact)
        folder.mkdir(parents=True, exist_ok=True)
        missing = not all(is_whole(file) for file in files)
        for indices, own in part if missing else ():
            with (
                adapted(
                    recipe, *(adapt(recipe, dataset, shots, store, o.label, o.image) for o in own)
                ) as pipe,
                progress.track("slice", "image", len(indices), shown=False) as counter,
            ):
                sample_range(pipe, recipe, dataset, label, indices, folder, counter, size, judge)
        if missing and size.notes:
            notes.parent.mkdir(exist_ok=True)
            write_json(notes, size.notes)
        store.share(artifact, name, [*files, *([notes] if notes.exists() else [])])


def work(task, address):
    """Do one task of the store at `address` in this process and return its name.

    SIGINT, which `ray.cancel` stands for, ends the task once its state is saved. SIGTERM, by which
    a batch scheduler takes a machine away, ends the worker then, and Ray has the task done
    elsewhere.
    """
    _take_gpu()
    try:
        with signals.listening(signal.SIGINT, signal.SIGTERM):
            _do(task.kind, task.recipe, open_store(address), task.where)
    except signals.Stopped as error:
        if error.number == signal.SIGTERM:
            os._exit(128 + error.number)
        # A SystemExit would look to Ray like the end of the worker.
        raise RuntimeError(str(error)) from None
    return task.name


def _take_gpu():
    """Work on the GPU that Ray gave this task: of a node with several it may be another one than
    the worker's last task had.
    """
    import ray

    if torch.cuda.is_available() and (ids := ray.get_gpu_ids()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        use_gpu(visible.index(str(ids[0])) if str(ids[0]) in visible else int(ids[0]))


def _do(kind, recipe, store, where):
    if kind == "cell":
        compute(recipe, store)
        return
    dataset = load_for(recipe)
    shots = few_shots(dataset, recipe.shots, recipe.seed)
    (adapt if kind == "adapt" else generate_slice)(recipe, dataset, shots, store, *where)


def run_ray(recipes, store, address=None):
    """Run the cells on a Ray cluster: this machine's cores and GPUs, or the one at `address`
    ("auto": the one that this node is in).

    Raises RuntimeError with the failures once all other tasks are done; a task that needs a failed
    one is not tried. Ctrl-C and SIGTERM let what runs save its state, for GRACE seconds, and leave
    the store ready to go on.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine='ray' needs Ray, which is not installed; `pip install 'datadream[ray]'`, or "
            "set engine='local'"
        ) from error

    for recipe in recipes:
        fetch(recipe, method_of(recipe).generates)
    own = not ray.is_initialized()
    if own:
        # The tasks' states are told by this process, since a worker may be on another machine.
        names = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("DATADREAM_", "HF_")) and name != progress.PLACE
        }
        # Ray would hide all GPUs but the first task's from a worker that lives on.
        env = {
            **names,
            "DATADREAM_HOME": str(paths()["home"]),
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        }
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": env},
        )
    try:
        with signals.interruptible():  # after `init`, which has a handler of its own for SIGTERM
            todo = tasks(recipes, store)
            _require_room(ray, todo, _scarce(ray))
            _drive(ray, todo, store)
    finally:
        if own:
            ray.shutdown()


def _scarce(ray):
    return "GPU" if ray.cluster_resources().get("GPU") else "CPU"


def _demand(task, resource):
    """Return what a task asks of a node: a core, a GPU where the cluster has some, and memory in
    bytes.
    """
    return {
        "num_cpus": 1,
        "num_gpus": int(resource == "GPU"),
        "memory": MEMORY.get(task.recipe.profile, 0),
    }


def _require_room(ray, todo, resource):
    """Raise ConfigError if no node that has joined the cluster can take a task, which Ray would
    wait for without a word.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for task in {task.recipe.profile: task for task in todo.values()}.values():
        wanted = dict(zip(("CPU", "GPU", "memory"), _demand(task, resource).values(), strict=True))
        if not any(
            all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes
        ):
            most = max((node.get("memory", 0) for node in nodes), default=0)
            raise ConfigError(
                f"no node of the Ray cluster has a core{' and a GPU' * wanted['GPU']} and "
                f"{wanted['memory'] / 1e9:g} GB of memory, which a task of profile "
                f"{task.recipe.profile!r} asks for; the most that a node offers is "
                f"{most / 1e9:.1f} GB. Start a larger one, or, if its memory suffices, `ray start "
                "--memory <bytes>`"
            )


def _drive(ray, todo, store, do=work):
    """Have `do(task, address)` done for every task. Ray is given few at a time: a wait takes a
    time that grows with what it waits for.
    """
    resource = _scarce(ray)
    remote, agenda, flying, failures = ray.remote(do), Agenda(todo), {}, {}

    def hand_out():
        # Asked again each time: nodes come and go.
        room = 2 * int(ray.cluster_resources().get(resource, 0)) + AHEAD
        while len(flying) < room and (name := agenda.next()):
            task = todo[name]
            options = {**_demand(task, resource), "max_retries": RETRIES}
            flying[
                remote.options(name=f"{task.kind} {name}", **options).remote(task, store.address)
            ] = name

    def end(ref):
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
    """Ask the tasks that run to save their state and end, and end those that have not after
    GRACE seconds or at a second Ctrl-C.
    """
    for ref in pending:
        ray.cancel(ref)
    end = time.monotonic() + GRACE
    while pending and time.monotonic() < end and not signals.insisted():
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=1)
    for ref in pending:
        ray.cancel(ref, force=True)


def _report(todo, failures):
    """Return what failed of itself, one line each; what only waited for it is counted."""
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
