"""The named runs of notebooks/study.yaml and the cells that they stand for."""

import json
import math
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import Recipe, as_mapping, parsed
from ..errors import ConfigError, did_you_mean
from ..paths import paths
from . import parameters
from .cells import cells

JOBS = "DATADREAM_JOBS"  # named runs executed at once beside this notebook
VALUES = 10_000  # most values in a study file, with aliases followed
# A notebook's parameters that say how its cells are run, and what its page shows of them.
RUNNING, SHOWN = ("workers", "engine", "committed"), ("question", "baseline", "helped")


def points(axis: str, values: Any) -> dict[str, dict[str, Any]]:
    """Return label -> overrides for each point of an axis.

    `values` is a list of values of the setting `axis`, or a mapping from label to overrides, for
    which `axis` is merely a title; either may be JSON text. Raises ConfigError on anything else.
    """
    values = parsed(values)
    if isinstance(values, dict) and values and all(isinstance(v, dict) for v in values.values()):
        return {str(label): dict(overrides) for label, overrides in values.items()}
    if isinstance(values, list) and values:
        return {str(value): {axis: value} for value in values}
    raise ConfigError(
        f"values={values!r} is neither a list of values of {axis!r} nor a mapping of a label to "
        f"its overrides, e.g. {{'PNDM, 50 steps': {{'generate.scheduler': 'pipeline', "
        f"'generate.steps': 50}}}}"
    )


def axis_cells(
    axis: str, values: Any, overrides: Mapping[str, Any] | None = None, **shared: Any
) -> dict[str, list[Recipe]]:
    """Return label -> recipes for each point of an axis.

    `shared` are parameters of `study.cells`; a point's settings override them.
    """
    return {
        label: cells(overrides={**as_mapping(overrides), **own}, **shared)
        for label, own in points(axis, values).items()
    }


def cells_of(entry: Mapping[str, Any]) -> dict[str, list[Recipe]]:
    """Return label -> recipes of a named run of study.yaml.

    An ablation has a label per point; a page with one set of cells has the label ''. A notebook
    whose cells are only known once it runs gives {}.
    """
    values = page_parameters(entry["notebook"]) | entry.get("parameters", {})
    values = {name: value for name, value in values.items() if name not in (*RUNNING, *SHOWN)}
    if entry["notebook"] == "ablation":
        return axis_cells(**values)
    if entry["notebook"] == "comparison":
        from .grid import grid, runnable  # here: it imports PyTorch, which takes seconds

        return {"": runnable(grid(**values))}
    return {"": cells(**values)} if entry["notebook"] in ("dataset", "analysis", "contexts") else {}


def page_cells(name: str) -> list[Recipe]:
    """Return the recipes shown by an executed page of notebooks/dataset.ipynb.

    The page is that of run `name` in book/runs; its parameters override the template's defaults.
    Raises LookupError if there is no such page.
    """
    page, again = (
        paths()["runs"] / f"{name}.ipynb",
        f"python -m datadream study {shlex.quote(name)}",
    )
    if not page.is_file():
        raise LookupError(f"book/runs/{page.name} is not there; run `{again}` first")
    try:
        passed = json.loads(page.read_text())["metadata"]["papermill"]["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LookupError(
            f"book/runs/{page.name} is not an executed page ({error!r}); remove it and run "
            f"`{again}`"
        ) from error
    values = {n: v for n, v in (_template_parameters(page) | passed).items() if n not in RUNNING}
    return cells(**values)


def page_parameters(notebook: str) -> dict[str, Any]:
    """Return name -> default value of a template's parameters."""
    return _template_parameters(paths()["notebooks"] / f"{notebook}.ipynb")


def load_study(file: str | Path | None = None) -> dict[str, Any]:
    """Load a study file: `runs`, name -> {notebook, groups, parameters}, and `smoke`.

    `smoke` maps a notebook to the tiny parameters of a smoke test. Raises ConfigError on a bad
    file.
    """
    file = Path(file or paths()["study"])
    try:
        text = file.read_text()
        # Check before values are built from it.
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > VALUES:
            raise ConfigError(
                f"{file} stands for more than {VALUES} values once its aliases are followed; "
                "write out what is meant"
            )
        content = yaml.safe_load(text)
    except ConfigError:
        raise
    # Besides its own errors PyYAML raises ValueError, KeyError, RecursionError ... on odd tags and
    # dates.
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read as YAML of plain values: {' '.join(str(error).split())}"
        ) from error
    if (
        not isinstance(content, dict)
        or set(content) != {"runs", "smoke"}
        or not isinstance(content["runs"], dict)
    ):
        raise ConfigError(
            f"{file}: two top-level keys are needed, 'runs' (name -> run) and 'smoke' (tiny "
            "parameters by notebook)"
        )
    if not isinstance(content["smoke"], dict) or not all(
        isinstance(tiny, dict) for tiny in content["smoke"].values()
    ):
        raise ConfigError(
            f"{file}: 'smoke' is {content['smoke']!r}; give a mapping of notebook to tiny "
            "parameters"
        )
    for name, entry in content["runs"].items():
        _check_run(file, name, entry, content["smoke"])
    return content


