"""The doctor: what it finds on this machine, and that each thing missing comes with its fix."""

import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from datadream import doctor
from datadream.cli import main
from datadream.data.paper_datasets import SOURCES
from datadream.models.catalog import CLASSIFIERS, GENERATORS, IP_ADAPTERS


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_DATA", str(tmp_path / "data"))


def find(what):
    return next(check for check in doctor.examine() if check.what == what)


def test_this_machine_has_no_problem(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("0 problems\n") and "problem   " not in text
    for what in (
        "Python",
        "packages",
        "device",
        "memory",
        "disk",
        "generator mini",
        "datasets mnist, optdigits",
    ):
        assert what in text


@pytest.mark.parametrize(
    "kind, name, row",
    [
        (kind, name, row)
        for kind, table in (
            ("generator", GENERATORS),
            ("classifier", CLASSIFIERS),
            ("IP-Adapter", IP_ADAPTERS),
        )
        for name, row in table.items()
        if row.hub
    ],
)
def test_a_model_that_is_not_there_comes_with_its_download(kind, name, row):
    check = find(f"{kind} {name}")
    assert check.state == "optional"
    for word in (f"datadream download {name}", row.hub, row.licence, f"{row.gigabytes:g} GB"):
        assert word in check.detail


@pytest.mark.parametrize("name", SOURCES)
def test_a_dataset_that_is_not_there_says_what_to_fetch(name):
    check = find(f"dataset {name}")
    assert check.state == "optional" and (
        "datadream download" in check.detail or "Get " in check.detail
    )


def test_how_to_name_another_place_is_said_once(tmp_path):
    text = doctor.report(doctor.examine())
    assert (
        text.count("Images that lie elsewhere")
        == text.count(f"DATADREAM_DATA moves {tmp_path / 'data'}")
        == 1
    )


def test_a_dataset_that_is_there_is_found(tmp_path):
    (tmp_path / "data" / "eurosat" / "2750").mkdir(parents=True)
    lacking = find("dataset eurosat")
    assert lacking.state == "optional" and "split_zhou_EuroSAT.json" in lacking.detail, (
        "images without their split cannot be read"
    )
    (tmp_path / "data" / "eurosat" / "split_zhou_EuroSAT.json").write_text("{}")
    assert find("dataset eurosat").state == "ok"


def test_a_dataset_without_a_split_file_needs_none(tmp_path):
    (tmp_path / "data" / "imagenet" / "images" / "train").mkdir(parents=True)
    assert find("dataset imagenet").state == "ok"


def test_problems_are_counted_and_make_the_exit_code(monkeypatch, capsys, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage(1, 1, 10**6))
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: ["torch>=99", "no-such-package>=1", "ray>=2 ; extra == 'ray'"],
    )
    monkeypatch.setattr(doctor, "absent", lambda name, part: "gone" if name == "mini" else "")
    monkeypatch.setattr(doctor, "MEMORY", 10**9)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "6 problems" in text
    for word in (
        "DATADREAM_STORE",
        "no-such-package is missing",
        "does not fit >=99",
        "make venv",
        "git checkout -- datadream/mini",
        "--jobs 1",
    ):
        assert word in text


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    monkeypatch.setattr(doctor, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40e9, 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a large GPU")
    assert find("device") == doctor.Check("device", "ok", "a large GPU, 40 of 80 GB free")


def test_the_doctor_loads_no_model_and_is_quick_to_import():
    code = (
        "import datadream.doctor as d, sys; d.examine(); assert 'diffusers' not in sys.modules "
        "and 'open_clip' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_make_targets_need_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert find("make").state == "problem" and "not on PATH" in find("make").detail
    assert find("browser").state == "optional" and "make site-test" in find("browser").detail
    for name in ("make", "chromium"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert find("make").state == find("browser").state == "ok"
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert "CHROMIUM=no-such-browser is not a program" in find("browser").detail


def test_little_room_for_the_environment_is_said_and_no_problem(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage(1, 1, 2 * 10**9))
    check = find("environment")
    assert check.state == "optional" and "2 GB free" in check.detail and "7 GB" in check.detail
