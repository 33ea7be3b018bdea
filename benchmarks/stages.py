"""The stages in two versions that do equal work: the released code's and the product's.

Each runs in its own process.
"""

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datadream import config, paths
from datadream.data import batches, datasets, transforms
from datadream.data.decode_cache import Decoded
from datadream.data.images import Images
from datadream.methods import recipes
from datadream.methods.base import Adapter, Support
from datadream.models import device
from datadream.models.generators import base, load, lora, sampling
from datadream.pipeline import adapt, evaluate, generate, train
from datadream.training import batch_size, loop

from . import baseline

SWAPS = 5  # adapter swaps per measurement


@dataclass
class Size:
    """The amount of work in a measurement, and the side in pixels of the generator's images.

    `adapt` counts optimiser steps, `images` the images of one class (for each of which the baseline
    loads its pipeline once), `solver` sampling steps, `train` and `test` the images that a
    classifier is trained and evaluated on in an epoch, and `swaps` adapter swaps.
    """

    adapt: int
    images: int
    solver: int
    train: int
    test: int
    side: int
    swaps: int = SWAPS


# "tiny" only shows that it works; its numbers mean nothing. The mini study has 100 images per class
# and the paper 500, which would take too long.
SIZES = {
    "tiny": Size(2, 2, 2, 64, 20, 32),
    "mini": Size(20, 100, 50, 320, 500, 32),
    "paper": Size(10, 100, 50, 2048, 512, 512),
}


def work(profile, root, overrides=None, size=None):
    """Return (recipe, dataset, few shots) for a measurement.

    The dataset is the digits; for the paper's models, noise of the size of photographs. `size`
    defaults to the profile's.
    """
    size = size or SIZES[profile]
    values = {
        "generate.images": size.images,
        "generate.steps": size.solver,
        "generate.scheduler": "pipeline",
        "generate.guidance": 2.0,
    }
    if profile == "paper":
        values |= {"generator": str(root / "generator"), "classifier": str(root / "clip")}
    recipe = recipes.recipe(
        "paper" if profile == "paper" else "mini",
        {**values, **(overrides or {})},
        dataset="mnist",
        method="cls",
    )
    dataset = datasets.load_dataset("mnist")
    if profile == "paper":
        parts = {part: noise(getattr(dataset, part)) for part in ("train", "val", "test")}
        dataset = dataclasses.replace(dataset, **parts)
    return recipe, dataset, datasets.few_shots(dataset, recipe.shots, recipe.seed)


def noise(images, size=(64, 48)):
    """Return images of coarse noise, with the labels of `images`.

    Resized, they take about as many bytes as a photograph.
    """
    shape = (*size[::-1], 3)
    return Images(
        tuple(
            np.random.RandomState(i).randint(0, 255, shape, np.uint8) for i in range(len(images))
        ),
        images.labels,
    )


