"""The table of results: one row per cell, seeds aggregated, differences paired, and validation
alone choosing between variants.
"""

import json
import math

import pandas as pd
import pytest
from scipy import stats

from datadream import config, paths
from datadream.methods import recipes
from datadream.results import benchmark_tables, records
from datadream.statistics import mean_interval, wilson


def record(method="real", seed=0, top1=0.5, val=0.5, dataset="mnist", **overrides):
    """Return a record as study.run writes it."""
    recipe = config.as_dict(
        recipes.recipe(method=method, seed=seed, dataset=dataset, overrides=overrides)
    )
    correct = round(200 * top1)
    low, high = wilson(correct, 200)
    part = {
        "top1": correct / 200,
        "low": low,
        "high": high,
        "total": 200,
        "per_class": [top1],
        "confusion": [[correct]],
    }
    return {
        "key": f"record-{method}-{seed}-{dataset}-{json.dumps(overrides)}",
        "recipe": recipe,
        "curve": [{"step": 1, "val": val, "loss": 1.0}],
        "result": {"test": part, "val": {**part, "top1": val}},
        "seconds": {"adapt": 1.5, "train": 2.0},
        "artifacts": {"judge": "judge-1"},
        "created": "2025-01-01T00:00:00Z",
        "commit": "abc",
        "dirty": False,
        "device": "a CPU",
        "versions": {},
        "python": "3",
    }


def table(folder, *some):
    """Write records and read them back as the table."""
    folder.mkdir(exist_ok=True)
    for i, one in enumerate(some):
        (folder / f"{i}.json").write_text(json.dumps(one))
    return records.load_records(folder)


def test_a_row_has_the_cell_and_its_numbers(tmp_path):
    (row,) = table(tmp_path, record("dset+real", 3, 0.75, 0.6, **{"generate.images": 7})).to_dict(
        "records"
    )
    cell = {
        "method": "dset+real",
        "seed": 3,
        "dataset": "mnist",
        "profile": "mini",
        "shots": 16,
        "images": 7,
    }
    assert {name: row[name] for name in cell} == cell
    assert (row["top1"], row["val_top1"], row["total"], row["seconds"]) == (0.75, 0.6, 200, 3.5)
    assert (row["low"], row["high"]) == wilson(150, 200)
    assert row["recipe"]["generate.images"] == 7 and row["curve"][0]["val"] == 0.6


def test_records_in_the_profile_are_those_of_the_methods_present_settings(tmp_path):
    renamed = record("dset", 2)
    renamed["recipe"]["method"] = "nobodys"
    older = record("disef", 1)
    older["recipe"]["generate.steps"] = 6  # what it had once
    newer = {**record("dset", 0, 0.7), "key": "again", "created": "2026-01-01T00:00:00Z"}
    before = record("dset", 1)
    del before["recipe"]["generate.compression"]  # a field that was added since
    longer = record("dset", 3, **{"adapt.epochs": 99})
    own = [record("dset", 0, 0.6), newer, before, longer, older, renamed]
    found = records.in_profile(table(tmp_path, *own))
    assert found[["method", "seed", "top1"]].values.tolist() == [["dset", 0, 0.7], ["dset", 1, 0.5]]
    assert records.in_profile(records.tidy([])).empty


def test_a_difference_near_zero_shows_its_side():
    assert [records.signed(x) for x in (0.03, -0.03, 1.26)] == ["+0.03", "-0.03", "+1.3"]
    assert records.signed_interval({"low": -0.03, "high": 5.62}) == "-0.03 to +5.6"


def test_the_table_is_sorted_as_the_methods_are(tmp_path):
    found = table(
        tmp_path,
        record("dset", 1),
        record("real", 1),
        record("dset", 0),
        record("clip", 0),
        record("real", 0),
    )
    assert list(zip(found["method"], found["seed"], strict=True)) == [
        ("clip", 0),
        ("real", 0),
        ("real", 1),
        ("dset", 0),
        ("dset", 1),
    ]


