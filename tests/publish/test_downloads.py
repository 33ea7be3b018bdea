"""What can be downloaded of the study: tables of the records, predictions, measures and sets."""

import json
import re
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from datadream.config import as_dict
from datadream.data.predictions import Predictions
from datadream.methods.recipes import recipe
from datadream.publish import downloads, freeze
from datadream.results import committed
from datadream.statistics import scores

PAGE = (ROOT / "book" / "data.md").read_text()
LABELS = [0, 0, 1, 1]


def record(method="real", seed=0, runs=("mnist_4",), key="", without=(), **changes):
    """Return a committed record of four test images in two classes, one of them wrong."""
    part = scores(LABELS, [0, 1, 1, 1], 2)
    settings = as_dict(recipe(method=method, seed=seed, dataset="mnist", shots=4, **changes))
    return {
        "key": key or f"record-{method}-{seed}",
        "recipe": {name: own for name, own in settings.items() if name not in without},
        "result": {"test": part, "val": part},
        "curve": [{"step": 1, "loss": 0.5, "val": 0.75}],
        "seconds": {"train": 2.0, "judge": 0.5},
        "artifacts": {"judge": f"judge-{method}-{seed}"},
        "runs": {name: {"": 0} for name in runs},
        **dict.fromkeys(("commit", "device", "created"), "abc"),
        "dirty": False,
    }


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a project folder without results."""
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "book" / "study").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def keep(home):
    """Return keep(*records), which commits records to the project folder."""

    def write(*records):
        lines = [json.dumps(own) + "\n" for own in records]
        (home / "book" / "study" / "records.jsonl").write_text("".join(lines))

    return write


def rows(markdown):
    """Return the cells of a Markdown table's body."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def targets(markdown):
    """Return the files that a Markdown text offers for download, relative to the project."""
    return re.findall(r"\{download\}`\S+ </(\S+)>`", markdown)


def test_a_record_is_one_row_however_many_pages_show_it(keep):
    keep(record(runs=("mnist_4", "ablation_rank")), record(seed=1))
    table = downloads.records_table().set_index("key")
    assert table["runs"].to_dict() == {
        "record-real-0": ["ablation_rank", "mnist_4"],
        "record-real-1": ["mnist_4"],
    }
    assert table.loc["record-real-1", ["title", "top1", "seconds.train"]].tolist() == [
        "Real only", 0.75, 2.0,
    ]  # fmt: skip


def test_what_the_comparisons_leave_out_is_told(keep):
    other = record(key="record-other", overrides={"classify.lr": 0.5})
    keep(record(), other, record(seed=2))
    compared = downloads.records_table().set_index("key")["compared"].to_dict()
    assert compared == {"record-real-0": True, "record-other": False, "record-real-2": True}


def test_a_setting_keeps_its_type_where_an_older_record_lacks_it(keep):
    lacking = ("adapt.rank", "adapt.text_encoder", "generate.fit", "classify.lr")
    keep(record(), record(seed=1, without=lacking))
    table = downloads.records_table()
    found = {name: str(table[f"recipe.{name}"].dtype) for name in lacking}
    assert found == dict(zip(lacking, ("Int64", "boolean", "string", "float64"), strict=True))
    old = table[table["seed"] == 1].iloc[0]
    assert all(pd.isna(old[f"recipe.{name}"]) for name in lacking)


def test_adapters_stand_in_the_order_of_their_numbers(keep):
    own = record()
    keep(own | {"artifacts": {f"adapt{i}": f"adapt-{i}" for i in (10, 9, 0)}})
    assert downloads.records_table()["artifacts.adapt"].tolist() == [
        ["adapt-0", "adapt-9", "adapt-10"]
    ]


def test_both_files_hold_what_was_kept(keep, home):
    keep(record(runs=("mnist_16", "mnist_4")), record("dset", without=("adapt.rank",)))
    parquet, csv = downloads.write_records()
    assert parquet.parent == home / "book" / "generated"
    whole, flat = pd.read_parquet(parquet), pd.read_csv(csv)
    nested = {name for name, own in downloads.COLUMNS.items() if own.nested}
    assert set(whole) - set(flat) == nested and list(flat) == [c for c in whole if c in flat]
    real = whole.set_index("method").loc["real"]
    assert np.stack(real["confusion"]).tolist() == [[1, 1], [0, 2]]
    assert real["per_class"].tolist() == [0.5, 1.0] and real["curve"][0]["val"] == 0.75
    text = flat.set_index("method")["runs"]
    assert text["real"].split() == list(real["runs"]) == ["mnist_16", "mnist_4"]
    assert flat["top1"].tolist() == whole["top1"].tolist()
    assert flat.set_index("method")["recipe.adapt.rank"].isna().to_dict() == {
        "real": False, "dset": True,
    }  # fmt: skip


