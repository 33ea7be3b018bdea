"""Common tools for the parts of `benchmarks.gpu`, and the table of parts."""

import contextlib
import gc
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from datadream import config
from datadream.methods import recipes
from datadream.models import device
from datadream.models.generators import load
from datadream.store.cores import usable_cores

from . import full_size, limits
from .stages import Size, Stage

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "open_clip_torch",
    "timm",
    "huggingface_hub",
    "numpy",
    "pillow",
    "mlxtend",
)
# Batches of ten images, as in the released code; rates are measured, and GPU time is short.
SIZES = {
    "paper": Size(adapt=6, images=20, solver=50, train=1024, test=256, side=512, swaps=1),
    "mini": Size(adapt=2, images=4, solver=2, train=64, test=20, side=32, swaps=1),
}


@dataclass
class Bench:
    """Where and at which size a run measures: folders of results and models, and the profile.

    `root` is kept on a warm machine, so that a second run reuses the models. `backend` is for
    torch.compile.
    """

    out: Path
    root: Path
    tiny: bool = False
    backend: str = "inductor"
    device: torch.device = field(default_factory=device.device)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"

    @property
    def profile(self) -> str:
        """The profile whose models and batch sizes are measured."""
        return "mini" if self.tiny else "paper"

    @property
    def size(self) -> Size:
        """The amount of work in one measurement."""
        return SIZES[self.profile]

    def recipe(self, **fields: Any) -> config.Recipe:
        """Return a recipe of the profile with this run's models."""
        own = (
            {}
            if self.tiny
            else {"generator": str(self.root / "generator"), "classifier": str(self.root / "clip")}
        )
        return recipes.recipe(
            self.profile, **{"dataset": "mnist", "method": "cls", **own, **fields}
        )

    def load(self, dtype: torch.dtype | None = None, training: bool = False) -> Any:
        """Return the generator's pipeline, in half precision on a GPU unless `dtype` is given."""
        return load.load_pipeline(
            self.generator, dtype or device.dtype_for("auto", training=training)
        )

    @property
    def generator(self) -> str:
        """The folder or name of the generator."""
        return "mini" if self.tiny else str(self.root / "generator")

    def stage(self, name: str, way: str) -> Stage:
        """Return a stage of `benchmarks.stages` in one of its ways, baseline or product."""
        return Stage(name, way, self.profile, self.root, {}, self.size)

    def sync(self) -> None:
        """Wait until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Free the pipelines and whatever the device still holds."""
        load.forget_generators()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gigabytes(self) -> float | None:
        """Return the device's largest allocation since `forget`; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None

    def seconds(self, run: Callable[[], Any], repeats: int = 8, warm: int = 2) -> float:
        """Return the median seconds of `run()`, with the device idle before each reading."""
        found = []
        for _ in range(warm + repeats):
            self.sync()
            start = time.perf_counter()
            run()
            self.sync()
            found.append(time.perf_counter() - start)
        return statistics.median(found[warm:])

    def milliseconds(self, run: Callable[[], Any], repeats: int = 8, warm: int = 2) -> float:
        """Return the median milliseconds of `run()`."""
        return 1e3 * self.seconds(run, repeats, warm)

    def profiled(self, run: Callable[[], Any], name: str, steps: int = 1) -> dict[str, float]:
        """Profile `run` and return kernels, operators and milliseconds per step.

        Appends the list of kernels to kernels.txt.
        """
        from torch.profiler import ProfilerActivity, profile

        run()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with profile(activities=kinds) as found:
            self.sync()
            start = time.perf_counter()
            run()
            self.sync()
            wall = time.perf_counter() - start
        table = found.key_averages()
        key = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        with open(self.out / "kernels.txt", "a") as file:
            text = table.table(sort_by=key, row_limit=40, max_name_column_width=90)
            print(f"\n## {name}\n{text}", file=file)
        kernels = [e for e in (found.events() or []) if "CUDA" in str(e.device_type)]
        calls = {event.key: event.count / steps for event in table}
        waits = (
            "aten::_local_scalar_dense",
            "aten::item",
            "cudaStreamSynchronize",
            "cudaDeviceSynchronize",
        )
        return {
            "wall_ms": 1e3 * wall / steps,
            "gpu_ms": sum(e.time_range.elapsed_us() for e in kernels) / 1e3 / steps,
            "kernels": len(kernels) / steps,
            "operators": sum(n for k, n in calls.items() if k.startswith("aten::")),
            "host_waits": sum(calls.get(name, 0) for name in waits),
            "copies_to_gpu": calls.get("Memcpy HtoD (Pageable -> Device)", 0),
        }

    @contextlib.contextmanager
    def cudnn_attention(self) -> Iterator[None]:
        """Prefer cuDNN's attention, which PyTorch normally tries after FlashAttention 2.

        Unsupported cases fall back.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        order = [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ]
        with sdpa_kernel(order, set_priority=True) if self.cuda else contextlib.nullcontext():
            yield


Part = Callable[[Bench], dict[str, Any]]
PARTS: dict[str, tuple[float, Part]] = {}


def part(seconds: float) -> Callable[[Part], Part]:
    """Register a part that takes about `seconds` on an H200 once the models exist."""

    def note(function: Part) -> Part:
        PARTS[function.__name__] = (seconds, function)
        return function

    return note


@part(5)
def environment(bench: Bench) -> dict[str, Any]:
    """Return the versions, the card, and its measured limits: matrix products and copies."""
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "versions": {},
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": str(bench.device),
    }
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["versions"][name] = metadata.version(name)
    dtypes = [torch.float32]
    if bench.cuda:
        dtypes += [torch.bfloat16, torch.float16]
        big = torch.empty(2**31, dtype=torch.uint8, device=bench.device)
        found |= {
            "card": torch.cuda.get_device_name(),
            "cudnn": torch.backends.cudnn.version(),
            "cuda": torch.version.cuda,
            "copy_TBs": 2 * big.nbytes / bench.seconds(big.clone) / 1e12,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    found["flops"] = {str(d): limits.products(bench.device, d, seconds=0.3) for d in dtypes}
    return found


@part(25)
def make_models(bench: Bench) -> dict[str, Any]:
    """Write both models in full size.

    The weights are drawn on the device; on a CPU that takes a minute.
    """
    if bench.tiny or (bench.root / "clip" / "open_clip_model.safetensors").exists():
        return {}
    try:
        with torch.device(bench.device):
            full_size.save_models(bench.root)
        where = str(bench.device)
    except (RuntimeError, TypeError) as error:  # a layer that cannot be created there
        for folder in ("generator", "clip", "vocabulary"):
            shutil.rmtree(bench.root / folder, ignore_errors=True)
        full_size.save_models(bench.root)
        where = f"cpu, since {error!r}"[:300]
    bench.forget()
    return {
        "made_on": where,
        "bytes": sum(p.stat().st_size for p in bench.root.rglob("*") if p.is_file()),
    }
