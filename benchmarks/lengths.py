"""How long the paper's tasks take at an assumed throughput, from the counted operations of the
full-size models and measured rates.
"""

import functools
import hashlib
import time
import types

import torch

from datadream.data.datasets import prompt
from datadream.data.images import PIXEL
from datadream.engines.rates import PROXY, seconds
from datadream.methods.registry import method_of
from datadream.pipeline.adapt import adapter_work
from datadream.pipeline.generate import generation_work
from datadream.pipeline.stages import Cell
from datadream.pipeline.train import training_work
from datadream.study.plan import load_or_describe

from . import limits
from .full_size import TEXT, UNET, VAE

# NVIDIA's data sheet of the H100 SXM: 1,979 TFLOP/s in bfloat16 with sparsity, half of it without.
# The share is an assumption.
PEAK, SHARE = 989e12, 0.4
# A GPU's share of its host, assumed: the cores that decode training images, the memory that keeps
# them, and the disk that the rest is read from.
CORES, MEMORY, DISK = 16, 128e9, 3e9  # bytes, bytes/s
SIDE, VIEW = 512, 224  # pixels of the paper's generator and classifier


def _count(call):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


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
    return types.SimpleNamespace(
        **{name: part.requires_grad_(False) for name, part in parts.items()}
    )


@functools.lru_cache
def generator_flops():
    """Return the operations of Stable Diffusion 2.1-base for one image: UNet pass, encoding,
    decoding, a trained view, a trained prompt.
    """
    from datadream.methods.recipes import recipe
    from datadream.models.generators.lora import add_generator_lora
    from datadream.models.generators.unet import UNet

    pipe, side = _generator(), SIDE // 8
    latent, picture, ids = (
        torch.empty(shape, device="meta")
        for shape in ((1, 4, side, side), (1, 3, SIDE, SIDE), (1, 77))
    )

    def text():
        return pipe.text_encoder(ids.long())[0]

    def unet(words):
        return pipe.unet(latent, torch.empty(1, device="meta"), words).sample

    with torch.no_grad():
        words = torch.empty(1, 77, TEXT["hidden_size"], device="meta")
        found = {
            "unet": _count(lambda: unet(words)),
            "encode": _count(lambda: pipe.vae.encode(picture)),
            "decode": _count(lambda: pipe.vae.decode(latent)),
        }
    add_generator_lora(UNet(pipe), recipe("paper").adapt)
    found["trained prompt"] = _count(lambda: text().sum().backward())
    return found | {
        "trained view": _count(lambda: unet(text()).sum().backward()) - found["trained prompt"]
    }


@functools.lru_cache
def _classifier():
    import open_clip

    from datadream.methods.recipes import recipe
    from datadream.models.classifiers.clip import Classifier
    from datadream.models.classifiers.lora import add_classifier_lora

    name, options = "ViT-B-16-quickgelu", recipe("paper").classify
    with torch.device("meta"):
        model = Classifier(
            open_clip.CLIP(**open_clip.get_model_config(name)),
            open_clip.get_tokenizer(name),
            (0.0,) * 3,
            (1.0,) * 3,
        )
        add_classifier_lora(model, options.rank, options.alpha, options.dropout)
    return model


@functools.lru_cache
def classifier_flops(length):
    """Return the operations of CLIP ViT-B/16: an image read, an image trained on, and a prompt
    of `length` tokens trained on.
    """
    # Below `Classifier.image`, whose autocast knows no meta device.
    model, picture = (_classifier(), torch.empty(1, 3, VIEW, VIEW, device="meta"))
    with torch.no_grad():
        read = _count(lambda: model.clip.encode_image(picture))
    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    return {
        "read": read,
        "trained image": _count(lambda: model.clip.encode_image(picture).sum().backward()),
        "trained prompt": _count(lambda: model._encode_text(tokens).sum().backward()),
    }


@functools.lru_cache
def rates():
    """Return what a core of this machine does: bytes/s of decoded pixels of the generator's
    size, bytes/s of SHA-256.
    """
    block, count, start = bytes(2**24), 0, time.process_time()
    while time.process_time() - start < 1:
        hashlib.sha256(block).digest()
        count += len(block)
    return {"decoded": limits.decoding(SIDE), "hashed": count / (time.process_time() - start)}


def _prompt_length(dataset):
    ids = _classifier().tokenizer([prompt(dataset.noun, name) for name in dataset.classes])
    return int(ids.argmax(1).max()) + 1


def decoded(support):
    """Return how many synthetic images a training decodes, and how many it reads back from the
    disk: all uses of a set that memory cannot keep.
    """
    method = method_of(support.recipe)
    if not method.generates or not method.trained:
        return 0, 0
    made, used = generation_work(support)[0], training_work(support)[2]
    # Half of a batch is real, and the few shots fit.
    again = used / 2 if method.real else used
    return made, again if made * 3 * SIDE**2 > MEMORY else 0


@functools.lru_cache
def _cell(support):
    """Return the parts of a cell in seconds: the set's digests, the classifier's products, the
    decoding of its images, the test.
    """
    method, options = method_of(support.recipe), support.recipe.classify
    dataset, classes = support.dataset, len(support.classes)
    flops, core = classifier_flops(_prompt_length(dataset)), rates()
    made = generation_work(support)[0] if method.generates else 0
    test = (len(dataset.test) + options.evaluations * 4 * classes) * flops["read"] / PEAK / SHARE
    if not method.trained:
        return {"test": test}
    _, steps, images = training_work(support)
    products = images * flops["trained image"] + steps * classes * flops["trained prompt"]
    once, again = (count * 3 * SIDE**2 for count in decoded(support))
    return {
        "digests": made * PIXEL * SIDE**2 / core["hashed"],
        "products": products / PEAK / SHARE,
        "decoding": once / core["decoded"] / CORES + again / DISK,
        "test": test,
    }


def parts(task):
    """Return what a task of the paper's table takes, part -> seconds; a cell decodes while it
    computes.
    """
    cell, flops = Cell(task.recipe, load_or_describe(task.recipe)), generator_flops()
    if task.kind == "cell":
        return dict(_cell(cell.support))
    if task.kind == "adapt":
        (one,), batch = task.where, task.recipe.adapt.batch
        prompts = len(cell.dataset.classes) if one.label is None else 1
        view = (
            flops["trained view"]
            + flops["encode"]
            + flops["trained prompt"] * min(prompts, batch) / batch
        )
        return {"products": adapter_work(cell.support, one)[2] * view / PEAK / SHARE}
    images, _, passes = generation_work(cell.support)
    whole = (passes * flops["unet"] + images * flops["decode"]) / PEAK / SHARE
    return {"products": whole * task.length / seconds(cell, "generate", PROXY)}


def length(task):
    """Return the seconds that a task of the paper's table takes: products and decoding at once,
    the rest one after the other.
    """
    found = parts(task)
    return max(found.pop("products", 0.0), found.pop("decoding", 0.0)) + sum(found.values())
