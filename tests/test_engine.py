"""The Ray engine: the same tasks as the local one, in the same bytes, and what a kill of a worker costs."""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
import ray

from datadream import draws, engine, study
from datadream import generate as package
from datadream.config import ConfigError, key
from datadream.generate import generate, generation_inputs
from datadream.stopping import Stopped
from datadream.store import Store, StoreError, digest
from datadream.training import load_state

METHODS = ["real", "base", "cls", "dset+real"]


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster of two workers on this machine, for this file."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(make, tmp_path_factory):
    """Return the cells, and the store in which the local engine ran them."""
    store = Store(tmp_path_factory.mktemp("local"))
    recipes = [make(method) for method in METHODS]
    return recipes, store, study.run_cells(recipes, store)


def contents(store):
    """Return the digest of every file of every artifact but the manifests, which have times in them."""
    return {f"{folder.name}/{file.relative_to(folder)}": digest(file) for folder in sorted(store.root.iterdir())
            if folder.is_dir() and folder.name != "records" and not folder.name.endswith(".partial")
            for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "manifest.json"}


def same_results(one, other):
    columns = ["method", "seed", "top1", "val_top1", "key"]
    return one[columns].values.tolist() == other[columns].values.tolist()


def test_the_tasks_of_a_cell(make, store):
    found = engine.tasks([make("cls"), make("cls+real"), make("real")], store)
    kinds = [task.kind for task in found.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"adapt": 3, "slice": 3, "cell": 3}, "shared tasks stand there once"
    done = []
    for name, task in found.items():
        assert set(task.needs) <= set(done), "what a task needs comes first"
        done.append(name)
    for task in found.values():
        if task.kind == "slice":
            (adapter,) = task.needs
            assert found[adapter].where == (task.where[0], None), "a class waits for its own adapter only"
    cells = [task for task in found.values() if task.kind == "cell"]
    assert [len(task.needs) for task in cells] == [3, 3, 0]


def test_what_is_done_is_no_task(undisturbed):
    recipes, store, _ = undisturbed
    assert [task.kind for task in engine.tasks(recipes, store).values()] == ["cell"] * len(recipes)


@pytest.mark.parametrize("images, batch, expected", [(250, 10, [100, 100, 50]), (250, 64, [64, 64, 64, 58]), (30, 50, [30]), (120, 0, [100, 20])])
def test_slices_end_with_a_batch(make, dataset, images, batch, expected):
    parts = draws.slices(make("base", {"generate.images": images, "generate.batch": batch}), dataset, 0)
    assert [sum(len(indices) for indices, _ in part) for part in parts] == expected
    assert [i for part in parts for indices, _ in part for i in indices] == list(range(images))


def test_lofts_pairs_are_gathered_to_slices(make, dataset):
    parts = draws.slices(make("loft", {"generate.images": 250, "generate.batch": 10}, shots=4), dataset, 0)
    assert [sum(len(indices) for indices, _ in part) for part in parts] == [100, 100, 50]


def test_ray_gives_the_same_bytes_and_records(cluster, undisturbed, tmp_path):
    recipes, local, table = undisturbed
    store = Store(tmp_path / "ray")
    assert same_results(study.run_cells(recipes, store, engine="ray"), table)
    assert contents(store) == contents(local)


@pytest.mark.parametrize("stage", ["generate", "train"])
def test_a_killed_worker_costs_time_only(cluster, make, tiny, tmp_path, stage):
    """kill -9 of every worker while the stage is being made: the records are the undisturbed run's. `benchmarks.faults` has all stages."""
    recipes = [make("dset+real", {"adapt.epochs": 30, "generate.images": 60, "classify.steps": 60})]
    store, killed = Store(tmp_path / "ray"), []

    def kill():
        while not killed:
            if list(store.root.glob(f"{stage}-*.partial")):
                time.sleep(0.3)  # into the stage
                found = subprocess.run(["pgrep", "-f", "^ray::(adapt|slice|cell) "], capture_output=True, text=True).stdout.split()
                for worker in found:  # busy workers only: Ray's agents bear such names too
                    os.kill(int(worker), signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    disturbed = study.run_cells(recipes, store, engine="ray")
    thread.join(10)
    assert killed, "the worker died"
    local = Store(tmp_path / "local")
    assert same_results(disturbed, study.run_cells(recipes, local)) and contents(store) == contents(local)


def test_a_stopped_cluster_saves_its_state_and_goes_on(cluster, make, tmp_path):
    """SIGTERM to the driver: the task that runs writes its checkpoint, which none has done by itself before its 200th step."""
    recipes, store = [make("dset+real", {"adapt.epochs": 90})], Store(tmp_path / "ray")

    def stop():
        while not list(store.root.glob("adapt-*.partial")):
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        study.run_cells(recipes, store, engine="ray")
    (checkpoint,) = store.root.glob("adapt-*.partial/checkpoint.safetensors")
    assert 0 < load_state(checkpoint)[1] < 180 and "adapt 0/1" in (store.root / "progress.txt").read_text()
    table = study.run_cells(recipes, store, engine="ray")
    local = Store(tmp_path / "local")
    assert same_results(table, study.run_cells(recipes, local)) and contents(store) == contents(local)


def test_a_slice_of_a_set_that_another_study_has_finished_meanwhile_leaves_nothing(make, dataset, shots, tmp_path):
    recipe, store = make("base"), Store(tmp_path)
    whole = generate(recipe, dataset, shots, Store(tmp_path / "other"))
    with store.lock(f"{whole.name}-1-0"):  # the other has the slice
        thread = threading.Thread(target=engine.generate_slice, args=(recipe, dataset, shots, store, 1, 0))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive() and not store.work(whole.name).exists()
        shutil.move(whole, store.folder(whole.name))
    thread.join(60)
    assert not thread.is_alive() and not store.work(whole.name).exists() and store.done(whole.name)


def test_a_slice_on_a_full_disk_is_the_store_s_error(make, dataset, shots, store, monkeypatch):
    def full(image, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(package, "save", full)
    with pytest.raises(StoreError, match="the disk is full.*DATADREAM_STORE"):
        engine.generate_slice(make("base"), dataset, shots, store, 0, 0)


def test_a_slice_and_a_whole_set_are_not_made_at_once(make, dataset, shots, tmp_path, monkeypatch):
    recipe, store, reached, sample = make("base"), Store(tmp_path), threading.Event(), package.sample
    monkeypatch.setattr(package, "sample", lambda *args: (reached.set(), sample(*args))[1])
    artifact = key("generate", **generation_inputs(recipe, dataset))
    with store.lock(f"{artifact}-0-0"):
        thread = threading.Thread(target=generate, args=(recipe, dataset, shots, store))
        thread.start()
        assert not reached.wait(0.5), "another process writes these files"
    thread.join(60)
    assert store.done(artifact)


def test_a_failed_task_is_reported_and_the_others_are_done(cluster, make, tmp_path):
    store = Store(tmp_path)
    recipes = [make("real"), make("dset", {"adapt.lr": 1e30}), make("base")]
    with pytest.raises(RuntimeError, match="(?s)1 of 10 tasks failed, 4 waited for them; the others are done.*adapt .*lr=1e"):
        study.run_cells(recipes, store, engine="ray")
    assert sorted(study.find([recipes[0], recipes[2]], store)["method"]) == ["base", "real"]


def test_an_unknown_engine_names_the_near_miss(make, store):
    with pytest.raises(ConfigError, match="Did you mean 'ray'"):
        study.run_cells([make("real")], store, engine="rai")
