"""Sphinx extension: what the page of a method shows, from the code and the committed records.

    ```{method-page} bob
    ```

stands for the sections of `datadream.publish.method_page` on `datadream/methods/bob.py`,
`{method-summary} bob` for what they come to in short, and `{method-table}` for the table of all
such files. They are made while Sphinx reads the page, which
then needs no kernel. In tables that other pages compute, a method's title links to its page.
"""

import re
from html import escape
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from datadream.paths import paths
from datadream.publish import method_page

CELL = re.compile(r"(<(td|th)\b([^>]*)>)([^<>]+)(?=</\2>)")


class Parsed(SphinxDirective):
    """A directive whose content is Markdown that the package writes."""

    def parsed(self, text: str) -> list[nodes.Node]:
        """Return the nodes of some Markdown, and note what the page then depends on."""
        self.env.note_dependency(str(paths()["kept_records"]))
        holder = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), "datadream"), 0, holder)
        return holder.children


class OfFile(Parsed):
    """A directive on a file of methods, which is its argument."""

    required_arguments = 1

    def file(self) -> method_page.MethodFile:
        """Return the file."""
        name, files = self.arguments[0], method_page.method_files()
        if name not in files:
            raise self.error(f"{name!r} is not a file of methods; accepted: {', '.join(files)}")
        return files[name]


class SummaryDirective(OfFile):
    """What a method's page comes to in short."""

    def run(self) -> list[nodes.Node]:
        """Return the box."""
        found, table = method_page.gains(), method_page.committed()
        return self.parsed(method_page.summary_text(self.file(), found, table))


class MethodDirective(OfFile):
    """The sections of a method's page."""

    def run(self) -> list[nodes.Node]:
        """Return a section with a heading for each method, and those about all of them."""
        file = self.file()
        methods = self.section("Methods in this file")
        for name, titles, text in method_page.methods_text(file):
            methods += self.method(f"method-{nodes.make_id(name)}", titles, text)
        rest = method_page.sections(file, self.env.found_docs)
        return [methods, *(self.section(heading, text) for heading, text in rest)]

    def method(self, anchor: str, titles: list[str], text: str) -> nodes.section:
        """Return the section of one method, which the search ranks first for each of its titles."""
        found = self.section(titles[0], text, anchor)
        entries = [("single", title, anchor, "main", None) for title in titles]
        found.insert(1, addnodes.index(entries=entries))
        return found

    def section(self, heading: str, text: str = "", anchor: str = "") -> nodes.section:
        """Return a section of the page."""
        section = nodes.section(ids=[anchor] if anchor else [])
        section["names"] = [nodes.fully_normalize_name(heading)]
        section += nodes.title(heading, heading)
        self.state.document.note_implicit_target(section, section)
        section += self.parsed(text)
        return section


class MethodsDirective(Parsed):
    """The table of all methods."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return self.parsed(method_page.overview())


class LinkTitles(SphinxPostTransform):
    """Link the titles of methods in the cells of computed tables, which are HTML by now."""

    default_priority = 900  # after what chooses the HTML of an output
    formats: ClassVar[tuple[str, ...]] = ("html",)

    def run(self, **kwargs: object) -> None:
        """Rewrite the raw HTML of the page that is being written."""
        pages = {
            escape(title): self.app.builder.get_relative_uri(self.env.docname, page)
            for title, page in method_page.pages_by_title().items()
            if page in self.env.found_docs and page != self.env.docname
        }
        for raw in self.document.findall(nodes.raw):
            if pages and raw.get("format") == "html" and "<table" in raw.astext():
                raw.children = [nodes.Text(linked(raw.astext(), pages))]
                raw.rawsource = raw.astext()


def linked(table: str, pages: dict[str, str]) -> str:
    """Return the HTML of a table with links in cells that hold a title of `pages` and no more.

    Headers of columns stay: they become buttons that sort.
    """

    def link(cell: re.Match) -> str:
        start, tag, attributes, text = cell.groups()
        page = pages.get(text.strip())
        if page is None or (tag == "th" and "row_heading" not in attributes):
            return cell[0]
        return f'{start}<a href="{page}">{text}</a>'

    return CELL.sub(link, table)


def prepare(app: Sphinx, env: object, names: list[str]) -> None:
    """Compute what all pages share, before Sphinx shares these out among processes."""
    if any(name.startswith(f"{method_page.PAGES}/") for name in names):
        try:
            method_page.costs()
            method_page.refused()
            method_page.gains()
        except Exception as error:
            raise ExtensionError(f"the pages of the methods: {error}") from error


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("method-page", MethodDirective)
    app.add_directive("method-summary", SummaryDirective)
    app.add_directive("method-table", MethodsDirective)
    app.add_post_transform(LinkTitles)
    app.connect("env-before-read-docs", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
