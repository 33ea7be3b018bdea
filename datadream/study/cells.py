"""Run one cell (recipe -> few shots -> adapt -> generate -> train -> record), and the named runs
of study.yaml.
"""

import ast
import hashlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import yaml

from .. import config, progress, signals
from ..config import ENGINES, METHODS, SHOTS_TITLE, as_mapping
from ..data.datasets import few_shots, load_for
from ..errors import ConfigError, nearest
from ..paths import paths, relative_to_home
from ..pipeline.generate import generation_inputs, read
from ..pipeline.record import record_file
from ..pipeline.stages import artifact_keys, compute
from ..results.records import load_records
from ..store.artifacts import Store
from ..store.files import digest, write_json
from ..store.keys import key
from . import outcome
from .terminal import Terminal

JOBS = "DATADREAM_JOBS"  # named runs that are executed at once beside a notebook
VALUES = 10_000  # in a study file, with aliases followed


def cells(
    methods=None, seeds=(0,), overrides=None, images=None, generator=None, classifier=None, **fields
):
    """Return the recipes of every method on every seed: the parameters of notebooks/dataset.ipynb,
    where None is the profile's.

    `methods` None means the paper's main table. Raises ConfigError on an unknown name or value.
    """
    methods = [name for name, row in METHODS.items() if row.main] if methods is None else methods
    for name, value in {"methods": methods, "seeds": seeds}.items():
        if not isinstance(value, (list, tuple)) or not value:
            raise ConfigError(
                f"{name}={value!r} is no list of one or more; papermill takes lists as YAML: -y "
                f"'{name}: [{value}]'"
            )
    chosen = {"generator": generator, "classifier": classifier, "generate.images": images}
    values = {name: value for name, value in chosen.items() if value is not None} | as_mapping(
        overrides
    )
    return [
        config.recipe(overrides=values, method=method, seed=seed, **fields)
        for seed in seeds
        for method in methods
    ]


def run(recipe, store=None):
    """Run one cell of the study and return its record, computing only what the store does not hold
    yet.

    The record has the whole recipe, validation and test results, the curve, seconds per stage, and
    the provenance. Raises Stopped on SIGTERM and KeyboardInterrupt on Ctrl-C once the state is
    saved.
    """
    store = store or Store()
    with signals.interruptible(), store.in_use():
        return compute(recipe, store)


def find(recipes, store=None):
    """Return the tidy table of exactly these cells. Raises LookupError if one has no record,
    with the command that makes it.
    """
    store = store or Store()
    files = [record_file(recipe, artifact_keys(recipe), store) for recipe in recipes]
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


def page_cells(name):
    """Return the recipes that an executed page of notebooks/dataset.ipynb in book/runs shows: its
    parameters over the template's.

    Raises LookupError if the page is not there.
    """
    page, again = (
        paths()["runs"] / f"{name}.ipynb",
        f"python -m datadream study {shlex.quote(name)}",
    )
    if not page.is_file():
        raise LookupError(f"book/runs/{page.name} is not there; run `{again}` first")
    try:
        passed = json.loads(page.read_text())["metadata"]["papermill"]["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LookupError(
            f"book/runs/{page.name} is no executed page ({error!r}); remove it and run `{again}`"
        ) from error
    values = {n: v for n, v in (_template_parameters(page) | passed).items() if n not in RUNNING}
    return cells(**values)


# Parameters of a notebook that say how its cells are run, not which.
RUNNING = ("workers", "engine")


def run_cells(recipes, store=None, workers=1, engine="local"):
    """Run every recipe and return the tidy table of exactly these cells.

    `engine` "ray" shares their tasks out over a Ray cluster, see engine.run_ray: that of
    RAY_ADDRESS, else one on this machine; "ray:" and an address, as in "ray:auto", names the
    cluster. "local" runs them in this process or in `workers`.

    `workers` processes share the seeds: cells of one seed reuse each other's stages, cells of two
    seeds hardly any, and on a CPU two processes of one thread finish earlier than one process of
    two.
    """
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(
            f"workers={workers!r} is no number of processes; give a whole number of 1 or more"
        )
    from .plan import announce  # here, since it imports this module

    store = store or Store()
    name, address = engine_parts(engine)
    with signals.interruptible(), store.in_use():
        if name == "ray":
            from ..engines.on_ray import run_ray

            run_ray(recipes, store, address)
            return find(recipes, store)
        announce(recipes, store, workers)
        return _run_here(recipes, store, workers)


