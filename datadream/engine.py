"""The study's tasks on a Ray cluster: adapt one class, generate one slice of one class, train and judge one classifier.

A task is small and may be done twice: what it makes lies in the store under its key, so one whose worker or node died is simply done
again elsewhere, and goes on from what the dead one left.
"""

import os
import signal
from dataclasses import dataclass

from tqdm.auto import tqdm

from . import stopping
from .adapt import adapt, adapter_inputs
from .config import ConfigError, Recipe, key, paths
from .data import few_shots, load_for
from .draws import adapters, reader, slices
from .generate import generation_inputs, sample_range
from .images import class_folders
from .memory import BatchSize
from .models import fetch
from .progress import Progress
from .sampling import adapted
from .store import Store, writing
from .study import artifact_keys, compute, record_file

RETRIES = 5  # times that a task is given to another worker after its own died
GRACE = 20  # seconds that a task has to save its state; batch schedulers give 30 from SIGTERM to SIGKILL
MEMORY = {"mini": 1.5e9, "paper": 12e9}  # bytes of a task's process, at most; measured by benchmarks and tests/test_full_size.py


@dataclass(frozen=True)
class Task:
    """A unit of work: `name` is what it makes, `kind` one of "adapt", "slice" and "cell", `needs` the names that must be there first.

    `where` is for "adapt" the (label, image) of `adapt`, for "slice" (label, position in `slices`), and empty for "cell".
    """

    name: str
    kind: str
    recipe: Recipe
    where: tuple = ()
    needs: tuple = ()


def tasks(recipes, store):
    """Return name -> Task for what the cells need and the store has not, each once, in an order in which needs come first."""
    found = {}
    for recipe in recipes:
        dataset, keys = load_for(recipe), artifact_keys(recipe)
        name, needs = record_file(recipe, keys, store).name, []
        if recipe.row.generator and not store.whole(keys["generate"]):  # not `done`: the cell's task checks the bytes, where it reads them
            trained = {which: key("adapt", **adapter_inputs(recipe, dataset, *which)) for which in adapters(recipe, dataset)}
            for which, adapter in trained.items():
                if not store.whole(adapter):
                    found.setdefault(adapter, Task(adapter, "adapt", recipe, which))
            for label in range(len(dataset.classes)):
                for position, groups in enumerate(slices(recipe, dataset, label)):
                    part = f"{keys['generate']}/{label}/{position}"
                    own = dict.fromkeys(trained[which] for _, used in groups for which in used)
                    found.setdefault(part, Task(part, "slice", recipe, (label, position), tuple(a for a in own if a in found)))
                    needs.append(part)
        found[name] = Task(name, "cell", recipe, (), tuple(needs))
    return found


def generate_slice(recipe, dataset, shots, store, label, position):
    """Write one of the `slices` of a class into the work folder of its synthetic set and share it, so that `generate` finds it there.

    Raises StoreError where nothing can be written.
    """
    artifact, name = key("generate", **generation_inputs(recipe, dataset)), f"{label}-{position}"
    folder, part = store.work(artifact) / "train" / class_folders(dataset.classes)[label], slices(recipe, dataset, label)[position]
    files = [folder / f"{i:06d}.png" for indices, _ in part for i in indices]
    size, judge = BatchSize(recipe.generate.batch), reader(recipe, dataset)
    with writing(store.root, store.fix), store.lock(f"{artifact}-{name}"):
        # Another study may have made the slice, and the artifact of it, while this one waited.
        if store.done(artifact) or store.gather(artifact, name):
            return
        folder.mkdir(parents=True, exist_ok=True)
        for indices, own in part if not all(file.exists() for file in files) else ():
            with adapted(recipe, *(adapt(recipe, dataset, shots, store, *which) for which in own)) as pipe, tqdm(disable=True) as bar:
                sample_range(pipe, recipe, dataset, label, indices, folder, bar, size, judge)
        store.share(artifact, name, files)