def test_every_column_of_the_committed_records_is_explained_on_the_page(tmp_path):
    parquet, csv = downloads.write_records(tmp_path)
    names = [name for name in pd.read_parquet(parquet) if not name.startswith("recipe.")]
    assert names == list(downloads.COLUMNS)
    told = {row[0].strip("`"): row for row in rows(downloads.columns_text())}
    assert list(told) == [*names, "recipe.*"] and all(row[2] for row in told.values())
    flat = set(pd.read_csv(csv, nrows=1))
    assert {name for name in names if "Parquet file only" not in told[name][2]} == flat & set(names)


def test_the_committed_records_are_all_in_the_table():
    table, kept = downloads.records_table(), freeze.committed_records()
    assert sorted(table["key"]) == sorted(kept)
    assert {row.key: set(row.runs) for row in table.itertuples()} == {
        key: set(own["runs"]) for key, own in kept.items()
    }
    assert set(table.loc[table["compared"], "key"]) == set(freeze.load_compared()["key"])
    for row in table.to_dict("records")[::50]:
        own = kept[row["key"]]
        assert {name: row[f"recipe.{name}"] for name in own["recipe"]} == own["recipe"]
        assert row["artifacts.judge"] == own["artifacts"]["judge"]


def test_without_records_nothing_is_written_and_nothing_old_stays(keep, home):
    keep(record())
    files = downloads.write_records()
    assert all(file.is_file() for file in files) and len(files) == 2
    assert targets(downloads.records_text()) == [
        "book/generated/records.parquet", "book/generated/records.csv", "book/study/records.jsonl",
    ]  # fmt: skip
    keep()
    assert downloads.write_records() == [] and not any(file.exists() for file in files)
    assert downloads.records_text() == freeze.MISSING


def test_what_is_not_committed_is_said_to_be_missing(home):
    for kind in ("records", "predictions", "sets", "measures"):
        assert downloads.TEXTS[kind]() == freeze.MISSING


def test_committed_predictions_measures_and_sets_are_listed(home):
    found = Predictions(np.array(LABELS), np.array([0, 1, 1, 1]), np.ones(4))
    for shots in (16, 4):
        committed.write_committed("mnist", shots, {"judge-1": found, "judge-2": found})
    (row, _) = rows(downloads.predictions_text())
    assert row[1:5] == ["mnist", "4", "2", "8"], "the fewest shots first"
    assert targets(row[0]) == ["book/study/predictions/mnist-4.parquet"]
    (home / "book" / "sets").mkdir()
    with zipfile.ZipFile(home / "book" / "sets" / "mnist-4-dset.zip", "w") as whole:
        for name in ("train/zero/0.png", "train/one/0.png", "README.md", "train/metadata.parquet"):
            whole.writestr(f"mnist-4-dset/{name}", b"")
    (row,) = rows(downloads.sets_text())
    assert targets(row[0]) == ["book/sets/mnist-4-dset.zip"]
    assert row[1:5] == ["mnist", "4", r"DataDream (dataset)", "2"]
    table = pd.DataFrame({"dataset": ["mnist"] * 3, "shots": [16] * 3, "frechet": [0.5] * 3})
    table.to_csv(home / "book" / "study" / "mnist_analysis.csv", index=False)
    (row,) = rows(downloads.measures_text())
    assert targets(row[0]) == ["book/study/mnist_analysis.csv"] and row[1:4] == ["mnist", "16", "3"]


def predicted(kept):
    """Return predictions, by result, that give the confusion matrices of some records."""
    found = {}
    for own in kept:
        matrix = np.array(own["result"]["test"]["confusion"])
        places = np.arange(matrix.size)
        labels, classes = np.divmod(np.repeat(places, matrix.ravel()), len(matrix))
        found[own["artifacts"]["judge"]] = Predictions(labels, classes, np.ones(len(labels)))
    return found


def test_the_examples_of_the_page_run_on_the_files_that_it_offers(home, monkeypatch, capsys):
    shutil.copy(ROOT / "book" / "study" / "records.jsonl", home / "book" / "study")
    kept = freeze.committed_records().values()
    four = [own for own in kept if own["recipe"]["dataset"] == "mnist"]
    file = committed.write_committed(
        "mnist", 4, predicted([own for own in four if own["recipe"]["shots"] == 4])
    )
    desk = home / "desk"
    desk.mkdir()
    for one in (*downloads.write_records(), file):
        shutil.copy(one, desk)
    monkeypatch.chdir(desk)
    names = {}
    examples = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    assert len(examples) == 3
    for code in examples:
        exec(code, names)
    assert "DataDream (dataset) + real" in capsys.readouterr().out
    mnist = names["mnist"].set_index(["method", "seed"])
    right = names["joined"].groupby(["method", "seed"])["right"].mean()
    assert len(mnist) == len(right) and np.allclose(right, mnist["top1"].reindex(right.index))
    assert len(names["wide"]) >= 3 and names["rank"]["recipe.adapt.rank"].nunique() > 1


def test_the_page_has_a_table_of_each_kind_and_begins_with_the_gist():
    assert re.findall(r"```\{downloads\} (\w+)", PAGE) == [
        "records", "columns", "predictions", "measures", "sets",
    ]  # fmt: skip
    assert re.search(r"\A# .*\n\n```\{admonition\} In short\n", PAGE)
