"""Run one cell (recipe -> few shots -> adapt -> generate -> train -> record), and the named runs of study.yaml."""

import ast
import hashlib
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import yaml
from tqdm.auto import tqdm

from . import config
from .classify import judge, optimiser_steps, train, train_inputs
from .config import METHODS, ConfigError, _near, as_dict, key, paths
from .data import few_shots, load
from .generate import generate, generation_inputs, read
from .records import load_records
from .store import Store, provenance, write_json

# Seconds per image and step (adapt), per image and sampling step (generate), per training image (train), measured on one
# core with the mini profile; other profiles have no measurement yet and say so.
RATES = {"mini": {"adapt": 0.011, "generate": 0.006, "train": 0.0026}}


def cells(methods=None, seeds=(0,), overrides=None, **fields):
    """Return the recipes of every method on every seed; `methods` None means all. Raises ConfigError on an unknown name."""
    methods = list(METHODS) if methods is None else list(methods)
    return [config.recipe(overrides=overrides, method=method, seed=seed, **fields) for seed in seeds for method in methods]


def plan(recipes, store=None):
    """Return one row per stage that `recipes` need, each once: stage, key, whether it is done, units of work, estimated seconds."""
    store, rows = store or Store(), {}
    for recipe in recipes:
        dataset, rates = load(recipe.dataset, recipe.folder), RATES.get(recipe.profile, {})
        classes, options, found = len(dataset.classes), recipe, None
        shots = few_shots(dataset, recipe.shots, recipe.seed)

        def add(stage, stage_key, units):
            rows[stage_key] = {"stage": stage, "key": stage_key, "done": store.done(stage_key), "units": units,
                               "seconds": units * rates.get(stage, math.nan)}

        if recipe.row.generator:
            inputs = generation_inputs(recipe, dataset)
            for adapter in inputs["adapters"]:
                add("adapt", adapter, options.adapt.epochs * len(shots) / len(inputs["adapters"]))
            found = key("generate", **inputs)
            add("generate", found, options.generate.images * classes * options.generate.steps)
        if recipe.row.trained:
            add("train", key("train", **train_inputs(recipe, dataset, found)), optimiser_steps(recipe, classes)[0] * options.classify.batch)
    return pd.DataFrame(rows.values(), columns=["stage", "key", "done", "units", "seconds"])


def plan_text(recipes, store=None):
    """Return two sentences: what is to be computed and about how long it takes on two cores."""
    table = plan(recipes, store)
    pending = table[~table["done"]]
    counts = ", ".join(f"{len(group)} x {stage}" for stage, group in pending.groupby("stage", sort=False)) or "nothing"
    left = pending["seconds"].sum(skipna=False) if len(pending) else 0.0
    time_text = "unknown, this profile has not been measured" if math.isnan(left) else f"about {left / 60:.1f} minutes on one CPU core"
    return f"{len(recipes)} cells; to compute: {counts}; {len(table) - len(pending)} stages are done. Estimated time: {time_text}."


def run(recipe, store=None):
    """Run one cell of the study and return its record, computing only what the store does not hold yet.

    The record has the whole recipe, validation and test results, the curve, seconds per stage, and the provenance.
    """
    store = store or Store()
    dataset = load(recipe.dataset, recipe.folder)
    shots, row, artifacts = few_shots(dataset, recipe.shots, recipe.seed), recipe.row, {}
    synthetic, synthetic_key = None, None
    if row.generator:
        artifacts["generate"] = generate(recipe, dataset, shots, store)
        synthetic, synthetic_key = read(artifacts["generate"]), artifacts["generate"].name
        inputs = generation_inputs(recipe, dataset)
        artifacts |= {f"adapt{i}": store.folder(k) for i, k in enumerate(inputs["adapters"])}
    if row.trained:
        artifacts["train"] = train(recipe, dataset, shots if row.real else None, synthetic, synthetic_key, store)
    artifacts["judge"] = judge(recipe, dataset, artifacts.get("train"), store)
    result = json.loads((artifacts["judge"] / "result.json").read_text())
    curve = json.loads((artifacts["train"] / "curve.json").read_text()) if row.trained else []
    return _record(recipe, result, curve, artifacts, store)


