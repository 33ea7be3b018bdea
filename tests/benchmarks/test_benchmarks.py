"""The benchmarks: that both ways do the same work, and that the command measures, prints and
writes.
"""

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline, counted, gpu, lengths, operations, simulate, together
from benchmarks.stages import SWAPS, Stage, as_files, peak_bytes, work
from datadream import paths
from datadream.data import datasets
from datadream.engines import on_ray, roofline
from datadream.methods import recipes
from datadream.methods.base import Support
from datadream.methods.registry import method_of
from datadream.models.classifiers import clip
from datadream.models.generators import load, lora
from datadream.models.generators.base import Attached
from datadream.pipeline.adapt import tune
from datadream.results import benchmark_tables
from datadream.seeds import seed_for
from datadream.study.plan import described_cell, profile_cells
from datadream.training.batch_size import BatchSize


def test_the_product_has_the_baselines_loss_curve(tmp_path):
    """The same seed, images, prompts and noise in float32: a cached posterior and tokens change
    nothing but the time.
    """
    recipe = recipes.recipe(
        overrides={"adapt.epochs": 3, "adapt.warmup": 2}, dataset="mnist", method="cls", shots=16
    )
    dataset = datasets.load_dataset("mnist")
    shots = datasets.few_shots(dataset, 16, 0, label=0)
    files = [str(tmp_path / f"{i}.png") for i in range(16)]
    for i, file in enumerate(files):
        shots.open(i).save(file)
    curves = {}
    for way in ("product", "baseline"):
        pipe = baseline.load_pipeline(paths.paths()["mini"] / "generator", torch.device("cpu"))
        torch.manual_seed(5)
        generator = load.generator_of(pipe)
        parameters = lora.add_generator_lora(generator, recipe.adapt)
        if way == "product":
            support = Support(recipe, dataset)
            own = Attached(parameters, print)
            curves[way] = tune(generator, own, support, shots, None, BatchSize(8), (0,))
            continue
        seed = seed_for("adapt", 0, 0)

        def rows_at(step, seed=seed):
            epoch, part = divmod(step, 2)
            order = torch.randperm(
                16, generator=torch.Generator().manual_seed(seed_for(seed, "epoch", epoch))
            )
            torch.manual_seed(seed_for(seed, step))
            return order[8 * part : 8 * part + 8].tolist()

        curves[way] = baseline.adapt(
            pipe,
            parameters,
            files,
            [datasets.prompt("", dataset.classes[0])] * 16,
            recipe.adapt,
            32,
            6,
            rows_at,
        )
    assert (
        curves["product"] == pytest.approx(curves["baseline"], rel=1e-3)
        and len(set(curves["product"])) == 6
    )


@pytest.fixture
def own_pipeline():
    """Forget the loaded pipelines afterwards: a stage leaves its LoRA attached, since it has a
    process of its own.
    """
    yield
    load.forget_generators()


@pytest.mark.parametrize(
    "name, way", [("adapt", "baseline"), ("adapt", "product"), ("exchange", "baseline")]
)
def test_a_way_of_a_stage_runs_and_is_timed(name, way, tmp_path, own_pipeline, monkeypatch):
    """Those that the next test does not run."""
    stage = Stage(name, way, "tiny", tmp_path, {})
    run = stage.run
    monkeypatch.setattr(stage, "run", lambda: (run(), time.sleep(0.1)))
    seconds, peak = stage.measure()
    assert 0.1 < seconds < 60 and 1e8 < peak < 64e9


