"""Fixtures: models even smaller than the embedded ones (the true classes and file formats,
random weights), and tiny data.
"""

import os

# Before any import of torch or the hub: nothing here may touch a network, and two workers with a
# thread pool each would be slower than two single threads. Processes that a test starts inherit
# both, so they compute the same numbers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import gc
import json
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from datadream.data import datasets
from datadream.methods import checked
from datadream.methods.base import Adapter, Support
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS, register
from datadream.pipeline.adapt import adapter_inputs
from datadream.pipeline.stages import Cell, stage_of
from datadream.store.artifacts import Store
from datadream.store.keys import key
from datadream.store.open import open_store

ROOT = Path(__file__).resolve().parents[1]
# Processes and kernels that a test starts import this checkout, whether it is installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# No deadline: a slow machine is no failure. Derandomised: the same code gives the same verdict.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")


def settle():
    """Have the garbage collector pass over all that is there now: torch, the libraries, the tests.

    They stay until the end, and walking through them took a quarter of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionstart(session):
    """Collect no garbage while the tests are collected: what is imported meanwhile stays."""
    if getattr(session.config.option, "dist", "no") == "no":  # the process over workers has none
        gc.disable()


def pytest_collection_finish():
    """Settle what the test modules imported."""
    settle()


def pytest_unconfigure():
    """Let the collector reach everything again: extensions report what it cannot free as leaks."""
    gc.unfreeze()


TOKENS = 24
CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": TOKENS,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "hf_tokenizer_name": "local",
        "tokenizer_kwargs": {"clean": "lower"},
    },
}
TINY = {
    "resolution": 16,
    "adapt.rank": 2,
    "adapt.alpha": 6,
    "adapt.lr": 5e-2,
    "adapt.batch": 4,
    "adapt.epochs": 2,
    "adapt.warmup": 1,
    "adapt.steps": 0,
    "generate.images": 5,
    "generate.steps": 2,
    "generate.scheduler": "pipeline",
    "generate.batch": 2,
    "classify.rank": 2,
    "classify.alpha": 6,
    "classify.lr": 1e-2,
    "classify.batch": 6,
    "classify.epochs": 3,
    "classify.warmup": 1,
    "classify.evaluations": 3,
}
# Of the folder data set; spaces, capitals and figures as users have them.
CLASSES = ("Boeing 747", "old truck", "red fox")


class Killed(BaseException):
    """Stands for a kill: no `except Exception` may swallow it."""


def dies_at(function, call):
    """Return `function` that raises Killed instead of its `call`-th call (from 1)."""
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    return wrapper


# A process that makes an artifact as soon as another one is ready for the same, with copies of its
# own of what lies on an address.
MAKE = """
import os, sys, time
from pathlib import Path

root, name, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["DATADREAM_CACHE"] = str(root / name)
from datadream.store import artifacts
from datadream.store.open import open_store

