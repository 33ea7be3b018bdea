"""A reader's records against the committed ones: which cells are one computation, how far apart two
runs of it may be, and when the whole is outside.
"""

import ast
import json
import re

import IPython.display
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from IPython.display import Markdown
from scipy import stats

from datadream import config
from datadream.cli import main
from datadream.methods import recipes
from datadream.results import agreement
from datadream.results.record import read_record, record_key
from datadream.results.records import load_records, tidy
from datadream.statistics import wilson
from datadream.store.artifacts import Store
from datadream.study.run import run

TOTAL = 1000
CPU, GPU = "x86_64 CPU, 2 cores", "NVIDIA H100"


def record(method="real", seed=0, right=500, judge=None, shots=16, device=CPU, later=0, **settings):
    """Return a record as `results.record` writes it; `later` seconds after the others."""
    recipe = config.as_dict(
        recipes.recipe(method=method, seed=seed, dataset="mnist", shots=shots, overrides=settings)
    )
    told = f"{method} {seed} {shots} {sorted(settings.items())}"
    artifacts = {"shots": f"shots-{shots} {seed}", "judge": judge or f"judge-{told}"}
    low, high = wilson(right, TOTAL)
    part = {"top1": right / TOTAL, "low": low, "high": high, "total": TOTAL}
    part |= {"per_class": [], "confusion": [[right]]}
    return {
        "key": record_key(recipe, artifacts), "recipe": recipe, "artifacts": artifacts,
        "result": {"test": part, "val": part}, "curve": [], "seconds": {"train": 1.0},
        "created": f"2026-11-27T00:00:{later:02d}Z", "commit": "abc", "dirty": False,
        "device": device,
    }  # fmt: skip


def yours(*records):
    """Return the table of records that another run wrote, a second later."""
    return tidy([{**one, "created": "2026-11-28T00:00:00Z"} for one in records])


FIVE = [record(seed=seed, right=right) for seed, right in enumerate((900, 910, 920, 930, 940))]


# How far apart two runs of a cell may be.


@given(st.integers(3, 12), st.integers(0, 2**32 - 1), st.floats(-0.2, 0.2))
def test_the_bound_of_two_seeds_is_students_for_a_difference(count, seed, difference):
    seeds = np.random.default_rng(seed).normal(0.8, 0.03, count)
    half, p = agreement.seeds_apart(difference, seeds)
    scale = np.std(seeds, ddof=1) * np.sqrt(2)
    low, high = stats.t.interval(0.95, count - 1, scale=scale)
    assert (-half, half) == pytest.approx((low, high))
    expected = 2 * (1 - stats.t.cdf(abs(difference) / scale, count - 1))
    assert p == pytest.approx(expected, abs=1e-9)
    assert (abs(difference) > half) == (p < 0.05)


@pytest.mark.parametrize("seeds", [[], [0.5], [0.4, 0.5], [0.5, 0.5, 0.5]])
def test_seeds_without_a_spread_have_no_bound(seeds):
    with pytest.raises(ValueError, match="give 3 or more that are not all the same"):
        agreement.seeds_apart(0.1, seeds)


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0, 1))
def test_the_bound_of_the_images_is_the_binomial_one(total, first, second):
    half, p = agreement.images_apart(first, second, total)
    assert half > 0 and 0 <= p <= 1
    assert (abs(first - second) > half) == (p < 0.05)
    assert agreement.images_apart(second, first, total) == pytest.approx((half, p))
    if total > 2000 and min(first, second) > 0.2 and max(first, second) < 0.8:
        wald = 1.96 * np.sqrt((first * (1 - first) + second * (1 - second)) / total)
        assert half == pytest.approx(wald, rel=0.01)


@pytest.mark.parametrize("wrong", [(-0.1, 0.5, 10), (0.5, 1.1, 10), (0.5, 0.5, 0)])
def test_what_is_no_accuracy_is_refused(wrong):
    with pytest.raises(ValueError, match="give shares of 1 or more images"):
        agreement.images_apart(*wrong)


def test_a_perfect_accuracy_has_a_spread_too():
    half, p = agreement.images_apart(1.0, 0.99, 100)
    assert 0.01 < half < 0.06 and p > 0.05


