"""Two interfaces: `Generator` holds what differs between families of text-to-image models, `Kind`
what differs between kinds of adaptation to the few shots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ...config import Adapt, Generate

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

# Returned by `Generator.condition`, taken by `Generator.predict`; opaque outside the family.
Condition = Any


class Schedule(Protocol):
    """How a family adds noise to latents, and what its network should predict from the result."""

    def latents(self, sample: Tensor) -> Tensor:
        """Scale a sample of the autoencoder's posterior to what the network expects."""
        ...

    def times(self, count: int, device: torch.device) -> Tensor:
        """Draw `count` training timesteps from torch's global generator."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the latents noised to the timesteps `times`."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return what the network should predict: noise, or a velocity."""
        ...


class Generator(ABC):
    """A diffusers pipeline, frozen and in evaluation mode, behind the interface that stages use.

    Each family is a subclass. The stages train and sample through these methods alone; code that
    all families share is in `lora`, `latents` and `sampling`.
    """

    network_name: ClassVar[str]  # the pipeline's attribute that holds the denoising network
    targets: ClassVar[Sequence[str]]  # layers of the network that get LoRA
    text_targets: ClassVar[Sequence[str]] = ()  # layers of a text encoder that get LoRA

    def __init__(self, pipe: Any):
        self.pipe = pipe

    @property
    def network(self) -> nn.Module:
        """The denoising network, in its own precision."""
        return getattr(self.pipe, self.network_name)

    @property
    def device(self) -> torch.device:
        """The device that the pipeline is on."""
        return self.pipe.device

    @abstractmethod
    def text_encoders(self) -> dict[str, nn.Module]:
        """Return the text encoders that can be tuned, by the pipeline's names for them."""

    def lora_targets(self, text_encoder: bool) -> dict[str, Sequence[str]]:
        """Return the layers that get LoRA, by the name of the part.

        Parts are the network and, with `text_encoder`, the text encoders.
        """
        texts = self.text_encoders() if text_encoder else ()
        return {self.network_name: self.targets, **dict.fromkeys(texts, self.text_targets)}

    @abstractmethod
    def side(self, resolution: int = 0) -> int:
        """Return the images' side in pixels: `resolution`, or for 0 the model's native one."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """The number of pixels that a side must be a multiple of."""

    # Training

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) in [-1, 1] to the posterior's mean and standard deviation.

        Returns float32 (B, 2, C, h, w); without a posterior the deviation is 0.
        """

    @abstractmethod
    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of an image of `side` pixels."""

    @abstractmethod
    def schedule(self) -> Schedule:
        """Return the noise schedule that the model was trained with."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Prepare prompts once for many steps, as tensors with a row per prompt.

        These are token ids, or embeddings where no text encoder is tuned.
        """

    @abstractmethod
    def condition(self, tokens: tuple[Tensor, ...], side: int) -> Condition:
        """Return the network's conditioning for rows of `tokenize`.

        Gradients flow to the text encoders.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """Return the network's prediction, of the shape of `noisy`."""

    # Sampling

    @abstractmethod
    def scheduler(self, name: str) -> Any:
        """Return a fresh sampler: the pipeline's own for 'pipeline', else a class of diffusers.

        Raises ConfigError on a name that this family cannot use.
        """

    @abstractmethod
    def embed(self, texts: Sequence[str], options: Generate) -> dict[str, Tensor]:
        """Encode prompts once for many images, as tensors with a row per prompt.

        They are named after the pipeline's arguments.
        """

    def look(self, pictures: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """Encode image prompts, two for each image, as tensors with a row per image, for `draw`.

        Raises TypeError where no IP-Adapter is loaded.
        """
        raise TypeError(f"{type(self).__name__} takes no image prompts")

    @abstractmethod
    def draw(
        self,
        text: Mapping[str, Tensor],
        noise: Sequence[torch.Generator],
        options: Generate,
        side: int,
        starts: Sequence[Image] | None = None,
    ) -> Tensor:
        """Sample one image per noise generator, (B, 3, S, S) in [0, 1].

        `text` holds rows of `embed`, one for all images or one each. Sampling starts from the
        square images `starts` with `options.strength` of the schedule's noise (SDEdit), or from
        pure noise.
        """


@dataclass(frozen=True)
class Attached:
    """An adaptation that is attached to a generator for training."""

    parameters: dict[str, nn.Parameter]
    # Saves it to a folder, in a format that diffusers reads.
    save: Callable[[Path], None]
    rates: Mapping[str, float] = field(default_factory=dict)  # learning-rate factors, for `fit`
    # Takes the indices (B,) of the shots in the next batch of `Generator.predict`.
    select: Callable[[Tensor], None] = lambda rows: None


class Attaches(Protocol):
    """Attach an adaptation to a generator within a context, and detach it at the end."""

    def __call__(
        self, generator: Generator, options: Adapt, label: int | None, shots: int
    ) -> AbstractContextManager[Attached]:
        """`label` and `shots` are the adapter's class, if it has one, and its number of shots.

        Random initial values come from torch's global generator.
        """
        ...


class Loads(Protocol):
    """Load what `Attached.save` wrote into a generator, for sampling within a context."""

    def __call__(
        self, generator: Generator, *folders: Path, weights: Sequence[float] = ()
    ) -> AbstractContextManager[Generator]:
        """`weights` as in `Draw`; none: equal shares. Without folders, yield the base model."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of adaptation, a row of `kinds.KINDS`."""

    attached: Attaches
    loaded: Loads
    # Raises ConfigError on a generator or settings that this kind cannot use.
    require: Callable[[Generator, Adapt], None] = lambda generator, options: None
