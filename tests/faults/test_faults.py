"""The faults of campaign.py that take a moment, on real processes; the script does all of them in
every engine.
"""

import multiprocessing
import types

import campaign
import disturb
import pytest
from tqdm.auto import tqdm

from datadream.results import benchmark_tables


@pytest.fixture(scope="module")
def common(folder, tiny):
    """Return what the cases have in common: shorter stages than the script's."""
    with pytest.MonkeyPatch.context() as patch:
        # Its first checkpoint would come after 200 steps.
        patch.setitem(disturb.SIGNS, "adapt", "adapt-*.partial")
        yield {
            "folder": folder,
            "overrides": {**tiny, "adapt.epochs": 60, "generate.images": 20, "classify.steps": 40},
        }


@pytest.fixture(scope="module")
def reference(common, tmp_path_factory):
    """Return (seconds, records and digests) of the run that nothing disturbs."""
    with campaign.boxed(
        tmp_path_factory.mktemp("reference") / "case", common, "one process"
    ) as box:
        box.finish()
        assert box.sound, box.notes
        return 1.0, disturb.records(box.store)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "name, stage",
    [
        ("kill -9 of the driver", "generate"),
        ("SIGTERM", "adapt"),
        ("artifact of another user", "generate"),
        ("artifact of another user", "train"),
        ("records of another user", "adapt"),
        ("guard of another user", "generate"),
    ],
)
def test_what_is_disturbed_and_started_again_has_the_same_records(
    common, reference, tmp_path, name, stage
):
    found = campaign.run_case(
        name, stage, "one process", tmp_path / "case", common, None, reference
    )
    assert found["survived"] and not found["notes"], found
    assert found["equal"] and found["bytes"]
    assert found["lost"] == pytest.approx(found["seconds"] - 1.0, abs=0.02)


@pytest.mark.cluster
def test_a_process_killed_while_it_draws_a_bar_holds_up_no_other(common, tmp_path, monkeypatch):
    # A forked process shares its parent's lock of progress bars, and SIGKILL releases none.
    lock = multiprocessing.Lock()
    lock.acquire()
    monkeypatch.setattr(tqdm, "_lock", lock, raising=False)
    monkeypatch.setattr(disturb, "LIMIT", 60)
    with campaign.boxed(tmp_path / "case", common, "one process") as box:
        box.finish()
    assert box.sound, box.notes


def test_a_case_that_is_not_met_or_ends_otherwise_has_not_survived(common, tmp_path):
    with campaign.boxed(tmp_path / "case", common, "one process") as box:
        (box.root / "notes.txt").write_text("...\nKeyError: 'x'\n")

        class Ended:
            exitcode, pid = 1, 0
            is_alive = join = staticmethod(lambda *args: False)

        assert not box.reaches("adapt", Ended)
        box.end(Ended, 0, 143)
    assert not box.sound and box.notes == [
        "the stage was not met",
        "exit status 1, not 0 or 143: KeyError: 'x'",
    ]


def test_every_fault_is_tried_in_one_stage_before_the_second_stage_of_any():
    every = types.SimpleNamespace(fault=None, stage=None, engine=None)
    results = {"cases": [], "commit": "now"}
    cases = campaign.pending(results, every)
    pairs = [(name, engine) for name, _, engine in cases]
    assert (
        len(set(cases))
        == len(cases)
        == results["planned"]
        == sum(len(e) * len(s) for _, e, s in campaign.FAULTS.values())
    )
    assert len(set(pairs[: len(set(pairs))])) == len(set(pairs))
    results["cases"] = [
        {**dict(zip(("fault", "stage", "engine"), case, strict=True)), "commit": "now"}
        for case in cases[5:]
    ]
    assert campaign.pending(results, every) == cases[:5]
    assert (
        campaign.pending(results, types.SimpleNamespace(fault=["NaN"], stage=["all"], engine=None))
        == []
    )


def test_what_another_commit_measured_is_kept_where_it_is_not_asked_for():
    every, only = (
        types.SimpleNamespace(fault=fault, stage=None, engine=None) for fault in (None, ["NaN"])
    )
    results = {"cases": [], "commit": "then"}
    cases = campaign.pending(results, every)
    results = {
        "cases": [
            {**dict(zip(("fault", "stage", "engine"), case, strict=True)), "commit": "then"}
            for case in cases
        ],
        "commit": "now",
    }
    again = campaign.pending(results, only)
    assert {fault for fault, _, _ in again} == {"NaN"} and len(results["cases"]) == len(
        cases
    ) - len(again)
    assert campaign.pending(results, every) == cases and not results["cases"]


def test_the_tables_count_what_the_script_wrote(tmp_path):
    case = {
        "survived": True,
        "equal": True,
        "bytes": True,
        "split": [],
        "apart": 0.0,
        "seconds": 3.0,
        "undisturbed": 2.0,
        "lost": 1.0,
        "load": 2.5,
        "notes": [],
    }
    cases = [
        {**case, "fault": "kill", "engine": "ray", "stage": stage} for stage in ("adapt", "train")
    ]
    cases.append(
        {
            **case,
            "fault": "NaN",
            "engine": "ray",
            "stage": "adapt",
            "survived": False,
            "equal": False,
            "bytes": False,
            "lost": -0.5,
        }
    )
    cases.append(
        {
            **case,
            "fault": "memory",
            "engine": "ray",
            "stage": "adapt",
            "equal": False,
            "split": ["went on with 2"],
            "apart": 8.31,
        }
    )
    results = {"cases": cases, "inputs": {"recipes": {"ConfigError": 3, "used": 1}}}
    table = benchmark_tables.fault_table(results).set_index("fault")
    assert (
        table.loc["kill", "survived"] == "2 of 2"
        and table.loc["NaN", "survived"] == "0 of 1"
        and table.loc["NaN", "records equal"] == "0 of 1"
    )
    assert (
        table.loc["memory", "records equal"]
        == "0 of 1; 1 with halved batches, 8.3 points apart at most"
    )
    assert (
        table.loc["kill", "in"] == "adapt, train"
        and table.loc["kill", "seconds lost"] == "1.0 to 1.0"
        and table.loc["NaN", "of"] == "2.0"
    )
    assert benchmark_tables.input_table(results).values.tolist() == [
        ["recipes", 4, "ConfigError (3), used (1)"]
    ]
    assert benchmark_tables.load_faults(tmp_path / "none.json") == {}
