"""Content keys: equal if and only if every input is equal."""

import dataclasses
import hashlib
import json
from typing import Any


def stage_of_key(key: str) -> str:
    """Return the stage that a key begins with."""
    return key.partition("-")[0]


def key(stage: str, **inputs: Any) -> str:
    """Return the content key of a stage, `<stage>-<16 hex digits>`.

    Two keys are equal if and only if all inputs are. Raises ValueError on NaN and infinity.
    """
    text = json.dumps(inputs, sort_keys=True, default=dataclasses.asdict, allow_nan=False)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
