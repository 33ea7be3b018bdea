"""The interface of a method: only what sets it apart from the others.

A method defines which adapters of the generator are trained, how each image is drawn, which images
are accepted, what is added to the classifier's loss and, if the classifier is not tuned by LoRA,
what is fitted on its frozen features. The pipeline does the rest, in the same way for all:
sampling, resuming, distributing work over machines, training the classifier, recording.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from PIL.Image import Image

from ..config import Recipe
from ..data.datasets import Dataset, few_shots, prompt
from ..data.images import Images, SoftLabel
from ..data.synthetic_set import shares_row
from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.classifiers.frozen import Frozen


# The number of weights that an adapter takes, by `adapt.kind`: one per shot, none, or, for a kind
# that is not listed, one.
PARTS: Mapping[str, Callable[[int], int]] = {"heads": lambda shots: shots, "token": lambda shots: 0}


@dataclass(frozen=True)
class Adapter:
    """One adaptation of the generator, usually a LoRA: which of the few shots it is tuned on.

    `label` is a class index, or None for the shots of all classes; `image` picks one shot of the
    class.
    """

    label: int | None = None
    image: int | None = None

    def shots(self, support: "Support") -> int:
        """Return how many images it is tuned on."""
        return 1 if self.image is not None else support.count(self.label)

    def parts(self, support: "Support") -> int:
        """Return how many of the numbers in `Draw.weights` it takes."""
        count = PARTS.get(support.recipe.adapt.kind, lambda shots: 1)
        return count(self.shots(support))

    def images(self, support: "Support") -> Images:
        """Return the images that it is tuned on."""
        shots = support.shots(self.label)
        return shots if self.image is None else shots.pick([self.image])

    def prompts(self, support: "Support") -> list[str]:
        """Return the class's prompt for each image that it is tuned on."""
        return [support.prompt(label) for label in self.images(support).labels]


@dataclass(frozen=True)
class Draw:
    """How one image is made: its prompt, its adapters, its start and its label."""

    prompt: str
    adapters: tuple[Adapter, ...] = ()  # merged; none: the base generator
    start: int | None = None  # the shot that it starts from; None: pure noise
    source: int | None = None  # the class of that shot; None: the image's own
    # Of the adapters or, with adapt.kind="heads", of each one's heads; none: equal shares.
    weights: tuple[float, ...] = ()
    # Fractions of the schedule's noise, for the first draw and the redraws in turn, all with the
    # same noise. None: generate.strength.
    strengths: tuple[float, ...] = ()
    label: SoftLabel = ()  # class shares that sum to one; none: the image's class alone
    negative: str = ""  # the prompt that guidance leads away from; "": the empty prompt
    # (class, place) of two few shots used as image prompts, by `generate.image_prompts`: one to
    # guide towards and one to guide away from. None: the text alone.
    images: tuple[tuple[int, int], ...] = ()

    def key(self) -> dict[str, Any]:
        """Return the fields for a key; those that were added later only if they are set."""
        found: dict[str, Any] = {}
        for own in fields(self):
            value = getattr(self, own.name)
            if own.name in ("prompt", "adapters", "start") or value != own.default:
                found[own.name] = value
        return found | {"adapters": tuple(map(asdict, self.adapters))}

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the fields that only a few methods set."""
        found: dict[str, Any] = {}
        if self.source is not None:
            found["start"] = {"label": self.source, "shot": self.start}
        if self.weights:
            found["weights"] = list(self.weights)
        if len(self.strengths) == 1:
            found["strength"] = self.strengths[0]
        if self.label:
            found["shares"] = shares_row(self.label)
        if self.negative:
            found["negative"] = self.negative
        if self.images:
            found["images"] = [{"label": label, "shot": shot} for label, shot in self.images]
        return found


class Reader(Protocol):
    """The untouched classifier: called with images, it returns their classes."""

    def __call__(self, images: Sequence[Image]) -> list[int]:
        """Return the class of each image."""
        ...

    def probabilities(self, images: Sequence[Image]) -> np.ndarray:
        """Return the probability of each class for each image, (n, classes)."""
        ...

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """Return the unit-length features (n, D) of the images."""
        ...


@dataclass(frozen=True)
class Support:
    """The few real images that a method may use, and the recipe that it runs under."""

    recipe: Recipe
    dataset: Dataset

    @cached_property
    def _drawn(self) -> dict[int | None, Images]:
        """The few shots by label, as they are asked for: a draw asks for those of many classes."""
        return {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the labels."""
        return tuple(self.dataset.classes)

    def shots(self, label: int | None = None) -> Images:
        """Return the few shots of all classes, or of one."""
        if label not in self._drawn:
            shots, seed = self.recipe.shots, self.recipe.seed
            self._drawn[label] = few_shots(self.dataset, shots, seed, label)
        return self._drawn[label]

    def count(self, label: int | None = None) -> int:
        """Return how many few shots there are, of all classes or of one."""
        return len(self.shots(label))

    def others(self, label: int) -> list[tuple[int, int]]:
        """Return (class, place) of each few shot of a class other than `label`.

        Raises DataError if there is no other class.
        """
        rest = [other for other in range(len(self.classes)) if other != label]
        if not rest:
            raise DataError(
                f"method {self.recipe.method!r} needs other classes beside each, and "
                f"{self.dataset.name!r} has one class; give it at least two"
            )
        return [(other, place) for other in rest for place in range(self.count(other))]

    def prompt(self, label: int, template: int = 0) -> str:
        """Return the paper's prompt of a class, or another of `data.datasets.TEMPLATES`."""
        return prompt(self.dataset.noun, self.classes[label], template)

    def class_prompts(self) -> list[str]:
        """Return the paper's prompt of each class."""
        return [self.prompt(label) for label in range(len(self.classes))]


