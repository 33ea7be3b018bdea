"""The command line: what it passes on, what it prints, and a truthful exit code."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version

import pandas as pd
import pytest
from conftest import ROOT

from datadream.cli import main
from datadream.errors import ConfigError
from datadream.study import papermill_runs


@pytest.fixture
def result(monkeypatch):
    """Replace the study by one that ends with these statuses; returns result(*statuses) -> the
    list of calls.
    """

    def set_result(*statuses):
        calls = []

        def run_study(*args, **options):
            calls.append((args, options))
            return pd.DataFrame(
                [
                    {"run": f"run{i}", "status": s, "minutes": 0.1, "note": f"note{i}"}
                    for i, s in enumerate(statuses)
                ]
            )

        monkeypatch.setattr(papermill_runs, "run_study", run_study)
        return calls

    return set_result


@pytest.mark.parametrize(
    "statuses, code",
    [
        (["done"], 0),
        (["done", "done before"], 0),
        (["done before"], 0),
        (["failed"], 1),
        (["done", "failed", "done"], 1),
    ],
)
def test_the_exit_code_tells_whether_a_run_failed(result, capsys, statuses, code):
    result(*statuses)
    assert main(["study"]) == code
    printed = capsys.readouterr().out
    assert all(f"run{i}" in printed for i in range(len(statuses))) and all(
        status in printed for status in statuses
    )


def test_the_arguments_reach_the_study(result):
    calls = result("done")
    main(["study"])
    main(["study", "mnist", "optdigits", "--smoke", "--jobs", "3"])
    main(["study", "--group", "seeds", "--engine", "ray"])
    assert [args for args, _ in calls] == [
        ([], "default", False),
        (["mnist", "optdigits"], "default", True),
        ([], "seeds", False),
    ]
    assert [options for _, options in calls] == [
        {"jobs": 1, "engine": "local"},
        {"jobs": 3, "engine": "local"},
        {"jobs": 1, "engine": "ray"},
    ]


def test_a_wrong_request_is_code_2_with_the_message_and_no_traceback(monkeypatch, capsys):
    def refuse(*args, **options):
        raise ConfigError("run 'mnits' is not in the study")

    monkeypatch.setattr(papermill_runs, "run_study", refuse)
    assert main(["study", "mnits"]) == 2
    assert capsys.readouterr().err == "error: run 'mnits' is not in the study\n"


@pytest.mark.parametrize(
    "arguments", [[], ["stduy"], ["study", "--gruop", "x"], ["study", "--jobs", "two"]]
)
def test_a_wrong_command_is_code_2_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: python -m datadream" in capsys.readouterr().err


def test_an_error_of_the_program_is_no_success(monkeypatch):
    """An exception must reach Python, which exits with 1: peers have exited with 0 after any
    exception.
    """

    def broken(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(papermill_runs, "run_study", broken)
    with pytest.raises(RuntimeError):
        main(["study"])


def test_the_module_runs_and_its_code_is_the_process_s(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "study.yaml").write_text("runs: {}\nsmoke: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "datadream", "study", "mnist"],
        capture_output=True,
        text=True,
        env={**os.environ, "DATADREAM_HOME": str(tmp_path)},
    )
    assert (
        done.returncode == 2
        and "error: run 'mnist' is not in the study" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_an_unknown_name_is_not_looked_up_on_the_hub(capsys):
    assert main(["download", "eurosatt"]) == 2
    assert "Did you mean 'eurosat'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "called, shown",
    [
        (["-m", "datadream"], "usage: python -m datadream [-h]"),
        (
            [
                "-c",
                "import sys; sys.argv[0] = 'bin/datadream'; from datadream.cli import main; main()",
            ],
            "usage: datadream [-h]",
        ),
    ],
)
def test_the_usage_names_the_command_that_was_called_and_needs_no_torch(called, shown):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *called, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(shown)
    assert "| datadream.cli" in done.stderr.replace("|   ", "| ") and "torch" not in done.stderr


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (
        caught.value.code == 0 and capsys.readouterr().out == f"datadream {version('datadream')}\n"
    )


def test_the_console_script_is_the_command_line():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["datadream"].partition(":")
    assert getattr(import_module(module), name) is main
