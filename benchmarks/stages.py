"""The stages as pairs of equal work: the released code's way and the product's. Each runs in a process of its own."""

import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from datadream import adapt, classify, config, data, generate, memory, models, sampling
from datadream.images import Images

from . import baseline

CLASSES = 2  # of the generated set: enough to pay for exchanging adapters


@dataclass
class Size:
    """How much work a measurement has: optimiser steps of adaptation, images per class, solver steps, and images of the classifier."""

    adapt: int
    images: int
    solver: int
    train: int
    test: int


# "tiny" shows that it works, and no number of it means anything.
SIZES = {"tiny": Size(2, 2, 2, 64, 20), "mini": Size(20, 20, 50, 320, 500), "paper": Size(10, 20, 50, 2048, 512)}


def work(profile, root, overrides=None):
    """Return (recipe, data set, few shots) of a measurement: the digits for mini, noise in photographs' size for the paper's models."""
    size = SIZES[profile]
    values = {"generate.images": size.images, "generate.steps": size.solver, "generate.scheduler": "pipeline", "generate.guidance": 2.0}
    if profile == "paper":
        values |= {"generator": str(root / "generator"), "classifier": str(root / "clip")}
    recipe = config.recipe("paper" if profile == "paper" else "mini", {**values, **(overrides or {})}, dataset="mnist", method="cls")
    dataset = data.load("mnist")
    return recipe, dataset, data.few_shots(dataset, recipe.shots, recipe.seed)


