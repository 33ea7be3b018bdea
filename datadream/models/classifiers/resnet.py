"""torchvision's ResNet-50 from random weights, the paper's second classifier."""

import torch
import torch.nn as nn


class ResNet(nn.Module):
    """torchvision's ResNet-50 from random weights, the paper's second classifier: it has no text
    tower, and all of it is trained.
    """

    size, mixed = 224, False
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes):
        from torchvision.models import resnet50

        super().__init__()
        self.net = resnet50(weights=None, num_classes=classes)
        # ImageNet's.
        for name, values in {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def prompts(self, texts):
        """Return one index per class, which stands for the prompt that this classifier does not
        read.
        """
        return torch.arange(len(list(texts)), device=self.mean.device)

    def text(self, tokens):
        """Return what `prompts` returned: there is no text to encode."""
        return tokens

    def score(self, images, text):
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1]; `text` has no say."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.net((images - self.mean) / self.std).float()

    def forward(self, images, tokens):
        """Return `score`; `tokens` is what `prompts` returned."""
        return self.score(images, tokens)

    def attach(self, options):
        """Return all parameters by name; LoRA needs trained weights to start from."""
        return dict(self.named_parameters())

    def state(self):
        """Return what training changes, name -> tensor: the parameters and the batch
        normalisations' running statistics.
        """
        return self.state_dict()
