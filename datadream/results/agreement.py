"""Compare a reader's records with the committed ones, cell by cell, allowing for noise.

On two CPUs, runs of the same cell draw the same random numbers and differ only by rounding, which
training can amplify. Two bounds apply to the difference of their accuracies, and the smaller one
counts: that of two seeds, which differ by more than rounding, and that of two classifiers of equal
accuracy with independent errors. A GPU draws different noise from the same seed, so between it and
a CPU, or another kind of GPU, only the bound of two seeds counts.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..config import Recipe, as_dict
from ..methods.registry import METHODS
from ..statistics import holm
from ..store.keys import stage_of_key
from .records import in_shots

CELL = ["dataset", "shots", "method", "seed"]
SEEDS = 3  # a standard deviation of two says next to nothing
LEVEL = 0.05
EMPTY = (
    "The store has no records yet. Run make study: it computes a study of your own and builds this "
    "book again."
)
EQUAL, WITHIN, OUTSIDE, NOTHING = "equal", "within", "outside", "nothing to compare"
# The prefixes of artifact keys, in the order in which the stages are run.
STAGES = ("shots", "adapt", "generate", "train", "judge")


@dataclass(frozen=True)
class Agreement:
    """A reader's cells, sorted by what they can be compared with."""

    # CELL, title, yours, ours and difference (in points), within, spread, p, verdict, judge, key
    cells: pd.DataFrame
    settings: pd.DataFrame  # not comparable: CELL, title, setting, yours, ours
    alone: pd.DataFrame  # without committed counterpart: CELL, title
    copies: int  # records that are copies of the committed ones