def as_files(images, folder, side):
    """Write images as PNG of `side` pixels and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:05d}.png" for i in range(len(images))]
    for i, file in enumerate(files):
        if not file.exists():
            images.open(i).resize((side, side)).save(file)
    return [str(file) for file in files]


class Stage:
    """One stage in one way; `measure` does its work once and returns the seconds."""

    def __init__(self, name, way, profile, root, overrides):
        self.recipe, self.dataset, self.shots = work(profile, root, overrides)
        self.size, self.device, self.root = SIZES[profile], models.device(), root
        self.side = 512 if profile == "paper" else 32
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
        """Load the pipeline and attach the LoRA; a class's few shots lie on disk."""
        self.texts = [data.prompt("", self.dataset.classes[0])] * self.recipe.shots
        self.files = as_files(self.shots.pick(range(self.recipe.shots)), self.root / "shots", self.side)
        self.pipe = baseline.load_pipeline(self._generator(), self.device)
        self.parameters = models.add_generator_lora(self.pipe, self.recipe.adapt)

    def baseline_adapt(self):
        """Run the optimiser steps."""
        baseline.adapt(self.pipe, self.parameters, self.files, self.texts, self.recipe.adapt, self.side, self.size.adapt)

    def prepare_product_adapt(self):
        """Load the pipeline and attach the LoRA."""
        files = as_files(self.shots.pick(range(self.recipe.shots)), self.root / "shots", self.side)
        self.images = Images(tuple(files), (0,) * len(files))
        self.pipe = models.load_generator(self.recipe.generator, models.dtype_for(self.recipe.precision, training=True))
        self.parameters = models.add_generator_lora(self.pipe, self.recipe.adapt)
        per_epoch = -(-len(files) // self.recipe.adapt.batch)
        self.short = config.recipe(self.recipe.profile, {**_changed(self.recipe), "adapt.epochs": self.size.adapt // per_epoch})

    def product_adapt(self):
        """Run the optimiser steps."""
        adapt.train_adapter(self.pipe, self.parameters, self.short, self.dataset, self.images, None, memory.BatchSize(self.recipe.adapt.batch), (0,))

    # Generating some classes.

    def _generator(self):
        return self.recipe.generator if self.recipe.generator != "mini" else str(config.paths()["mini"] / "generator")

    def _adapters(self):
        pipe, folders = models.load_generator(self.recipe.generator), [self.root / f"adapter{i}" for i in range(CLASSES)]
        for i, folder in enumerate(folders):
            if not (folder / models.LORA_FILE).exists():
                torch.manual_seed(i)
                parameters = models.add_generator_lora(pipe, self.recipe.adapt)
                for p in parameters.values():
                    p.data.normal_(0, 0.01)
                models.save_generator_lora(pipe, folder, self.recipe.adapt)
                models.remove_lora(pipe)
        return folders

    def prepare_baseline_generate(self):
        """Make an adapter for each class."""
        self.adapters, self.texts = self._adapters(), [data.prompt("", name) for name in self.dataset.classes[:CLASSES]]

    def baseline_generate(self):
        """Write the images of all classes."""
        target = Path(tempfile.mkdtemp(dir=self.root))
        baseline.generate(self._generator(), self.adapters, self.texts, self.size.images, self.recipe.generate, self.side, target, self.device)
        shutil.rmtree(target)

    def prepare_product_generate(self):
        """Make an adapter for each class, and load the pipeline."""
        self.prepare_baseline_generate()
        models.load_generator(self.recipe.generator, models.dtype_for(self.recipe.precision, training=False))

    def product_generate(self):
        """Write the images of all classes."""
        target = Path(tempfile.mkdtemp(dir=self.root))
        for label, adapter in enumerate(self.adapters):
            (target / str(label)).mkdir()
            with sampling.adapted(self.recipe, adapter) as pipe:
                generate.sample_range(pipe, self.recipe, self.dataset, label, range(self.recipe.generate.images), target / str(label), _Silent(),
                                      memory.BatchSize(self.recipe.generate.batch))
        shutil.rmtree(target)

    # Training the classifier for one epoch.

    def _sets(self):
        many = self.dataset.train.pick([i % len(self.dataset.train) for i in range(self.size.train)])
        test = self.dataset.test.pick(range(self.size.test))
        train = as_files(many, self.root / "train", self.side), [int(y) for y in many.labels]
        return train, (as_files(test, self.root / "test", self.side), [int(y) for y in test.labels])

    def prepare_baseline_train(self):
        """Write the synthetic and the test images, load the classifier and attach its LoRA."""
        self.train, self.test = self._sets()
        self.model, self.parameters = baseline.classifier(self.recipe.classifier, self.recipe.classify)
        self.texts = [data.prompt("", name) for name in self.dataset.classes]
        self.workers = 0 if self.device.type == "cpu" else 8

    def baseline_train(self):
        """Train for an epoch and judge the whole test set, as the released code does after each."""
        baseline.train_epoch(self.model, self.parameters, self.train, self.test, self.texts, self.recipe.classify, self.workers)

    def prepare_product_train(self):
        """Write the images, and do a first epoch, which decodes them for all later ones."""
        self.prepare_baseline_train()
        self.validation, self.judged = data.validation_images(self.recipe, self.dataset), Images(tuple(self.test[0]), tuple(self.test[1]))
        images = Images(tuple(self.train[0]), tuple(self.train[1]))
        self.batches = classify.Batches(None, images, self.recipe.classify, len(self.texts), self.model.size, 0, self.device)
        self.steps, self.epoch = self.size.train // self.recipe.classify.batch, 0
        self.product_train()

    def product_train(self):
        """Train for an epoch and judge its share of what a whole training judges: validation at every evaluation, both sets at the end."""
        tokens, parameters, options = self.model.prompts(self.texts), self.parameters, self.recipe.classify

        def loss_at(step):
            self.model.train()
            images, targets, real = self.batches.at(self.epoch * self.steps + step)
            return classify.mixed_loss(self.model(images, tokens), targets, real, options.real_weight)

        classify.fit(parameters, loss_at, steps=self.steps, lr=options.lr)
        self.epoch += 1
        views = torch.cat(data.validation_batches(self.validation, self.model.size))
        again = math.ceil(len(views) * (options.evaluations + 1) / options.epochs)
        test = self.judged.pick(range(math.ceil(len(self.judged) / options.epochs)))
        classify.predict(self.model, tokens, [*views[:again].split(data.BATCH), *data.evaluation_batches(test, self.model.size)])


class _Silent:
    def update(self, count):
        """Count nothing: a progress bar is no work to measure."""


def peak_bytes():
    """Return the largest memory that this process has had resident; what `resource` tells of it is its parent's until it outgrows that."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _changed(recipe):
    preset = config.as_dict(config.recipe(recipe.profile))
    return {name: value for name, value in config.as_dict(recipe).items() if value != preset[name] and name != "profile"}


_stage = None  # of a worker process


def prepare(name, way, profile, root, overrides):
    """Set up a stage in this worker process and run it once: a first run is slower, memory is allocated and kernels are chosen."""
    global _stage
    _stage = Stage(name, way, profile, root, overrides)
    _stage.measure()


def measure():
    """Return (seconds, peak bytes) of one run of this worker's stage."""
    return _stage.measure()


def count_flops():
    """Return the floating-point operations of one run's matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _stage.run()
    return counter.get_total_flops()
