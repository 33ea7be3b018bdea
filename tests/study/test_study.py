"""One cell, many cells, the plan, and the named runs of a study file: real stages, real
papermill, tiny models.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
import yaml
from conftest import CLASSES, ROOT, draw_image, write_classes
from hypothesis import given
from hypothesis import strategies as st

from datadream.config import as_dict
from datadream.data.datasets import DataError, few_shots
from datadream.errors import ConfigError
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS, method_of
from datadream.pipeline.stages import Cell
from datadream.results.records import load_records
from datadream.signals import Stopped
from datadream.store.artifacts import Store
from datadream.store.provenance import provenance
from datadream.study import cells, named_runs, outcome, papermill_runs, run, samples

MAIN = [name for name, row in METHODS.items() if row.main]


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """Return the cell of every method of the main table on one seed, run once for this file:
    store, recipes and the table.
    """
    store = Store(tmp_path_factory.mktemp("finished"))
    recipes = [make(method) for method in MAIN]
    return SimpleNamespace(store=store, recipes=recipes, table=run.run_cells(recipes, store))


# Cells.


def test_cells_are_every_method_on_every_seed(tiny):
    found = cells.cells(["real", "dset"], [3, 5], {"adapt.rank": 2}, dataset="optdigits", shots=4)
    assert [(one.method, one.seed) for one in found] == [
        ("real", 3),
        ("dset", 3),
        ("real", 5),
        ("dset", 5),
    ]
    assert all(
        one.dataset == "optdigits" and one.shots == 4 and one.adapt.rank == 2 for one in found
    )
    assert [one.method for one in cells.cells()] == MAIN


@pytest.mark.parametrize("shots", [[1, 4], (1, 4), "[1, 4]"])
def test_several_numbers_of_shots_give_the_cells_of_each(shots):
    found = cells.cells(["real", "dset"], [0, 1], shots=shots)
    assert [one.shots for one in found] == [1] * 4 + [4] * 4
    assert found[4:] == cells.cells(["real", "dset"], [0, 1], shots=4)
    with pytest.raises(ConfigError, match="names a number twice"):
        cells.cells(["real"], shots=[4, 4])


@pytest.mark.parametrize(
    "name, value",
    [("methods", "real"), ("methods", []), ("seeds", 3), ("seeds", "0,1"), ("shots", [])],
)
def test_a_list_that_is_none_is_refused_with_the_flag_that_papermill_wants(name, value):
    with pytest.raises(ConfigError, match=f"{name}=.*-y '{name}: "):
        cells.cells(**{name: value})


def test_none_is_the_profile_s():
    (one,) = cells.cells(["dset"], images=7, generator=None, overrides={"adapt.rank": 2})
    assert (one.generate.images, one.generator, one.adapt.rank) == (7, "mini", 2)


def test_an_unknown_method_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="Did you mean 'dset'"):
        cells.cells(["real", "dste"])


def test_a_row_per_cell_in_the_order_of_the_methods(finished):
    table = finished.table
    assert table["method"].tolist() == MAIN and set(table["seed"]) == {0}
    assert set(table["total"]) == {12} and table["top1"].between(0, 1).all()
    assert ((table["low"] <= table["top1"]) & (table["top1"] <= table["high"])).all()


def test_a_record_holds_the_whole_cell(finished):
    for one in finished.recipes:
        (record,) = [
            r
            for r in (
                json.loads(f.read_text()) for f in (finished.store.root / "records").glob("*.json")
            )
            if r["recipe"]["method"] == one.method
        ]
        assert record["recipe"] == as_dict(one)
        assert provenance().items() <= record.items()
        assert (
            set(record["result"]) == {"val", "test"}
            and len(record["result"]["test"]["per_class"]) == 3
        )
        stages = (
            {"judge"}
            | ({"train"} if method_of(one).trained else set())
            | ({"generate"} if method_of(one).generates else set())
        )
        stages |= {"adapt"} if one.method.startswith(("cls", "dset")) else set()
        stages |= {"shots"} if method_of(one).real or "adapt" in stages else set()
        assert set(record["seconds"]) == stages and all(
            value >= 0 for value in record["seconds"].values()
        )
        assert all(finished.store.done(key) for key in record["artifacts"].values())
        assert [row["step"] for row in record["curve"]] == (
            [3, 6, 9] if method_of(one).trained else []
        )


def test_methods_share_the_stages_that_they_have_in_common(finished):
    expected = {
        "shots": 1,
        "adapt": 1 + 3,
        "generate": 3,
        "train": 7,
        "judge": 8,
        "records/record": 8,
    }
    assert {
        stage: len(list(finished.store.root.glob(f"{stage}-*"))) for stage in expected
    } == expected
    assert not list(finished.store.root.glob("*.partial"))


def test_the_keys_of_a_cell_are_known_before_it_runs(finished):
    for one, record in zip(finished.recipes, finished.table["artifacts"], strict=True):
        assert Cell(one).keys == record


def test_the_draw_is_kept_by_image(finished, dataset):
    (folder,) = finished.store.root.glob("shots-*")
    lines = [json.loads(line) for line in (folder / "shots.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == [name for name in CLASSES for _ in range(2)]
    assert [dataset.train.sources[line["pool_index"]] for line in lines] == list(
        few_shots(dataset, 2, 0).sources
    )
    assert all(
        dataset.train.sources[line["pool_index"]].endswith("/" + line["file"]) for line in lines
    )


def test_the_records_of_cells_are_found_and_a_missing_one_is_named(finished, make, store):
    assert (
        run.find(finished.recipes, finished.store)["key"].tolist() == finished.table["key"].tolist()
    )
    with pytest.raises(LookupError, match="1 of 2 cells.*folder, real, seed 7.*datadream study"):
        run.find([make("clip"), make("real", seed=7)], finished.store)


def test_a_finished_cell_is_read_not_computed(finished, monkeypatch):
    def only_read(store, key, inputs, build, **notes):
        assert store.done(key), f"{key} would be computed again"
        return store.folder(key)

    monkeypatch.setattr(Store, "make", only_read)
    again = run.run_cells(finished.recipes, finished.store)
    assert (
        again["created"].tolist() == finished.table["created"].tolist()
        and again["key"].tolist() == finished.table["key"].tolist()
    )


def test_only_these_cells_are_in_the_table(finished, make):
    table = run.run_cells([make("real")], finished.store)
    assert table["method"].tolist() == ["real"]
    assert len(load_records(finished.store.records)) == 8


def test_a_cell_whose_adapters_were_deleted_to_save_space_still_runs(finished, make, tmp_path):
    store = Store(shutil.copytree(finished.store.root, tmp_path / "copy"))
    for folder in store.root.glob("adapt-*"):
        shutil.rmtree(folder)
    for file in (store.root / "records").iterdir():
        file.unlink()
    record = run.run(make("cls+real"), store)
    assert record["result"]["test"]["total"] == 12


def test_other_images_give_another_record(make, tmp_path, store):
    for name in ("before", "after"):
        write_classes(tmp_path / name, CLASSES, 12)
    draw_image(9, 9).save(tmp_path / "after" / CLASSES[0] / "image 3.png")
    keys = {
        run.run(make("clip", folder=str(tmp_path / name)), store)["artifacts"]["judge"]
        for name in ("before", "after")
    }
    assert len(keys) == 2


def test_seeds_in_two_processes_give_the_same_numbers_as_in_one(make, tmp_path):
    """Zero-shot CLIP has no seed, so that both processes want the same artifact."""
    recipes = [make(method, seed=seed) for seed in (0, 1) for method in ("clip", "real")]
    tables = [run.run_cells(recipes, Store(tmp_path / str(workers)), workers) for workers in (1, 2)]
    for table in tables:
        assert list(zip(table["method"], table["seed"], strict=True)) == [
            ("clip", 0),
            ("clip", 1),
            ("real", 0),
            ("real", 1),
        ]
    assert tables[0][["top1", "val_top1", "key"]].equals(tables[1][["top1", "val_top1", "key"]])


@pytest.mark.parametrize(
    "method, overrides, words",
    [
        (
            "real",
            {"classify.warmup": 4},
            "classify.warmup=4 is longer than the training of 3 epochs.*give at most 3",
        ),
        (
            "dset",
            {"adapt.warmup": 5},
            "adapt.warmup=5 is longer than the training of 4 steps.*give at most 4",
        ),
        ("cls+real", {"adapt.warmup": 3}, "adapt.warmup=3 is longer than the training of 2 steps"),
        (
            "loft",
            {"adapt.warmup": 3, "adapt.batch": 1},
            "adapt.warmup=3 is longer than the training of 2 steps",
        ),
    ],
)
def test_a_warm_up_that_is_longer_than_the_training_is_refused_before_anything_is_made(
    make, store, method, overrides, words
):
    with pytest.raises(ConfigError, match=words):
        run.run(make(method, overrides), store)
    assert not list(store.root.glob("*-*")), "no artifact"
    shorter = {k: value - 1 if "warmup" in k else value for k, value in overrides.items()}
    assert Cell(make(method, shorter)).keys


def test_too_few_images_stop_a_cell_with_the_class(make, store):
    with pytest.raises(DataError, match="Boeing 747.*shots=50"):
        run.run(make("real", shots=50), store)


def test_samples_are_the_few_shots_and_each_generators_images(finished, dataset):
    rows = samples.sample_rows(finished.recipes, finished.store, depth=2)
    assert list(rows) == [
        "Real few shots",
        "Untuned generator",
        "DataDream (class)",
        "DataDream (dataset)",
    ]
    assert all([len(column) for column in columns] == [2, 2, 2] for columns in rows.values())
    shots = few_shots(dataset, 2, 0)
    assert np.array_equal(np.asarray(rows["Real few shots"][1][0]), np.asarray(shots.open(2)))
    assert rows["DataDream (class)"][0][0].size == (16, 16)


def test_the_samples_of_a_method_with_real_images_are_shown_too(finished, make):
    rows = samples.sample_rows([make("dset+real"), make("dset")], finished.store)
    assert list(rows) == ["Real few shots", "DataDream (dataset)"]


def test_the_places_of_the_artifacts(finished):
    places = cells.artifact_places(finished.table).set_index("method")
    assert places.loc["clip", "classifier"] == "" and places.loc["base", "few shots"] == ""
    assert all(
        (finished.store.root / places.loc["dset+real", stage]).is_dir()
        for stage in ("few shots", "synthetic set", "classifier", "result")
    )


# Study files.


def write_notebook(folder, name, *cells, parameters="x = 1", kernel="python3"):
    """Write a notebook template with a tagged parameters cell (unless None) and code cells."""
    folder.mkdir(parents=True, exist_ok=True)
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    if parameters is not None:
        code.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    metadata = {
        "kernelspec": {"name": kernel, "display_name": kernel, "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(
        nbformat.v4.new_notebook(cells=code, metadata=metadata), folder / f"{name}.ipynb"
    )


def write_in_r(file):
    """Write a notebook of a language for which this machine has no kernel."""
    metadata = {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}
    nbformat.write(nbformat.v4.new_notebook(metadata=metadata), file)


def write_study(home, runs, smoke=None):
    """Write notebooks/study.yaml."""
    (home / "notebooks").mkdir(parents=True, exist_ok=True)
    (home / "notebooks" / "study.yaml").write_text(
        yaml.safe_dump({"runs": runs, "smoke": smoke or {}}, sort_keys=False)
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty project folder that the package takes for its own."""
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def runs(home):
    """Return the folder of executed notebooks."""
    folder = home / "book" / "runs"
    folder.mkdir(parents=True)
    return folder


