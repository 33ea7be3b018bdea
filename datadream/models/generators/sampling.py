"""Sample images from a generator with its adapters, one seed per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import fromarray

from ...config import Generate, Recipe
from ...errors import ConfigError
from ...training.loop import DivergedError
from ..device import dtype_for
from .base import Generator
from .ip_adapter import prompted_by_images, require_image_prompts, require_suits
from .kinds import KINDS
from .load import load_generator

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

BACKEND = "inductor"


class Prompts:
    """The prompts and negative prompts of many images, each distinct text encoded once."""

    def __init__(
        self, generator: Generator, texts: Sequence[tuple[str, str]], options: Generate
    ) -> None:
        """`texts` has each image's (prompt, negative prompt); "" means the family's default."""
        every = [text for text, _ in texts] + [away for _, away in texts if away]
        self.texts, self.place = texts, {one: i for i, one in enumerate(dict.fromkeys(every))}
        self.table = generator.embed(list(self.place), options)

    def of(self, images: Sequence[int]) -> dict[str, Tensor]:
        """Return the rows of `Generator.embed` for some images."""
        own = [self.place[self.texts[i][0]] for i in images]
        found = {name: tensor[own] for name, tensor in self.table.items()}
        for row, i in enumerate(images):
            away = self.texts[i][1]
            for name in found if away else ():
                plain = name.removeprefix("negative_")
                if plain != name:
                    found[name][row] = self.table[plain][self.place[away]]
        return found


def sample(
    generator: Generator,
    text: Mapping[str, Tensor],
    seeds: Sequence[int],
    options: Generate,
    side: int,
    starts: Sequence[Image] | None = None,
) -> list[Image]:
    """Sample one RGB image of `side` pixels per seed.

    `text` and `starts` as in `Generator.draw`. Raises DivergedError on NaN.
    """
    # Drawn on the CPU, so that noise is the same on every device.
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = generator.draw(text, noise, options, side, starts)
    whole = torch.isfinite(images).flatten(1).all(1).tolist()  # one device sync for all images
    broken = [seed for seed, fine in zip(seeds, whole, strict=True) if not fine]
    if broken:
        raise DivergedError(
            f"the generator made NaN for {len(broken)} of {len(seeds)} images, the first with "
            f"seed {broken[0]}, which would be black; half precision may be too little for it, "
            "precision='float32' is not"
        )
    processor = generator.pipe.image_processor
    if images.is_cuda:  # a quarter of the bytes to transfer; on a CPU it gains nothing
        return [fromarray(image) for image in levels(images).cpu().numpy()]
    return processor.numpy_to_pil(processor.pt_to_numpy(images))


def levels(images: Tensor) -> Tensor:
    """Round images (B, 3, H, W) in [0, 1] on their device to uint8 (B, H, W, 3).

    The bytes are those of diffusers' `numpy_to_pil`.
    """
    rounded = images.float().mul(255).round_().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous()


def require_sampler(recipe: Recipe) -> None:
    """Raise ConfigError if the generator cannot use the recipe's sampler, resolution or adaptation.

    Also on image prompts that it cannot take, and on redraws that no classifier can judge. Called
    before anything is trained.
    """
    require_image_prompts(recipe)
    generator = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    generator.scheduler(recipe.generate.scheduler)
    if recipe.generate.image_prompts:
        require_suits(generator, recipe)
    KINDS[recipe.adapt.kind].require(generator, recipe.adapt)
    if recipe.resolution % generator.unit:
        raise ConfigError(
            f"resolution={recipe.resolution} does not suit the generator {recipe.generator!r}; "
            f"give a multiple of {generator.unit}"
        )
    if recipe.generate.redraws and recipe.classifier == "resnet50":
        raise ConfigError(
            f"generate.redraws={recipe.generate.redraws} asks the untouched classifier about each "
            "image, and classifier='resnet50' starts from random weights; give a CLIP as the "
            "classifier, or generate.redraws=0"
        )


@contextmanager
def adapted(recipe: Recipe, *adapters: Path, weights: Sequence[float] = ()) -> Iterator[Generator]:
    """Yield the recipe's generator with its sampler and with adapters of its `adapt.kind`.

    `adapters` are artifact folders, merged by `weights` or in equal shares; none gives the base
    model. The recipe's IP-Adapter is loaded too. The generator is restored afterwards.
    """
    generator = load_generator(recipe.generator, dtype_for(recipe.precision, training=False))
    pipe, own = generator.pipe, generator.pipe.scheduler
    pipe.scheduler = generator.scheduler(recipe.generate.scheduler)
    try:
        with (
            KINDS[recipe.adapt.kind].loaded(generator, *adapters, weights=weights),
            prompted_by_images(generator, recipe.generate.image_prompts) as prompted,
            compiled(generator.network) if recipe.generate.compile else nullcontext(),
        ):
            yield prompted
    finally:
        pipe.scheduler = own


@contextmanager
def compiled(network: Any) -> Iterator[None]:
    """Run `network` compiled within the context; it compiles once, as adapters change no shape."""
    if not hasattr(network, "compiled_once"):
        network.compiled_once = torch.compile(network._call_impl, backend=BACKEND)
    network._compiled_call_impl = network.compiled_once
    try:
        yield
    finally:
        network._compiled_call_impl = None