def test_both_ways_make_and_see_the_same_images(tmp_path, own_pipeline, monkeypatch):
    """As many are written; as many are trained on, and decoded; as many adapters are put in."""
    ways = {way: Stage("generate", way, "tiny", tmp_path, {}) for way in ("baseline", "product")}
    for stage in ways.values():
        stage.run()
    assert [stage.written for stage in ways.values()] == [2, 2]
    assert not list(tmp_path.glob("tmp*")), "the images that were made to be timed are removed"

    seen, forward = [], clip.Classifier.forward
    monkeypatch.setattr(
        clip.Classifier,
        "forward",
        lambda self, images, tokens: (
            self.training and seen.append(len(images)),
            forward(self, images, tokens),
        )[1],
    )
    trained = []
    for way in ("baseline", "product"):
        stage = Stage("train", way, "tiny", tmp_path, {})
        seen.clear()
        stage.run()
        trained.append(sum(seen))
    assert trained == [64, 64]

    opened, open_ = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *rest: (opened.append(str(file)), open_(file, *rest))[1]
    )
    for way in ("baseline", "product"):
        Stage("decode", way, "tiny", tmp_path, {}).run()
    assert sorted(opened[:64]) == sorted(opened[64:]) and len(opened) == 128

    loaded, read = [], lora.merge_lora
    monkeypatch.setattr(lora, "merge_lora", lambda *args: (loaded.append(1), read(*args))[1])
    Stage("exchange", "product", "tiny", tmp_path, {}).run()
    assert len(loaded) == SWAPS


def test_the_papers_images_are_noise_of_a_photographs_shape(tmp_path):
    _, dataset, shots = work("paper", tmp_path)
    assert (
        len(dataset.test) == 2500
        and len({shots.open(i).tobytes() for i in range(len(shots))}) == 160
    )
    (file,) = as_files(shots.pick([0]), tmp_path / "shots", 512, 4 / 3)
    with Image.open(file) as photo:
        assert photo.size == (683, 512) and 2e5 < Path(file).stat().st_size < 1.2e6


def test_every_epoch_has_the_same_share_of_a_trainings_work(tmp_path):
    stage, found = Stage("train", "product", "tiny", tmp_path, {}), []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            stage.run()
        found.append(counter.get_total_flops())
    assert len(set(found)) == 1 and found[0] > 0


def test_a_process_has_its_own_peak_and_not_its_parents():
    large = np.ones(200_000_000, np.float32)
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.stages import peak_bytes; print(peak_bytes())"],
        capture_output=True,
        text=True,
    )
    assert 1e7 < int(done.stdout) < large.nbytes < peak_bytes()


