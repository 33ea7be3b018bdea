"""gc: what is listed, what is never touched, and when it asks."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from datadream import photos
from datadream.cli import main
from datadream.errors import ConfigError, DataError
from datadream.pipeline import train
from datadream.store.artifacts import Store
from datadream.store.gc import clear, listing, unused
from datadream.store.open import open_store
from datadream.study import run

LONE = "generate-0123456789abcdef"


@pytest.fixture
def filled(make, store):
    """Return (store, record): a finished cell, an artifact that no record names, an unfinished
    one, and what is not gc's business.
    """
    record = run.run(make("real"), store)
    store.make(LONE, {}, lambda folder: (folder / "a.bin").write_bytes(bytes(500_000)))
    work = store.root / "adapt-0123456789abcdef.partial"
    work.mkdir()
    (work / "checkpoint.safetensors").write_bytes(bytes(1000))
    (store.root / "demonstration").mkdir()
    (store.root / "notes.txt").write_text("mine")
    return store, record


def names(entries, kind):
    return [entry.path.name for entry in entries if entry.kind == kind]


def test_what_no_record_refers_to_is_listed_with_its_size(filled):
    store, record = filled
    found = unused(store, days=0)
    assert names(found, "artifact") == [LONE] and names(found, "unfinished") == [
        "adapt-0123456789abcdef.partial"
    ]
    assert set(names(found, "lock")) == {
        f".{key}.lock" for key in [LONE, *record["artifacts"].values()]
    }
    sizes = {entry.path.name: entry.size for entry in found}
    assert sizes[LONE] > 500_000 and sizes["adapt-0123456789abcdef.partial"] == 1000
    text = listing(store, found)
    assert (
        f"0.50 MB  artifact    {LONE}" in text
        and "files that no process holds" in text
        and text.splitlines()[-1].startswith("0.50 MB in ")
    )


def test_what_is_removed_is_gone_and_the_rest_is_as_it_was(filled, make):
    store, record = filled
    clear(store, unused(store, days=0), days=0)
    assert sorted(p.name for p in store.root.iterdir()) == sorted(
        [
            *set(record["artifacts"].values()),
            ".clearing.lock",
            "demonstration",
            "notes.txt",
            "records",
        ]
    )
    assert unused(store, days=0) == [] and run.run(make("real"), store) == record


def test_the_kept_classifier_has_no_record_and_stays(folder, tiny, store):
    _made, _trained, _, _ = photos.train_and_keep(folder, store=store, shots=0, overrides=tiny)
    assert not store.records.exists() and names(unused(store, days=0), "artifact") == []
    assert len(list(store.kept.glob("*.json"))) == 1


def test_a_damaged_record_stops_it(filled):
    store, _ = filled
    (file,) = store.records.glob("*.json")
    for content in ("", "null", '{"artifacts": 5}', "[" * 100_000):
        file.write_text(content)
        with pytest.raises(DataError, match="nobody knows what it needs"):
            unused(store, days=0)
    assert store.done(LONE)


def test_nothing_is_listed_while_a_process_makes_something(filled):
    store, _ = filled
    with (
        FileLock(store.root / f".{LONE}.lock"),
        pytest.raises(ConfigError, match=f"a process is making {LONE}"),
    ):
        unused(store, days=0)


def test_a_link_is_removed_and_what_it_leads_to_is_not(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("mine")
    store.root.mkdir()
    store.folder(LONE).symlink_to(elsewhere)
    (entry,) = unused(store, days=0)
    assert entry.size < 500
    clear(store, [entry], days=0)
    assert not store.folder(LONE).is_symlink() and (elsewhere / "a.txt").read_text() == "mine"


def test_an_empty_or_missing_store_has_nothing(store):
    assert unused(store, days=0) == [] and "0.00 MB in 0" in listing(store, [])


@pytest.mark.parametrize(
    "arguments, terminal, answer, gone, words",
    [
        ([], False, None, False, "no terminal to ask on; --yes"),
        (["--yes"], False, None, True, "removed 2"),
        (["--yes"], True, None, True, "removed 2"),
        ([], True, "y", True, "removed 2"),
        ([], True, "n", False, "nothing was removed"),
        ([], True, "", False, "nothing was removed"),
    ],
)
def test_the_command_asks_before_it_removes(
    monkeypatch, capsys, arguments, terminal, answer, gone, words
):
    store, asked = open_store(), []
    store.make(LONE, {}, lambda folder: (folder / "a.txt").write_text("x"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    assert main(["gc", "--older-than", "0", *arguments]) == 0
    assert store.folder(LONE).exists() != gone and len(asked) == (answer is not None)
    printed = capsys.readouterr().out
    assert LONE in printed and words in printed


def test_a_pipe_is_no_terminal(tmp_path):
    open_store().make(LONE, {}, lambda folder: (folder / "a.txt").write_text("x"))
    done = subprocess.run(
        [sys.executable, "-m", "datadream", "gc", "--older-than", "0"],
        input="y\n",
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and "nothing was removed: no terminal" in done.stdout
        and open_store().done(LONE)
    )


def test_a_record_of_an_older_version_still_protects(store):
    store.make(LONE, {}, lambda folder: (folder / "a.txt").write_text("x"))
    store.records.mkdir()
    (store.records / "record-1.json").write_text(json.dumps({"artifacts": {"generate": LONE}}))
    assert names(unused(store, days=0), "artifact") == []


def test_what_is_younger_than_two_weeks_is_spared(filled, capsys):
    store, _ = filled
    assert {entry.kind for entry in unused(store)} == {"lock"}
    assert main(["gc", "--yes"]) == 0 and store.done(LONE)
    old = time.time() - 15 * 86400
    for path in [store.folder(LONE), *store.folder(LONE).iterdir()]:
        os.utime(path, (old, old))
    assert names(unused(store), "artifact") == [LONE] and not names(unused(store), "unfinished")
    assert main(["gc", "--yes"]) == 0 and not store.folder(LONE).exists()


def test_a_negative_age_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gc", "--older-than", "-1"])
    assert ended.value.code == 2 and "0 or more" in capsys.readouterr().err


# While a study runs.


def test_nothing_is_listed_between_two_stages_of_a_study(filled, make, monkeypatch):
    """No lock of a stage is held then, and what the study has made so far has no record."""
    store, real, refused = filled[0], train.train, []

    def between(*args):
        with pytest.raises(ConfigError, match="a study runs in .*; wait for it to end"):
            unused(store, days=0)
        refused.append(1)
        return real(*args)

    monkeypatch.setattr(train, "train", between)
    record = run.run(make("dset+real"), store)
    assert refused and set(record["artifacts"].values()).isdisjoint(
        names(unused(store, days=0), "artifact")
    )


def test_what_a_study_has_begun_to_need_since_the_list_is_not_removed(filled, make):
    store, record = filled
    record = run.run(make("dset"), store)
    (store.records / f"{record['key']}.json").unlink()
    listed = unused(store, days=0)
    assert record["artifacts"]["generate"] in names(listed, "artifact")
    with store.in_use(), pytest.raises(ConfigError, match="a study runs"):
        clear(store, listed, days=0)
    again = run.run(make("dset"), store)  # it finds what was listed
    clear(store, listed, days=0)
    assert (
        all(store.done(key) for key in again["artifacts"].values())
        and not store.folder(LONE).exists()
    )


def test_a_study_that_begins_waits_for_a_removal_to_end(store):
    begun = []
    thread = threading.Thread(target=lambda: begun.append(store.in_use().__enter__()))
    with store.lock("clearing"):
        thread.start()
        time.sleep(0.2)
        assert begun == [] and not list(store.root.glob(".in-use-*"))
    thread.join(10)
    assert len(begun) == 1


def test_the_mark_of_a_killed_study_is_a_lock_that_nobody_holds(store):
    with store.in_use():
        assert len(list(store.root.glob(".in-use-*.lock"))) == 1
    assert not list(store.root.glob(".in-use-*"))
    (store.root / ".in-use-0123abcd.lock").touch()
    (store.root / ".generate-0123456789abcdef-2-10.lock").touch()
    assert names(unused(store, days=0), "lock") == [
        ".generate-0123456789abcdef-2-10.lock",
        ".in-use-0123abcd.lock",
    ]


def test_nothing_is_listed_while_a_slice_is_made(filled):
    store, _ = filled
    with (
        store.lock(f"{LONE}-2-0"),
        pytest.raises(ConfigError, match=f"a process is making {LONE}-2-0"),
    ):
        unused(store, days=0)


def test_a_store_that_cannot_be_marked_can_be_read(store, monkeypatch):
    def closed(self, name):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Store, "lock", closed)
    with store.in_use():
        pass
