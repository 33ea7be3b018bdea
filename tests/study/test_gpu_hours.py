"""What the paper's scale takes by card: the least that data sheets allow, and what was measured."""

import pytest

from datadream import cli
from datadream.engines import roofline
from datadream.engines.roofline import CARDS, MEASURED, Card, Cost
from datadream.errors import ConfigError
from datadream.pipeline.evaluate import validated
from datadream.pipeline.stages import Cell
from datadream.study import cells, gpu_hours
from datadream.study.plan import described_cell, profile_cells


@pytest.fixture(scope="module")
def eurosat():
    return profile_cells("paper", ["eurosat"], 1)


def test_products_and_bytes_follow_each_other():
    card = Card(half=100.0, single=10.0, bandwidth=50.0)
    assert Cost(200.0, 30.0, 50.0).seconds(card) == pytest.approx(2 + 3 + 1)
    assert (Cost(1.0, 2.0, 3.0) + Cost(1.0) * 2).seconds(card) == pytest.approx(0.03 + 0.2 + 0.06)


def test_a_cell_asks_for_its_images_steps_and_prompts(eurosat):
    """Ten classes of 500 images, 50 steps of two passes; 16 shots, 200 epochs, batches of eight."""
    cell = Cell(*_parts(eurosat, "dset"))
    counts, classify = roofline.COUNTED, cell.recipe.classify
    made = counts["unet"] * (5000 * 100) + counts["decode"] * 5000
    assert roofline.cost(cell, "generate") == made
    (one,) = cell.adapters
    view = counts["encode"] + counts["trained view"] + counts["trained prompt"]
    assert roofline.cost(cell, "adapt", one).half == pytest.approx((view * 32000).half)
    (own, *_) = Cell(*_parts(eurosat, "cls")).adapters
    alone = roofline.cost(Cell(*_parts(eurosat, "cls")), "adapt", own)
    each = counts["encode"] + counts["trained view"] + counts["trained prompt"] * (1 / 8)
    assert alone.half == pytest.approx((each * 3200).half)
    least = counts["trained image"] * 5000 * classify.epochs
    assert roofline.cost(cell, "train").half > least.half
    tested = counts["read"] * (validated(cell.support) + len(cell.dataset.test))
    assert roofline.cost(cell, "judge") == tested


def _parts(recipes, method):
    (recipe,) = (one for one in recipes if one.method == method)
    return recipe, described_cell(recipe).dataset


def test_what_was_measured_takes_no_less_than_the_least(eurosat, store):
    table = gpu_hours.gpu_hours(eurosat, store).set_index(["card", "hours are"])
    assert set(table.index.get_level_values("card")) == set(CARDS) > set(MEASURED)
    for card in MEASURED:
        measured, least = table.loc[card, "measured"], table.loc[card, "computed"]
        assert (measured > least).all(), card
    assert table["all"].to_numpy() == pytest.approx(table[gpu_hours.COSTLY].sum(axis=1).to_numpy())
    least = table.xs("computed", level="hours are")["all"]
    assert least.loc[["H200", "H100", "A100", "4090", "L4"]].is_monotonic_increasing


def test_what_is_done_takes_no_time(eurosat, store, monkeypatch):
    monkeypatch.setattr(type(store), "whole", lambda self, key: True)
    assert (gpu_hours.gpu_hours(eurosat, store)["all"] == 0).all()


def test_a_price_goes_for_its_card_or_for_all(eurosat, store):
    by = gpu_hours.prices(["1", "h100=2.5"])
    assert by == {"all": 1.0, "H100": 2.5}
    table = gpu_hours.gpu_hours(eurosat, store, by)
    expected = table["all"] * table["card"].map(lambda card: 2.5 if card == "H100" else 1.0)
    assert table["cost"].to_numpy() == pytest.approx(expected.to_numpy())
    only = gpu_hours.gpu_hours(eurosat, store, {"L4": 0.7})
    assert only["cost"].notna().sum() == 1
    text = gpu_hours.gpu_text(eurosat, store, {"L4": 0.7})
    assert "computed: not measured" in text and text.count(" -\n") == len(only) - 1


@pytest.mark.parametrize("word", ["x", "H100=", "B200=3", "H100=-1", "nan", "inf", "A100=2,5"])
def test_what_is_no_price_is_refused(word):
    with pytest.raises(ConfigError, match="is not a price of an hour; give a number, or <card>="):
        gpu_hours.prices([word])


def test_other_models_were_not_counted(store):
    with pytest.raises(ConfigError, match="generator='mini' .* was not counted"):
        gpu_hours.gpu_hours(cells.cells(["base"], dataset="mnist"), store)


def test_the_command_prints_hours_and_money(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path))
    words = ["plan", "--profile", "paper", "--dataset", "eurosat"]
    assert cli.main([*words, "--price", "H100=2.5"]) == 0
    text = capsys.readouterr().out
    assert "H100  computed" in text and "H200  measured" in text and "cost" in text
    assert cli.main([*words, "--price", "cheap"]) == 2
    assert "--price cheap is not a price" in capsys.readouterr().err
    assert cli.main(["plan", "mnist", "--price", "1"]) == 2
    assert "was not counted" in capsys.readouterr().err
