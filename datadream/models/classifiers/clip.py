"""An open_clip model as a zero-shot classifier (paper, section 3.4)."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn
from safetensors import SafetensorError

from ...config import Classify
from ...errors import ConfigError, ModelMissingError
from ..catalog import fetching, local, misplaced
from .lora import LORA, add_classifier_lora


class Classifier(nn.Module):
    """An open_clip model as a zero-shot classifier (paper, section 3.4).

    logits = exp(logit_scale) * cosine(image, text of the class's prompt).
    """

    mean: torch.Tensor
    std: torch.Tensor
    mixed = False  # matrix products in bfloat16; weights and logits are float32 either way

    def __init__(
        self, clip: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip.requires_grad_(False), tokenizer
        self.size = (
            clip.visual.image_size[0]
            if isinstance(clip.visual.image_size, tuple)
            else clip.visual.image_size
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prompts(self, texts: Iterable[str]) -> torch.Tensor:
        """Tokenize one prompt per class: token ids (classes, length), without needless padding.

        A causal text tower never looks at what follows the end-of-text token, so the padding is cut
        off: the paper's prompts use about ten of CLIP's 77 tokens. Other towers keep their padding.
        """
        ids = self.tokenizer(list(texts)).to(self.mean.device)
        tower, _, pool, end = self._text_tower()
        ends = None
        if pool == "argmax":
            ends = ids.argmax(1)
        elif pool == "eos" and end is not None:
            ends = (ids == end).int().argmax(1)
        causal = (
            getattr(tower, "attn_mask", None) is not None
            and getattr(tower, "cls_emb", None) is None
        )
        return ids if ends is None or not causal else ids[:, : int(ends.max()) + 1]

    def _text_tower(self):
        """Return (text tower, its prefix in the state dict, its pooling, the end-of-text id);
        open_clip keeps the tower in `clip.text` or in the CLIP itself.
        """
        if hasattr(self.clip, "text"):
            return (
                self.clip.text,
                "text.",
                getattr(self.clip.text, "pool_type", None),
                getattr(self.clip.text, "eos_id", None),
            )
        return self.clip, "", self.clip.text_pool_type, self.clip.text_eos_id

    def _encode_text(self, tokens):
        tower, prefix, _, _ = self._text_tower()
        length = tokens.shape[1]
        if length == getattr(tower, "context_length", length):
            return self.clip.encode_text(tokens, normalize=True)
        short = {
            f"{prefix}positional_embedding": tower.positional_embedding[:length],
            f"{prefix}attn_mask": tower.attn_mask[:length, :length],
        }
        return torch.func.functional_call(self.clip, short, kwargs={"text": tokens})[1]

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the unit features (classes, D) of token ids (classes, length).

        They are valid until the weights change.
        """
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.mixed):
            return self._encode_text(tokens).float()

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Return the unit features (B, D) of images (B, 3, S, S) in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.clip.encode_image((images - self.mean) / self.std, normalize=True).float()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the image tower's raw features (B, D), not normalised, of images in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.clip.encode_image((images - self.mean) / self.std).float()

    def score(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1].

        `text` holds the features of the classes' prompts.
        """
        return self.clip.logit_scale.exp() * self.image(images) @ text.T

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) for images in [0, 1] and token ids (classes, length).

        Images are (B, 3, S, S).
        """
        return self.score(images, self.text(tokens))

    def attach(self, options: Classify) -> dict[str, nn.Parameter]:
        """Add LoRA as `options` say and return the trainable parameters by name."""
        return add_classifier_lora(self, **{name: getattr(options, name) for name in LORA})

    def state(self) -> dict[str, torch.Tensor]:
        """Return the trainable tensors, the LoRA, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def load_clip(name: str) -> Classifier:
    """Load an open_clip model as a Classifier; see `base.load_classifier` for its `name`."""
    import open_clip

    if wrong := misplaced(name, "clip"):
        raise ModelMissingError(f"the classifier {name!r} cannot be loaded: {wrong}")
    architecture, slash, weights = _parts_of(name)
    if not slash or weights == "":
        raise ModelMissingError(
            f"the classifier {name!r} names no weights, and random ones would judge nothing. Give "
            "'mini', a folder in open_clip's layout, or '<architecture>/<weights>' from "
            "open_clip.list_pretrained(), e.g. 'ViT-B-16-quickgelu/openai'"
        )
    if weights:
        _check_activation(architecture, weights)
    try:
        clip, _, _ = open_clip.create_model_and_transforms(architecture, pretrained=weights)
        tokenizer = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelMissingError(
            f"the classifier {name!r} cannot be loaded. Give 'mini', a folder in open_clip's "
            "layout, or '<architecture>/<weights>' from open_clip.list_pretrained(). Where a "
            f"network is at hand, {fetching(name)}; point HF_HOME to that cache. Cause: {error}"
        ) from error
    config = open_clip.get_model_preprocess_cfg(clip)
    return Classifier(clip.eval(), tokenizer, config["mean"], config["std"])


def _parts_of(name):
    """Split a name into (architecture, '/', weights); weights are None for a folder or hub id."""
    folder = local(name, "clip")
    whole = f"local-dir:{folder}" if folder else name if name.startswith("hf-hub:") else None
    return (whole, "/", None) if whole else name.partition("/")


def tokens_of(name: str, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt for a classifier, without loading its weights.

    'resnet50' reads no prompts; each gets its index as its only token.
    """
    if name == "resnet50":
        return [(number,) for number in range(len(texts))]
    return [tuple(row) for row in _tokenizer(name)(list(texts)).tolist()]


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    import open_clip

    return open_clip.get_tokenizer(_parts_of(name)[0])


def _check_activation(architecture, weights):
    """Raise ConfigError if weights trained with QuickGELU would run with another activation, which
    would silently lower the accuracy.
    """
    import open_clip

    wanted = open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)
    built = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    if wanted and not built:
        raise ConfigError(
            f"the weights {weights!r} were trained with QuickGELU, which {architecture!r} does "
            f"not use; give '{architecture}-quickgelu/{weights}'"
        )
