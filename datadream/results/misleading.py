"""What records tell about single images: which shots mislead a classifier, what most seeds miss.

All of it describes what happened on the test images; nothing here chooses a setting or tests one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image

from ..data.datasets import Dataset, few_shots
from ..data.predictions import Predictions
from .committed import read_committed
from .records import best_by_validation, by_shots, require_one_record_each, select

PAIR = ("real", "dset+real")  # the shots alone, and with the tuned generator's images
MOST = 0.5  # an image is missed by most seeds if it is by more than this share of them


def _of_pair(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column of the records, a row per seed that has both methods of PAIR."""
    require_one_record_each(table)
    wide = table.pivot(index="seed", columns="method", values=column)
    return wide.reindex(columns=[*PAIR]).dropna()


def recall_by_shot(table: pd.DataFrame) -> pd.DataFrame:
    """Return the recall of each shot's class, a row per shot, the lowest first.

    `table` has the records of one dataset at one shot per class. The columns are seed, label, a
    recall in percent per method of PAIR, `recall`, their mean, and `apart`, that mean less its
    average over the seeds of the class. Two classifiers have seen each shot, and what both of them
    miss is less a chance of either training. Seeds that lack a method are left out.
    """
    if set(table["shots"]) - {1}:
        raise ValueError("records of several shots per class; narrow the table to shots=1")
    rows = [
        (seed, label, 100 * alone, 100 * helped)
        for seed, *recalls in _of_pair(table, "per_class").itertuples(name=None)
        for label, (alone, helped) in enumerate(zip(*recalls, strict=True))
    ]
    found = pd.DataFrame(rows, columns=["seed", "label", *PAIR])
    found["recall"] = found[[*PAIR]].mean(axis=1)
    found["apart"] = found["recall"] - found.groupby("label")["recall"].transform("mean")
    return found.sort_values(by=["recall", "label", "seed"], ignore_index=True)


def shot_pictures(rows: pd.DataFrame, dataset: Dataset) -> list[tuple[Image, str]]:
    """Return the shots of some rows of `recall_by_shot`, as a panel of plots.plot_pictures."""
    found = []
    for row in rows.to_dict("records"):
        shot = few_shots(dataset, 1, row["seed"], row["label"]).open(0)
        recalls = " | ".join(f"{row[method]:.0f} %" for method in PAIR)
        found.append((shot, f"{dataset.classes[row['label']]}, seed {row['seed']}\n{recalls}"))
    return found


def recall_by_class(recalls: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return how far the shot matters for each class: mean, lowest and highest of its recalls.

    `recalls` is of `recall_by_shot`; the classes are sorted by their means.
    """
    rows = []
    for label in sorted(set(recalls["label"])):
        own = select(recalls, label=label)["recall"]
        row = {"class": classes[label], "mean": own.mean(), "lowest": own.min()}
        rows.append({**row, "highest": own.max()})
    return pd.DataFrame(sorted(rows, key=lambda row: row["mean"]))


def worse_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return for which seeds synthetic images hurt: a row per dataset and number of shots.

    The columns are dataset, shots, seeds, `worse`, how many of these had a lower top-1 with
    `dset+real` than with `real`, and `losses`: seed -> points lost, the largest first.
    """
    rows = []
    for name in dict.fromkeys(table["dataset"]):
        for shots, part in by_shots(select(table, dataset=name)):
            pairs = [*_of_pair(part, "top1").itertuples(name=None)]
            lost = {seed: 100 * (real - both) for seed, real, both in pairs if both < real}
            losses = dict(sorted(lost.items(), key=lambda one: -one[1]))
            row = {"dataset": name, "shots": shots, "seeds": len(pairs), "worse": len(lost)}
            rows += [{**row, "losses": losses}] if pairs else []
    return pd.DataFrame(rows, columns=["dataset", "shots", "seeds", "worse", "losses"])


def losses_text(losses: Mapping[int, float]) -> str:
    """Return points lost by seed in words: "2.50 (seed 3), 0.12 (seed 0)", or "none"."""
    return ", ".join(f"{value:.2f} (seed {seed})" for seed, value in losses.items()) or "none"


def confused_pairs(table: pd.DataFrame, classes: Sequence[str], count: int = 8) -> pd.DataFrame:
    """Return the `count` classes that are most often taken for another one, the most often first.

    `table` has the records of one dataset at one number of shots. The columns are `true`, `taken
    for`, and per method of PAIR the share of the true class's test images in percent, the mean over
    the seeds that have both. Order is by the mean of the two.
    """
    own = _of_pair(table, "confusion")
    matrices = [np.stack([np.asarray(one, float) for one in own[method]]) for method in PAIR]
    shares = [100 * (m / np.maximum(m.sum(2, keepdims=True), 1)).mean(0) for m in matrices]
    mean, indices = np.mean(shares, axis=0), range(len(classes))
    pairs = sorted(
        ((i, j) for i in indices for j in indices if i != j), key=lambda pair: -mean[pair]
    )
    rows = [(classes[i], classes[j], *(one[i, j] for one in shares)) for i, j in pairs[:count]]
    return pd.DataFrame(rows, columns=["true", "taken for", *PAIR])


def best_kept(table: pd.DataFrame) -> tuple[str, list[Predictions]]:
    """Return the best method of which test predictions are committed, and these, one for each seed.

    `table` has the records of one dataset at one number of shots. The best has the highest mean
    validation accuracy of those with two seeds or more; ("", []) where there is none.
    """
    kept: dict[str, list[Predictions]] = {}
    for row in table.to_dict("records"):
        known = read_committed(row["dataset"], int(row["shots"]))
        if row["artifacts"]["judge"] in known:
            kept.setdefault(row["method"], []).append(known[row["artifacts"]["judge"]])
    several = [method for method, own in kept.items() if len(own) > 1]
    if not several:
        return "", []
    best = best_by_validation(table, several)
    return best, kept[best]


def missed_images(predictions: Sequence[Predictions]) -> pd.DataFrame:
    """Return the test images that most classifiers miss, those missed by most and by far first.

    `predictions` are those of one method, one for each seed. The columns are image, the position in
    the test part, label, `taken`, the class most often named instead, `missed`, by how many of the
    `seeds`, and `margin`, by how much on average the wrong class's logit exceeded the next one's.
    """
    labels = predictions[0].labels
    classes = np.stack([one.classes for one in predictions])
    margins = np.stack([one.margins for one in predictions]).astype(float)
    wrong = classes != labels
    rows: list[dict[str, Any]] = [
        {
            "image": image,
            "label": int(labels[image]),
            "taken": int(np.bincount(classes[wrong[:, image], image]).argmax()),
            "missed": int(wrong[:, image].sum()),
            "seeds": len(wrong),
            "margin": float(margins[wrong[:, image], image].mean()),
        }
        for image in np.flatnonzero(wrong.mean(0) > MOST)
    ]
    found = pd.DataFrame(rows, columns=["image", "label", "taken", "missed", "seeds", "margin"])
    return found.sort_values(by=["missed", "margin"], ascending=False, ignore_index=True)


def missed_pictures(rows: pd.DataFrame, dataset: Dataset) -> list[tuple[Image, str]]:
    """Return the images of some rows of `missed_images`, as a panel of plots.plot_pictures."""
    return [
        (
            dataset.test.open(row["image"]),
            f"{dataset.classes[row['label']]}\nread: {dataset.classes[row['taken']]}\n"
            f"{row['missed']} of {row['seeds']} seeds",
        )
        for row in rows.to_dict("records")
    ]
