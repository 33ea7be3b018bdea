"""LoRA on the attention of both towers of a CLIP, on query and value (paper, section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ...errors import ConfigError

PROJECTIONS = "qkv"  # in the order of the fused weight
# The fields of `config.Classify` that define the LoRA; adapter.json stores them.
LORA = ("rank", "alpha", "dropout", "targets", "scaling")


def lora_scale(rank: int, alpha: float, scaling: str = "rank") -> float:
    """Return a LoRA's scale: alpha over the rank, or over its square root."""
    return alpha / (rank if scaling == "rank" else rank**0.5)


def _register_lora(module, width, rank, targets):
    module.targets = targets
    for name in targets:
        down = torch.empty(rank, width)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        module.register_parameter(f"{name}_down", nn.Parameter(down))
        module.register_parameter(f"{name}_up", nn.Parameter(torch.zeros(width, rank)))


def _matrix(module, name, side):
    return getattr(module, f"{name}_{side}")


def _project(module, x, weight, bias):
    """Project x (..., D) to q, k, v (..., D) by the fused `weight` (3 D, D) plus the low-rank
    updates of the module's targets.

    In evaluation without gradients the updates are first merged into the weight, so one matrix
    product suffices.
    """
    if not (module.training or torch.is_grad_enabled()):
        updates = {
            name: _matrix(module, name, "up") @ _matrix(module, name, "down")
            for name in module.targets
        }
        none = torch.zeros_like(next(iter(updates.values())))
        update = torch.cat([updates.get(name, none) for name in PROJECTIONS])
        return F.linear(x, weight + module.scale * update, bias).chunk(3, -1)
    found = dict(zip(PROJECTIONS, F.linear(x, weight, bias).chunk(3, -1), strict=True))
    dropped = module.dropout(x)
    for name in module.targets:
        down, up = _matrix(module, name, "down"), _matrix(module, name, "up")
        found[name] = found[name] + module.scale * (dropped @ down.T @ up.T)
    return tuple(found.values())


class LoRAProjection(nn.Module):
    """LoRA on a fused linear q, k, v projection; `targets` defaults to q and v.

    timm's attention has such a layer (SigLIP's image tower). The updates are those of
    `LoRAAttention`.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dropout: float, targets: str = "qv",
        scaling: str = "rank",
    ) -> None:  # fmt: skip
        super().__init__()
        self.base, self.dropout = linear.requires_grad_(False), nn.Dropout(dropout)
        self.scale = lora_scale(rank, alpha, scaling)
        _register_lora(self, linear.in_features, rank, targets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the projections (..., 3 D) of x (..., D)."""
        return torch.cat(_project(self, x, self.base.weight, self.base.bias), -1)


class LoRAAttention(nn.Module):
    """LoRA on q and v of a frozen nn.MultiheadAttention (paper, section 3.4).

    q = x W_q' + b_q + scale * drop(x) A_q' B_q', and v likewise, with scale = alpha / rank. The
    output projection is untouched, and so is k unless `targets` includes it. B starts at zero.
    """

    def __init__(
        self, attention: nn.MultiheadAttention, rank: int, alpha: float, dropout: float,
        targets: str = "qv", scaling: str = "rank",
    ) -> None:  # fmt: skip
        super().__init__()
        if not attention._qkv_same_embed_dim or attention.bias_k is not None:
            raise ValueError(
                "LoRAAttention needs one width for query, key and value, and no bias_k"
            )
        self.base, self.dropout = attention.requires_grad_(False), nn.Dropout(dropout)
        self.scale = lora_scale(rank, alpha, scaling)
        _register_lora(self, attention.embed_dim, rank, targets)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return (self-attention output, None) for x = query = key = value.

        x is (B, L, D), or (L, B, D) where the base is not batch-first.
        """
        x = query if self.base.batch_first else query.transpose(0, 1)
        q, k, v = _project(self, x, self.base.in_proj_weight, self.base.in_proj_bias)
        q, k, v = (t.unflatten(-1, (self.base.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        )
        out = self.base.out_proj(out)
        return (out if self.base.batch_first else out.transpose(0, 1)), None


def _towers(clip):
    """Return the modules of the image tower and of the text tower; a captioning decoder such as
    CoCa's belongs to neither.
    """
    return [
        *clip.visual.modules(),
        *(clip.text if hasattr(clip, "text") else clip.transformer).modules(),
    ]


def add_classifier_lora(
    model: Any, rank: int, alpha: float, dropout: float, targets: str = "qv", scaling: str = "rank"
) -> dict[str, nn.Parameter]:
    """Add LoRA to every self-attention layer of a Classifier's towers, open_clip's or timm's.

    `targets` is a subset of `PROJECTIONS`; `scaling` is as in `lora_scale`. Returns the trainable
    parameters by name. Raises ConfigError for EVA's attention and for a tower without transformer
    blocks.
    """
    options = rank, alpha, dropout, targets, scaling
    for module in _towers(model.clip):
        if type(module).__name__ == "EvaAttention":
            raise ConfigError(
                "EVA's attention reads its weights apart from its layers, which LoRA cannot "
                "change; choose another image tower, e.g. 'ViT-B-16-quickgelu/openai'"
            )
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention and name == "attn" and hasattr(module, "ln_1"):
                setattr(module, name, LoRAAttention(child, *options).to(model.mean.device))
            elif (
                name == "qkv"
                and isinstance(child, nn.Linear)
                and child.out_features == 3 * child.in_features
            ):
                setattr(module, name, LoRAProjection(child, *options).to(model.mean.device))
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    visual = [name for name in found if ".visual." in name]
    if not visual or len(visual) == len(found):
        raise ConfigError(
            "it has a tower without transformer blocks, and LoRA adapts both; choose "
            "an open_clip model with two transformer towers, e.g. 'ViT-B-16-quickgelu/openai'"
        )
    return found
