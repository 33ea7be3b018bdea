"""Notebooks of one's own, and parameters as papermill's command line hands them over."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT, write_classes
from papermill.cli import papermill

from datadream.errors import ConfigError
from datadream.study import cells, named_runs, notebook, papermill_runs
from datadream.study.parameters import as_meant, assigned

ANNOTATED = """\
# Values for use by hand.
shots: int = 4  # per class
folder: "str | None" = None
seeds: list[int] = [0]
lr: float = 1e-3
note = "a = b"
methods = []  # e.g. x=3
later: int
"""
TOLD = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write(folder, name, source, parameters=ANNOTATED, metadata=None):
    """Write a notebook with a cell of parameters and another cell."""
    folder.mkdir(parents=True, exist_ok=True)
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    made = nbformat.v4.new_notebook(
        cells=[tagged, nbformat.v4.new_code_cell(source)],
        metadata={"kernelspec": TOLD} if metadata is None else metadata,
    )
    nbformat.write(made, folder / f"{name}.ipynb")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty project folder, with a space in its path, that the package takes for its
    own.
    """
    folder = tmp_path / "my home"
    monkeypatch.setenv("DATADREAM_HOME", str(folder))
    (folder / "book" / "runs").mkdir(parents=True)
    return folder


def printed(page):
    found = json.loads(page.read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in found for o in cell.get("outputs", []))


def test_annotated_parameters_are_parameters(home):
    write(home / "notebooks", "mine", "")
    assert named_runs.page_parameters("mine") == {
        **{"shots": 4, "folder": None, "seeds": [0], "lr": 1e-3, "note": "a = b", "methods": []},
        "later": None,
    }
    notebook.check_parameters(["", ANNOTATED, "# Parameters\nshots = 8\nlater = 2\nfolder = 'x'\n"])
    with pytest.raises(ConfigError, match="'shot' is not a parameter.*Did you mean 'shots'"):
        notebook.check_parameters(["", ANNOTATED, "# Parameters\nshot = 8\n"])


def test_a_cell_of_parameters_may_have_magics_and_pairs():
    names = assigned("%matplotlib inline\na, b = 1, 2\n!ls\nc: int = 3\nd = e = 4")
    assert list(names) == ["a", "b", "c", "d", "e"]


METADATA = [
    {"kernelspec": {"name": "my-env", "display_name": "My env", "language": "python"}},
    {"kernelspec": {"name": "conda-env-x-py", "display_name": "x"}},
    {"kernelspec": TOLD},
    {"language_info": {"name": "python"}},
    {},
]


@pytest.mark.parametrize("metadata", METADATA, ids=str)
def test_a_kernel_that_this_machine_lacks_is_replaced_by_the_own_interpreters(home, metadata):
    source = "import sys\nprint(sys.executable, shots)"
    write(home / "notebooks", "mine", source, metadata=metadata)
    runs = home / "book" / "runs"
    status, _, note = papermill_runs.execute("run", {"notebook": "mine"}, {"shots": 7}, runs)
    assert status == "done", note
    assert os.path.samefile(printed(runs / "run.ipynb").split(" 7")[0], sys.executable)


@pytest.mark.parametrize(
    "value, default, meant",
    [
        (2024, "", "2024"),
        ("4", 16, 4),
        ("1e3", 16, 1000),
        ("1e-3", 0.5, 1e-3),
        ("0.5", 1, 0.5),  # for the recipe to refuse
        ('{"adapt.rank": 4}', {}, {"adapt.rank": 4}),
        ("[0, 1]", [0], [0, 1]),
        ("[real, dset]", None, ["real", "dset"]),
        ("mnist", None, "mnist"),
        ("x", 16, "x"),
        (True, "", True),
        (3, [0], 3),
        ("[a]", "", "[a]"),
    ],
)
def test_a_value_is_brought_into_the_kind_of_its_default(value, default, meant):
    found = as_meant(value, default)
    assert found == meant and type(found) is type(meant)


def test_lists_and_values_may_be_texts():
    (one, two) = cells.cells("[real]", "[0, 1]")
    assert (one.method, one.seed, two.seed) == ("real", 0, 1)
    text = named_runs.axis_cells("adapt.lr", '["1e-3", 0.002]', '{"shots": 2}', methods=["dset"])
    assert [some[0].adapt.lr for some in text.values()] == [1e-3, 2e-3]
    assert {some[0].shots for some in text.values()} == {2}


def test_a_study_file_may_say_1e_3(home):
    template = (ROOT / "notebooks" / "dataset.ipynb").read_text()
    (home / "notebooks").mkdir()
    (home / "notebooks" / "dataset.ipynb").write_text(template)
    text = "runs: {a: {notebook: dataset, parameters: {overrides: {adapt.lr: 1e-3}}}}\nsmoke: {}"
    (home / "notebooks" / "study.yaml").write_text(text)
    (found,) = named_runs.cells_of(named_runs.load_study()["runs"]["a"]).values()
    assert {one.adapt.lr for one in found} == {1e-3}


@pytest.mark.parametrize("place", ["2024", "~/my photos"])
def test_the_photo_notebook_takes_any_folder_from_papermills_command_line(
    tmp_path, monkeypatch, place
):
    """`-p folder 2024` is a number, and no shell expands a "~" in quotes."""
    write_classes(tmp_path / place.removeprefix("~/"), ["cat", "dog"], 2)
    source = (ROOT / "notebooks" / "your_data.ipynb").read_text()
    content = nbformat.reads(source, 4)
    place_of = next(i for i, c in enumerate(content.cells) if "photos.inspect" in c.source)
    content.cells = content.cells[: place_of + 1]
    content.cells.append(nbformat.v4.new_code_cell("print(type(overrides), settings)"))
    nbformat.write(content, tmp_path / "photos.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    command = ["photos.ipynb", "out.ipynb", "--no-progress-bar", "-p", "folder", place]
    done = CliRunner().invoke(papermill, [*command, "-p", "overrides", '{"adapt.lr": "1e-3"}'])
    assert done.exit_code == 0, done.exception
    assert "<class 'dict'>" in printed(tmp_path / "out.ipynb")


@pytest.mark.long
def test_the_dataset_page_takes_one_number_of_shots_or_several(tmp_path):
    """Several give a curve in place of the dots, and a table for each number."""
    pages = {}
    tiny = yaml.safe_load((ROOT / "notebooks" / "study.yaml").read_text())["smoke"]["dataset"]
    for shots in (2, [1, 2]):
        values = {**tiny, "shots": shots, "seeds": [0], "methods": ["real", "base+real"]}
        page = tmp_path / "page.ipynb"
        command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        command += [str(ROOT / "notebooks" / "dataset.ipynb"), str(page), "-y", str(values)]
        place = {"DATADREAM_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs = [one for cell in nbformat.read(page, 4).cells for one in cell.get("outputs", [])]
        told = [one["data"].get("text/markdown", "") for one in outputs if "data" in one]
        pages[str(shots)] = [text for text in told if re.search(r"shots? per class\*\*$", text)]
    assert pages == {"2": [], "[1, 2]": ["**1 shot per class**", "**2 shots per class**"]}
