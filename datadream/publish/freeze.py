"""What the book keeps in git: executed pages without bulk, their records, and the contents."""

import base64
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image

from ..errors import ConfigError, DataError
from ..paths import paths
from ..results.benchmark_tables import stage_seconds
from ..results.committed import read_committed, write_committed
from ..results.images import load_predictions
from ..results.record import read_record, record_row
from ..results.records import in_order, in_profile, tidy
from ..store.artifacts import Store
from ..store.files import reading, write_json, writing
from ..store.open import open_store
from ..study import outcome
from ..study.named_runs import cells_of, choose, load_study

LIMIT = 1_000_000  # bytes of a kept page: git stores every version of it
COLOURS = 128  # of a figure in a kept page; plots and digits need no more
SHOWN = ("dataset", "comparison")  # the notebooks whose synthetic sets are shown
OWN = "Your own run"
FAILED = ".failed"  # suffix of the page left by a failed run
MISSING = (
    "*This piece of the study is not in the repository yet; `make study-full` and `make "
    "study-ablations` compute and keep them.*"
)


def freeze_study(group: str = "full", store: Store | None = None) -> pd.DataFrame:
    """Copy the finished pages of a group, and the data behind them, to the book's folders.

    These are the cells' records and test predictions, in book/study, and a sheet of each synthetic
    set, in book/samples. Returns a table of run, status and kilobytes. If a run has not finished
    here, what an earlier call kept of it, perhaps on another machine, stays. Raises LookupError if
    a finished page's records are missing, and DataError if a page or a set is too large for git.
    """
    # Imported here: the book's pages read what is kept, and should not wait seconds for PyTorch.
    from ..results.analysis import measure_sets
    from .kept_sets import keep_sets

    store, target, rows = store or open_store(), paths()["kept_pages"], []
    target.mkdir(parents=True, exist_ok=True)
    lines = committed_records()
    for name, entry in choose(load_study(), (), group).items():
        notebook = _finished(name, entry)
        if notebook is None:
            known = (target / f"{name}.ipynb").exists()
            rows.append(
                {
                    "run": name,
                    "status": "kept before" if known else "has not ended here",
                    "kB": None,
                }
            )
            continue
        cells = cells_of(entry)
        _keep_records(name, cells, lines, store)
        if entry["notebook"] in SHOWN:
            keep_sets([recipe for some in cells.values() for recipe in some], store)
        if entry["notebook"] == "analysis":
            measure_sets([cell for some in cells.values() for cell in some], store).to_csv(
                _measures(name), index=False, float_format="%.6g"
            )
        size = _write_page(target / f"{name}.ipynb", notebook)
        rows.append({"run": name, "status": "kept", "kB": size // 1000})
    _keep_predictions(lines.values(), store)
    text = "".join(
        json.dumps(line, sort_keys=True) + "\n" for _, line in sorted(lines.items()) if line["runs"]
    )
    with writing(target):
        paths()["kept_records"].write_text(text)
    return pd.DataFrame(rows)


def committed_records() -> dict[str, dict[str, Any]]:
    """Return the committed records by their keys, each with `runs`: run -> label -> position."""
    return {line["key"]: line for line in _lines()}


def frozen() -> list[str]:
    """Return the names of the runs whose records are committed."""
    return _runs(_lines())


def _runs(lines):
    return sorted({name for line in lines for name in line["runs"]})


def load_frozen(name: str) -> pd.DataFrame:
    """Load a run's committed records, as records.load_records does, with a column `value`.

    `value` is the point of an ablation. Raises LookupError if no records are kept under this name.
    """
    lines = [line for line in _lines() if name in line["runs"]]
    labels = {label: place for line in lines for label, place in line["runs"][name].items()}
    if not lines:
        raise LookupError(
            f"{paths()['kept_records'].name} has no record of the run {name!r}; `make study-full` "
            "computes and keeps them"
        )
    return pd.concat(
        [
            tidy([line for line in lines if label in line["runs"][name]]).assign(value=label)
            for label in sorted(labels, key=lambda label: labels[label])
        ],
        ignore_index=True,
    )


def load_all_frozen() -> pd.DataFrame:
    """Load all committed records with a column `run`, once for each run that shows them.

    Without any, as with an installed package, the table is empty but has these columns.
    """
    lines = _lines()
    tables = [
        tidy([line for line in lines if name in line["runs"]]).assign(run=name)
        for name in _runs(lines)
    ]
    return pd.concat(tables or [tidy([]).assign(run="")], ignore_index=True)


def load_compared() -> pd.DataFrame:
    """Load the committed records that can be compared: `records.in_profile` of all of them.

    A cell's accuracy does not depend on the run that computed it; the column `run` names one of
    them.
    """
    return in_order(in_profile(load_all_frozen()), ["dataset", "shots", "method", "seed"])


def durations() -> pd.DataFrame:
    """Return the minutes of one core that the stages of each committed piece took.

    An artifact that several runs share counts for the first of them in the study file, which
    computed it, and a run without any of its own has no row. Columns: run, minutes, groups.
    """
    table, counted, rows = load_all_frozen(), set(), []
    for name, entry in load_study()["runs"].items():
        seconds = stage_seconds(table.loc[table["run"] == name])
        own = [value for stage, value in seconds.items() if stage not in counted]
        counted |= seconds.keys()
        if sum(own):
            minutes = sum(own) / 60
            rows.append({"run": name, "minutes": minutes, "groups": entry.get("groups", [])})
    return pd.DataFrame(rows, columns=["run", "minutes", "groups"])


def kept_outputs(name: str, heading: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (data, metadata) of what the cells of a kept page's section show, in its order.

    `display(data, metadata=metadata, raw=True)` shows it again. There is none where the page or the
    section is not kept.
    """
    file, inside, found = paths()["kept_pages"] / f"{name}.ipynb", False, []
    for cell in json.loads(file.read_text())["cells"] if file.exists() else []:
        if cell["cell_type"] == "markdown":
            for title in re.findall(r"^## (.+)$", "".join(cell["source"]), re.M):
                inside = title == heading
        elif inside:
            for one in (one for one in cell["outputs"] if "data" in one):
                # A notebook on disk keeps long texts as lists of lines.
                data = {
                    kind: "".join(text) if isinstance(text, list) else text
                    for kind, text in one["data"].items()
                }
                found.append((data, one.get("metadata", {})))
    return found


def load_measures(name: str) -> pd.DataFrame:
    """Load the committed table of an analysis run, as analysis.measure_sets gives it.

    Raises LookupError if none is kept.
    """
    if not _measures(name).exists():
        raise LookupError(
            f"{_measures(name).name} is not kept; `make study-full` computes and keeps it"
        )
    return pd.read_csv(_measures(name), dtype={"class": str}).astype({"label": "Int64"})


def _measures(name):
    return paths()["kept_pages"] / f"{name}.csv"


def _lines():
    file = paths()["kept_records"]
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _finished(name, entry):
    """Return the notebook of a run that ended well with study.yaml's current parameters, or None.

    Raises StoreError on one that cannot be read.
    """
    file = paths()["runs"] / f"{name}.ipynb"
    try:
        with reading(file):
            notebook = json.loads(file.read_text())
        notes = notebook["metadata"]["papermill"]
        return (
            notebook
            if not notes["exception"] and notes["parameters"] == entry.get("parameters", {})
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_records(name, cells, lines, store):
    """Put the run's records, of `cells` by label, into `lines`, replacing its earlier ones.

    `lines` maps key -> record with `runs`: run -> label -> position.
    """
    from ..pipeline.stages import Cell
    from ..results.record import record_file

    for line in lines.values():
        line["runs"].pop(name, None)
    for place, (label, recipes) in enumerate(cells.items()):
        for recipe in recipes:
            file = record_file(Cell(recipe), store)
            if store.refresh(file).exists():
                record = read_record(file)
            elif file.stem in lines:  # computed on another machine, and kept
                record = lines[file.stem]
            else:
                raise LookupError(
                    f"the page of {name} is there and its record {file.name} is not; run `python "
                    f"-m datadream study {name}` again"
                )
            line = lines.setdefault(record["key"], {**record, "runs": {}})
            lines[record["key"]] = {
                **record,
                "runs": line["runs"] | {name: line["runs"].get(name, {}) | {label: place}},
            }


def _keep_predictions(lines, store):
    """Keep the test predictions of all records that a run shows, where available.

    They come from the store, or were kept before.
    """
    settings = {}
    for line in (line for line in lines if line["runs"]):
        row = record_row(line)
        settings.setdefault((row["dataset"], int(row["shots"])), []).append(row)
    for (dataset, shots), rows in settings.items():
        before, found = read_committed(dataset, shots), {}
        for row in rows:
            name = row["artifacts"]["judge"]
            with suppress(LookupError):  # a result of an earlier version has none
                found[name] = before[name] if name in before else load_predictions(row, store)
        if found.keys() != before.keys():
            write_committed(dataset, shots, found)


def _write_page(file, notebook):
    """Write an executed page and return its size in bytes.

    Leaves out the paths and times of its machine, and reduces the colours of its figures.
    """
    ran = notebook["metadata"]["papermill"]
    notebook["metadata"] = {
        **{k: v for k, v in notebook["metadata"].items() if k in ("kernelspec", "language_info")},
        "papermill": {"parameters": ran["parameters"], "duration": ran.get("duration")},
    }
    notebook["cells"][0]["source"] = _headed(
        "".join(notebook["cells"][0]["source"]), ran["parameters"], _title_of(file.stem)
    )
    for cell in notebook["cells"]:
        # Keeps what is hidden, captions, alternative texts.
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k in ("tags", "mystnb")}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _few_colours(output["data"]["image/png"])
    write_json(file, notebook)
    size = file.stat().st_size
    if size > LIMIT:
        file.unlink()
        raise DataError(
            f"the page {file.name} takes {size / 1e6:.1f} MB, at most {LIMIT / 1e6:g} are kept; "
            "let its notebook show fewer images"
        )
    return size


def _title_of(name):
    """Return a page's title in the committed table of contents, "" if it has none."""
    file = paths()["home"] / "_toc.yml"
    chapters = yaml.safe_load(file.read_text())["parts"] if file.exists() else []
    while chapters:
        one = chapters.pop()
        if one.get("file") == f"book/study/{name}":
            return one.get("title", "")
        chapters += one.get("chapters", []) + one.get("sections", [])
    return ""


def _headed(text, parameters, title=""):
    """Return a page's first cell with a heading of its own.

    It lets a search tell pages of one template apart: by question, title in the contents, or
    dataset.
    """
    if "question" in parameters:
        return re.sub(r"\A# .*", lambda _: f"# {parameters['question']}", text)
    own = title or parameters.get("dataset", "")
    if own and not text.startswith(f"# {own}\n"):
        return re.sub(r"\A# (.)", lambda first: f"# {own}: {first[1].lower()}", text)
    return text


def _few_colours(encoded):
    data, small = base64.b64decode(encoded), io.BytesIO()
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    # Without transparency a better colour quantiser can be used.
    if image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(min(data, small.getvalue(), key=len)).decode()


def write_contents() -> Path:
    """Write the book's table of contents: _toc.yml, plus the pages of book/runs as a last part.

    Returns its file. A failed run has a page of what it had done, beside that of an earlier run if
    there is one. Study pages that are not kept yet are left out. Raises ConfigError on a _toc.yml
    without parts.
    """
    contents = yaml.safe_load((paths()["home"] / "_toc.yml").read_text())
    if not isinstance(contents, dict) or "parts" not in contents:
        raise ConfigError("_toc.yml has no 'parts'; each lists the chapters of a part of the book")
    for part in contents["parts"]:
        part["chapters"] = _there(part["chapters"])
    if own := _own_chapters():
        named = [part for part in contents["parts"] if part.get("caption") == OWN]
        part = named[0] if named else {"caption": OWN, "chapters": []}
        part["chapters"] += own
        contents["parts"] += [] if named else [part]
    file = paths()["contents"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(contents, sort_keys=False))
    return file


def _own_chapters():
    """Return the chapters of book/runs: a page per run, and the remains of failed ones."""
    failed = {row["run"] for row in outcome.failures() if row["page"]}
    done = {page.stem for page in paths()["runs"].glob("*.ipynb") if not page.stem.endswith(FAILED)}
    chapters = []
    for name in sorted(failed | done):
        title = name.replace("_", " ")
        if name in failed:
            chapters.append({"file": f"book/runs/{name}{FAILED}", "title": f"{title} (failed)"})
        if name in done:
            chapters.append(
                {
                    "file": f"book/runs/{name}",
                    "title": f"{title} (an earlier run)" if name in failed else title,
                }
            )
    return chapters


def _there(chapters):
    """Return the chapters without those whose kept page does not exist."""
    home, folder = paths()["home"], paths()["kept_pages"]
    pages = [home / f"{chapter['file']}.ipynb" for chapter in chapters]
    found = [
        chapter
        for chapter, page in zip(chapters, pages, strict=True)
        if page.parent != folder or page.exists()
    ]
    for chapter in found:
        sections = _there(chapter.pop("sections", []))
        chapter |= {"sections": sections} if sections else {}  # Jupyter Book refuses an empty list
    return found
