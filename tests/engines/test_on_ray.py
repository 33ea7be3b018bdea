"""The Ray engine: the same tasks as the local one, in the same bytes, and what a kill of a
worker costs.
"""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from conftest import generate, generate_slice

from datadream import progress, signals
from datadream.config import as_dict
from datadream.data import png
from datadream.engines import names, on_ray
from datadream.errors import ConfigError
from datadream.methods.base import Adapter, Support
from datadream.methods.units import slices
from datadream.models.generators import load
from datadream.paths import paths
from datadream.pipeline import generate as package
from datadream.pipeline.stages import Cell
from datadream.signals import Stopped
from datadream.store.artifacts import Store
from datadream.store.files import StoreError, digest
from datadream.study import papermill_runs, run
from datadream.training.checkpoint import load_state

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
    recipes = [
        make(method) for method in (*list(METHODS)[:15], "diffmix", "genie", "chimera", "dafusion")
    ]
    return recipes, store, run.run_cells(recipes, store)


def contents(store):
    """Return the digest of every file of every artifact but the manifests, which have times in
    them.
    """
    return {
        f"{folder.name}/{file.relative_to(folder)}": digest(file)
        for folder in sorted(store.root.iterdir())
        if folder.is_dir() and folder.name != "records" and not folder.name.endswith(".partial")
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }


def same_results(one, other):
    columns = ["method", "seed", "top1", "val_top1", "key"]
    return one[columns].values.tolist() == other[columns].values.tolist()


def test_the_tasks_of_a_cell(make, store):
    found = on_ray.tasks([make("cls"), make("cls+real"), make("real")], store)
    kinds = [task.kind for task in found.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"adapt": 3, "slice": 3, "cell": 3}, (
        "shared tasks stand there once"
    )
    done = []
    for name, task in found.items():
        assert set(task.needs) <= set(done), "what a task needs comes first"
        done.append(name)
    for task in found.values():
        if task.kind == "slice":
            (adapter,) = task.needs
            assert found[adapter].where == (Adapter(task.where[0]),), (
                "a class waits for its own adapter only"
            )
    cells = [task for task in found.values() if task.kind == "cell"]
    assert [len(task.needs) for task in cells] == [3, 3, 0]


def test_what_is_done_is_no_task(undisturbed):
    recipes, store, _ = undisturbed
    assert [task.kind for task in on_ray.tasks(recipes, store).values()] == ["cell"] * len(recipes)


def drained(agenda, todo, fails=()):
    """Return the order in which one worker ends the tasks, and what is lost to those that fail."""
    order, lost = [], []
    while name := agenda.next():
        assert all(need in order for need in todo[name].needs), "needs come first"
        if name in fails:
            lost += agenda.failed(name)
        else:
            agenda.done(name)
            order.append(name)
    return order, lost


def test_the_longest_chain_goes_first_and_needs_before_it(make, store):
    todo = on_ray.tasks(
        [make("real"), make("base"), make("cls"), make("dset", {"adapt.epochs": 90})], store
    )
    order, lost = drained(on_ray.Agenda(todo), todo)
    assert sorted(order) == sorted(todo) and not lost
    kinds = [(todo[name].kind, todo[name].recipe.method) for name in order]
    assert kinds[0] == ("adapt", "dset"), "the longest adapter is first"
    assert [kind for kind, _ in kinds[:4]] == ["adapt"] * 4, "adapters go before what needs none"
    assert kinds[-1][0] == "cell"


def test_what_waits_for_failed_tasks_is_lost_once(make, store):
    todo = on_ray.tasks([make("cls"), make("cls+real"), make("real")], store)
    failed = [name for name, task in todo.items() if task.kind == "adapt"][:2]
    order, lost = drained(on_ray.Agenda(todo), todo, failed)
    assert sorted([*order, *lost, *failed]) == sorted(todo), "each ends once"
    assert sorted((todo[name].kind, todo[name].recipe.method) for name in lost) == [
        ("cell", "cls"),
        ("cell", "cls+real"),
        *[("slice", "cls")] * 2,
    ]


