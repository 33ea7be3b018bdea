"""Test and benchmark everything on a GPU: `python -m benchmarks.gpu --out DIR --seconds N`.

Uses the true shapes of Stable Diffusion 2.1-base and CLIP ViT-B/16 with random weights, created on
the spot; nothing is downloaded, and neither git nor a network is needed. Results are written after
each part, so an aborted run keeps what it has, and no part starts that would not end in time.
`--tiny` runs the same parts with the embedded models, on a CPU too.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from datadream.store.files import write_json

from . import gpu_parts, gpu_variants  # noqa: F401  they register the parts
from .gpu_bench import PARTS, Bench


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Run the requested parts that fit into the time; return the results by part."""
    begun, results = time.perf_counter(), {}
    head = {
        "gpu": torch.cuda.get_device_name() if bench.cuda else "none",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "profile": bench.profile,
    }
    for name, (needed, function) in PARTS.items():
        if options.only and name not in options.only:
            continue
        spent = time.perf_counter() - begun
        if spent + needed > options.seconds:
            results[name] = {"skipped": f"{spent:.0f} s spent; it takes about {needed:g} s"}
            continue
        try:
            results[name] = function(bench)
        except Exception:  # the other parts are still worth running
            results[name] = {"error": traceback.format_exc()[-3000:]}
        bench.forget()  # the part's objects can be freed now
        results[name]["part_s"] = round(time.perf_counter() - begun - spent, 1)
        write_json(bench.out / "results.json", {**head, "parts": results})
        print(f"{name}: {json.dumps(results[name], default=str)[:900]}", flush=True)
    print(f"all: {time.perf_counter() - begun:.0f} s", flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write results.json and kernels.txt to a folder.

    Returns 1 if a part failed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder of results.json and kernels.txt"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=340,
        help="no part begins that would end after these (default: %(default)g)",
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="only this part; may be repeated"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the embedded models, to see that it works"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(tempfile.gettempdir()) / "datadream-gpu",
        help="where the models are made, and found again (default: %(default)s)",
    )
    parser.add_argument(
        "--backend", default="inductor", help="of torch.compile (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    bench = Bench(options.out, options.root, options.tiny, options.backend)
    for folder in (bench.out, bench.root):
        folder.mkdir(parents=True, exist_ok=True)
    results = measure(bench, options)
    return int(any("error" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
