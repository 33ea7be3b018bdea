"""torchvision's ResNet-50 from random weights, the paper's second classifier."""

from collections.abc import Iterable

import torch
import torch.nn as nn

from ...config import Classify


class ResNet(nn.Module):
    """torchvision's ResNet-50 from random weights, the paper's second classifier.

    It has no text tower, and all of it is trained.
    """

    size, mixed = 224, False
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes: int) -> None:
        from torchvision.models import resnet50

        super().__init__()
        self.net = resnet50(weights=None, num_classes=classes)
        # ImageNet's statistics.
        for name, values in {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def prompts(self, texts: Iterable[str]) -> torch.Tensor:
        """Return one index per class, in place of prompts, which a ResNet does not read."""
        return torch.arange(len(list(texts)), device=self.mean.device)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what `prompts` returned: there is no text to encode."""
        return tokens

    def score(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1]; `text` is ignored."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.net((images - self.mean) / self.std).float()

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return `score`; `tokens` is what `prompts` returned."""
        return self.score(images, tokens)

    def attach(self, options: Classify) -> dict[str, nn.Parameter]:
        """Return all parameters by name: LoRA would need trained weights to start from."""
        return dict(self.named_parameters())

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that training changes: the parameters and batch-norm statistics, by name."""
        return self.state_dict()
