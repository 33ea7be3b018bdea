"""Load a classifier by name, and save or load what training changed in it."""

import json
from pathlib import Path

import torch

from ...config import Classify
from ...errors import ConfigError
from ...store.files import write_json
from ..device import device, dtype_for
from .clip import load_clip
from .resnet import ResNet


def load_classifier(name, classes=None, precision="auto"):
    """Return a classifier, frozen but for what its `attach` makes trainable; a GPU multiplies in
    bfloat16 unless `precision` forbids it.

    `name` is 'mini', a folder in open_clip's layout, 'hf-hub:<id>', '<architecture>/<weights>', or
    'resnet50', which starts from random weights and needs the number of `classes`. Raises
    ModelMissingError, with the way to get it, on a model that cannot be loaded or that open_clip
    does not know, and ConfigError on 'resnet50' where an untrained classifier is judged.
    """
    if name == "resnet50" and classes is None:
        raise ConfigError(
            "classifier='resnet50' starts from random weights and judges nothing untrained; leave "
            "out method 'clip'"
        )
    model = ResNet(classes) if name == "resnet50" else load_clip(name)
    model.mixed = dtype_for(precision, training=True) is torch.bfloat16
    return model.to(device())


def save_classifier_lora(model, folder, config):
    """Write what training changed as safetensors beside its JSON config (classifier, precision,
    rank, alpha, dropout, classes, prompts).
    """
    from safetensors.torch import save_file

    save_file(
        {name: value.detach().cpu().contiguous() for name, value in model.state().items()},
        Path(folder) / "adapter.safetensors",
    )
    write_json(Path(folder) / "adapter.json", config)


def load_classifier_lora(folder):
    """Return (Classifier with the adapter of `folder`, its config): what `save_classifier_lora`
    wrote.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "adapter.json").read_text())
    model = load_classifier(
        config["classifier"], len(config["classes"]), config.get("precision", "auto")
    )
    model.attach(Classify(rank=config["rank"], alpha=config["alpha"], dropout=config["dropout"]))
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
