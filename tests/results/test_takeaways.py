"""What an executed page sums up at its top."""

import pandas as pd
import pytest

from datadream.results import records, takeaways


def table(gain=0.1, seeds=(0, 1, 2), protocol="strict"):
    """Return accuracies of three methods at one and four shots; `gain` is of dset+real."""
    rows = [
        (shots, method, seed, 0.5 + 0.01 * seed * shots + gain * (method == "dset+real"))
        for shots in (1, 4)
        for method in ("clip", "real", "dset+real")
        for seed in seeds
    ]
    found = pd.DataFrame(rows, columns=["shots", "method", "seed", "top1"])
    return found.assign(dataset="mnist", protocol=protocol, val_top1=found["top1"])


def test_the_best_on_validation_is_named_with_its_test_accuracy():
    test = table().assign(top1=lambda rows: rows["top1"] - 0.2)
    best, gain, *more = takeaways.of_dataset(test)
    assert best.startswith("With 1 shot per class, DataDream (dataset) + real is best")
    assert "reaches 41.0 % on the test images" in best
    assert "1 shot: +10.0 points over 3 seeds (95 % interval +10.0 to +10.0)" in gain
    assert len(more) == 2 and "4 shots" in more[0]


def test_one_seed_has_no_interval():
    assert takeaways.of_dataset(table(seeds=[0]))[1].endswith(": +10.0 points on one seed.")
    rows = takeaways.pairs_table(table(seeds=[0]), [("dset+real", "real"), ("cls", "base")])
    assert rows["95 % interval"].tolist() == ["-", "-"] and rows["Shots"].tolist() == ["1", "4"]


def test_the_released_protocol_is_said_first():
    assert takeaways.of_dataset(table(protocol="released"))[0] == records.RELEASED


@pytest.mark.parametrize("gain", [-0.2, 0.0, 0.2])
def test_a_page_does_not_say_what_is_detected(gain):
    said = " ".join(takeaways.of_dataset(table(gain)))
    assert "detected" not in said


def test_the_contexts_are_summed_up_over_seeds():
    asked = pd.DataFrame(
        [("bob", name, seed, level + 0.01 * seed)
         for name, level in (("slant", 0.0), ("size", 0.5)) for seed in range(3)],
        columns=["method", "attribute", "seed", "correlation"],
    )  # fmt: skip
    linked = pd.DataFrame(
        [("BOB", seed, name, bits) for name, bits in (("slant", 0.2), ("size", 0.3))
         for seed in range(3)],
        columns=["images of", "seed", "attribute", "accidental"],
    )  # fmt: skip
    first, second = takeaways.of_contexts(asked, linked)
    assert "is +0.01 to +0.51 on average; 1 of 2 intervals exclude zero" in first
    assert second.endswith("in bits: BOB 0.50.")
    assert len(takeaways.of_contexts(asked[:0], linked)) == 1
