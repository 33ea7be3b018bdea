"""What the repository keeps of a study: pages without bulk, records with the runs that show
them, the contents; and the numbers in prose.
"""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from datadream.data.datasets import load_dataset
from datadream.errors import DataError
from datadream.methods.registry import METHODS
from datadream.paths import paths
from datadream.publish import committed_cells, freeze
from datadream.results import (
    ablation_statistics,
    analysis,
    benchmark_tables,
    comparison,
    images,
    misleading,
    records,
)
from datadream.results.comparison import PRIMARY
from datadream.store.artifacts import Store
from datadream.store.open import open_store
from datadream.study import named_runs, outcome, run


def png(side, seed=0):
    """Return a PNG of noise as a notebook holds it."""
    data = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (side, side, 3), np.uint8)).save(
        data, "PNG"
    )
    return base64.b64encode(data.getvalue()).decode()


def executed(parameters, side=16, exception=False):
    """Return an executed page as papermill leaves it, with one figure of noise."""
    output = {
        "output_type": "display_data",
        "metadata": {"image/png": {"width": side // 2}},
        "data": {"image/png": png(side), "text/plain": "<Figure>"},
    }
    cell = {
        "cell_type": "code",
        "source": "plot()",
        "execution_count": 1,
        "outputs": [output],
        "metadata": {
            "tags": ["hide-input"],
            "mystnb": {"image": {"alt": "noise"}},
            "papermill": {"duration": 1.5},
            "execution": {"iopub.status.idle": "then"},
        },
    }
    notes = {
        "parameters": parameters,
        "exception": exception,
        "duration": 3.5,
        "input_path": "/" + "home/somebody/page.ipynb",
    }
    return {
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "python3"}, "papermill": notes, "datadream": "0"},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a project folder with the true templates."""
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "home" / "notebooks")
    (tmp_path / "home" / "book" / "runs").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def runs(home, tiny, folder):
    """Return the named runs of a small study, of which the pages are there and the cells
    computed.
    """
    some = {
        "dataset": "folder",
        "folder": folder,
        "shots": 2,
        "methods": ["real"],
        "overrides": tiny,
    }
    found = {
        "table": {
            "notebook": "dataset",
            "groups": ["full"],
            "parameters": {**some, "seeds": [0, 1]},
        },
        "weights": {
            "notebook": "ablation",
            "groups": ["full"],
            "parameters": {**some, "axis": "classify.lr", "values": [0.02, 0.01]},
        },
        "late": {"notebook": "dataset", "groups": ["full"], "parameters": some},
    }
    write(home, found)
    for name in ("table", "weights"):
        (home / "book" / "runs" / f"{name}.ipynb").write_text(
            json.dumps(executed(found[name]["parameters"]))
        )
        run.run_cells(
            [recipe for recipes in named_runs.cells_of(found[name]).values() for recipe in recipes],
            open_store(),
        )
    return found


def write(home, runs):
    """Write a study file of these runs."""
    (home / "notebooks" / "study.yaml").write_text(
        yaml.safe_dump({"runs": runs, "smoke": {}}, sort_keys=False)
    )


def test_what_has_ended_is_kept_and_read_back(home, runs):
    table = freeze.freeze_study()
    assert dict(zip(table["run"], table["status"], strict=True)) == {
        "table": "kept",
        "weights": "kept",
        "late": "has not ended here",
    }
    found = freeze.load_frozen("table")
    wanted = run.find(named_runs.cells_of(runs["table"])[""])
    columns = ["method", "seed", "top1", "val_top1", "key"]
    assert found[columns].to_dict() == wanted[columns].to_dict()
    along = freeze.load_frozen("weights")
    assert along["value"].tolist() == ["0.02", "0.01"], (
        "the points keep the order of the study file"
    )
    assert [recipe["classify.lr"] for recipe in along["recipe"]] == [0.02, 0.01]
    times = freeze.durations().set_index("run")["minutes"]
    assert set(times.index) == {"table", "weights"} and (times > 0).all()
    every = benchmark_tables.stage_seconds(freeze.load_all_frozen())
    assert times.sum() == pytest.approx(sum(every.values()) / 60), "what they share counts once"
    with pytest.raises(LookupError, match="no record of the run 'late'.*make study-full"):
        freeze.load_frozen("late")


def test_what_a_section_of_a_kept_page_shows_is_shown_again(home):
    assert freeze.kept_outputs("table", "Two") == []
    picture = {"output_type": "display_data", "data": {"image/png": "A"}, "metadata": {"a": 1}}
    printed = {"output_type": "stream", "name": "stdout", "text": "words"}
    table = {"output_type": "execute_result", "data": {"text/html": ["<ta", "ble>"]}}
    cells = [
        {"cell_type": "markdown", "source": "# Page\n\n## One"},
        {"cell_type": "code", "source": "", "outputs": [table]},
        {"cell_type": "markdown", "source": ["## Two\n", "\n", "Words"]},
        {"cell_type": "code", "source": "", "outputs": [printed, picture]},
        {"cell_type": "markdown", "source": "More words"},
        {"cell_type": "code", "source": "", "outputs": [table]},
        {"cell_type": "markdown", "source": "## Three"},
        {"cell_type": "code", "source": "", "outputs": [table]},
    ]
    paths()["kept_pages"].mkdir(parents=True)
    (paths()["kept_pages"] / "table.ipynb").write_text(json.dumps({"cells": cells}))
    shown = [({"image/png": "A"}, {"a": 1}), ({"text/html": "<table>"}, {})]
    assert freeze.kept_outputs("table", "Two") == shown


def test_a_record_that_two_runs_show_is_kept_once(home, runs):
    freeze.freeze_study()
    lines = [json.loads(line) for line in paths()["kept_records"].read_text().splitlines()]
    shared = [line for line in lines if set(line["runs"]) == {"table", "weights"}]
    assert len(lines) == 3 and len(shared) == 1, (
        "two seeds of the table, two points of one seed, the second point as in the table"
    )


def test_predictions_are_kept_and_serve_another_machine(home, runs, tmp_path):
    freeze.freeze_study()
    table = freeze.load_frozen("table")
    elsewhere = Store(tmp_path / "elsewhere")
    for row in table.to_dict("records"):
        assert images.load_predictions(row, elsewhere).right.mean() == row["top1"]
    recipes = named_runs.cells_of(runs["table"])[""]
    here, kept = committed_cells.split(recipes, elsewhere)
    assert here == [] and [one["key"] for one in kept] == table["key"].tolist()
    found = committed_cells.run_and_read(here, kept, elsewhere)
    assert found["key"].tolist() == table["key"].tolist() and elsewhere.keys() == []
    assert committed_cells.split(recipes, open_store())[0] == recipes, "what is here is read here"
    # Its page can be kept from there, and nothing is lost by it.
    freeze.freeze_study(store=elsewhere)
    assert freeze.load_frozen("table")["key"].tolist() == table["key"].tolist()
    for row in table.to_dict("records"):
        images.load_predictions(row, elsewhere)


def test_a_cell_that_nothing_has_is_computed(home, runs, tmp_path):
    freeze.freeze_study()
    elsewhere = Store(tmp_path / "elsewhere")
    recipes = named_runs.cells_of(runs["table"])[""]
    more = [*recipes, replace(recipes[0], seed=2)]
    found = committed_cells.run_and_read(*committed_cells.split(more, elsewhere), elsewhere)
    assert sorted(found["seed"]) == [0, 1, 2]
    assert [file.stem for file in elsewhere.records.iterdir()] == [found["key"].iloc[-1]]


def test_what_another_machine_has_kept_stays(home, runs):
    freeze.freeze_study()
    before = paths()["kept_records"].read_text()
    for page in (home / "book" / "runs").glob("*.ipynb"):
        page.unlink()
    assert set(freeze.freeze_study()["status"]) == {"kept before", "has not ended here"}
    assert paths()["kept_records"].read_text() == before
    assert len(freeze.load_frozen("table")) == 2


def test_a_page_of_other_parameters_or_that_failed_is_not_kept(home, runs):
    for name, change in (("table", {"seeds": [0]}), ("weights", None)):
        parameters = runs[name]["parameters"]
        page = executed(
            {**parameters, **change} if change else parameters, exception=change is None
        )
        (home / "book" / "runs" / f"{name}.ipynb").write_text(json.dumps(page))
    assert set(freeze.freeze_study()["status"]) == {"has not ended here"}
    assert not paths()["kept_records"].read_text()


def test_a_page_whose_records_are_gone_is_refused(home, runs):
    shutil.rmtree(open_store().records)
    with pytest.raises(LookupError, match="study table. again"):
        freeze.freeze_study()


def test_a_kept_page_names_no_machine_and_its_figure_is_the_same_to_the_eye(home, runs):
    freeze.freeze_study()
    text = (paths()["kept_pages"] / "table.ipynb").read_text()
    notebook = json.loads(text)
    assert "somebody" not in text and notebook["metadata"]["papermill"] == {
        "parameters": runs["table"]["parameters"],
        "duration": 3.5,
    }
    assert notebook["cells"][0]["metadata"] == {
        "tags": ["hide-input"],
        "mystnb": {"image": {"alt": "noise"}},
    }
    assert notebook["cells"][0]["outputs"][0]["metadata"] == {"image/png": {"width": 8}}, (
        "half its pixels: it is shown in its size"
    )
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
        for data in (png(16), notebook["cells"][0]["outputs"][0]["data"]["image/png"])
    )
    assert np.abs(before - after).mean() < 16, "of 256 tones, on noise, the hardest of pictures"


def test_pages_of_one_template_are_told_apart_by_their_question(home, runs):
    """The heading of the ablations' template becomes the question of the run, taken as text and
    not as a pattern.
    """
    asked = {
        **runs["weights"],
        "parameters": {**runs["weights"]["parameters"], "question": r"Is \1 the best weight?"},
    }
    write(home, {"weights": asked})
    page = executed(asked["parameters"])
    page["cells"].insert(
        0, {"cell_type": "markdown", "source": "# One setting\n\nThis page.", "metadata": {}}
    )
    (home / "book" / "runs" / "weights.ipynb").write_text(json.dumps(page))
    freeze.freeze_study()
    kept = json.loads((paths()["kept_pages"] / "weights.ipynb").read_text())
    assert kept["cells"][0]["source"] == "# Is \\1 the best weight?\n\nThis page."


def test_pages_of_the_dataset_template_are_told_apart_by_their_dataset():
    text = "# One dataset, the main table\n\nAll of # it."
    assert (
        freeze._headed(text, {"dataset": "optdigits"})
        == "# optdigits: one dataset, the main table\n\nAll of # it."
    )
    assert (
        freeze._headed(text, {"dataset": "mnist", "question": "Why?"}, "A")
        == "# Why?\n\nAll of # it."
        and freeze._headed(text, {}) == text
    )
    assert freeze._headed(text, {}, "One dataset, the main table") == text
    title = freeze._title_of("mnist_4_redrawn")
    assert title == "MNIST, four shots, redrawn" and not freeze._title_of("mnist_4_redraw")
    assert freeze._headed(text, {"dataset": "mnist"}, title).startswith(f"# {title}: one dataset,")


def test_a_page_too_large_for_git_is_refused(home, runs):
    (home / "book" / "runs" / "table.ipynb").write_text(
        json.dumps(executed(runs["table"]["parameters"], side=1200))
    )
    with pytest.raises(DataError, match=r"table.ipynb takes [\d.]+ MB, at most 1 are kept"):
        freeze.freeze_study()
    assert not (paths()["kept_pages"] / "table.ipynb").exists()


def test_the_contents_end_with_the_readers_own_runs(home):
    shutil.copy(ROOT / "_toc.yml", home / "_toc.yml")
    committed = yaml.safe_load((ROOT / "_toc.yml").read_text())
    (home / "book" / "study").mkdir()
    for name in re.findall(r"book/study/(\w+)", (ROOT / "_toc.yml").read_text()):
        (home / "book" / "study" / f"{name}.ipynb").write_text("{}")
    assert yaml.safe_load(freeze.write_contents().read_text()) == committed, "nothing was run yet"
    for name in ("mnist", "optdigits.failed"):
        (home / "book" / "runs" / f"{name}.ipynb").write_text("{}")
    *parts, own = yaml.safe_load(freeze.write_contents().read_text())["parts"]
    assert parts == committed["parts"][:-1]
    assert own == {
        "caption": "Your own run",
        "chapters": [{"file": "book/your_run"}, {"file": "book/runs/mnist", "title": "mnist"}],
    }


def test_a_failed_run_has_its_page_beside_the_earlier_one_s_and_the_front_page_says_so(home):
    shutil.copy(ROOT / "_toc.yml", home / "_toc.yml")
    for name in ("mnist", "mnist.failed", "optdigits", "running.failed"):
        (home / "book" / "runs" / f"{name}.ipynb").write_text("{}")
    assert outcome.notice() is None
    known = {"mnist", "optdigits"}
    outcome.save(
        {"run": "mnist", "status": "failed", "minutes": 1.5, "note": "NameError: <b>"}, known
    )
    outcome.save({"run": "optdigits", "status": "done", "minutes": 1.0, "note": ""}, known)
    *_, own = yaml.safe_load(freeze.write_contents().read_text())["parts"]
    assert [(chapter["file"], chapter["title"]) for chapter in own["chapters"][1:]] == [
        ("book/runs/mnist.failed", "mnist (failed)"),
        ("book/runs/mnist", "mnist (an earlier run)"),
        ("book/runs/optdigits", "optdigits"),
    ]
    text = outcome.notice().data
    assert (
        "**1 of 2 runs on this machine did not end well.**" in text
        and "mnist" in text
        and "\\<b\\>" in text
    )
    outcome.save({"run": "mnist", "status": "done", "minutes": 2.0, "note": ""}, known)
    assert outcome.notice() is None


def test_contents_without_a_part_of_ones_own_get_one(home):
    (home / "_toc.yml").write_text(
        "parts: [{caption: The study, chapters: [{file: book/results}]}]"
    )
    (home / "book" / "runs" / "mnist.ipynb").write_text("{}")
    first, own = yaml.safe_load(freeze.write_contents().read_text())["parts"]
    assert first["chapters"] == [{"file": "book/results"}]
    assert own == {
        "caption": "Your own run",
        "chapters": [{"file": "book/runs/mnist", "title": "mnist"}],
    }


def test_a_page_of_the_study_that_is_not_kept_is_left_out_of_the_contents(home):
    (home / "_toc.yml").write_text(
        yaml.safe_dump(
            {
                "parts": [
                    {
                        "chapters": [
                            {"file": "book/study/late"},
                            {"file": "book/analysis", "sections": [{"file": "book/study/late"}]},
                            {
                                "file": "book/results",
                                "sections": [
                                    {"file": "book/study/late"},
                                    {"file": "book/study/done"},
                                ],
                            },
                        ]
                    }
                ]
            }
        )
    )
    (home / "book" / "study").mkdir()
    (home / "book" / "study" / "done.ipynb").write_text("{}")
    (part,) = yaml.safe_load(freeze.write_contents().read_text())["parts"]
    assert part["chapters"] == [
        {"file": "book/analysis"},
        {"file": "book/results", "sections": [{"file": "book/study/done"}]},
    ]


# What is committed.

KEPT = {"full", "ablations", "fast"}  # the groups of study.yaml whose pages the book has


@pytest.fixture(scope="module")
def committed():
    """Return run -> table of every run that book/study has records of."""
    lines = (ROOT / "book" / "study" / "records.jsonl").read_text().splitlines()
    return {
        name: freeze.load_frozen(name)
        for name in sorted({name for line in lines for name in json.loads(line)["runs"]})
    }


def test_the_committed_records_are_whole_and_of_clean_commits(committed):
    for name, table in committed.items():
        # A study that was resumed may span commits.
        assert not table["dirty"].any() and set(table["protocol"]) == {"strict"}, name
        setting = ["dataset", "shots", "value", "method"]
        seeds = table.groupby(setting)["seed"].agg(lambda own: tuple(sorted(own)))
        more = seeds.index.get_level_values("method").isin(PRIMARY)  # of the primary question
        assert len(set(seeds[~more])) <= 1, f"{name}: every method and value on the same seeds"
        assert len(set(seeds[more])) <= 1 and all(
            set(own) >= set(seeds[~more].iloc[0]) for own in seeds[more] if len(seeds[~more])
        ), f"{name}: the primary question's methods on these and perhaps more"


def test_the_committed_records_are_those_of_the_study_file(committed):
    runs = named_runs.load_study(ROOT / "notebooks" / "study.yaml")["runs"]
    pieces = {name for name, entry in runs.items() if KEPT & {*entry.get("groups", [])}}
    assert set(committed) == {name for name in pieces if named_runs.cells_of(runs[name])}
    for name, entry in runs.items():
        if name in committed:
            wanted = {
                (label, r.method, r.seed)
                for label, recipes in named_runs.cells_of(entry).items()
                for r in recipes
            }
            assert (
                set(
                    zip(
                        *(committed[name][column] for column in ("value", "method", "seed")),
                        strict=True,
                    )
                )
                == wanted
            ), name


def test_the_committed_pages_are_small_and_name_no_machine():
    pages = list((ROOT / "book" / "study").glob("*.ipynb"))
    study = named_runs.load_study(ROOT / "notebooks" / "study.yaml")
    pieces = {name for group in KEPT for name in named_runs.choose(study, (), group)}
    assert {page.stem for page in pages} == pieces, "each piece has its page, and no other has one"
    assert len(
        {
            "".join(json.loads(page.read_text())["cells"][0]["source"]).splitlines()[0]
            for page in pages
        }
    ) == len(pages), "and its own heading"
    for page in pages:
        assert page.stat().st_size <= freeze.LIMIT, page.name
        assert "input_path" not in page.read_text(), page.name


def test_the_readme_says_what_the_records_say():
    text = " ".join((ROOT / "README.md").read_text().split())
    table = freeze.load_frozen("comparison")
    found = comparison.claims(table)
    tuned = (
        "{difference:.1f} points better than those of the untuned one (95 % interval "
        "{low:.1f} to {high:.1f})"
    )
    assert tuned.format(**found["dset", "base"]) in text
    gain = "they bring {difference:.1f} points ({low:.1f} to {high:.1f}, {seeds} seeds)"
    assert gain.format(**found[PRIMARY]) in text
    words = {"more": "a gain that is detected", "not detected": "a gain that is not detected"}
    assert words[found[PRIMARY]["detected"]] in text
    both = found["dset+real", "base+real"]
    assert both["detected"] == "undecided" and "which is undecided once corrected" in text
    more = "{difference:.1f} points more than untuned ones ({low:.1f} to {high:.1f})"
    assert more.format(**both) in text
    one = records.paired(records.select(table, dataset="mnist", shots=1), *PRIMARY)
    few = "{difference:.1f} points ({low:.1f} to {high:.1f}) on MNIST with one digit per class"
    assert few.format(**one) in text


@pytest.mark.parametrize(
    "page, words, values",
    [
        ("results.md", "100 images per class", {"images": {100}}),
        ("results.md", "1, 4 or 16 real images per class", {"shots": {1, 4, 16}}),
        ("introduction.md", "four real images per class", {"shots": {1, 4, 16}}),
        ("index.md", '1, 4 or 16 real images ("shots") per class', {"shots": {1, 4, 16}}),
    ],
)
def test_what_a_page_says_of_the_study_s_settings_is_what_was_run(page, words, values):
    assert words in " ".join((ROOT / "book" / page).read_text().split())
    table = freeze.load_compared()
    generated = table[[METHODS[name].generates for name in table["method"]]]
    for column, wanted in values.items():
        assert set(generated[column]) == wanted


def test_the_ablations_have_the_seeds_that_their_page_names(committed):
    text = " ".join((ROOT / "book" / "ablations.md").read_text().split())
    assert "over three seeds" in text and all(
        set(table["seed"]) == {0, 1, 2}
        for name, table in committed.items()
        if name.startswith("ablation_")
    )
    images = committed["ablation_images"]["value"].astype(int)
    assert f"from a dozen to {images.max()} in doublings" in text and 10 <= images.min() <= 13


def test_what_the_ablations_sum_up_is_what_their_tables_say(committed):
    text = " ".join((ROOT / "book" / "ablations.md").read_text().split())
    assert "gain from more images, longer tuning and a higher rank. Beyond the default's" in text
    assert "mean accuracy is within one point of the default's" in text
    usual = {"images": 100, "epochs": 40, "rank": 16}
    for name, value in usual.items():
        whole, last = ablation_statistics.ends(committed[f"ablation_{name}"], "dset").to_dict(
            "records"
        )
        assert whole["low"] > 0 and last["low"] <= 0 <= last["high"]
        assert int(last["reference"]) >= value
        alone, both = (
            ablation_statistics.against(committed[f"ablation_{name}"], method, str(value))
            for method in ("dset", "dset+real")
        )
        assert not (alone["low"] > 0).any() and (both["difference"].abs() < 1).all()


def test_the_measures_that_pages_read_are_of_the_committed_sets(committed):
    """The analysis has no accuracy; its sets are those that the records of the same cells name."""
    for name in ("mnist", "optdigits"):
        measures, records_ = freeze.load_measures(f"{name}_analysis"), committed[f"{name}_analysis"]
        for method in ("base", "cls", "dset"):
            own = measures[measures["method"] == method]
            made = {
                row.seed: row.artifacts["generate"]
                for row in records_[records_["method"] == method].itertuples()
            }
            assert dict(zip(own["seed"], own["artifact"], strict=True)) == made


def test_what_the_results_sum_up_is_what_their_table_says(committed):
    text = " ".join((ROOT / "book" / "results.md").read_text().split())
    assert "images raise accuracy on average. This was the primary question" in text
    assert "Most of the gain is at one real image per class." in text
    assert "better to train on than the untuned generator's. With the real images added" in text
    assert "one for the whole dataset made no detected difference" in text
    table = committed["comparison"]
    found = {pair: row["detected"] for pair, row in comparison.claims(table).items()}
    assert found[PRIMARY] == "more" and found["dset", "base"] == "more"
    assert found["dset+real", "base+real"] == "undecided"
    assert {found[pair] for pair in comparison.CLAIMS[4]} == {"not detected"}
    gains = {
        setting: records.paired(part, *PRIMARY)["difference"]
        for setting, part in table.groupby(["dataset", "shots"])
    }
    assert sum(gain for (_, k), gain in gains.items() if k == 1) > 0.8 * sum(gains.values())


def test_what_the_failures_sum_up_is_what_their_tables_say():
    text = " ".join((ROOT / "book" / "failures.md").read_text().split())
    assert "for most digits, the best shot gives a recall at least twenty points above" in text
    assert "one seed in twenty with one shot per class, and of nearly a third with more" in text
    assert "by at most one point" in text
    assert "nines and fours on MNIST, ones taken for fours on optical digits" in text
    table = freeze.load_compared()
    for name, worst in (("mnist", {("nine", "four"), ("four", "nine")}),
                        ("optdigits", {("one", "four")})):  # fmt: skip
        part, classes = records.select(table, dataset=name, shots=1), load_dataset(name).classes
        found = misleading.recall_by_class(misleading.recall_by_shot(part), classes)
        assert (found["highest"] - found["lowest"] >= 20).mean() > 0.6
        pairs = misleading.confused_pairs(part, classes).head(len(worst))
        assert set(zip(pairs["true"], pairs["taken for"], strict=True)) == worst
        assert (pairs["dset+real"] > 10).all()
    worse = misleading.worse_seeds(table)
    one = worse["shots"] == 1
    assert worse.loc[one, ["worse", "seeds"]].sum().tolist() == [1, 20]
    more = worse.loc[~one, ["worse", "seeds"]].sum()
    assert 0.28 <= more["worse"] / more["seeds"] <= 1 / 3
    assert max(loss for losses in worse["losses"] for loss in losses.values()) < 1.05


def test_what_the_analysis_sums_up_is_what_its_tables_say(committed):
    text = " ".join((ROOT / "book" / "analysis.md").read_text().split())
    assert "by every measure in the tables" in text and "No copying of the few shots was" in text
    assert "No correlation between a class's similarity and its gain was detected" in text
    for name in ("mnist", "optdigits"):
        measures, table = freeze.load_measures(f"{name}_analysis"), committed[f"{name}_analysis"]
        whole = measures[measures["class"] == "all"].groupby(["method", "extractor"])
        means = whole[["frechet", "precision", "recall"]].mean()
        nearer = means.loc["dset"] - means.loc["base"]
        assert (nearer["frechet"] < 0).all() and (nearer[["precision", "recall"]] > 0).all().all()
        for method in ("cls", "dset"):
            for extractor in sorted(set(measures["extractor"])):
                assert analysis.copied(measures, method, extractor)["low"] <= 5
                own = measures[measures["extractor"] == extractor]
                found = analysis.correlation(analysis.gains(own, table, f"{method}+real", "real"))
                assert found["low"] <= 0 <= found["high"]


def test_the_leaderboard_says_which_methods_have_more_seeds():
    text = (ROOT / "book" / "leaderboard.md").read_text()
    assert "ten for the two methods of the primary question" in text
    seeds = freeze.load_compared().groupby(["method", "dataset", "shots"])["seed"].nunique()
    primary = seeds.index.get_level_values("method").isin(PRIMARY)
    assert set(seeds[primary]) == {10} and set(seeds[~primary]) == {3, 5}


RESULT = re.compile(r"[+-]?\d+\.\d+ (?:points|%)|\d+(?:\.\d+)? % interval [+-]?\d")


@pytest.mark.parametrize(
    "page",
    sorted((ROOT / "book").rglob("*.md")),
    ids=lambda page: page.relative_to(ROOT / "book").as_posix(),
)
def test_a_page_s_results_are_computed_and_not_typed(page):
    """What a page says of accuracies it computes at every build; only the page of others'
    numbers, with its sources, types them.
    """
    prose = re.sub(r"(?s)```.*?```", "", page.read_text())
    assert page.name == "published.md" or not RESULT.findall(prose)


def test_what_is_compared_has_the_profile_s_own_settings_and_each_cell_once():
    """An ablation's other values are left out, and a cell that two runs show is one row."""
    table, every = freeze.load_compared(), freeze.load_all_frozen()
    assert not table.duplicated(["dataset", "shots", "method", "seed"]).any()
    assert every.duplicated("key").any(), "or nothing tells whether it is once"
    of = {name: every[every["run"] == name] for name in ("ablation_images", "mnist_16")}
    other = of["ablation_images"][of["ablation_images"]["images"] != 100]
    assert len(other) and not set(other["key"]) & set(table["key"])
    shown = of["mnist_16"][of["mnist_16"]["method"] == "dset"]
    assert len(shown) and set(shown["key"]) <= set(table["key"])
