"""The first cell of every notebook under real papermill: a misspelt parameter ends the run, and
a page has no progress bars.
"""

import json
import os
import types

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from conftest import ROOT
from papermill.cli import papermill as papermill_command
from tqdm.notebook import tqdm_notebook

from datadream.errors import ConfigError
from datadream.study import notebook

TEMPLATES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = "# Values for use by hand.\nfolder = ''  # photos\nshots = 16\n"


def misspelt(template):
    """Return (a parameter of a template without its fourth letter, the parameter)."""
    name = next(
        name for name in papermill.inspect_notebook(ROOT / "notebooks" / template) if len(name) > 5
    )
    return name[:3] + name[4:], name


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_misspelt_parameter_ends_the_run_before_anything_is_computed(
    template, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    wrong, right = misspelt(template)
    command = [f"notebooks/{template}", str(tmp_path / "out.ipynb"), "-p", wrong, "7"]
    done = CliRunner().invoke(papermill_command, [*command, "--no-progress-bar"])
    assert done.exit_code != 0
    assert (
        f"ConfigError: '{wrong}' is not a parameter of this notebook. Did you mean '{right}'? "
        "Accepted:" in str(done.exception)
    )
    cells = [
        cell
        for cell in json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        if cell["cell_type"] == "code" and cell["execution_count"]
    ]
    assert "notebook.begin()" in "".join(cells[-1]["source"]), "no cell ran after it"


@pytest.mark.parametrize(
    "injected",
    [
        "# Parameters\nshots = 4\n",
        '# Parameters\nfolder = "a"\nshots = 2\nPAPERMILL_INPUT_PATH = "x"\n',
        "shotz = 3",
    ],
)
def test_parameters_that_the_notebook_has_and_a_users_own_cells_pass(injected):
    notebook.check_parameters(["", PARAMETERS, injected, "anything = 1"])


def test_a_name_unlike_any_parameter_is_told_what_is_accepted():
    with pytest.raises(
        ConfigError, match="'zzz' is not a parameter of this notebook. Accepted: folder, shots$"
    ):
        notebook.check_parameters(["", PARAMETERS, "# Parameters\nzzz = 1\n"])


BARS = [
    "from datadream.study import notebook\nnotebook.begin()",
    "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass",
    "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'from tqdm.auto import "
    "tqdm; list(tqdm(range(3)))'], capture_output=True, text=True).stderr or 'silent')",
]


def test_an_executed_page_has_no_progress_bars_and_no_warning_of_them(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in BARS]
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "bars.ipynb")
    papermill.execute_notebook(
        tmp_path / "bars.ipynb", tmp_path / "out.ipynb", progress_bar=False, start_timeout=300
    )
    outputs = [
        output
        for cell in json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        for output in cell["outputs"]
    ]
    assert ["".join(output["text"]) for output in outputs] == ["silent\n"], (
        "worker processes are silent, too"
    )


@pytest.mark.parametrize(
    "shell, watched",
    [
        ({}, True),
        ({"get_parent": lambda: {}}, True),
        ({"get_parent": lambda: {"content": {"allow_stdin": True}}}, True),
        ({"get_parent": lambda: {"content": {"allow_stdin": False}}}, False),
    ],
)
def test_who_works_by_hand_keeps_the_bars(monkeypatch, shell, watched):
    monkeypatch.setenv("TQDM_DISABLE", "")  # so that what the call sets is undone at the end
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(tqdm_notebook, "__init__", tqdm_notebook.__init__)
    monkeypatch.setattr(
        notebook, "get_ipython", lambda: types.SimpleNamespace(user_ns={"In": [""]}, **shell)
    )
    notebook.begin()
    assert ("TQDM_DISABLE" not in os.environ) == watched