def work(task, address, *needed):
    """Do one task of the store at `address` in this process; `needed` are what its needs returned, so that Ray waits for them. Returns its name."""
    try:
        with stopping.listening(signal.SIGINT):  # what `ray.cancel` stands for
            _do(task.kind, task.recipe, Store(address), task.where)
    except stopping.Stopped as error:  # a SystemExit would look to Ray like the end of the worker
        raise RuntimeError(str(error)) from None
    return task.name


def _do(kind, recipe, store, where):
    if kind == "cell":
        compute(recipe, store)
        return
    dataset = load_for(recipe)
    shots = few_shots(dataset, recipe.shots, recipe.seed)
    (adapt if kind == "adapt" else generate_slice)(recipe, dataset, shots, store, *where)


def run_ray(recipes, store, address=None):
    """Run the cells on a Ray cluster: this machine's cores and GPUs, or the one at `address` ("auto": the one that this node is in).

    Raises RuntimeError with the failures once all other tasks are done; a task that needs a failed one is not tried. Ctrl-C and
    SIGTERM let what runs save its state, for GRACE seconds, and leave the store ready to go on.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("engine='ray' needs Ray, which is not installed; `pip install 'datadream[ray]'`, or set engine='local'") from error

    for recipe in recipes:
        fetch(recipe)
    own = not ray.is_initialized()
    if own:
        names = {name: value for name, value in os.environ.items() if name.startswith(("DATADREAM_", "HF_"))}
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 runtime_env={"env_vars": {**names, "DATADREAM_HOME": str(paths()["home"])}})
    try:
        with stopping.listening():  # after `init`, which has a handler of its own
            _drive(ray, tasks(recipes, store), store)
    finally:
        if own:
            ray.shutdown()


def _drive(ray, todo, store):
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote, refs = ray.remote(work), {}
    for name, task in todo.items():
        demand = {"num_cpus": 1, "num_gpus": gpus, "memory": MEMORY.get(task.recipe.profile, 0), "max_retries": RETRIES}
        refs[name] = remote.options(name=f"{task.kind} {name}", **demand).remote(task, store.address, *(refs[n] for n in task.needs))
    names, pending, failures = {ref: name for name, ref in refs.items()}, list(refs.values()), {}
    try:
        with Progress([task.kind for task in todo.values()], store.root / "progress.txt") as progress:
            while pending:
                ready, pending = ray.wait(pending, num_returns=1, timeout=1)
                stopping.check()
                for ref in ready:
                    try:
                        ray.get(ref)
                    except ray.exceptions.RayError as error:
                        failures[names[ref]] = error
                    progress.ended_one(todo[names[ref]].kind, names[ref], failures.get(names[ref]))
    except (KeyboardInterrupt, stopping.Stopped):
        _cancel(ray, pending)
        raise
    if failures:
        raise RuntimeError(_report(todo, failures)) from next(iter(failures.values()))


def _cancel(ray, pending):
    """Ask the tasks that run to save their state and end, and end those that have not after GRACE seconds."""
    for ref in pending:
        ray.cancel(ref)
    ended, late = ray.wait(pending, num_returns=len(pending), timeout=GRACE) if pending else ([], [])
    for ref in late:
        ray.cancel(ref, force=True)


def _report(todo, failures):
    """Return what failed of itself, one line each; what only waited for it is counted."""
    first = {name: error for name, error in failures.items() if not any(need in failures for need in todo[name].needs)}
    lines = [f"{todo[name].kind} {name} ({todo[name].recipe.dataset}, {todo[name].recipe.method}, seed {todo[name].recipe.seed}): "
             f"{str(getattr(error, 'cause', None) or error).strip().splitlines()[-1]}" for name, error in first.items()]
    return "\n".join([f"{len(first)} of {len(todo)} tasks failed, {len(failures) - len(first)} waited for them; the others are done:", *lines])
