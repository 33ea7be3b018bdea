"""LoRA adapters of a generator: attach, save for diffusers, merge (paper, section 3.2)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import nn

from ...config import Adapt
from ...paths import atomic_write
from .base import Generator

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
    _sort_header(Path(folder) / LORA_FILE)


def _sort_header(file):
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
    with atomic_write(file) as part:  # diffusers left one that nobody else may read
        part.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def remove_lora(generator: Generator) -> None:
    """Detach every LoRA layer, restoring the base model."""
    generator.pipe.unload_lora_weights()


@contextmanager
def merged_lora(
    generator: Generator, *folders: Path, weights: Sequence[float] = ()
) -> Iterator[Generator]:
    """Merge adapters into the weights within the context: W + alpha / rank * B A.

    `folders` are those of `save_generator_lora`; several are averaged (LoFT: two halves), unless
    they have `weights` of their own. No module is replaced, so sampling costs as much as with the
    base, and afterwards the weights are the base's bit for bit. Raises ValueError on an adapter of
    another pipeline.
    """
    originals, shares = {}, weights or [1 / len(folders) for _ in folders]
    try:
        for folder, share in zip(folders, shares, strict=True):
            _merge(generator.pipe, folder, share, originals)
        yield generator
    finally:
        for weight, original in originals.items():
            weight.data.copy_(original)


def _merge(pipe, folder, share, originals):
    """Add `share` of an adapter to the weights, after copying these to `originals`."""
    with safe_open(Path(folder) / LORA_FILE, "pt", device=str(pipe.device)) as file:
        notes = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name in (n for n in tensors if n.endswith(".down.weight")):
        part, _, layer = name.rpartition(".lora")[0].partition(".")
        try:
            weight = getattr(pipe, part).get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise ValueError(
                f"the adapter in {folder} is another pipeline's: {type(pipe).__name__} has no "
                f"{part}.{layer}"
            ) from error
        originals.setdefault(weight, weight.detach().clone())
        scale = share * notes[f"{part}.lora_alpha"] / notes[f"{part}.r"]
        weight.data.copy_(
            weight.float()
            + scale * (tensors[name.replace(".down.", ".up.")].float() @ tensors[name].float())
        )
