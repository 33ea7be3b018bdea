"""Benchmark the host's share of the stages, in variants: `python -m benchmarks.host`.

Covers converting images to bytes, writing files, and attaching LoRA layers. The variants alternate.
Writes benchmarks/results/host.json.
"""

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import fromarray

from datadream.data.png import save_png
from datadream.methods.recipes import recipe
from datadream.models.generators import load, lora, sampling
from datadream.paths import paths
from datadream.store.files import write_json
from datadream.store.provenance import provenance

from .stages import Stage

ROUNDS = 9
COUNT, SIDE = 10, 512  # images per batch in the paper's profile, and their side


def in_turn(ways):
    """Return the median seconds of each function by name; they alternate, after a warm-up round."""
    found = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def noise():
    """Return images with about the detail of a photograph, (COUNT, 3, SIDE, SIDE) in [0, 1]."""
    small = torch.rand(COUNT, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, SIDE, mode="bicubic").clamp(0, 1)


def written(images, folder, workers, level):
    """Write PNG files with `workers` threads."""
    with ThreadPoolExecutor(workers) as pool:
        each = [
            pool.submit(save_png, image, folder / f"{i}.png", level)
            for i, image in enumerate(images)
        ]
        for one in each:
            one.result()


def attached(options):
    """Attach an adapter's LoRA to the embedded generator, and detach it."""
    generator = load.load_generator("mini")
    lora.add_generator_lora(generator, options)
    lora.remove_lora(generator)


def main():
    """Measure, print and write the results."""
    images, options = noise(), recipe("mini").adapt
    old = VaeImageProcessor
    pil = old.numpy_to_pil(old.pt_to_numpy(images))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = {
            "10 images of 512 pixels to bytes": in_turn(
                {
                    "diffusers, in float32 on the host": lambda: old.numpy_to_pil(
                        old.pt_to_numpy(images)
                    ),
                    "rounded by torch": lambda: [
                        fromarray(one) for one in sampling.levels(images).numpy()
                    ],
                }
            ),
            "10 PNG of 512 pixels": in_turn(
                {
                    "one writer, level 6": lambda: written(pil, place, 1, 6),
                    "two writers, level 6": lambda: written(pil, place, 2, 6),
                    "one writer, level 1": lambda: written(pil, place, 1, 1),
                }
            ),
            "LoRA of a mini adapter": in_turn({"attached and detached": lambda: attached(options)}),
        }
        # Comes last, because it attaches its own layers.
        stage = Stage("adapt", "product", "mini", place, {})
        steps = statistics.median([stage.measure()[0] for _ in range(4)][1:])
        rows["LoRA of a mini adapter"][f"{stage.size.adapt} steps of its training"] = steps
    results = {"host": rows, "rounds": ROUNDS, "threads": torch.get_num_threads(), **provenance()}
    write_json(paths()["benchmarks"] / "host.json", results)
    for what, ways in rows.items():
        for way, seconds in ways.items():
            print(f"{what}, {way}: {1e3 * seconds:.1f} ms, {max(ways.values()) / seconds:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
