"""Every setting of the study with its default, unit and source; the profiles; validation."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import yaml

from .errors import ConfigError, brief, did_you_mean, printable
from .paths import expanded

# Upper limit of integers without one of their own; more would only fill memory or disk.
MOST = 10**6
# Fields that may hold a local path, in which "~" is the user's home.
PLACES = (
    "folder", "test_folder", "shots_folder", "generator", "classifier", "generate.image_prompts",
)  # fmt: skip
T = TypeVar("T", bool, int, float, str)


def knob(
    default: T,
    why: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    added: bool = False,
) -> T:
    """Declare a field: default, unit or reason with its source, and accepted range.

    Both ends of the range are included; `choices` lists the accepted texts. `added` marks a field
    newer than the first committed study: `key_fields` leaves it out while it has its default.
    """
    high = MOST if high is None and type(default) is int else high
    told = {"why": why, "low": low, "high": high, "choices": choices, "added": added}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Adapt:
    """How the generator is LoRA-tuned on the few shots (paper, section 3.2)."""

    rank: int = knob(16, "LoRA rank (paper)", 1, 1024)
    alpha: float = knob(16.0, "LoRA scale is alpha / rank (paper)", 0)
    text_encoder: bool = knob(True, "also tune the text encoder's attention (paper)")
    lr: float = knob(1e-4, "AdamW learning rate (paper)", 0)
    beta1: float = knob(0.9, "AdamW (released code)", 0, 1)
    beta2: float = knob(0.999, "AdamW (released code)", 0, 1)
    weight_decay: float = knob(1e-2, "AdamW (released code)", 0)
    eps: float = knob(1e-8, "AdamW (released code)", 0)
    clip: float = knob(1.0, "gradient norm limit, 0 for none (released code)", 0)
    batch: int = knob(8, "images a step (released code)", 1)
    epochs: int = knob(200, "passes over the adapter's few shots (paper)", 1)
    warmup: int = knob(100, "steps of linear warm-up, then a cosine (released code)", 0)
    micro: int = knob(
        0,
        "images at once within a step, whose gradients add up, for a small card; 0: all; the "
        "result is the same",
        0,
    )
    checkpointing: bool = knob(
        False,
        "compute the UNet's activations twice rather than keep them, for a small card; the result "
        "is the same",
    )
    crop: str = knob(
        "random", "crop of the resized image (released code: random)", choices=("random", "center")
    )
    crops: int = knob(
        0,
        "different random crops of an image, each encoded once; 0: a new one every epoch "
        "(released code)",
        0,
    )
    kind: str = knob(
        "lora",
        "what is trained: a LoRA (paper), one with a second matrix for each shot (ChimeraLoRA), or "
        "the embedding of a new token (DA-Fusion)",
        choices=("lora", "heads", "token"),
        added=True,
    )
    up_rate: float = knob(
        1.0,
        "learning rate of a LoRA's second matrix, B, as a multiple of lr (ChimeraLoRA: 10)",
        0,
        added=True,
    )
    word: str = knob(
        "", "for kind 'token': the word that the token starts as (DA-Fusion: the)", added=True
    )
    steps: int = knob(
        0,
        "optimiser steps whatever the number of shots; 0: as many as the epochs have "
        "(DA-Fusion: 1,000)",
        0,
        added=True,
    )

    def per_epoch(self, shots: int) -> int:
        """Return the optimiser steps of one epoch over `shots` images."""
        return math.ceil(shots / self.batch)

    def length(self, shots: int) -> int:
        """Return the optimiser steps of an adapter trained on `shots` images."""
        return self.steps or self.epochs * self.per_epoch(shots)


@dataclass(frozen=True)
class Generate:
    """How the synthetic set is sampled (paper, section 3.3)."""

    images: int = knob(500, "images per class (paper, main table)", 1)
    guidance: float = knob(2.0, "classifier-free guidance scale; 1 is none (paper)", 1, 100)
    guided: float = knob(
        1.0,
        "share of the steps, from the first, that are guided; the others cost half (paper: all)",
        0,
        1,
    )
    steps: int = knob(50, "sampling steps (paper), at most those of the noise schedule", 1, 1000)
    templates: int = knob(
        1, "how many prompt templates the images take in turn, the paper's first", 1, 7
    )
    strength: float = knob(
        0.0,
        "share of the schedule's noise that is added to a shot to start from (DISEF: 0.75); "
        "0: pure noise",
        0,
        1,
    )
    redraws: int = knob(
        0,
        "times that an image is drawn again while the untouched classifier reads another class "
        "(DISEF: a hundred batches of 8 for 64 images of a class, 12.5 each)",
        0,
    )
    fit: str = knob(
        "crop",
        "how a shot to start from becomes a square: 'crop' keeps its centre, 'pad' all of it "
        "on black (DISEF)",
        choices=("crop", "pad"),
        added=True,
    )
    scheduler: str = knob(
        "pipeline", "the pipeline's own (released code: PNDM) or a diffusers scheduler class"
    )
    compile: bool = knob(
        False,
        "torch.compile the UNet: minutes before the first image, then less time for each; the "
        "same noise",
    )
    batch: int = knob(
        10,
        "images a batch (released code), 0: the fastest that fits the device; does not change "
        "which image has which seed",
        0,
    )
    image_prompts: str = knob(
        "",
        "the IP-Adapter by which few shots prompt too: a row of models.catalog.IP_ADAPTERS, or a "
        "folder that holds the same files; empty: texts alone (DIPSY: IP-Adapter Plus)",
        added=True,
    )
    image_scale: float = knob(
        0.6, "what the IP-Adapter's attention is multiplied by (DIPSY)", 0, 10, added=True
    )
    image_own: float = knob(
        6.0,
        "guidance from the prompt towards the prompt with a shot of the class (DIPSY's code)",
        -100,
        100,
        added=True,
    )
    image_other: float = knob(
        -6.0,
        "guidance from there towards the same with a shot of another class, away from it below 0 "
        "(DIPSY's code)",
        -100,
        100,
        added=True,
    )
    compression: int = knob(
        6, "level of the PNG files, 0 to 9 (zlib's 6); the pixels are the same", 0, 9, added=True
    )

    @property
    def passes(self) -> float:
        """How many times the network runs for an image; a guided step takes two passes."""
        asked = 1 if self.guidance == 1 else 1 + self.guided
        asked += 2 if self.image_prompts else 0  # with one image, and with both
        return self.steps * (self.strength or 1) * (1 + self.redraws) * asked

    @property
    def shown(self) -> bool:
        """True if the generator sees few shots while sampling, as start images or prompts."""
        return bool(self.strength or self.image_prompts)


@dataclass(frozen=True)
class Classify:
    """How CLIP is LoRA-tuned and evaluated (paper, section 3.4 and the released scripts)."""

    rank: int = knob(16, "LoRA rank on q and v of both towers (paper)", 1, 1024)
    alpha: float = knob(32.0, "LoRA scale is alpha / rank (released code)", 0)
    dropout: float = knob(0.1, "dropout before the LoRA's first matrix (released code)", 0, 1)
    targets: str = knob(
        "qv",
        "the projections of each attention that have LoRA: query and value (paper), or key too "
        "(CLIP-LoRA)",
        choices=("qv", "qkv"),
        added=True,
    )
    scaling: str = knob(
        "rank",
        "what alpha is divided by for the LoRA's scale: the rank (released code), or its square "
        "root (CLIP-LoRA)",
        choices=("rank", "sqrt(rank)"),
        added=True,
    )
    lr: float = knob(1e-4, "AdamW learning rate (paper)", 0)
    minimum_lr: float = knob(1e-8, "the cosine's end (released code)", 0)
    weight_decay: float = knob(1e-4, "AdamW (paper)", 0)
    batch: int = knob(256, "images a step, real and synthetic together (released scripts)", 2)
    epochs: int = knob(
        60,
        "passes over the synthetic set's size; every method takes the same number of steps "
        "(released scripts)",
        1,
    )
    warmup: int = knob(6, "epochs of linear warm-up, then a cosine per step (released scripts)", 0)
    steps: int = knob(
        0,
        "optimiser steps whatever the number of images, with the same share of warm-up; 0: as "
        "many as the epochs have",
        0,
    )
    real_weight: float = knob(0.8, "lambda: weight of the real images' loss (paper)", 0, 1)
    mix: float = knob(0.2, "share of batches with CutMix or MixUp (released code)", 0, 1)
    randaugment: bool = knob(True, "RandAugment with its defaults (released code)")
    crop_low: float = knob(
        0.25, "smallest area share of the random resized crop (released code)", 0, 1
    )
    flip: float = knob(0.5, "probability of a horizontal flip (released code)", 0, 1)
    jitter: float = knob(
        0.8, "probability of a ColorJitter of the next four strengths (released code)", 0, 1
    )
    brightness: float = knob(0.4, "ColorJitter (released code)", 0)
    contrast: float = knob(0.4, "ColorJitter (released code)", 0)
    saturation: float = knob(0.2, "ColorJitter (released code)", 0)
    hue: float = knob(0.1, "ColorJitter (released code)", 0, 0.5)
    grayscale: float = knob(0.2, "probability (released code)", 0, 1)
    blur: float = knob(
        0.2, "probability of a Gaussian blur (released code, but for the window)", 0, 1
    )
    solarize: float = knob(0.2, "probability (released code)", 0, 1)
    evaluations: int = knob(10, "validation points along the training, for the curve", 1)
    select: str = knob(
        "last",
        "which weights are tested: the last, or the best on validation images; never on test",
        choices=("last", "validation"),
    )


@dataclass(frozen=True)
class Recipe:
    """One cell of the study: a dataset, a method, a seed, and every setting.

    Build it with `methods.recipes.recipe`, which knows profiles and methods.
    """

    profile: str = knob("mini", "which preset filled the other fields")
    dataset: str = knob("mnist", "a row of data.datasets.DATASETS, or 'folder'")
    folder: str = knob(
        "",
        "where the dataset lies: for 'folder' the directory of class folders; empty: under the "
        "data folder",
    )
    noun: str = knob(
        "",
        "what the prompt calls the images, 'a {noun} photo of a {class}'; empty: the dataset's "
        "own (paper)",
    )
    names: str = knob(
        "paper",
        "class names as the paper's code prompts them, or with spaces",
        choices=("paper", "readable"),
    )
    shots_folder: str = knob(
        "",
        "take the few shots from <folder>/<class>/, the released code's layout; empty: drawn from "
        "the train part",
    )
    validation: int = knob(
        4, "validation images per class, no more than the shots; 0 takes all (CoOp: 4)", 0
    )
    method: str = knob("dset+real", "a method of datadream.methods")
    fold: str = knob(
        "",
        "for dataset 'folder': '2/4' tests on the second of four parts and trains on the others, "
        "'0/4' on all; empty: one split",
    )
    test_folder: str = knob(
        "",
        "for dataset 'folder': class folders of test images; all images of `folder` are then for "
        "training",
    )
    shots: int = knob(16, "real images per class (paper: 16); 0 takes all", 0)
    seed: int = knob(
        0, "draws the few shots, the generator's and the classifier's noise together", 0, 2**63 - 1
    )
    generator: str = knob(
        "sd2.1-base",
        "a row of models.catalog.GENERATORS, a hub id, or a folder in diffusers format (paper: SD "
        "2.1-base)",
    )
    classifier: str = knob(
        "ViT-B-16-quickgelu/openai", "'mini', an open_clip name/weights, or an open_clip folder"
    )
    resolution: int = knob(
        0,
        "side of the generator's images in pixels; 0: the pipeline's own (paper: 512, SD "
        "2.1-base's own)",
        0,
        8192,
    )
    protocol: str = knob(
        "strict",
        "'released' repeats the released code's faults, for comparison only: the epoch is chosen "
        "on the test images, and three datasets are tested on their train part",
        choices=("strict", "released"),
    )
    precision: str = knob(
        "auto",
        "of the generator's frozen weights and the classifier's products; auto: half where the "
        "device has it; float32 for all, as the released adapter is trained, is the strict choice",
        choices=("auto", "float32"),
    )
    deterministic: bool = knob(
        False,
        "sum in the same order each time, so that a GPU of one kind gives the same bytes again; "
        "slower",
        added=True,
    )
    adapt: Adapt = field(default_factory=Adapt)
    generate: Generate = field(default_factory=Generate)
    classify: Classify = field(default_factory=Classify)

    def __post_init__(self) -> None:
        for name, value, spec in leaves(self):
            _check(name, value, spec)


# A profile lists only its differences from the paper's values above.
PROFILES = {
    "paper": {},
    # Small models: larger learning rates, fewer steps, a faster solver. Digits cannot be flipped,
    # solarized or cropped to a quarter, and have no colour, so those augmentations are off or
    # milder. RandAugment lowered the validation accuracy. A classifier trained on the pool read 400
    # adapted digits, sampled without guidance, as prompted in 73 % of cases at lr=1e-3 (seed 0) and
    # 80 % at 2e-3 (seed 1). Guidance mislabels fewer digits, but beside real images the more varied
    # unguided ones trained the better classifier, at half the cost. Six to 25 solver steps did
    # equally well. On validation images of MNIST, seeds 5 and 6, 60 epochs of adaptation and 512
    # classifier steps were more accurate than 40 and 320 (the run `trial_length`). The shorter
    # trainings are the default, so that the study takes minutes. No test image was used in these
    # choices.
    "mini": {
        "generator": "mini",
        "classifier": "mini",
        "validation": 0,
        "adapt.lr": 2e-3,
        "adapt.epochs": 40,
        "adapt.warmup": 20,
        "generate.images": 100,
        "generate.guidance": 1.0,
        "generate.steps": 6,
        "generate.scheduler": "DPMSolverMultistepScheduler",
        "generate.batch": 50,
        "classify.lr": 2e-3,
        "classify.batch": 32,
        "classify.epochs": 10,
        "classify.warmup": 1,
        "classify.evaluations": 5,
        "classify.randaugment": False,
        "classify.crop_low": 0.8,
        "classify.flip": 0.0,
        "classify.jitter": 0.0,
        "classify.grayscale": 0.0,
        "classify.blur": 0.0,
        "classify.solarize": 0.0,
    },
    # The cheapest setting of the run `fast_sampling`, in which no difference to the paper's was
    # detected: 30 generator passes per image instead of 100. book/speed has the intervals.
    "paper-fast": {
        "generate.scheduler": "DPMSolverMultistepScheduler",
        "generate.steps": 20,
        "generate.guided": 0.5,
    },
}
SAMPLING = {"generate.guidance", "generate.scheduler", "generate.steps", "generate.strength"}
DERIVED = {"paper-fast": "paper"}  # profile -> the one whose models and method settings it uses


def base_profile(profile: str) -> str:
    """Return the profile whose models, rates and method settings a profile uses."""
    return DERIVED.get(profile, profile)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Yield (dotted name, value, field) of every setting of a recipe or one of its groups."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f


def _check(name, value, spec):
    low, high, choices, why = (spec.metadata.get(k) for k in ("low", "high", "choices", "why"))
    wanted = spec.type
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):
        raise ConfigError(
            f"{name}={brief(value)} is a {type(value).__name__}; give a {wanted.__name__} "
            f"({why or 'a group of settings'})"
            + "; papermill's `-p` turns text into numbers and truth values, `-r` keeps it"
            * (wanted is str and isinstance(value, (bool, float)))
        )
    if wanted is str and not printable(value):
        raise ConfigError(
            f"{name}={brief(value)} has a control character, a line break or bytes that are no "
            f"UTF-8; give printable text ({why})"
        )
    if wanted is str and any(len(part.encode()) > 255 for part in value.split("/")):
        raise ConfigError(
            f"{name}={brief(value)} is too long; give a name or path of at most 255 bytes "
            f"between two slashes ({why})"
        )
    if wanted in (int, float) and not (
        (wanted is int or math.isfinite(value))
        and (low is None or value >= low)
        and (high is None or value <= high)
    ):
        raise ConfigError(
            f"{name}={brief(value)} is out of range; accepted: "
            f"{low if low is not None else '-inf'} to "
            f"{high if high is not None else 'any finite number'} ({why})"
        )
    if choices and value not in choices:
        raise ConfigError(
            f"{name}={brief(value)} is unknown; accepted: "
            f"{', '.join(choices)}{did_you_mean(value, choices)}"
        )


def require_warmup(name: str, warmup: int, length: int, unit: str) -> None:
    """Raise ConfigError on a warm-up longer than the training.

    Such a training would never reach its learning rate.
    """
    if warmup > length:
        raise ConfigError(
            f"{name}={warmup} is longer than the training of {length} {unit}, which would end "
            f"before its learning rate is reached; give at most {length}"
        )


def require_strength(name: str, strength: float, steps: int) -> None:
    """Raise ConfigError on a strength that `steps` solver steps cannot resolve.

    The strength is rounded down to a whole number of steps: with six steps, 0.5 and 0.6 give the
    same image.
    """
    if strength and not math.isclose(int(steps * strength), steps * strength, abs_tol=1e-9):
        told = [k / steps for k in range(1, steps + 1) if int(steps * (k / steps)) == k]
        nearest = sorted(sorted(told, key=lambda one: abs(one - strength))[:2])
        raise ConfigError(
            f"{name}={strength:g} cannot be told from {int(steps * strength) / steps:.3g} with "
            f"generate.steps={steps}, of which a whole number runs; the nearest: "
            f"{' or '.join(f'{one:.6g}' for one in nearest)}, or give another number of steps"
        )


def as_mapping(overrides: Any) -> dict[str, Any]:
    """Return overrides as a dict, {} for None. Raises ConfigError on anything else.

    JSON text of a mapping, as passed by papermill's `-p`, is accepted too.
    """
    overrides = parsed(overrides)
    if not isinstance(overrides, (dict, type(None))):
        raise ConfigError(
            f"overrides={brief(overrides)} is a {type(overrides).__name__}; give a mapping such "
            f"as {{'adapt.rank': 4}}, or its JSON text"
        )
    return overrides or {}


def parsed(value: Any) -> Any:
    """Return the list or mapping in a JSON or YAML text; any other value is returned unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (json.loads, yaml.safe_load):
        try:
            found = read(value)
        except Exception:  # PyYAML raises ValueError, RecursionError ... on odd tags and dates
            continue
        return found if isinstance(found, (list, dict)) else value
    return value