def engine_parts(engine):
    """Return (name, address or None) of an engine. Raises ConfigError on an unknown name, and on
    an address of what has none.
    """
    name, _, address = str(engine).partition(":")
    if name not in ENGINES:
        raise ConfigError(
            f"engine={engine!r} is unknown; accepted: {', '.join(ENGINES)}, and "
            f"ray:<address>{nearest(name, ENGINES)}"
        )
    if address and name != "ray":
        raise ConfigError(
            f"engine={engine!r}: {name!r} has no address; give {name!r}, or 'ray:{address}'"
        )
    return name, address or None


def _run_here(recipes, store, workers):
    groups = [
        [r for r in recipes if r.seed == seed] for seed in dict.fromkeys(r.seed for r in recipes)
    ]
    if min(workers, len(groups)) > 1:
        parts = in_processes(_run_group, [(group, store) for group in groups], workers)
    else:
        parts = [_run_group([recipe], store) for recipe in progress.each(recipes, "cells", "cell")]
    return load_records(
        [
            store.refresh(store.records / f"{k}.json")
            for k in dict.fromkeys(k for part in parts for k in part)
        ]
    )


def in_processes(function, jobs, workers):
    """Return `function(*job)` of every job in order, `workers` at once in processes that share
    out the threads; one worker is this process.
    """
    if workers == 1:
        return [function(*job) for job in jobs]
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _begin_worker, (max(1, os.cpu_count() // workers),)
    ) as pool:
        try:
            return list(
                progress.each(
                    pool.map(function, *zip(*jobs, strict=True)), "jobs", "job", len(jobs)
                )
            )
        except (KeyboardInterrupt, signals.Stopped):
            # The others would go on to the end of what they have.
            signals.forward()
            raise


def _begin_worker(threads):
    import torch

    signals.serve()
    torch.set_num_threads(threads)


def _run_group(recipes, store):
    keys = []
    for recipe in recipes:
        signals.check()
        keys.append(run(recipe, store)["key"])
    return keys


def sample_rows(recipes, store=None, depth=3):
    """Return title -> one list of `depth` PIL images per class: the first seed's few shots, then
    each of its generators.
    """
    store, first = store or Store(), recipes[0]
    dataset = load_for(first)
    sets = {SHOTS_TITLE: few_shots(dataset, first.shots, first.seed)}
    for recipe in recipes:
        if recipe.row.generator and recipe.seed == first.seed:
            # A method with real images shows the same set.
            title = METHODS[recipe.method.removesuffix("+real")].title
            made = key("generate", **generation_inputs(recipe, dataset))
            if not store.folder(made).exists():
                store.done(made)  # which copies here what other machines made
            sets[title] = read(store.folder(made))
    return {
        title: [
            [images.open(i) for i, y in enumerate(images.labels) if y == label][:depth]
            for label in range(len(dataset.classes))
        ]
        for title, images in sets.items()
    }


def places(table):
    """Return the artifact folders of each cell, one row per method and seed: few shots,
    synthetic set, classifier, result.
    """
    stages = {
        "few shots": "shots",
        "synthetic set": "generate",
        "classifier": "train",
        "result": "judge",
    }
    rows = [
        {
            "method": row.method,
            "seed": row.seed,
            **{title: row.artifacts.get(stage, "") for title, stage in stages.items()},
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def page_parameters(notebook):
    """Return name -> default value of a template's parameters."""
    return _template_parameters(paths()["notebooks"] / f"{notebook}.ipynb")


def load_study(file=None):
    """Return the named runs of a study file: name -> {notebook, groups, parameters}. Raises
    ConfigError on a bad file.
    """
    file = Path(file or paths()["study"])
    try:
        text = file.read_text()
        # Before a value is made of it.
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > VALUES:
            raise ConfigError(
                f"{file} stands for more than {VALUES} values once its aliases are followed; "
                "write out what is meant"
            )
        content = yaml.safe_load(text)
    except ConfigError:
        raise
    # beside its own errors PyYAML raises ValueError, KeyError, RecursionError ... on odd tags and
    # dates
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read as YAML of plain values: {' '.join(str(error).split())}"
        ) from error
    if (
        not isinstance(content, dict)
        or set(content) != {"runs", "smoke"}
        or not isinstance(content["runs"], dict)
    ):
        raise ConfigError(
            f"{file}: two top-level keys are needed, 'runs' (name -> run) and 'smoke' (tiny "
            "parameters by notebook)"
        )
    if not isinstance(content["smoke"], dict) or not all(
        isinstance(tiny, dict) for tiny in content["smoke"].values()
    ):
        raise ConfigError(
            f"{file}: 'smoke' is {content['smoke']!r}; give a mapping of notebook to tiny "
            "parameters"
        )
    for name, entry in content["runs"].items():
        _check_run(file, name, entry, content["smoke"])
    return content


def _values(node, counts):
    """Return how many values a YAML node stands for once its aliases are followed: without end
    for one that holds itself.
    """
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until its parts are counted
        parts = getattr(node, "value", None)  # a list of nodes, or of pairs of nodes
        flat = (
            [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
            if isinstance(parts, list)
            else []
        )
        counts[id(node)] = 1 + sum(_values(n, counts) for n in flat)
    return counts[id(node)]


def _check_run(file, name, entry, smoke):
    known = {"notebook": str, "groups": list, "parameters": dict}
    wrong = sorted(set(entry) - set(known)) if isinstance(entry, dict) else ["no mapping"]
    if wrong or "notebook" not in entry:
        raise ConfigError(
            f"{file}: run {name!r} has {wrong or 'no notebook'}; accepted keys: "
            f"{', '.join(sorted(known))}"
        )
    for field, wanted in known.items():
        if not isinstance(entry.get(field, wanted()), wanted):
            raise ConfigError(
                f"{file}: {field} of run {name!r} is {entry[field]!r}; give a {wanted.__name__}"
            )
    strange = [group for group in entry.get("groups", []) if not isinstance(group, str)]
    if strange:
        raise ConfigError(f"{file}: groups of run {name!r} has {strange[0]!r}; give names")
    # Both become files of their folders, and of no other.
    for what, word in (("run", name), ("notebook", entry["notebook"])):
        if not isinstance(word, str) or not re.fullmatch(r"\w[\w.-]*", word, re.ASCII):
            raise ConfigError(
                f"{file}: {what} {word!r} cannot name a file; accepted: letters, digits, '_', '-' "
                "and '.'"
            )
    template = paths()["notebooks"] / f"{entry['notebook']}.ipynb"
    if not template.is_file():
        raise ConfigError(
            f"{file}: run {name!r} names notebook {entry['notebook']!r}, which is not in "
            f"{paths()['notebooks']}"
        )
    accepted = _template_parameters(template)
    unknown = sorted(
        ({*entry.get("parameters", {})} | {*smoke.get(entry["notebook"], {})}) - set(accepted),
        key=str,
    )
    if unknown:
        raise ConfigError(
            f"{file}: run {name!r} sets {unknown[0]!r}, which is no parameter of "
            f"{template.name}{nearest(unknown[0], accepted)} Accepted: "
            f"{', '.join(sorted(accepted)) or 'none, it has no cell tagged parameters'}"
        )


def _template_parameters(template):
    """Return name -> value of what a notebook's cell tagged `parameters` assigns; papermill
    takes any other name without a word.
    """
    try:
        cells_ = json.loads(template.read_text())["cells"]
        sources = [
            "".join(c["source"]) for c in cells_ if "parameters" in c["metadata"].get("tags", [])
        ]
        nodes = [
            node
            for source in sources
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign)
        ]
        return {
            t.id: ast.literal_eval(node.value)
            for node in nodes
            for t in node.targets
            if isinstance(t, ast.Name)
        }
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise ConfigError(
            f"{template} is no readable notebook whose parameters are literals: {error}"
        ) from error


@lru_cache
def _package():
    """Return a digest of the package's code and embedded weights; a page that another version
    made is made again, from the store.
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
    """A run is done if its notebook ended without an exception, from the same template,
    parameters and package.
    """
    try:
        notes = json.loads(output.read_text())["metadata"]
        return notes.get("datadream") == fingerprint and not notes.get("papermill", {}).get(
            "exception", True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _recorded(name, entry):
    """Return whether the store has what a finished page of notebooks/dataset.ipynb shows: the
    book reads its records anew.
    """
    try:
        return entry["notebook"] != "dataset" or len(find(page_cells(name))) > 0
    except LookupError:
        return False


def execute(name, entry, parameters, runs):
    """Execute one named run with papermill and return (status, seconds, note); a failed notebook
    is kept as <name>.failed.ipynb.
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
    # Papermill can end well on a failed cell (its issue 501).
    if notebook["metadata"]["papermill"].get("exception"):
        return (
            "failed",
            time.perf_counter() - start,
            f"a cell raised (see {relative_to_home(part)})",
        )
    notebook["metadata"]["datadream"] = fingerprint
    write_json(part, notebook)
    os.replace(part, output)
    return "done", time.perf_counter() - start, relative_to_home(output)


def _quiet_kernel():
    """Return the settings of a kernel whose messages are encrypted: it warns of plain text on a
    port of this machine.
    """
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"}) if zmq.has("curve") else Config()


def _execute_apart(name, entry, parameters, runs, place=None):
    """Call `execute` in a process of its own, so that one that the system kills takes no other run
    with it.

    `place` is the folder of its states (see `progress`), None where there is none.
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
        dead = note.startswith("DeadKernelError")  # which was in no cell that saves a state
        return "stopped", seconds, str(signals.Stopped(signals.asked())) if dead else note
    return status, seconds, note


def _execute_watched(name, entry, parameters, runs, place):
    """Call `execute` with its states, and what it and its kernel write to their standard error,
    in the folder `place`.
    """
    # The run's note tells it.
    logging.getLogger("papermill").addFilter(lambda entry: "Kernel died" not in entry.getMessage())
    if place:
        os.environ.update({progress.PLACE: str(place), signals.CAUSE: str(place.parent / "cause")})
        with suppress(OSError), open(place / "stderr", "ab") as file:
            # A line in the midst of the terminal's live ones would garble them.
            os.dup2(file.fileno(), 2)
    return execute(name, entry, parameters, runs)


def smoke_home():
    """Copy the sources to _build/smoke and point this process there, where tiny results cannot
    be taken for real ones.
    """
    source, target = paths()["home"], paths()["smoke"]
    shutil.rmtree(target, ignore_errors=True)
    for name in ("_config.yml", "_toc.yml"):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    # The book's pages include code of the package.
    for name in ("book", "datadream", "notebooks", "benchmarks"):
        shutil.copytree(
            source / name, target / name, ignore=shutil.ignore_patterns("runs", "__pycache__")
        )
    os.environ.update(DATADREAM_HOME=str(target), DATADREAM_STORE=str(target / "artifacts"))


def choose(study, names, group):
    """Return the runs called `names`, or without names those of `group`. Raises ConfigError on
    what is not in the study.
    """
    runs = study["runs"]
    unknown = [n for n in names if n not in runs]
    if unknown:
        raise ConfigError(
            f"run {unknown[0]!r} is not in the study; accepted: "
            f"{', '.join(runs)}{nearest(unknown[0], runs)}"
        )
    groups = {n: entry.get("groups", ["default"]) for n, entry in runs.items()}
    if not names and group not in {g for some in groups.values() for g in some}:
        accepted = sorted({g for some in groups.values() for g in some})
        raise ConfigError(f"group {group!r} has no run; accepted: {', '.join(accepted)}")
    return {n: entry for n, entry in runs.items() if (n in names if names else group in groups[n])}


def run_study(names=(), group="default", smoke=False, file=None, jobs=1, engine="local"):
    """Execute the pending named runs, `jobs` at once, go on after a failed one, and return the
    table of what happened.

    Raises Stopped on SIGTERM and Ctrl-C once the runs have saved their state; a second Ctrl-C does
    not wait for that. `names` chooses runs; without names all of `group`. `smoke` shrinks every run
    to the tiny parameters of the study file, and adds one run of each notebook that the group
    leaves out. `engine` is that of the notebooks that have such a parameter. Raises ConfigError
    where several runs at once would each start a Ray cluster of the same cores and GPUs.
    """
    name, address = engine_parts(engine)
    if name == "ray" and jobs > 1 and not (address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            f"jobs={jobs} with engine='ray': every run would start a cluster of its own on the "
            "same cores and GPUs; leave --jobs at 1, since Ray uses all of them, or name one "
            "cluster, as in --engine ray:auto"
        )
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
    runs.mkdir(parents=True, exist_ok=True)
    # Kernels are processes of their own and take their number of threads from the environment.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    os.environ[JOBS] = str(min(jobs, len(chosen)))  # for the estimates of the pages
    with (
        signals.listening(signal.SIGTERM, signal.SIGINT),
        progress.places() as place,
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


def _place(place, name):
    """Return the folder of a run's states in `place`, None where none can be made."""
    try:
        own = place and place / name
        if own:
            own.mkdir()
        return own
    except OSError:
        return None


def _collect(futures, terminal, known, cause):
    """Return a row of each named run, in the order of their ends, showing meanwhile on the terminal
    how far they are.

    `futures` maps what `_execute_apart` returns to the progress.Run. The outcome of each is kept
    beside the pages, beside those of other `known` runs. `cause` is the file of
    stopping.end_kernels.
    """
    rows, pending = [], set(futures)
    while pending:
        ended, pending = wait(pending, progress.THROTTLE, FIRST_COMPLETED)
        if signals.asked():
            signals.end_kernels(cause)  # again and again: one may only just have started
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
