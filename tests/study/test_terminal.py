"""What is shown of runs: live lines on a terminal, plain lines elsewhere, end lines that stay."""

import io
import re

import pytest
from rich.console import Console

from datadream.progress import Run
from datadream.study.terminal import MINUTE, Terminal


def run(name="mnist", where="synthetic set 2 of 3, image 340 of 1,000", folder=None):
    """Return a run that is at a known place."""
    made = Run(name, folder)
    made.where = where
    made.estimate.update(100.0, 42.0, 0.0, 0.1)
    made.look = lambda: None
    return made


def shown(width, runs, terminal=True):
    """Return what a terminal of this width is sent for these runs, and an end line."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=width, height=24, color_system=None, _environ={}
    )
    with Terminal(console) as view:
        view.show(runs)
        view.say("  mini_base: done in 3.1 min: book/runs/mini_base.ipynb")
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_run_is_one_line_at_any_width(width):
    text = shown(width, [run(), run("a_run_with_a_name_that_is_much_too_long")])
    lines = [re.sub(r"\x1b\[[?\d;]*\w|\r", "", line) for line in text.splitlines() if "42%" in line]
    assert len(lines) >= 2 and all(len(line) <= width for line in lines), lines
    assert "mini_base: done in 3.1 min: book/runs/mini_base.ipynb" in text


def test_eighty_columns_hold_stage_place_and_time():
    text = shown(80, [run()])
    assert (
        "synthetic set 2/3, image 340/1,000" in text and "9.7 min left" in text and "…" not in text
    )
    assert "image 340 of 1,000" in shown(120, [run()])


def test_without_a_terminal_each_run_has_a_plain_line_a_minute(capsys):
    now = [0.0]
    with Terminal(
        Console(file=io.StringIO(), force_terminal=False, _environ={}), lambda: now[0]
    ) as view:
        for _ in range(3):
            view.show([run()])
            now[0] += MINUTE / 2
        view.show([run()])
    assert (
        capsys.readouterr().out
        == "  mnist: 42%, synthetic set 2 of 3, image 340 of 1,000, about 9.7 min left\n"
    )


def test_a_dumb_terminal_gets_plain_lines():
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert not Terminal(console).live


def test_what_a_runs_processes_complain_of_is_told_with_its_name(tmp_path, capsys):
    (tmp_path / "stderr").write_text("Fatal Python error: Segmentation fault\n")
    with Terminal(Console(file=io.StringIO(), force_terminal=False, _environ={})) as view:
        view.show([run(folder=tmp_path)])
        view.show([run(folder=None)])
    assert capsys.readouterr().out == "  mnist: Fatal Python error: Segmentation fault\n"
