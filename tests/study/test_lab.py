"""JupyterLab and the notebooks' kernel: which Python runs, and that a front end gets bars."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import nbformat
import pytest
from conftest import ROOT
from jupyter_client.manager import KernelManager

TOKEN = "test"
BAR = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def lab(tmp_path):
    """Start JupyterLab as `make lab` does, without a browser, and return its address."""
    folder = tmp_path / "runtime"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        f"--IdentityProvider.token={TOKEN}",
        "notebooks",
    ]
    env = {**os.environ, "JUPYTER_RUNTIME_DIR": str(folder), "HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 90
            while not (found := list(folder.glob("jpserver-*.json"))) and time.monotonic() < end:
                assert server.poll() is None, "JupyterLab ended at once"
                time.sleep(0.2)
            yield json.loads(found[0].read_text())["url"]
        finally:
            server.terminate()


def ask(address):
    """Return the server's answer; it may need a moment before it listens."""
    request = urllib.request.Request(address, headers={"Authorization": f"token {TOKEN}"})
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except URLError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address}")


def test_jupyterlab_offers_this_python_and_the_notebooks(lab):
    from jupyter_client.kernelspec import KernelSpecManager

    specs = ask(f"{lab}api/kernelspecs")
    assert specs["default"] == "python3"
    own = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
    assert os.path.samefile(own, sys.executable)
    argv = specs["kernelspecs"]["python3"]["spec"]["argv"]
    assert argv == KernelSpecManager().get_kernel_spec("python3").argv
    names = {entry["name"] for entry in ask(f"{lab}api/contents")["content"]}
    assert {"dataset.ipynb", "your_data.ipynb"} <= names


TINY = {
    "images": 2,
    "shots": 2,
    "methods": ["dset+real"],
    "overrides": {
        "adapt.epochs": 1,
        "adapt.warmup": 1,
        "generate.steps": 2,
        "generate.batch": 10,
        "classify.steps": 2,
        "classify.warmup": 0,
        "classify.evaluations": 1,
    },
}


@pytest.mark.long
def test_a_notebook_run_by_hand_shows_bars(tmp_path):
    cells = nbformat.read(ROOT / "notebooks" / "dataset.ipynb", 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    parameters = "".join(f"{name} = {value!r}\n" for name, value in TINY.items())
    last = next(i for i, source in enumerate(code) if "run_cells" in source)
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=ROOT, env={**os.environ, "DATADREAM_STORE": str(tmp_path)})
    client, outputs = kernel.blocking_client(), []
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        for source in [code[0], parameters, *code[1 : last + 1]]:
            reply = client.execute_interactive(
                source,
                allow_stdin=True,
                stdin_hook=lambda message: None,
                timeout=300,
                output_hook=lambda message: outputs.append(message["content"]),
            )
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    bars = [output for output in outputs if BAR in output.get("data", {})]
    assert bars, "a front end that lets cells ask is watched by a person"


def test_a_kernel_starts_without_a_warning():
    """The book's build and papermill start one per page, and would say so each time."""
    if not (Path(sys.prefix) / "etc" / "ipython" / "ipython_kernel_config.py").exists():
        pytest.skip("this environment was not made by make venv")
    code = (
        "import nbformat, nbclient\nv4 = nbformat.v4\nbook = "
        "v4.new_notebook(cells=[v4.new_code_cell('1')])\nnbclient.NotebookClient(book).execute()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
