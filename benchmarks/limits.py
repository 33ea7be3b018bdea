"""The machine's limits: matrix products for compute, PNG decoding for input."""

import io
import time

import numpy as np
import torch
from PIL import Image


def products(device, dtype, side=None, seconds=1.0):
    """Return the best FLOP/s of square matrix products in `dtype` within `seconds`.

    `side` is the size of the matrices; by default it fills the device.
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    a, best, end = (
        torch.randn(side, side, device=device).to(dtype),
        0.0,
        time.perf_counter() + seconds,
    )
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        for _ in range(4):
            a @ a
        _wait(device)
        best = max(best, 4 * 2 * side**3 / (time.perf_counter() - start))
    return best


def decoding(side, seconds=1.0):
    """Return the bytes/s of decoded pixels that one core gets from a PNG of `side` pixels.

    Measured in CPU time, since others may use the core too.
    """
    pixels = np.random.RandomState(0).randint(0, 255, (side // 8 or 1, side // 8 or 1, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        count += np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB")).nbytes
    return count / (time.process_time() - start)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
