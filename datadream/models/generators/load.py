"""Load a generator: a frozen diffusers pipeline, wrapped by its family."""

import gc
from functools import lru_cache
from typing import Any, cast

import torch
from safetensors import SafetensorError

from ...errors import ConfigError, ModelMissingError
from ..catalog import absent, fetching, hub_id, local, misplaced, variant
from ..device import device
from .base import Generator
from .unet import UNet

# The table of families: a pipeline's class, as its model_index.json names it -> its wrapper.
FAMILIES: dict[str, type[Generator]] = {
    "StableDiffusionPipeline": UNet,
    "StableDiffusionXLPipeline": UNet,
}


def generator_of(pipe: Any) -> Generator:
    """Wrap a loaded diffusers pipeline as a generator of its family."""
    return FAMILIES[type(pipe).__name__](pipe)


def load_generator(name: str, dtype: torch.dtype = torch.float32) -> Generator:
    """Load a generator; `name` and errors as in `load_pipeline`."""
    return generator_of(load_pipeline(name, dtype))


def load_pipeline(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a diffusers pipeline, frozen, without safety checker or progress bar.

    `name` is a row of catalog.GENERATORS, a hub id or a folder in diffusers format. The last two
    pipelines are cached. Raises ModelMissingError, which says how to get the model, and ConfigError
    on a pipeline that no family supports.
    """
    return _load_pipeline(name, dtype)


def forget_generators() -> None:
    """Drop the cached pipelines and free their memory."""
    _load_pipeline.cache_clear()


def use_gpu(number: int) -> None:
    """Make CUDA device `number` the current one; cached pipelines on another are dropped."""
    if number != torch.cuda.current_device():
        forget_generators()
        gc.collect()
        torch.cuda.empty_cache()  # else this worker keeps the memory
        torch.cuda.set_device(number)


@lru_cache(maxsize=2)
def _load_pipeline(name, dtype):
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", between our bars
    folder, hub = local(name, "generator"), hub_id(name)
    if wrong := misplaced(name, "generator"):
        raise ModelMissingError(f"the generator {name!r} cannot be loaded: {wrong}")
    try:
        pipeline = diffusers.DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
        config = pipeline.load_config(folder or hub)
        kind = cast("dict[str, Any]", config)["_class_name"]  # a tuple only if more is requested
        if kind not in FAMILIES:
            raise ConfigError(
                f"the generator {name!r} is a {kind}; accepted: {', '.join(FAMILIES)}"
            )
        checker = (
            {"safety_checker": None, "requires_safety_checker": False}
            if kind == "StableDiffusionPipeline"
            else {}
        )
        if folder and (lacking := absent(name, "generator")):
            raise OSError(lacking)
        # Safetensors only: a pickle can run code.
        pipe = getattr(diffusers, kind).from_pretrained(
            folder or hub, dtype=dtype, use_safetensors=True, variant=variant(name), **checker
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelMissingError(
            f"the generator {name!r} cannot be loaded: {_way(name, folder)}, or set "
            "generator=<folder in diffusers format>; generator='mini' needs no download. Cause: "
            f"{error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    family = generator_of(pipe)
    for module in (family.network, pipe.vae, *family.text_encoders().values()):
        module.requires_grad_(False).eval()
    return pipe.to(device())


def _way(name, folder):
    if folder:
        lacking = absent(name, "generator")
        return (
            lacking
            or f"its folder {folder} is damaged or in another format; copy or download it again"
        )
    return f"where a network is at hand, {fetching(name)}; point HF_HOME to that cache"
