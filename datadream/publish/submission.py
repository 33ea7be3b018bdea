"""Submissions to the leaderboard: the records of a user's method, packed and checked.

`contrib/<name>/` holds `submission.json`, which describes the method and links its code, and
`records.jsonl`, with one record per line, as written by this package's cells.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..config import PROFILES, as_dict
from ..errors import ConfigError, DataError
from ..methods.recipes import recipe
from ..methods.registry import METHODS
from ..paths import paths
from ..results.record import read_record, record_key, record_row
from ..results.records import in_shots, summary, tidy
from ..statistics import wilson
from ..store.artifacts import Store
from ..store.files import reading, write_json, writing
from ..store.open import open_store
from .freeze import load_all_frozen, load_compared

FORMAT = 1
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
SEEDS = 3  # least number per setting, for an interval over seeds
# Settings that belong to the comparison, not to a method: other values need a reason.
COMMON = (
    "classifier", "precision", "protocol", "shots_folder", "test_folder", "validation",
    "generate.images", "classify.batch", "classify.epochs", "classify.steps", "classify.select",
)  # fmt: skip
BOARD = [
    "dataset", "shots", "method", "title", "seeds", "top1", "low", "high", "seconds", "contributed",
    "code", "reasons",
]  # fmt: skip
FIELDS = {"format": int, "name": str, "methods": dict, "code": str, "author": str, "reasons": dict}


def submit(
    names: Sequence[str], code: str, *, author: str = "", reasons: Mapping[str, str] | None = None,
    target: Path | None = None, store: Store | None = None,
) -> Path:  # fmt: skip
    """Pack the store's records of some methods into `contrib/<first name>` and return the folder.

    `code` is the URL of the method's code. `reasons` maps a setting that all methods share to a
    sentence that says why its value differs. Raises ConfigError, and writes nothing, if `problems`
    finds any.
    """
    store = store or open_store()
    methods = {name: METHODS.find(name) for name in names}
    if not methods:
        raise ConfigError("no method is named; give one or more, e.g. mine mine+real")
    records = [read_record(file) for file in sorted(store.refresh_all(store.records))]
    own = [record for record in records if record["recipe"]["method"] in methods]
    head = {
        "format": FORMAT,
        "name": names[0].replace("+", "-").lower(),
        "methods": {
            name: {"title": one.title, "cite": one.cite, "real": one.real}
            for name, one in methods.items()
        },
        "code": code,
        "author": author,
        "reasons": dict(reasons or {}),
    }
    if wrong := problems(head, own):
        raise ConfigError("this cannot be submitted: " + "; ".join(wrong))
    folder = Path(target or paths()["contrib"] / head["name"])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(one, sort_keys=True) + "\n" for one in sorted(own, key=_place)]
        (folder / "records.jsonl").write_text("".join(lines))
    write_json(folder / "submission.json", head)
    return folder


def _place(record):
    own = record["recipe"]
    return own["dataset"], own["shots"], own["method"], own["seed"], record["key"]


def read_submission(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the content of a folder of contrib: (submission.json, its records).

    Raises DataError on a file that is missing or is not JSON.
    """
    try:
        with reading(folder):
            head = json.loads((folder / "submission.json").read_text())
            lines = (folder / "records.jsonl").read_text().splitlines()
            return head, [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{folder} is not a submission ({error}); `datadream submit` writes submission.json "
            "and records.jsonl"
        ) from error


def problems(head: Any, records: Sequence[Any]) -> list[str]:
    """Return what is wrong with a submission, one sentence each; empty if it can be shown.

    Checks its form, each record's key and numbers, that each setting has enough seeds and the same
    ones for all of its methods, that nothing was selected on test data, and that shared settings
    have the profile's value or a reason.
    """
    found = _wrong_head(head)
    if found:
        return found
    if not records:
        return [f"there is no record of {', '.join(head['methods'])}; run its cells first"]
    found = _each(records, head, _wrong_record)
    return found or [*_each(records, head, _unexplained), *_wrong_grid(records, head)]


def _each(records, head, look):
    """Return what `look` finds in the records, each kind of fault once."""
    wrong: dict[str, list[int]] = {}
    for number, record in enumerate(records, 1):
        for why in look(record, head):
            wrong.setdefault(why, []).append(number)
    return [f"{_numbered(numbers)}: {why}" for why, numbers in wrong.items()]


def _numbered(numbers):
    if len(numbers) == 1:
        return f"record {numbers[0]}"
    return f"{len(numbers)} records, the first {numbers[0]}"


def _wrong_head(head):
    if not isinstance(head, dict):
        return ["submission.json holds no object"]
    found = [
        f"{name}={head.get(name)!r} in submission.json; give {kind.__name__}"
        for name, kind in FIELDS.items()
        if type(head.get(name)) is not kind
    ]
    if found:
        return found
    if head["format"] != FORMAT:
        found.append(f"format={head['format']}; this version reads {FORMAT}")
    if not NAME.fullmatch(head["name"]):
        found.append(f"name={head['name']!r}; give lower-case letters, digits, '-' and '_'")
    if not re.match(r"https?://[^\s/]+/\S", head["code"]):
        found.append(f"code={head['code']!r}; give the web address of the method's code")
    titles = [one.get("title") for one in head["methods"].values() if isinstance(one, dict)]
    if not titles or len(titles) < len(head["methods"]) or not all(map(_is_text, titles)):
        found.append("methods in submission.json; give name -> {title, cite, real} for one or more")
    if not all(map(_is_text, head["reasons"].values())):
        found.append("reasons in submission.json; give setting -> sentence")
    return found


def _is_text(value):
    return isinstance(value, str) and bool(value.strip())


