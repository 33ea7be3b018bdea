"""Evaluation of the embedded base models, as shown by `notebooks/mini_base.ipynb`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pandas.io.formats.style import Styler
from PIL.Image import Image

from ..data import printed
from ..methods.base import Support
from ..methods.recipes import recipe as make_recipe
from ..models.classifiers.clip import Classifier
from ..models.classifiers.print_reader import PrintReader
from ..paths import atomic_write
from ..pipeline import evaluate, train
from ..results.tables import show_table
from ..seeds import forked_rng
from ..statistics import mean_interval, wilson
from ..store.keys import key
from ..store.open import open_store
from ..study import run
from ..training.loop import fit

PRINTS = 1080  # prints on which a reader is evaluated: 30 of each character


def train_reader(
    work: Path,
    bank: torch.Tensor,
    steps: int = 1500,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train and save the PrintReader on the base models' kind of print; return the losses."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    reader = PrintReader().train()

    def loss_at(step: int) -> torch.Tensor:
        images, labels, _ = printed.draw(bank, batch, **printed.READING)
        return F.cross_entropy(reader(images), labels, label_smoothing=0.05)

    # This takes minutes.
    losses = fit(
        dict(reader.named_parameters()),
        loss_at,
        steps=steps,
        lr=lr,
        warmup=50,
        seed=seed,
        description="reader",
    )
    with atomic_write(work / "reader.safetensors") as part:
        save_file(reader.state_dict(), part)
    return losses


def every_character(bank: torch.Tensor, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw n random prints of `bank`, equally many of each character: (images, labels).

    Images are (n, 3, 32, 32) in [0, 1], labels (n,).
    """
    with forked_rng():
        torch.manual_seed(seed)
        return printed.draw(bank, n, labels=torch.arange(n) % len(printed.CHARACTERS))[:2]


@torch.no_grad()
def read_print(
    reader: PrintReader, bank: torch.Tensor, n: int = PRINTS, seed: int = 1
) -> tuple[float, float, float]:
    """Return the PrintReader's accuracy on n random prints of `bank`, with its Wilson interval.

    As (share, low, high).
    """
    images, labels = every_character(bank, n, seed)
    correct = int((reader(images).argmax(1) == labels).sum())
    return correct / n, *wilson(correct, n)


def recognised(
    reader: PrintReader, images: Sequence[Image], labels: Sequence[int]
) -> tuple[tuple[float, float, float], list[bool]]:
    """Return how many PIL images are read as the prompted character: (share, hits).

    The share comes with its Wilson interval, (share, low, high); `hits` is a flag for each image.
    """
    from torchvision.transforms.functional import to_tensor

    with torch.no_grad():
        hits = reader(torch.stack([to_tensor(image) for image in images])).argmax(
            1
        ) == torch.tensor(labels)
    correct = int(hits.sum())
    return (correct / len(images), *wilson(correct, len(images))), hits.tolist()


