"""The Sphinx extension of the data's pages, in a project of a few pages."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from datadream.data.predictions import Predictions
from datadream.publish import freeze
from datadream.results import committed

KINDS = ("records", "columns", "predictions", "measures", "sets")
PAGES = {
    "book/index": "# Data\n\n```{toctree}\ndata\ndatasets/index\ndatasets/mnist\n"
    "study/mnist_16\nexecuted\n```\n",
    "book/data": "# Download\n\n" + "".join(f"```{{downloads}} {kind}\n```\n\n" for kind in KINDS),
    "book/datasets/index": "# All\n\n```{dataset-table}\n```\n",
    "book/datasets/mnist": "# MNIST\n\n```{dataset-pages} mnist\n```\n",
    "book/study/mnist_16": "# Every method on MNIST\n",
}
SETTINGS = {
    "extensions": ["myst_nb", "sphinx_design", "method_pages", "data_pages", "complete"],
    "root_doc": "book/index",
    "nb_execution_mode": "off",
    # what the pages of a whole book hold
    "suppress_warnings": ["myst.domains", "myst.xref_missing", "ref.doc"],
}


def build(home, pages):
    """Build a book of some pages on two cores; return Sphinx's exit status and its warnings."""
    for page, text in pages.items():
        (home / page).parent.mkdir(parents=True, exist_ok=True)
        (home / f"{page}.md").write_text(text)
    lines = [f"{name} = {value!r}" for name, value in SETTINGS.items()]
    lines.insert(0, f"import sys; sys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})")
    (home / "conf.py").write_text("\n".join(lines))
    words = ["-q", "-E", "-a", "-j", "2", "-b", "html", "-d", home / "trees", home, home / "out"]
    # A process of its own: Sphinx and its parsers register themselves in the one that builds.
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"DATADREAM_HOME": str(home)},
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a project with the committed records and predictions of one result."""
    place = tmp_path_factory.mktemp("book")
    (place / "book" / "study").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "study" / "records.jsonl", place / "book" / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATADREAM_HOME", str(place))
        found = Predictions(np.array([0, 1]), np.array([0, 0]), np.ones(2))
        committed.write_committed("mnist", 4, {"judge-1": found})
    said = nbformat.v4.new_output("display_data", data={"text/markdown": freeze.MISSING})
    cells = [
        nbformat.v4.new_markdown_cell("# Executed"),
        nbformat.v4.new_code_cell("say()", outputs=[said]),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}},
        ),
        place / "book" / "executed.ipynb",
    )
    return place


@pytest.fixture(scope="module")
def site(home):
    status, warnings = build(home, PAGES)
    told = [line for line in warnings.splitlines() if "WARNING" in line]
    assert status == 0 and all("piece of the study is missing" in line for line in told), warnings
    # Warnings fail `make book`, so that it is not published with holes in it.
    assert {
        line.partition(": WARNING")[0].rpartition("/")[2]: "2 places" in line for line in told
    } == {"data.md": True, "executed.ipynb": False}
    return home / "out"


def parsed(file):
    return BeautifulSoup(file.read_text(), "html.parser")


def test_each_file_can_be_downloaded_from_the_built_page(site, home):
    page = site / "book" / "data.html"
    files = {}
    for link in parsed(page).select("a.download"):
        file = (page.parent / link["href"]).resolve()
        assert site in file.parents, "it works from a disk too"
        files[link.get_text()] = file
    sources = {
        "records.parquet": "generated", "records.csv": "generated", "records.jsonl": "study",
        "mnist-4.parquet": "study/predictions",
    }  # fmt: skip
    assert set(files) == set(sources)
    for name, folder in sources.items():
        assert files[name].read_bytes() == (home / "book" / folder / name).read_bytes()
    lines = (home / "book" / "study" / "records.jsonl").read_text().splitlines()
    assert len(pd.read_parquet(files["records.parquet"])) == len(lines)


def test_what_is_not_committed_is_said_on_the_page(site):
    text = parsed(site / "book" / "data.html").get_text()
    assert text.count("is not in the repository yet") == 2, "measures and sets"


def test_a_dataset_s_page_links_the_executed_pages_of_the_book_alone(site):
    tables = parsed(site / "book" / "datasets" / "mnist.html").select("table.results")
    (link,) = [a for table in tables for a in table.select("a")]
    assert link["href"] == "../study/mnist_16.html"
    assert link.get_text() == "Every method on MNIST"


def test_the_overview_links_the_dataset_s_page(site):
    page = parsed(site / "book" / "datasets" / "index.html")
    linked = {a.get_text(): a["href"] for a in page.select("table a")}
    assert linked["mnist"] == "mnist.html" and linked["dtd"].startswith("https://")
    assert "optdigits" not in linked, "its page is not in this book"


def test_without_a_page_of_downloads_nothing_is_written(tmp_path):
    (tmp_path / "book").mkdir()
    status, _ = build(tmp_path, {"book/index": "# Data\n"})
    assert status == 0 and not (tmp_path / "book" / "generated").exists()


def test_an_unknown_name_is_told_with_those_that_are_known(tmp_path):
    page = "# Data\n\n```{downloads} recrods\n```\n\n```{dataset-pages} minst\n```\n"
    _, warnings = build(tmp_path, {"book/index": page})
    text = re.sub(r"\s+", " ", warnings)
    assert "'recrods' is not a kind; accepted: records, columns" in text
    assert "'minst' has no page; accepted: mnist, optdigits" in text