def test_the_smaller_bound_counts_and_is_named():
    narrow = agreement.judged(0.91, 0.90, 1000, [0.900, 0.901, 0.902, 0.903, 0.904])
    assert narrow["spread"] == "5 seeds" and narrow["verdict"] == agreement.OUTSIDE
    wide = agreement.judged(0.91, 0.90, 1000, [0.5, 0.7, 0.9])
    assert wide["spread"] == "images" and wide["verdict"] == agreement.WITHIN
    alone = agreement.judged(0.91, 0.90, 1000, [0.9, 0.9, 0.9])
    # Beside seeds, the images have half of the 5 %, so their bound is wider than alone.
    assert alone["within"] == pytest.approx(100 * agreement.images_apart(0.91, 0.9, 1000)[0])
    assert wide["within"] / alone["within"] == pytest.approx(
        stats.norm.ppf(0.9875) / stats.norm.ppf(0.975)
    )
    assert wide["difference"] == pytest.approx(1.0)
    other = agreement.judged(0.91, 0.90, 1000, [0.5, 0.7, 0.9], same_draws=False)
    assert other["spread"] == "3 seeds" and other["within"] > 20
    assert agreement.judged(0.91, 0.90, 1000, [0.9], same_draws=False) == alone


@given(
    st.integers(0, 1000), st.integers(0, 1000),
    st.lists(st.integers(0, 1000), min_size=1, max_size=6),
)  # fmt: skip
def test_a_verdict_is_what_its_bound_says(first, second, seeds):
    found = agreement.judged(first / 1000, second / 1000, 1000, np.array(seeds) / 1000)
    if first == second:
        assert (found["verdict"], found["p"]) == (agreement.EQUAL, 1.0)
    else:
        beyond = abs(found["difference"]) > found["within"]
        assert (found["verdict"] == agreement.OUTSIDE) == beyond == (found["p"] < 0.05)


@pytest.mark.parametrize("count, share", [(3, 0.3), (3, 1.0), (3, 3.0), (5, 1.0), (10, 0.7)])
def test_at_most_one_in_twenty_is_outside_where_two_runs_differ_like_seeds_and_images(count, share):
    """`share` is the seeds' true spread as a multiple of the images'; rounding has the smaller."""
    rng, total, accuracy = np.random.default_rng(0), 2500, 0.8
    binomial = np.sqrt(accuracy * (1 - accuracy) / total)
    found = []
    for _ in range(800):
        seeds = rng.normal(accuracy, share * binomial, count)
        other = seeds[0] + np.sqrt(2) * rng.normal(0, min(share, 1.0) * binomial)
        found.append(agreement.judged(other, seeds[0], total, seeds)["verdict"])
    outside = found.count(agreement.OUTSIDE) / len(found)
    assert outside <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))
    assert outside > 0.005, "the bound is not so wide that it says nothing"


# The whole.


def cells(*p_values, equal=0):
    """Return compared cells with these p-values, and some that are equal."""
    rows = [
        {"judge": f"judge-{i}", "p": p,
         "verdict": agreement.OUTSIDE if p < 0.05 else agreement.WITHIN}
        for i, p in enumerate(p_values)
    ]  # fmt: skip
    rows += [{"judge": f"same-{i}", "p": 1.0, "verdict": agreement.EQUAL} for i in range(equal)]
    return pd.DataFrame(rows, columns=["judge", "p", "verdict"])


@pytest.mark.parametrize(
    "given_, verdict",
    [
        (cells(), agreement.NOTHING),
        (cells(equal=3), agreement.EQUAL),
        (cells(0.04, *[0.5] * 39), agreement.WITHIN),
        (cells(*[0.04] * 4, *[0.5] * 36), agreement.WITHIN),
        (cells(*[0.04] * 6, *[0.5] * 34), agreement.OUTSIDE),
        (cells(1e-4, *[0.5] * 39), agreement.OUTSIDE),
        (cells(0.04, 0.04, equal=38), agreement.OUTSIDE),
    ],
)
def test_one_cell_of_forty_does_not_alarm_and_several_do(given_, verdict):
    assert agreement.overall(given_)["verdict"] == verdict


