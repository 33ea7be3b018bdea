"""The pages of the datasets: the images and their parts, accuracies, and which pages they link."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from datadream.config import as_dict
from datadream.data.datasets import DATASETS, TITLES, Dataset, load_dataset
from datadream.data.images import Images
from datadream.methods.recipes import recipe
from datadream.publish import dataset_page, freeze
from datadream.results import records
from datadream.results.comparison import scoreboard
from datadream.statistics import wilson

FOLDER = ROOT / "book" / "datasets"
NAMES = tuple(TITLES)


def record(method, seed, top1, shots, profile="mini"):
    """Return a committed record, as far as a page reads it."""
    low, high = wilson(round(200 * top1), 200)
    part = {"top1": top1, "low": low, "high": high, "total": 200, "per_class": [], "confusion": []}
    settings = as_dict(recipe(profile, method=method, seed=seed, dataset="mnist", shots=shots))
    return {
        "key": f"{method}-{seed}-{shots}", "curve": [], "seconds": {}, "artifacts": {},
        "commit": "abc", "recipe": settings, "result": {"test": part, "val": part},
        "created": "2026-01-01", "dirty": False, "device": "a CPU",
    }  # fmt: skip


def rows(markdown):
    """Return the cells of a Markdown table's body."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def made(*parts):
    """Return a dataset of three parts, each a list of (grey value, label)."""
    images = [
        Images([np.full((2, 3), grey, np.uint8) for grey, _ in part], [label for _, label in part])
        for part in parts
    ]
    return Dataset("made", "", ("a", "b"), *images)


