"""The cells of the study as lists of recipes, and what a page shows of them."""

import pandas as pd

from .. import config
from ..config import METHODS, as_mapping
from ..data.datasets import SHOTS_TITLE, few_shots, load_for
from ..errors import ConfigError
from ..pipeline.generate import generation_inputs, read
from ..store.artifacts import Store
from ..store.keys import key


def cells(
    methods=None, seeds=(0,), overrides=None, images=None, generator=None, classifier=None, **fields
):
    """Return the recipes of every method on every seed: the parameters of notebooks/dataset.ipynb,
    where None is the profile's.

    `methods` None means the paper's main table. Raises ConfigError on an unknown name or value.
    """
    methods = [name for name, row in METHODS.items() if row.main] if methods is None else methods
    for name, value in {"methods": methods, "seeds": seeds}.items():
        if not isinstance(value, (list, tuple)) or not value:
            raise ConfigError(
                f"{name}={value!r} is no list of one or more; papermill takes lists as YAML: -y "
                f"'{name}: [{value}]'"
            )
    chosen = {"generator": generator, "classifier": classifier, "generate.images": images}
    values = {name: value for name, value in chosen.items() if value is not None} | as_mapping(
        overrides
    )
    return [
        config.recipe(overrides=values, method=method, seed=seed, **fields)
        for seed in seeds
        for method in methods
    ]


def sample_rows(recipes, store=None, depth=3):
    """Return title -> one list of `depth` PIL images per class: the first seed's few shots, then
    each of its generators.
    """
    store, first = store or Store(), recipes[0]
    dataset = load_for(first)
    sets = {SHOTS_TITLE: few_shots(dataset, first.shots, first.seed)}
    for recipe in recipes:
        if recipe.row.generator and recipe.seed == first.seed:
            # A method with real images shows the same set.
            title = METHODS[recipe.method.removesuffix("+real")].title
            made = key("generate", **generation_inputs(recipe, dataset))
            if not store.folder(made).exists():
                store.done(made)  # which copies here what other machines made
            sets[title] = read(store.folder(made))
    return {
        title: [
            [images.open(i) for i, y in enumerate(images.labels) if y == label][:depth]
            for label in range(len(dataset.classes))
        ]
        for title, images in sets.items()
    }


def places(table):
    """Return the artifact folders of each cell, one row per method and seed: few shots,
    synthetic set, classifier, result.
    """
    stages = {
        "few shots": "shots",
        "synthetic set": "generate",
        "classifier": "train",
        "result": "judge",
    }
    rows = [
        {
            "method": row.method,
            "seed": row.seed,
            **{title: row.artifacts.get(stage, "") for title, stage in stages.items()},
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def _quiet_kernel():
    """Return the settings of a kernel whose messages are encrypted: it warns of plain text on a
    port of this machine.
    """
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"}) if zmq.has("curve") else Config()
