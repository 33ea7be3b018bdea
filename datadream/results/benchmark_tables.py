"""Tables of the committed benchmarks: speed, scale, GPUs, faults."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..paths import paths


def load_benchmarks(folder: str | Path) -> list[dict[str, Any]]:
    """Load what `python -m benchmarks` wrote to `folder`, one dict per device and profile."""
    return _measured(folder, "limits")


def _measured(folder: str | Path, field: str) -> list[dict[str, Any]]:
    """Return the files of `folder` that have `field`; it holds several kinds of measurements."""
    found = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    return [results for results in found if field in results]


def benchmark_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate a benchmark: images/s of product and baseline, ratio, share of peak, and memory.

    The peak is that of matrix products, or, for a row that only decodes, that of decoding on all
    cores. "ratio at peak" is the speed-up of a product that ran at the peak: an upper bound for the
    same work.
    """
    limits, rows = results["limits"], []
    for row in results["rows"]:
        mean, low, high = row["ratio"]
        # In seconds.
        least = (
            row["flops"] / max(limits["flops"].values())
            or row.get("bytes", 0) / limits["decoded_bytes"] / results["cores"]
        )
        rows.append(
            {
                "stage": row["row"],
                **{f"{way}, images/s": row["images"] / s for way, s in row["seconds"].items()},
                "ratio": mean,
                "95 % interval": "" if low is None else f"{low:.2f} to {high:.2f}",
                "ratio at peak": row["seconds"]["baseline"] / least if least else None,
                "share of peak, %": 100 * least / row["seconds"]["product"] if least else None,
                "peak GB": f"{row['peak_bytes']['baseline'] / 1e9:.1f} / "
                f"{row['peak_bytes']['product'] / 1e9:.1f}",
            }
        )
    return pd.DataFrame(rows)


def stage_seconds(table: pd.DataFrame) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return (stage, keys of its artifacts) -> seconds of the process that computed them.

    A stage of several artifacts, such as an adapter per class, is one entry.
    """
    seconds = {}
    for stages, artifacts in zip(table["stages"], table["artifacts"], strict=True):
        for stage, value in stages.items():
            keys = [key for name, key in artifacts.items() if name.rstrip("0123456789") == stage]
            seconds[stage, tuple(sorted(keys))] = value
    return seconds


def stage_table(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the seconds per stage in records, and their share of the total.

    One row per stage with its number of artifacts; an artifact shared by several records counts
    once.
    """
    found = pd.DataFrame(
        [
            {"stage": stage, "artifacts": len(keys), "seconds": value}
            for (stage, keys), value in stage_seconds(table).items()
        ]
    )
    rows = (
        found.groupby("stage", sort=False)
        .agg("sum")
        .reset_index()
        .sort_values("seconds", ascending=False)
    )
    return rows.assign(**{"share, %": 100 * rows["seconds"] / rows["seconds"].sum()}).reset_index(
        drop=True
    )


def load_together(file: str | Path | None = None) -> pd.DataFrame:
    """Load the results of `python -m benchmarks.together`, a row per number of adapters.

    The columns give the ratio with its interval, the device and the commit.
    """
    file = Path(file or paths()["together"])
    results = json.loads(file.read_text()) if file.exists() else {"together": []}
    return pd.DataFrame(
        [
            {
                "adapters at once": row["adapters"],
                "times as fast": row["ratio"][0],
                "95 % interval": "{1:.2f} to {2:.2f}".format(*row["ratio"]),
                "device": results["device"],
                "commit": results["commit"][:10],
            }
            for row in results["together"]
        ]
    )


def host_table(folder: str | Path | None = None) -> pd.DataFrame:
    """Tabulate the results of `python -m benchmarks.host`: milliseconds of each variant."""
    return pd.DataFrame(
        [
            {"what": what, "way": way, "ms": 1e3 * seconds, "device": results["device"]}
            for results in _measured(folder or paths()["benchmarks"], "host")
            for what, ways in results["host"].items()
            for way, seconds in ways.items()
        ]
    )


def load_gpus(folder: Path) -> list[dict]:
    """Load what `python -m benchmarks.gpu` wrote to `folder`, a dict per run, latest first."""
    found = _measured(folder, "gpu")
    return sorted(found, key=lambda results: results["date"], reverse=True)


# The stages of a GPU run: key in its results, title, and what is counted per second.
GPU_STAGES = {
    "adapt_steps": ("adapt, batch 8", "optimiser steps"),
    "generate_images": ("generate, 50 guided steps", "images"),
    "classifier_epoch": ("train and judge an epoch", "images"),
}


# What speeds are relative to, the first of them that a stage has.
BASELINES = ("released way, float32", "released way")


