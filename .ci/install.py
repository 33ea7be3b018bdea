"""Install the locked versions into the environment of the Python that runs this, by uv or by pip.

    .venv/bin/python .ci/install.py requirements.lock

uv takes a tenth of pip's time, but reads none of pip's configuration, so this translates it. Where
pip is told something that uv cannot do, or uv is not to be had or fails, pip installs. This is a
script of its own, outside the package, since it runs before anything is installed.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOM = 8.0  # GB that the environment takes, with what is unpacked on the way
# What pip's settings are called in uv's environment, and what stands between several values there.
NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
FLAGS = {"no-index", "pre"}
# Settings of pip that change nothing of what is installed from a list of exact versions.
HARMLESS = {
    "config-file",
    "disable-pip-version-check",
    "no-cache-dir",
    "cache-dir",
    "quiet",
    "verbose",
    "no-input",
    "progress-bar",
    "no-color",
    "no-warn-script-location",
    "no-warn-conflicts",
    "root-user-action",
    "break-system-packages",
    "require-virtualenv",
    "require-venv",
    "retries",
    "prefer-binary",
    "no-python-version-warning",
    "no-compile",
    "log",
    "exists-action",
}
OFF = {"", "0", "false", "no", "off", "n", "f"}


def settings(listed: str) -> dict[str, str]:
    """Return what `pip config list` prints, by name; `install` outdoes `global`, `:env:` both."""
    found = {}
    for section in ("global", "install", ":env:"):
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                found[name.removeprefix(f"{section}.").replace("_", "-")] = str(
                    ast.literal_eval(value)
                )
    return found


def translate(found: dict[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return (environment, arguments) that tell uv what pip is told, and what it cannot be told."""
    # pip takes the best version of all indexes, uv as a rule the first index that has the package.
    variables, arguments, unknown = {"UV_INDEX_STRATEGY": "unsafe-best-match"}, [], []
    for name, value in found.items():
        words = value.split()
        if name in NAMES:
            variable, between = NAMES[name]
            variables[variable] = between.join(words)
        elif name == "proxy":
            variables |= {"HTTP_PROXY": value, "HTTPS_PROXY": value, "ALL_PROXY": value}
        elif name in FLAGS:
            arguments += [] if value.lower() in OFF else [f"--{name}"]
        elif name in ("only-binary", "no-binary"):
            arguments += [
                word for part in value.replace(",", " ").split() for word in (f"--{name}", part)
            ]
        elif name not in HARMLESS and value.lower() not in OFF:
            unknown.append(name)
    if "SSL_CERT_FILE" not in variables and (bundle := os.environ.get("REQUESTS_CA_BUNDLE")):
        variables["SSL_CERT_FILE"] = bundle
    return variables, arguments, unknown


def warn_of_room(folder: Path) -> None:
    """Say where the disk may be too small; the installation is tried all the same."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < ROOM:
        print(
            f"warning: {free:.1f} GB are free for {sys.prefix}, and the installation needs about "
            f"{ROOM:g} GB",
            flush=True,
        )


def by_uv(lock: str) -> str:
    """Install with uv and return an empty text, or why it was not done."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run(
        [*pip, "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    variables, arguments, unknown = translate(settings(listed))
    if unknown:
        return f"pip is configured with {', '.join(unknown)}, which uv cannot follow"
    if subprocess.run(
        [*pip, "-q", "install", "uv"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        return "uv cannot be installed"
    uv = [sys.executable, "-m", "uv"]
    environment = {**variables, **os.environ}  # who has set a variable of uv's means it
    where = subprocess.run(
        [*uv, "cache", "dir"], capture_output=True, text=True, check=False, env=environment
    ).stdout.strip()
    if not where or not _same_disk(Path(where), Path(sys.prefix)):
        # Files cannot be linked from one disk to another.
        environment.setdefault("UV_LINK_MODE", "copy")
    done = subprocess.run(
        [*uv, "pip", "install", "-q", "--python", sys.executable, "-r", lock, *arguments],
        env=environment,
        check=False,
    )
    return f"uv failed with exit code {done.returncode}" if done.returncode else ""


def _same_disk(one: Path, other: Path) -> bool:
    there = next(place for place in (one, *one.parents) if place.exists())
    return there.stat().st_dev == other.stat().st_dev


def main(lock: str) -> int:
    """Install what the lock lists, by uv or else by pip, and return the exit code."""
    warn_of_room(Path(sys.prefix))
    reason = by_uv(lock)
    if not reason:
        return 0
    print(f"{reason}; pip installs instead, which takes some minutes", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-q",
        "install",
        "-r",
        lock,
    ]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