artifacts.provenance = dict  # it imports torch, which takes seconds
ready = open_store(address)
(root / f"ready-{name}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.01)

def build(work):
    (root / f"built-{name}").touch()
    time.sleep(0.5)  # long enough for the other process to come
    (work / "a.txt").write_text("content")
    (work / "b.txt").write_text("content")

folder = ready.make("stage-1", {}, build)
assert (folder / "a.txt").read_text() == "content"
print(folder)
"""


def make_at_once(root, address):
    """Let the processes x and y make one artifact of the store at `address`; return how many
    built it, and the folder that each has it in.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(root), name, str(address)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "xy"
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert open_store(address).done("stage-1")
    return len(list(root.glob("built-*"))), [Path(printed.strip()) for printed, _ in ends]


def build_generator(folder):
    """Write a StableDiffusionPipeline of 16 px, 64 thousand UNet parameters and random weights
    to `folder`.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from datadream.mini import base, tokens

    tokens.write_vocabulary(folder.parent / "vocabulary")
    tokenizer = tokens.clip_tokenizer(folder.parent / "vocabulary", TOKENS)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=16,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16,),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    base.save_generator(folder, vae, text, tokenizer, unet)


def build_ip_adapter(folder, source):
    """Write an IP-Adapter Plus for the generator `source` to `folder`, with its image encoder, in
    the layout and under the names of h94/IP-Adapter.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.embeddings import IPAdapterPlusImageProjection
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    encoder = folder / "models" / "image_encoder"
    CLIPVisionModelWithProjection(vision).save_pretrained(encoder)
    plus = IPAdapterPlusImageProjection(24, 16, hidden_dims=16, heads=1, num_queries=4).state_dict()
    parts = {}
    for name, value in plus.items():
        number, _, rest = name.removeprefix("layers.").partition(".")
        renamed = (
            rest.replace("ln0.", "0.norm1.").replace("ln1.", "0.norm2.")
            .replace("to_out.0", "to_out")
            .replace("attn.", "0.").replace("ff.0.", "1.0.")
            .replace("ff.1.net.0.proj", "1.1").replace("ff.1.net.2", "1.3")
        )  # fmt: skip
        parts[f"layers.{number}.{renamed}" if name.startswith("layers.") else name] = value
    for i in range(4):
        keys, values = (parts.pop(f"layers.{i}.0.to_{one}.weight") for one in "kv")
        parts[f"layers.{i}.0.to_kv.weight"] = torch.cat([keys, values])
    state = {f"image_proj.{name}": value.contiguous() for name, value in parts.items()}
    crossed = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for i, layer in enumerate(crossed):
        shape = unet.get_submodule(layer.removesuffix(".processor")).to_k.weight.shape
        for one in "kv":
            state[f"ip_adapter.{2 * i + 1}.to_{one}_ip.weight"] = torch.randn(shape)
    save_file(state, folder / "models" / "ip-adapter-plus_sd15.safetensors")


def build_xl(folder, source):
    """Write a StableDiffusionXLPipeline of two text encoders to `folder`, with the autoencoder
    and the tokenizer of `source`.
    """
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    ids = {
        name: getattr(small.text_encoder.config, name)
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    sizes = dict(
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        **ids,
    )
    torch.manual_seed(1)
    one = CLIPTextModel(CLIPTextConfig(hidden_size=16, **sizes))
    two = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, projection_dim=8, **sizes))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16,),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=40,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    StableDiffusionXLPipeline(
        small.vae, one, two, small.tokenizer, small.tokenizer, unet, EulerDiscreteScheduler()
    ).save_pretrained(folder)


