"""The table of stages: a row is all that a stage needs to be made, planned, shared out, kept and
removed.
"""

import dataclasses
import json

import numpy as np
import pytest

from datadream import photos
from datadream.cli import main
from datadream.data.synthetic_set import read_synthetic_set
from datadream.engines import on_ray
from datadream.pipeline import stages
from datadream.pipeline.stages import STAGES, Cell, Piece, Stage
from datadream.results.records import load_records
from datadream.store.keys import stage_of_key
from datadream.study import plan as plan_module
from datadream.study import run
from datadream.study.plan import overview, plan


def mean_images(cell, label, made, folder, store):
    """Write the mean image of a class of the synthetic set."""
    images = read_synthetic_set(made["generate"][None])
    own = [np.asarray(images.open(i)) for i, y in enumerate(images.labels) if y == label]
    (folder / "mean.json").write_text(json.dumps(np.mean(own, 0).tolist()))


MEAN = Stage(
    "mean",
    parts=lambda cell: range(len(cell.dataset.classes)) if cell.method.generates else (),
    inputs=lambda cell, label: {"label": label, "synthetic": cell.key("generate")},
    build=mean_images,
    needs=("generate",),
    work=lambda cell, label: (0, 0, cell.recipe.generate.images),
)


@pytest.fixture
def with_means(monkeypatch):
    """Add a row after that of the synthetic set, for one test."""
    place = [stage.name for stage in STAGES].index("generate") + 1

    def add(row):
        rows = (*STAGES[:place], row, *STAGES[place:])
        monkeypatch.setattr(stages, "STAGES", rows)
        # Whoever goes through the table reads it where it is.
        for module in (on_ray, plan_module):
            monkeypatch.setattr(module, "STAGES", rows)
        return row

    return add


def test_a_stage_is_added_by_one_row(make, store, with_means, capsys, monkeypatch):
    with_means(MEAN)
    cells = [make("cls"), make("real")]
    table = plan(cells, store)
    assert (table["stage"] == "mean").sum() == 3 and not table["done"].any()
    assert "unknown" in overview(cells, store), "nobody has measured how long it takes"
    record = run.run(cells[0], store)
    run.run(cells[1], store)
    made = [key for name, key in record["artifacts"].items() if name.startswith("mean")]
    assert len(made) == 3 and all(map(store.done, made)) and "mean" in record["seconds"]
    assert list(record["artifacts"])[4:8] == ["generate", "mean0", "mean1", "mean2"]
    assert plan(cells, store)["done"].all() and len(load_records(store.records)) == 2
    monkeypatch.setenv("DATADREAM_STORE", str(store.root))
    assert main(["gc", "--yes", "--older-than", "0"]) == 0 and all(map(store.done, made))
    for file in store.records.iterdir():
        file.unlink()
    main(["gc", "--yes", "--older-than", "0"])
    assert not any(map(store.done, made)), "what no record refers to any more may go"


def test_a_row_says_how_a_cluster_shares_its_stage_out(make, store, with_means):
    pieces = {
        "pieces": lambda cell: [
            Piece(key, (label,), (cell.key("generate"),), part=label)
            for label, key in cell.keys_of("mean").items()
        ],
        "do": lambda cell, where, store: cell.make("mean", store, *where),
        "piece": "mean",
    }
    with_means(dataclasses.replace(MEAN, **pieces))
    todo = on_ray.tasks([make("base")], store)
    kinds = [task.kind for task in todo.values()]
    assert kinds == ["slice"] * 3 + ["mean"] * 3 + ["cell"]
    for task in todo.values():
        on_ray.work(task, store.address)
    assert [task.kind for task in on_ray.tasks([make("base")], store).values()] == ["cell"]
    assert plan([make("base")], store)["done"].all()


def test_photos_are_kept_with_every_stage_of_the_table(folder, tiny, store, with_means):
    with_means(MEAN)
    photos.train_and_keep(folder, store=store, shots=2, overrides=tiny)
    (note,) = store.kept.iterdir()
    kept = json.loads(note.read_text())["artifacts"]
    assert [name for name in kept if name.startswith("mean")] == ["mean0", "mean1", "mean2"]
    assert all(store.done(key) for name, key in kept.items() if name != "judge")


def test_a_cell_computes_each_key_once(make, dataset, monkeypatch):
    calls = []

    def counting(row):
        def inputs(cell, part):
            calls.append((row.name, part))
            return row.inputs(cell, part)

        return dataclasses.replace(row, inputs=inputs)

    monkeypatch.setattr(stages, "STAGES", tuple(map(counting, STAGES)))
    cell = Cell(make("cls+real"), dataset)
    assert cell.keys == cell.keys and len(calls) == len(set(calls)) == len(cell.keys)
    assert all(stage_of_key(key) in {row.name for row in STAGES} for key in cell.keys.values())


def test_an_artifact_of_no_stage_is_not_ours_to_remove(store, monkeypatch):
    (store.root / "holiday-0123456789abcdef").mkdir(parents=True)
    (store.root / "adapt-0123456789abcdef").mkdir()
    monkeypatch.setenv("DATADREAM_STORE", str(store.root))
    assert main(["gc", "--yes", "--older-than", "0"]) == 0
    assert (store.root / "holiday-0123456789abcdef").exists()
    assert not (store.root / "adapt-0123456789abcdef").exists()
