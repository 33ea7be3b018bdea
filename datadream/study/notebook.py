"""What a notebook does first: refuse a parameter that it does not have, and keep progress bars
out of a page that nobody watches.
"""

import ast
import os
import warnings
from functools import partialmethod
from itertools import pairwise

from IPython import get_ipython

from ..errors import ConfigError, did_you_mean


def begin():
    """Check the parameters that papermill injected and, where nobody watches, silence progress
    bars; raise ConfigError on an unknown one.

    It comes before the imports of the other cells: tqdm reads its settings, and warns of a missing
    widget, when it is imported.
    """
    shell = get_ipython()
    check_parameters(shell.user_ns["In"])
    if not _watched(shell):
        os.environ["TQDM_DISABLE"] = "1"  # worker processes inherit it
        _hide_widgets()
        warnings.filterwarnings("ignore", "IProgress not found")


def _hide_widgets() -> None:
    """Keep tqdm's widgets out of the page: they take `disable` from their caller alone, not from
    the environment.
    """
    from tqdm.notebook import tqdm_notebook

    quiet = partialmethod(tqdm_notebook.__init__, disable=True)
    setattr(tqdm_notebook, "__init__", quiet)  # noqa: B010


def check_parameters(executed):
    """Raise ConfigError if the cell that papermill injects sets a name that the cell of parameters
    before it does not have.

    papermill defines such a name and goes on with the default of the one that was meant. `executed`
    is IPython's `In`: the sources of the cells that have run, in which the injected one is known by
    its first line.
    """
    for before, injected in pairwise(executed):
        if injected.startswith("# Parameters\n"):
            accepted = _assigned(before)
            unknown = [
                name
                for name in _assigned(injected)
                if name not in accepted and not name.startswith("PAPERMILL_")
            ]
            if unknown:
                raise ConfigError(
                    f"{unknown[0]!r} is no parameter of this "
                    f"notebook{did_you_mean(unknown[0], accepted) or '.'} Accepted: "
                    f"{', '.join(accepted)}"
                )


def _assigned(source):
    return [
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _watched(shell):
    """Return whether a person may look on: a front end lets a cell ask for input, papermill and
    the book's build do not.
    """
    # A console has no requests.
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return request.get("content", {}).get("allow_stdin", True)