@pytest.mark.long
def test_the_command_measures_prints_and_writes(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "--profile",
            "tiny",
            "--rounds",
            "2",
            "--row",
            "adapt",
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    (row,) = results["rows"]
    mean, low, high = row["ratio"]
    assert low <= mean <= high and row["flops"] > 1e8 and row["images"] == 2 * 8
    assert results["limits"]["flops"]["float32"] > 1e8 and results["limits"]["decoded_bytes"] > 1e5
    table = benchmark_tables.benchmark_table(results)
    assert table["ratio"][0] == mean and math.isfinite(table["share of peak, %"][0])
    assert "GFLOP/s" in done.stdout and "adapt" in done.stdout and str(out) in done.stdout


def test_adapters_that_train_together_have_the_gradients_that_each_has_alone():
    """Two adapters of the embedded UNet over a batch of two blocks, against each block by
    itself.
    """
    pipe = baseline.load_pipeline(paths.paths()["mini"] / "generator", torch.device("cpu"))
    options = recipes.recipe(overrides={"adapt.rank": 2, "adapt.batch": 1}).adapt
    # Leaves the weights as they are.
    still = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    found = lora.add_generator_lora(load.generator_of(pipe), options)
    own = [p for name, p in found.items() if name.startswith("unet")]
    torch.manual_seed(1)
    for p in own:
        p.data.normal_(0, 0.05)
    work, alone = together.problem(pipe, options, 2), []
    for part in zip(*(part.split(1) for part in work), strict=True):
        together.step(pipe.unet, still, *part)
        alone.append([p.grad for p in own])
        pipe.unet.zero_grad()
    stacked = together.stack(pipe.unet, 2)
    together.step(pipe.unet, still, *work, 2)
    assert len(stacked) == len(own)
    for i, wanted in enumerate(alone):
        for p, gradient in zip(stacked, wanted, strict=True):
            torch.testing.assert_close(p.grad[i].T, gradient, rtol=1e-3, atol=1e-6)


@pytest.fixture
def graph(make, store):
    return on_ray.tasks([make(method) for method in ("real", "base", "cls", "dset+real")], store)


def test_a_virtual_cluster_runs_the_engine_s_loop(graph, tmp_path):
    """One worker does everything in turn; many are bounded by the longest chain; the driver's
    time is added to each task.
    """
    seconds = {
        name: {"adapt": 100.0, "slice": 10.0, "cell": 1.0}[task.kind]
        for name, task in graph.items()
    }
    one, many = (simulate.simulate(graph, workers, seconds, 0.0) for workers in (1, 100))
    assert (
        one["seconds"] == sum(seconds.values())
        and one["utilisation"] == 1
        and one["bottleneck"] == "work"
    )
    assert many["seconds"] == 111 and many["bottleneck"] == "chain"
    assert [graph[name].kind for name in simulate.chain(graph, seconds)] == [
        "adapt",
        "slice",
        "cell",
    ]
    slow = simulate.simulate(graph, 100, seconds, 20.0)
    assert slow["bottleneck"] == "driver" and slow["seconds"] >= 20 * len(graph)


def test_a_node_shares_out_the_adapters_of_whole_datasets_alone(graph):
    seconds = dict.fromkeys(graph, 8.0)
    shared = simulate.remedies(graph, seconds)[f"dataset-wise adapters on {simulate.ALONE} GPUs"]
    sooner = [graph[name].recipe.method for name, value in shared.items() if value == 1.0]
    assert sooner == ["dset+real"] and sorted(set(shared.values())) == [1.0, 8.0]


def test_long_tasks_first_end_sooner(make, store):
    """Two workers: the adapter of the last method, about as long as all else, begins at once and
    not after it.
    """
    graph = on_ray.tasks([make("base"), make("cls"), make("dset", {"adapt.epochs": 4})], store)
    seconds = {name: task.length + 1e-3 for name, task in graph.items()}
    ordered, plain = (
        simulate.simulate(todo, 2, seconds, 0.0)["seconds"]
        for todo in (graph, simulate.unordered(graph))
    )
    assert sum(seconds.values()) / 2 <= ordered < 0.95 * plain


def test_what_the_papers_models_ask_for_is_as_counted():
    """The package keeps the counts, so that a plan needs no full-size model."""
    own = counted.generator_costs() | counted.classifier_costs()
    assert own.keys() == roofline.COUNTED.keys()
    for name, found in own.items():
        kept = roofline.COUNTED[name]
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(kept), rel=0.02)


def test_operations_agree_with_torchs_own_counter():
    layer, image = torch.nn.Conv2d(3, 8, 3).to("meta"), torch.empty(2, 3, 16, 16, device="meta")
    with FlopCounterMode(display=False) as counter:
        layer(image).sum().backward()
    found = counted.count(lambda: layer(image).sum().backward())
    assert (found.half, found.single) == (0, counter.get_total_flops()) and found.moved > 0
    halved = counted.count(lambda: layer.bfloat16()(image.bfloat16()).sum().backward())
    assert (halved.half, halved.single) == (found.single, 0)


def test_the_papers_lengths_come_from_the_counts(store):
    """A slice has 100 images of 50 guided steps."""
    flops = lengths.flops()
    assert 2 * flops["unet"] < flops["trained view"] < 3 * flops["unet"]
    todo = on_ray.tasks(profile_cells("paper", ["eurosat"], 1), store, described_cell)
    first = {
        kind: next(
            task for task in todo.values() if task.kind == kind and method_of(task.recipe).generates
        )
        for kind in ("adapt", "slice", "cell")
    }
    assert lengths.length(first["slice"]) == pytest.approx(
        100 * (100 * flops["unet"] + flops["decode"]) / lengths.PEAK / lengths.SHARE
    )
    assert (
        lengths.length(first["adapt"])
        > 16 * 200 * flops["trained view"] / lengths.PEAK / lengths.SHARE
    )
    # A batch has eight images: of one class, or of eight of the ten.
    for method, shots, share in (("cls", 16, 1 / 8), ("dset", 160, 1)):
        task = next(t for t in todo.values() if (t.kind, t.recipe.method) == ("adapt", method))
        each = flops["trained view"] + flops["encode"] + share * flops["trained prompt"]
        assert lengths.length(task) == pytest.approx(
            shots * task.recipe.adapt.epochs * each / lengths.PEAK / lengths.SHARE
        )
    assert (
        set(lengths.parts(first["cell"])) == {"digests", "products", "decoding", "test"}
        and lengths.length(first["cell"]) > 0
    )


