"""The generated part of a method's page in the book, as Markdown from the code and the records.

A page covers one file of `datadream.methods`: its methods with their settings, costs, accuracies,
samples and code. `book/_ext/method_pages.py` inserts it at the directive `{method-page} FILE`, and
what it comes to in short at `{method-summary} FILE`.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pandas as pd

from ..data.datasets import title_of
from ..methods import registry
from ..methods.base import Method
from ..methods.recipes import method_settings_table
from ..paths import paths
from ..results.comparison import averaged, beside
from ..results.records import (
    bracketed,
    direction,
    in_setting,
    in_shots,
    interval,
    signed,
    signed_interval,
)
from ..results.tables import escape_markdown, listed
from .freeze import MISSING, frozen, load_compared, load_frozen
from .kept_sets import SHOTS

PAGES = "book/methods"  # one page per file, with the file's name
BASE = "real"  # the baseline of every other method
MAIN = "comparison"  # the run whose methods are corrected together, as in book/results.md
PROFILE = "mini"  # of all committed records
COSTS = "optdigits"  # ten classes, as MNIST has, and quick to load
REFUSED = (
    f"There is no record of it: the profile `{PROFILE}`, which this study uses, cannot run it."
)
UNUSED = "not at all"
DETECTED = {
    "more": "a gain is detected",
    "less": "a loss is detected",
    "undecided": "undecided after correction for the number of comparisons",
    "not detected": "no difference is detected",
}


@dataclass(frozen=True)
class MethodFile:
    """A file of `datadream.methods` and the methods that it defines, without their twins."""

    name: str
    module: ModuleType
    methods: tuple[Method, ...]

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(str(self.module.__file__))

    @property
    def lines(self) -> int:
        """The number of its lines."""
        return len(self.path.read_text().splitlines())

    @property
    def idea(self) -> str:
        """What follows the name and the citation in the docstring's first sentence."""
        first = _paragraphs(self.module)[0]
        return re.split(r"(?<=[\w)]): ", first, maxsplit=1)[-1].rstrip(".")

    @property
    def recipe(self) -> str:
        """The docstring after its first paragraph: how the published recipe and ours differ."""
        return "\n\n".join(_paragraphs(self.module)[1:])

    @property
    def names(self) -> list[str]:
        """The methods' names, each followed by that of its twin with real images."""
        known = registry.METHODS
        pairs = ((one.name, f"{one.name}+real") for one in self.methods)
        return [name for pair in pairs for name in pair if name in known]

    @property
    def citations(self) -> list[str]:
        """The bibliography keys that its methods cite, each once."""
        return list(dict.fromkeys(one.cite for one in self.methods if one.cite))


def _paragraphs(module: ModuleType) -> list[str]:
    text = (module.__doc__ or "").strip().split("\n\n")
    return [" ".join(one.split()) for one in text]


@cache
def method_files() -> dict[str, MethodFile]:
    """Return file name -> file, for all modules that define registered methods, in order."""
    found = {}
    for module in vars(registry).values():
        own = getattr(module, "METHODS", ()) if isinstance(module, ModuleType) else ()
        if isinstance(own, tuple):
            found |= {one.name: module for one in own}
    grouped: dict[str, list[Method]] = {}
    modules = {}
    for name in (name for name in registry.METHODS if name in found):
        file = found[name].__name__.rpartition(".")[2]
        modules[file] = found[name]
        grouped.setdefault(file, []).append(registry.METHODS[name])
    return {file: MethodFile(file, modules[file], tuple(own)) for file, own in grouped.items()}


def pages_by_title() -> dict[str, str]:
    """Return title -> page in the book, for the package's own methods."""
    return {
        registry.METHODS[name].title: f"{PAGES}/{file.name}"
        for file in method_files().values()
        for name in file.names
    }


