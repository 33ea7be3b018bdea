"""How the runs ended: kept in a file, told last, cleared by a success."""

import pytest

from datadream.__main__ import main
from datadream.study import outcome


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return an empty project folder that the package takes for its own."""
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    (tmp_path / "book" / "runs").mkdir(parents=True)
    return tmp_path


def row(run, status, note="ValueError: nothing\nhere"):
    """Return a row of run_study's table."""
    return {"run": run, "status": status, "minutes": 1.5, "note": note}


def test_a_failure_is_told_with_its_page_until_the_run_succeeds(home, capsys):
    known = {"mnist", "optdigits", "mini_base"}
    for name, status in (("mnist", "failed"), ("optdigits", "done"), ("mini_base", "stopped")):
        outcome.save(row(name, status), known)
    (home / "book" / "runs" / "mnist.failed.ipynb").write_text("{}")
    assert main(["outcome"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2 of 3 runs did not end well:",
        "  mini_base: stopped after 1.5 min: ValueError: nothing here",
        "    again: python -m datadream study mini_base",
        "  mnist: failed after 1.5 min: ValueError: nothing here",
        "    what it had done: book/runs/mnist.failed.ipynb",
        "    again: python -m datadream study mnist",
    ]
    assert [one["run"] for one in outcome.failures()] == ["mini_base", "mnist"]
    outcome.save(row("mnist", "done"), known)
    outcome.save(row("mini_base", "done before"), known)
    assert main(["outcome"]) == 0 and outcome.failures() == []
    assert capsys.readouterr().out == "all 3 runs ended well\n"


def test_a_page_that_the_book_shows_is_named(home):
    page = home / "_build" / "html" / "book" / "runs" / "mnist.failed.html"
    page.parent.mkdir(parents=True)
    page.touch()
    outcome.save(row("mnist", "failed"), {"mnist"})
    assert "in the book: _build/html/book/runs/mnist.failed.html" in outcome.failure_report()


def test_a_run_that_the_study_no_longer_has_is_forgotten():
    outcome.save(row("old", "failed"), {"old"})
    outcome.save(row("new", "done"), {"new"})
    assert list(outcome.load_outcomes()) == ["new"]


@pytest.mark.parametrize("content", ["", "[]", '{"mnist": 1}', '{"mnist": {"status": "failed"}}'])
def test_a_damaged_file_counts_as_none(content):
    outcome.status_file().write_text(content)
    assert (
        outcome.failures() == [] and "no run has been executed here yet" in outcome.failure_report()
    )
    outcome.save(row("mnist", "failed"), {"mnist"})
    assert [one["run"] for one in outcome.failures()] == ["mnist"]


def test_a_place_that_cannot_be_written_is_told_and_ends_nothing(capsys):
    outcome.status_file().parent.rmdir()
    outcome.status_file().parent.touch()
    outcome.save(row("mnist", "failed"), {"mnist"})
    assert "cannot be written" in capsys.readouterr().err