def fitted(name: str, value: Any, wanted: type) -> Any:
    """Convert a value as papermill, YAML or a shell passes it to the type of its field.

    Where a float is expected, an integer is converted, and so is the text "1e-3", which YAML 1.1
    does not read as a number. The number 2024 becomes the text that `-p folder 2024` meant, and "~"
    the home folder.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000
    if wanted is float and (whole or is_number(value)):
        return float(value)
    if wanted is str and whole and abs(value) < 2**64:
        return str(value)
    return expanded(value) if name in PLACES and isinstance(value, str) else value


def is_number(value: Any) -> bool:
    """True if a text is a finite decimal number."""
    return isinstance(value, str) and bool(
        re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", value.strip(), re.ASCII)
    )


def build_recipe(
    profile: str,
    settings: Mapping[str, Mapping[str, Any]],
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Recipe:
    """Build the Recipe of a profile, a method's settings, fields and overrides.

    Later ones take precedence: `settings` (base profile -> dotted name -> value), `fields` (e.g.
    `dataset="mnist"`), dotted `overrides` (e.g. `{"adapt.lr": 1e-3}`). All are passed through
    `fitted`. Raises ConfigError on an unknown profile, key or value, with the nearest accepted
    name.
    """
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ConfigError(
            f"profile={brief(profile)} is unknown; accepted: "
            f"{', '.join(PROFILES)}{did_you_mean(profile, PROFILES)}"
        )
    default = Recipe()
    known = {name: spec for name, _, spec in leaves(default)}
    chosen = {**fields, **as_mapping(overrides)}
    base = base_profile(profile)
    own = settings.get(base, {})
    # A method's sampling settings belong together, and were not measured with other steps.
    alone = profile == base or own.keys() & SAMPLING
    values = {**PROFILES[base], **({} if alone else PROFILES[profile]), **own, **chosen}
    if values.setdefault("profile", profile) != profile:
        raise ConfigError(
            f"profile={brief(values['profile'])} in overrides contradicts profile={profile!r}; "
            "give it once, as `profile`"
        )
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{brief(name)} is not a field of a recipe{did_you_mean(name, known) or '.'} "
                f"Accepted: {', '.join(sorted(known))}"
            )
        values[name] = fitted(name, value, cast("type", known[name].type))
    parts = {}
    for name, value in values.items():
        outer, _, inner = name.rpartition(".")
        parts.setdefault(outer, {})[inner] = value
    top = parts.pop("", {})
    nested = {
        outer: dataclasses.replace(getattr(default, outer), **inner)
        for outer, inner in parts.items()
    }
    return Recipe(**{**top, **nested})


def key_fields(config: Any, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of a recipe, or of a group of it, that are part of a key.

    Fields added later are left out while they have their default, so that older results are still
    found. `values` maps names to the values of a record, which may lack fields.
    """
    every = list(leaves(config))
    own = {name: value for name, value, _ in every} if values is None else values
    added = {name: spec.default for name, _, spec in every if spec.metadata["added"]}
    return {n: value for n, value in own.items() if n not in added or value != added[n]}


def as_dict(config: Recipe) -> dict[str, Any]:
    """Return a recipe as a flat dict of dotted names, which `recipe` accepts."""
    return {name: value for name, value, _ in leaves(config)}
