"""A project folder whose path has a space: every target of the Makefile works there."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

STUB = """#!/bin/sh
for word; do printf '[%s]' "$word"; done >> "$LOG"
echo " ${DATADREAM_HOME}|${DATADREAM_STORE}|${DATADREAM_SITE}" >> "$LOG"
case "$*" in *contents*) echo "$PWD/_build/toc.yml";; esac
"""


@pytest.fixture(params=["my project", "it's (a) test"])
def project(request, tmp_path):
    """Return a project folder with the Makefile and an environment of stubs, which write down
    what they are called with.
    """
    folder = tmp_path / request.param
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    shutil.copy2(ROOT / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml"):
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    for name in ("python", "jupyter-book", "jupyter", "ruff", "basedpyright", "lint-imports"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    for site in ("_build/html", "_build/smoke/_build/html"):
        (folder / site).mkdir(parents=True)
        (folder / site / "index.html").write_text("x")
    return folder


def make(folder, *words):
    """Run make in a folder and return (what it printed, the lines of what it called)."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        ["make", *words], cwd=folder, capture_output=True, text=True, env=os.environ | {"LOG": log}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, log.read_text().splitlines() if log.exists() else []


def test_the_book_is_given_its_contents_as_one_word(project):
    _, calls = make(project, "book")
    assert any(f"[--toc][{project}/_build/toc.yml]" in line for line in calls), calls


def test_the_smoke_study_is_in_its_own_folder(project):
    _, calls = make(project, "smoke")
    (book,) = [line for line in calls if "[build]" in line]
    place = f"{project}/_build/smoke"
    assert f"[_build/smoke][--toc][{project}/_build/toc.yml]" in book
    assert f" {place}|{place}/artifacts|" in book


def test_the_site_is_found_where_it_is(project):
    _, calls = make(project, "site-test", "SITE=_build/html")
    assert calls[-1].endswith(f"|{project}/_build/html")
    elsewhere = project / "a site"
    elsewhere.mkdir()
    (elsewhere / "index.html").write_text("x")
    _, calls = make(project, "site-test", f"SITE={elsewhere}")
    assert calls[-1].endswith(f"|{elsewhere}")


def test_an_interpreter_may_lie_in_a_folder_with_a_space(project):
    python = project / "my python"
    python.write_text(STUB)
    python.chmod(0o755)
    (project / ".venv" / "bin" / "python").unlink()
    (project / ".venv" / ".installed").unlink()
    done = subprocess.run(
        ["make", "venv", f"PYTHON={python}"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"LOG": project / "log.txt"},
    )
    assert "[-m][venv][.venv]" in (project / "log.txt").read_text(), done.stderr


@pytest.mark.parametrize("target", ["help", "study", "test", "lint", "lab", "base", "clean"])
def test_every_other_target_runs(project, target):
    printed, _ = make(project, target)
    assert target != "help" or "make study" in printed
