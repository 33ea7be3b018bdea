"""Workflows, templates, citations and the Binder environment are valid and agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pybtex.database import parse_string

from datadream.data import paper_datasets

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(
    path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"
)
FILES = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": FORMS,
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tool(name, *arguments):
    """Run a program of the environment; return its exit status and all that it wrote."""
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


def checked(schema, *files):
    """Run check-jsonschema in this process; return its exit status and all that it wrote."""
    done = CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, *map(str, files)])
    return done.exit_code, done.output


@pytest.mark.parametrize("schema", FILES)
def test_each_file_is_of_the_form_that_its_reader_expects(schema):
    assert FILES[schema]
    assert checked(schema, *FILES[schema]) == (0, "ok -- validation done\n")


def test_a_workflow_with_a_misspelt_key_is_found(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    status, said = checked("vendor.github-workflows", wrong)
    assert status == 1 and "run-on" in said


def test_zizmor_finds_no_weakness_in_the_workflows():
    status, said = tool("zizmor", "--offline", "--no-progress", GITHUB)
    assert status == 0 and "No findings to report" in said, said


def test_each_action_is_pinned_by_its_commit_and_says_its_version():
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert not [
        line
        for line in used
        if not re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)
    ]
    versions = {}
    for line in used:
        name, pin = line.split("uses: ")[1].split("@")
        versions.setdefault(name, set()).add(pin)
    assert not {name: pins for name, pins in versions.items() if len(pins) > 1}, (
        "one version of each action"
    )


def test_workflows_run_targets_that_exist_and_pythons_that_the_package_accepts():
    texts = [path.read_text() for path in WORKFLOWS]
    targets = set(re.findall(r"^[a-z-]+(?=:)", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"run: make ([a-z-]+)", "".join(texts))) <= targets
    jobs = [job for text in texts for job in yaml.safe_load(text)["jobs"].values()]
    given = [
        step["with"]["python-version"]
        for job in jobs
        for step in job["steps"]
        if "python-version" in step.get("with", {})
    ]
    given += [
        version
        for job in jobs
        for version in job.get("strategy", {}).get("matrix", {}).get("python", [])
    ]
    accepted = Requirement("python" + PROJECT["requires-python"]).specifier
    assert given and all(accepted.contains(version) for version in given if "matrix" not in version)


def test_pre_commit_runs_the_linters_that_are_locked():
    repo, local = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"].endswith("/ruff-pre-commit")
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"ruff=={repo['rev'].removeprefix('v')}" in lock
    assert set(local["hooks"][0]["additional_dependencies"]) < set(lock)


def test_binder_has_a_pytorch_that_the_package_accepts_and_no_other_list_of_packages():
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
    given = {
        Requirement(line.replace("python=", "python==")).name: line
        for line in environment["dependencies"]
    }
    assert set(given) == {"python", "pip", "pytorch-cpu", "torchvision"}
    assert given["pytorch-cpu"].endswith(str(wanted["torch"].specifier))
    assert given["torchvision"].endswith(str(wanted["torchvision"].specifier))
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(
        given["python"].split("=")[1]
    )
    script = ROOT / "binder" / "postBuild"
    assert script.stat().st_mode & 0o111, "Binder runs it as a program"
    assert subprocess.run(["bash", "-n", script]).returncode == 0


# Citations.

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def entries(path):
    """Return the BibTeX entries of a page by key."""
    blocks = re.findall(r"```bibtex\n(.*?)```", path.read_text(), re.S)
    return {
        key: entry
        for block in blocks
        for key, entry in parse_string(block, "bibtex").entries.items()
    }


def plain(text):
    """Return a BibTeX field without the braces that keep its capitals, in lower case."""
    return re.sub(r"[{}]", "", text).lower()


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_pages_cite_the_paper_as_the_citation_file_does(page):
    paper, cited = CITATION["preferred-citation"], entries(ROOT / page)["kim2024datadream"]
    assert plain(cited.fields["title"]) == paper["title"].lower()
    assert cited.fields["booktitle"] == paper["collection-title"]
    assert int(cited.fields["year"]) == paper["year"]
    names = [
        (" ".join(p.first_names + p.middle_names), " ".join(p.last_names))
        for p in cited.persons["author"]
    ]
    assert names == [(a["given-names"], a["family-names"]) for a in paper["authors"]]
    arxiv = [i["value"] for i in paper["identifiers"]]
    assert "eprint" not in cited.fields or arxiv == [f"arXiv:{cited.fields['eprint']}"]


def test_the_front_page_cites_this_repository_as_the_citation_file_does():
    cited = entries(ROOT / "book" / "index.md")["datadream_reproduced"]
    assert plain(cited.fields["title"]) == CITATION["title"].lower()
    assert plain(cited.fields["version"]) == CITATION["version"] == PROJECT["version"]
    assert [str(p).strip("{}") for p in cited.persons["author"]] == [
        a["name"] for a in CITATION["authors"]
    ]


def test_the_changelog_has_the_version_and_begins_with_what_is_not_released():
    headings = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" and PROJECT["version"] in headings


# Addresses.


def test_each_reference_of_the_book_leads_to_its_source():
    bibliography = parse_string((ROOT / "book" / "references.bib").read_text(), "bibtex")
    assert not [
        key
        for key, entry in bibliography.entries.items()
        if not {"eprint", "doi", "url"} & set(entry.fields)
    ]


def test_each_dataset_of_the_paper_has_an_address():
    assert not [
        name
        for name, source in paper_datasets.SOURCES.items()
        if not source.home.startswith("https://")
    ]


def test_pages_name_a_method_of_others_with_its_address():
    text = (ROOT / "book" / "references.md").read_text()
    others = ("CLIP-LoRA", "Tip-Adapter", "Cross-modal", "ProtoAug")
    for name in ("DataDream", "LoFT", "DISEF", "IsSynth", "CoOp", *others):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        assert "https://arxiv.org/abs/" in row and "https://github.com/" in row