@pytest.mark.parametrize("exists", [True, False])
def test_no_record_is_an_empty_table_with_columns(tmp_path, exists):
    folder = tmp_path / "records"
    if exists:
        folder.mkdir()
    found = records.load_records(folder)
    assert len(found) == 0 and {"method", "seed", "top1", "val_top1", "recipe"} <= set(
        found.columns
    )
    assert len(records.summary(found)) == 0


def test_the_records_of_the_environments_store_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path))
    table(tmp_path / "records", record())
    assert len(records.load_records()) == 1


def test_select_takes_the_rows_that_match_everything(tmp_path):
    found = table(
        tmp_path,
        record("real", 0),
        record("real", 1),
        record("dset", 0),
        record("real", 0, dataset="optdigits"),
    )
    assert len(records.select(found, method="real")) == 3
    assert records.select(found, method="real", dataset="mnist")["seed"].tolist() == [0, 1]
    assert len(records.select(found, method="cls")) == 0


def test_the_summary_of_seeds_is_students_interval_in_percent(tmp_path):
    found = table(
        tmp_path,
        *(
            record("real", seed, top1, val)
            for seed, (top1, val) in enumerate([(0.5, 0.4), (0.6, 0.5), (0.7, 0.6)])
        ),
    )
    (row,) = records.summary(found).to_dict("records")
    mean, low, high = mean_interval([50, 60, 70])
    assert (row["method"], row["title"], row["seeds"]) == ("real", "Real only", 3)
    assert (row["top1"], row["low"], row["high"], row["validation"]) == pytest.approx(
        (mean, low, high, 50.0)
    )


def test_the_summary_of_one_seed_is_wilsons_interval(tmp_path):
    (row,) = records.summary(table(tmp_path, record("real", 0, 0.6))).to_dict("records")
    assert (row["top1"], row["low"], row["high"]) == pytest.approx(
        [60.0, *(100 * end for end in wilson(120, 200))]
    )


def test_the_summary_of_a_method_without_chance_is_wilsons_interval(tmp_path):
    """Zero-shot has the same accuracy on all seeds, and no interval over seeds: it would look
    exact.
    """
    row = records.summary(
        table(tmp_path, *(record("clip", seed, 0.75, 0.6) for seed in range(3)))
    ).iloc[0]
    one = table(tmp_path / "one", record("clip", 0, 0.75, 0.6)).iloc[0]
    assert (
        (row["seeds"], row["top1"]) == (3, 75)
        and (row["low"], row["high"]) == (100 * one["low"], 100 * one["high"])
        and row["low"] < row["high"]
    )


def test_a_bound_beside_zero_shows_its_side():
    found = {"difference": 0.4, "low": 0.027, "high": 0.81, "seeds": 5}
    assert "interval +0.03 to +0.8; the interval excludes zero" in records.sentence(found, "a", "b")


def test_the_difference_is_paired_by_seed(tmp_path):
    """The seeds differ by far more than the methods; only the pairing shows the difference. Seed
    3 has no partner.
    """
    pairs = {0: (0.30, 0.25), 1: (0.70, 0.64), 2: (0.90, 0.86)}
    found = table(
        tmp_path,
        *(record("dset", s, a) for s, (a, _) in pairs.items()),
        *(record("base", s, b) for s, (_, b) in pairs.items()),
        record("dset", 3, 0.1),
    )
    result = records.paired(found, "dset", "base")
    expected = stats.ttest_rel([30, 70, 90], [25, 64, 86])
    interval = expected.confidence_interval()
    assert result["seeds"] == 3 and (result["better"], result["baseline"]) == ("dset", "base")
    assert (result["difference"], result["low"], result["high"]) == pytest.approx(
        (5.0, interval.low, interval.high)
    )
    assert result["low"] > 0
    assert records.paired(found, "base", "dset")["difference"] == pytest.approx(-5.0)


def test_one_pair_has_a_difference_and_no_interval(tmp_path):
    result = records.paired(
        table(tmp_path, record("dset", 0, 0.6), record("base", 0, 0.5)), "dset", "base"
    )
    assert result["difference"] == pytest.approx(10.0) and math.isnan(result["low"])
    assert "no interval" in records.sentence(result, "A", "B")