def test_each_embedded_dataset_has_a_page_and_the_contents_list_them():
    embedded = [name for name, row in DATASETS.items() if row.folder == "none"]
    assert sorted(NAMES) == sorted(embedded)
    assert {file.stem for file in FOLDER.glob("*.md")} == {"index", *NAMES}
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [one for part in contents["parts"] for one in part["chapters"]]
    (own,) = [one for one in chapters if one["file"] == f"{dataset_page.PAGES}/index"]
    assert [one["file"] for one in own["sections"]] == [f"{dataset_page.PAGES}/{n}" for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_in_the_gist_are_those_of_the_data(name):
    text = (FOLDER / f"{name}.md").read_text()
    gist = text.partition("```{admonition} In short")[2].partition("```")[0]
    data = load_dataset(name)
    sizes = [len(part) for part in (data.train, data.val, data.test)]
    numbers = [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", gist)]
    assert numbers[:4] == [sum(sizes), *sizes]
    assert f"# {TITLES[name]}\n" in text and "{cite:p}" in text
    assert f"```{{dataset-pages}} {name}\n" in text
    assert set(re.findall(r'"(mnist|optdigits)"', text)) == {name}


def test_the_parts_tell_how_many_images_a_class_has():
    data = made([(1, 0), (2, 1)], [(3, 0), (4, 1)], [(5, 0), (6, 1), (7, 1)])
    table = dataset_page.parts_table(data)
    assert table["Images"].tolist() == [2, 2, 3]
    assert table["Of each class"].tolist() == ["1", "1", "1 to 2"]


def test_an_image_that_occurs_twice_is_told():
    once = dataset_page.images_sentence(made([(1, 0)], [(2, 1)], [(3, 0)]))
    assert once == "3 images of 2 by 3 pixels with 3 levels of grey, in 2 classes: a and b. " \
        "No two are identical."  # fmt: skip
    twice = dataset_page.images_sentence(made([(1, 0)], [(2, 1)], [(1, 0)]))
    assert twice.endswith("1 of them repeat another one.")


def several():
    """Return the table of two methods at two numbers of shots, and of others at one."""
    some = [record("real", seed, 0.8 + 0.01 * seed, shots) for seed in (0, 1) for shots in (1, 4)]
    some += [record("dset", 0, 0.9, shots) for shots in (1, 4)]
    some += [record("cls", 0, 0.95, 4), record("real", 0, 0.9, 16)]
    return records.tidy(some).assign(run="mnist_4")


def test_a_method_s_row_has_each_number_of_shots_and_its_seeds():
    table = dataset_page.accuracy_table(several()).set_index("Method")
    assert list(table) == ["1 shot", "4 shots", "16 shots", "Seeds"]
    assert list(table.index) == ["Real only", "DataDream (dataset)", "DataDream (class)"]
    assert table["Seeds"].tolist() == ["2, 2, 1", "1, 1, -", "-, 1, -"]
    assert table.loc["DataDream (class)", "1 shot"] == "-"
    found = records.summary(records.select(several(), shots=4)).set_index("method").loc["real"]
    shown = [float(number) for number in re.findall(r"[\d.]+", table.loc["Real only", "4 shots"])]
    assert shown == pytest.approx([found["top1"], found["low"], found["high"]], abs=0.05)


def test_the_committed_table_has_the_scoreboard_s_means():
    table = dataset_page.compared_on("mnist")
    shown = dataset_page.accuracy_table(table).set_index("Method")
    board = scoreboard(table)
    assert len(shown) == len(board)
    for method, row in board.iterrows():
        own = shown.loc[records.METHODS[method].title]
        for shots in sorted(set(table["shots"])):
            text, mean = own[records.in_shots(int(shots))], row[f"mnist, {shots}"]
            assert text == "-" if np.isnan(mean) else text.split()[0] == f"{mean:.1f}"


def test_a_curve_has_the_shots_at_which_methods_can_be_compared():
    curve = dataset_page.along_shots(several(), ["real", "dset"])
    assert list(dict.fromkeys(curve["value"])) == ["1", "4"], "one method alone at 16"
    assert dataset_page.along_shots(records.select(several(), shots=4)).empty
    assert dataset_page.along_shots(several().iloc[:0]).empty


def test_other_profiles_are_left_out(monkeypatch):
    paper = record("real", 7, 0.5, 4, profile="paper")
    table = pd.concat([several(), records.tidy([paper]).assign(run="x")], ignore_index=True)
    monkeypatch.setattr(dataset_page, "load_compared", lambda: table)
    assert 7 not in set(dataset_page.compared_on("mnist")["seed"])
    assert dataset_page.compared_on("optdigits").empty


def test_only_pages_that_the_book_has_are_listed():
    runs = set(freeze.load_all_frozen().query("dataset == 'mnist'")["run"])
    assert {"mnist_16", "ablation_rank"} <= runs
    book = ["book/study/ablation_rank", "book/study/mnist_16", "book/study/optdigits_16"]
    found = rows(dataset_page.pages_text("mnist", book))
    assert [row[0] for row in found] == [
        "{doc}`/book/study/mnist_16`", "{doc}`/book/study/ablation_rank`",
    ]  # fmt: skip
    own = freeze.load_frozen("mnist_16")
    assert found[0][1:] == ["16", str(own["method"].nunique()), str(own["seed"].nunique()),
                            str(len(own))]  # fmt: skip
    assert dataset_page.pages_text("mnist", ()) == freeze.MISSING


def test_the_overview_has_every_dataset_with_the_sizes_that_are_loaded():
    found = {re.sub(r"^\[(\w+)\].*", r"\1", row[0]): row[1:] for row in rows(
        dataset_page.overview_text())}  # fmt: skip
    assert list(found) == [name for name in DATASETS if name != "folder"]
    data = load_dataset("optdigits")
    sizes = [f"{len(part):,}" for part in (data.train, data.val, data.test)]
    assert found["optdigits"][:4] == ["10", *sizes]
    assert found["imagenet"] == ["1,000", "1,261,167", "20,000", "50,000", "by hand"]
    assert found["dtd"] == ["47", "2,820", "1,128", "1,692", "`datadream download dtd`"]
    linked = dataset_page.overview_text(["book/datasets/mnist"])
    assert "{doc}`mnist </book/datasets/mnist>`" in linked and "| optdigits |" in linked


def test_the_example_of_the_overview_runs(capsys):
    (code,) = re.findall(r"(?s)```python\n(.*?)```", (FOLDER / "index.md").read_text())
    exec(code, {})
    assert "2000 500 2500" in capsys.readouterr().out
