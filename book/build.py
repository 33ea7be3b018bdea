"""Build the book as `jupyter-book` does, on all cores: its command line has no option for that.

    python book/build.py build .

Sphinx shares the pages out, so that each process executes some of them.
"""

from jupyter_book.cli.main import main
from jupyter_book.sphinx import build_sphinx

from datadream.store.cores import usable_cores

if __name__ == "__main__":
    build_sphinx.__kwdefaults__["jobs"] = usable_cores()
    main()