def test_a_method_without_records_is_named(tmp_path):
    with pytest.raises(KeyError, match="cls"):
        records.paired(table(tmp_path, record("base", 0)), "cls", "base")


@pytest.mark.parametrize(
    "low, high, words",
    [
        (1.0, 3.0, "excludes zero"),
        (-3.0, -1.0, "excludes zero"),
        (-1.0, 3.0, "no difference detected"),
    ],
)
def test_the_sentence_claims_no_more_than_the_interval(low, high, words):
    text = records.sentence(
        {"difference": (low + high) / 2, "low": low, "high": high, "seeds": 5},
        "DataDream",
        "Real only",
    )
    assert (
        words in text
        and "DataDream minus Real only" in text
        and f"{low:+.1f} to {high:+.1f}" in text
        and "5 seeds" in text
    )


def test_validation_alone_chooses_between_variants(tmp_path):
    """cls is better on test images, dset on validation images: a choice by test would be a
    choice on the answer.
    """
    found = table(
        tmp_path,
        record("cls", 0, top1=0.9, val=0.5),
        record("cls", 1, top1=0.9, val=0.5),
        record("dset", 0, top1=0.6, val=0.4),
        record("dset", 1, top1=0.6, val=0.7),
        record("base", 0, top1=0.5),
        record("base", 1, top1=0.5),
        record("real", 0, top1=0.99, val=0.99),
    )
    assert records.best_by_validation(found, ["cls", "dset"]) == "dset"
    assert records.best_by_validation(found.drop(columns="top1"), ["cls", "dset"]) == "dset"
    assert records.best_by_validation(found, ["cls", "base"]) in ("cls", "base")
    more = table(
        tmp_path / "more",
        record("cls", 0, val=0.5), record("dset", 0, val=0.6),
        record("cls", 1, val=0.9), record("dset", 2, val=0.1),
    )  # fmt: skip
    assert records.best_by_validation(more, ["cls", "dset"]) == "dset", "on seed 0, which both have"
    apart = more[more["seed"] > 0]
    assert records.best_by_validation(apart, ["cls", "dset"]) == "cls", "without a shared seed"
    text = records.difference_text(found, "dset", "base")
    assert text.startswith("DataDream (dataset) minus Untuned generator: +10.0 points")


def test_what_is_shown_to_people(tmp_path):
    shown = records.show(table(tmp_path, record("real", 0, 0.6), record("dset+real", 0, 0.7))).data
    assert isinstance(shown, pd.DataFrame)
    assert shown["Method"].tolist() == ["Real only", "DataDream (dataset) + real"] and shown[
        "Top-1 %"
    ].tolist() == ["60.0", "70.0"]


def test_two_records_of_one_cell_are_not_two_seeds(tmp_path):
    """Other images in the same folder, or another number of shots, give two records of one
    method and seed. A summary that counts both as seeds would show an interval over seeds that
    nobody ran.
    """
    found = table(tmp_path, record("real", 0, 0.5), record("real", 0, 0.9, **{"shots": 4}))
    try:
        (row,) = records.summary(found).to_dict("records")
    except ValueError as error:
        assert "seed" in str(error)
    else:
        assert row["seeds"] == 1


@pytest.mark.parametrize(
    "ends, word",
    [
        ((0.1, 2.0), "detected"),
        ((-2.0, -0.1), "the opposite detected"),
        ((-0.1, 2.0), "not detected"),
    ],
)
def test_a_finding_is_what_the_interval_says(ends, word):
    assert records.interval_text(*ends) == word


def test_what_an_interval_detects():
    nan = float("nan")
    ends = [(0.1, 1), (-1, -0.1), (-1, 1), (0, 1), (nan, nan)]
    said = [records.direction(*pair) for pair in ends]
    assert said == ["more", "less", *["not detected"] * 3]


def test_the_released_protocol_is_marked_loudly_and_never_mixed(tmp_path):
    loud = table(tmp_path / "loud", record("real", 0, protocol="released"))
    assert (
        "RELEASED PROTOCOL" in records.summary(loud)["title"][0]
        and "RELEASED PROTOCOL" in records.show(loud).to_html()
    )
    assert (
        "RELEASED" not in records.summary(table(tmp_path / "calm", record("real", 0)))["title"][0]
    )
    mixed = table(tmp_path / "mixed", record("real", 0, protocol="released"), record("real", 0))
    with pytest.raises(ValueError, match="several records"):
        records.summary(mixed)


