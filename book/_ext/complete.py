"""Sphinx extension: warn of pages that lack a piece of the study.

Such a page says so, whether a directive or a cell has found nothing to show. `make book` treats
warnings as errors, so that the book is not published with holes in it.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from datadream.publish.freeze import MISSING

SENTENCE = MISSING.strip("*").partition(";")[0]  # up to the commands, which are marked up

logger = logging.getLogger(__name__)


def warn(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warn if a page says that a piece is missing."""
    if count := doctree.astext().count(SENTENCE):
        places = "one place" if count == 1 else f"{count} places"
        logger.warning(
            "a piece of the study is missing in %s of this page; run it, and `datadream keep`",
            places,
            location=docname,
            type="complete",
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Add this to a Sphinx application."""
    app.connect("doctree-resolved", warn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
