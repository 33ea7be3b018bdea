"""The Sphinx extension of the methods' pages, in a project of three pages."""

import html
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "book" / "_ext"))
import method_pages

INDEX = """# Methods

```{toctree}
bob
bab
```

```{method-table}
```

```{raw} html
<table><tr><td>BOB + real</td><td>BOB</td><th>BOB</th></tr></table>
```
"""
PAGE = (
    "# A method\n\n```{method-summary} NAME\n```\n\nProse {cite:p}`yang2025bob`.\n\n"
    "```{method-page} NAME\n```\n"
)


def build(home, names, **environ):
    """Build a book of the overview and some methods' pages; return Sphinx's warnings."""
    pages = home / "book" / "methods"
    pages.mkdir(parents=True)
    (home / "datadream").symlink_to(ROOT / "datadream")
    (home / "book" / "samples").symlink_to(ROOT / "book" / "samples")
    (pages / "index.md").write_text(INDEX.replace("bob\nbab", "\n".join(names)))
    for name in names:
        (pages / f"{name}.md").write_text(PAGE.replace("NAME", name))
    settings = {
        "extensions": [
            "myst_nb", "sphinx_design", "sphinxcontrib.bibtex", "method_pages", "complete",
        ],
        "root_doc": "book/methods/index",
        "bibtex_bibfiles": [str(ROOT / "book" / "references.bib")],
        "nb_execution_mode": "off",
        "exclude_patterns": ["datadream"],
        # what the pages of a whole book hold
        "suppress_warnings": ["myst.domains", "myst.xref_missing", "ref.doc", "bibtex"],
    }  # fmt: skip
    # A process of its own: Sphinx and its parsers register themselves in the one that builds.
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    lines.insert(0, f"import sys; sys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})")
    (home / "conf.py").write_text("\n".join(lines))
    words = ["-m", "sphinx", "-q", "-E", "-a", "-b", "html", "-d", home / "trees"]
    words += [home, home / "out"]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=os.environ | environ
    )
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a book of a page and one of an unknown method; return Sphinx's environment, its
    warnings and the folder of the pages.
    """
    home = tmp_path_factory.mktemp("book")
    warnings = build(home, ("bob", "bab"))
    found = pickle.loads((home / "trees" / "environment.pickle").read_bytes())
    return found, warnings, home / "out" / "book" / "methods"


def test_a_page_has_sections_tables_and_the_code(site):
    found, warnings, out = site
    page = html.unescape((out / "bob.html").read_text())
    heads = [re.sub("<.*?>", "", found).strip("¶#") for found in re.findall("<h2>(.*?)</h2>", page)]
    assert heads == [
        "Methods in this file", "The published recipe, and ours", "Settings of its own",
        "What it costs", "Numbers", "Sample images", "The code",
    ]  # fmt: skip
    assert "Synthetic images of BOB, Optical digits, 4 shots" in page
    assert page.index("In short") < page.index("Prose ") < page.index("Methods in this")
    assert "generate.guidance" in page and "class Bob" in re.sub("<.*?>", "", page)
    contents = found.tocs["book/methods/bob"].astext()
    assert all(head in contents for head in heads), "the list of sections beside the page"
    assert not [line for line in warnings if "WARNING" in line and "bab.md:" not in line], warnings


def test_titles_in_tables_lead_to_pages_that_are_there(site):
    index = (site[2] / "index.html").read_text()
    assert '<td><a href="bob.html">BOB + real</a></td><td><a href="bob.html">BOB</a></td>' in index
    assert "<th>BOB</th>" in index


def test_the_overview_lists_what_the_package_has(site):
    index = html.unescape((site[2] / "index.html").read_text())
    assert "Draw every class in the contexts of all classes" in index and "loft.py" in index


def test_an_unknown_name_is_told_with_those_that_are_known(site):
    told = [line for line in site[1] if "bab.md:" in line]
    assert len(told) == 2
    assert all("'bab' is not a file of methods; accepted: zero_shot," in line for line in told)


def test_the_search_knows_each_method_by_its_title(site):
    text = (site[2].parents[1] / "searchindex.js").read_text()
    index = json.loads(text.partition("(")[2].rpartition(")")[0])
    page = index["docnames"].index("book/methods/bob")
    assert index["alltitles"]["BOB"] == [[page, "method-bob"]]
    for title in ("BOB", "BOB + real"):
        assert index["indexentries"][title.lower()] == [[page, "method-bob", True]]


def test_a_page_without_records_or_samples_is_told(tmp_path):
    (tmp_path / "nothing").mkdir()
    told = build(tmp_path, ("bob", "dipsy"), DATADREAM_HOME=str(tmp_path / "nothing"))
    (line,) = [line for line in told if "WARNING" in line]
    assert "bob.md" in line and "missing in 2 places" in line, "DIPSY has no model to be run by"


def test_a_link_replaces_a_cell_that_holds_a_title_alone():
    pages = {"Real only": "real.html", "A &amp; B": "ab.html"}
    for before, after in {
        "<td>Real only</td>": '<td><a href="real.html">Real only</a></td>',
        '<th class="row_heading">A &amp; B</th>':
            '<th class="row_heading"><a href="ab.html">A &amp; B</a></th>',
        "<td>Real only, heavy</td>": None,
        '<th class="col_heading">Real only</th>': None,
        "<td><b>Real only</b></td>": None,
        "<p>Real only</p>": None,
    }.items():  # fmt: skip
        assert method_pages.linked(before, pages) == (after or before)
