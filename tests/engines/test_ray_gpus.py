"""A task on a GPU takes the GPU's share of its node's cores, on a cluster that declares GPUs."""

import json

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from datadream.engines import on_ray
from datadream.engines.on_ray import Task


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster that says it has two GPUs and five cores; nothing of it is a GPU."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS")  # a user's own number stays
        patch.setenv("RAY_enable_worker_prestart", "0")  # two start when they are needed, not five
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        ray.init(num_cpus=5, num_gpus=2, **quiet)
        yield
        ray.shutdown()


def test_each_gpu_of_a_node_works_with_its_share_of_the_cores(cluster, make, store):
    """Two of five cores each, and both GPUs at once, with as many threads as cores."""

    def probe(task, address):
        import os
        import time
        from pathlib import Path

        import ray

        given = ray.get_runtime_context().get_assigned_resources()
        found = given | {"threads": os.environ["OMP_NUM_THREADS"]}
        Path(address, f"{task.name}.begun").touch()
        end = time.monotonic() + 120  # a worker may start slowly; one after the other never meets
        while len(list(Path(address).glob("*.begun"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        found["together"] = len(list(Path(address).glob("*.begun"))) == 2
        Path(address, task.name).write_text(json.dumps(found))

    store.root.mkdir(exist_ok=True)
    todo = {name: Task(name, "cell", make("real")) for name in ("a", "b")}
    on_ray._require_room(ray, todo, on_ray._scarce(ray))
    on_ray._drive(ray, todo, store, probe)
    found = [json.loads((store.root / name).read_text()) for name in todo]
    assert [(one["CPU"], one["GPU"], one["threads"]) for one in found] == [(2.0, 1.0, "2")] * 2
    assert all(one["together"] for one in found), "each waits for the other to begin"


def node(cpus, gpus):
    """Return a node's resources as Ray lists them."""
    return {name: n for name, n in (("CPU", float(cpus)), ("GPU", float(gpus))) if n}


@pytest.mark.parametrize("nodes, cores", [
    ([node(16, 1)], 16), ([node(16, 8), node(64, 4)], 2), ([node(96, 8), node(32, 0)], 12),
    ([node(7, 2)], 3), ([node(2, 4)], 0.5), ([node(1, 3)], 0.3333), ([node(0, 8)], 1), ([], 1),
])  # fmt: skip
def test_the_least_share_of_all_nodes_is_asked_for(nodes, cores):
    assert on_ray.gpu_cores(nodes) == cores


@given(st.lists(st.tuples(st.integers(1, 256), st.integers(1, 16)), min_size=1, max_size=6))
def test_every_gpu_of_every_node_can_be_used(shapes):
    cores = on_ray.gpu_cores([node(*shape) for shape in shapes])
    assert all(cores * gpus <= cpus + 1e-9 for cpus, gpus in shapes)
    assert cores < 1 or cores == int(cores), "Ray takes no 1.5 cores"


def test_without_gpus_a_task_takes_one_core():
    class Cores:
        def nodes(self):
            return [{"Alive": True, "Resources": node(8, 0)}]

    assert on_ray._cores(Cores(), "CPU") == 1