def test_the_whole_has_scipys_probability_and_counts_a_computation_once():
    one = cells(0.01, 0.04, 0.3, equal=2)
    twice = pd.concat([one, one])
    found = agreement.overall(twice)
    assert found == agreement.overall(one)
    assert found["chance"] == pytest.approx(stats.binomtest(2, 3, 0.05, "greater").pvalue)
    assert found["furthest"] == pytest.approx(0.03)
    assert (found["equal"], found["differ"], found["outside"]) == (2, 3, 2)
    assert found["expected"] == pytest.approx(0.15)


@pytest.mark.parametrize("correlation, most", [(0.0, 0.05), (0.5, 0.08)])
def test_the_whole_is_rarely_outside_by_chance(correlation, most):
    """Eighteen cells of three settings; those of a setting are correlated by what they share."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        own, shared = rng.normal(size=(3, 6)), rng.normal(size=(3, 1))
        z = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared
        p = 2 * stats.norm.sf(np.abs(z)).ravel()
        alarms += agreement.overall(cells(*p))["verdict"] == agreement.OUTSIDE
    assert alarms / 200 <= most


# Which cells are compared.


def test_a_computation_is_compared_whatever_settings_it_does_not_use():
    own = yours(record(right=915, judge=FIVE[1]["artifacts"]["judge"], seed=1,
                       **{"generate.guidance": 7.0}))  # fmt: skip
    found = agreement.compare(own, tidy(FIVE))
    (row,) = found.cells.to_dict("records")
    assert (row["yours"], row["ours"], row["verdict"]) == (91.5, 91.0, agreement.WITHIN)
    assert row["title"] == "Real only" and row["key"] == own["key"][0]
    expected = agreement.judged(0.915, 0.91, TOTAL, [0.90, 0.91, 0.92, 0.93, 0.94])
    assert {name: row[name] for name in expected} == expected
    assert found.settings.empty and found.alone.empty and found.copies == 0


def test_seeds_of_other_settings_give_no_spread():
    other = [record(seed=seed, right=right, **{"classify.lr": 0.5})
             for seed, right in ((5, 100), (6, 200), (7, 300))]  # fmt: skip
    found = agreement.compare(yours(record(right=890)), tidy([*FIVE, *other]))
    spread = agreement.judged(0.89, 0.90, TOTAL, [0.90, 0.91, 0.92, 0.93, 0.94])
    assert found.cells["within"].tolist() == [spread["within"]]


def test_other_settings_are_named_and_what_has_no_counterpart_is_counted():
    own = yours(
        record(seed=0, **{"classify.lr": 0.5, "classify.batch": 8}),
        record(seed=1, **{"classify.lr": 0.5, "classify.batch": 8}),
        record(seed=9), record("dset", shots=1), record("dset", shots=1, seed=1),
    )  # fmt: skip
    far = record(seed=0, **{"classify.lr": 0.25, "classify.batch": 4, "classify.epochs": 3})
    found = agreement.compare(own, tidy([far, *FIVE]))
    usual = FIVE[0]["recipe"]["classify.lr"]
    shown = agreement.shown_settings(found.settings)
    assert shown.to_dict("records") == [
        {"Dataset": "mnist", "Shots": 16, "Method": "Real only", "Setting that differs":
         "classify.lr", "Yours": "0.5", "Ours": str(usual), "Seeds": "0, 1"}
    ]  # fmt: skip
    assert found.cells.empty
    (line,) = agreement.rest_lines(found)
    assert line == (
        "3 cells of yours have no committed counterpart: mnist at 1 shot (2), mnist at 16 shots "
        "(1)."
    )
    assert "No verdict" in agreement.verdict_line(found)


def test_every_value_of_a_setting_is_listed():
    own = yours(*(record(**{"generate.guidance": value}) for value in (1.5, 4.0)))
    shown = agreement.shown_settings(agreement.compare(own, tidy(FIVE)).settings)
    assert sorted(shown["Yours"]) == ["1.5", "4.0"]


def test_a_setting_that_was_added_later_has_its_default_in_older_records():
    old = json.loads(json.dumps(FIVE[0]))
    added = [name for name in old["recipe"] if name not in config.key_fields(config.Recipe())]
    assert added
    for name in added:
        del old["recipe"][name]
    found = agreement.compare(yours(record(judge="judge-new code")), tidy([old]))
    assert found.settings["setting"].tolist() == ["data, models or code of the stage judge"]


def test_a_gpu_with_other_number_formats_is_compared_and_other_few_shots_are_not():
    same = record(right=905, judge="judge-bfloat16", device=GPU)
    found = agreement.compare(yours(same), tidy(FIVE))
    assert found.cells["ours"].tolist() == [90.0]
    # A GPU draws other noise from the seed, so the errors of the two may have less in common.
    half, p = agreement.seeds_apart(0.005, [0.90, 0.91, 0.92, 0.93, 0.94])
    assert found.cells["spread"].tolist() == ["5 seeds"]
    assert found.cells["within"].tolist() == pytest.approx([100 * half])
    assert found.cells["p"].tolist() == pytest.approx([p])
    other = json.loads(json.dumps(same))
    other["artifacts"]["shots"] = "shots-others"
    found = agreement.compare(yours(other), tidy(FIVE))
    assert found.cells.empty
    assert found.settings["setting"].tolist() == ["data, models or code of the stage shots"]
    on_cpu = record(right=905, judge="judge-other code")
    assert agreement.compare(yours(on_cpu), tidy(FIVE)).cells.empty


@pytest.mark.parametrize(
    "device, spread", [(CPU, "images"), ("aarch64 CPU, 8 cores", "images"), (GPU, "5 seeds")]
)
def test_the_images_bound_what_draws_the_same_noise(device, spread):
    own = record(right=905, judge="judge-0", device=device, precision="float32")
    ours = [
        record(seed=seed, right=900 + 10 * seed, judge=f"judge-{seed}", precision="float32")
        for seed in range(5)
    ]
    found = agreement.compare(yours(own), tidy(ours))
    assert found.cells["spread"].tolist() == [spread]


def test_the_committed_run_itself_is_not_compared_with_itself():
    found = agreement.compare(tidy(FIVE), tidy(FIVE))
    assert found.copies == 5 and found.cells.empty
    (line,) = agreement.rest_lines(found)
    assert line.startswith("5 of your records are in the committed file")
    assert "git checkout book/study/records.jsonl" in line
    assert agreement.verdict_line(found).startswith("No verdict")


def test_zero_shot_is_compared_across_shots_and_is_one_computation():
    ours = [record("clip", seed, 600, "judge-clip") for seed in (0, 1, 2)]
    own = [record("clip", 0, 600, "judge-clip", shots) for shots in (1, 4, 16)]
    found = agreement.compare(yours(*own), tidy(ours))
    assert len(found.cells) == 3
    assert agreement.verdict_line(found) == (
        "Equal: 3 cells compared, which are 1 computation, each with exactly our number."
    )


def test_what_is_outside_comes_first_with_its_record():
    own = yours(record(seed=0, right=902), record(seed=1, right=700))
    found = agreement.compare(own, tidy(FIVE))
    shown = agreement.shown(found.cells)
    assert shown["Verdict"].tolist() == ["outside", "within"]
    assert shown["Diff."].tolist() == ["-21.00", "+0.20"]
    key = own.loc[own["seed"] == 1, "key"].item()
    assert agreement.outside_files(found, "artifacts") == [f"artifacts/records/{key}.json"]
    text = agreement.report(found, "artifacts")
    assert text.startswith("Outside: 2 cells compared; 0 equal, 1 within the expected spread, 1 ")
    assert "(Holm)" in text and f"artifacts/records/{key}.json" in text


# Real runs, the page and the command.


@pytest.fixture(scope="module")
def two(make, tmp_path_factory):
    """Return two stores in which the same tiny cells were computed."""
    root, stores = tmp_path_factory.mktemp("two"), []
    for name in ("ours", "yours"):
        stores.append(Store(root / name))
        for method in ("clip", "real"):
            run(make(method), stores[-1])
    return stores


def committed(store, home):
    """Write the records of a store as the committed ones of a project's folder, a day older."""
    records = [read_record(file) for file in sorted(store.records.glob("*.json"))]
    lines = [
        json.dumps({**one, "created": "2026-01-01T00:00:00Z", "runs": {"table": {"": 0}}})
        for one in records
    ]
    (home / "book" / "study").mkdir(parents=True)
    (home / "book" / "study" / "records.jsonl").write_text("\n".join([*lines, ""]))


