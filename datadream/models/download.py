"""Fetch models into the hub's cache."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from ..config import Recipe
from ..errors import ConfigError, ModelMissingError, did_you_mean
from .catalog import CLASSIFIERS, IP_ADAPTERS, absent, hub_id, hub_of, local, misplaced, revision
from .classifiers.clip import load_clip
from .generators.ip_adapter import ip_adapter_folder, require_image_prompts
from .generators.load import load_pipeline


def download_model(name: str) -> None:
    """Fetch a model into the hub's cache, only the files that loading needs.

    Raises ModelMissingError, which says how to copy the files by hand, if they cannot be fetched,
    and ConfigError for an unknown name.
    """
    part = _part(name)
    if local(name, part) is not None or misplaced(name, part) or name == "resnet50":
        if wrong := absent(name, part):
            raise ModelMissingError(f"the model {name!r} cannot be used: {wrong}")
        return  # a whole folder, or random weights
    try:
        with _quiet():
            if part == "clip":
                # only loading the model tells which files open_clip fetches
                from .classifiers.base import load_classifier

                load_classifier(name)
            elif part == "ip-adapter":
                ip_adapter_folder(name)
            else:
                _download_pipeline(hub_id(name))
    except ConfigError:
        raise
    except (OSError, ValueError, ModelMissingError) as error:
        raise ModelMissingError(
            f"the model {name!r} was not downloaded: {_reason(error)}. {_by_hand(name, part)}"
        ) from error


def _part(name):
    """Return the part that a model's name stands for: 'generator', 'clip' or 'ip-adapter'."""
    if name in IP_ADAPTERS:
        return "ip-adapter"
    clip = name in CLASSIFIERS or name.startswith("hf-hub:") or _is_clip(name)
    return "clip" if clip else "generator"


def _download_pipeline(hub):
    """Fetch a pipeline, in half precision if its authors published nothing else."""
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    try:
        DiffusionPipeline.download(hub, use_safetensors=True)
    except (OSError, ValueError):
        try:
            DiffusionPipeline.download(hub, use_safetensors=True, variant="fp16")
        except (OSError, ValueError):
            pass
        else:
            return
        raise  # the first error, which says why


@contextmanager
def _quiet():
    """Silence the libraries' logs; the error raised at the end says all that matters."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _reason(error):
    """Return why a download failed: the first line of the innermost error, since the outer ones
    give advice on calls that the user did not make.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, which forbids it; unset it where there is a network"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def cache() -> str:
    """Return the folder of the hub's cache, which HF_HOME moves."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def _by_hand(name, part):
    folder = f"models--{hub_of(name, part).replace('/', '--')}"
    field, layout = {
        "generator": ("generator", "diffusers format"),
        "clip": ("classifier", "open_clip's layout"),
        "ip-adapter": ("generate.image_prompts", f"the layout of {hub_of(name, part)}"),
    }[part]
    return (
        "Without a network, run the same command on a machine that has one and copy the folder "
        f"{folder} from its cache into {cache()} (HF_HOME moves it); or set {field}=<folder in "
        f"{layout}>" + f"; {field}='mini' needs no download" * (part != "ip-adapter")
    )


def _is_clip(name):
    """True if a name is open_clip's '<architecture>/<weights>'. Raises ConfigError if the
    architecture has no such weights.
    """
    import open_clip

    architecture, _, weights = name.partition("/")
    if architecture not in open_clip.list_models():
        return False
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise ConfigError(
            f"open_clip has no weights {weights!r} for {architecture!r}; accepted: "
            f"{', '.join(tags) or 'none'}{did_you_mean(weights, tags)}"
        )
    return True


def fetch(recipe: Recipe, generates: bool) -> None:
    """Download the recipe's models that are not in the cache yet.

    Keys can then include the models' commits from the start. The generator is fetched only if the
    method `generates`. Raises ConfigError if the generator cannot take the image prompts.
    """
    wanted: list[tuple[str, str, Callable[[str], Any]]] = [(recipe.classifier, "clip", load_clip)]
    if generates:
        require_image_prompts(recipe)
        wanted.append((recipe.generator, "generator", load_pipeline))
        if prompts := recipe.generate.image_prompts:
            wanted.append((prompts, "ip-adapter", ip_adapter_folder))
    for name, part, load in wanted:
        if name != "resnet50" and local(name, part) is None and revision(name, part) is None:
            load(name)
