"""How many cores there are to use: the affinity, and quotas of cgroups of either version."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from datadream import doctor
from datadream.data import decode_cache, transforms
from datadream.engines import here
from datadream.store import cores as package
from datadream.store.cores import own_cores, usable_cores
from datadream.study import cells, papermill_runs
from datadream.study.plan import processes

V2 = "31 23 0:28 / {} rw,relatime shared:5 - cgroup2 cgroup rw,nsdelegate\n"
V1 = "32 31 0:29 {root} {} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def eight(monkeypatch):
    """A machine of eight cores, all of them allowed."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def group(tmp_path):
    """Return a function that writes /proc/self and a hierarchy of cgroups, and returns the former.

    `files` are relative to the hierarchy's top.
    """

    def write(mount, groups, files):
        top = tmp_path / "cgroup of mine"  # mountinfo writes a space as \040
        for name, text in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)
        place = str(top).replace(" ", "\\040")
        (tmp_path / "mountinfo").write_text(
            "22 1 0:20 / / rw - ext4 /dev/sda rw\n" + mount.format(place, root="/")
        )
        (tmp_path / "cgroup").write_text(groups)
        return tmp_path

    return write


def v1(quota, period=100_000, folder=""):
    return {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": f"{period}\n"}


QUOTAS = [
    (V2, "0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    (V2, "0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # a part of a core counts as one
    (V2, "0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    (V2, "0::/\n", {"cpu.max": "max 100000\n"}, 8),
    (V2, "0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
    (V2, "0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
    (V2, "0::/a/b\n", {"cpu.max": "100000 100000\n", "a/b/cpu.max": "500000 100000"}, 1),
    (V2, "0::/a/b\n", {}, 8),
    (V2, "0::/a\n", {"cpu.max": "nonsense\n"}, 8),
    (V1, "4:cpu,cpuacct:/\n", v1(400_000), 4),
    (V1, "4:cpu,cpuacct:/\n", v1(-1), 8),
    (V1, "9:memory:/\n4:cpu,cpuacct:/job\n0::/\n", v1(250_000, folder="job/"), 3),
    # Docker on version 1: the path is the host's, and only its end is mounted.
    (V1.replace("{root}", "/docker/12"), "4:cpu,cpuacct:/docker/12\n", v1(100_000), 1),
    (V1.replace("{root}", "/docker/12"), "4:cpu,cpuacct:/other\n", v1(100_000), 1),
]


@pytest.mark.parametrize("mount, groups, files, cores", QUOTAS)
def test_a_quota_counts(eight, group, mount, groups, files, cores):
    assert usable_cores(group(mount, groups, files)) == cores


def test_without_a_description_it_is_the_machine(eight, tmp_path, monkeypatch):
    assert usable_cores(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity")
def test_a_process_bound_to_one_core_has_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from datadream.store.cores import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(
    "cores, gpus, own", [(16, 0, 16), (16, 1, 16), (16, 8, 2), (6, 4, 1), (2, 8, 1)]
)
def test_a_process_on_a_node_with_several_gpus_takes_its_share(monkeypatch, cores, gpus, own):
    monkeypatch.setattr(package, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert own_cores() == own


def test_a_cell_takes_no_more_threads_than_a_quota_pays_for(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(here, "own_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # a user's own choice
    here._bound_threads()
    assert not threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    here._bound_threads()
    assert threads == [2]


def test_whoever_needs_the_number_asks_for_the_usable_ones(monkeypatch):
    """The plan's estimate, the doctor, the threads that decode; nobody counts the machine's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    recipes = cells.cells(["real"], [0, 1], dataset="mnist")
    assert processes(recipes, 2) == (2, 0.5)
    assert "1 CPU core" in doctor._device().detail or "GPU" in doctor._device().detail
    assert papermill_runs.usable_cores() == 1
    for module in (transforms, decode_cache):
        assert module.own_cores() == 1
    counted = [
        file
        for folder in ("datadream", "benchmarks", "notebooks")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".ipynb")
        and re.search(r"cpu_count\b", file.read_text())
        and file.name != "cores.py"
    ]
    assert not counted
