"""What each method spends, in the table and in each record."""

import pytest

from datadream.methods.registry import METHODS
from datadream.results.record import read_record
from datadream.study import cells, run
from datadream.study.fairness import fairness


@pytest.fixture(scope="module")
def table():
    return fairness(cells.cells(list(METHODS), dataset="mnist")).set_index("method")


def title(name):
    return METHODS[name].title


def test_each_classifier_that_is_tuned_sees_as_many_images(table):
    tuned = [one for one in METHODS.values() if one.trained and one.head is None]
    assert set(table.loc[[one.title for one in tuned], "images in them"]) == {320 * 32}


def test_who_makes_images_says_how_many_and_at_what_price(table):
    for name, one in METHODS.items():
        own = table.loc[title(name)]
        assert own["images"] == (1000 if one.generates else 0)
        assert (own["generator passes"] > 0) == one.generates
    assert table.loc[title("cls"), "adapters"] == 10 and table.loc[title("dset"), "adapters"] == 1
    assert table.loc[title("cls"), "adapter steps"] == 10 * 80  # 40 epochs of two batches
    assert "redraws" in table.loc[title("disef"), "extra models"]
    assert table.loc[title("dset"), "extra models"] == ""
    assert table.loc[title("protoaug"), "extra models"] == "the untouched classifier, for the loss"
    assert "the IP-Adapter ip-adapter-plus_sd15" in table.loc[title("dipsy"), "extra models"]
    assert "for classes that look alike" in table.loc[title("contrast"), "extra models"]


def test_what_chooses_by_validation_images_is_told(table):
    chosen = table.index[table["chosen on validation"]]
    assert {title(name) for name in ("tip", "tipf", "probe", "crossmodal")} <= {*chosen}
    assert title("dset+real") not in chosen


def test_a_record_holds_the_work_of_its_cell(make, store):
    record = run.run(make("dset+real"), store)
    (file,) = store.records.glob("*.json")
    assert read_record(file)["work"] == record["work"]
    assert record["work"]["adapt"]["artifacts"] == 1
    assert record["work"]["generate"]["images"] == 5 * 3
    assert set(record["work"]) == {"adapt", "generate", "train", "judge"}