def sections(file: MethodFile, pages: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the sections of a method's page, as (heading, Markdown).

    `pages` are the book's pages, as paths without suffix; only these are linked.
    """
    table = committed()
    parts = [
        ("The published recipe, and ours", recipe_text(file)),
        ("Settings of its own", settings_text(file)),
        ("What it costs", costs_text(file)),
        ("Numbers", numbers_text(file, table, pages)),
        ("Sample images", samples_text(file)),
        ("The code", code_text(file)),
    ]
    return [(heading, text) for heading, text in parts if text]


def summary_text(file: MethodFile, found: pd.DataFrame, table: pd.DataFrame) -> str:
    """Say in short what a file's methods do, what they add to real images alone, and their cost.

    `found` is `against_base` and `table` holds the committed records.
    """
    own = table.loc[table["method"].isin(file.names) & (table["protocol"] == "strict")]
    lines = [f"{_opening(file.idea)}.", *_gains_lines(file, found), *_minutes_lines(own)]
    return "\n".join(["```{admonition} In short", ":class: tip", *(f"- {x}" for x in lines), "```"])


def _opening(text):
    return text[:1].upper() + text[1:]


def _gains_lines(file, found):
    """Return a line for each method of a file that `found` compares with BASE, or say it has none.

    These are the methods that train on the real images too; if the file has none, all of it.
    """
    own = [name for name in file.names if name != BASE]
    own = [name for name in own if registry.METHODS[name].real] or own
    base = escape_markdown(registry.METHODS[BASE].title)
    lines = [f"*{base}* is the baseline of all other methods."] * (BASE in file.names)
    for row in found.loc[found["method"].isin(own)].to_dict("records"):
        title = escape_markdown(registry.METHODS[row["method"]].title)
        span = f", 95 % interval {signed_interval(row)}" if row["seeds"] > 1 else ""
        lines.append(
            f"*{title}* minus *{base}*: {row['difference']:+.1f} points on average over "
            f"{_count(row['settings'], 'setting')} and {_count(row['seeds'], 'seed')}{span}; "
            f"{DETECTED[row['detected']]}."
        )
    if not lines and refused().issuperset(one.name for one in file.methods):
        return [REFUSED]
    return lines or [f"No committed record compares it with *{base}* yet."]


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def _minutes_lines(own):
    if own.empty:
        return []
    minutes = own.groupby(["dataset", "shots", "method"])["seconds"].mean() / 60
    low, high = (f"{value:.1f}" for value in (minutes.min(), minutes.max()))
    said = high if low == high else f"at most {high}" if low == "0.0" else f"{low} to {high}"
    said = "less than 0.1" if high == "0.0" else said
    return [f"Cost: {said} minutes per seed, on the machines that computed it."]


def against_base(main: pd.DataFrame, every: pd.DataFrame) -> pd.DataFrame:
    """Return `comparison.averaged` of methods against BASE, corrected as in book/results.md.

    The methods of the run `main` are corrected together, and so are those of `every` that are not
    in it and train on real images too.
    """
    known = {*main["method"]}
    rest = [name for name in dict.fromkeys(every["method"]) if name not in known | {BASE}]
    rest = [name for name in rest if registry.METHODS[name].real]
    parts = [(main, ()), (every.loc[every["method"].isin([BASE, *rest])], rest)]
    found = [averaged(part, BASE, own) for part, own in parts if BASE in {*part["method"]}]
    return pd.concat(found) if found else pd.DataFrame(columns=["method"])


@cache
def gains() -> pd.DataFrame:
    """Return `against_base` of the committed records, computed once for all pages."""
    table = committed()
    every = table.loc[table["protocol"] == "strict"]
    return against_base(load_frozen(MAIN) if MAIN in frozen() else every.iloc[:0], every)


@cache
def refused() -> frozenset[str]:
    """Return the names of the methods that the profile of all committed records cannot run."""
    from ..study.cells import cells  # here, since both import torch, which takes seconds
    from ..study.grid import refusals

    names = [one.name for file in method_files().values() for one in file.methods]
    recipes = cells(names, profile=PROFILE, dataset=COSTS)
    return frozenset(method for _, _, method in refusals(recipes))


def methods_text(file: MethodFile) -> list[tuple[str, list[str], str]]:
    """Return (name, titles, text) of each method of a file; the twin, if any, is the second title.

    The twin is the variant whose classifier is trained on the few real images too.
    """
    found = []
    for one in file.methods:
        used, twin = uses(one), f"{one.name}+real"
        said = f"Real images are {'not used' if used == UNUSED else f'used {used}'}."
        text, titles = f"`{one.name}` in commands and records. {said}", [one.title]
        if twin in file.names:
            text += f" The classifier of `{twin}` is trained on the few real images too."
            titles.append(registry.METHODS[twin].title)
        found.append((one.name, titles, text))
    return found


def recipe_text(file: MethodFile) -> str:
    """Return the module's own account of the recipe, if it gives one."""
    if not file.recipe:
        return ""
    return (
        f"{file.recipe}\n\n{{doc}}`/book/deviations` compares what all methods share with "
        "DataDream's paper and code."
    )


def settings_text(file: MethodFile) -> str:
    """Tabulate the settings that a file's methods change, beside the profiles' values."""
    rows = method_settings_table([one.name for one in file.methods])
    rows = pd.DataFrame(rows, dtype=object)  # otherwise 7 becomes 7.0 beside 0.5
    if rows.empty:
        return "None: it takes the profile's settings as they are."
    values = [name for name in rows.columns if name not in ("method", "field")]
    rows = rows.map(_value)
    every = "; ".join(one.title for one in file.methods)
    merged = rows.groupby(["field", *values], sort=False)["method"].agg("; ".join).reset_index()
    merged["method"] = merged["method"].replace({every: "all"})
    shown = pd.DataFrame(
        {
            "Setting": [f"`{field}`" for field in merged["field"]],
            "Profile `mini`": _beside(merged["mini"], merged["mini, other methods"]),
            "Profile `paper`": _beside(merged["paper"], merged["paper, other methods"]),
        }
    )
    if len(file.methods) > 1:
        shown.insert(1, "Method", merged["method"].map(escape_markdown))
    return (
        "In brackets is the profile's own value, where it differs. {doc}`/book/deviations` says "
        f"what each setting is.\n\n{markdown_table(shown)}"
    )


def _value(value: object) -> str:
    return str(value) if value != "" else "none"


def _beside(own: Iterable[str], usual: Iterable[str]) -> list[str]:
    return [a if a == b else f"{a} ({b})" for a, b in zip(own, usual, strict=True)]


@cache
def costs() -> pd.DataFrame:
    """Return `study.fairness.fairness` of every method except twins, at the profile's shots.

    The index is the method's name. It is called once for all pages, since it hashes every draw.
    """
    from ..study.cells import cells  # here, since both import torch, which takes seconds
    from ..study.fairness import fairness

    names = [one.name for file in method_files().values() for one in file.methods]
    table = fairness(cells(names, dataset=COSTS))
    table.index = pd.Index(names)
    return table


def costs_text(file: MethodFile) -> str:
    """Tabulate what a file's methods spend for one seed of ten classes."""
    found = costs().loc[[one.name for one in file.methods]]
    shown = pd.DataFrame(
        {
            "Adapters of the generator": _thousands(found["adapters"]),
            "Optimiser steps of all adapters": _thousands(found["adapter steps"]),
            "Synthetic images": _thousands(found["images"]),
            "Passes of the generator": _thousands(found["generator passes"]),
            "Optimiser steps of the classifier": _thousands(found["classifier steps"]),
            "Images in these steps": _thousands(found["images in them"]),
            "Further models": [escape_markdown(text) or "-" for text in found["extra models"]],
            "Uses validation images": [
                "yes" if one else "no" for one in found["chosen on validation"]
            ],
        },
        index=[escape_markdown(title) for title in found["method"]],
    )
    turned = shown.T.rename_axis("For one seed").reset_index()
    return (
        f"With ten classes of {found['shots'].iloc[0]} real images each, in the profile `mini`. A "
        "pass is one evaluation of the generator's network for one image; redrawn images "
        f"count at the maximum number of draws.\n\n{markdown_table(turned, sorts=False)}"
    )


def _thousands(values: Iterable[int]) -> list[str]:
    return [f"{value:,}" for value in values]


@cache
def committed() -> pd.DataFrame:
    """Return `freeze.load_compared`, read once for all pages."""
    return load_compared()


def numbers_text(file: MethodFile, table: pd.DataFrame, pages: Collection[str] = ()) -> str:
    """Tabulate a file's records in `table` beside those of real images alone."""
    found = beside(table.loc[table["protocol"] == "strict"], BASE, file.names)
    lines = _missing(file.methods, {name.removesuffix("+real") for name in found["method"]})
    if found.empty:
        return "\n\n".join(lines or [REFUSED])
    shown = pd.DataFrame([_number_row(row) for row in found.to_dict("records")])
    if set(found["method"]) == {BASE}:
        shown = shown.iloc[:, :4]
    base = escape_markdown(registry.METHODS[BASE].title)
    lines += [
        "Top-1 accuracy on the test images, the mean over seeds with its 95 % interval, over test "
        f"images where all seeds agree. *{base}* has the same seeds, and the difference is paired "
        "by seed. *Not detected* means that the interval includes zero; a difference may still "
        "exist. Intervals are uncorrected; expect one in twenty to miss.",
        markdown_table(shown),
    ]
    runs = sorted(table.loc[table["method"].isin(file.names), "run"].unique())
    linked = [f"{{doc}}`/book/study/{run}`" for run in runs if f"book/study/{run}" in pages]
    if linked:
        lines.append(f"From {listed(linked)}.")
    return "\n\n".join(lines)


def _missing(methods, there):
    """Return a sentence for each of some methods that are not `there` and could be."""
    lost = [one for one in methods if one.name not in there | refused()]
    return [f"**{escape_markdown(one.title)}**: {MISSING}" for one in lost]


def _number_row(row: Mapping) -> dict[str, str]:
    """Return one row of numbers as text."""
    difference = row["difference"]
    told = {f"{registry.METHODS[BASE].title}, %": "", "Difference": "", "Detected": ""}
    if not math.isnan(difference):
        ends = row["least"], row["most"]
        low_to_high = signed_interval({"low": ends[0], "high": ends[1]})
        span = f" {bracketed(low_to_high)}" if row["seeds"] > 1 else ""
        texts = f"{row['base']:.1f}", f"{signed(difference)}{span}", direction(*ends)
        told = dict(zip(told, texts, strict=True))
    own = bracketed(interval(row))
    return {
        "Setting": escape_markdown(in_setting(row["dataset"], row["shots"])),
        "Method": escape_markdown(registry.METHODS[row["method"]].title),
        "Top-1 %": f"{row['top1']:.1f} {own}",
        "Seeds": str(row["seeds"]),
        **told,
    }


def samples_text(file: MethodFile) -> str:
    """Return the committed samples of a file's synthetic sets, and say which are missing."""
    made = [one for one in file.methods if one.generates]
    sheets = [(one, *found) for one in made for found in _sheets(one.name)]
    lines = _missing(made, {one.name for one, *_ in sheets})
    if sheets:
        lines.append(
            "The first images of each class for seed 0, with the real images they are based on."
        )
    for one in made:
        for dataset in dict.fromkeys(where for method, where, _, _ in sheets if method is one):
            own = [row for row in sheets if row[:2] == (one, dataset)]
            title = f"{one.title}, {title_of(dataset)}"
            lines.append(f"**{escape_markdown(title)}**")
            lines.append(_grid(one.title, own))
    return "\n\n".join(lines)


def _sheets(name):
    """Return (dataset, shots, file) of each committed sheet of a method, the fewest shots first."""
    files = paths()["samples"].glob(f"*/*/{name}.png")
    found = [(file.parent.parent.name, int(file.parent.name), file) for file in files]
    return sorted(found)


def _grid(title, sheets):
    """Return sheets side by side, each with its real images above it."""
    cards = []
    for _, dataset, shots, file in sheets:
        real = file.with_name(f"{SHOTS}.png")
        texts = [(real, "Real images"), (file, f"Synthetic images of {title}")]
        images = [
            f"```{{image}} /book/samples/{dataset}/{shots}/{one.name}\n"
            f":alt: {text}, {in_setting(dataset, shots)}\n:class: sheet\n```"
            for one, text in texts
            if one.exists()
        ]
        cards.append("\n\n".join([":::{grid-item}", in_shots(shots), *images, ":::"]))
    return "\n".join(["::::{grid} 1 1 2 3", *cards, "::::"])


def code_text(file: MethodFile) -> str:
    """Link the file's API reference and show all of its code in a collapsed block."""
    path = f"datadream/methods/{file.path.name}"
    return (
        f"All of it is `{path}`, {file.lines} lines; see also {{py:mod}}`{file.module.__name__}` "
        f"in the API reference.\n\n````{{dropdown}} {path}\n"
        f"```{{literalinclude}} /{path}\n:language: python\n```\n````"
    )


def overview() -> str:
    """Tabulate all files: title, idea, what they use the real images for, lines, citation."""
    rows = []
    for file in method_files().values():
        cited = " ".join(f"{{cite:p}}`{key}`" for key in file.citations)
        rows.append(
            {
                "Method": f"{{doc}}`/{PAGES}/{file.name}`",
                "Idea": _opening(file.idea),
                "Real images are used": "; or ".join(dict.fromkeys(map(uses, file.methods))),
                "File": f"`{file.path.name}`",
                "Lines": str(file.lines),
                "Source": cited or "-",
            }
        )
    return markdown_table(pd.DataFrame(rows))


def uses(method: Method) -> str:
    """Say what a method uses the few real images for."""
    from ..methods.recipes import recipe

    own = recipe(method=method.name, dataset=COSTS)
    found = []
    if method.generates:
        found += ["to tune the generator"] * bool(costs().at[method.name, "adapters"])
        found += ["to start images from"] * bool(own.generate.strength)
        found += ["as prompts"] * bool(own.generate.image_prompts)
    if method.real:
        found.append("to train the classifier")
    return listed(found) if found else UNUSED


def markdown_table(frame: pd.DataFrame, sorts: bool = True) -> str:
    """Return a Markdown table; with `sorts`, its headers sort it in the book."""

    def line(cells: Iterable[object]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    head = [line(frame.columns), line(["---"] * len(frame.columns))]
    body = [line(row) for row in frame.itertuples(index=False)]
    options = [":class: results", ""] if sorts else []
    return "\n".join(["```{table}", *options, *head, *body, "```"])