def test_what_records_share_is_timed_once():
    """Two classifiers of one set of images: its seconds count once, and those of the two
    adapters are a record's sum.
    """

    def row(train, seconds):
        return {
            "stages": {"adapt": 6.0, "generate": 2.0, "train": seconds},
            "artifacts": {"adapt0": "a", "adapt1": "b", "generate": "g", "train": train},
        }

    found = benchmark_tables.stage_table(pd.DataFrame([row("t", 1.0), row("u", 11.0)])).set_index(
        "stage"
    )
    assert found["seconds"].to_dict() == {"train": 12.0, "adapt": 6.0, "generate": 2.0} and found[
        "artifacts"
    ].to_dict() == {"train": 2, "adapt": 2, "generate": 1}
    assert found["share, %"].tolist() == [60, 30, 10]


def test_the_share_of_the_machines_limit():
    """Products of 50 GFLOP at 100 GFLOP/s take half a second, and 40 MB at 10 MB/s on each of
    two cores two.
    """

    def row(flops, bytes_):
        return {
            "row": "stage",
            "images": 8,
            "flops": flops,
            "bytes": bytes_,
            "ratio": [4.0, 3.0, 5.0],
            "seconds": {"baseline": 8.0, "product": 2.5},
            "peak_bytes": {"baseline": 1e9, "product": 2e9},
        }

    table = benchmark_tables.benchmark_table(
        {
            "limits": {"flops": {"float32": 100e9, "float16": 50e9}, "decoded_bytes": 10e6},
            "cores": 2,
            "rows": [row(50e9, 0), row(0, 40e6), row(0, 0)],
        }
    )
    assert table["share of peak, %"][:2].tolist() == [20, 80] and table["ratio at peak"][
        :2
    ].tolist() == [16, 4]
    assert (
        table["ratio at peak"].isna().tolist() == [False, False, True]
        and table["product, images/s"].tolist() == [3.2] * 3
    )


def test_the_committed_measurements_fill_their_tables():
    """What the pages on faults, scale and speed show, read as they read it."""
    assert len(benchmark_tables.fault_table(benchmark_tables.load_faults())) > 1
    scale = benchmark_tables.load_scale()
    assert (
        len(benchmark_tables.scale_table(scale)) == 4
        and len(benchmark_tables.remedy_table(scale)) > 1
        and len(benchmark_tables.operation_table(scale)) > 1
    )
    folder = paths.paths()["benchmarks"]
    assert len(benchmark_tables.load_together()) == 2
    for results in benchmark_tables.load_benchmarks(folder):
        table = benchmark_tables.benchmark_table(results)
        assert (
            len(table) >= 1
            and (table["share of peak, %"].dropna() < 100).all()
            and (table["ratio"] > 0).all()
        )


@pytest.mark.parametrize(
    "shots, words",
    [(1, "1 shot"), (4, "4 shots"), ([1], "1 shot"), ([1, 16], "1 and 16 shots"),
     ((1, 4, 16), "1, 4 and 16 shots")],
)  # fmt: skip
def test_numbers_of_shots_are_put_into_words(shots, words):
    assert records.in_shots(shots) == words


@pytest.mark.parametrize("p, text", [(0.04, "0.040"), (0.001, "0.001"), (6e-6, "< 0.001")])
def test_a_small_p_value_is_not_written_as_zero(p, text):
    assert records.p_text(p) == text


def test_a_setting_has_its_dataset_s_title():
    settings = [("mnist", 4), ("optdigits", 1), ("mnist", 1), ("mnist", 4)]
    assert records.in_settings(settings) == "MNIST at 1 and 4 shots and Optical digits at 1 shot"
    assert records.in_settings([]) == "no setting"
    assert records.in_setting("mnist", 4) == "MNIST, 4 shots"
    assert records.in_setting("dtd", 1) == "dtd, 1 shot"