# The fields of `classify` that augmented views depend on, for `Head.reads`.
VIEWS = (
    "crop_low", "flip", "randaugment", "jitter", "brightness", "contrast", "saturation", "hue",
    "grayscale", "blur", "solarize",
)  # fmt: skip
# Crops and flips alone, as in most methods on a frozen CLIP; for `Method.settings`.
CROPS_ALONE = {
    "classify.mix": 0.0,
    "classify.randaugment": False,
    "classify.jitter": 0.0,
    "classify.grayscale": 0.0,
    "classify.blur": 0.0,
    "classify.solarize": 0.0,
}


@dataclass(frozen=True)
class Given:
    """The data that a head is fitted on, or a loss prepared with; never test images."""

    support: Support
    frozen: "Frozen"  # the untouched classifier: features of images and of prompts
    images: Images  # the few shots, the synthetic images, or both, in this order
    val: Images  # the recipe's `validation_images`, on which a head may choose its settings
    folder: Path  # where a longer fit keeps its checkpoint and its curve.json

    @property
    def checkpoint(self) -> Path:
        """The file from which a killed fit resumes; it is removed in the end."""
        return self.folder / "checkpoint.safetensors"


@dataclass(frozen=True)
class Head:
    """A head on the features of a frozen CLIP, for a method that tunes no LoRA.

    A subclass is a frozen dataclass whose fields are settings and part of the classifier's key. It
    defines `fit` and `logits`.
    """

    reads: ClassVar[tuple[str, ...]] = ()  # the fields of `classify` that `fit` uses

    version: int = 1  # raise it when `fit` changes, so that classifiers are made again

    def key(self, support: Support) -> dict[str, Any]:
        """Return what the classifier's key holds besides model, prompts, images and seed."""
        own = {name: getattr(support.recipe.classify, name) for name in self.reads}
        kind = [type(self).__module__, type(self).__qualname__]
        return {"head": [*kind, asdict(self)], "classify": own}

    def work(self, support: Support, count: int) -> tuple[int, int]:
        """Return (optimiser steps, images that pass through CLIP) for a fit on `count` images."""
        return 0, count

    def chooses(self, support: Support) -> bool:
        """True if the fit chooses anything on validation images."""
        return True

    def fit(self, given: Given) -> "dict[str, Tensor]":
        """Fit the head and return the tensors to save, by name."""
        raise NotImplementedError(f"{type(self).__qualname__} has no `fit`")

    def logits(self, state: "Mapping[str, Tensor]", features: "Tensor", text: "Tensor") -> "Tensor":
        """Return logits (B, classes) for features (B, D) and the state that `fit` returned.

        The features are the image tower's raw ones, not normalised; `text` holds the unit features
        of the classes' prompts.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no `logits`")


@dataclass(frozen=True)
class ExtraLoss:
    """A term that a method adds to the loss of a classifier that is tuned by LoRA (equation 3).

    A subclass is a frozen dataclass whose fields are settings and part of the classifier's key. It
    defines `prepare` and `added`.
    """

    version: int = 1  # raise it when the class changes, so that classifiers are made again

    def key(self) -> dict[str, Any]:
        """Return what is added to the classifier's key."""
        return {"loss": [type(self).__module__, type(self).__qualname__, asdict(self)]}

    def require(self, support: Support) -> None:
        """Raise ConfigError on settings that the loss cannot work with; called first of all."""

    def prepare(self, given: Given) -> "Tensor":
        """Return one row for each of `given.images`, (n, ...); called once, before training."""
        raise NotImplementedError(f"{type(self).__qualname__} has no `prepare`")

    def added(
        self, logits: "Tensor", targets: "Tensor", real: "Tensor", kept: "Tensor"
    ) -> "Tensor":
        """Return the term to add to the loss of a batch, a scalar with its graph.

        `logits` and the soft `targets` are (B, classes), always of the whole batch. The mask `real`
        (B,) and `kept`, the batch's rows from `prepare`, are on the host.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no `added`")


@dataclass(frozen=True)
class Method:
    """A method of the comparison; a subclass overrides what differs from the default.

    The default draws from the base generator, with `generate.templates` prompts in turn, starting
    from a shot if `generate.strength` is set. It redraws an image while the untouched
    classifier predicts another class, at most `generate.redraws` times.
    """

    # True if recipe, prompts and adapters determine how the images are made, so that the key need
    # not hold the draws. It applies to the class that sets it, not to its subclasses.
    derived: ClassVar[bool] = True
    asks: ClassVar[str] = ""  # other models that it uses, in words for the table of costs

    name: str
    title: str
    # One per generator, from Okabe and Ito's palette for colour-blind readers, but with dark red
    # instead of yellow, which is hard to see on white.
    colour: str
    cite: str = ""  # a key of book/references.bib
    real: bool = False  # whether the classifier is trained on the few shots too
    generates: bool = True  # whether there is a synthetic set
    trained: bool = True  # whether a classifier is trained at all
    main: bool = False  # in the paper's main table, and run where no method is named
    head: Head | None = None  # what is fitted on frozen features; None: LoRA is tuned (section 3.4)
    loss: ExtraLoss | None = None  # what is added to equation 3; None: nothing
    marker: str = "o"  # matplotlib's; tells methods of one colour apart
    # What differs from the profile: profile -> dotted field -> value.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    together: int = 0  # at most this many images share a batch; 0: all with the same adapters
    version: int = 1  # raise it when `accept`, `choose` or `view` changes, to draw sets again

    @property
    def is_derived(self) -> bool:
        """True if the method's own class, not just a base class, sets `derived`."""
        return type(self).__dict__.get("derived", False)

    def adapters(self, support: Support) -> list[Adapter]:
        """Return the adapters to train, each once."""
        return []

    def prompts(self, support: Support, label: int) -> list[str]:
        """Return the prompts that the images of a class use in turn."""
        return [support.prompt(label, t) for t in range(support.recipe.generate.templates)]

    def used(self, support: Support, label: int, index: int) -> tuple[Adapter, ...]:
        """Return the adapters of image `index` of a class."""
        return ()

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return how image `index` of a class is made; `rng` depends on seed, class and index."""
        prompts = self.prompts(support, label)
        start = index % support.count(label) if support.recipe.generate.strength else None
        return Draw(prompts[index % len(prompts)], self.used(support, label, index), start)

    def view(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the view of a shot for an image prompt; `rng` as in `draw`."""
        return image

    def tuning_prompts(self, support: Support, adapter: Adapter) -> Sequence[str | tuple[str, ...]]:
        """Return the prompt of each image that an adapter is tuned on.

        A tuple holds several, from which each step takes one at random.
        """
        return adapter.prompts(support)

    def accept(self, images: Sequence[Image], label: int, read: Reader) -> list[bool]:
        """Return which images of a class to keep; the others are drawn again.

        Called only if `generate.redraws` > 0.
        """
        return [found == label for found in read(images)]

    def choose(
        self, support: Support, label: int, one: Draw, tries: Sequence[Image], read: Reader
    ) -> int:
        """Return the index of the one to keep of `tries`, an image's first draw and its redraws."""
        return len(tries) - 1

    def key(self, support: Support, draws: Callable[[int], list[Draw]]) -> dict[str, Any]:
        """Return what the synthetic set's key holds besides recipe, prompts and adapters.

        Nothing for a class that is `derived`; else every draw, and the `version` if the class has
        its own `accept`, `choose` or `view`. Computed for every plan, so it loads no model.
        """
        if self.is_derived:
            return {}
        every = [[one.key() for one in draws(y)] for y in range(len(support.classes))]
        found: dict[str, Any] = {"draws": hashlib.sha256(json.dumps(every).encode()).hexdigest()}
        for name in ("accept", "choose", "view"):
            if getattr(type(self), name) is not getattr(Method, name):
                found[name] = [type(self).__module__, type(self).__qualname__, self.version]
        return found