def shift(store, target, method, share):
    """Copy a store's records, with another accuracy of a method."""
    target.mkdir(parents=True)
    for file in store.records.glob("*.json"):
        found = read_record(file)
        if found["recipe"]["method"] == method:
            found["result"]["test"]["top1"] = share
        (target / file.name).write_text(json.dumps(found))


def test_two_runs_on_one_machine_have_the_very_same_numbers(two):
    ours, own = (load_records(store.records) for store in two)
    ours["created"] = "2026-01-01T00:00:00Z"
    found = agreement.compare(own, ours)
    assert sorted(found.cells["method"]) == ["clip", "real"]
    assert set(found.cells["verdict"]) == {agreement.EQUAL}
    assert found.settings.empty and found.alone.empty


def test_a_run_with_another_learning_rate_is_not_compared(two, make, store):
    run(make("real", {"classify.lr": 0.03}), store)
    run(make("real", seed=1), store)
    found = agreement.compare(load_records(store.records), load_records(two[0].records))
    assert found.cells.empty and len(found.alone) == 1
    (row,) = found.settings.to_dict("records")
    assert (row["setting"], row["yours"], row["ours"]) == ("classify.lr", 0.03, 0.01)


@pytest.fixture
def page_outputs(monkeypatch):
    """Return page_outputs() -> what each of the page's code cells shows, executed now."""
    page = (ROOT / "book" / "your_run.md").read_text()
    sources = re.findall(r"```\{code-cell\} ipython3\n:tags: .*?\n\n(.*?)```", page, re.DOTALL)
    assert len(sources) == 4

    def execute():
        scope, texts, shown = {}, [], []
        monkeypatch.setattr(IPython.display, "display", shown.append)
        for source in sources:
            shown.clear()
            *before, last = ast.parse(source).body
            value = isinstance(last, ast.Expr)
            exec(compile(ast.Module(before if value else [*before, last], []), page, "exec"), scope)
            if value:
                shown.append(eval(compile(ast.Expression(last.value), page, "eval"), scope))
            texts.append(
                "".join(one.data if isinstance(one, Markdown) else one.to_html() for one in shown)
            )
        return texts

    return execute