def build_classifier(folder):
    """Write an open_clip folder of 16 px, two vision blocks, one text block and random weights
    to `folder`.
    """
    import open_clip

    from datadream.mini import base, tokens

    tokens.write_vocabulary(folder)
    tokenizer = tokens.clip_tokenizer(folder, TOKENS)
    text = {
        name: value
        for name, value in CLIP["text_cfg"].items()
        if not name.startswith(("hf_", "tokenizer_"))
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(
        CLIP["embed_dim"],
        CLIP["vision_cfg"],
        dict(text, vocab_size=len(tokenizer)),
        quick_gelu=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CLIP", CLIP)
        base.save_clip(folder, model, tokenizer)


def executed(notebook, parameters, folder):
    """Execute a notebook of the project under papermill, which must end well; return the page."""
    import papermill

    papermill.execute_notebook(
        ROOT / "notebooks" / f"{notebook}.ipynb", folder / "out.ipynb", parameters,
        progress_bar=False, start_timeout=300,
    )  # fmt: skip
    page = json.loads((folder / "out.ipynb").read_text())
    assert not page["metadata"]["papermill"]["exception"]
    return page


def adapt(recipe, dataset, store, label=None, image=None):
    """Return the folder of an adapter, made in a store."""
    return Cell(recipe, dataset).make("adapt", store, Adapter(label, image))


def generate(recipe, dataset, store):
    """Return the folder of a synthetic set."""
    return Cell(recipe, dataset).make("generate", store)


def generate_slice(recipe, dataset, store, label, position):
    """Make one slice of a class as a cluster does."""
    stage_of("generate").do(Cell(recipe, dataset), (label, position), store)


def adapter_key(recipe, dataset, label=None, image=None):
    """Return the key of an adapter."""
    return key("adapt", **adapter_inputs(Support(recipe, dataset), Adapter(label, image)))


def draw_image(label, index):
    """Return a 24 x 16 picture: the class's colour on one side, noise that differs from image to
    image.
    """
    noise = np.random.RandomState(100 * label + index).randint(0, 120, (16, 24, 3)).astype(np.uint8)
    noise[:, :12, label % 3] += 120
    return Image.fromarray(noise)


def write_classes(root, names, count, first=0):
    """Write `count` PNG files to each of root/<name>, of the pictures from number `first` on."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(first, first + count):
            draw_image(label, index).save(root / name / f"image {index}.png")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Return the folders of the tiny models: `generator`, `velocity`, `xl`, `classifier` and
    `ip_adapter`, which suits `generator`.
    """
    root = tmp_path_factory.mktemp("models")
    build_generator(root / "generator")
    build_classifier(root / "clip")
    build_xl(root / "xl", root / "generator")
    build_ip_adapter(root / "ip", root / "generator")
    # Stable Diffusion 2.1: the scheduler says what the UNet predicts.
    shutil.copytree(root / "generator", root / "velocity")
    file = root / "velocity" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    settle()  # diffusers, transformers and open_clip, which building the models has imported
    return types.SimpleNamespace(
        generator=str(root / "generator"),
        classifier=str(root / "clip"),
        xl=str(root / "xl"),
        velocity=str(root / "velocity"),
        ip_adapter=str(root / "ip"),
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a directory of three class folders with twelve images each; tests must not change
    it.
    """
    root = tmp_path_factory.mktemp("photos")
    write_classes(root, CLASSES, 12)
    files = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*.png"))]
    lines = [f"{file}\tgrey {i % 5}\tside {i % 3}" for i, file in enumerate(files)]
    (root / "captions.tsv").write_text("\n".join(["file\tbackground\tpose", *lines, ""]))
    return str(root)


@pytest.fixture(scope="session")
def tiny(models):
    """Return the overrides that make every stage take a blink on the tiny models; alpha is
    unlike rank on purpose.
    """
    return {"generator": models.generator, "classifier": models.classifier, **TINY}


@pytest.fixture(scope="session")
def make(folder, tiny, models):
    """Return make(method, overrides, **fields): a recipe on the folder data set and the tiny
    models.
    """

    def build(method="dset", overrides=None, **fields):
        # Two steps tell few strengths apart; of four, quarters, and of ten, tenths.
        usual = recipe(method=method).generate
        quarters = method.startswith(("disef", "dafusion"))
        own = {"generate.steps": 4 if quarters else 10} if usual.strength else {}
        if usual.image_prompts:
            own["generate.image_prompts"] = models.ip_adapter
        return recipe(
            overrides={**tiny, **own, **(overrides or {})},
            **{"dataset": "folder", "folder": folder, "shots": 2, "method": method, **fields},
        )

    return build


@pytest.fixture(scope="session")
def dataset(folder):
    """Return the folder data set."""
    return datasets.load_dataset("folder", folder)


@pytest.fixture(scope="session")
def slashed(dataset):
    """Return the same images with class names that are no safe folder names: a slash, a dot
    file, twins on a Mac.
    """
    return dataclasses.replace(dataset, classes=("A/C unit", ".hidden", "a_c unit"))


@pytest.fixture(autouse=True)
def separate_folders(tmp_path, monkeypatch):
    """Point the artifacts away from the checkout, so that no test reads or writes a user's
    results.
    """
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "artifacts"))


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C interrupt, as it does at a terminal: a shell's background job, which the tests
    may be, ignores it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def store(tmp_path):
    """Return an empty store."""
    return Store(tmp_path / "artifacts")


@pytest.fixture
def shots(dataset):
    """Return two images per class."""
    return datasets.few_shots(dataset, 2, 0)


@pytest.fixture
def registered():
    """Add methods for one test, and take them away again."""
    names = []

    def add(method):
        names.append(method.name)
        return register(method)

    yield add
    for name in names:
        METHODS.unregister(name)
    checked.draws.cache_clear()
    checked.adapters.cache_clear()
