"""Features of image sets from a table of extractors, computed once and kept in the store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from .. import progress
from ..config import Recipe
from ..data import printed
from ..data.images import Images, fingerprint
from ..data.transforms import BATCH, evaluation_batches, scaled
from ..errors import ConfigError, ModelMissingError, did_you_mean
from ..models.classifiers import print_reader
from ..models.classifiers.base import load_classifier
from ..models.device import device
from ..models.identity import identity
from ..paths import atomic_write, paths
from ..store.artifacts import Store
from ..store.files import digest
from ..store.keys import key
from ..training.batch_size import BatchSize

STAGE = "features"  # prefix of the key of a features artifact
SHARD = 1000  # images per file: the most that a killed extraction repeats
# Side in pixels, a multiple of its patch size 14.
DINOV2, DINOV2_SIDE = ("vit_base_patch14_dinov2.lvd142m", 224)


def _load_clip(recipe):
    if recipe.classifier == "resnet50":
        raise ConfigError(
            "classifier='resnet50' starts from random weights, which see nothing; leave out the "
            "extractor 'clip'"
        )
    model = load_classifier(recipe.classifier, precision="float32").eval()
    return model.image, model.size


def _load_reader(recipe):
    reader = print_reader.load_reader(paths()["mini"])
    return torch.nn.Sequential(*list(reader)[:-1]).to(device()), printed.SIDE


def _load_dinov2(recipe):
    import timm
    from torchvision.transforms.v2 import Normalize

    try:
        model = timm.create_model(DINOV2, pretrained=True, num_classes=0, img_size=DINOV2_SIDE)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelMissingError(
            f"the extractor 'dinov2' (timm/{DINOV2}, about 0.4 GB, Apache-2.0) cannot be loaded. "
            f"Where a network is at hand, `hf download timm/{DINOV2}` fetches it; point HF_HOME "
            f"to that cache, or take the extractor 'clip' alone. Cause: {error}"
        ) from error
    # nn.Module annotates every attribute as a tensor or module.
    config = cast("dict[str, Any]", model.pretrained_cfg)
    normalise = Normalize(config["mean"], config["std"])
    return torch.nn.Sequential(normalise, model.eval()).to(device()), DINOV2_SIDE


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: its description, what its cache key holds, and how it is loaded.

    `identity` and `load` take a recipe. `load` returns (function from images (B, 3, S, S) in [0, 1]
    to features (B, d), S); `unit` marks features of unit length.
    """

    about: str
    identity: Callable[[Recipe], Any]
    load: Callable[[Recipe], tuple[Any, int]]
    unit: bool = False


EXTRACTORS = {
    "clip": Extractor(
        "the recipe's classifier, untouched: its image features",
        lambda recipe: identity(recipe.classifier, "clip"),
        _load_clip,
        unit=True,
    ),
    "reader": Extractor(
        "the embedded reader of print, before its last layer",
        lambda recipe: digest(paths()["mini"] / "reader.safetensors"),
        _load_reader,
    ),
    "dinov2": Extractor(
        "DINOv2 ViT-B/14, trained without labels or texts (Oquab et al., 2024)",
        lambda recipe: f"{DINOV2} {DINOV2_SIDE}",
        _load_dinov2,
    ),
}


def extractors(recipe: Recipe) -> tuple[str, str]:
    """Return the names of a recipe's two extractors: its own CLIP, and an independent one.

    The second shares nothing with generator or classifier. DINOv2 agrees with human judgement
    better than Inception's features do (Stein et al., 2023); the mini models draw characters, so
    theirs is a reader of print.
    """
    return ("clip", "reader" if recipe.profile == "mini" else "dinov2")


def _extract(images, row, recipe, folder):
    encode, side = row.load(recipe)
    size = BatchSize(BATCH)
    for start in progress.each(range(0, len(images), SHARD), "features", "part"):
        file = folder / f"{start:08d}.safetensors"
        if not file.exists():
            part = images.pick(range(start, min(start + SHARD, len(images))))
            _write(file, size.each(evaluation_batches(part, side), partial(_encoded, encode)))


def _encoded(encode, part):
    return encode(scaled(part, device())).float().cpu()


@torch.inference_mode()
def _write(file, parts):
    from safetensors.torch import save_file

    found = torch.cat(list(parts))
    with atomic_write(file) as part:
        save_file({"features": found.contiguous()}, part)


def features(images: Images, name: str, recipe: Recipe, store: Store) -> np.ndarray:
    """Return the features (n, d), float32, of the images' evaluation views from extractor `name`.

    They are cached in the store under the images' fingerprint (`images.stamp` if set) and the
    extractor. A killed run keeps what it finished. Raises ConfigError on an unknown name,
    ValueError on an empty set, ModelMissingError on missing weights.
    """
    from safetensors.numpy import load_file

    if name not in EXTRACTORS:
        raise ConfigError(
            f"the extractor {name!r} is unknown; accepted: "
            f"{', '.join(EXTRACTORS)}{did_you_mean(name, EXTRACTORS)}"
        )
    if not len(images):
        raise ValueError("there are no images to take features of; give a set of one or more")
    row = EXTRACTORS[name]
    inputs = {"images": fingerprint(images), "extractor": name, "model": row.identity(recipe)}
    with store.in_use():
        folder = store.make(
            key(STAGE, **inputs), inputs, lambda work: _extract(images, row, recipe, work)
        )
        return np.concatenate(
            [load_file(file)["features"] for file in sorted(folder.glob("*.safetensors"))]
        )