def seeds_apart(difference: float, seeds: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return (half-width, two-sided p) for a difference between two seeds.

    With s the standard deviation of the seeds' accuracies, two further seeds differ by at most t s
    sqrt(2) with probability 1 - level. Raises ValueError on fewer than SEEDS seeds, and on seeds
    that all agree.
    """
    from scipy import stats

    values = np.asarray(seeds, dtype=float)
    if len(values) < SEEDS or np.ptp(values) == 0:
        raise ValueError(f"seeds {values.tolist()}; give {SEEDS} or more that are not all the same")
    scale, freedom = float(values.std(ddof=1)) * math.sqrt(2), len(values) - 1
    half = float(stats.t.ppf(1 - level / 2, freedom)) * scale
    return half, float(2 * stats.t.sf(abs(difference) / scale, freedom))


def images_apart(
    first: float, second: float, total: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return (half-width, two-sided p) of two accuracies on `total` images, errors independent.

    One correct and one wrong image are added to each (Agresti and Caffo, 2000), so that an accuracy
    of 0 or 1 has a spread too. Raises ValueError on accuracies outside [0, 1] and on zero images.
    """
    from scipy import stats

    if not (0 <= first <= 1 and 0 <= second <= 1 and total >= 1):
        raise ValueError(f"{first}, {second} of {total} images; give shares of 1 or more images")
    shares = [(share * total + 1) / (total + 2) for share in (first, second)]
    # Rescaled to the accuracies themselves, which the added images bring closer together.
    scale = math.sqrt(sum(share * (1 - share) for share in shares) * (total + 2)) / total
    half = float(stats.norm.ppf(1 - level / 2)) * scale
    return half, float(2 * stats.norm.sf(abs(first - second) / scale))


def judged(
    yours: float, ours: float, total: int, seeds: ArrayLike, *, same_draws: bool = True
) -> dict[str, Any]:
    """Judge one accuracy against another of the same cell.

    Returns `difference` and `within`, the smaller bound, in points, the bound's `spread` in words,
    `p` and the `verdict`. `seeds` are the accuracies of all committed seeds with the cell's
    settings. If both bounds apply, each is tested at half of LEVEL (Bonferroni). Without
    `same_draws`, the bound over images is used only when there are too few committed seeds.
    """
    values, bounds = np.asarray(seeds, dtype=float), {}
    if len(values) >= SEEDS and np.ptp(values) > 0:
        bounds[f"{len(values)} seeds"] = partial(seeds_apart, yours - ours, values)
    if same_draws or not bounds:
        bounds["images"] = partial(images_apart, yours, ours, total)
    found = {name: bound(LEVEL / len(bounds)) for name, bound in bounds.items()}
    spread = min(found, key=lambda name: found[name][0])
    p = min(1.0, len(found) * min(own for _, own in found.values()))
    equal = round(yours * total) == round(ours * total)
    return {
        "difference": 100 * (yours - ours),
        "within": 100 * found[spread][0],
        "spread": spread,
        "p": 1.0 if equal else p,
        "verdict": EQUAL if equal else OUTSIDE if p < LEVEL else WITHIN,
    }


def overall(cells: pd.DataFrame) -> dict[str, Any]:
    """Judge all cells together; cells that share a computation count once.

    Returns the counts `computations`, `equal`, `differ` and `outside`, the number `expected`
    outside by chance, the binomial probability `chance` of at least that many, the smallest
    Holm-corrected p-value `furthest`, and the `verdict`, which is "outside" if either probability
    is below half of LEVEL.
    """
    from scipy import stats

    once = cells.drop_duplicates("judge")
    differ = once.loc[once["verdict"] != EQUAL]
    outside = int((differ["verdict"] == OUTSIDE).sum())
    chance = float(stats.binom.sf(outside - 1, len(differ), LEVEL)) if len(differ) else 1.0
    furthest = float(holm(differ["p"]).min()) if len(differ) else 1.0
    far = min(chance, furthest) < LEVEL / 2
    return {
        "computations": len(once),
        "equal": len(once) - len(differ),
        "differ": len(differ),
        "outside": outside,
        "expected": LEVEL * len(differ),
        "chance": chance,
        "furthest": furthest,
        "verdict": OUTSIDE if far else WITHIN if len(differ) else EQUAL if len(once) else NOTHING,
    }


def compare(yours: pd.DataFrame, ours: pd.DataFrame) -> Agreement:
    """Compare a table of records with the committed ones, both as from `records.load_records`.

    Two cells are the same computation if their results have the same key, which covers everything
    they depend on, but no unused settings. A GPU uses other number formats and hence other keys;
    its cells are matched by recipe and few shots instead.
    """
    known = ours.drop_duplicates("key").to_dict("records")
    kept = {(row["key"], row["created"]) for row in known}
    own = [r for r in yours.to_dict("records") if (r["key"], r["created"]) not in kept]
    cells, settings, alone = [], [], []
    near = _grouped(known, lambda row: tuple(row[name] for name in CELL))
    same = _grouped(known, lambda row: (row["dataset"], row["method"], _judge(row)))
    seeds = _grouped(known, _seedless)
    for row in own:
        where = {name: row[name] for name in CELL} | {"title": _title(row["method"])}
        others = near.get(tuple(row[name] for name in CELL), [])
        pairs = same.get((row["dataset"], row["method"], _judge(row)), [])
        pairs = pairs or [one for one in others if _same_elsewhere(row, one)]
        if pairs:
            best = max(pairs, key=partial(_in_common, row, seeds))
            cells.append(where | _against(row, best, seeds[_seedless(best)]))
        elif others:
            nearest = min((_differences(row, one) for one in others), key=len)
            settings.append(where | nearest[0])
        else:
            alone.append(where)
    compared = ("yours", "ours", "difference", "within", "spread", "p", "verdict", "judge", "key")
    return Agreement(
        _table(cells, *compared),
        _table(settings, "setting", "yours", "ours"),
        _table(alone),
        len(yours) - len(own),
    )


def _table(rows, *columns):
    """Return rows as a table sorted by dataset and shots.

    Several records of a cell give one row if they are the same computation, or if none is
    committed.
    """
    table = pd.DataFrame(rows, columns=[*CELL, "title", *columns])
    if "setting" not in columns:
        table = table.drop_duplicates([*CELL, *{"judge"}.intersection(columns)])
    return table.sort_values(["dataset", "shots"], kind="stable", ignore_index=True)


def _grouped(rows, by):
    found = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return found


def _title(method):
    known = METHODS.get(method)
    return known.title if known else method


def _judge(row):
    return row["artifacts"]["judge"]


def _in_common(row, seeds, other):
    """Return a sort key for committed records of the same computation; the best is largest."""
    same_cell = all(row[name] == other[name] for name in CELL)
    return same_cell, _settings(row) == _settings(other), len(seeds[_seedless(other)])


@cache
def _defaults():
    return json.loads(json.dumps(as_dict(Recipe())))


def _settings(row):
    """Return all settings of a record, with defaults for those added since."""
    return _defaults() | row["recipe"]


def _seedless(row):
    return json.dumps(_settings(row) | {"seed": None}, sort_keys=True)


def _same_draws(row, other):
    """True if both records are from CPUs or one kind of GPU, where a seed gives the same noise."""
    devices = {one["device"] for one in (row, other)}
    return len(devices) == 1 or all(" CPU, " in device for device in devices)


def _same_elsewhere(row, other):
    """True if two records from unlike devices have the same recipe and images.

    A GPU uses other number formats, so all of its keys differ except that of the few shots.
    """
    shots = [one["artifacts"].get("shots") for one in (row, other)]
    alike = shots[0] == shots[1] and row["total"] == other["total"]
    return alike and not _same_draws(row, other) and _settings(row) == _settings(other)


def _against(row, other, seeds):
    """Return the row of `Agreement.cells` for a record and the committed one."""
    latest = {one["seed"]: one["top1"] for one in sorted(seeds, key=lambda one: one["created"])}
    both, draws = (row["top1"], other["top1"]), _same_draws(row, other)
    return {
        "yours": 100 * row["top1"],
        "ours": 100 * other["top1"],
        **judged(*both, row["total"], list(latest.values()), same_draws=draws),
        "judge": _judge(row),
        "key": row["key"],
    }


def _differences(row, other):
    """Return the settings that differ, in the recipe's order: `setting`, `yours`, `ours`.

    If none does, names the first stage whose inputs differ.
    """
    here, there = _settings(row), _settings(other)
    found = [
        {"setting": name, "yours": here.get(name, "-"), "ours": there.get(name, "-")}
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]
    if found:
        return found
    keys = [set(one["artifacts"].values()) for one in (row, other)]
    changed = {stage_of_key(key) for key in keys[0] ^ keys[1]}
    first = next((stage for stage in STAGES if stage in changed), "judge")
    return [{"setting": f"data, models or code of the stage {first}", "yours": "-", "ours": "-"}]


def shown(cells: pd.DataFrame) -> pd.DataFrame:
    """Return compared cells as a table for readers, those outside first."""
    first = cells.sort_values("verdict", key=lambda column: column != OUTSIDE, kind="stable")
    rows = [
        {
            "Dataset": row["dataset"],
            "Shots": row["shots"],
            "Method": row["title"],
            "Seed": row["seed"],
            "Yours %": f"{row['yours']:.2f}",
            "Ours %": f"{row['ours']:.2f}",
            "Diff.": f"{row['difference']:+.2f}" if row["verdict"] != EQUAL else "0",
            "Within ±": f"{row['within']:.2f}",
            "From": row["spread"],
            "Verdict": row["verdict"],
        }
        for row in first.to_dict("records")
    ]
    return pd.DataFrame(rows)


def shown_settings(settings: pd.DataFrame) -> pd.DataFrame:
    """Return incomparable cells as a table for readers, with one row for equal seeds."""
    texts = settings.assign(**{name: settings[name].map(str) for name in ("yours", "ours")})
    alike = ["dataset", "shots", "title", "setting", "yours", "ours"]
    rows = texts.groupby(alike, sort=False)["seed"].agg(_listed).reset_index()
    own = {"seed": "Seeds", "title": "Method", "setting": "Setting that differs"}
    return rows.rename(columns=lambda name: own.get(name, name.capitalize()))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def _count(number: int, noun: str = "cell") -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def verdict_line(found: Agreement) -> str:
    """Return the overall verdict and the counts behind it, in a few sentences."""
    if not (found.copies or any(map(len, (found.cells, found.settings, found.alone)))):
        return EMPTY
    total = overall(found.cells)
    if total["verdict"] == NOTHING:
        return "No verdict: there is no committed cell to compare yours with."
    counted = f"{_count(len(found.cells))} compared"
    if len(found.cells) != total["computations"]:
        counted += f", which are {_count(total['computations'], 'computation')}"
    if total["verdict"] == EQUAL:
        return f"Equal: {counted}, each with exactly our number."
    differ = f"the {total['differ']} that differ{'s' * (total['differ'] == 1)}"
    return (
        f"{total['verdict'].capitalize()}: {counted}; {total['equal']} equal, "
        f"{total['differ'] - total['outside']} within the expected spread, {total['outside']} "
        f"outside. Chance puts at most {total['expected']:.2g} of {differ} outside. "
        f"{_reasons(total)}"
    ).strip()


def _reasons(total: Mapping[str, Any]) -> str:
    """Say what makes the overall verdict "outside"; "" if it is not."""
    found = []
    if total["chance"] < LEVEL / 2:
        found.append(f"So many or more by chance: {_p_text(total['chance'])}.")
    if total["furthest"] < LEVEL / 2:
        found.append(
            f"The farthest alone has {_p_text(total['furthest'])}, corrected for their number "
            "(Holm)."
        )
    return " ".join(found)


def _p_text(p):
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def rest_lines(found: Agreement) -> list[str]:
    """Return a sentence on each kind of record that appears in no table."""
    lines = []
    if found.copies:
        lines.append(
            f"{found.copies} of your records {'is' if found.copies == 1 else 'are'} in the "
            "committed file book/study/records.jsonl, so there is nothing to compare them with. If "
            '"datadream keep" has put yours there, "git checkout book/study/records.jsonl" brings '
            "ours back."
        )
    if len(found.alone):
        counts = Counter(zip(found.alone["dataset"], found.alone["shots"], strict=True))
        places = [f"{name} at {in_shots(shots)} ({n})" for (name, shots), n in counts.items()]
        have = "has" if len(found.alone) == 1 else "have"
        lines.append(
            f"{_count(len(found.alone))} of yours {have} no committed counterpart: "
            f"{', '.join(places)}."
        )
    return lines


def outside_files(found: Agreement, store: str) -> list[str]:
    """Return the records of the cells that are outside, as paths in the store `store`."""
    keys = found.cells.loc[found.cells["verdict"] == OUTSIDE, "key"]
    return [f"{store}/records/{key}.json" for key in keys]


def report(found: Agreement, store: str) -> str:
    """Return the comparison for a terminal; `store` is the name of the reader's store."""
    parts = [verdict_line(found)]
    if len(found.cells):
        parts.append(shown(found.cells).to_string(index=False))
    if len(found.settings):
        table = shown_settings(found.settings).to_string(index=False)
        parts.append(f"Not comparable, since other settings are committed:\n{table}")
    parts += rest_lines(found)
    if files := outside_files(found, store):
        listed = "\n".join(f"  {file}" for file in files)
        parts.append(
            "To report what is outside, send what `datadream compare` and `datadream doctor` "
            f"print, and these records:\n{listed}"
        )
    return "\n\n".join(parts)
