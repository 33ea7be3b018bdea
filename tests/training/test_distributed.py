"""Several processes that train one adapter: the sums they share, what they refuse, how they end,
and the real launcher.
"""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import adapt
from safetensors.torch import load_file

from datadream.engines.on_accelerate import adapt_together
from datadream.errors import ConfigError
from datadream.paths import paths
from datadream.store.artifacts import Store
from datadream.training.checkpoint import load_state
from datadream.training.distributed import broadcast, leads, share, sum_step
from datadream.training.loop import fit


def launch(script, *words, **environment):
    """Return the ended `accelerate launch` of two processes with these words after it; what it
    starts for GPUs runs on a CPU as well.
    """
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        *script,
        *words,
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


def process(rank, count):
    """Stand for one of several processes that nothing is sent between."""
    return SimpleNamespace(
        process_index=rank, num_processes=count, is_main_process=rank == 0, device="cpu"
    )


def test_every_row_has_one_process():
    rows = torch.arange(7)
    parts = [share(rows, process(rank, 3)) for rank in range(3)]
    assert (
        sorted(torch.cat(parts).tolist()) == rows.tolist()
        and max(map(len, parts)) - min(map(len, parts)) <= 1
    )
    assert share(rows[:1], process(1, 3)).tolist() == []
    assert share(rows, None).tolist() == rows.tolist()


@pytest.mark.parametrize("alone", [None, process(0, 1)])
def test_one_process_alone_sends_nothing(alone):
    value = torch.nn.Parameter(torch.ones(3))
    value.grad = torch.ones(3)
    assert sum_step([value], [2.0], alone) == [2.0] and value.grad.tolist() == [1, 1, 1]
    assert broadcast(5, alone) == 5 and leads(alone)


def test_cells_without_a_dataset_wise_adapter_are_refused(make, store):
    with pytest.raises(ConfigError, match="none of these 2 cells has a dataset-wise adapter"):
        adapt_together([make("cls"), make("base")], store, None)


@pytest.mark.long
def test_the_launcher_s_processes_make_the_adapter_of_one(make, tiny, dataset, shots, tmp_path):
    """Six images in batches of five: the last batch is smaller than the team."""
    values = {**tiny, "adapt.epochs": 4, "adapt.batch": 5}
    recipe = make("dset", values)
    home = tmp_path / "home" / "notebooks"
    home.mkdir(parents=True)
    shutil.copy(paths()["notebooks"] / "dataset.ipynb", home)
    run = {
        "notebook": "dataset",
        "parameters": {
            "dataset": "folder",
            "folder": recipe.folder,
            "shots": recipe.shots,
            "methods": ["dset", "dset+real"],
            "overrides": values,
        },
    }
    (home / "study.yaml").write_text(yaml.safe_dump({"runs": {"photos": run}, "smoke": {}}))
    done = launch(
        ["-m", "datadream"],
        "adapt",
        "photos",
        DATADREAM_HOME=str(home.parent),
        DATADREAM_STORE=str(tmp_path / "together"),
    )
    assert done.returncode == 0, done.stderr
    whole = adapt(recipe, dataset, Store(tmp_path / "alone"))
    folder = tmp_path / "together" / whole.name
    assert done.stdout.strip().splitlines()[-1] == f"{folder}, 2 processes"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["processes"] == 2 and sorted(manifest["files"]) == sorted(
        json.loads((whole / "manifest.json").read_text())["files"]
    )
    one, other = (load_file(f / "pytorch_lora_weights.safetensors") for f in (whole, folder))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


FIT = """
import os, signal, sys
from pathlib import Path

import torch

from datadream import signals
from datadream.training import distributed, loop

folder, what = Path(sys.argv[1]), sys.argv[2]
ours = distributed.accelerator()
weight = torch.nn.Parameter(torch.zeros(3))
goal = torch.arange(12.0).view(4, 3)

def loss_at(step):
    noise = torch.randn(4, 3)
    share = lambda rows: ((weight - goal[:count][rows] + noise[:count][rows]) ** 2).sum() / 10
    count = 4 if step % 2 else 1  # now and then one process has nothing
    return loop.Shares(count, share)

def after(step, loss):
    if what == "stop" and step == 6 and ours.is_main_process:
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "nan" and step == 6 and not ours.is_main_process:
        goal.fill_(float("nan"))

own = folder / str(ours.process_index) if what == "apart" else folder
own.mkdir(exist_ok=True)
with open(folder / f"end-{what}-{ours.process_index}", "w") as report:
    try:
        with signals.listening():
            losses = loop.fit({"weight": weight}, loss_at, steps=12, lr=0.1, seed=1, every=4,
                              after=after, accelerator=ours, checkpoint=own / "state.safetensors")
        report.write(repr((losses, weight.tolist())))
    except (Exception, signals.Stopped) as error:
        report.write(f"{type(error).__name__}: {error}")
"""


def ends(folder, what):
    """Return how both processes of the script ended."""
    (folder / "fit.py").write_text(FIT)
    done = launch([str(folder / "fit.py")], str(folder), what)
    files = sorted(folder.glob(f"end-{what}-*"))
    assert len(files) == 2, done.stderr
    return [file.read_text() for file in files]


@pytest.mark.cluster
def test_a_team_stops_together_and_goes_on_to_the_same_bytes(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = ends(tmp_path / "whole", "whole")
    assert whole[0] == whole[1] and whole[0].startswith("([")
    assert all(
        end.startswith("Stopped: stopped by SIGTERM") for end in ends(tmp_path / "stopped", "stop")
    )
    assert load_state(tmp_path / "stopped" / "state.safetensors")[1] == 7
    assert ends(tmp_path / "stopped", "go-on") == whole


@pytest.mark.cluster
def test_a_loss_that_diverges_in_one_process_ends_all(tmp_path):
    assert all(
        end.startswith("DivergedError") and "step 7 of 12" in end and "The last good state" in end
        for end in ends(tmp_path, "nan")
    )


@pytest.mark.cluster
def test_processes_that_do_not_see_one_checkpoint_are_refused(tmp_path):
    (tmp_path / "0").mkdir()
    weight = torch.nn.Parameter(torch.zeros(3))
    fit(
        {"weight": weight},
        lambda step: weight.sum(),
        steps=6,
        lr=0.1,
        checkpoint=tmp_path / "0" / "state.safetensors",
        every=4,
    )
    _leader, other = ends(tmp_path, "apart")
    assert (
        other.startswith("ConfigError")
        and "would begin at step 0" in other
        and "share the store's folder" in other
    )