def _record(recipe, result, curve, artifacts, store):
    names = {name: folder.name for name, folder in sorted(artifacts.items())}
    record_key = key("record", **as_dict(recipe), artifacts=names)
    file = store.root / "records" / f"{record_key}.json"
    if file.exists():  # the same cell: keep the first record, with the time and commit of its computation
        return json.loads(file.read_text())
    seconds = {}
    for name, artifact in names.items():
        stage = name.rstrip("0123456789")
        manifest = store.manifest(artifact) or {"seconds": 0.0}  # an adapter may have been deleted while its images remain
        seconds[stage] = seconds.get(stage, 0.0) + manifest["seconds"]
    record = {"key": record_key, "recipe": as_dict(recipe), "result": result, "curve": curve, "seconds": seconds,
              "artifacts": names, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **provenance()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)
    return record


def run_cells(recipes, store=None, workers=1):
    """Run every recipe and return the tidy table of exactly these cells.

    `workers` processes share the seeds: cells of one seed reuse each other's stages, cells of two seeds hardly any, and on a
    CPU two processes of one thread finish earlier than one process of two.
    """
    store = store or Store()
    groups = [[r for r in recipes if r.seed == seed] for seed in dict.fromkeys(r.seed for r in recipes)]
    if min(workers, len(groups)) > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), _set_threads, (max(1, os.cpu_count() // workers),)) as pool:
            parts = list(tqdm(pool.map(_run_group, groups, [store] * len(groups)), total=len(groups), desc="seeds", leave=False))
    else:
        parts = [_run_group([recipe], store) for recipe in tqdm(recipes, desc="cells", leave=False)]
    keys = {k for part in parts for k in part}
    table = load_records(store.root / "records")
    return table[table["key"].isin(keys)].reset_index(drop=True)


def _set_threads(threads):
    import torch

    torch.set_num_threads(threads)


def _run_group(recipes, store):
    return [run(recipe, store)["key"] for recipe in recipes]


def sample_rows(recipes, store=None, depth=3):
    """Return title -> one list of `depth` PIL images per class: the first seed's few shots, then each of its generators."""
    store, first = store or Store(), recipes[0]
    dataset = load(first.dataset, first.folder)
    sets = {"Real few shots": few_shots(dataset, first.shots, first.seed)}
    for recipe in recipes:
        if recipe.row.generator and not recipe.row.real and recipe.seed == first.seed:
            sets[recipe.row.title] = read(store.folder(key("generate", **generation_inputs(recipe, dataset))))
    return {title: [[images.open(i) for i, y in enumerate(images.labels) if y == label][:depth]
                    for label in range(len(dataset.classes))] for title, images in sets.items()}


def load_study(file=None):
    """Return the named runs of a study file: name -> {notebook, groups, parameters}. Raises ConfigError on a bad file."""
    file = Path(file or paths()["study"])
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict) or set(content) != {"runs", "smoke"} or not isinstance(content["runs"], dict):
        raise ConfigError(f"{file}: two top-level keys are needed, 'runs' (name -> run) and 'smoke' (tiny parameters by notebook)")
    if not isinstance(content["smoke"], dict):
        raise ConfigError(f"{file}: 'smoke' is {content['smoke']!r}; give a mapping of notebook to tiny parameters")
    for name, entry in content["runs"].items():
        _check_run(file, name, entry, content["smoke"])
    return content


def _check_run(file, name, entry, smoke):
    known = {"notebook": str, "groups": list, "parameters": dict}
    wrong = sorted(set(entry) - set(known)) if isinstance(entry, dict) else ["no mapping"]
    if wrong or "notebook" not in entry:
        raise ConfigError(f"{file}: run {name!r} has {wrong or 'no notebook'}; accepted keys: {', '.join(sorted(known))}")
    for field, wanted in known.items():
        if not isinstance(entry.get(field, wanted()), wanted):
            raise ConfigError(f"{file}: {field} of run {name!r} is {entry[field]!r}; give a {wanted.__name__}")
    template = paths()["notebooks"] / f"{entry['notebook']}.ipynb"
    if not template.is_file():
        raise ConfigError(f"{file}: run {name!r} names notebook {entry['notebook']!r}, which is not in {paths()['notebooks']}")
    accepted = _template_parameters(template)
    unknown = sorted(({*entry.get("parameters", {})} | {*smoke.get(entry["notebook"], {})}) - accepted)
    if unknown:
        raise ConfigError(f"{file}: run {name!r} sets {unknown[0]!r}, which is no parameter of {template.name}"
                          f"{_near(unknown[0], accepted)} Accepted: {', '.join(sorted(accepted)) or 'none, it has no cell tagged parameters'}")


def _template_parameters(template):
    """Return the names that a template's cell tagged `parameters` assigns; papermill would ignore any other without a word."""
    try:
        cells_ = json.loads(template.read_text())["cells"]
        sources = ["".join(c["source"]) for c in cells_ if "parameters" in c["metadata"].get("tags", [])]
        trees = [ast.parse(source) for source in sources]
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise ConfigError(f"{template} is no readable notebook: {error}") from error
    return {t.id for tree in trees for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}


def _fingerprint(template, parameters):
    source = [cell["source"] for cell in json.loads(template.read_text())["cells"]]
    return hashlib.sha256(json.dumps([source, parameters], sort_keys=True).encode()).hexdigest()[:16]


def _finished(output, fingerprint):
    """A run is done if its notebook ended without an exception, from the same template and parameters."""
    try:
        notes = json.loads(output.read_text())["metadata"]
    except (OSError, ValueError, KeyError):
        return False
    return notes.get("datadream") == fingerprint and not notes.get("papermill", {}).get("exception", True)


def execute(name, entry, parameters, runs):
    """Execute one named run with papermill and return (status, seconds, note); a failed notebook is kept as <name>.failed.ipynb."""
    import papermill

    template, output = paths()["notebooks"] / f"{entry['notebook']}.ipynb", runs / f"{name}.ipynb"
    part, start = runs / f"{name}.failed.ipynb", time.perf_counter()
    try:
        fingerprint = _fingerprint(template, parameters)
        if _finished(output, fingerprint):
            return "done before", 0.0, str(output)
        papermill.execute_notebook(template, part, parameters=parameters, progress_bar=False, start_timeout=300)
    except papermill.PapermillExecutionError as error:
        return "failed", time.perf_counter() - start, f"{error.ename}: {error.evalue} (see {part})"
    except Exception as error:  # a dead or missing kernel, a broken template: the other runs must go on
        return "failed", time.perf_counter() - start, f"{type(error).__name__}: {error}"
    notebook = json.loads(part.read_text())
    if notebook["metadata"]["papermill"].get("exception"):  # papermill can end well on a failed cell (its issue 501)
        return "failed", time.perf_counter() - start, f"a cell raised (see {part})"
    notebook["metadata"]["datadream"] = fingerprint
    write_json(part, notebook)
    os.replace(part, output)
    return "done", time.perf_counter() - start, str(output)


def choose(study, names, group):
    """Return the runs called `names`, or without names those of `group`. Raises ConfigError on what is not in the study."""
    runs = study["runs"]
    unknown = [n for n in names if n not in runs]
    if unknown:
        raise ConfigError(f"run {unknown[0]!r} is not in the study; accepted: {', '.join(runs)}{_near(unknown[0], runs)}")
    groups = {n: entry.get("groups", ["default"]) for n, entry in runs.items()}
    if not names and group not in {g for some in groups.values() for g in some}:
        accepted = sorted({g for some in groups.values() for g in some})
        raise ConfigError(f"group {group!r} has no run; accepted: {', '.join(accepted)}")
    return {n: entry for n, entry in runs.items() if (n in names if names else group in groups[n])}


def run_study(names=(), group="default", smoke=False, file=None, jobs=1):
    """Execute the pending named runs, `jobs` at once, go on after a failed one, and return the table of what happened.

    `names` chooses runs; without names all of `group`. `smoke` shrinks every run to the tiny parameters of the study file.
    """
    study, rows = load_study(file), []
    chosen, runs = choose(study, names, group), paths()["runs"]
    runs.mkdir(parents=True, exist_ok=True)
    # Kernels are processes of their own and take their number of threads from the environment.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // jobs)))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {}
        for name, entry in chosen.items():
            parameters = {**entry.get("parameters", {}), **(study["smoke"].get(entry["notebook"], {}) if smoke else {})}
            futures[pool.submit(execute, name, entry, parameters, runs)] = name
        print(f"{len(chosen)} runs: {', '.join(chosen)}", flush=True)
        for future in as_completed(futures):
            try:
                status, seconds, note = future.result()
            except BrokenProcessPool as error:  # the worker was killed, by the system for want of memory for example
                status, seconds, note = "failed", 0.0, f"its process died: {error}"
            rows.append({"run": futures[future], "status": status, "minutes": round(seconds / 60, 1), "note": note})
            print(f"  {futures[future]}: {status} in {seconds / 60:.1f} min: {note}", flush=True)
    return pd.DataFrame(rows)
