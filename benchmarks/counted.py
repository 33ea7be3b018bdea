"""Operations and memory traffic of the paper's models, counted on their true shapes.

No weights are needed. `python -m benchmarks.counted` prints the rows of
`datadream.engines.roofline.COUNTED`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from datadream.engines.roofline import Cost

from .full_size import TEXT, UNET, VAE

SIDE, VIEW = 512, 224  # pixels of the paper's generator and classifier
TOKENS = 77  # of a padded prompt; attention, which grows with them, is a small part of the work
CLASSIFIER = "ViT-B-16-quickgelu"
HALF = (torch.float16, torch.bfloat16)


class _Counter(TorchDispatchMode):
    """Add up the operations of matrix products, by precision, and the bytes moved otherwise."""

    def __init__(self):
        super().__init__()
        self.half = self.single = self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [
            one for one in torch.utils._pytree.tree_leaves((args, kwargs or {})) if _real(one)
        ]
        if counts := flop_registry.get(func._overloadpacket):
            operations = counts(*args, **(kwargs or {}), out_val=out)
            if tensors[0].dtype in HALF:
                self.half += operations
            else:
                self.single += operations
        elif not _moves_nothing(func):
            made = [one for one in torch.utils._pytree.tree_leaves(out) if _real(one)]
            self.moved += sum(one.numel() * one.element_size() for one in tensors + made)
        return out


def _real(value):
    return isinstance(value, torch.Tensor)


def _moves_nothing(func):
    return func.is_view or func._schema.name in {
        f"aten::{name}"
        for name in ("detach", "empty", "empty_like", "empty_strided", "_unsafe_view")
    }


def _fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
    """Compute attention in one kernel, as on a GPU; a meta device would use many operations."""
    mask = attn_mask if attn_mask is None else attn_mask.to(query.dtype)
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, dropout_p, is_causal
    )[0]


def count(call: Callable[[], Any]) -> Cost:
    """Return the cost of a call; its tensors may be on the device `meta`."""
    plain = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _fused
    try:
        with _Counter() as counter:
            call()
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    return Cost(counter.half, counter.single, counter.moved)


@functools.lru_cache
def _generator():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**UNET),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
            "vae": AutoencoderKL(**VAE),
        }
    half = {name: part.to(torch.bfloat16).requires_grad_(False) for name, part in parts.items()}
    return types.SimpleNamespace(**half)


@functools.lru_cache
def generator_costs() -> dict[str, Cost]:
    """Count Stable Diffusion 2.1-base for one image.

    The rows are a UNet pass, encoding, decoding, a trained view and a trained prompt.
    """
    from datadream.methods.recipes import recipe
    from datadream.models.generators.lora import add_generator_lora
    from datadream.models.generators.unet import UNet

    pipe, side = _generator(), SIDE // 8
    latent, picture, words = (
        torch.empty(shape, device="meta", dtype=torch.bfloat16)
        for shape in ((1, 4, side, side), (1, 3, SIDE, SIDE), (1, 77, TEXT["hidden_size"]))
    )
    ids = torch.zeros(1, 77, device="meta", dtype=torch.long)

    def text():
        return pipe.text_encoder(ids)[0]

    def unet(words):
        return pipe.unet(latent, torch.empty(1, device="meta"), words).sample

    with torch.no_grad():
        found = {
            "unet": count(lambda: unet(words)),
            "encode": count(lambda: pipe.vae.encode(picture)),
            "decode": count(lambda: pipe.vae.decode(latent)),
        }
    add_generator_lora(UNet(pipe), recipe("paper").adapt)
    prompt = count(lambda: text().sum().backward())
    whole = count(lambda: unet(text()).sum().backward())
    return found | {"trained prompt": prompt, "trained view": whole + prompt * -1}


@functools.lru_cache
def _classifier():
    import open_clip

    from datadream.methods.recipes import recipe
    from datadream.models.classifiers.clip import Classifier
    from datadream.models.classifiers.lora import add_classifier_lora

    options = recipe("paper").classify
    with torch.device("meta"):
        model = Classifier(
            open_clip.CLIP(**open_clip.get_model_config(CLASSIFIER)),
            open_clip.get_tokenizer(CLASSIFIER),
            (0.0,) * 3,
            (1.0,) * 3,
        ).to(torch.bfloat16)
        add_classifier_lora(model, options.rank, options.alpha, options.dropout)
    return model


@functools.lru_cache
def classifier_costs() -> dict[str, Cost]:
    """Count CLIP ViT-B/16 for an image classified, an image trained on, a prompt token trained."""
    # Calls the layer below `Classifier.image`, whose autocast does not support meta devices.
    model = _classifier()
    picture = torch.empty(1, 3, VIEW, VIEW, device="meta", dtype=torch.bfloat16)
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    with torch.no_grad():
        read = count(lambda: model.clip.encode_image(picture))
    return {
        "read": read,
        "trained image": count(lambda: model.clip.encode_image(picture).sum().backward()),
        "trained token": count(lambda: model.clip.encode_text(tokens).sum().backward())
        * (1 / TOKENS),
    }


def main() -> None:
    """Print the rows."""
    for name, one in (generator_costs() | classifier_costs()).items():
        rows = ", ".join(f"{value:.4g}" for value in (one.half, one.single, one.moved))
        print(f'"{name}": Cost({rows}),')


if __name__ == "__main__":
    main()
