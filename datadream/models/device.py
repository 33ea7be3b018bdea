"""The device that everything runs on, and the precision of its weights."""

import torch


def device() -> torch.device:
    """Return the device that everything runs on: the GPU if there is one, else the CPU.

    The GPU is that of `use_gpu`, the first one if nothing was said.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(precision: str, training: bool) -> torch.dtype:
    """Return the dtype of the frozen weights: float32 on a CPU or on request, half on a GPU.

    To sample, float16 as the released code does; to train, bfloat16 where the GPU has it, which
    needs no loss scaling, else float32. The released adapter trains in float32, which is
    `precision="float32"` here.
    """
    if precision == "float32" or device().type == "cpu":
        return torch.float32
    if not training:
        return torch.float16
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    )
