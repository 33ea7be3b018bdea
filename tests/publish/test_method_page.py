"""The pages of the methods: one for each file, with what the registry and the records say."""

import re
from importlib import import_module

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from datadream.config import as_dict
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.publish import freeze, kept_sets, method_page
from datadream.results import comparison, records
from datadream.statistics import wilson

PAGES = {page.stem: page.read_text() for page in (ROOT / "book" / "methods").glob("*.md")}
FILES = method_page.method_files()


def record(method, seed, top1, shots=4):
    """Return a committed record, as far as a page reads it."""
    low, high = wilson(round(200 * top1), 200)
    part = {"top1": top1, "low": low, "high": high, "total": 200, "per_class": [], "confusion": []}
    return {
        "key": f"{method}-{seed}", "curve": [], "seconds": {}, "artifacts": {}, "commit": "abc",
        "recipe": as_dict(recipe(method=method, seed=seed, dataset="mnist", shots=shots)),
        "result": {"test": part, "val": part}, "created": "2026-01-01", "dirty": False,
        "device": "a CPU",
    }  # fmt: skip


def committed(*some):
    return records.in_profile(records.tidy(some).assign(run="mnist_4"))


def rows(markdown):
    """Return the cells of a Markdown table's body."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_method_of_the_package_has_a_page_and_every_page_its_methods():
    shipped = {}
    for path in (ROOT / "datadream" / "methods").glob("*.py"):
        own = getattr(import_module(f"datadream.methods.{path.stem}"), "METHODS", None)
        shipped |= {path.stem: {one.name for one in own}} if isinstance(own, tuple) else {}
    assert {name: {one.name for one in file.methods} for name, file in FILES.items()} == shipped
    assert PAGES.keys() - {"index"} == shipped.keys()
    twins = {"bob": ["bob", "bob+real"], "protoaug": ["protoaug", "protoaug_light"]}
    assert {name: FILES[name].names for name in twins} == twins
    for name, text in PAGES.items():
        for directive in ("method-summary", "method-page"):
            said = re.findall(rf"```\{{{directive}\}} (\w+)", text)
            assert said == [name] * (name != "index")


def test_the_contents_list_the_pages_in_the_registrys_order():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [one for part in contents["parts"] for one in part["chapters"]]
    (own,) = [one for one in chapters if one["file"] == f"{method_page.PAGES}/index"]
    assert [one["file"] for one in own["sections"]] == [f"{method_page.PAGES}/{n}" for n in FILES]


@pytest.mark.parametrize("name", FILES)
def test_a_page_explains_its_method_and_cites_what_the_registry_cites(name):
    prose = PAGES[name].partition("```{method-page}")[0]
    assert set(FILES[name].citations) <= set(re.findall(r"\{cite:[pt]\}`([\w,]+)`", prose))
    assert prose.startswith("# ") and 3 <= len(re.findall(r"[.:?](?=\s)", prose)) <= 14
    assert FILES[name].idea and len(FILES[name].idea) < 80, "the docstring: name (source): idea"


def test_settings_are_those_of_the_registry_beside_the_profiles():
    found = {row[0]: row[1:] for row in rows(method_page.settings_text(FILES["disef"]))}
    assert found["`generate.redraws`"] == ["4 (0)", "12 (0)"]
    assert found["`generate.guidance`"] == ["1.0", "8.0 (2.0)"]
    assert method_page.settings_text(FILES["datadream"]).startswith("None")
    by_method = {tuple(row[:2]) for row in rows(method_page.settings_text(FILES["tip"]))}
    assert ("`classify.lr`", "Tip-Adapter-F") in by_method
    assert ("`validation`", "all") in by_method


def test_costs_are_those_of_the_table_that_the_deviations_show():
    found = {row[0]: row[1:] for row in rows(method_page.costs_text(FILES["datadream"]))}
    assert found["Adapters of the generator"] == ["10", "1"]
    assert found["Passes of the generator"] == ["6,000", "6,000"]
    assert "loss" in method_page.costs_text(FILES["protoaug"])


def test_numbers_stand_beside_the_real_images_alone():
    pairs = [("real", 0.5), ("bob+real", 0.7), ("loft", 0.5)]
    some = [record(m, seed, top1 + 0.01 * seed) for m, top1 in pairs for seed in range(3)]
    some += [record("loft", 5, 0.9), record("bob", 0, 0.4)]
    table = committed(*some)
    alone, with_real = rows(method_page.numbers_text(FILES["bob"], table))
    assert alone[:2] == ["MNIST, 4 shots", "BOB"]
    assert alone[3:] == ["1", "50.0", "-10.0", "not detected"]
    assert with_real[3:] == ["3", "51.0", "+20.0 (+20.0\xa0to\xa0+20.0)", "more"]
    (loft,) = rows(method_page.numbers_text(FILES["loft"], table))
    assert loft[3:5] == ["3", "51.0"] and loft[-1] == "not detected"
    (base,) = rows(method_page.numbers_text(FILES["real"], table))
    assert len(base) == 4


def test_only_pages_of_the_book_are_linked():
    table = committed(record("bob", 0, 0.5))
    said = [method_page.numbers_text(FILES["bob"], table, p) for p in ((), {"book/study/mnist_4"})]
    assert ["{doc}`/book/study/mnist_4`" in text for text in said] == [False, True]


def test_the_protocol_of_the_released_code_is_left_out():
    table = committed(record("bob", 0, 0.5)).assign(protocol="released")
    assert freeze.MISSING in method_page.numbers_text(FILES["bob"], table)


def test_a_method_that_could_have_a_record_or_a_sample_lacks_a_piece_of_the_study(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    table = committed(record("genie", 0, 0.5), record("genie_dset+real", 0, 0.5))
    said = method_page.numbers_text(FILES["genie"], table)
    assert said.startswith(f"**GeNIe, strength chosen**: {freeze.MISSING}")
    assert said.count(freeze.MISSING) == 1 and len(rows(said)) == 2
    assert method_page.samples_text(FILES["genie"]).count(freeze.MISSING) == 3
    assert method_page.refused() == {"dipsy"}
    assert method_page.numbers_text(FILES["dipsy"], table) == method_page.REFUSED
    assert method_page.samples_text(FILES["dipsy"]) == ""


def test_the_box_compares_with_real_images_as_the_results_page_does():
    every = freeze.load_compared()
    main = freeze.load_frozen("comparison")
    found = method_page.against_base(main, every).set_index("method")["detected"].to_dict()
    rest = [name for name in dict.fromkeys(every["method"]) if METHODS[name].real]
    rest = [name for name in rest if name not in {*main["method"]}]
    own = every[every["method"].isin(["real", *rest])]
    wanted = [comparison.averaged(main, "real"), comparison.averaged(own, "real", rest)]
    assert found == pd.concat(wanted).set_index("method")["detected"].to_dict()
    assert rest and "bob" not in found


def test_the_box_has_the_idea_the_gain_and_the_minutes():
    pairs = [("real", 0.5), ("bob+real", 0.7)]
    table = committed(*(record(m, seed, top1) for m, top1 in pairs for seed in range(3)))
    table["seconds"] = [60.0 if method == "bob+real" else 1.0 for method in table["method"]]
    found = method_page.against_base(table, table)
    lines = method_page.summary_text(FILES["bob"], found, table).splitlines()
    assert lines[:3] == [
        "```{admonition} In short", ":class: tip",
        "- Draw every class in the contexts of all classes.",
    ]  # fmt: skip
    assert lines[3].startswith("- *BOB + real* minus *Real only*: +20.0 points on average over 1 ")
    assert lines[3].endswith("; a gain is detected.") and "3 seeds" in lines[3]
    assert lines[4].startswith("- Cost: 1.0 minutes per seed")
    real = method_page.summary_text(FILES["real"], found, table)
    assert "is the baseline of" in real and "less than 0.1 minutes" in real
    assert "No committed record" in method_page.summary_text(FILES["loft"], found, table)
    assert method_page.REFUSED in method_page.summary_text(FILES["dipsy"], found, table)
    nothing = method_page.against_base(table.iloc[:0], table.iloc[:0])
    assert nothing.empty and method_page.summary_text(FILES["bob"], nothing, table.iloc[:0])


def test_each_method_of_a_file_has_its_name_and_title():
    ((name, titles, text),) = method_page.methods_text(FILES["bob"])
    assert (name, titles) == ("bob", ["BOB", "BOB + real"])
    assert text.startswith("`bob` in commands and records. Real images are used to tune the ")
    assert "`bob+real` is trained on the few real images too" in text
    ((_, titles, text),) = method_page.methods_text(FILES["zero_shot"])
    assert titles == ["CLIP zero-shot"] and text.endswith("Real images are not used.")
    assert [titles for _, titles, _ in method_page.methods_text(FILES["tip"])] == [
        ["Tip-Adapter"],
        ["Tip-Adapter-F"],
    ]


def test_a_committed_sample_is_shown_with_an_alternative_text(monkeypatch, tmp_path):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    assert method_page.samples_text(FILES["tip"]) == ""
    for name in ("bob", "shots"):
        file = kept_sets.sheet_file("mnist", 4, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    found = method_page.samples_text(FILES["bob"])
    assert "/book/samples/mnist/4/bob.png" in found and "/book/samples/mnist/4/shots.png" in found
    assert ":alt: Synthetic images of BOB, MNIST, 4 shots" in found
    assert ":alt: Real images, MNIST, 4 shots" in found


def test_the_overview_has_a_row_for_each_file():
    found = {row[3].strip("`"): row for row in rows(method_page.overview())}
    assert found.keys() == {f"{name}.py" for name in FILES}
    assert found["datadream.py"][2] == "to tune the generator"
    assert found["diffmix.py"][2] == "to tune the generator and to start images from"
    assert found["zero_shot.py"][2] == found["unadapted.py"][2] == "not at all"
    text = (ROOT / "datadream" / "methods" / "bob.py").read_text()
    assert found["bob.py"][4] == str(text.count("\n"))


def test_a_table_has_a_line_for_each_row():
    made = method_page.markdown_table(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert rows(made) == [["1", "x"], ["2", "y"]]
