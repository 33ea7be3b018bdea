"""LoRA on the query and value projections of both towers of a CLIP (paper, section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ...errors import ConfigError


def _register_lora(module, width, rank):
    for name in ("q", "v"):
        down = torch.empty(rank, width)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        module.register_parameter(f"{name}_down", nn.Parameter(down))
        module.register_parameter(f"{name}_up", nn.Parameter(torch.zeros(width, rank)))


def _project(module, x, weight, bias):
    """Return q, k, v (..., D) of x (..., D) by the fused `weight` (3 D, D), with the low-rank
    updates of q and v.

    Where nothing is dropped or learned the updates are added to the weight, which costs one product
    of the size of `weight`.
    """
    if not (module.training or torch.is_grad_enabled()):
        q, v = module.q_up @ module.q_down, module.v_up @ module.v_down
        return F.linear(
            x, weight + module.scale * torch.cat([q, torch.zeros_like(q), v]), bias
        ).chunk(3, -1)
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    dropped = module.dropout(x)
    q = q + module.scale * (dropped @ module.q_down.T @ module.q_up.T)
    v = v + module.scale * (dropped @ module.v_down.T @ module.v_up.T)
    return q, k, v


class LoRAProjection(nn.Module):
    """LoRA on q and v of a fused linear q, k, v projection.

    Timm's attention has such a one (SigLIP's image tower); the updates are those of
    `LoRAAttention`.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = (
            linear.requires_grad_(False),
            alpha / rank,
            nn.Dropout(dropout),
        )
        _register_lora(self, linear.in_features, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the projections (..., 3 D) of x (..., D)."""
        return torch.cat(_project(self, x, self.base.weight, self.base.bias), -1)


class LoRAAttention(nn.Module):
    """LoRA on q and v of a frozen nn.MultiheadAttention (paper, section 3.4).

    q = x W_q' + b_q + (alpha / rank) * drop(x) A_q' B_q', v alike; k and the output projection are
    untouched. B starts at zero.
    """

    def __init__(
        self, attention: nn.MultiheadAttention, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        if not attention._qkv_same_embed_dim or attention.bias_k is not None:
            raise ValueError(
                "LoRAAttention needs one width for query, key and value, and no bias_k"
            )
        self.base, self.scale, self.dropout = (
            attention.requires_grad_(False),
            alpha / rank,
            nn.Dropout(dropout),
        )
        _register_lora(self, attention.embed_dim, rank)

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
    """Return the modules of the image tower and of the text tower; a captioning decoder, as
    CoCa's, belongs to neither.
    """
    return [
        *clip.visual.modules(),
        *(clip.text if hasattr(clip, "text") else clip.transformer).modules(),
    ]


def add_classifier_lora(
    model: Any, rank: int, alpha: float, dropout: float
) -> dict[str, nn.Parameter]:
    """Add LoRA to q and v of every self-attention of a Classifier's towers, open_clip's or timm's.

    Returns the trainable parameters by name. Raises ConfigError on EVA's attention, and on a tower
    without transformer blocks.
    """
    for module in _towers(model.clip):
        if type(module).__name__ == "EvaAttention":
            raise ConfigError(
                "EVA's attention reads its weights apart from its layers, which LoRA cannot "
                "change; choose another image tower, e.g. 'ViT-B-16-quickgelu/openai'"
            )
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention and name == "attn" and hasattr(module, "ln_1"):
                setattr(
                    module, name, LoRAAttention(child, rank, alpha, dropout).to(model.mean.device)
                )
            elif (
                name == "qkv"
                and isinstance(child, nn.Linear)
                and child.out_features == 3 * child.in_features
            ):
                setattr(
                    module, name, LoRAProjection(child, rank, alpha, dropout).to(model.mean.device)
                )
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    visual = [name for name in found if ".visual." in name]
    if not visual or len(visual) == len(found):
        raise ConfigError(
            "it has a tower without transformer blocks, and LoRA adapts both; choose "
            "an open_clip model with two transformer towers, e.g. 'ViT-B-16-quickgelu/openai'"
        )
    return found
