"""The parameters cell of a notebook, and the values that papermill passes to it."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import is_number, parsed
from ..paths import expanded


def assigned(source: str) -> dict[str, ast.expr | None]:
    """Return name -> the expression that a cell assigns to it, annotated or not, in order.

    The expression is None for `shots: int`, which assigns nothing, and for a part of a tuple.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    found = {}
    # A cell may contain magics, such as `%matplotlib inline`.
    for node in ast.parse(TransformerManager().transform_cell(source)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = getattr(node, "value", None)
            elif isinstance(target, (ast.Tuple, ast.List)):
                found |= {one.id: None for one in target.elts if isinstance(one, ast.Name)}
    return found


def defaults(template: Path) -> dict[str, Any]:
    """Return name -> default of a notebook's parameters, {} if no cell is tagged `parameters`.

    papermill reads line by line: it misses an annotation such as `"str | None"`, and skips a line
    with two `=`. What it misses is parsed as Python. Raises whatever a damaged file raises, and
    ValueError on a default that is not a literal.
    """
    import papermill  # here: it takes seconds to import
    from papermill.translators import PythonTranslator

    notebook = json.loads(template.read_text(encoding="utf-8"))
    if language_of(notebook) != "python":
        found = papermill.inspect_notebook(template)
        return {name: ast.literal_eval(one["default"]) for name, one in found.items()}
    tagged = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell = next(tagged, None)
    if cell is None:
        return {}
    source = "".join(cell["source"])
    found = PythonTranslator.inspect({"source": source})
    values = {one.name: ast.literal_eval(one.default) for one in found}
    for name, value in assigned(source).items():
        if name not in values:
            values[name] = ast.literal_eval(value) if value is not None else None
    return values


def language_of(notebook: Mapping[str, Any]) -> str:
    """Return the language of a notebook, in lower case; Python if it names none."""
    metadata = notebook.get("metadata", {})
    told = metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get(
        "name"
    )
    return (told or "python").lower()


def as_meant(value: Any, default: Any) -> Any:
    """Convert a parameter's value to the type of the notebook's default.

    papermill's `-p folder 2024` gives a number for text, `-r shots 4` text for a number, and either
    gives text for a list or a mapping. A value that fits no rule is returned unchanged, for its
    user to refuse.
    """
    if isinstance(value, str):
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            return _number(value, type(default))
        return expanded(value) if isinstance(default, str) else parsed(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if isinstance(default, str) and whole else value


def _number(text: str, kind: type) -> Any:
    if not is_number(text):
        return text
    number = float(text)
    return int(number) if kind is int and number.is_integer() else number