def outputs(file):
    """Return all text that a notebook printed."""
    cells = json.loads(file.read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run a study in which one of three runs fails, two at once and at the size of a smoke test,
    whose parameters replace those of the run; return its folder, its table and what it printed.
    """
    home, printed = tmp_path_factory.mktemp("ended"), io.StringIO()
    write_notebook(home / "notebooks", "good", "print('x, y are', x, y)", parameters="x = 1\ny = 1")
    write_notebook(
        home / "notebooks", "bad", "print('so far', x)", "raise ValueError('nothing here')"
    )
    write_study(
        home,
        {
            "first": {"notebook": "good", "parameters": {"x": 7, "y": 7}},
            "second": {"notebook": "bad", "parameters": {"x": 3}},
            "third": {"notebook": "good"},
            "other": {"notebook": "good", "groups": ["another"]},
        },
        smoke={"good": {"x": 0}},
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("DATADREAM_HOME", str(home))
        table = papermill_runs.run_study(smoke=True, jobs=2).set_index("run")
    return SimpleNamespace(home=home, table=table, printed=printed.getvalue())


def test_a_study_goes_on_after_a_failed_run_and_says_so(ended):
    table, folder = ended.table, ended.home / "book" / "runs"
    assert table["status"].to_dict() == {"first": "done", "second": "failed", "third": "done"}
    assert "ValueError: nothing here" in table.loc["second", "note"]
    assert "x, y are 0 7" in outputs(folder / "first.ipynb") and "x, y are 0 1" in outputs(
        folder / "third.ipynb"
    )
    assert not (folder / "second.ipynb").exists() and not (folder / "other.ipynb").exists()
    assert "so far 3" in outputs(folder / "second.failed.ipynb"), "the partial output is kept"
    assert "second: failed" in ended.printed


def test_a_study_keeps_the_outcome_of_the_runs_that_it_executed(ended, monkeypatch):
    monkeypatch.setenv("DATADREAM_HOME", str(ended.home))
    assert [(one["run"], one["page"]) for one in outcome.failures()] == [
        ("second", "book/runs/second.failed.ipynb")
    ]
    kept = json.loads(outcome.status_file().read_text())
    assert {name: one["status"] for name, one in kept.items()} == {
        "first": "done",
        "second": "failed",
        "third": "done",
    }
    assert "ValueError: nothing here" in kept["second"]["note"]
    assert kept["second"]["time"].endswith("Z")


def test_a_finished_run_is_skipped_until_its_parameters_or_template_change(home, runs):
    write_notebook(home / "notebooks", "good", "print('x is', x)")

    def once(parameters):
        return papermill_runs.execute("run", {"notebook": "good"}, parameters, runs)[0]

    assert [once({"x": 2}), once({"x": 2})] == ["done", "done before"]
    assert once({"x": 3}) == "done" and "x is 3" in outputs(runs / "run.ipynb")
    write_notebook(home / "notebooks", "good", "print('now', x)")
    assert once({"x": 3}) == "done" and "now 3" in outputs(runs / "run.ipynb")
    assert [file.name for file in runs.iterdir()] == ["run.ipynb"]


def test_a_failed_run_is_not_done_and_is_tried_again(home, runs):
    write_notebook(home / "notebooks", "bad", "if x: raise ValueError('nothing here')")
    for _ in range(2):
        status, _, note = papermill_runs.execute("run", {"notebook": "bad"}, {"x": 1}, runs)
        assert status == "failed" and "run.failed.ipynb" in note
    assert not (runs / "run.ipynb").exists()
    # A page that looks whole but has the mark of an exception is not done either: papermill has
    # ended well on such (its issue 501).
    failed = json.loads((runs / "run.failed.ipynb").read_text())
    failed["metadata"]["datadream"] = papermill_runs._fingerprint(
        home / "notebooks" / "bad.ipynb", {"x": 1}
    )
    (runs / "run.ipynb").write_text(json.dumps(failed))
    assert papermill_runs.execute("run", {"notebook": "bad"}, {"x": 1}, runs)[0] == "failed"
    assert papermill_runs.execute("run", {"notebook": "bad"}, {"x": 0}, runs)[0] == "done"
    assert [file.name for file in runs.iterdir()] == ["run.ipynb"]


def test_a_damaged_page_is_made_again(home, runs):
    write_notebook(home / "notebooks", "good", "print('x is', x)")
    for content in ("", "{", "{}", '{"metadata": {}}'):
        (runs / "run.ipynb").write_text(content)
        fingerprint = papermill_runs._fingerprint(home / "notebooks" / "good.ipynb", {})
        assert not papermill_runs._finished(runs / "run.ipynb", fingerprint)


@pytest.mark.parametrize(
    "name, prepare",
    [
        ("another language", lambda folder: write_in_r(folder / "bad.ipynb")),
        ("no notebook", lambda folder: (folder / "bad.ipynb").write_text("{")),
        (
            "dead kernel",
            lambda folder: write_notebook(
                folder, "bad", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"
            ),
        ),
    ],
)
def test_a_run_that_papermill_cannot_finish_is_failed_not_the_end_of_the_study(
    home, runs, name, prepare
):
    """A kernel that the system kills for its memory is the likeliest failure of a long study."""
    (home / "notebooks").mkdir()
    prepare(home / "notebooks")
    status, _, note = papermill_runs.execute("bad", {"notebook": "bad"}, {}, runs)
    assert status == "failed" and note


def test_the_page_of_a_run_knows_its_cells(home, runs):
    write_notebook(
        home / "notebooks",
        "dataset",
        "print(shots)",
        parameters="dataset = 'mnist'\nshots = 16\nseeds = [0]\nmethods = None\nworkers = "
        "1\noverrides = {}",
    )
    parameters = {
        "shots": 4,
        "methods": ["real", "dset"],
        "seeds": [1],
        "overrides": {"adapt.rank": 2},
    }
    with pytest.raises(LookupError, match="book/runs/small.ipynb is not there.*study small"):
        named_runs.page_cells("small")
    assert papermill_runs.execute("small", {"notebook": "dataset"}, parameters, runs)[0] == "done"
    found = named_runs.page_cells("small")
    assert [(one.method, one.seed, one.shots, one.dataset, one.adapt.rank) for one in found] == [
        ("real", 1, 4, "mnist", 2),
        ("dset", 1, 4, "mnist", 2),
    ]


def test_a_page_of_another_version_of_the_package_is_made_again(home, runs, monkeypatch):
    write_notebook(home / "notebooks", "good", "print('x is', x)")
    assert papermill_runs.execute("run", {"notebook": "good"}, {}, runs)[0] == "done"
    monkeypatch.setattr(papermill_runs, "_package", lambda: "other code or weights")
    assert papermill_runs.execute("run", {"notebook": "good"}, {}, runs)[0] == "done"


@pytest.mark.cluster
def test_a_process_that_the_system_kills_takes_no_other_run_with_it(home, monkeypatch):
    write_notebook(home / "notebooks", "good", "print('x is', x)")
    write_notebook(
        home / "notebooks", "greedy", "import os, signal", "os.kill(os.getppid(), signal.SIGKILL)"
    )
    write_study(
        home,
        {
            "greedy": {"notebook": "greedy"},
            "first": {"notebook": "good"},
            "second": {"notebook": "good"},
        },
    )
    table = papermill_runs.run_study(jobs=2).set_index("run")
    assert table["status"].to_dict() == {"greedy": "failed", "first": "done", "second": "done"}
    assert "died" in table.loc["greedy", "note"]


WORKS = """
import time
from pathlib import Path
from datadream import signals
with signals.listening():
    Path(place, "begun").touch()
    while not signals.asked():
        time.sleep(0.01)
    Path(place, "saved").touch()
"""


@pytest.mark.cluster
def test_sigterm_lets_a_run_save_its_state_and_begins_no_other(home, tmp_path, capsys):
    write_notebook(
        home / "notebooks",
        "works",
        WORKS,
        "Path(place, 'went on').touch()",
        parameters="place = ''",
    )
    write_study(
        home,
        {
            name: {"notebook": "works", "parameters": {"place": str(tmp_path)}}
            for name in ("first", "second")
        },
    )

    def stop():
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped) as caught:
        papermill_runs.run_study()
    assert (
        caught.value.code == 143
        and (tmp_path / "saved").exists()
        and not (tmp_path / "went on").exists()
    )
    printed = capsys.readouterr().out
    assert (
        "first: stopped in" in printed
        and "Stopped" in printed
        and "second: stopped in 0.0 min: had not begun" in printed
    )
    assert sorted(file.name for file in (home / "book" / "runs").glob("*.ipynb")) == [
        "first.failed.ipynb"
    ]


@pytest.mark.cluster
@pytest.mark.parametrize(
    "source, saved",
    [
        (WORKS, True),
        ("import pathlib, time\npathlib.Path(place, 'begun').touch()\ntime.sleep(600)", False),
    ],
)
def test_ctrl_c_is_told_as_ctrl_c(home, tmp_path, source, saved):
    """As a terminal sends it, to the whole foreground group; the kernels are in groups of their
    own and are told.
    """
    write_notebook(home / "notebooks", "works", source, parameters="place = ''")
    write_study(
        home,
        {
            name: {"notebook": "works", "parameters": {"place": str(tmp_path)}}
            for name in ("first", "second")
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "datadream", "study"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists() == saved
    assert (
        "first: stopped in" in printed
        and "Ctrl-C (SIGINT)" in printed
        and "Ctrl-C (SIGINT)" in errors
    )
    assert (
        "SIGTERM" not in printed + errors
        and "SIGTERM" not in (home / "book" / "runs" / "first.failed.ipynb").read_text()
    )
    assert {one["run"]: one["status"] for one in outcome.failures()} == {
        "first": "stopped",
        "second": "stopped",
    }


@pytest.mark.parametrize("template", ["x = 1  # the parameters", None])
def test_a_parameter_that_the_notebook_does_not_have_is_refused(home, runs, template):
    """papermill would define it and run on, so that a misspelt setting shows the result of
    another experiment.
    """
    write_notebook(home / "notebooks", "good", "print('ran')", parameters=template)
    write_study(home, {"run": {"notebook": "good", "parameters": {"dataste": "mnist"}}})
    try:
        entry = named_runs.load_study()["runs"]["run"]
    except ConfigError as error:
        message = str(error)
    else:
        status, _, message = papermill_runs.execute("run", entry, entry["parameters"], runs)
        assert status == "failed"
    assert "dataste" in message


@pytest.mark.parametrize(
    "names, group, chosen",
    [
        ([], "default", ["a", "b"]),
        ([], "seeds", ["b", "c"]),
        (["c"], "default", ["c"]),
        (["b", "a"], "seeds", ["a", "b"]),
    ],
)
def test_runs_are_chosen_by_name_or_group(names, group, chosen):
    content = {
        "a": {"notebook": "n"},
        "b": {"notebook": "n", "groups": ["default", "seeds"]},
        "c": {"notebook": "n", "groups": ["seeds"]},
    }
    assert list(named_runs.choose({"runs": content}, names, group)) == chosen


@pytest.mark.parametrize(
    "names, group, words",
    [
        (["mnits"], "default", ["'mnits'", "mnist, optdigits", "Did you mean 'mnist'"]),
        ([], "sedes", ["'sedes'", "default, seeds"]),
    ],
)
def test_what_is_not_in_the_study_is_refused(names, group, words):
    content = {
        "runs": {"mnist": {"notebook": "n"}, "optdigits": {"notebook": "n", "groups": ["seeds"]}}
    }
    with pytest.raises(ConfigError) as caught:
        named_runs.choose(content, names, group)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["cannot be read"]),
        ("runs: [", ["cannot be read as YAML"]),
        ("- a\n- b", ["'runs'", "'smoke'"]),
        ("runs: {}", ["'smoke'"]),
        ("runs: []\nsmoke: {}", ["'runs'"]),
        ("runs: {}\nsmoke: {}\nmore: 1", ["two top-level keys"]),
        (
            "runs: {a: {notebok: good}}\nsmoke: {}",
            ["'a'", "notebok", "groups, notebook, parameters"],
        ),
        ("runs: {a: {groups: [default]}}\nsmoke: {}", ["'a'", "no notebook"]),
        ("runs: {a: good}\nsmoke: {}", ["'a'", "no mapping"]),
        ("runs: {a: {notebook: godo}}\nsmoke: {}", ["'a'", "'godo'", "notebooks"]),
        ("runs: {a: {notebook: good, parameters: [1]}}\nsmoke: {}", ["'a'", "parameters"]),
        ("runs: {a: {notebook: good, parameters: }}\nsmoke: {}", ["'a'", "parameters"]),
        ("runs: {a: {notebook: good, groups: default}}\nsmoke: {}", ["'a'", "groups"]),
        ("runs: {a: {notebook: good}}\nsmoke: ", ["'smoke'"]),
    ],
)
def test_a_bad_study_file_says_what_is_wrong(home, content, words):
    write_notebook(home / "notebooks", "good")
    if content is not None:
        (home / "notebooks" / "study.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        named_runs.load_study()
    assert all(word in str(caught.value) for word in ["study.yaml", *words]), str(caught.value)


def test_the_study_that_ships_is_sound_and_names_only_parameters_that_its_notebooks_have():
    file = ROOT / "notebooks" / "study.yaml"
    content = named_runs.load_study(file)
    assert "default" in {
        group for entry in content["runs"].values() for group in entry.get("groups", ["default"])
    }
    for name, entry in content["runs"].items():
        known = set(
            papermill.inspect_notebook(str(ROOT / "notebooks" / f"{entry['notebook']}.ipynb"))
        )
        wanted = {**entry.get("parameters", {}), **content["smoke"].get(entry["notebook"], {})}
        assert set(wanted) <= known, f"run {name}"


@pytest.mark.parametrize("template", sorted((ROOT / "notebooks").glob("*.ipynb")))
def test_papermill_finds_every_parameter_with_its_value(template):
    """It skips a line with two `=` and cuts a default at a `#`, in a string too."""
    assigned = {}
    for cell in nbformat.read(template, 4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            exec(cell.source, {}, assigned)
    assert assigned and named_runs.page_parameters(template.stem) == assigned


@pytest.mark.parametrize("source", ["x = len('a')", "x = 'a # b'"])
def test_parameters_that_are_no_literals_are_refused(home, source):
    write_notebook(home / "notebooks", "good", parameters=source)
    with pytest.raises(ConfigError, match=r"good.ipynb is not a readable notebook.*literals"):
        named_runs.page_parameters("good")


@pytest.mark.long
def test_the_data_set_notebook_runs_under_papermill(folder, tiny, tmp_path, monkeypatch):
    """The template itself on the tiny models: every method, two seeds, all figures."""
    monkeypatch.delenv("DATADREAM_HOME", raising=False)
    papermill.execute_notebook(
        ROOT / "notebooks" / "dataset.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        start_timeout=300,
        parameters={
            "dataset": "folder",
            "folder": folder,
            "shots": 2,
            "seeds": [0, 1],
            "overrides": tiny,
        },
    )
    page = json.loads((tmp_path / "out.ipynb").read_text())
    assert not page["metadata"]["papermill"]["exception"]
    kinds = [
        kind
        for cell in page["cells"]
        for o in cell.get("outputs", [])
        for kind in o.get("data", {})
    ]
    assert kinds.count("image/png") >= 4 and kinds.count("text/html") >= 1
    table = load_records(tmp_path / "artifacts" / "records")
    assert sorted(zip(table["method"], table["seed"], strict=True)) == sorted(
        (m, s) for m in MAIN for s in (0, 1)
    )
    shown = json.dumps(page)
    for row in METHODS.values():
        assert not row.main or row.title in shown


def test_smoke_keeps_the_shape_of_what_people_run():
    """A list of one seed, or one process, is another program: `gate` failed on its second seed
    where every test took one.
    """
    content = named_runs.load_study(ROOT / "notebooks" / "study.yaml")
    for name, entry in content["runs"].items():
        page = named_runs.page_parameters(entry["notebook"]) | entry.get("parameters", {})
        tiny = page | content["smoke"][entry["notebook"]]
        for field in ("seeds", "gate_seeds", "values", "methods"):
            if page.get(field) and len(page[field]) > 1:
                assert len(tiny[field]) > 1, (name, field)
        assert tiny.get("workers", 1) >= min(2, page.get("workers", 1)), name


def test_smoke_runs_every_notebook_of_a_group_that_a_command_names():
    runs = named_runs.load_study(ROOT / "notebooks" / "study.yaml")["runs"]
    assert {entry["notebook"] for entry in runs.values()} == {
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb")
    }


@given(
    st.lists(
        st.tuples(st.sampled_from(["real", "dset"]), st.integers(0, 2), st.integers(0, 3)),
        max_size=12,
        unique=True,
    )
)
def test_groups_share_out_every_cell_once_and_begin_with_the_most_shots(wanted):
    every = [recipe(method=method, seed=seed, shots=shots) for method, seed, shots in wanted]
    found = cells.groups(every)
    assert sorted(map(repr, itertools.chain(*found))) == sorted(map(repr, every))
    keys = [{(one.dataset, one.shots, one.seed) for one in group} for group in found]
    assert all(len(own) == 1 for own in keys) and len({tuple(own) for own in keys}) == len(keys)
    order = [group[0].shots or 10**9 for group in found]  # 0 stands for all images
    assert order == sorted(order, reverse=True)
