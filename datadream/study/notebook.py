"""The first cell of a notebook: refuse unknown parameters, and hide bars that nobody watches."""

import ast
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partialmethod
from itertools import pairwise
from typing import Any

from IPython import get_ipython

from ..errors import ConfigError, did_you_mean
from .parameters import as_meant, assigned


def begin() -> None:
    """Check the injected parameters, and silence progress bars unless someone is watching.

    Converts the parameters to the types of their defaults (see `parameters.as_meant`).

    Call it before the imports of the other cells: tqdm reads its settings, and warns of a missing
    widget, on import. Raises ConfigError on an unknown parameter.
    """
    shell = get_ipython()
    check_parameters(shell.user_ns["In"])
    mean_parameters(shell.user_ns)
    if not _watched(shell):
        os.environ["TQDM_DISABLE"] = "1"  # worker processes inherit it
        _hide_widgets()
        warnings.filterwarnings("ignore", "IProgress not found")


def _hide_widgets() -> None:
    """Keep tqdm's widgets out of the page.

    They take `disable` only from their caller, not from the environment.
    """
    from tqdm.notebook import tqdm_notebook

    quiet = partialmethod(tqdm_notebook.__init__, disable=True)
    setattr(tqdm_notebook, "__init__", quiet)  # noqa: B010


def check_parameters(executed: Sequence[str]) -> None:
    """Raise ConfigError if papermill injected a parameter that the notebook does not have.

    papermill would define the misspelt name and run with the default of the intended one.
    `executed` is IPython's `In`: the sources of the cells run so far. The injected cell is
    recognised by its first line, and the cell of parameters comes before it.
    """
    for before, injected in pairwise(executed):
        if injected.startswith("# Parameters\n"):
            accepted = assigned(before)
            unknown = [
                name
                for name in assigned(injected)
                if name not in accepted and not name.startswith("PAPERMILL_")
            ]
            if unknown:
                raise ConfigError(
                    f"{unknown[0]!r} is not a parameter of this "
                    f"notebook{did_you_mean(unknown[0], accepted) or '.'} Accepted: "
                    f"{', '.join(accepted)}"
                )


def mean_parameters(namespace: dict[str, Any]) -> None:
    """Convert the injected parameters in a notebook's `namespace` to their defaults' types."""
    for before, injected in pairwise(namespace["In"]):
        if injected.startswith("# Parameters\n"):
            known = assigned(before)
            for name in assigned(injected):
                default = known.get(name)
                if default is not None and name in namespace:
                    with suppress(ValueError):  # a default that is not a literal has no type
                        default = ast.literal_eval(default)
                        namespace[name] = as_meant(namespace[name], default)


def _watched(shell):
    """True in an interactive front end, False under papermill and in the book's build.

    A front end lets a cell ask for input.
    """
    # A terminal console has no requests.
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return request.get("content", {}).get("allow_stdin", True)