def _wrong_record(record, head):
    """Return what is wrong with a single record."""
    try:
        own, test, row = record["recipe"], record["result"]["test"], record_row(record)
        expected = record_key(own, record["artifacts"])
        matrix, total = row["confusion"], row["total"]
        trace = sum(matrix[i][i] for i in range(len(matrix)))
        low, high = wilson(trace, total)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        return [f"it is not a record of this package ({error!r})"]
    found = []
    if own["method"] not in head["methods"]:
        found.append(f"it is of {own['method']!r}, which submission.json does not name")
    if record["key"] != expected:
        found.append(f"its key is {record['key']} and not that of its recipe, {expected}")
    if sum(map(sum, matrix)) != total or abs(test["top1"] - trace / total) > 1e-9:
        found.append(f"top1={test['top1']} of {total} images does not follow from its confusions")
    if max(abs(test["low"] - low), abs(test["high"] - high)) > 1e-6:
        found.append(f"its interval {test['low']} to {test['high']} is not Wilson's")
    if own["protocol"] != "strict":
        found.append(f"protocol={own['protocol']!r} chooses on test images; give 'strict'")
    if own["profile"] not in PROFILES:
        found.append(f"profile={own['profile']!r}; accepted: {', '.join(PROFILES)}")
    return found


def _unexplained(record, head):
    """Return which shared settings of a record differ without a reason."""
    own = record["recipe"]
    usual = as_dict(recipe(own["profile"]))
    return [
        f"{name}={own[name]!r} where all methods have {usual[name]!r}, and no reason is given; "
        f"take the profile's, or say why with --reason {name}=..."
        for name in COMMON
        if name in own and own[name] != usual[name] and name not in head["reasons"]
    ]


def _wrong_grid(records, head):
    """Return what is wrong with the settings and seeds of all records together."""
    found = []
    cells = Counter(_place(record)[:4] for record in records)
    found += [
        f"there are {count} records of {cell[2]} with {in_shots(cell[1])} and seed {cell[3]} on "
        f"{cell[0]}; take out of artifacts/records what is not meant"
        for cell, count in cells.items()
        if count > 1
    ]
    by_setting: dict[Any, dict[str, set[int]]] = {}
    for dataset, shots, method, seed in cells:
        own = by_setting.setdefault((dataset, shots), {name: set() for name in head["methods"]})
        own[method].add(seed)
    for (dataset, shots), own in by_setting.items():
        where = f"{dataset}, {in_shots(shots)}"
        every = set.union(*own.values())
        if len(every) < SEEDS:
            found.append(f"{where}: {len(every)} seeds; give {SEEDS} or more")
        for method, seeds in own.items():
            if seeds and seeds != every:
                lacking = sorted(every - seeds)
                found.append(f"{where}: {method} lacks the seeds {lacking} of the others")
    totals: dict[str, set[int]] = {}
    for record in records:
        test = record["result"]["test"]
        totals.setdefault(record["recipe"]["dataset"], set()).add(test["total"])
    found += [
        f"{dataset}: records were judged on {sorted(counts)} test images; all must be the same"
        for dataset, counts in totals.items()
        if len(counts) > 1
    ]
    return found


def submissions() -> list[Path]:
    """Return the folders of contrib, sorted by name."""
    root = paths()["contrib"]
    return sorted(file.parent for file in root.glob("*/submission.json")) if root.is_dir() else []


def check(folder: Path) -> list[str]:
    """Return what is wrong with a folder of contrib, as `problems` does.

    Also checks that it has as many test images as the study on the same dataset. Raises as
    `read_submission` does.
    """
    head, records = read_submission(folder)
    found = problems(head, records)
    if not found and head["name"] != folder.name:
        found = [f"name={head['name']!r} is not that of its folder, {folder.name}"]
    return found or _other_images(records)


def _other_images(records):
    ours = load_all_frozen()
    found = []
    for own in {(one["recipe"]["dataset"], one["result"]["test"]["total"]) for one in records}:
        known = set(ours.loc[ours["dataset"] == own[0], "total"])
        if known and own[1] not in known:
            found.append(f"{own[0]}: judged on {own[1]} test images, where the study has {known}")
    return found


def leaderboard() -> pd.DataFrame:
    """Return the leaderboard: the committed study's comparable cells and the submitted ones.

    One row per dataset, shots and method: title, seeds, mean top-1 in percent with the interval of
    `records.summary`, mean seconds, contributor ("" for this study), URL of the code, and the
    reasons for shared settings that differ, as (setting, sentence).
    """
    rows = _lines(load_compared(), {}, "", "")
    for folder in submissions():
        head, records = read_submission(folder)
        titles = {name: one["title"] for name, one in head["methods"].items()}
        author = head["author"] or head["name"]
        reasons = tuple(head["reasons"].items())
        rows += _lines(tidy(records), titles, author, head["code"], reasons)
    table = pd.DataFrame(rows, columns=BOARD)
    return table.sort_values(["dataset", "shots", "top1"], ascending=[True, True, False],
                             ignore_index=True)  # fmt: skip


def _lines(table, titles, author, code, reasons=()):
    rows = []
    for (dataset, shots), part in table.groupby(["dataset", "shots"], sort=False):
        seconds = part.groupby("method")["seconds"].mean()
        for row in summary(part).to_dict("records"):
            own = {name: row[name] for name in ("method", "title", "seeds", "top1", "low", "high")}
            own["title"] = titles.get(row["method"], row["title"])
            where = {"dataset": dataset, "shots": shots, "seconds": seconds[row["method"]]}
            rows.append({**where, **own, "contributed": author, "code": code, "reasons": reasons})
    return rows
