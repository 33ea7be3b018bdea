"""The book's page on adding things: what it works through is put into a copy of the package, and
every command of it is run.
"""

import functools
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from conftest import ROOT, draw_image, write_classes

from datadream.models.generators.base import Schedule

PAGE = (ROOT / "book" / "extend.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
# Those by which a package's method comes onto the leaderboard: in order, with seeds of their own.
SUBMISSION = [line for line in COMMANDS if "mine.ipynb" in line or "-m datadream" in line]
BLOCKS = re.findall(r"```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)```", PAGE, re.DOTALL)
# What a block is called -> (file, the text that it is put before); another one ends its file.
DATASETS, STAGES = "datadream/data/datasets.py", "datadream/pipeline/stages.py"
PLACES = {
    DATASETS: (DATASETS, "from .paper_datasets"),
    "data.datasets.DATASETS": (DATASETS, '    "mnist": Row('),
    STAGES: (STAGES, "from . import adapt"),
    "pipeline.stages.STAGES": (STAGES, '    Stage(\n        "train",'),
}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a copy of the project with what the page works through, and the folders that its
    commands name.
    """
    home = tmp_path_factory.mktemp("copy")
    for name in ("datadream", "notebooks"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for where, code in BLOCKS:
        name, follower = PLACES.get(where, (where, None))
        file = home / name
        file.parent.mkdir(exist_ok=True)
        text = file.read_text() if file.exists() else ""
        place = text.index(follower) if follower else len(text)
        gap = "" if follower or not text else "\n\n"
        file.write_text(text[:place] + gap + code + text[place:])
    installed = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*installed, "--target", home / "site", home / "seven_prompts"], check=True)
    write_classes(home / "birds", ["robin", "wren"], 24)
    (home / "scans").mkdir()
    for label, name in enumerate(("cat", "dog")):
        for i in range(18):
            draw_image(label, i).save(home / "scans" / f"{name}-{i:04d}.png")
    return home


def shrunk(words):
    """Return the words of a papermill command at the study file's tiny size, with only its own
    methods and values.
    """
    tiny = yaml.safe_load((ROOT / "notebooks" / "study.yaml").read_text())["smoke"][
        Path(words[1]).stem
    ]
    own = next((yaml.safe_load(words[i + 1]) for i, word in enumerate(words) if word == "-y"), {})
    merged = {
        **tiny,
        **own,
        "overrides": {**tiny["overrides"], **own.get("overrides", {})},
        "seeds": [0],
    }
    if "axis" in words and isinstance(merged["values"], list):
        merged["values"] = own.get("values", tiny["values"])[:2]
    shots = {
        name: value
        for name, value in (("shots", 2),)
        if "axis" not in words or words[words.index("axis") + 1] != "shots"
    }
    return [
        *words,
        "-y",
        yaml.safe_dump({**merged, **shots}, default_flow_style=True, width=10**6).strip(),
    ]


def started(home, *words, installed=True, store="artifacts"):
    """Run `python -m <words>` in the copy, on a store of it, with or without the package that the
    page makes.
    """
    place = {
        "DATADREAM_HOME": str(home),
        "DATADREAM_STORE": str(home / store),
        "PYTHONPATH": os.pathsep.join([str(home), *[str(home / "site")] * installed]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=home,
        env={**os.environ, **place},
        capture_output=True,
        text=True,
    )


def test_the_page_works_through_a_dataset_a_method_a_schedule_and_a_stage():
    assert [where for where, _ in BLOCKS] == [
        "datadream/data/paper_datasets.py",
        "datadream/data/datasets.py",
        "data.datasets.DATASETS",
        "seven_prompts/seven_prompts.py",
        "seven_prompts/pyproject.toml",
        "datadream/models/generators/straight.py",
        "datadream/pipeline/sheet.py",
        "datadream/pipeline/stages.py",
        "pipeline.stages.STAGES",
    ] and len(COMMANDS) >= 6


def test_the_worked_schedule_goes_straight_from_the_image_to_the_noise():
    found = {}
    exec(dict(BLOCKS)["datadream/models/generators/straight.py"], found)
    schedule, shape = found["Straight"](0.1, 2.0), (3, 4, 2, 2)
    latents, noise = schedule.latents(torch.randn(shape)), torch.randn(shape)
    assert {name for name in dir(Schedule) if not name.startswith("_")} <= {*dir(schedule)}
    times = schedule.times(3, latents.device)
    assert times.shape == (3,) and ((times > 0) & (times < 1)).all()
    ends = [schedule.add_noise(latents, noise, torch.full((3,), t)) for t in (0.0, 1.0)]
    assert torch.equal(ends[0], latents) and torch.equal(ends[1], noise)
    slope = (schedule.add_noise(latents, noise, times) - latents) / times.view(-1, 1, 1, 1)
    assert torch.allclose(slope, schedule.target(latents, noise, times), atol=1e-4)


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command not in SUBMISSION],
    ids=lambda command: command.split()[2] if "papermill" in command else command,
)
def test_a_command_of_the_page_runs(home, command):
    words = shlex.split(command)
    assert words[0] == ".venv/bin/papermill"
    done = started(home, "papermill", "--no-progress-bar", *shrunk(words)[1:])
    assert done.returncode == 0 and (home / words[2]).is_file(), done.stderr[-3000:]
    made = "".join(
        file.read_text() for file in home.glob("artifacts/generate-*/train/metadata.jsonl")
    )
    expected = {
        "scans": ("a scanned photo of a cat", made),
        "words": ("DataDream, seven prompts + real", (home / words[2]).read_text()),
    }
    word, text = expected.get(Path(words[2]).stem, ("", ""))
    assert word in text
    assert len(list(home.glob("artifacts/sheet-*/sheet.png"))) == len(
        list(home.glob("artifacts/generate-*/classes.json"))
    )


def test_a_package_s_method_goes_from_pip_to_the_leaderboard(home, tmp_path):
    """As a stranger does it, by the page's commands at a tiny size; whoever reviews has not
    installed the package. The store is its own: a submission takes every record of a method, and
    the page's other commands leave some with other numbers of shots.
    """
    own_store = functools.partial(started, home, store="submitted")
    run, submit, check = map(shlex.split, SUBMISSION)
    tiny = yaml.safe_load((ROOT / "notebooks" / "study.yaml").read_text())["smoke"]["dataset"]
    own = yaml.safe_load(run[run.index("-y") + 1])
    assert own["seeds"] == [0, 1, 2] and "shots" not in own, "the study's rows have 16 shots"

    def cells(seeds):
        asked = {**own, "seeds": seeds, "overrides": tiny["overrides"]}
        words = yaml.safe_dump(asked, default_flow_style=True, width=10**6).strip()
        done = own_store("papermill", "--no-progress-bar", *run[1:], "-y", words)
        assert done.returncode == 0, done.stderr[-3000:]

    cells([0, 1])
    done = own_store(*submit[2:])
    assert done.returncode == 2 and "2 seeds; give 3 or more" in done.stderr
    assert "4 records, the first 1: generate.images=4 where all" in done.stderr
    assert not (home / "contrib").exists()
    cells(own["seeds"])
    reasons = [f"--reason={name}=a <test>" for name in tiny["overrides"]]
    done = own_store(*submit[2:], *reasons)
    assert done.returncode == 0 and done.stdout.strip() == str(home / check[-1]), done.stderr
    done = own_store(*check[2:], installed=False)
    assert (done.returncode, done.stdout) == (0, f"{check[-1]}: ok\n"), done.stderr
    shutil.copytree(ROOT / "book" / "study", home / "book" / "study")
    page = (ROOT / "book" / "leaderboard.md").read_text()
    (code,) = re.findall(r"```\{code-cell\} ipython3\n:tags: .*?\n\n(.*?)```", page, re.DOTALL)
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
    )
    nbformat.write(notebook, tmp_path / "page.ipynb")
    files = [str(tmp_path / "page.ipynb"), str(tmp_path / "done.ipynb")]
    done = own_store("papermill", "--no-progress-bar", *files, installed=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = nbformat.read(files[1], 4).cells[-1].outputs
    tables = [one.data["text/html"] for one in shown if "text/html" in one.data]
    (table,) = (one for one in tables if "MNIST, 16 shots" in one)
    rows = {cells[0]: cells for row in table.split("<tr>") if (cells := texts(row))}
    for title in ("DataDream, seven prompts", "DataDream, seven prompts + real"):
        assert rows[title][3] == "3" and rows[title][-1] == "Your name, contributed"
    assert rows["DataDream (dataset) + real"][-1] == "this study"
    assert "https://example.org/seven-prompts" in table
    (said,) = {one.data["text/markdown"] for one in shown if "text/markdown" in one.data}
    assert r"DataDream, seven prompts: generate.images, a \<test\>" in said


def texts(row):
    """Return the texts of a table row's cells."""
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in cells]
