"""LoRA adapters of a generator: attach, save for diffusers, merge (paper, section 3.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import safe_open

from ...config import Adapt
from ...paths import atomic_write
from .base import Attached, Generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for


def _parts(generator: Generator, options: Adapt) -> dict[str, Any]:
    """Return the modules that get LoRA, by the pipeline's names for them."""
    return {n: getattr(generator.pipe, n) for n in generator.lora_targets(options.text_encoder)}


def add_generator_lora(generator: Generator, options: Adapt) -> dict[str, nn.Parameter]:
    """Attach fresh LoRA layers and return their parameters by name (paper, section 3.2).

    They are float32 whatever the precision of the frozen weights.
    """
    from peft import LoraConfig

    parts = _parts(generator, options)
    for name, targets in generator.lora_targets(options.text_encoder).items():
        config = LoraConfig(
            r=options.rank,
            lora_alpha=cast("int", options.alpha),  # a float works too
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
        parts[name].add_adapter(config)
    # Else the adapter's file would hold the base model's path on this machine.
    for module in parts.values():
        module.peft_config["default"].base_model_name_or_path = None
    found = {
        f"{part}.{name}": p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def save_generator_lora(generator: Generator, folder: Path, options: Adapt) -> None:
    """Write the attached LoRA, alpha included, in the format of diffusers.

    `load_lora_weights(folder)` reads it in any pipeline of the family.
    """
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    modules = _parts(generator, options)
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(m))
        for part, m in modules.items()
    }
    type(generator.pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(modules))
    sort_header(Path(folder) / LORA_FILE)


def sort_header(file: Path) -> None:
    """Sort a safetensors header and the layer names in its notes.

    The libraries' order is random, so equal adapters would differ in bytes.
    """
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    notes = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    notes = {
        name: sorted(value) if isinstance(value, list) else value for name, value in notes.items()
    }
    header["__metadata__"]["lora_adapter_metadata"] = json.dumps(notes, sort_keys=True)
    text = (
        json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        .encode()
        .ljust(length)
    )
    with atomic_write(file) as part:  # only the owner may read diffusers' own file
        part.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def remove_lora(generator: Generator) -> None:
    """Detach every LoRA layer, restoring the base model."""
    generator.pipe.unload_lora_weights()


@contextmanager
def attached_lora(
    generator: Generator, options: Adapt, label: int | None, shots: int
) -> Iterator[Attached]:
    """Attach fresh LoRA layers within the context; see `base.Attaches`."""
    try:
        parameters = add_generator_lora(generator, options)
        yield Attached(
            parameters,
            save=lambda folder: save_generator_lora(generator, folder, options),
            rates={name: options.up_rate for name in parameters if ".lora_B." in name},
        )
    finally:
        remove_lora(generator)


@contextmanager
def merged_lora(
    generator: Generator, *folders: Path, weights: Sequence[float] = ()
) -> Iterator[Generator]:
    """Merge adapters into the weights within the context: W + alpha / rank * B A.

    `folders` were written by `save_generator_lora`. Several are averaged (LoFT: two halves) unless
    `weights` are given. No module is replaced, so sampling costs the same as with the base model,
    whose weights are restored bit for bit afterwards. Raises ValueError for another pipeline's
    adapter.
    """
    shares = weights or [1 / len(folders) for _ in folders]
    with restored() as originals:
        for folder, share in zip(folders, shares, strict=True):
            tensors, notes = read_lora(Path(folder) / LORA_FILE, generator.device)
            merge_lora(generator, tensors, notes, share, originals, folder)
        yield generator


@contextmanager
def restored() -> Iterator[dict[nn.Parameter, Tensor]]:
    """Yield an empty dict to fill with weight -> original; restore the originals on exit."""
    originals = {}
    try:
        yield originals
    finally:
        for weight, original in originals.items():
            weight.data.copy_(original)


def read_lora(file: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a LoRA file by name, and the rank and alpha of each part."""
    with safe_open(file, "pt", device=str(device)) as content:
        notes = json.loads(content.metadata()["lora_adapter_metadata"])
        return {name: content.get_tensor(name) for name in content.keys()}, notes


def merge_lora(
    generator: Generator, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], share: float,
    originals: dict[nn.Parameter, Tensor], source: Path,
) -> None:  # fmt: skip
    """Add `share` times a LoRA, as `read_lora` returns it, to the weights; save `originals` first.

    Raises ValueError, which names `source`, for another pipeline's adapter.
    """
    pipe = generator.pipe
    for name in (n for n in tensors if n.endswith(".down.weight")):
        part, _, layer = name.rpartition(".lora")[0].partition(".")
        try:
            weight = getattr(pipe, part).get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise ValueError(
                f"the adapter in {source} is another pipeline's: {type(pipe).__name__} has no "
                f"{part}.{layer}"
            ) from error
        originals.setdefault(weight, weight.detach().clone())
        scale = share * notes[f"{part}.lora_alpha"] / notes[f"{part}.r"]
        weight.data.copy_(
            weight.float()
            + scale * (tensors[name.replace(".down.", ".up.")].float() @ tensors[name].float())
        )
