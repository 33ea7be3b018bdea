"""The stages of a cell, their keys, and how a cell is computed."""

import json

from ..config import require_warmup
from ..data.datasets import draw_inputs, few_shots, load_for, make_draw
from ..methods.registry import method_of
from ..models.download import fetch
from ..pipeline.draws import adapters
from ..store.keys import key
from .evaluate import evaluate, evaluate_inputs
from .generate import generate, generation_inputs, read_synthetic_set
from .record import write_record
from .train import train, train_inputs


def artifact_keys(recipe, dataset=None):
    """Return the keys of a cell's artifacts by stage, in the order of the stages, without making
    anything.

    `dataset` None: the recipe's own is loaded. Raises ConfigError on a warm-up that is longer than
    its training.
    """
    dataset, row, keys = dataset or load_for(recipe), method_of(recipe), {}
    if (
        row.real
        or (row.generates and adapters(recipe, dataset))
        or (row.generates and recipe.generate.strength)
    ):
        keys["shots"] = key("shots", **draw_inputs(recipe, dataset))
    if row.generates:
        inputs = generation_inputs(recipe, dataset)
        keys |= {f"adapt{i}": adapter for i, adapter in enumerate(inputs["adapters"])}
        keys["generate"] = key("generate", **inputs)
    if row.trained:
        require_warmup("classify.warmup", recipe.classify.warmup, recipe.classify.epochs, "epochs")
        keys["train"] = key("train", **train_inputs(recipe, dataset, keys.get("generate")))
    keys["judge"] = key("judge", **evaluate_inputs(recipe, dataset, keys.get("train")))
    return keys


def compute(recipe, store):
    """Return `run`'s record for one that has marked the store as being in use and says what a
    signal does.
    """
    row = method_of(recipe)
    fetch(recipe, row.generates)
    dataset = load_for(recipe)
    keys = artifact_keys(recipe, dataset)
    shots = few_shots(dataset, recipe.shots, recipe.seed)
    synthetic, trained = None, None
    if "shots" in keys:
        make_draw(recipe, dataset, store)
    if row.generates:
        synthetic = read_synthetic_set(generate(recipe, dataset, shots, store))
    if row.trained:
        trained = train(
            recipe, dataset, shots if row.real else None, synthetic, keys.get("generate"), store
        )
    result = json.loads((evaluate(recipe, dataset, trained, store) / "result.json").read_text())
    curve = json.loads((trained / "curve.json").read_text()) if trained else []
    return write_record(recipe, result, curve, keys, store)
