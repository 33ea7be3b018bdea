"""What a notebook's cell of parameters names, and values as papermill hands them over."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import is_number, parsed
from ..paths import expanded


def assigned(source: str) -> dict[str, ast.expr | None]:
    """Return name -> the expression that a cell assigns to it, annotated or not, in order.

    It is None for `shots: int`, which assigns nothing, and for a part of a tuple.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    found = {}
    # A cell may have magics, as `%matplotlib inline`.
    for node in ast.parse(TransformerManager().transform_cell(source)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = getattr(node, "value", None)
            elif isinstance(target, (ast.Tuple, ast.List)):
                found |= {one.id: None for one in target.elts if isinstance(one, ast.Name)}
    return found


def defaults(template: Path) -> dict[str, Any]:
    """Return name -> default value of a notebook's parameters, {} where no cell is tagged so.

    papermill reads line by line: it misses an annotation such as `"str | None"`, and skips a line
    with two `=`. What it misses is read as Python. Raises whatever a damaged file raises, and
    ValueError on a default that is no literal.
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
    """Return the language of a notebook's content, in lower case; Python where none is told."""
    metadata = notebook.get("metadata", {})
    told = metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get(
        "name"
    )
    return (told or "python").lower()


def as_meant(value: Any, default: Any) -> Any:
    """Return a parameter's value in the kind of the notebook's default.

    papermill's `-p folder 2024` gives a number for a text, `-r shots 4` a text for a number, and
    either a text for a list or a mapping. Anything that fits no such rule stays as it is, for
    whoever uses it to refuse.
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