@pytest.mark.parametrize(
    "images, batch, expected",
    [(250, 10, [100, 100, 50]), (250, 64, [64, 64, 64, 58]), (30, 50, [30]), (120, 0, [100, 20])],
)
def test_slices_end_with_a_batch(make, dataset, images, batch, expected):
    recipe = make("base", {"generate.images": images, "generate.batch": batch})
    parts = slices(Support(recipe, dataset), 0)
    assert [sum(len(indices) for indices, _ in part) for part in parts] == expected
    assert [i for part in parts for indices, _ in part for i in indices] == list(range(images))


def test_lofts_pairs_are_gathered_to_slices(make, dataset):
    recipe = make("loft", {"generate.images": 250, "generate.batch": 10}, shots=4)
    parts = slices(Support(recipe, dataset), 0)
    assert [sum(len(indices) for indices, _ in part) for part in parts] == [100, 100, 50]


@pytest.mark.long
def test_ray_gives_the_same_bytes_and_records(cluster, undisturbed, tmp_path):
    recipes, local, table = undisturbed
    store = Store(tmp_path / "ray")
    assert same_results(run.run_cells(recipes, store, engine="ray"), table)
    assert contents(store) == contents(local)


@pytest.mark.cluster
@pytest.mark.parametrize("stage", ["generate", "train"])
def test_a_killed_worker_costs_time_only(cluster, make, tiny, tmp_path, stage):
    """kill -9 of every worker while the stage is being made: the records are the undisturbed
    run's. `tests/faults/campaign.py` has all stages.
    """
    recipes = [
        make("dset+real", {"adapt.epochs": 30, "generate.images": 60, "classify.steps": 600})
    ]
    store, killed = Store(tmp_path / "ray"), []

    def kill():
        while not killed:
            if list(store.root.glob(f"{stage}-*.partial")):
                time.sleep(0.1)  # into the stage
                found = subprocess.run(
                    ["pgrep", "-f", "^ray::(adapt|slice|cell) "], capture_output=True, text=True
                ).stdout.split()
                for worker in found:  # busy workers only: Ray's agents bear such names too
                    os.kill(int(worker), signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    disturbed = run.run_cells(recipes, store, engine="ray")
    thread.join(10)
    assert killed, "the worker died"
    local = Store(tmp_path / "local")
    assert same_results(disturbed, run.run_cells(recipes, local)) and contents(store) == contents(
        local
    )


@pytest.mark.cluster
def test_a_stopped_cluster_saves_its_state_and_goes_on(cluster, make, tmp_path):
    """SIGTERM to the driver: the task that runs writes its checkpoint, which none has done by
    itself before its 200th step.
    """
    recipes, store = [make("dset+real", {"adapt.epochs": 90})], Store(tmp_path / "ray")

    def stop():
        while not list(store.root.glob("adapt-*.partial")):
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        run.run_cells(recipes, store, engine="ray")
    (checkpoint,) = store.root.glob("adapt-*.partial/checkpoint.safetensors")
    assert (
        0 < load_state(checkpoint)[1] < 180
        and "adapt 0/1" in (store.root / "progress.txt").read_text()
    )
    table = run.run_cells(recipes, store, engine="ray")
    local = Store(tmp_path / "local")
    assert same_results(table, run.run_cells(recipes, local)) and contents(store) == contents(local)


def test_a_slice_of_a_set_that_another_study_has_finished_meanwhile_leaves_nothing(
    make, dataset, shots, tmp_path
):
    recipe, store = make("base"), Store(tmp_path)
    whole = generate(recipe, dataset, Store(tmp_path / "other"))
    with store.lock(f"{whole.name}-1-0"):  # the other has the slice
        thread = threading.Thread(target=generate_slice, args=(recipe, dataset, store, 1, 0))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive() and not store.work(whole.name).exists()
        shutil.move(whole, store.folder(whole.name))
    thread.join(60)
    assert not thread.is_alive() and not store.work(whole.name).exists() and store.done(whole.name)


def test_a_slice_on_a_full_disk_is_the_store_s_error(make, dataset, shots, store, monkeypatch):
    def full(image, path, level):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(png, "save_png", full)
    with pytest.raises(StoreError, match="the disk is full.*DATADREAM_STORE"):
        generate_slice(make("base"), dataset, store, 0, 0)


def test_a_slice_and_a_whole_set_are_not_made_at_once(make, dataset, shots, tmp_path, monkeypatch):
    recipe, store, reached, sample = (
        make("base"),
        Store(tmp_path),
        threading.Event(),
        package.sample,
    )
    monkeypatch.setattr(package, "sample", lambda *args: (reached.set(), sample(*args))[1])
    artifact = Cell(recipe, dataset).key("generate")
    with store.lock(f"{artifact}-0-0"):
        thread = threading.Thread(target=generate, args=(recipe, dataset, store))
        thread.start()
        assert not reached.wait(0.5), "another process writes these files"
    thread.join(60)
    assert store.done(artifact)


@pytest.mark.cluster
def test_a_failed_task_is_reported_and_the_others_are_done(cluster, make, tmp_path):
    store = Store(tmp_path)
    recipes = [make("real"), make("dset", {"adapt.lr": 1e30}), make("base")]
    with pytest.raises(
        RuntimeError,
        match="(?s)1 of 10 tasks failed, 4 waited for them; the others are done.*adapt .*lr=1e",
    ):
        run.run_cells(recipes, store, engine="ray")
    assert sorted(run.find([recipes[0], recipes[2]], store)["method"]) == ["base", "real"]


class Interrupts:
    """Sends Ctrl-C where an exception is lost, as in a function that Ray calls back: while it is
    deleted.
    """

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.cluster
def test_ctrl_c_is_not_lost_where_an_exception_would_be(
    ctrl_c, cluster, make, tmp_path, monkeypatch
):
    store, ended_one = Store(tmp_path), progress.Progress.ended_one
    monkeypatch.setattr(
        progress.Progress, "ended_one", lambda *args: (Interrupts(), ended_one(*args))[1]
    )
    with pytest.raises(KeyboardInterrupt):
        run.run_cells([make("real"), make("base")], store, engine="ray")
    assert len(list((store.root / "records").glob("*.json"))) < 2 and not signals.asked()
    monkeypatch.undo()
    assert len(run.run_cells([make("real"), make("base")], store, engine="ray")) == 2


def nodes_of(page, port, folder):
    """Return the commands by which a page of the book starts its nodes, on this port and with
    Ray's files in `folder`, where none looks.
    """
    lines = re.findall(
        r"^ray start .*", (paths()["home"] / "book" / page).read_text(), re.MULTILINE
    )
    assert len(lines) == 2 and "--head" in lines[0]
    ray_ = str(Path(sys.executable).parent / "ray")
    return [
        [
            ray_,
            *shlex.split(line.replace("6379", str(port)))[1:],
            "--object-store-memory",
            "80000000",
            *(["--temp-dir", folder, "--include-dashboard", "false"] if "--head" in line else []),
        ]
        for line in lines
    ]


DRIVER = """
import json, pathlib, sys, time
import ray
from datadream.engines import on_ray
from datadream import progress
from datadream.study.run import run_cells
from datadream.methods.recipes import recipe
from datadream.store.artifacts import Store

def noting(task, root):
    (pathlib.Path(root) / f"on-{ray.get_runtime_context().get_node_id()}").touch()
    return on_ray.work(task, root)

def when_both_are_there(ray, todo, store, drive=on_ray._drive):
    while ray.cluster_resources().get("CPU") != 2:
        time.sleep(0.2)
    store.root.mkdir(parents=True, exist_ok=True)
    drive(ray, todo, store, noting)

on_ray._drive = when_both_are_there
recipes = [recipe(overrides=json.loads(text)) for text in sys.argv[2:]]
run_cells(recipes, Store(sys.argv[1]), engine="ray:auto")
"""


@pytest.mark.cluster
def test_two_nodes_that_the_book_s_commands_start_share_a_study(make, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A short path: sockets lie in it.
    recipes, folder, nodes = ([make("base"), make("real")], tempfile.mkdtemp(prefix="ray-"), [])
    store, token = Store(tmp_path / "nodes"), tmp_path / "token"
    token.write_text("0" * 64)  # of this cluster; Ray would make one in the home folder
    environment = {
        **os.environ,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        for command in nodes_of("scale.md", port, folder):
            started = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
            nodes.append(
                subprocess.Popen(
                    command, env=started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            while nodes[-1].poll() is None and not Path(folder, "ray_current_cluster").exists():
                time.sleep(0.2)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                DRIVER,
                str(store.root),
                *(json.dumps(as_dict(r)) for r in recipes),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert len(list(store.root.glob("on-*"))) == 2, "each node did some of it"
    finally:
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    local = Store(tmp_path / "local")
    assert same_results(run.find(recipes, store), run.run_cells(recipes, local)) and contents(
        store
    ) == contents(local)


@pytest.mark.cluster
def test_a_worker_that_is_told_to_end_saves_its_state_and_the_task_is_done_elsewhere(
    cluster, make, tmp_path
):
    """SIGTERM to the workers, as of a machine that a scheduler takes away: no checkpoint is due
    before the 200th step, and one is written.
    """
    recipes, store, found = [make("dset+real", {"adapt.epochs": 90})], Store(tmp_path / "ray"), []

    def end():
        while not list(store.root.glob("adapt-*.partial")):
            time.sleep(0.02)
        time.sleep(1)
        for worker in subprocess.run(
            ["pgrep", "-f", "^ray::adapt "], capture_output=True, text=True
        ).stdout.split():
            os.kill(int(worker), signal.SIGTERM)
        while not (saved := list(store.root.glob("adapt-*.partial/checkpoint.safetensors"))):
            time.sleep(0.01)
        found.append(load_state(saved[0])[1])

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    table = run.run_cells(recipes, store, engine="ray")
    assert found and 0 < found[0] < 180
    local = Store(tmp_path / "local")
    assert same_results(table, run.run_cells(recipes, local)) and contents(store) == contents(local)


@pytest.mark.cluster
def test_a_task_that_no_node_can_ever_take_is_an_error_and_no_endless_wait(
    cluster, make, store, monkeypatch
):
    monkeypatch.setitem(on_ray.MEMORY, "mini", 1e15)
    with pytest.raises(
        ConfigError,
        match="no node of the Ray cluster.* 1e\\+06 GB of memory.*'mini'.*the most that a node "
        "offers is [0-9.]+ GB",
    ):
        run.run_cells([make("real")], store, engine="ray")


@pytest.mark.parametrize(
    "visible, given, expected", [("", 3, 3), ("4,6", "6", 1), ("6", "6", 0), ("0,1", "1", 1)]
)
def test_a_task_works_on_the_gpu_that_it_was_given(monkeypatch, visible, given, expected):
    """Of a node with several GPUs a worker may be given another one than before: the models on
    the old one are let go.
    """
    taken, cleared = [0], []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: taken[-1])
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(
        load._load_pipeline, "cache_clear", lambda: cleared.append(1), raising=False
    )
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [given])
    on_ray._take_gpu()
    on_ray._take_gpu()
    assert taken[-1] == expected and len(cleared) == int(expected != 0)


@pytest.mark.parametrize(
    "engine_, word",
    [("rai:auto", "Did you mean 'ray'"), ("local:auto", "give 'local', or 'ray:auto'")],
)
def test_an_engine_with_an_address_is_checked(make, store, engine_, word):
    with pytest.raises(ConfigError, match=word):
        run.run_cells([make("real")], store, engine=engine_)
    assert names.engine_parts("ray:127.0.0.1:6379") == ("ray", "127.0.0.1:6379")


def test_two_runs_at_once_do_not_each_start_a_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="jobs=2 with engine='ray'.*leave --jobs at 1"):
        papermill_runs.run_study(jobs=2, engine="ray")


def test_an_unknown_engine_names_the_near_miss(make, store):
    with pytest.raises(ConfigError, match="Did you mean 'ray'"):
        run.run_cells([make("real")], store, engine="rai")
