"""Where a Ray cluster cannot be joined or started, a message says so within seconds."""

import socket
import time

import pytest
import ray

from datadream.engines import ray_cluster
from datadream.errors import ConfigError
from datadream.study import run


@pytest.fixture
def listening():
    """Return the port of a server that takes connections and says nothing, on any interface:
    Ray takes another than the loopback.
    """
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def never_started(monkeypatch):
    """Fail at once where Ray would be asked to start or join a cluster."""
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("engine", ["ray", "ray:auto"])
def test_a_stale_address_is_said_at_once(monkeypatch, make, store, scheme, engine):
    address = f"{scheme}127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(
        ConfigError, match=f"no Ray cluster answers at RAY_ADDRESS='{address}'.*unset RAY_ADDRESS"
    ):
        run.run_cells([make("real")], store, engine=engine)
    assert time.monotonic() - begun < 60 and not store.keys()


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:1", "nonsense"])
def test_an_address_that_the_engine_names_is_named(address):
    with pytest.raises(ConfigError, match=f"answers at engine='ray:{address}'"):
        ray_cluster.join(ray, address, {})


def test_another_program_on_the_port_is_no_cluster(monkeypatch, listening):
    monkeypatch.setattr(ray_cluster, "HEALTH", 4.0)  # importing Ray takes two
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=rf"\(\S+:{listening}: "):
        ray_cluster.join(ray, f"127.0.0.1:{listening}", {})
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_of_temporary_files_is_named(monkeypatch, tmp_path, name):
    long = tmp_path / ("long " * 20).strip()
    long.mkdir()
    monkeypatch.setenv(name, str(long))
    with pytest.raises(ConfigError, match=f"{name}='.*long long.*bytes too long.*Set RAY_TMPDIR"):
        ray_cluster.join(ray, None, {})


def test_a_short_folder_is_no_matter(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    asked = []
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["address"]))
    ray_cluster.join(ray, None, {})
    assert asked == [None]
