"""The promises that hold for the files rather than for a function: versions agree, nothing is
stray, everything is short.
"""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "datadream").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Where the paper's method is: the order in which the book walks through it.
METHOD = [
    "methods/datadream",
    *(f"pipeline/{name}" for name in "adapt generate train evaluate stages".split()),
]


def lock_lines():
    """Return the lock's requirements as text, without comments."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def tracked():
    """Return the files that git tracks, or all but the ignored ones where the tree is no git
    checkout.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock():
    pins = [Requirement(line) for line in lock_lines()]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_the_lock_pins_every_dependency_at_a_version_that_pyproject_accepts(project, lock):
    extras = project["optional-dependencies"]
    assert {"book", "ray", "test", "fonts"} <= set(extras)
    for text in project["dependencies"] + [text for extra in extras.values() for text in extra]:
        wanted = Requirement(text)
        assert canonicalize_name(wanted.name) in lock, (
            f"{wanted.name} of pyproject.toml is not in requirements.lock"
        )
        (pin,) = lock[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(pin.version, prereleases=True), (
            f"the lock has {pin}, pyproject.toml wants {wanted}"
        )


def test_the_lock_is_exact_sorted_and_has_no_address():
    names = []
    for line in lock_lines():
        match = re.fullmatch(
            r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)( ; sys_platform == \"linux\")?", line
        )
        assert match, f"{line!r} is not name==version"
        names.append(canonicalize_name(match[1]))
    assert names == sorted(set(names)), "sort the lock, one line a package"
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and " @ " not in text and not re.search(r"(^|\s)/\w", text)
    assert not {"datadream", "pip", "setuptools", "uv", "wheel"} & set(names)


def test_notebooks_open_in_jupyterlab_with_bars_and_figures_at_once(project, lock):
    wanted = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert {"ipykernel", "ipywidgets", "jupyter", "jupyterlab", "seaborn"} <= wanted & set(lock)


def test_conda_users_install_the_same_lock(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (python,) = [entry for entry in conda if entry.startswith("python")]
    assert Requirement("python" + project["requires-python"]).specifier.contains(
        python.split("=")[1]
    )
    assert "pip" in conda
    assert pip[0] == "-r requirements.lock"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", pip[1])[1].split(",")
    assert sorted(extras) == sorted(project["optional-dependencies"])


def test_every_font_family_of_the_base_training_is_in_the_fonts_extra(project):
    from datadream.data.printed import FAMILIES

    listed = [Requirement(text).name for text in project["optional-dependencies"]["fonts"]]
    assert sorted(listed) == sorted("fontpkg-" + family.replace("_", "-") for family in FAMILIES)


@pytest.mark.parametrize(
    "target",
    [
        "help",
        "venv",
        "study",
        "study-full",
        "study-ablations",
        "book",
        "test",
        "lint",
        "lab",
        "fault-test",
        "smoke",
        "site-test",
        "base",
        "clean",
    ],
)
def test_make_knows_the_target(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_study_needs_is_in_the_repository():
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    needed = {
        "LICENSE",
        "CITATION.cff",
        "README.md",
        "Makefile",
        ".ci/run",
        "_config.yml",
        "_toc.yml",
        "notebooks/study.yaml",
    }
    assert needed <= names
    assert any(
        name.startswith("datadream/mini/") and name.endswith(".safetensors") for name in names
    )


def test_the_weights_are_small_and_nothing_is_a_pickle():
    files = tracked()
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 25e6
    stray = [
        path
        for path in files
        if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy"}
    ]
    assert not stray


def test_no_file_names_a_folder_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(home|Users|root|mnt|work|opt)/\w")
    texts = [
        path
        for path in tracked()
        if path.suffix
        in {".py", ".md", ".yml", ".yaml", ".toml", ".lock", ".ipynb", ".json", ".cff"}
    ]
    found = [
        f"{path.name}: {line.strip()[:100]}"
        for path in [*texts, ROOT / "Makefile"]
        for line in path.read_text().splitlines()
        if pattern.search(line)
    ]
    assert not found


def test_the_readme_s_tree_names_every_folder():
    tree = (ROOT / "README.md").read_text().partition("## What is where")[2].split("```")[1]
    named = {line.split("/")[0].strip() for line in tree.splitlines() if "/" in line}
    folders = {
        path.relative_to(ROOT).parts[0]
        for path in tracked()
        if len(path.relative_to(ROOT).parts) > 1
    }
    assert {name for name in folders if not name.startswith(".")} <= named


def test_what_the_documented_commands_write_is_ignored_by_git():
    text = "".join(
        path.read_text() for path in [ROOT / "README.md", *(ROOT / "book").rglob("*.md")]
    )
    written = re.findall(r"papermill notebooks/\S+ (\S+\.ipynb)", text) + re.findall(
        r"export generate-<key> (\w+)", text
    )
    assert {"out.ipynb", "photos.ipynb", "my_set"} <= set(written)
    tracked()  # skips where there is no git
    names = [name if name.endswith(".ipynb") else f"{name}/" for name in written]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *names], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert ignored == names


def hidden_modules(source, path=ROOT / "datadream" / "data" / "images.py"):
    """Return the names of imported modules that a function of the source of `path` uses for
    something else.
    """
    tree = ast.parse(source)
    modules = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules |= {
                alias.asname or alias.name
                for alias in node.names
                if (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
            }
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    inner = [node for function in functions for node in ast.walk(function)]
    local = {
        node.id for node in inner if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    local |= {node.arg for node in inner if isinstance(node, ast.arg)}
    return sorted(local & modules)


def test_a_local_name_that_hides_a_module_is_found():
    loop = "from . import transforms\n\ndef f(x):\n    for i in x:\n        transforms = i\n"
    assert (
        hidden_modules(loop) == ["transforms"]
        and hidden_modules("import os\n\ndef f(x):\n    y = os.sep\n") == []
    )


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_local_name_hides_an_imported_module(path):
    """The first use works and the second finds the local value; no rule of the linter reports
    it.
    """
    assert hidden_modules(path.read_text(), path) == []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_function_fits_a_screen(path):
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in functions
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert not long


def test_the_method_is_read_in_one_sitting():
    """Imports do not count: the formatter gives each name of a long one a line."""
    package, lines = ROOT / "datadream", {}
    for path in [package / "methods" / "datadream.py", *(package / "pipeline").glob("*.py")]:
        text = path.read_text()
        imports = [
            node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        counted = sum(node.end_lineno - node.lineno + 1 for node in imports)
        lines[path.relative_to(package).with_suffix("").as_posix()] = (
            len(text.splitlines()) - counted
        )
    assert set(lines) == {*METHOD, "pipeline/__init__"}
    assert sum(lines.values()) <= 900, lines


def test_the_page_of_the_method_walks_through_its_files_in_order():
    page = (ROOT / "book" / "method.md").read_text()
    shown = re.findall(r"literalinclude\} \.\./datadream/(\w+/\w+)\.py", page)
    own = [name for name in dict.fromkeys(shown) if name in METHOD]
    assert own == METHOD


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_template_has_parameters_short_cells_and_no_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])], (
        "papermill needs a tagged cell"
    )
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]], (
        "clear the outputs before committing"
    )
    long = [
        "".join(cell["source"])
        for cell in code
        if "".join(cell["source"]).rstrip().count("\n") + 1 > 15
    ]
    assert not long, "a cell has at most 15 lines; move what is longer into the package"