def _values(node, counts):
    """Return how many values a YAML node holds once its aliases are followed.

    It is infinite for a node that contains itself.
    """
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until its parts are counted
        parts = getattr(node, "value", None)  # a list of nodes, or of pairs of nodes
        flat = (
            [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
            if isinstance(parts, list)
            else []
        )
        counts[id(node)] = 1 + sum(_values(n, counts) for n in flat)
    return counts[id(node)]


def _check_run(file, name, entry, smoke):
    known = {"notebook": str, "groups": list, "parameters": dict}
    wrong = sorted(set(entry) - set(known)) if isinstance(entry, dict) else ["no mapping"]
    if wrong or "notebook" not in entry:
        raise ConfigError(
            f"{file}: run {name!r} has {wrong or 'no notebook'}; accepted keys: "
            f"{', '.join(sorted(known))}"
        )
    for field, wanted in known.items():
        if not isinstance(entry.get(field, wanted()), wanted):
            raise ConfigError(
                f"{file}: {field} of run {name!r} is {entry[field]!r}; give a {wanted.__name__}"
            )
    strange = [group for group in entry.get("groups", []) if not isinstance(group, str)]
    if strange:
        raise ConfigError(f"{file}: groups of run {name!r} has {strange[0]!r}; give names")
    # Both become file names in their folders, and must not lead elsewhere.
    for what, word in (("run", name), ("notebook", entry["notebook"])):
        if not isinstance(word, str) or not re.fullmatch(r"\w[\w.-]*", word, re.ASCII):
            raise ConfigError(
                f"{file}: {what} {word!r} cannot name a file; accepted: letters, digits, '_', '-' "
                "and '.'"
            )
    template = paths()["notebooks"] / f"{entry['notebook']}.ipynb"
    if not template.is_file():
        raise ConfigError(
            f"{file}: run {name!r} names notebook {entry['notebook']!r}, which is not in "
            f"{paths()['notebooks']}"
        )
    accepted = _template_parameters(template)
    unknown = sorted(
        ({*entry.get("parameters", {})} | {*smoke.get(entry["notebook"], {})}) - set(accepted),
        key=str,
    )
    if unknown:
        raise ConfigError(
            f"{file}: run {name!r} sets {unknown[0]!r}, which is not a parameter of "
            f"{template.name}{did_you_mean(unknown[0], accepted)} Accepted: "
            f"{', '.join(sorted(accepted)) or 'none, it has no cell tagged parameters'}"
        )


def _template_parameters(template: Path) -> dict[str, Any]:
    """Return name -> default value of a notebook's parameters, as papermill infers them."""
    # A damaged file raises KeyError, AttributeError, SyntaxError ...
    try:
        return parameters.defaults(template)
    except Exception as error:
        raise ConfigError(
            f"{template} is not a readable notebook whose parameters are literals: {error}"
        ) from error


def choose(study: Mapping[str, Any], names: Collection[str], group: str) -> dict[str, Any]:
    """Return the runs called `names`, or, without names, those of `group`.

    Raises ConfigError on a name or group that is not in the study.
    """
    runs = study["runs"]
    unknown = [n for n in names if n not in runs]
    if unknown:
        raise ConfigError(
            f"run {unknown[0]!r} is not in the study; accepted: "
            f"{', '.join(runs)}{did_you_mean(unknown[0], runs)}"
        )
    groups = {n: entry.get("groups", ["default"]) for n, entry in runs.items()}
    if not names and group not in {g for some in groups.values() for g in some}:
        accepted = sorted({g for some in groups.values() for g in some})
        raise ConfigError(f"group {group!r} has no run; accepted: {', '.join(accepted)}")
    return {n: entry for n, entry in runs.items() if (n in names if names else group in groups[n])}