@pytest.mark.long
def test_every_part_of_the_run_on_a_gpu_goes_through_on_a_cpu(tmp_path):
    """With the embedded models, and compiled by a backend that compiles nothing: a minute."""
    out = tmp_path / "out"
    words = [
        "--tiny",
        "--backend",
        "eager",
        "--seconds",
        "9999",
        "--out",
        str(out),
        "--root",
        str(tmp_path / "models"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert {
        "whole_cell",
        "adapt_steps",
        "generate_images",
        "classifier_epoch",
        "adapt_compiled",
    } <= set(results["parts"])
    assert not [
        name for name, found in results["parts"].items() if {"error", "skipped"} & set(found)
    ]
    apart = results["parts"]["adapt_graphed"]
    assert max(apart["graphed, apart"].values()) == 0  # on a CPU nothing is a graph
    assert max(apart["graphed, lean LoRA, apart"].values()) == 0
    table = benchmark_tables.gpu_table(results)
    assert table["stage"].nunique() == 3 and (table["times as fast"] > 0).all()
    assert all("ms" in line for line in benchmark_tables.gpu_findings(results))
    assert "## sampling" in (out / "kernels.txt").read_text()


def test_the_kept_runs_on_a_gpu_are_read():
    kept = benchmark_tables.load_gpus(paths.paths()["benchmarks"])
    for results in kept:
        assert results["gpu"] == "NVIDIA H200" and len(benchmark_tables.gpu_findings(results)) == 4
        table = benchmark_tables.gpu_table(results)
        assert set(table["way"]) >= {"ours", "released way"}
        base = table[table["way"].isin(["released way", "released way, float32"])]
        assert base["times as fast"].tolist() == [1] * table["stage"].nunique()
        assert (table.loc[table["way"] == "ours", "times as fast"] > 1).all()
    dates = [results["date"] for results in kept]
    assert dates == sorted(dates, reverse=True)
    findings = [benchmark_tables.gpu_findings(results) for results in kept]
    assert any("54 s of compilation" in lines[0] for lines in findings)
    # A layout that takes longer than the other is not used.
    assert any("contiguous weights it takes 56.6 ms" in lines[0] for lines in findings)
    (variants,) = filter(len, map(benchmark_tables.gpu_variants, kept))
    won = variants.set_index(["what", "way"])["times as fast"]
    assert (
        won["the UNet's step", "graphed"] > 2
        and won["a step of adapting", "the UNet graphed"] > 1.1
    )


@pytest.mark.long
def test_a_part_that_fails_or_does_not_fit_leaves_the_others_their_results(
    tmp_path, monkeypatch, capsys
):
    ran = []
    parts = {
        "broken": (1, lambda bench: 1 / 0),
        "long": (500, lambda bench: ran.append("long")),
        "fine": (1, lambda bench: {"n": 1}),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert (
        gpu.main(["--out", str(tmp_path), "--root", str(tmp_path / "models"), "--seconds", "400"])
        == 1
    )
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert "ZeroDivisionError" in found["broken"]["error"] and found["fine"]["n"] == 1 and not ran
    assert "it takes about 500 s" in found["long"]["skipped"]
    assert "fine" in capsys.readouterr().out


def test_store_operations_are_counted(tmp_path):
    file = tmp_path / "store" / "a.txt"
    file.parent.mkdir()
    with operations.counting(file.parent) as counts:
        file.write_text("a")
        file.read_text()
        file.exists()
        (tmp_path / "elsewhere").write_text("b")
        list(file.parent.iterdir())
        file.unlink()
    assert counts == {"put": 2, "get": 1, "exists": 1, "list": 1}
