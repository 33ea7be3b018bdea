"""Determinism on request: what is set, that it is set back, and where a process comes too late."""

import os

import pytest
import torch

from datadream.config import key_fields
from datadream.engines import on_ray
from datadream.errors import ConfigError
from datadream.models import device
from datadream.models.device import deterministic, require_deterministic
from datadream.models.generators.lora import LORA_FILE
from datadream.pipeline import adapt as adapting
from datadream.pipeline import evaluate, train
from datadream.pipeline import generate as generating
from datadream.pipeline.stages import Cell
from datadream.seeds import forked_rng
from datadream.store.artifacts import Store
from datadream.store.files import digest


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    """Let each test begin, and end, without the variable."""
    monkeypatch.setenv(device.WORKSPACE, "")
    monkeypatch.delenv(device.WORKSPACE)


def state():
    """Return all that the context sets, but for the environment."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )


@pytest.mark.parametrize("warns", [False, True])
def test_all_is_set_within_and_set_back_even_after_an_error(monkeypatch, warns):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(warns, warn_only=warns)
    try:
        before = state()
        with pytest.raises(KeyError), deterministic():
            assert state() == (True, False, True, False, False, False, True)
            raise KeyError
        assert state() == before
        with deterministic(False):
            assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)
    assert os.environ[device.WORKSPACE] == ":4096:8"


@pytest.mark.parametrize("told, begun, ends", [
    (None, False, True), (None, True, False), (":16:8", True, True), (":4096:8", True, True),
    (":4096:2:16:8", False, False), ("", False, False),
])  # fmt: skip
def test_a_process_that_comes_too_late_is_told_what_to_set(monkeypatch, told, begun, ends):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun)
    if told is not None:
        monkeypatch.setenv(device.WORKSPACE, told)
    if ends:
        require_deterministic()
        assert os.environ[device.WORKSPACE] == (told or ":4096:8")
    else:
        with pytest.raises(ConfigError, match="start it with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
            require_deterministic()


def test_every_stage_is_made_within(make, store, monkeypatch):
    seen = set()

    def spied(module, name):
        function = getattr(module, name)

        def spy(*args, **kwargs):
            seen.add((module.__name__, torch.are_deterministic_algorithms_enabled()))
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    for module, name in ((adapting, "fit"), (train, "fit"), (evaluate, "predict_with_margins")):
        spied(module, name)
    spied(generating, "sample")
    cell = Cell(make("dset+real", {"deterministic": True}))
    cell.compute(store)
    stages = {one.__name__ for one in (adapting, generating, train, evaluate)}
    assert seen == {(name, True) for name in stages}
    assert not torch.are_deterministic_algorithms_enabled()
    seen.clear()
    on_ray._do(next(t for t in on_ray.tasks([cell.recipe], Store(store.root / "b")).values()
                    if t.stage == "generate"), Store(store.root / "b"))  # fmt: skip
    assert {on for _, on in seen} == {True}, "a slice of a cluster too"


def test_all_but_the_draw_of_the_shots_has_a_key_of_its_own(make):
    plain, exact = make("dset+real"), make("dset+real", {"deterministic": True})
    keys = [Cell(one).keys for one in (plain, exact)]
    assert {name for name in keys[0] if keys[0][name] == keys[1][name]} == {"shots"}
    assert "deterministic" not in key_fields(plain) and key_fields(exact)["deterministic"]


def test_a_cpu_gives_the_same_bytes_with_and_without(make, tmp_path):
    found = set()
    for i, own in enumerate(({}, {"deterministic": True})):
        cell = Cell(make("dset", own))
        folder = cell.make("adapt", Store(tmp_path / str(i)), cell.adapters[0])
        found.add(digest(folder / LORA_FILE))
    assert len(found) == 1


def test_only_the_gpu_in_use_is_forked(monkeypatch):
    """Of a node with eight, `fork_rng` alone would initialise all."""
    asked, given = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda number: asked.append(number))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: given.append(number))
    expected = torch.get_rng_state()
    with forked_rng():
        torch.rand(3)
    assert asked == given == [5] and torch.equal(torch.get_rng_state(), expected)
