"""Join a Ray cluster or start one, and fail within seconds if that is impossible."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import Any, cast

from ..errors import ConfigError

PATIENCE = 5.0  # seconds that a node has to answer on its port; Ray itself waits for 300
HEALTH = 60.0  # seconds for a process to import Ray and check a cluster's health
# Bytes that the path of a socket may have; macOS allows fewer.
SOCKET = 103 if sys.platform == "darwin" else 107


def join(ray: Any, address: str | None, variables: dict[str, str]) -> None:
    """Call `ray.init` for the cluster at `address` or RAY_ADDRESS, or start one on this machine.

    `variables` are environment variables for the workers. Raises ConfigError if no cluster answers
    at the address, or if the path of the temporary folder is too long for a new cluster.
    """
    where = _resolved(address)
    if where is None:
        _require_short_paths()
    else:
        _require_answer(where, _told(address))
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
        )
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(_nobody(_told(address), str(error))) from error


def _told(address):
    """Describe where an address comes from."""
    if address and address != "auto":
        return f"engine='ray:{address}'"
    told = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS={told!r}" if told else "the cluster that was last started here"


def _resolved(address):
    """Return the address that `ray.init` will connect to, or None if it will start a cluster."""
    from ray._private import services

    told = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else address
    if told and told.startswith("ray://"):  # Ray's client, which speaks another protocol
        return told
    try:
        return services.canonicalize_bootstrap_address(cast("str", address))  # None works too
    except Exception as error:  # it raises anything on a bad address or a missing cluster
        raise ConfigError(_nobody(_told(address), str(error))) from error


def _nobody(told, why):
    return (
        f"no Ray cluster answers at {told} ({' '.join(why.split())}). Start it (`ray start "
        "--head`) or name one that runs, engine='ray:<host>:<port>'; unset RAY_ADDRESS to use this "
        "machine's cores, or set engine='local'"
    )


def _require_answer(where, told):
    """Raise ConfigError unless a cluster answers at an address, which may be out of date."""
    host, _, port = where.removeprefix("ray://").partition("/")[0].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port or 10001)), PATIENCE):
            pass
    except (OSError, ValueError) as error:
        raise ConfigError(_nobody(told, f"{where}: {error}")) from error
    if where.startswith("ray://"):
        return
    # Another program may have taken the port. Ray's client would hang; a subprocess can be killed.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", where]
    try:
        done = subprocess.run(
            [*command, "--skip-version-check"], capture_output=True, text=True, timeout=HEALTH
        )
    except subprocess.TimeoutExpired as error:
        why = f"{where}: something is there that does not speak as Ray does"
        raise ConfigError(_nobody(told, why)) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["its health is unknown"])[-1]
        raise ConfigError(_nobody(told, f"{where}: {last}"))


def _require_short_paths():
    """Raise ConfigError if the paths of Ray's sockets would be too long for the system."""
    from ray._common.utils import get_default_ray_temp_dir

    root = get_default_ray_temp_dir()
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    excess = len(f"{root}/{session}/sockets/plasma_store".encode()) - SOCKET
    if excess > 0:
        name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), "RAY_TMPDIR")
        raise ConfigError(
            f"{name}={os.environ.get(name, '')!r} is {excess} bytes too long for Ray, whose "
            f"sockets lie below it: a path of one may have {SOCKET}. Set RAY_TMPDIR to a folder "
            "with a short path, such as /tmp, or set engine='local'"
        )
