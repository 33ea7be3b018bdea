"""The table of methods: what registers, what a package adds, and how a faulty method ends."""

import dataclasses
import importlib.metadata
import json
import pickle
import subprocess
import sys

import pytest

from datadream.config import as_dict
from datadream.errors import ConfigError
from datadream.methods import checked, registry
from datadream.methods.base import Adapter, Draw, Method
from datadream.methods.datadream import DatasetWise
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS, Table, method_of, register, with_real
from datadream.pipeline.stages import Cell, stage_of
from datadream.results import plots
from datadream.results.records import load_records, summary
from datadream.study import run
from datadream.study.plan import plan


class Own(DatasetWise):
    """A method of somebody else, whose draws are not derived from prompts and adapters."""

    def draw(self, support, label, index, rng):
        return Draw(f"{support.classes[label]}, tone {rng.integers(9)}", (Adapter(),))


def inputs(recipe, dataset):
    """Return what the key of a synthetic set is made of."""
    return stage_of("generate").inputs(Cell(recipe, dataset), None)


OWN = Own("own", "Somebody's own", "#882255")


def test_the_table_has_the_fifteen_of_the_first_study_in_their_order():
    first = "clip real base cls dset base+real cls+real dset+real heavy issynth disef loft"
    assert list(METHODS)[:15] == [*first.split(), "issynth+real", "disef+real", "loft+real"]
    later = "bob genie genie_ada genie_dset diffmix issynth_rg contrast dipsy chimera dafusion"
    later = later.split()
    assert [name for name in METHODS if name in later] == later
    assert all(f"{name}+real" in METHODS and not METHODS[name].main for name in later)
    assert all(METHODS[name].name == name for name in METHODS)


def test_a_twin_differs_in_its_real_images_only():
    twin = with_real(METHODS["loft"])
    assert twin.real and twin.title == "LoFT + real"
    back = dataclasses.replace(twin, name="loft", title="LoFT", real=False)
    assert back == METHODS["loft"] and type(twin) is type(METHODS["loft"])


def test_a_method_of_one_s_own_runs_to_a_record_is_planned_tabled_and_plotted(
    make, dataset, store, registered
):
    registered(OWN)
    cells = [make("own"), make("own+real"), make("real")]
    assert set(plan(cells, store)["stage"]) == {"adapt", "generate", "train", "judge"}
    for one in cells:
        assert run.run(one, store)["recipe"]["method"] == one.method
    table = load_records(store.records)
    assert table["method"].tolist() == ["real", "own", "own+real"]
    assert "Somebody's own + real" in summary(table)["title"].tolist()
    plots.plot_main_table(summary(table))
    (folder,) = store.root.glob("generate-*")
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    assert all(", tone " in json.loads(line)["prompt"] for line in lines)
    assert len({json.loads(line)["prompt"] for line in lines}) > len(dataset.classes)


def test_what_a_method_of_one_s_own_draws_is_in_its_key(make, dataset, registered):
    """A class that is derived from one of ours inherits no promise that its draws are derived."""
    registered(OWN)
    before = inputs(make("own"), dataset)
    assert before["draws"] and "draws" not in inputs(make("dset"), dataset)

    class Other(Own):
        def draw(self, support, label, index, rng):
            return Draw(f"a {support.classes[label]}", (Adapter(),))

    registered(Other("own", "Somebody's own", "#882255"))
    checked.draws.cache_clear()
    assert inputs(make("own"), dataset)["draws"] != before["draws"]


def test_an_accept_of_one_s_own_and_its_version_are_in_the_key(make, dataset, registered):
    class Every(Own):
        def accept(self, images, label, read):
            return [True] * len(images)

    found = []
    for version in (1, 2):
        registered(Every("own", "Somebody's own", "#882255", version=version))
        found.append(inputs(make("own"), dataset)["accept"])
    assert found[0][-1] == 1 and found[1][-1] == 2 and found[0][:2] == found[1][:2]