def as_files(images, folder, side, wide=1.0):
    """Write images as PNG `side` pixels high and `wide` times as wide; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:05d}.png" for i in range(len(images))]
    for i, file in enumerate(files):
        if not file.exists():
            images.open(i).resize((round(wide * side), side), Image.Resampling.BICUBIC).save(file)
    return [str(file) for file in files]


class Stage:
    """One stage in one version; `measure` does its work once and returns the seconds."""

    def __init__(self, name, way, profile, root, overrides, size=None):
        self.recipe, self.dataset, self.shots = work(profile, root, overrides, size)
        self.size, self.device, self.root = size or SIZES[profile], device.device(), root
        # Few shots with a camera's aspect ratio.
        self.side, self.wide = (self.size.side, 4 / 3 if profile == "paper" else 1.0)
        self.run = getattr(self, f"{way}_{name}")
        getattr(self, f"prepare_{way}_{name}")()

    def measure(self):
        """Return (seconds, peak bytes of the device or of the process) of one run."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_bytes()
        return time.perf_counter() - start, peak

    # Adapting one class.

    def prepare_baseline_adapt(self):
        """Load the pipeline and attach the LoRA; a class's few shots are on disk."""
        self.texts = [datasets.prompt("", self.dataset.classes[0])] * self.recipe.shots
        self.files = as_files(
            self.shots.pick(range(self.recipe.shots)), self.root / "shots", self.side, self.wide
        )
        pipe = baseline.load_pipeline(self._generator(), self.device)
        self.generator = load.generator_of(pipe)
        self.parameters = lora.add_generator_lora(self.generator, self.recipe.adapt)

    def baseline_adapt(self):
        """Run the optimiser steps."""
        baseline.adapt(
            self.generator.pipe,
            self.parameters,
            self.files,
            self.texts,
            self.recipe.adapt,
            self.side,
            self.size.adapt,
        )

    def prepare_product_adapt(self):
        """Load the pipeline and attach the LoRA."""
        files = as_files(
            self.shots.pick(range(self.recipe.shots)), self.root / "shots", self.side, self.wide
        )
        self.images = Images(tuple(files), (0,) * len(files))
        self.generator = load.load_generator(
            self.recipe.generator, device.dtype_for(self.recipe.precision, training=True)
        )
        self.parameters = lora.add_generator_lora(self.generator, self.recipe.adapt)
        per_epoch = -(-len(files) // self.recipe.adapt.batch)
        short = {**_changed(self.recipe), "adapt.epochs": self.size.adapt // per_epoch}
        self.short = Support(recipes.recipe(self.recipe.profile, short), self.dataset)

    def product_adapt(self):
        """Run the optimiser steps."""
        adapt.tune(
            self.generator,
            base.Attached(self.parameters, save=lambda folder: None),
            self.short,
            self.images,
            None,
            batch_size.BatchSize(self.recipe.adapt.batch),
            (0,),
        )

    # Adapting with a compiled UNet, against the product's version.

    prepare_baseline_compiled = prepare_product_compiled = prepare_product_adapt
    baseline_compiled = product_adapt

    def product_compiled(self):
        """Run the optimiser steps; the first run compiles."""
        with sampling.compiled(self.generator.network):
            self.product_adapt()

    # Generating a class.

    def _generator(self):
        return (
            self.recipe.generator
            if self.recipe.generator != "mini"
            else str(paths.paths()["mini"] / "generator")
        )

    def _adapter(self):
        folder = self.root / "adapter"
        if not (folder / lora.LORA_FILE).exists():
            generator = load.load_generator(self.recipe.generator)
            for p in lora.add_generator_lora(generator, self.recipe.adapt).values():
                p.data.normal_(0, 0.01)
            lora.save_generator_lora(generator, folder, self.recipe.adapt)
            lora.remove_lora(generator)
        return folder

    def prepare_baseline_generate(self):
        """Make the class's adapter."""
        self.adapter, self.text = self._adapter(), datasets.prompt("", self.dataset.classes[0])

    def baseline_generate(self):
        """Write the class's images."""
        with tempfile.TemporaryDirectory(dir=self.root) as target:
            baseline.generate(
                self._generator(),
                self.adapter,
                self.text,
                self.size.images,
                self.recipe.generate,
                self.side,
                Path(target),
                self.device,
            )
            self.written = len(list(Path(target).glob("*.png")))

    def prepare_product_generate(self):
        """Make the class's adapter, and load the pipeline."""
        self.prepare_baseline_generate()
        load.load_generator(
            self.recipe.generator, device.dtype_for(self.recipe.precision, training=False)
        )

    def product_generate(self):
        """Write the class's images."""
        support, own = Support(self.recipe, self.dataset), Adapter(0)
        with tempfile.TemporaryDirectory(dir=self.root) as target:
            generate.write_slice(
                support,
                {own: self.adapter},
                0,
                [(range(self.recipe.generate.images), (own,))],
                Path(target),
                _Silent(),
                generate.batch_size(self.recipe),
            )
            self.written = len(list(Path(target).glob("*.png")))

    # Swapping the adapter.

    prepare_baseline_exchange, prepare_product_exchange = (
        prepare_baseline_generate,
        prepare_product_generate,
    )

    def baseline_exchange(self):
        """Load the pipeline and an adapter from disk for each class."""
        for _ in range(self.size.swaps):
            baseline.adapted(self._generator(), self.adapter, self.device)

    def product_exchange(self):
        """Merge an adapter into the weights, then restore the base's."""
        for _ in range(self.size.swaps):
            with sampling.adapted(self.recipe, self.adapter):
                pass

    # Decoding the classifier's images.

    def prepare_baseline_decode(self):
        """Write the synthetic images."""
        (self.files, labels), _ = self._sets()
        self.images, self.bytes = (
            Images(tuple(self.files), tuple(labels)),
            len(self.files) * 3 * self.side**2,
        )

    prepare_product_decode = prepare_baseline_decode

    def baseline_decode(self):
        """Decode one image after the other, as a single worker does in every epoch."""
        for i in range(len(self.files)):
            baseline.decode(self.files[i])

    def product_decode(self):
        """Decode all images as in the first epoch, the only one that decodes."""
        Decoded({False: self.images}).take([(False, i) for i in range(len(self.images))])

    # Training the classifier for one epoch.

    def _sets(self):
        many = self.dataset.train.pick(
            [i % len(self.dataset.train) for i in range(self.size.train)]
        )
        test = self.dataset.test.pick(range(self.size.test))
        train = as_files(many, self.root / "train", self.side), [int(y) for y in many.labels]
        return train, (as_files(test, self.root / "test", self.side), [int(y) for y in test.labels])

    def prepare_baseline_train(self):
        """Write the synthetic and the test images, load the classifier and attach its LoRA."""
        self.train, self.test = self._sets()
        self.model, self.parameters = baseline.classifier(
            self.recipe.classifier, self.recipe.classify
        )
        self.texts = [datasets.prompt("", name) for name in self.dataset.classes]
        self.workers = 0 if self.device.type == "cpu" else 8

    def baseline_train(self):
        """Train for an epoch and evaluate on the whole test set, as the released code does."""
        baseline.train_epoch(
            self.model,
            self.parameters,
            self.train,
            self.test,
            self.texts,
            self.recipe.classify,
            self.workers,
        )

    def prepare_product_train(self):
        """Write the images, and run a first epoch, which decodes them for all later ones."""
        self.prepare_baseline_train()
        self.validation, self.judged = (
            datasets.validation_images(self.recipe, self.dataset),
            Images(tuple(self.test[0]), tuple(self.test[1])),
        )
        images = Images(tuple(self.train[0]), tuple(self.train[1]))
        self.batches = batches.Batches(
            None, images, self.recipe.classify, len(self.texts), self.model.size, 0, self.device
        )
        self.steps, self.epoch = self.size.train // self.recipe.classify.batch, 0
        self.product_train()

    def product_train(self):
        """Train for an epoch, with its share of a whole training's evaluation.

        That is validation at every evaluation, and both sets at the end.
        """
        tokens, parameters, options = (
            self.model.prompts(self.texts),
            self.parameters,
            self.recipe.classify,
        )

        def loss_at(step):
            self.model.train()
            images, targets, real = self.batches.at(self.epoch * self.steps + step)
            return train.mixed_loss(self.model(images, tokens), targets, real, options.real_weight)

        loop.fit(parameters, loss_at, steps=self.steps, lr=options.lr)
        self.epoch += 1
        seen = torch.cat(transforms.validation_batches(self.validation, self.model.size))
        again = math.ceil(len(seen) * (options.evaluations + 1) / options.epochs)
        test = self.judged.pick(range(math.ceil(len(self.judged) / options.epochs)))
        evaluate.predict(
            self.model,
            tokens,
            [
                *seen[:again].split(transforms.BATCH),
                *transforms.evaluation_batches(test, self.model.size),
            ],
        )


class _Silent:
    def update(self, count):
        """Count nothing: the progress bar should not be measured."""


def peak_bytes():
    """Return the peak resident memory of this process.

    `resource` would report the parent's until this process outgrows it.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return 1024 * int(line.split()[1])


def _changed(recipe):
    preset = config.as_dict(recipes.recipe(recipe.profile))
    return {
        name: value
        for name, value in config.as_dict(recipe).items()
        if value != preset[name] and name != "profile"
    }


_stage = None  # of a worker process


def prepare(name, way, profile, root, overrides):
    """Set up a stage in this worker process and run it once as warm-up.

    A first run is slower: memory is allocated and kernels are chosen.
    """
    global _stage
    _stage = Stage(name, way, profile, root, overrides)
    _stage.measure()


def measure():
    """Return (seconds, peak bytes) of one run of this worker's stage."""
    return _stage.measure()


def count():
    """Return the work of one run.

    It has the operations of matrix products and convolutions, and the bytes decoded.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _stage.run()
    return {"flops": counter.get_total_flops(), "bytes": getattr(_stage, "bytes", 0)}
