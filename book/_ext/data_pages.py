"""Sphinx extension: what the pages of the data show, from the datasets and the committed records.

    ```{downloads} records
    ```

stands for a text of `datadream.publish.downloads`, `{dataset-pages} mnist` for the executed pages
on a dataset, and `{dataset-table}` for the table of all datasets. The tables of the records that
can be downloaded are written before Sphinx reads a page.
"""

from docutils import nodes
from method_pages import Parsed
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from datadream.data.datasets import TITLES
from datadream.publish import dataset_page, downloads

DOWNLOADS = "book/data"  # the page that links what is written


class DownloadsDirective(Parsed):
    """What can be downloaded of one kind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table of the files, or of their columns."""
        kind = self.arguments[0]
        if kind not in downloads.TEXTS:
            raise self.error(f"{kind!r} is not a kind; accepted: {', '.join(downloads.TEXTS)}")
        return self.parsed(downloads.TEXTS[kind]())


class DatasetPagesDirective(Parsed):
    """The executed pages on a dataset."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table of those that the book has."""
        name, known = self.arguments[0], TITLES
        if name not in known:
            raise self.error(f"{name!r} has no page; accepted: {', '.join(known)}")
        return self.parsed(dataset_page.pages_text(name, self.env.found_docs))


class DatasetTableDirective(Parsed):
    """The table of all datasets."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return self.parsed(dataset_page.overview_text(self.env.found_docs))


def prepare(app: Sphinx, env: object, names: list[str]) -> None:
    """Write the files of the records, before Sphinx shares the pages out among processes."""
    if DOWNLOADS in names:
        try:
            downloads.write_records()
        except Exception as error:
            raise ExtensionError(f"the tables to download: {error}") from error


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("downloads", DownloadsDirective)
    app.add_directive("dataset-pages", DatasetPagesDirective)
    app.add_directive("dataset-table", DatasetTableDirective)
    app.connect("env-before-read-docs", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
