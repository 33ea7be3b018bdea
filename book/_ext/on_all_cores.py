"""Let Sphinx read pages in several processes, as `book/build.py` asks it to.

It does so only if each extension declares that it may. These three do not declare anything: one
adds a static folder, one numbers sections of the whole contents, one acts on LaTeX alone; none
keeps what it has read of a page.
"""

from typing import Any

SILENT = ("sphinx-mathjax-offline", "sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def declare(app: Any) -> None:
    """Declare for the silent extensions that pages may be read in several processes."""
    for name in SILENT:
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = True


def setup(app: Any) -> dict[str, bool]:
    """Add this to a Sphinx application."""
    app.connect("builder-inited", declare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
