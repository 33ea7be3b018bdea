"""Ray against local processes on the same small study: `python -m benchmarks.engines`.

The two engines alternate.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from datadream.paths import paths
from datadream.statistics import mean_interval
from datadream.store.artifacts import Store
from datadream.store.files import write_json
from datadream.store.provenance import provenance
from datadream.study.cells import cells
from datadream.study.run import run_cells

WORKERS = 2
STUDY = {
    "methods": ["real", "cls", "dset+real"],
    "seeds": (0, 1),
    "dataset": "optdigits",
    "images": 20,
    "overrides": {"adapt.epochs": 10, "adapt.warmup": 5, "classify.epochs": 4},
}


def timed(engine, workers=WORKERS, study=None):
    """Return the seconds of the study from scratch, starting the engine's processes included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_cells(cells(**(study or STUDY)), Store(folder), workers=workers, engine=engine)
        return time.perf_counter() - start


def main(arguments=None):
    """Alternate the engines and write seconds and ratio to benchmarks/results/engines.json.

    The ratio comes with its interval.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="alternating runs of each engine (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: benchmarks/results/engines.json)"
    )
    options = parser.parse_args(arguments)
    seconds = {"local": [], "ray": []}
    for turn in range(options.rounds):
        # Swap the order in each round, since other load on the machine varies.
        for engine in sorted(seconds, reverse=turn % 2 == 1):
            seconds[engine].append(timed(engine))
            print(f"{engine}: {seconds[engine][-1]:.1f} s", flush=True)
    ratio = mean_interval(np.log(seconds["ray"]) - np.log(seconds["local"]))
    file = options.out or paths()["engines"]
    write_json(
        file,
        {
            "cells": len(cells(**STUDY)),
            "workers": WORKERS,
            "seconds": seconds,
            "ratio": [math.exp(x) if math.isfinite(x) else None for x in ratio],
            **provenance(),
        },
    )
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
