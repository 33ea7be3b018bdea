"""A submission: what is packed, what is refused, and where it stands on the leaderboard."""

import copy
import json

import pytest

from datadream import cli, paths
from datadream.errors import ConfigError, DataError
from datadream.methods.base import Method
from datadream.methods.registry import METHODS, register
from datadream.publish import freeze, submission
from datadream.results.record import read_record, record_key
from datadream.study import run

CODE = "https://example.org/somebody/own"


@pytest.fixture(scope="module")
def head():
    return {
        "format": 1, "name": "own", "code": CODE, "author": "Somebody", "reasons": {},
        "methods": {"own": {"title": "Own", "cite": "", "real": False}},
    }  # fmt: skip


def record(seed, method="own", dataset="mnist", shots=1, **changes):
    """Return a record as a cell writes it, of the mini profile."""
    from datadream.config import as_dict
    from datadream.methods.recipes import recipe

    own = as_dict(recipe("mini", dataset=dataset, shots=shots, seed=seed)) | {"method": method}
    own |= changes
    artifacts = {"judge": f"judge-{seed:016d}"}
    low, high = submission.wilson(3, 4)
    test = {"top1": 0.75, "low": low, "high": high, "total": 4, "per_class": [0.5, 1.0]}
    test["confusion"] = [[1, 1], [0, 2]]
    found = {
        "recipe": own, "artifacts": artifacts, "key": record_key(own, artifacts),
        "result": {"test": test, "val": test}, "curve": [], "seconds": {"judge": 1.0},
        "commits": {}, "created": "2026-11-27T00:00:00Z", "commit": "0" * 40, "dirty": False,
        "versions": {}, "python": "3.12", "device": "a CPU",
    }  # fmt: skip
    return copy.deepcopy(found)


def test_a_good_submission_has_no_problem(head):
    assert submission.problems(head, [record(seed) for seed in range(3)]) == []


def changed(record_, path, value):
    own = record_
    for name in path[:-1]:
        own = own[name]
    own[path[-1]] = value
    return record_


WRONG = {
    "a better number": (("result", "test", "top1"), 0.9, "does not follow from its confusions"),
    "a narrower interval": (("result", "test", "low"), 0.74, "is not Wilson's"),
    "another recipe": (("recipe", "adapt.lr"), 1.0, "not that of its recipe"),
    "another method": (("recipe", "method"), "real", "which submission.json does not name"),
    "no result": (("result",), None, "not a record of this package"),
    "a broken matrix": (("result", "test", "confusion"), [[1], []], "not a record of this package"),
    "a strange profile": (("recipe", "profile"), "mega", "profile='mega'; accepted:"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_was_changed_is_named(head, what):
    path, value, said = WRONG[what]
    records = [record(0), changed(record(1), path, value), record(2)]
    found = submission.problems(head, records)
    assert any("record 2" in why and said in why for why in found), found


def test_the_test_set_may_choose_nothing(head):
    records = [record(seed, protocol="released") for seed in range(3)]
    assert "chooses on test images" in submission.problems(head, records)[0]


def test_what_all_methods_share_needs_a_reason_to_differ(head):
    records = [record(seed, **{"classify.epochs": 99}) for seed in range(3)]
    (first, *_) = submission.problems(head, records)
    assert "classify.epochs=99 where all methods have" in first
    reasons = {"classify.epochs": "A head on frozen features converges later."}
    assert submission.problems(head | {"reasons": reasons}, records) == []


def test_a_setting_needs_its_seeds_once_and_for_all_methods(head):
    assert "2 seeds; give 3" in submission.problems(head, [record(0), record(1)])[0]
    twice = [record(seed) for seed in (0, 1, 2, 2)]
    assert "there are 2 records" in submission.problems(head, twice)[0]
    two = head | {"methods": {**head["methods"], "own+real": {"title": "O", "cite": "", "real": 1}}}
    some = [record(s) for s in range(3)] + [record(s, "own+real") for s in range(2)]
    assert "own+real lacks the seeds [2]" in submission.problems(two, some)[0]
    assert "there is no record of own" in submission.problems(head, [])[0]


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("format", 2, "this version reads 1"),
        ("name", "../own", "lower-case letters"),
        ("code", "see my site", "web address"),
        ("methods", {}, "name -> {title, cite, real}"),
        ("reasons", {"classify.steps": ""}, "setting -> sentence"),
        ("author", None, "give str"),
    ],
)
def test_a_wrong_head_is_named(head, field, value, said):
    assert said in submission.problems(head | {field: value}, [record(0)])[0]


@pytest.mark.parametrize("head_", [None, [], "x"])
def test_a_head_that_is_no_object_is_named(head_):
    assert submission.problems(head_, []) == ["submission.json holds no object"]


