"""The table of stages, and `Cell`: which artifacts a recipe needs, their keys, how to make them.

`Cell.compute`, the plan, the Ray engine and the photo page all read this table. A new stage is one
more row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..config import Recipe, as_dict
from ..data.datasets import Dataset, draw_inputs, load_for, write_draw
from ..data.synthetic_set import read_synthetic_set
from ..methods import heads
from ..methods.base import Adapter, Support
from ..methods.checked import adapters, require_draws
from ..methods.distinct import require_distinct
from ..methods.registry import method_of
from ..methods.units import slices
from ..models.device import deterministic, require_deterministic
from ..models.download import fetch
from ..models.generators.sampling import require_sampler
from ..store.keys import key
from . import adapt, evaluate, generate, train

if TYPE_CHECKING:
    from ..store.artifacts import Store

# Stage -> part -> folder of each artifact that a build may read.
Made = Mapping[str, Mapping[Any, Path]]


@dataclass(frozen=True)
class Piece:
    """A unit of work of a stage that is split over a cluster."""

    name: str  # what it makes
    where: tuple[Any, ...]  # the argument of `Stage.do`
    needs: tuple[str, ...] = ()  # keys of the artifacts that must exist first
    share: float = 1.0  # the fraction of its artifact's work
    part: Any = None  # which artifact of the stage it belongs to


@dataclass(frozen=True)
class Stage:
    """A row of the table."""

    name: str
    # The cell's artifacts of this stage: [None] for one, an identifier each for several, or [].
    parts: Callable[[Cell], Sequence[Any]]
    inputs: Callable[[Cell, Any], dict[str, Any]]  # (cell, part) -> what the key is made of
    # (cell, part, what it needs, work folder, store) -> notes for the manifest
    build: Callable[[Cell, Any, Made, Path, Store], list[str] | None]
    needs: tuple[str, ...] = ()  # stages whose artifacts the build reads
    on_demand: bool = False  # made only if another stage needs it; may be deleted afterwards
    require: Callable[[Cell], None] = lambda cell: None  # raises ConfigError before anything runs
    # (cell, part) -> (images made, optimiser steps, units of work), for plans; None: costs nothing
    work: Callable[[Cell, Any], tuple[int, int, float]] | None = None
    # How a cluster splits it; None: it is part of the cell's own task.
    pieces: Callable[[Cell], list[Piece]] | None = None
    do: Callable[[Cell, tuple[Any, ...], Store], object] | None = None
    piece: str = ""  # what a piece is called


class Cell:
    """One cell of the study: a recipe with its dataset, support set, adapters and keys.

    Each is computed once. Raises ConfigError or DataError if the recipe cannot be run.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset | None = None):
        self.recipe, self.method = recipe, method_of(recipe)
        self.dataset = dataset or load_for(recipe)
        self.support = Support(recipe, self.dataset)
        self._inputs: dict[str, dict[Any, dict[str, Any]]] = {}
        self._keys: dict[str, dict[Any, str]] = {}

    @cached_property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that the method samples with, each once."""
        return adapters(self.support)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The keys of all artifacts in the table's order, by their names in records."""
        found = {}
        for stage in STAGES:
            for i, (part, name) in enumerate(self.keys_of(stage.name).items()):
                found[stage.name if part is None else f"{stage.name}{i}"] = name
        return found

    def inputs_of(self, name: str) -> dict[Any, dict[str, Any]]:
        """Return the inputs of the keys of a stage's artifacts, by part."""
        if name not in self._inputs:
            stage = stage_of(name)
            more = {"deterministic": True} if stage.work and self.recipe.deterministic else {}
            own = {part: stage.inputs(self, part) | more for part in stage.parts(self)}
            self._inputs[name] = own
        return self._inputs[name]

    def keys_of(self, name: str) -> dict[Any, str]:
        """Return the keys of a stage's artifacts by part, without making anything."""
        if name not in self._keys:
            self._keys[name] = {p: key(name, **own) for p, own in self.inputs_of(name).items()}
        return self._keys[name]

    def key(self, name: str) -> str | None:
        """Return the key of a stage's single artifact, or None if the cell has none."""
        return self.keys_of(name).get(None)

    def make(self, name: str, store: Store, part: Any = None) -> Path:
        """Return the folder of an artifact, making it and what it needs unless it is done."""
        stage, own = stage_of(name), self.keys_of(name)[part]
        if store.done(own):
            progress.found(own)
            return store.folder(own)
        self._require(stage)
        made = {n: {p: self.make(n, store, p) for p in self.keys_of(n)} for n in stage.needs}
        notes: list[str] = []

        def build(folder: Path) -> None:
            with deterministic(self.recipe.deterministic):
                notes.extend(stage.build(self, part, made, folder, store) or ())

        more = {"batches": notes, "recipe": as_dict(self.recipe)}  # the recipe is for the card
        return store.make(own, self.inputs_of(name)[part], build, **more)

    def is_open(self, stage: Stage, store: Store) -> bool:
        """True if a stage, or one that needs it if it is on demand, still has something to make."""
        if stage.on_demand:
            return any(self.is_open(user, store) for user in STAGES if stage.name in user.needs)
        return not all(map(store.whole, self.keys_of(stage.name).values()))

    def require_runnable(self, store: Store) -> None:
        """Raise ConfigError or DataError if an open stage cannot run, before any of them starts."""
        for stage in STAGES:
            if not stage.on_demand and self.is_open(stage, store):
                self._require(stage)

    def _require(self, stage):
        if self.recipe.deterministic:
            require_deterministic()  # first, before anything uses the GPU
        stage.require(self)
        require_distinct(self.support)

    def compute(self, store: Store, until: str = "") -> dict[str, Path]:
        """Make the stages in order up to `until`, and return the folders of single artifacts.

        Finished artifacts are verified and reused.
        """
        fetch(self.recipe, self.method.generates)
        self.require_runnable(store)
        found = {}
        for stage in STAGES:
            for part in () if stage.on_demand else self.keys_of(stage.name):
                found[stage.name] = self.make(stage.name, store, part)
            if stage.name == until:
                break
        return found


