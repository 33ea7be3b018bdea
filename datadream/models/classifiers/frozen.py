"""A frozen CLIP for methods that fit a head on it: features of images and of class prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ...config import Classify
from ...data.decode_cache import Decoded
from ...data.images import Images
from ...data.transforms import BATCH, evaluation_batches, scaled
from ...errors import ConfigError
from ...seeds import forked_rng, seed_for
from ...training.batch_size import BatchSize
from .base import load_classifier
from .clip import Classifier

AT_ONCE = 64  # augmented images encoded in one batch
Logits = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


def frozen_clip(name: str, precision: str) -> Classifier:
    """Load an untouched CLIP. Raises ConfigError if the classifier is not a CLIP."""
    model = load_classifier(name, precision=precision)
    if not isinstance(model, Classifier):
        raise ConfigError(f"classifier={name!r} is not a CLIP, whose features the method needs")
    return model


class Frozen:
    """The features of a classifier whose weights do not change.

    `text` (classes, D) holds the unit features of the prompts; `scale` times the cosine is the
    zero-shot logit.
    """

    def __init__(self, model: Classifier, prompts: Iterable[str]) -> None:
        self.model = model.eval()
        with torch.no_grad():
            self.text = model.text(model.prompts(prompts))
            self.scale: Tensor = model.clip.logit_scale.detach().exp()

    @torch.no_grad()
    def features(self, images: Images, mirrored: bool = False) -> Tensor:
        """Return the features (n, D) of the evaluation views, or of their mirror images."""

        def encoded(part: Tensor) -> Tensor:
            part = part.flip(-1) if mirrored else part
            return self.model.features(scaled(part, self.text.device))

        batches = evaluation_batches(images, self.model.size)
        return torch.cat(list(BatchSize(BATCH).each(batches, encoded)))

    @torch.no_grad()
    def views(self, images: Images, options: Classify, count: int, seed: int) -> Tensor:
        """Return the features (count, n, D) of `count` augmented views of each image."""
        from ...data.augment import Augmentation  # here, since torchvision takes seconds to import

        decoded = Decoded({True: images}, self.text.device)
        augment = Augmentation(options, self.model.size)
        found = []
        with forked_rng():
            for start in range(0, len(images), AT_ONCE):
                rows = range(start, min(start + AT_ONCE, len(images)))
                pictures = decoded.take([(True, i) for i in rows])
                drawn = []
                for number in range(count):
                    torch.manual_seed(seed_for(seed, "view", number, start))
                    drawn.append(self.model.features(augment(pictures)))
                found.append(torch.stack(drawn))
        return torch.cat(found, 1)

    def labels(self, images: Images) -> Tensor:
        """Return the labels (n,) of images, on the device of the features."""
        return torch.tensor(list(images.labels), device=self.text.device)


class Headed(nn.Module):
    """A frozen Classifier with a head on its features, with the interface of a Classifier."""

    def __init__(self, model: Classifier, state: Mapping[str, Tensor], logits: Logits) -> None:
        super().__init__()
        self.model, self.fitted, self.logits = model, dict(state), logits
        self.size, self.mean = model.size, model.mean

    def prompts(self, texts: Iterable[str]) -> Tensor:
        """Tokenize one prompt per class."""
        return self.model.prompts(texts)

    def text(self, tokens: Tensor) -> Tensor:
        """Return the unit features (classes, D) of token ids (classes, length)."""
        return self.model.text(tokens)

    def score(self, images: Tensor, text: Tensor) -> Tensor:
        """Return the head's logits (B, classes) for images (B, 3, S, S) in [0, 1]."""
        return self.logits(self.fitted, self.model.features(images), text)


def choice(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return (accuracy, negative cross-entropy) of logits (n, C), by which candidates are ranked.

    With few validation images many candidates tie in accuracy; the loss breaks the tie.
    """
    accuracy = (logits.argmax(-1) == labels).double().mean()
    return accuracy.item(), -nn.functional.cross_entropy(logits, labels).item()
