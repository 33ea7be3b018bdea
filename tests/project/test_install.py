"""The installer behind `make venv`: pip's settings hold for uv, and pip takes over where uv
cannot.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT

SCRIPT = ROOT / ".ci" / "install.py"
COMPILED = ROOT / ".ci" / "compiled.py"


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the Python of a new environment with pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def wheel(folder, name, modules):
    """Write a wheel of some modules, name -> source."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for module, source in modules.items():
            file.writestr(module, source)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{about}/RECORD", "")


def run(python, tmp_path, config):
    """Run the installer on a lock of one local package, with this configuration of pip alone."""
    for name in ("uv", "tiny_local"):  # by hand, since pip takes half a second
        for installed in python.parents[1].glob(f"lib/*/site-packages/{name}*"):
            shutil.rmtree(installed) if installed.is_dir() else installed.unlink()
    wheel(tmp_path / "wheels", "tiny_local", {"tiny_local.py": "here = True\n"})
    (tmp_path / "lock").write_text("tiny-local==1.0\n")
    (tmp_path / "pip.conf").write_text(config)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "UV_", "PYTHON"))
    }
    return subprocess.run(
        [python, SCRIPT, tmp_path / "lock"],
        capture_output=True,
        text=True,
        env={
            **kept,
            "HOME": str(tmp_path),
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
            "TRACE": str(tmp_path / "trace"),
        },
    )


# Stands for uv: notes what it was told, and hands the work to pip or fails.
FAKE = """
import json, os, subprocess, sys
if sys.argv[1:] == ["cache", "dir"]:
    print("/nowhere")
    sys.exit()
told = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
with open(os.environ["TRACE"], "w") as file:
    json.dump({"arguments": sys.argv[1:], "told": told}, file)
sys.exit(CODE)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_uv_is_told_what_pip_is_and_pip_follows_where_uv_fails(environment, tmp_path, code):
    wheel(
        tmp_path / "wheels",
        "uv",
        {"uv/__init__.py": "", "uv/__main__.py": FAKE.replace("CODE", str(code))},
    )
    config = f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n"
    done = run(environment, tmp_path, config)
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace").read_text()
    assert f'"UV_FIND_LINKS": "{tmp_path / "wheels"}"' in trace and "--no-index" in trace
    assert ("uv failed with exit code 3; pip installs instead" in done.stdout) == bool(code)
    there = subprocess.run([environment, "-c", "import tiny_local"], stderr=subprocess.DEVNULL)
    assert (there.returncode == 0) == bool(code), "the stand-in for uv installs nothing, pip does"


def test_pip_installs_where_uv_is_not_to_be_had(environment, tmp_path):
    done = run(
        environment, tmp_path, f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n"
    )
    assert done.returncode == 0 and "uv cannot be installed; pip installs instead" in done.stdout
    assert subprocess.run([environment, "-c", "import tiny_local"]).returncode == 0


def test_a_package_that_is_nowhere_ends_with_pip_s_code(environment, tmp_path):
    done = run(environment, tmp_path, "[global]\nno-index = true\n")
    assert done.returncode == 1 and "tiny-local" in done.stderr


def test_every_setting_has_its_counterpart(install, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    listed = """:env:.find-links='one two'
global.extra-index-url='\\nfile:///a\\nfile:///b'
global.find-links='three'
install.constraint='c.txt'
global.trusted-host='h'
global.cert='ca.pem'
global.proxy='http://p'
global.no-binary=':all:'
global.no-index='false'
global.timeout='60'
global.quiet='1'
"""
    variables, arguments, unknown = install.translate(install.settings(listed))
    assert variables == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "one,two",
        "UV_INDEX": "file:///a file:///b",
        "UV_CONSTRAINT": "c.txt",
        "UV_INSECURE_HOST": "h",
        "SSL_CERT_FILE": "ca.pem",
        "UV_HTTP_TIMEOUT": "60",
        "HTTP_PROXY": "http://p",
        "HTTPS_PROXY": "http://p",
        "ALL_PROXY": "http://p",
    }
    assert arguments == ["--no-binary", ":all:"] and unknown == []


@pytest.mark.parametrize(
    "line",
    [
        "global.require-hashes='true'",
        "global.keyring-provider='import'",
        "install.target='elsewhere'",
        "global.client-cert='me.pem'",
    ],
)
def test_what_uv_cannot_be_told_is_named(install, line):
    assert install.translate(install.settings(line))[2] == [
        line.partition(".")[2].partition("=")[0]
    ]


def test_little_room_is_said_in_one_line(install, capsys, monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 3 * 10**9})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda place: usage)
    install.warn_of_room(tmp_path)
    assert capsys.readouterr().out == (
        f"warning: 3.0 GB are free for {sys.prefix}, and the installation needs about 8 GB\n"
    )


def test_what_is_compiled_beforehand_is_there():
    """A name that went away would be passed over in silence."""
    spec = importlib.util.spec_from_file_location("compiled", COMPILED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [name for name in module.OTHERS if not importlib.util.find_spec(name)] == []


def test_imports_are_compiled_whatever_the_environment_says(tmp_path):
    """As in a container that sets PYTHONDONTWRITEBYTECODE; a module that fails stops nothing."""
    package = tmp_path / "datadream"
    package.mkdir()
    for name in ("__init__", "works", "later"):
        (package / f"{name}.py").write_text("")
    (package / "fails.py").write_text("raise RuntimeError('no GPU')\n")
    place = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tmp_path)}
    program = "import runpy, sys; main = runpy.run_path(sys.argv[1])['main']; "
    program += "main.__globals__['OTHERS'] = (); main()"
    words = [sys.executable, "-c", program, str(COMPILED)]
    subprocess.run(words, env={**os.environ, **place}, cwd=tmp_path, check=True)
    made = {file.name.split(".")[0] for file in package.glob("__pycache__/*.pyc")}
    assert made == {"__init__", "works", "later", "fails"}
