"""LoRA with heads (ChimeraLoRA): one matrix A that all shots share, and one matrix B per shot.

Each head is saved as an ordinary LoRA, B_i A, which diffusers can read. Sampling mixes the heads
by weights: W + alpha / rank * (sum w_i B_i) A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ...config import Adapt
from ...errors import ConfigError
from .base import Attached, Generator
from .lora import merge_lora, read_lora, restored, sort_header

if TYPE_CHECKING:
    from torch import Tensor


def head_file(place: int) -> str:
    """Return the file name of a shot's head, the `weight_name` of `load_lora_weights`."""
    return f"head-{place:03d}.safetensors"


def require_heads(generator: Generator, options: Adapt) -> None:
    """Raise ConfigError if the text encoder is tuned: it reads a prompt once for all shots."""
    if options.text_encoder:
        raise ConfigError(
            "adapt.kind='heads' has a matrix for each shot in the network alone, and "
            "adapt.text_encoder=True asks for the text encoder too; set adapt.text_encoder=False"
        )


@contextmanager
def attached_heads(
    generator: Generator, options: Adapt, label: int | None, shots: int
) -> Iterator[Attached]:
    """Attach a Gaussian A and a zero B per shot within the context; see `base.Attaches`.

    The shots of a batch must be selected before each forward pass.
    """
    require_heads(generator, options)
    layers = _layers(generator)
    down = {n: _parameter(generator, options.rank, one.in_features) for n, one in layers.items()}
    up = {
        n: _parameter(generator, shots, one.out_features, options.rank) for n, one in layers.items()
    }
    for value in down.values():
        nn.init.normal_(value, std=1 / options.rank)  # as peft does for LoRA
    mixed, scale = _Rows(), options.alpha / options.rank

    def hook(name: str) -> Any:
        def change(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own = up[name][mixed.rows.to(output.device)]
            if len(own) != len(output):
                raise ValueError(f"{len(output)} images, and {len(own)} are selected")
            low = inputs[0].float() @ down[name].T
            return output + (scale * low @ own.mT).to(output.dtype)

        return change

    handles = [module.register_forward_hook(hook(n)) for n, module in layers.items()]
    ups = {f"{n}.up": value for n, value in up.items()}
    try:
        yield Attached(
            {f"{n}.down": value for n, value in down.items()} | ups,
            save=lambda folder: _save(generator, options, down, up, folder),
            rates=dict.fromkeys(ups, options.up_rate),
            select=mixed.select,
        )
    finally:
        for handle in handles:
            handle.remove()


class _Rows:
    """The indices of the shots in the current forward pass."""

    def __init__(self):
        self.rows = torch.zeros(0, dtype=torch.long)

    def select(self, rows):
        self.rows = rows


def _layers(generator) -> dict[str, nn.Linear]:
    """Return the network's layers that get LoRA, by name."""
    ends = tuple(f".{target}" for target in generator.targets)
    found = generator.network.named_modules()
    return {name: cast("nn.Linear", module) for name, module in found if name.endswith(ends)}


def _parameter(generator, *shape):
    """Return trainable zeros, in float32 whatever the precision of the frozen weights."""
    return nn.Parameter(torch.zeros(*shape, device=generator.device))


def _save(generator, options, down, up, folder):
    """Write one file per head in diffusers' format, all with the same A."""
    from peft import LoraConfig

    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, target_modules=list(generator.targets),
        init_lora_weights="gaussian",
    ).to_dict()  # fmt: skip
    name = generator.network_name
    for place in range(len(next(iter(up.values())))):
        layers = {f"{n}.lora.down.weight": value.detach() for n, value in down.items()}
        layers |= {f"{n}.lora.up.weight": value.detach()[place] for n, value in up.items()}
        type(generator.pipe).save_lora_weights(
            folder,
            weight_name=head_file(place),
            **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": config},
        )
        sort_header(Path(folder) / head_file(place))


@contextmanager
def merged_heads(
    generator: Generator, *folders: Path, weights: Sequence[float] = ()
) -> Iterator[Generator]:
    """Merge the heads of adapters into the weights within the context, as `lora.merged_lora` does.

    `weights` has one number per head, folder by folder; none: equal shares.
    """
    heads = [_read(Path(folder), generator.device) for folder in folders]
    counts = [len(next(iter(up.values()))) for _, up, _ in heads]
    shares = torch.tensor(weights or [1 / max(1, sum(counts))] * sum(counts))
    own = shares.to(generator.device).split(counts)
    with restored() as originals:
        for folder, (down, up, notes), some in zip(folders, heads, own, strict=True):
            mixed = {n: torch.einsum("k,kor->or", some, value) for n, value in up.items()}
            merge_lora(generator, down | mixed, notes, 1.0, originals, folder)
        yield generator


@lru_cache(maxsize=1)  # each image has its own weights, and classes are sampled one at a time
def _read(folder, device):
    """Return an adapter's shared tensors, its stacked B (K, out, rank) by name, and the notes."""
    found = [read_lora(file, device) for file in sorted(folder.glob("head-*.safetensors"))]
    (first, notes), ups = found[0], [n for n in found[0][0] if n.endswith(".up.weight")]
    stacks = {n: torch.stack([tensors[n] for tensors, _ in found]) for n in ups}
    return {n: value for n, value in first.items() if n not in stacks}, stacks, notes
