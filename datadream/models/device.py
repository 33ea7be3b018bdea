"""The device that everything runs on, the precision of its weights, and its determinism."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch

from ..errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these, cuBLAS's manual says, results do not depend on how streams share the workspace.
FIXED = (":4096:8", ":16:8")


def device() -> torch.device:
    """Return the device that everything runs on: the GPU if there is one, else the CPU.

    The GPU is the one set by `use_gpu`, by default the first.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(precision: str, training: bool) -> torch.dtype:
    """Return the dtype of the frozen weights: float32 on a CPU or on request, half on a GPU.

    Sampling uses float16, as the released code does. Training uses bfloat16, which needs no loss
    scaling, or float32 if the GPU lacks it. The released code trains its adapters in float32, here
    `precision="float32"`.
    """
    if precision == "float32" or device().type == "cpu":
        return torch.float32
    if not training:
        return torch.float16
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    )


def require_deterministic() -> None:
    """Set CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads once, when the process first uses the GPU.

    Raises ConfigError if the GPU is already in use without it, or if its value is not one of
    FIXED.
    """
    told = os.environ.get(WORKSPACE)
    if told in FIXED:
        return
    if told is not None or torch.cuda.is_initialized():
        found = f"{WORKSPACE}={told!r}" if told is not None else f"{WORKSPACE} is not set"
        raise ConfigError(
            f"deterministic=True needs {WORKSPACE} to be {' or '.join(FIXED)} before the process "
            f"first uses the GPU, and {found}; start it with {WORKSPACE}={FIXED[0]} in its "
            "environment"
        )
    os.environ[WORKSPACE] = FIXED[0]


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Use torch's deterministic algorithms within the context; do nothing unless `wanted`.

    Attention uses FlashAttention, whose backward pass is then deterministic, or plain matrix
    products where it is unavailable, as in float32. Earlier settings are restored on exit, except
    CUBLAS_WORKSPACE_CONFIG, which is read only once. Raises ConfigError as `require_deterministic`
    does; torch raises RuntimeError for an operation without a deterministic implementation.
    """
    if not wanted:
        yield
        return
    require_deterministic()
    cudnn, memory = torch.backends.cudnn, cast("Any", torch.utils.deterministic)
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    with ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, before, warn_only=warns)
        torch.use_deterministic_algorithms(True)
        # Filling uninitialised memory only exposes reads before writes, and costs time.
        _set_flags(True, False, False)
        stack.callback(_set_flags, *flags)
        if torch.cuda.is_available():
            from torch.nn.attention import SDPBackend, sdpa_kernel

            stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]))
        yield


def _set_flags(deterministic, benchmark, fill):
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
    memory: Any = torch.utils.deterministic  # a module whose class has this as a property
    memory.fill_uninitialized_memory = fill