def test_the_page_and_the_command_tell_the_same(two, page_outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    committed(two[0], tmp_path / "home")
    assert "The store has no records yet" in page_outputs()[0]
    assert main(["compare"]) == 0 and "no records yet" in capsys.readouterr().out

    monkeypatch.setenv("DATADREAM_STORE", str(two[1].root))
    verdict, table, settings, files = page_outputs()
    assert "Equal: 2 cells compared" in verdict and table.count(">equal<") == 2
    assert "none" in settings and "no such record" in files
    assert main(["compare", "--brief"]) == 0 and "Equal: 2 cells" in capsys.readouterr().out


def test_a_wrong_number_is_outside_on_the_page_and_in_the_exit_code(
    two, page_outputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    committed(two[0], tmp_path / "home")
    right = load_records(two[0].records).set_index("method")["top1"]["real"]
    shift(two[1], tmp_path / "own" / "records", "real", 0.0 if right > 0.5 else 1.0)
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "own"))
    assert main(["compare"]) == 1
    assert capsys.readouterr().out.startswith("Outside: 2 cells compared; 1 equal, 0 within")
    verdict, table, _, files = page_outputs()
    assert "Outside" in verdict and "outside" in table and "record-" in files


def test_a_damaged_store_does_not_keep_the_book_from_being_built(
    two, page_outputs, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "home"))
    committed(two[0], tmp_path / "home")
    (tmp_path / "artifacts" / "records").mkdir(parents=True)
    (tmp_path / "artifacts" / "records" / "record-1.json").write_text("{")
    verdict, table, *_ = page_outputs()
    assert "cannot be read" in verdict and table == ""
    assert main(["compare"]) == 2
