"""What the faults are made of: a small study in a process of its own, a fault inside it, and
signs of how far it is.
"""

import builtins
import errno
import io
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import psutil

from datadream.study import run

STAGES = ("adapt", "generate", "train")
# Of a stage that some of is done.
SIGNS = {
    "adapt": "adapt-*.partial/checkpoint.safetensors",
    "generate": "generate-*.partial/train/*/00000[4-9].png",
    "train": "train-*.partial/curve.json",
}
# A checkpoint comes after 200 steps, so that the adaptation has 240; the others are long enough to
# be met in the middle.
LONG = {"adapt.epochs": 120, "generate.images": 20, "classify.steps": 60, "classify.evaluations": 3}
SHORT = {"adapt.epochs": 2, "generate.images": 5, "classify.steps": 0}
# The exit status of an error that names itself; seconds that a process may take.
FAILED, LIMIT = (3, 300)
# Module, function, and the call of it that a fault is put into.
CALLS = {
    "adapt": ("datadream.pipeline.adapt", "diffusion_loss", 40),
    "generate": ("datadream.pipeline.generate", "sample", 9),
    "train": ("datadream.pipeline.train", "mixed_loss", 20),
}
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    [
        "datadream.engines.on_ray",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "diffusers.models.autoencoders.autoencoder_kl",
        "transformers.models.clip.modeling_clip",
        "peft",
        "open_clip",
        "disturb",
    ]
)


def once(flag):
    """Return whether this is the first call with this file, in any process of any machine that
    sees it.
    """
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def _exhaust(forever):
    """Ask for more memory than the process may have, which raises the allocator's own error;
    `forever` leaves it no more than it has.
    """
    import torch

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**20, before[1]))
    try:
        torch.empty(2**30)
    finally:
        if not forever:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _broken(values):
    import torch

    for value in values if not isinstance(values, torch.Tensor) else [values]:
        yield value * float("nan")


def inject(kind, stage, flag):
    """Put a fault into a stage of this process: 'nan', 'memory once' or 'memory', at a call in the
    middle.

    `flag` is the file by which of several processes only the first that gets there has it.
    """
    import importlib

    place, name, at = CALLS[stage]
    module, count = importlib.import_module(place), itertools.count(1)
    whole = getattr(module, name)
    if kind == "nan" and stage == "generate":  # what a decoder in half precision does
        from diffusers import AutoencoderKL

        module, name, whole = AutoencoderKL, "decode", AutoencoderKL.decode

    def faulty(*args, **options):
        hit = next(count) == at and once(flag)
        if hit and kind != "nan":
            _exhaust(kind == "memory")
        result = whole(*args, **options)
        if not hit:
            return result
        if stage == "generate":
            return tuple(part * float("nan") for part in result)
        return next(_broken(result)) if stage == "train" else _broken(result)

    setattr(module, name, faulty)


def shift(seconds):
    """Set this process's clock forward or back, for all that asks Python for the time."""
    real, utc = time.time, time.gmtime
    time.time = lambda: real() + seconds
    time.gmtime = lambda at=None: utc(time.time() if at is None else at)


def deny(pattern, only_writing):
    """Let this process open no path of this pattern, as if it were another user's; `only_writing`
    lets it be read.

    The campaign may run as root, to whom no mode denies anything.
    """
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def is_writing(name, rest, options):
        if name == "open of Python":
            mode = options.get("mode", rest[0] if rest else "r")
            return any(letter in mode for letter in "wax+")
        return name == "mkdir" or (name == "open" and bool(rest[0] & written))

    def refusing(name, real):
        def opened(path, *rest, **options):
            if isinstance(path, (str, os.PathLike)) and fnmatch(os.fspath(path), pattern):
                if is_writing(name, rest, options) or not only_writing:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *rest, **options)

        return opened

    builtins.open = io.open = refusing("open of Python", open)
    for name in ("open", "mkdir", "listdir", "scandir"):
        setattr(os, name, refusing(name, getattr(os, name)))


def _prepare(faults):
    for kind, values in faults.items():
        {"inject": inject, "shift": shift, "deny": deny}[kind](*values)


def _study(recipes, root, engine, faults, address, notes):
    """Run the cells in this process as a program would, which ends with an exit status."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C and a scheduler's SIGTERM go to a group
    # A shell's background job, which this may be part of, ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = sys.stderr = open(notes, "a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    import torch

    from datadream.store.artifacts import Store

    torch.set_num_threads(1)
    _prepare(faults)
    if engine == "ray":
        import ray

        if address:
            names = {
                name: os.environ[name]
                for name in ("PYTHONPATH", "DATADREAM_HOME")
                if name in os.environ
            }
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={
                    "worker_process_setup_hook": lambda: _prepare(faults),
                    "env_vars": names,
                },
            )
        else:
            os.environ.pop("RAY_ADDRESS", None)
    try:
        run.run_cells(
            recipes,
            Store(root),
            2 if engine == "two processes" else 1,
            "ray" if engine == "ray" else "local",
        )
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(FAILED)


def start(recipes, root, engine, notes, faults=None, address=None):
    """Start a study of the recipes on the store `root`, and return its process; what it prints
    goes to the file `notes`.
    """
    process = forked.Process(
        target=_study, args=(recipes, root, engine, faults or {}, address, notes)
    )
    process.start()
    return process


def ended(process):
    """Wait for a process and return its exit status, a signal's number with a minus; one that
    hangs is killed and told by None.
    """
    process.join(LIMIT)
    if process.exitcode is None:
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        for one in family:
            one.kill()
        return None
    return process.exitcode


def reached(root, stage, process):
    """Wait until the stage is being made in the store `root` and some of it is there; return
    whether that came before the process's end.
    """
    end = time.monotonic() + LIMIT
    while process.is_alive() and time.monotonic() < end:
        if next(Path(root).glob(SIGNS[stage]), None):
            return True
        time.sleep(0.005)
    return False


def family(process):
    """Return the processes that a process started, and those that they did."""
    return psutil.Process(process.pid).children(recursive=True)


def left_behind(processes):
    """Return how many of some processes are alive although that which started them is not; they
    have some seconds to notice.
    """
    return len(psutil.wait_procs(processes, timeout=20)[1])


def contents(root):
    """Return path -> (size, time) of the files in the store `root` but locks, and what a run tells
    of how far it is.
    """
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in Path(root).rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != "progress.txt"
    }


def records(root):
    """Return the records of the store `root` without times and provenance, and the digests of
    the files of the artifacts that they name.
    """
    from datadream.store.artifacts import Store

    store, found, files = Store(root), {}, {}
    for file in sorted(store.records.glob("*.json")):
        record = json.loads(file.read_text())
        found[file.name] = {
            name: record[name] for name in ("key", "recipe", "result", "curve", "artifacts")
        }
        files |= {
            key: (store.manifest(key) or {}).get("files") for key in record["artifacts"].values()
        }
    return found, files


def split(root):
    """Return what the manifests in the store `root` say of batches that did not fit into memory."""
    from datadream.store.artifacts import Store

    store = Store(root)
    return [
        note
        for folder in sorted(store.root.glob("*-*"))
        for note in (store.manifest(folder.name) or {}).get("batches", ())
    ]


def accuracies(found):
    """Return the accuracies of some records, as `records` gives them, in percent."""
    return [
        100 * record["result"][part]["top1"]
        for _, record in sorted(found.items())
        for part in ("val", "test")
    ]
