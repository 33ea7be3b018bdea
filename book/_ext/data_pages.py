"""Sphinx extension: what can be downloaded of the study, from the committed records.

    ```{downloads} records
    ```

stands for a text of `datadream.publish.downloads`. The tables of the records that can be downloaded
are written before Sphinx reads a page.
"""

from docutils import nodes
from method_pages import Parsed
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from datadream.publish import downloads

DOWNLOADS = "book/data"  # the page that links what is written


class DownloadsDirective(Parsed):
    """What can be downloaded of one kind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table of the files, or of their columns."""
        kind = self.arguments[0]
        if kind not in downloads.TEXTS:
            raise self.error(f"{kind!r} is no kind; accepted: {', '.join(downloads.TEXTS)}")
        return self.parsed(downloads.TEXTS[kind]())


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
    app.connect("env-before-read-docs", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