def test_the_reference_holds_every_module_and_all_that_is_public():
    text = (ROOT / "book" / "api.md").read_text()
    shown = re.findall(r"automodule:: datadream\.([\w.]+)", text)
    modules = {
        ".".join(path.relative_to(ROOT / "datadream").with_suffix("").parts): path
        for path in PACKAGE
        if not path.stem.startswith("__") and path.parent.name != "mini"
    }
    assert sorted(shown) == sorted(modules)
    public = [
        (name, node)
        for name, path in modules.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert not [f"{name}.{node.name}" for name, node in public if not ast.get_docstring(node)], (
        "what has no docstring is left out of it"
    )


def test_no_class_shares_its_name_with_another():
    """A page of the reference could not tell which of two is meant, and its build would fail."""
    names = [
        node.name
        for path in PACKAGE
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not {name for name in names if names.count(name) > 1}


def plotting_cells():
    """Return (page, source, metadata) of every cell of the notebooks and the book's pages that
    draws a figure.
    """
    cells = [
        (path.name, "".join(cell["source"]), cell["metadata"])
        for path in NOTEBOOKS
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    for path in sorted((ROOT / "book").rglob("*.md")):
        for block in re.findall(r"(?ms)^```\{code-cell\} ipython3\n(.*?)^```$", path.read_text()):
            head = re.match(r"(?s)---\n(.*?)^---\n", block, re.M)
            cells.append((path.name, block, yaml.safe_load(head[1]) if head else {}))
    # a helper that returns a figure is called in another cell, which is the one that shows it
    return [
        cell for cell in cells if re.search(r"^(?!\s+return).*\bplot_\w+\(|^draw\(", cell[1], re.M)
    ]


def test_every_figure_has_an_alternative_text():
    cells = plotting_cells()
    assert {
        "results.md",
        "ablations.md",
        "dataset.ipynb",
        "analysis.ipynb",
        "ablation.ipynb",
        "your_data.ipynb",
        "mini_base.ipynb",
    } <= {c[0] for c in cells}
    assert not [
        (page, source[:60])
        for page, source, metadata in cells
        if not metadata.get("mystnb", {}).get("image", {}).get("alt")
    ]


def files_of(chapters):
    """Return the pages of chapters and of their sections."""
    return [
        name
        for chapter in chapters
        for name in (chapter["file"], *files_of(chapter.get("sections", [])))
    ]


def test_the_book_pages_exist_or_are_made_by_the_study():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    runs = yaml.safe_load((ROOT / "notebooks" / "study.yaml").read_text())["runs"]
    for page in [
        contents["root"],
        *(name for part in contents["parts"] for name in files_of(part["chapters"])),
    ]:
        if page.startswith("book/study/"):
            assert {"full", "fast", "ablations"} & set(runs[Path(page).name]["groups"]), (
                f"no run that is kept is called {Path(page).name!r}"
            )
        else:
            assert (ROOT / f"{page}.md").is_file(), page
