"""The method at its true size: shapes and counts without weights, and on request one pass
through the paper profile.
"""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.full_size import TEXT, UNET, save_models
from datadream.config import Adapt
from datadream.methods.recipes import recipe
from datadream.models.generators.lora import add_generator_lora
from datadream.models.generators.unet import UNet


def without_weights():
    """Return UNet and text encoder of Stable Diffusion 2.1-base on the meta device, a Generator."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet, text = UNet2DConditionModel(**UNET), CLIPTextModel(CLIPTextConfig(**TEXT))
    pipe = types.SimpleNamespace(
        unet=unet.requires_grad_(False), text_encoder=text.requires_grad_(False), vae_scale_factor=8
    )
    return UNet(pipe)


def test_the_papers_adapter_has_its_targets_and_its_size():
    """Rank 16 on q, k, v and out: of 16 transformer blocks with two attentions each, and of 23
    text layers.
    """
    generator = without_weights()
    assert generator.side() == 512
    found = add_generator_lora(generator, Adapt())
    counts = {
        part: sum(p.numel() for name, p in found.items() if name.startswith(f"{part}."))
        for part in ("unet", "text_encoder")
    }
    blocks = {320: 5, 640: 5, 1280: 6}  # two down, three up for each width, and one in the middle
    assert (
        counts["unet"]
        == 16 * sum(n * (14 * width + 2 * 1024) for width, n in blocks.items())
        == 3_319_808
    )
    assert counts["text_encoder"] == 16 * 23 * 4 * 2 * 1024 == 3_014_656
    layers = {name.split(".lora_")[0] for name in found if name.startswith("unet.")}
    assert len(layers) == 16 * 2 * 4 and all(
        any(layer.endswith(t) for t in UNet.targets) and (".attn1." in layer or ".attn2." in layer)
        for layer in layers
    )
    assert not any(
        name.startswith("text_encoder.")
        for name in add_generator_lora(without_weights(), Adapt(text_encoder=False))
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return folders of a generator and a classifier of the true size with random weights, in
    the hub's layout.
    """
    root = tmp_path_factory.mktemp("whole")
    save_models(root)
    return root


@pytest.mark.full_size
def test_the_paper_profile_runs_at_full_size(whole, tmp_path, monkeypatch):
    """Two steps of adaptation, one image of two steps, two steps of training: minutes and less
    than 24 GB on a CPU.
    """
    import resource

    from datadream.store.artifacts import Store
    from datadream.study.run import run

    for label, name in enumerate(("heron", "wren")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.RandomState(10 * label + i).randint(0, 255, (300, 400, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "photos" / name / f"{i}.jpg")
    small = {
        "adapt.epochs": 2,
        "adapt.batch": 2,
        "generate.images": 1,
        "generate.steps": 2,
        "classify.epochs": 2,
        "classify.warmup": 1,
        "classify.batch": 4,
        "classify.evaluations": 1,
    }
    cell = recipe(
        "paper",
        small,
        dataset="folder",
        folder=str(tmp_path / "photos"),
        method="dset+real",
        shots=1,
        noun="bird",
        generator=str(whole / "generator"),
        classifier=str(whole / "clip"),
    )
    record = run(cell, Store(tmp_path / "store"))
    assert record["result"]["test"]["total"] == 4 and set(record["seconds"]) == {
        "shots",
        "adapt",
        "generate",
        "train",
        "judge",
    }
    folder = next((tmp_path / "store").glob("generate-*"))
    assert Image.open(folder / "train" / "heron" / "000000.png").size == (512, 512)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB; seconds {record['seconds']}; {record['device']}")
    assert peak < 24
