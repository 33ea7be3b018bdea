"""Load a classifier by name, and save or load what training changed in it."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ...config import Classify
from ...errors import ConfigError
from ...paths import atomic_write
from ...store.files import write_json
from ..device import device, dtype_for
from .clip import Classifier, load_clip
from .lora import LORA
from .resnet import ResNet


def load_classifier(
    name: str, classes: int | None = None, precision: str = "auto"
) -> Classifier | ResNet:
    """Load a classifier, frozen except for what its `attach` makes trainable.

    `name` is 'mini', a folder in open_clip's layout, 'hf-hub:<id>', '<architecture>/<weights>', or
    'resnet50', which starts from random weights and needs the number of `classes`. On a GPU,
    matrix products are in bfloat16 unless `precision` forbids it. Raises ModelMissingError, which
    says how to get the model, if it cannot be loaded or open_clip does not know it, and ConfigError
    for 'resnet50' without `classes`, since evaluating it untrained is pointless.
    """
    if name != "resnet50":
        model = load_clip(name)
    elif classes is not None:
        model = ResNet(classes)
    else:
        raise ConfigError(
            "classifier='resnet50' starts from random weights and judges nothing untrained; leave "
            "out method 'clip'"
        )
    model.mixed = dtype_for(precision, training=True) is torch.bfloat16
    return model.to(device())


@lru_cache
def require_adaptable(name: str) -> None:
    """Raise ConfigError if `attach` cannot adapt the classifier, without training anything.

    Loading and adapting a copy on the CPU is the only sure test of an architecture. The random
    state is restored afterwards.
    """
    if name == "resnet50":  # all of it is trained
        return
    with torch.random.fork_rng(devices=[]):
        try:
            load_clip(name).attach(Classify(rank=1))
        except ValueError as error:
            raise ConfigError(f"classifier={name!r} cannot be trained here: {error}") from error


def save_classifier_lora(
    model: Classifier | ResNet, folder: str | Path, config: dict[str, Any]
) -> None:
    """Write the trained tensors to adapter.safetensors and their `config` to adapter.json.

    The config holds classifier, precision, classes, prompts and the fields in `lora.LORA`; older
    files may lack fields that were added later.
    """
    save_state_file(model.state(), folder, config)


def save_state_file(
    tensors: Mapping[str, torch.Tensor], folder: str | Path, config: dict[str, Any]
) -> None:
    """Write tensors to adapter.safetensors, then their `config` to adapter.json."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(Path(folder) / "adapter.safetensors") as part:
        save_file(state, part)
    write_json(Path(folder) / "adapter.json", config)


def load_classifier_lora(folder: str | Path) -> tuple[Classifier | ResNet, dict[str, Any]]:
    """Load what `save_classifier_lora` wrote: (classifier with its adapter, config).

    The classifier is in evaluation mode. Raises ValueError if the adapter does not fit it, or if
    the folder holds a head; `methods.heads.load_trained` loads those.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "adapter.json").read_text())
    if "head" in config:
        raise ValueError(
            f"{folder} holds the head of method {config['head']!r} and no LoRA; load it by "
            "datadream.methods.heads.load_trained"
        )
    model = load_classifier(
        config["classifier"], len(config["classes"]), config.get("precision", "auto")
    )
    model.attach(Classify(**{name: config[name] for name in LORA if name in config}))
    state = model.state()
    tensors = load_file(Path(folder) / "adapter.safetensors", device=str(model.mean.device))
    if set(tensors) != set(state):
        raise ValueError(
            f"the adapter in {folder} does not fit {config['classifier']!r}: "
            f"{sorted(set(tensors) ^ set(state))[:3]} differ"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
    return model.eval(), config
