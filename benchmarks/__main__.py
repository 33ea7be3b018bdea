"""Benchmark each stage against the released code's implementation, on the same work.

The two alternate. See `python -m benchmarks --help`.
"""

import argparse
import math
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from datadream.config import as_dict
from datadream.methods.recipes import recipe
from datadream.models.device import device
from datadream.paths import paths
from datadream.results.benchmark_tables import benchmark_table
from datadream.statistics import mean_interval
from datadream.store.cores import usable_cores
from datadream.store.files import write_json
from datadream.store.provenance import provenance

from . import limits
from .full_size import save_models
from .stages import SIZES, SWAPS, count, measure, prepare, work

FAST = {
    name: as_dict(recipe("mini"))[name]
    for name in ("generate.scheduler", "generate.steps", "generate.guidance")
}
# What is measured: a row's name, its stage, the settings that differ, how many images (or adapter
# swaps) one measurement processes, and what it is compared with.
ROWS = {
    "adapt": ("adapt", {}, lambda size, recipe: size.adapt * recipe.adapt.batch, "baseline"),
    "generate, equal steps": ("generate", {}, lambda size, recipe: size.images, "baseline"),
    "generate, the mini profile's sampler": (
        "generate",
        FAST,
        lambda size, recipe: size.images,
        "baseline",
    ),
    "exchange an adapter": ("exchange", {}, lambda size, recipe: SWAPS, "baseline"),
    "decode the classifier's images": ("decode", {}, lambda size, recipe: size.train, "baseline"),
    "train and judge an epoch": ("train", {}, lambda size, recipe: size.train, "baseline"),
    "generate, batch searched against given": (
        "generate",
        {"generate.batch": 0},
        lambda size, recipe: size.images,
        "product",
    ),
    "adapt, compiled against not": (
        "compiled",
        {},
        lambda size, recipe: size.adapt * recipe.adapt.batch,
        "baseline",
    ),
    "generate, compiled against not": (
        "generate",
        {"generate.compile": True},
        lambda size, recipe: size.images,
        "product",
    ),
}
# Run only on request: on a CPU they take minutes, for compilation or in small batches.
ASKED = (
    "generate, batch searched against given",
    "adapt, compiled against not",
    "generate, compiled against not",
)


def compare(row, profile, root, rounds):
    """Return a row of results: both ways, alternating for `rounds` rounds.

    Each runs in its own process.
    """
    stage, overrides, units, against = ROWS[row]
    pools = {
        way: ProcessPoolExecutor(
            1, get_context("spawn"), prepare, (stage, kind, profile, root, own)
        )
        for way, kind, own in (("baseline", against, {}), ("product", "product", overrides))
    }
    seconds, peaks = {way: [] for way in pools}, dict.fromkeys(pools, 0)
    try:
        # Set up both before anything is timed.
        for ready in [pool.submit(os.getpid) for pool in pools.values()]:
            ready.result()
        for turn in range(rounds + 1):
            for way, pool in pools.items():
                time, peak = pool.submit(measure).result()
                peaks[way] = max(peaks[way], peak)
                if turn:  # the first warms up memory and compilation
                    seconds[way].append(time)
        counted = pools["product"].submit(count).result()
    finally:
        for pool in pools.values():
            pool.shutdown()
    ratio = mean_interval(np.log(seconds["baseline"]) - np.log(seconds["product"]))
    return {
        "row": row,
        "images": units(SIZES[profile], work(profile, root)[0]),
        "rounds": rounds,
        **counted,
        "ratio": [math.exp(x) if math.isfinite(x) else None for x in ratio],
        "seconds": {way: float(np.median(values)) for way, values in seconds.items()},
        "peak_bytes": peaks,
    }


def machine(side):
    """Return the machine's limits.

    They are the FLOP/s of matrix products by dtype, and the bytes/s of decoded PNG on one core.
    """
    dtypes = [torch.float32, torch.bfloat16] if device().type == "cuda" else [torch.float32]
    return {
        "flops": {str(d).partition(".")[2]: limits.products(device(), d) for d in dtypes},
        "decoded_bytes": limits.decoding(side),
    }


def main(arguments=None):
    """Run the measurements and print the table.

    It is also written to benchmarks/results/<device>-<profile>.json.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--profile",
        choices=SIZES,
        default="mini",
        help="mini; paper: true shapes with random weights; tiny: to see that it works (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="alternating measurements of each row (default: %(default)s)",
    )
    parser.add_argument(
        "--row", action="append", choices=ROWS, help="only this row; may be repeated (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: in benchmarks/results)"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.profile == "paper":
            save_models(root)
        results = {
            "profile": options.profile,
            "threads": torch.get_num_threads(),
            "cores": usable_cores(),
            "limits": machine(SIZES[options.profile].side),
            "rows": [
                compare(row, options.profile, root, options.rounds)
                for row in options.row or (row for row in ROWS if row not in ASKED)
            ],
            **provenance(),
        }
    device = re.sub(r"[^a-z0-9]+", "-", results["device"].lower()).strip("-")
    file = options.out or paths()["benchmarks"] / f"{device}-{options.profile}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)
    print(
        f"{results['device']}, {results['threads']} threads; matrix products "
        + ", ".join(
            f"{name} {value / 1e9:.0f} GFLOP/s"
            for name, value in results["limits"]["flops"].items()
        )
        + f"; PNG decoding {results['limits']['decoded_bytes'] / 1e6:.0f} MB/s a core"
    )
    print(benchmark_table(results).to_string(index=False, float_format="{:.2f}".format))
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