def gpu_table(results: dict) -> pd.DataFrame:
    """Tabulate a GPU run by stage and variant: speed, ratio to the baseline, memory.

    The baseline is the first of BASELINES that was measured, and the first row of its stage.
    """
    rows = []
    for part, (title, unit) in GPU_STAGES.items():
        ways = {
            way: found
            for way, found in results["parts"].get(part, {}).items()
            if isinstance(found, dict) and "per_s" in found
        }
        base = next((way for way in BASELINES if way in ways), None)
        first = ways[base]["per_s"] if base else math.nan
        rows += [
            {
                "stage": title,
                "way": way,
                "a second": f"{found['per_s']:{'.0f' if found['per_s'] >= 100 else '.3g'}} {unit}",
                "times as fast": found["per_s"] / first,
                "peak GB": found["peak_GB"],
            }
            for way, found in sorted(
                ways.items(), key=lambda one: (one[0] != base, one[0] == "ours", one[0])
            )
        ]
    return pd.DataFrame(rows)


def gpu_findings(results: dict, steps: int = 50) -> list[str]:
    """Return what a GPU run shows about where time goes, a sentence or two per stage.

    An image takes `steps` sampling steps.
    """
    parts = results["parts"]
    sampling, batch, adapt = (
        parts[name] for name in ("sampling_pass", "classifier_parts", "adapt_parts")
    )
    images, plain = sampling["images"], sampling["ms"]["as shipped"]
    rate = 1e3 * sampling["TFLOP"] / plain
    lines = [
        f"**Sampling.** A guided pass of {images} images takes {plain:.0f} ms, {rate:.0f} TFLOP/s.",
        f"**Adapting.** A step of the UNet takes {adapt['unet_ms']['as shipped']:.0f} ms, of which "
        f"the GPU is busy for {adapt['unet_profile']['gpu_ms']:.0f} ms with "
        f"{adapt['unet_profile']['kernels']:,.0f} kernels; the rest is host time.",
        f"**Classifier.** A step of {batch['batch']} images takes {batch['model_ms']:.0f} ms in "
        f"the model and {batch['batch_ms']:.0f} ms to assemble the batch.",
        "**Host.** Writing a PNG of 512 pixels takes "
        f"{sampling['host_ms_an_image']['PNG, level 6']:.0f} ms on one core.",
    ]
    if compiled := parts.get("sampling_compiled"):
        saved = plain - compiled["ms"]
        count = 1e3 * compiled["compile_s"] * images / steps / saved if saved > 0 else 0
        pays = f", which pays off from about {count:,.0f} images of {steps} steps" if count else ""
        lines[0] += (
            f" Compiled it takes {compiled['ms']:.0f} ms, after {compiled['compile_s']:.0f} s of "
            f"compilation{pays}."
        )
    if layouts := parts.get("sampling_layouts", {}).get("ms"):
        lines[0] += (
            f" With contiguous weights it takes {layouts['contiguous']:.1f} ms and with "
            f"channels-last weights {layouts['channels-last']:.1f} ms, measured alternately."
        )
    if four := parts.get("four_adapters"):
        lines[1] += (
            f" Four adapters in one batched pass take {four['together']:.2f} s, one after the "
            f"other {four['apart']:.2f} s."
        )
    # Measured when the package still computed the crop matrices on the CPU.
    if moved := batch.get("batch_ms, matrices on the device"):
        lines[2] += (
            " At that time the resampling matrices were computed on one core; now that they are "
            f"computed on the GPU, the batch took {moved:.0f} ms."
        )
    if before := parts.get("classifier_parts, before"):
        lines[2] += (
            f" The batch took {before['batch_ms']:.0f} ms when each image was copied "
            "separately and each mask synchronised with the host."
        )
    return lines


def gpu_variants(results: dict) -> pd.DataFrame:
    """Tabulate variants that the package does not use: milliseconds as shipped and of each."""
    rows = []

    def add(what: str, way: str, shipped: float, own: Any) -> None:
        if isinstance(own, float):
            rows.append(
                {"what": what, "way": way, "as shipped, ms": shipped, "ms": own,
                 "times as fast": shipped / own}
            )  # fmt: skip

    parts = results["parts"]
    for way, own in parts.get("sampling_layouts", {}).get("ms", {}).items():
        if way != "contiguous":
            add("guided UNet pass", way, parts["sampling_layouts"]["ms"]["contiguous"], own)
    cached = parts.get("sampling_cached", {})
    for way in (name for name in cached if name.startswith("every")):
        add("images of 50 steps", f"DeepCache, {way}", cached["plain_ms"], cached[way]["ms"])
    graphed = parts.get("adapt_graphed", {})
    for way in ("graphed", "graphed, lean LoRA"):
        add("the UNet's step", way, graphed.get("as shipped", math.nan), graphed.get(way))
    if blocks := parts.get("adapt_blocks_compiled"):
        add("the UNet's step", "blocks compiled", graphed.get("as shipped", math.nan), blocks["ms"])
    whole = parts.get("adapting_by_graph", {})
    if "UNet as a graph" in whole and "per_s" in whole["UNet as a graph"]:
        shipped, own = (1e3 / whole[way]["per_s"] for way in ("as shipped", "UNet as a graph"))
        add("a step of adapting", "the UNet graphed", shipped, own)
    classifier = parts.get("classifier_variants", {})
    for way in ("graphed", "blocks compiled", "blocks compiled, graphed"):
        shipped = classifier.get("as shipped", math.nan)
        add("the classifier's passes", way, shipped, classifier.get(way))
    for what, own in parts.get("deterministic_steps", {}).items():
        if isinstance(own, dict):
            ms = own["ms"]
            add(f"the {what}'s passes", "deterministic", ms["as shipped"], ms["deterministic"])
    return pd.DataFrame(rows)


