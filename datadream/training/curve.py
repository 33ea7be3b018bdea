"""The validation curve of a training run and its best weights; both survive a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..store.files import reading, write_json
from .checkpoint import load_state, save_state

if TYPE_CHECKING:
    from torch import Tensor


class Curve:
    """Validation accuracy and training loss by step, in curve.json in the training's folder.

    A killed run resumes with its rows. If the file is damaged, the checkpoint and the best weights
    are removed too, and training starts over.
    """

    def __init__(self, folder: Path, checkpoint: Path):
        self.file, self.best = folder / "curve.json", folder / "best.safetensors"
        self.checkpoint, self.rows = checkpoint, {}
        try:
            with reading(self.file):
                text = self.file.read_text()
            self.rows = {row["step"]: row for row in json.loads(text)}
        except FileNotFoundError:
            pass
        except (ValueError, LookupError, TypeError):
            for other in (self.file, self.best, checkpoint):
                other.unlink(missing_ok=True)

    def is_best(self, step: int, accuracy: float) -> bool:
        """True if no earlier step was as accurate."""
        return accuracy > max((r["val"] for s, r in self.rows.items() if s < step), default=-1.0)

    def add(self, step: int, accuracy: float, loss: float) -> None:
        """Write the point after `step` steps; accuracy in [0, 1]."""
        self.rows[step] = {"step": step, "val": accuracy, "loss": loss}
        write_json(self.file, sorted(self.rows.values(), key=lambda row: row["step"]))

    def keep(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Save the weights of a step as the best so far."""
        save_state(self.best, state, step)

    def restore_best(self, state: Mapping[str, Tensor]) -> None:
        """Load the best weights, if any were kept, and remove the training's files.

        Raises DataError if they are damaged; the next run then starts over.
        """
        import torch

        if self.best.exists():
            found = load_state(self.best)
            if found is None:
                self.checkpoint.unlink(missing_ok=True)
                raise DataError(
                    f"{self.best}, the weights that validation chose, is damaged and was removed; "
                    "run again, and the training begins anew"
                )
            with torch.no_grad():
                for name, value in found[0].items():
                    state[name].copy_(value)
        for file in (self.best, self.checkpoint):
            file.unlink(missing_ok=True)
