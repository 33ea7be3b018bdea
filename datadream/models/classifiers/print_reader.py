"""The reader of printed characters that judges the embedded generator."""

from pathlib import Path

import torch.nn as nn

from ...data import printed


class PrintReader(nn.Sequential):
    """A small CNN that reads printed characters, (B, 3, SIDE, SIDE) in [0, 1] -> (B, 36) logits.

    It shares no weight, loss or architecture with the mini CLIP, so it can judge the generator
    independently.
    """

    def __init__(self) -> None:
        def block(inside: int, outside: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inside, outside, 3, padding=1),
                nn.BatchNorm2d(outside),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]

        super().__init__(
            *block(3, 24),
            *block(24, 48),
            *block(48, 96),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(96 * (printed.SIDE // 8) ** 2, len(printed.CHARACTERS)),
        )


def load_reader(folder: Path) -> PrintReader:
    """Load the PrintReader of `folder` in evaluation mode."""
    from safetensors.torch import load_file

    reader = PrintReader()
    reader.load_state_dict(load_file(folder / "reader.safetensors"))
    return reader.eval()
