"""The primary question, the others with Holm's correction, and average ranks."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadream.results import comparison, plots
from datadream.statistics import holm

METHODS = ("real", "base+real", "dset+real")


def table(accuracies, datasets=("mnist",), shots=(1,), protocol="strict"):
    """Return records' table; `accuracies` (method, dataset, shots, seed) -> share."""
    rows = [
        {"dataset": data, "shots": k, "method": method, "seed": seed, "protocol": protocol}
        | {"top1": accuracies(method, data, k, seed)}
        for data in datasets
        for k in shots
        for method in METHODS
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


def noisy(method, data, k, seed):
    gain = {"real": 0.0, "base+real": 0.0, "dset+real": 0.08 if k == 1 else 0.0}[method]
    noise = np.random.RandomState(100 * seed + 10 * k + len(method)).normal(0, 0.005)
    return 0.5 + 0.1 * seed + gain + noise


def test_the_primary_question_averages_each_seed_over_all_settings():
    frame = table(noisy, ("mnist", "optdigits"), (1, 4, 16))
    found = comparison.primary(frame)
    wide = frame.pivot(index=["dataset", "shots", "seed"], columns="method", values="top1")
    by_seed = 100 * (wide["dset+real"] - wide["real"]).groupby("seed").mean()
    assert found["difference"] == pytest.approx(by_seed.mean())
    assert (found["seeds"], found["settings"]) == (5, 6)
    half = 2.7764451 * by_seed.std(ddof=1) / 5**0.5  # Student's t of four degrees of freedom
    assert found["high"] - found["difference"] == pytest.approx(half)


def test_a_seed_that_lacks_a_setting_does_not_count():
    frame = table(noisy, shots=(1, 4))
    lacking = frame.loc[~((frame["seed"] == 2) & (frame["shots"] == 4))]
    assert comparison.primary(lacking)["seeds"] == 4
    with pytest.raises(ValueError, match="no seed has both"):
        other = (lacking["seed"] == 3) & (lacking["shots"] == 4)
        comparison.primary(lacking.loc[(lacking["seed"] == 2) | other])
    with pytest.raises(KeyError, match="no record of dset"):
        comparison.primary(frame.loc[frame["method"] != "dset+real"])


def with_wilson(frame):
    return frame.assign(low=frame["top1"] - 0.1, high=frame["top1"] + 0.1, val_top1=0.5)


def test_a_method_stands_beside_the_base_on_the_seeds_that_both_have():
    frame = with_wilson(table(noisy, shots=(1, 4)))
    frame = frame.loc[~((frame["method"] == "dset+real") & (frame["seed"] > 2))]
    found = comparison.beside(frame, "real", ["dset+real", "real", "bob"])
    rows = found.set_index(["shots", "method"])
    assert list(rows.index) == [(k, name) for k in (1, 4) for name in ("dset+real", "real")]
    own, base = rows.loc[(1, "dset+real")], frame.query("method == 'real' & shots == 1 & seed < 3")
    assert own["seeds"] == 3 and own["base"] == pytest.approx(100 * base["top1"].mean())
    assert own["difference"] == pytest.approx(own["top1"] - own["base"])
    assert own["least"] < own["difference"] < own["most"]
    assert rows.loc[(1, "real"), "seeds"] == 5 and np.isnan(rows.loc[(1, "real"), "difference"])


def test_a_method_without_the_bases_seeds_has_no_difference():
    frame = with_wilson(table(noisy))
    frame = frame.loc[(frame["method"] == "real") == (frame["seed"] > 2)]
    (row,) = comparison.beside(frame, "real", ["dset+real"]).to_dict("records")
    assert row["seeds"] == 3 and np.isnan(row["difference"]) and np.isnan(row["base"])
    with pytest.raises(ValueError, match="RELEASED"):
        comparison.beside(frame.assign(protocol="released"), "real", ["dset+real"])


def test_what_is_there_is_detected_and_what_is_not_is_not():
    found = comparison.averaged(table(noisy, shots=(1, 16)), "real").set_index("method")
    assert found["detected"].to_dict() == {"dset+real": "more", "base+real": "not detected"}
    assert (found["corrected p"] >= found["p"]).all()


def test_of_many_pure_noise_differences_few_are_detected():
    """Without the correction about one in twenty would be; the chance of any is one in twenty."""
    rng, names = np.random.default_rng(0), ["real", "base+real", "cls+real", "bob+real", "heavy"]
    said = 0
    for _ in range(20):
        noise = {("a", k, name): rng.normal(0.5, 0.01, 5) for k in (1, 4, 16) for name in names}
        said += (
            comparison.averaged(table_of(noise), "real")["detected"].isin(["more", "less"]).any()
        )
    assert said <= 4  # binomial(20, 0.05) is above 4 once in 400 times


def test_a_difference_has_one_corrected_p_wherever_it_is_shown():
    frame = table(noisy, ("a", "b"), (1, 16))
    more = frame[frame["method"] == "base+real"]
    frame = pd.concat([frame, more.assign(method="cls+real"), more.assign(method="tip")])
    shown = comparison.averaged(frame, "real", ["base+real"])["corrected p"].iloc[0]
    assert shown == comparison.claims(frame)["base+real", "real"]["corrected p"]
    every = comparison.averaged(frame, "real").set_index("method")["corrected p"]
    assert shown == every["base+real"]


@pytest.mark.parametrize(
    "low, high, p, said",
    [(0.3, 1.4, 0.05, "undecided"), (-1.4, -0.3, 0.2, "undecided"),
     (-0.3, 1.4, 0.3, "not detected"), (0.3, 1.4, 0.049, "more"), (-1.4, -0.3, 0.01, "less"),
     (math.nan, math.nan, math.nan, "not detected")],
)  # fmt: skip
def test_a_difference_that_only_the_correction_hides_is_undecided(low, high, p, said):
    assert comparison.detected(low, high, p) == said


def test_a_single_seed_detects_nothing():
    frame = table(noisy)
    found = comparison.averaged(frame.loc[frame["seed"] == 0], "real")
    assert set(found["detected"]) == {"not detected"} and found["low"].isna().all()


@pytest.mark.parametrize("change", ["twice", "released"])
def test_records_that_do_not_belong_together_are_refused(change):
    frame = table(noisy)
    wrong = pd.concat([frame, frame]) if change == "twice" else frame.assign(protocol="released")
    with pytest.raises(ValueError, match="several records|RELEASED PROTOCOL"):
        comparison.primary(wrong)


def test_every_method_is_averaged_over_the_settings_that_it_has():
    frame = table(noisy, ("a", "b"), (1, 16))
    lacking = frame[~((frame["method"] == "base+real") & (frame["shots"] == 1))]
    found = comparison.averaged(lacking, "real").set_index("method")
    assert list(found.index) == ["dset+real", "base+real"]  # the largest difference first
    assert found["settings"].to_dict() == {"dset+real": 4, "base+real": 2}
    whole = comparison.primary(frame)
    assert found.loc["dset+real", "difference"] == pytest.approx(whole["difference"])
    assert found.loc["dset+real", "detected"] == "more"
    # The primary question was named beforehand, so it is none of the many.
    assert found.loc["dset+real", "corrected p"] == whole["p"]
    with pytest.raises(KeyError, match="no record of real"):
        comparison.averaged(frame[frame["method"] != "real"], "real")


def test_the_secondary_differences_are_corrected_for_their_number():
    frame = table(noisy, ("a", "b"), (1, 16))
    more = [frame.assign(method=frame["method"].replace("base+real", name)) for name in "xyz"]
    frame = pd.concat([frame, *(part[part["method"].isin([*"xyz"])] for part in more)])
    found = comparison.averaged(frame, "real")
    others = found[found["method"] != "dset+real"]
    assert len(others) == 4
    assert others["corrected p"].tolist() == pytest.approx((4 * others["p"]).clip(upper=1).tolist())


def test_a_method_without_a_complete_seed_is_left_out():
    frame = table(noisy, shots=(1, 4))
    odd = frame[(frame["method"] != "base+real") | ((frame["seed"] < 2) == (frame["shots"] == 1))]
    assert list(comparison.averaged(odd, "real")["method"]) == ["dset+real"]


def test_the_scoreboard_has_a_column_per_setting():
    frame = table(noisy, ("a", "b"), (1, 16))
    lacking = frame[~((frame["method"] == "base+real") & (frame["shots"] == 1))]
    board = comparison.scoreboard(lacking)
    assert list(board.columns) == ["a, 1", "a, 16", "b, 1", "b, 16", "mean"]
    assert board.index[0] == "dset+real" and board.index[-1] == "base+real"
    own = frame[(frame["method"] == "real") & (frame["dataset"] == "b") & (frame["shots"] == 16)]
    assert board.loc["real", "b, 16"] == pytest.approx(100 * own["top1"].mean())
    assert np.isnan(board.loc["base+real", ["a, 1", "mean"]].to_numpy(float)).all()
    assert comparison.everywhere(lacking) == ["real", "dset+real"]


def test_the_forest_plot_has_a_row_per_method():
    found = comparison.averaged(table(noisy, shots=(1, 4)), "real")
    axis = plots.plot_differences(found, "real").axes[0]
    assert len(axis.get_yticklabels()) == len(found) and axis.get_xlim()[0] < 0


def test_ranks_are_of_the_mean_over_seeds():
    found, apart, settings = comparison.ranks(table(noisy, shots=(1, 4, 16)))
    assert found.index[0] == "dset+real" and settings == 3
    assert found.sum() == pytest.approx(6)  # 1 + 2 + 3
    assert apart == pytest.approx(2.3437 * (3 * 4 / 18) ** 0.5, abs=1e-3)  # Demsar, table 5
    figure = plots.plot_ranks(found, apart)
    first, *_ = figure.axes[0].get_yticklabels()
    assert first.get_text().startswith("DataDream")


@given(st.lists(st.floats(1, 9), min_size=1, max_size=8), st.floats(0.1, 4))
def test_cliques_join_what_is_close_and_nothing_else(values, apart):
    values = sorted(values)
    found = comparison.cliques(values, apart)
    joined = {(i, j) for a, b in found for i in range(a, b + 1) for j in range(i + 1, b + 1)}
    close = {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if values[j] <= values[i] + apart
    }
    assert joined == close
    assert not [one for one in found for other in found if one != other and
                other[0] <= one[0] and one[1] <= other[1]]  # fmt: skip


def table_of(accuracies):
    """Return records' table of (dataset, shots, method) -> share by seed."""
    rows = [
        {"dataset": dataset, "shots": k, "method": method, "seed": seed, "top1": top1}
        for (dataset, k, method), values in accuracies.items()
        for seed, top1 in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(protocol="strict")


def test_questions_take_the_settings_that_both_methods_have():
    found = table_of(
        {("mnist", 1, "real"): [0.5, 0.6, 0.7], ("mnist", 1, "base+real"): [0.6, 0.7, 0.9]}
        | {("mnist", 4, "real"): [0.8, 0.8, 0.8], ("mnist", 4, "dset+real"): [0.7, 0.9, 0.8]}
        | {("mnist", 1, "dset+real"): [0.7, 0.7, 0.7]}
    )
    pairs = [("base+real", "real"), ("dset+real", "real"), ("dset+real", "base+real")]
    rows = comparison.questions(found, [*pairs, ("cls", "real")])
    assert list(zip(rows["better"], rows["baseline"], strict=True)) == pairs, "cls has no record"
    assert rows["settings"].tolist() == [1, 2, 1]
    assert rows["difference"].tolist() == pytest.approx([40 / 3, 5.0, -10 / 3])
    secondary = rows["p"].drop(1)
    assert rows["corrected p"].drop(1).tolist() == pytest.approx(list(holm(secondary)))
    assert rows["corrected p"][1] == rows["p"][1], "the primary question is not corrected"


def test_what_validation_would_have_chosen_is_told_with_its_rank():
    found = table_of(
        {("mnist", 1, "real"): [0.5, 0.6], ("mnist", 1, "base+real"): [0.6, 0.7]}
        | {("mnist", 1, "dset+real"): [0.7, 0.7], ("mnist", 4, "real"): [0.9]}
    ).assign(val_top1=lambda table: 1 - table["top1"])
    (row,) = comparison.by_validation(found).to_dict("records")
    assert (row["shots"], row["methods"], row["chosen"], row["best"]) == (1, 3, "real", "dset+real")
    assert (row["its top1"], row["best top1"]) == pytest.approx((55, 70))
    assert row["rank correlation"] == pytest.approx(-1)