@torch.no_grad()
def reconstruct(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Encode images (n, 3, H, W) in [-1, 1], sample the posterior and decode.

    The result is clipped to [-1, 1] and on the CPU.
    """
    return (
        vae.decode(vae.encode(images.to(vae.device)).latent_dist.sample()).sample.clamp(-1, 1).cpu()
    )


def real_images(name: str, n: int = 300) -> torch.Tensor:
    """Return n validation images of a dataset as the generator sees them, or all if fewer.

    They are (n, 3, 32, 32) in [-1, 1], spread evenly over the part, whose images may be sorted by
    class.
    """
    from ..data import datasets, transforms

    images = datasets.load_dataset(name).val
    n = min(n, len(images))
    rows = [i * len(images) // n for i in range(n)]
    shown = [transforms.generator_image(images.open(i), printed.SIDE, "center") for i in rows]
    return torch.stack(shown)


def print_images(bank: torch.Tensor, n: int = 300, seed: int = 1) -> torch.Tensor:
    """Draw n random prints of `bank`, (n, 3, 32, 32) in [-1, 1]."""
    with forked_rng():
        torch.manual_seed(seed)
        return 2 * printed.draw(bank, n)[0] - 1


def _gate_score(recipe, view):
    """Train the classifier on `view` and return its validation top-1 in percent.

    `view` are Images that replace the few shots.
    """
    from ..data import datasets, images
    from ..models.classifiers import base

    real = datasets.load_for(recipe)
    support = Support(recipe, real)
    inputs = train.train_inputs(support, f"gate {images.fingerprint(view)}")

    def build(folder: Path) -> None:
        train.train(support, inputs, view, None, folder)

    trained = open_store().make(key("train", **inputs), inputs, build)
    return 100 * evaluate.accuracy(base.load_classifier_lora(trained)[0], real, real.val)["top1"]


def gate(
    vae: Any,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None,
    dataset: str = "mnist",
    workers: int = 1,
) -> pd.DataFrame:
    """Train the classifier on real few shots and on their reconstructions, for equal steps.

    Returns a table of top-1 in percent with a row per seed, and one for the mean paired difference
    with its interval over seeds. It uses validation images, since the gate decides whether a model
    is good enough. `workers` processes share the trainings.
    """
    from ..data import datasets, images, transforms
    from ..study import cells

    real, recipes, jobs = (
        datasets.load_dataset(dataset),
        cells.cells(["real"], seeds, overrides, dataset=dataset),
        [],
    )
    for recipe in recipes:
        shots = datasets.few_shots(real, recipe.shots, recipe.seed)
        inputs = torch.stack(
            [
                transforms.generator_image(shots.open(i), printed.SIDE, "center")
                for i in range(len(shots))
            ]
        )
        with forked_rng():
            torch.manual_seed(recipe.seed)
            sets = {"originals": inputs, "reconstructions": reconstruct(vae, inputs)}
        jobs += [
            (
                recipe,
                images.Images(
                    tuple(np.asarray(images.to_image((t + 1) / 2)) for t in tensors), shots.labels
                ),
            )
            for tensors in sets.values()
        ]
    scores = iter(run.in_processes(_gate_score, jobs, workers))
    names = ("originals", "reconstructions")  # the order of each seed's two jobs
    rows = [{"seed": recipe.seed, **{name: next(scores) for name in names}} for recipe in recipes]
    rows = [{**row, "difference": row["reconstructions"] - row["originals"]} for row in rows]
    mean, low, high = mean_interval([row["difference"] for row in rows])
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return pd.DataFrame(
        [*rows, {"seed": "mean", **means, "difference": mean, "low": low, "high": high}]
    )


def gate_verdict(table: pd.DataFrame, allowed: float = 1.0) -> str:
    """Summarise a table of `gate`: the points lost, and whether that is within `allowed`."""
    mean = table[table["seed"] == "mean"].iloc[0]
    passed = "passed" if -mean["difference"] <= allowed else "not passed"
    return (
        f"Reconstructions against originals: {mean['difference']:+.1f} points on average over "
        f"{len(table) - 1} seeds, 95 % interval {mean['low']:+.1f} to {mean['high']:+.1f}. The "
        f"gate of {allowed:g} point lost at most is **{passed}**."
    )


def zero_shot_images(
    folder: Path, per_character: int, overrides: Mapping[str, Any] | None = None, batch: int = 60
) -> tuple[list[Image], list[int]]:
    """Sample the untuned generator in `folder` as the study does: (PIL images, labels).

    Draws `per_character` images for each of the 36 prompts; `overrides` changes the recipe's
    settings by dotted name.
    """
    from ..data.datasets import prompt
    from ..models.generators import sampling
    from ..pipeline.generate import image_seed

    recipe = make_recipe(generator=str(folder / "generator"), overrides=overrides)
    jobs = [
        (label, image_seed(0, label, i))
        for label in range(len(printed.NAMES))
        for i in range(per_character)
    ]
    images = []

    with sampling.adapted(recipe) as generator:
        for start in range(0, len(jobs), batch):
            labels, seeds = zip(*jobs[start : start + batch], strict=True)
            texts = [prompt("", printed.NAMES[label]) for label in labels]
            images.extend(
                sampling.sample(
                    generator,
                    generator.embed(texts, recipe.generate),
                    seeds,
                    recipe.generate,
                    printed.SIDE,
                )
            )
    return images, [label for label, _ in jobs]


def real_zero_shot(model: Classifier, name: str) -> tuple[float, float, float]:
    """Return the zero-shot accuracy on a dataset's test images, with its Wilson interval.

    As (share, low, high).
    """
    from ..data import datasets

    dataset = datasets.load_dataset(name)
    result = evaluate.accuracy(model, dataset, dataset.test)
    return result["top1"], result["low"], result["high"]


def share_table(scores: Mapping[str, tuple[float, float, float]]) -> Styler:
    """Format name -> (share, low, high) as a table in percent."""
    rows = [
        {"what": name, "share %": 100 * a, "95 % interval": f"{100 * b:.1f} to {100 * c:.1f}"}
        for name, (a, b, c) in scores.items()
    ]
    return show_table(pd.DataFrame(rows), precision=1)


def clip_zero_shot(
    model: Classifier, bank: torch.Tensor, n: int = PRINTS, seed: int = 1
) -> tuple[float, float, float]:
    """Return the 36-way zero-shot accuracy on n random prints of `bank`, with its Wilson interval.

    As (share, low, high).
    """
    from ..data.datasets import prompt
    from ..pipeline.evaluate import predict

    images, labels = every_character(bank, n, seed)
    tokens = model.prompts(prompt("", name) for name in printed.NAMES)
    correct = int(
        (predict(model, tokens, (255 * images).round().byte().split(250)) == labels.numpy()).sum()
    )
    return correct / n, *wilson(correct, n)
