"""Tables and lists on pages: whatever text they are given, a reader sees that text."""

import re
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from datadream.results.tables import Link, bullets, escape_markdown, show_table

# HTML has no control characters or halves of surrogate pairs, and "\r" is a line's end in it.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)
ODD = [
    "train/<wnid>/",
    "<b>bold</b>",
    "a & b",
    "&lt;",
    "$x^2$",
    "`code`",
    "[x](y)",
    "a | b",
    "{{ a }}",
    "<NA>",
    "<!-- a -->",
    "</table>",
]
MARKDOWN = create_md_parser(
    MdParserConfig(
        enable_extensions={"amsmath", "colon_fence", "deflist", "dollarmath", "substitution"}
    ),
    RendererHTML,
)


def cells(styler):
    """Return the texts of a table's cells by tag, as a browser has them."""
    soup = BeautifulSoup(styler.to_html(), "html.parser")
    assert {tag.name for tag in soup.find_all()} <= {
        "style",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    return {
        tag: [cell.get_text() for cell in soup.find_all(tag)] for tag in ("td", "th", "caption")
    }


@given(*[TEXTS] * 5)
@example(*ODD[:5])
@example(*ODD[5:10])
@example(*ODD[7:12])
def test_a_table_shows_any_text_as_it_is(cell, column, row, name, caption):
    frame = pd.DataFrame({column: [cell]}, index=pd.Index([row], name=name))
    shown = cells(show_table(frame, index=True, caption=caption))
    assert shown["td"] == [cell]
    assert {column, row, name} <= set(shown["th"])
    assert shown["caption"] == ([caption] if caption else [])


@pytest.mark.parametrize(
    "value", [Path("a/<b>"), ["<b>", 1], {"<b>": "&"}, ValueError("<b> & $x$")]
)
def test_what_is_no_text_is_shown_as_its_text(value):
    frame = pd.DataFrame({"a": pd.Series([value, 1], dtype=object)})
    assert cells(show_table(frame))["td"] == [str(value), "1"]


@pytest.mark.parametrize("value", [None, pd.NA, pd.NaT, float("nan")])
@pytest.mark.parametrize("others", [[], [1.5], ["text"]])
def test_a_missing_value_is_a_dash(value, others):
    frame = pd.DataFrame({"a": pd.Series([value, *others], dtype=object)})
    assert cells(show_table(frame, precision=1))["td"] == ["-", *map(str, others)]
    assert cells(show_table(frame.convert_dtypes(), {"a": "{}"}))["td"][0] == "-"


@pytest.mark.parametrize(
    "index, shown",
    [(None, False), ([4, 2], False), (pd.Index([4, 2], name="seed"), True), (["H200", "L4"], True)],
)
def test_an_index_is_shown_unless_it_only_numbers_the_rows(index, shown):
    frame = pd.DataFrame({"hours": [1, 2]}, index=index)
    assert (len(cells(show_table(frame))["th"]) > 1) == shown
    assert len(cells(show_table(frame, index=True))["th"]) > 1


def test_numbers_keep_their_formats_and_the_index_is_hidden():
    frame = pd.DataFrame({"name": ["<b>"], "hours": [1.25], "count": [3]})
    assert cells(show_table(frame, {"hours": "{:.1f}"}))["td"] == ["<b>", "1.2", "3"]
    assert cells(show_table(frame, precision=3))["td"] == ["<b>", "1.250", "3"]
    assert cells(show_table(frame))["th"] == ["name", "hours", "count"]


def test_headers_of_several_levels_are_escaped():
    columns = pd.MultiIndex.from_tuples([("<a>", "<b>"), ("<a>", "&")], names=["<top>", None])
    shown = cells(show_table(pd.DataFrame([[1, 2]], columns=columns), index=True))
    assert {"<a>", "<b>", "&", "<top>"} <= set(shown["th"])


@given(TEXTS, TEXTS)
def test_a_link_shows_its_text_and_leads_to_its_address(text, path):
    frame = pd.DataFrame({"name": [Link(text, f"https://example.org/{path}"), "none"]})
    soup = BeautifulSoup(show_table(frame).to_html(), "html.parser")
    (link,) = soup.find_all("a")
    assert (link.get_text(), link["href"]) == (text, f"https://example.org/{path}")
    assert [cell.get_text() for cell in soup.find_all("td")] == [text, "none"]


def test_mathjax_is_kept_out():
    assert (
        'class="tex2jax_ignore mathjax_ignore"'
        in show_table(pd.DataFrame({"a": ["$x$"]})).to_html()
    )


@given(TEXTS)
@example("- a")
@example("12. a")
@example("a\n\n# b")
@example("**a** _b_ `c` [d](e) <f> &amp; $g$ {h}`i` {{ j }} | ~~k~~ ![l](m)")
def test_a_list_shows_any_text_as_it_is(text):
    soup = BeautifulSoup(MARKDOWN.render(bullets([text]).data), "html.parser")
    assert {tag.name for tag in soup.find_all()} == {"ul", "li"}
    assert " ".join(soup.get_text().split()) == " ".join(text.split())


def test_no_lines_give_the_other_text_as_markdown():
    assert bullets([], "*none*").data == "*none*"
    assert bullets(["a", "b"]).data == "- a\n- b"
    assert escape_markdown("a_b") == r"a\_b"


def sources():
    """Return the code of the package, the notebooks and the book's pages by file."""
    files = [
        *(ROOT / "datadream").rglob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "book").rglob("*.md"),
    ]
    return {str(file): file.read_text() for file in files if file.name != "tables.py"}


def test_no_page_shows_a_table_in_another_way():
    other = re.compile(
        r"\.style\.(hide|format|set_|map|apply|background|bar)|\.style\b\)|\.to_html\(|\.to_markdown\("
    )
    assert not [name for name, text in sources().items() if other.search(text)]