FAULTS = {
    "no draw": (dict(draw=lambda *_: "a cat"), "draw of class 0, image 0: 'a cat' is a str"),
    "no text": (dict(draw=lambda *_: Draw(5)), "prompt=5; give printable text"),
    "a line break": (dict(draw=lambda *_: Draw("a\nb")), "give printable text"),
    "unknown adapter": (
        dict(draw=lambda *_: Draw("a", (Adapter(1),))),
        "is none of the 1 adapters that its `adapters` names",
    ),
    "unknown adapter by `used`": (
        dict(used=lambda *_: (Adapter(1),)),
        "is none of the 1 adapters that its `adapters` names",
    ),
    "start without strength": (
        dict(draw=lambda *_: Draw("a", (), 0)),
        "start=0, but generate.strength=0",
    ),
    "a raise": (dict(draw=lambda *_: 1 / 0), "failed in draw, class 0, image 0: ZeroDivisionError"),
    "adapters of a text": (dict(adapters=lambda *_: ["x"]), "adapters: 'x' is a str"),
    "adapters that raise": (dict(adapters=lambda *_: {}["a"]), "failed in adapters: KeyError"),
    "a class that is not there": (
        dict(adapters=lambda *_: [Adapter(9)]),
        "label is None or 0 to 2",
    ),
    "an image that is not there": (
        dict(adapters=lambda *_: [Adapter(0, 7)]),
        "image is None or 0 to 1",
    ),
    "an adapter twice": (dict(adapters=lambda *_: [Adapter(), Adapter()]), "appears twice"),
    "no prompt": (dict(prompts=lambda *_: []), "prompts of class 0: give at least one"),
    "a prompt that is no text": (dict(prompts=lambda *_: [None]), "give printable text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_method_ends_in_one_message_that_names_it(make, dataset, registered, fault):
    parts, message = FAULTS[fault]
    registered(type("Faulty", (DatasetWise,), parts)("faulty", "Faulty", "#882255"))
    with pytest.raises(ConfigError) as error:
        _ = Cell(make("faulty"), dataset).keys
    assert "method 'faulty'" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "method, message",
    [
        ("a name", "is a str; a method is an instance of"),
        (Method("a b", "A", "#882255"), "at most 60 letters"),
        (Method("own", "", "#882255"), "title='' of a method; give printable text"),
        (Method("own", "A", "red"), "colour='red' of method 'own'; give '#rrggbb'"),
        (Method("own", "A", "#882255", settings=[1]), "give a mapping"),  # pyright: ignore
        (Method("own", "A", "#882255", marker="dot"), "marker='dot' of method 'own'; give one of"),
        (Method("dset", "A", "#882255"), "there is a method 'dset' already"),
    ],
)
def test_what_is_no_method_is_not_registered(method, message):
    before = list(METHODS)
    with pytest.raises(ConfigError, match=message):
        register(method)
    assert list(METHODS) == before


def test_an_unknown_method_names_the_near_miss():
    with pytest.raises(ConfigError, match="method='dest' is unknown.*Did you mean 'dset'"):
        recipe(method="dest")
    with pytest.raises(ConfigError, match="method='dest' is unknown"):
        method_of(dataclasses.replace(recipe(), method="dest"))


def test_packages_add_methods_and_a_broken_one_hides_no_other(monkeypatch):
    class Entry:
        def __init__(self, name, load):
            self.name, self.value, self.load = name, f"package:{name}", load

    entries = [
        Entry("good", lambda: OWN),
        Entry("broken", lambda: 1 / 0),
        Entry(
            "several", lambda: [Method("one", "One", "#882255"), Method("two", "Two", "#882255")]
        ),
        Entry("wrong", lambda: [5]),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    table = Table()
    with pytest.warns(UserWarning, match="the entry point 'broken'.*ZeroDivisionError"):
        assert list(table)[-6:] == ["own", "own+real", "one", "one+real", "two", "two+real"]
    with pytest.raises(ConfigError, match=r"'broken' \(package:broken\).*'wrong'.*is a int"):
        table.find("broken")


def test_no_package_of_this_environment_adds_one():
    assert not importlib.metadata.entry_points(group=registry.GROUP)


def test_a_method_travels_to_other_processes():
    assert pickle.loads(pickle.dumps(METHODS["loft+real"])) == METHODS["loft+real"]


NOTEBOOK = """
import datadream
from datadream import Method
from datadream.methods.base import Draw
from datadream.study.run import run_cells
from datadream.store.artifacts import Store

class Own(Method):
    def draw(self, support, label, index, rng):
        return Draw(f"{support.classes[label]}, tone {rng.integers(9)}")

datadream.register(Own("own", "Own", "#882255"))
cells = [datadream.recipe(overrides={**VALUES, "method": "own", "seed": seed}) for seed in (0, 1)]
table = run_cells(cells, Store(STORE), **HOW)
assert table["method"].tolist() == ["own", "own"], table
"""


@pytest.mark.long
@pytest.mark.parametrize("how", [{"workers": 2}, {"engine": "ray"}], ids=["workers", "ray"])
def test_a_notebook_s_method_reaches_the_processes_that_share_its_cells(make, tmp_path, how):
    """Its class is in `__main__`, which no other process can import."""
    left_out = ("profile", "method", "seed")
    values = {name: v for name, v in as_dict(make("base")).items() if name not in left_out}
    script = f"VALUES, STORE, HOW = {values!r}, {str(tmp_path)!r}, {how!r}{NOTEBOOK}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
