"""LoRA adapters of a generator: attach, save as diffusers reads them, merge (paper, section
3.2).
"""

import json
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from .unet import text_encoders

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # paper, section 3.2
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for


def add_generator_lora(pipe, options):
    """Attach fresh LoRA layers to the UNet and, if asked for, the text encoders; return their
    parameters by name (paper, 3.2).

    They are float32 whatever the frozen weights are.
    """
    from peft import LoraConfig

    def config(targets):
        return LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            init_lora_weights="gaussian",
            target_modules=targets,
        )

    pipe.unet.add_adapter(config(UNET_TARGETS))
    texts = text_encoders(pipe) if options.text_encoder else {}
    for encoder in texts.values():
        encoder.add_adapter(config(TEXT_TARGETS))
    parts = {"unet": pipe.unet, **texts}
    # Else the adapter's file would tell where this machine keeps the base.
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


def save_generator_lora(pipe, folder, options):
    """Write the attached LoRA so that any diffusers pipeline reads it with
    `load_lora_weights(folder)`, alpha included.
    """
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    modules = {"unet": pipe.unet} | (text_encoders(pipe) if options.text_encoder else {})
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(m))
        for part, m in modules.items()
    }
    type(pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(modules))
    _sort_header(Path(folder) / LORA_FILE)


def _sort_header(file):
    """Write a safetensors header with its entries sorted: the libraries' order is random, and equal
    adapters would differ in bytes.

    So are the names of the adapted layers in its notes, a set that has another order in every
    process.
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
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def remove_lora(pipe):
    """Detach every LoRA layer from the pipeline, restoring the base model."""
    pipe.unload_lora_weights()


@contextmanager
def merged_lora(pipe, *folders):
    """Add the adapters in `folders`, of `save_generator_lora`, to the pipeline's own weights, and
    put those back at the end.

    W + alpha / rank * B A is one product a layer and no module is exchanged, so a swap is cheap,
    sampling costs what the base costs, and the weights afterwards are the base's bit for bit.
    Several have equal shares of one (LoFT: two of a half). Raises ValueError on an adapter of
    another pipeline.
    """
    originals = {}
    try:
        for folder in folders:
            _merge(pipe, folder, 1 / len(folders), originals)
        yield pipe
    finally:
        for weight, original in originals.items():
            weight.data.copy_(original)


def _merge(pipe, folder, share, originals):
    """Add `share` of an adapter to the weights, keeping in `originals` what they were."""
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