def stage_of(name: str) -> Stage:
    """Return a row of the table by its name."""
    return next(stage for stage in STAGES if stage.name == name)


def _draw(cell):
    """Return [None] if any shot is used, for training, tuning or sampling; else []."""
    shown = cell.method.generates and cell.recipe.generate.shown
    return [None] if cell.method.real or cell.adapters or shown else []


def _require_generated(cell):
    require_sampler(cell.recipe)
    require_draws(cell.support)


def _adapter_pieces(cell):
    return [Piece(name, (one,), part=one) for one, name in cell.keys_of("adapt").items()]


def _slices(cell):
    """Return a piece for each slice of each class, which needs the adapters of its images only."""
    set_key, trained = cell.key("generate"), cell.keys_of("adapt")
    total, found = cell.recipe.generate.images * len(cell.dataset.classes), []
    for label in range(len(cell.dataset.classes)):
        for position, groups in enumerate(slices(cell.support, label)):
            needs = tuple(dict.fromkeys(trained[one] for _, own in groups for one in own))
            share = sum(len(indices) for indices, _ in groups) / total
            name = f"{set_key}/{label}/{position}"
            found.append(Piece(name, (label, position), needs, share))
    return found


def _share_slice(cell, where, store):
    label, position = where
    trained = partial(cell.make, "adapt", store)
    with deterministic(cell.recipe.deterministic):
        generate.share_slice(cell.support, trained, label, position, cell.key("generate"), store)


def _trainer(cell):
    """Return the module that trains the cell's classifier; both have the same functions."""
    return heads if cell.method.head else train


def _train(cell, part, made, folder, store):
    synthetic = made["generate"].get(None)
    images = read_synthetic_set(synthetic) if synthetic else None
    real = cell.support.shots() if cell.method.real else None
    return _trainer(cell).train(cell.support, cell.inputs_of("train")[None], real, images, folder)


STAGES: tuple[Stage, ...] = (
    Stage(
        "shots",
        parts=_draw,
        inputs=lambda cell, _: draw_inputs(cell.recipe, cell.dataset),
        build=lambda cell, _, made, folder, store: write_draw(cell.recipe, cell.dataset, folder),
    ),
    Stage(
        "adapt",  # section 3.2
        parts=lambda cell: cell.adapters,
        inputs=lambda cell, one: adapt.adapter_inputs(cell.support, one),
        build=lambda cell, one, made, folder, store: adapt.train_adapter(cell.support, one, folder),
        on_demand=True,
        work=lambda cell, one: adapt.adapter_work(cell.support, one),
        pieces=_adapter_pieces,
        do=lambda cell, where, store: cell.make("adapt", store, *where),
        piece="adapt",
    ),
    Stage(
        "generate",  # section 3.3
        parts=lambda cell: [None] if cell.method.generates else [],
        inputs=lambda cell, _: generate.generation_inputs(
            cell.support, list(cell.keys_of("adapt").values())
        ),
        build=lambda cell, _, made, folder, store: generate.generate(
            cell.support, made["adapt"], folder, store.lock
        ),
        needs=("adapt",),
        require=_require_generated,
        work=lambda cell, _: generate.generation_work(cell.support),
        pieces=_slices,
        do=_share_slice,
        piece="slice",
    ),
    Stage(
        "train",  # section 3.4
        parts=lambda cell: [None] if cell.method.trained else [],
        inputs=lambda cell, _: _trainer(cell).train_inputs(cell.support, cell.key("generate")),
        build=_train,
        needs=("generate",),
        require=lambda cell: _trainer(cell).require_trainable(cell.support),
        work=lambda cell, _: _trainer(cell).training_work(cell.support),
    ),
    Stage(
        "judge",  # section 4
        parts=lambda cell: [None],
        inputs=lambda cell, _: evaluate.evaluate_inputs(cell.support, cell.key("train")),
        build=lambda cell, _, made, folder, store: evaluate.evaluate(
            cell.support, made["train"].get(None), folder
        ),
        needs=("train",),
        work=lambda cell, _: evaluate.evaluation_work(cell.support),
    ),
)