def load_scale(file: str | Path | None = None) -> dict[str, Any]:
    """Load the results of `python -m benchmarks.simulate`: the paper's table on many GPUs.

    They include all inputs of the simulation.
    """
    return json.loads(Path(file or paths()["scale"]).read_text())


def load_engines(file: str | Path | None = None) -> dict[str, Any]:
    """Load the results of `python -m benchmarks.engines`: one study timed on both engines.

    They hold the seconds and their ratio with its 95 % interval.
    """
    return json.loads(Path(file or paths()["engines"]).read_text())


BOUNDS = {
    "work": "the work of all tasks",
    "chain": "the longest chain of tasks",
    "driver": "the driver",
}


def scale_table(results: Mapping[str, Any], run: str = "engine") -> pd.DataFrame:
    """Tabulate a simulated run by number of GPUs: hours, utilisation, lower bound, bottleneck."""
    return pd.DataFrame(
        [
            {
                "GPUs": row["gpus"],
                "hours": row["seconds"] / 3600,
                "utilisation, %": 100 * row["utilisation"],
                "lower bound, hours": row["bounds"][row["bottleneck"]] / 3600,
                "bottleneck": BOUNDS[row["bottleneck"]],
            }
            for row in results["runs"][run]
        ]
    )


def remedy_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate the hours of each simulated run by number of GPUs, the longest run first."""
    many = {row["gpus"] for row in results["runs"]["order of the table"]}
    runs = sorted(results["runs"].items(), key=lambda run: -run[1][-1]["seconds"])
    return pd.DataFrame(
        [
            {
                "run": name,
                **{
                    f"{row['gpus']} GPUs": row["seconds"] / 3600
                    for row in rows
                    if row["gpus"] in many
                },
            }
            for name, rows in runs
        ]
    )


def operation_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate store operations by kind of task, as `fixed + each x images`."""
    kinds = ("exists", "list", "get", "put", "lock")
    return pd.DataFrame(
        [
            {"what": what, **{kind: _linear(*counts.get(kind, (0, 0))) for kind in kinds}}
            for what, counts in results["operations"].items()
        ]
    )


def _linear(fixed, each):
    return f"{fixed:.0f}" if not each else f"{fixed:.0f} + {each:g} n"


def load_faults(file: str | Path | None = None) -> dict[str, Any]:
    """Load the results of `python tests/faults/campaign.py`, {} if there are none.

    They hold `cases`, `inputs`, and where they were run.
    """
    file = Path(file or paths()["faults"])
    return json.loads(file.read_text()) if file.exists() else {}


def fault_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate faults by engine: stages tried, survived, equal records and bytes, time lost.

    The seconds lost are a range from least to most.
    """
    rows = []
    for _, group in pd.DataFrame(results["cases"], columns=CASE).groupby(
        ["fault", "engine"], sort=False
    ):
        lost, first = group["lost"], group.iloc[0]
        rows.append(
            {
                "fault": first["fault"],
                "engine": first["engine"],
                "in": ", ".join(group["stage"]),
                "survived": f"{group['survived'].sum()} of {len(group)}",
                "records equal": _equal(group),
                "bytes": f"{group['bytes'].sum()} of {len(group)}",
                "seconds lost": f"{lost.min():.1f} to {lost.max():.1f}",
                "of": f"{group['undisturbed'].mean():.1f}",
                "load": f"{group['load'].mean():.1f}",
            }
        )
    return pd.DataFrame(rows)


def _equal(cases):
    halved = cases[~cases["equal"] & cases["split"].map(bool)]
    note = (
        f"; {len(halved)} with halved batches, {halved['apart'].max():.1f} points apart at most"
        if len(halved)
        else ""
    )
    return f"{cases['equal'].sum()} of {len(cases)}{note}"


# What the script records about a case and the table shows.
CASE = [
    "fault",
    "stage",
    "engine",
    "survived",
    "equal",
    "bytes",
    "split",
    "apart",
    "seconds",
    "undisturbed",
    "lost",
    "load",
]


def input_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate the classes of bad input: how many were tried, and how they ended."""
    return pd.DataFrame(
        [
            {
                "input": group,
                "tried": sum(ends.values()),
                "ended": ", ".join(f"{end} ({n})" for end, n in ends.items()),
            }
            for group, ends in results["inputs"].items()
        ]
    )