def test_the_committed_study_would_pass_but_for_its_names():
    """So the checks hold for what this package writes, in all the versions that wrote it."""
    lines = paths.paths()["kept_records"].read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    everything = {"methods": dict.fromkeys(METHODS, 1), "reasons": dict.fromkeys(
        submission.COMMON, "an ablation")}  # fmt: skip
    looks = (submission._wrong_record, submission._unexplained)
    assert [why for look in looks for one in kept for why in look(one, everything)] == []


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Let contrib lie in an empty folder, and everything else where it is."""
    real = paths.paths()
    monkeypatch.setattr(submission, "paths", lambda: real | {"contrib": tmp_path / "contrib"})
    return tmp_path


def test_a_method_of_one_s_own_goes_from_its_cells_to_the_leaderboard(
    make, store, home, capsys, monkeypatch
):
    """Its cells are tiny, so the settings that differ from the profile's get their reasons."""
    register(Method("own", "Somebody's own", "#882255"))
    try:
        for seed in range(3):
            run.run(make("own", seed=seed), store)
        monkeypatch.setattr(submission, "open_store", lambda: store)
        with pytest.raises(ConfigError, match="and no reason is given"):
            submission.submit(["own"], CODE)
        assert not (home / "contrib").exists()
        reasons = [f"--reason={name}=tiny models" for name in submission.COMMON]
        assert cli.main(["submit", "own", "--code", CODE, "--author", "Somebody", *reasons]) == 0
    finally:
        METHODS.unregister("own")
    folder = home / "contrib" / "own"
    assert capsys.readouterr().out.strip() == str(folder)
    (first, *others) = submission.read_submission(folder)[1]
    assert len(others) == 2 and read_record(store.records / f"{first['key']}.json") == first
    # Whoever checks has not installed the method.
    assert cli.main(["check-submission"]) == 0 and capsys.readouterr().out.endswith(": ok\n")
    board = submission.leaderboard()
    (own,) = board.loc[board["contributed"] == "Somebody"].to_dict("records")
    assert own["title"] == "Somebody's own" and own["seeds"] == 3 and own["code"] == CODE
    assert set(board.loc[board["method"] == "real", "contributed"]) == {""}
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace('"top1": ', '"top1": 1'))
    assert cli.main(["check-submission", str(folder)]) == 1
    assert "does not follow" in capsys.readouterr().out


def test_a_folder_that_is_no_submission_is_named(home, tmp_path, capsys):
    with pytest.raises(DataError, match="is not a submission"):
        submission.check(tmp_path)
    assert cli.main(["check-submission", str(tmp_path)]) == 2
    assert "datadream submit" in capsys.readouterr().err


def test_other_test_images_than_the_study_s_are_named():
    (found, *_) = submission._other_images([record(0)])
    assert "judged on 4 test images, where the study has" in found


def test_what_is_in_contrib_is_sound():
    for folder in submission.submissions():
        assert submission.check(folder) == [], folder


def test_what_many_records_have_is_said_once_with_the_way_out(head):
    records = [record(seed, **{"classify.epochs": 99}) for seed in range(2)]
    (found, seeds) = submission.problems(head, records)
    assert found.startswith("2 records, the first 1: classify.epochs=99 where all methods have 10")
    assert "--reason classify.epochs=" in found
    assert seeds == "mnist, 1 shot: 2 seeds; give 3 or more", "both at once"


def contribute(home, head, records):
    """Write a submission to the contrib of `home`."""
    folder = home / "contrib" / head["name"]
    folder.mkdir(parents=True)
    (folder / "submission.json").write_text(json.dumps(head))
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def test_rows_that_agree_over_seeds_have_wilson_s_interval(home, head):
    """As zero-shot CLIP has: Student's would have no width."""
    contribute(home, head, [record(seed, shots=16) for seed in range(3)])
    board = submission.leaderboard().set_index("method")
    low, high = submission.wilson(3, 4)
    assert board.loc["own", ["top1", "low", "high"]].tolist() == [75.0, 100 * low, 100 * high]
    assert board.loc["own", "title"] == "Own", "not installed, and named by its submission"
    clip = board.loc["clip"]
    assert (clip["low"] < clip["top1"]).all() and (clip["high"] > clip["top1"]).all()


def test_a_method_that_is_not_installed_and_has_no_title_goes_by_its_name():
    from datadream.results.records import summary, tidy

    (row,) = summary(tidy([record(seed, method="gone") for seed in range(3)])).to_dict("records")
    assert row["title"] == "gone" and row["seeds"] == 3


def test_without_a_committed_study_a_submission_is_checked_and_shown_alone(
    home, head, monkeypatch, capsys
):
    """As beside a package that was installed with pip."""
    away = paths.paths() | {"kept_records": home / "none.jsonl"}
    monkeypatch.setattr(freeze, "paths", lambda: away)
    assert submission.leaderboard().empty
    contribute(home, head, [record(seed) for seed in range(3)])
    assert cli.main(["check-submission"]) == 0 and capsys.readouterr().out.endswith(": ok\n")
    assert submission.leaderboard()["title"].tolist() == ["Own"]


def test_the_reasons_stand_on_the_leaderboard(home, head):
    why = {"classify.epochs": "it needs <b>more</b>"}
    records = [record(seed, shots=16, **{"classify.epochs": 99}) for seed in range(3)]
    contribute(home, head | {"reasons": why}, records)
    board = submission.leaderboard().set_index("method")
    assert board.loc["own", "reasons"] == (("classify.epochs", "it needs <b>more</b>"),)
    assert set(board.loc[board["code"] == "", "reasons"]) == {()}
