"""Artifact folders: what counts as done, what a crash leaves, and what the manifest says."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, Killed, dies_at, make_at_once

from datadream.paths import part_of
from datadream.publish.export import export
from datadream.store import artifacts as package
from datadream.store import files
from datadream.store.artifacts import Store
from datadream.store.files import StoreError, digest, write_json
from datadream.store.open import open_store
from datadream.store.provenance import RESULTS, provenance
from datadream.study import run


def build(folder, text="content"):
    """Write a file and a file in a sub-folder."""
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)
    (folder / "deep" / "b.txt").write_text(text * 2)


def test_an_artifact_is_made_once(store):
    calls = []
    for _ in range(3):
        folder = store.make("stage-1", {"seed": 1}, lambda work: (calls.append(work), build(work)))
    assert len(calls) == 1 and folder == store.folder("stage-1") == store.root / "stage-1"
    assert (folder / "deep" / "b.txt").read_text() == "contentcontent"
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == ["stage-1"]


def test_the_manifest_says_what_where_and_when(store):
    folder = store.make("stage-1", {"seed": 1, "names": ["a"]}, build)
    manifest = store.manifest("stage-1")
    assert manifest["key"] == "stage-1" and manifest["inputs"] == {"seed": 1, "names": ["a"]}
    assert manifest["files"] == {
        name: [(folder / name).stat().st_size, digest(folder / name)]
        for name in ("a.txt", "deep/b.txt")
    }
    assert manifest["seconds"] >= 0
    time.strptime(manifest["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert provenance().items() <= manifest.items()
    assert {"commit", "dirty", "versions", "python", "device"} <= set(manifest)
    assert {"torch", "diffusers", "transformers", "peft", "open_clip_torch"} <= set(
        manifest["versions"]
    )


def test_nothing_is_done_in_an_empty_store(store):
    assert not store.done("stage-1") and store.manifest("stage-1") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.txt").write_text("cont"),
        lambda folder: (folder / "a.txt").write_text(""),
        lambda folder: (folder / "deep" / "b.txt").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text()[:100]
        ),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("null"),
        lambda folder: (folder / "manifest.json").write_text('{"key": "of another version"}'),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    ],
    ids=[
        "truncated",
        "empty",
        "deleted",
        "no manifest",
        "empty manifest",
        "half a manifest",
        "{}",
        "null",
        "no files",
        "no text",
    ],
)
def test_a_damaged_artifact_is_not_done_and_is_made_again(store, damage):
    folder = store.make("stage-1", {}, build)
    damage(folder)
    assert not store.done("stage-1")
    calls = []
    assert store.make("stage-1", {}, lambda work: (calls.append(1), build(work))) == folder
    assert calls and store.done("stage-1") and (folder / "a.txt").read_text() == "content"


def test_a_failed_build_leaves_nothing_that_looks_done(store):
    def fail(work):
        build(work)
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        store.make("stage-1", {}, fail)
    assert not store.done("stage-1") and not store.folder("stage-1").exists()


def test_a_killed_build_finds_what_it_left(store):
    def half(work):
        (work / "a.txt").write_text("first half")
        raise Killed

    def rest(work):
        assert (work / "a.txt").read_text() == "first half"
        build(work)

    with pytest.raises(Killed):
        store.make("stage-1", {}, half)
    store.make("stage-1", {}, rest)
    assert store.done("stage-1") and not list(store.root.glob("*.partial"))


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_at_the_very_end_is_repaired(store, monkeypatch, call):
    """The two last acts: the manifest takes its name, and then the folder."""
    with monkeypatch.context() as patch:
        patch.setattr(package.os, "replace", dies_at(os.replace, call))
        with pytest.raises(Killed):
            store.make("stage-1", {}, build)
    assert not store.done("stage-1")
    folder = store.make("stage-1", {}, build)
    assert store.done("stage-1"), "what `make` returns is done"
    assert set(store.manifest("stage-1")["files"]) == {"a.txt", "deep/b.txt"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep", "manifest.json"]


def test_half_written_files_do_not_enter_an_artifact(store):
    """A file is written as <name>.<32 hex>.part and renamed; a kill may leave the part."""

    def killed(work):
        Path(part_of(work / "state.safetensors")).write_text("half")
        raise Killed

    with pytest.raises(Killed):
        store.make("stage-1", {}, killed)
    folder = store.make("stage-1", {}, build)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep", "manifest.json"]


def test_two_keys_do_not_share_a_folder(store):
    one, other = (
        store.make("stage-1", {}, build),
        store.make("stage-2", {}, lambda work: build(work, "other")),
    )
    assert (one / "a.txt").read_text() == "content" and (other / "a.txt").read_text() == "other"


def test_two_stores_see_the_same_artifacts(store):
    store.make("stage-1", {}, build)
    assert Store(store.root).done("stage-1")
    assert Store(store.root).make(
        "stage-1", {}, lambda work: pytest.fail("it is done")
    ) == store.folder("stage-1")


def test_the_store_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_STORE", str(tmp_path / "elsewhere"))
    assert open_store().make("stage-1", {}, build) == tmp_path / "elsewhere" / "stage-1"


def test_two_processes_that_need_one_artifact_make_it_once(tmp_path):
    """Seeds and named runs run at once and share stages: zero-shot CLIP has no seed, and two
    runs may have a seed in common.
    """
    made, folders = make_at_once(tmp_path, tmp_path / "store")
    assert made == 1 and set(folders) == {tmp_path / "store" / "stage-1"}


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})
    with monkeypatch.context() as patch:
        patch.setattr(package.os, "replace", dies_at(os.replace, 1))
        with pytest.raises(Killed):
            write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError):
        # NaN is no JSON; other programs could not read it.
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_the_digest_is_sha_256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        digest(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# Prints what provenance finds, each time that it is asked for on standard input.
ASKED = """
import json, sys
from datadream.store.provenance import provenance
print("ready", flush=True)
for _ in sys.stdin:
    print(json.dumps(provenance.__wrapped__()), flush=True)  # past the cache of this process
"""


@contextlib.contextmanager
def copied_package(folder):
    """Copy what provenance needs of the package, as a wheel would install it, into a folder; give
    a function that returns what is found there.
    """
    package = folder / "datadream"
    for name in ("__init__.py", "store/__init__.py", "store/provenance.py", "store/cores.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes((ROOT / "datadream" / name).read_bytes())
    with subprocess.Popen(
        [sys.executable, "-c", ASKED], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"

        def ask():
            process.stdin.write("\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
    assert not process.returncode


def test_an_installed_package_has_no_commit_and_says_so(tmp_path):
    """Its environment lies in a repository of the user's, whose commit says nothing of it."""
    with copied_package(tmp_path / ".venv") as ask:
        found = ask()
        assert found["commit"] == "unknown" and found["dirty"] is False
        assert found["versions"]["torch"]
        for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
            who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
            subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
        assert ask() == found
    assert found["source"].startswith("installed, version ")


def test_the_commit_is_that_of_the_checkout_wherever_the_runs_are(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    found = provenance.__wrapped__()  # past the cache of this process
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["source"] == "checkout"


def test_only_a_change_of_the_code_makes_a_checkout_dirty(tmp_path):
    """Not the results that `keep` wrote after the commit: the next piece of a study has them."""
    kept = [tmp_path / folder / "file" for folder in RESULTS]
    other = tmp_path / "notebooks" / "study.yaml"
    for file in (*kept, other):
        file.parent.mkdir(parents=True)
        file.write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    with copied_package(tmp_path) as ask:
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "own"]):
            subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
        for file in kept:
            file.write_text("{}")
        assert ask()["dirty"] is False
        other.write_text("runs: {}")
        assert ask()["dirty"] is True


def test_provenance_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance.__wrapped__()
    assert found["commit"] == "unknown" and found["dirty"] is False and found["versions"]["torch"]
    assert "git cannot be run (No such file" in found["source"]


def test_a_package_without_metadata_is_no_error(monkeypatch):
    monkeypatch.setattr("datadream.store.provenance.PACKAGES", ("torch", "no-such-package"))
    assert provenance.__wrapped__()["versions"]["no-such-package"] == "unknown"


# Files whose bytes changed: the digests are looked at once a process.


def another_process(monkeypatch):
    """Forget which digests were found right, as a new process has."""
    monkeypatch.setattr(package, "verified", {})


def flip(file, place=0):
    """Change one bit and nothing else, not even the time."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_one_flipped_bit_is_noticed_and_only_that_artifact_is_made_again(store, monkeypatch):
    folder, other = store.make("stage-1", {}, build), store.make("stage-2", {}, build)
    flip(folder / "deep" / "b.txt")
    another_process(monkeypatch)
    assert store.whole("stage-1") and not store.done("stage-1") and store.done("stage-2")
    calls = []
    for key in ("stage-1", "stage-2"):
        store.make(key, {}, lambda work: (calls.append(work.name), build(work)))
    assert calls == ["stage-1.partial"] and store.done("stage-1")
    assert (
        (folder / "deep" / "b.txt").read_text()
        == (other / "deep" / "b.txt").read_text()
        == "contentcontent"
    )


def test_digests_are_computed_once_a_process_and_again_for_a_file_that_was_touched(
    store, monkeypatch
):
    folder, seen = store.make("stage-1", {}, build), []
    monkeypatch.setattr(files, "digest", lambda path: seen.append(path.name) or digest(path))
    assert store.done("stage-1") and not seen, "the process that wrote it knows them"
    another_process(monkeypatch)
    assert all(store.done("stage-1") for _ in range(3)) and sorted(seen) == ["a.txt", "b.txt"]
    (folder / "a.txt").write_text("contenu")
    assert not store.done("stage-1")


def test_a_damaged_artifact_that_is_a_link_loses_the_link_and_not_what_it_leads_to(store, tmp_path):
    elsewhere = store.make("stage-1", {}, build).rename(tmp_path / "elsewhere")
    store.folder("stage-1").symlink_to(elsewhere)
    assert store.done("stage-1")
    (elsewhere / "a.txt").write_text("short")
    assert (
        not store.make("stage-1", {}, build).is_symlink()
        and (elsewhere / "a.txt").read_text() == "short"
    )


# A disk that is full, or closed.


def contents(store):
    """Return file -> digest of all finished artifacts, each of which must be sound, and of the
    records without their times.
    """
    package.verified.clear()
    keys = [p.name for p in store.root.glob("*-*") if p.is_dir() and p.suffix != ".partial"]
    assert all(store.done(key) for key in keys)
    return {
        f"{key}/{name}": sha
        for key in keys
        for name, (_, sha) in store.manifest(key)["files"].items()
    }


def results(store):
    return [
        {
            name: json.loads(file.read_text())[name]
            for name in ("recipe", "result", "curve", "artifacts")
        }
        for file in store.records.glob("*.json")
    ]


@pytest.fixture
def disk(tmp_path):
    """Return mount(options): a small file system in memory at the place of the store, mounted
    with or changed to these options.
    """
    place = tmp_path / "artifacts"
    place.mkdir()

    def mount(options):
        way = (
            ["-o", f"remount,{options}"]
            if place.is_mount()
            else ["-t", "tmpfs", "-o", options, "tmpfs"]
        )
        done = (
            subprocess.run(["mount", *way, str(place)], capture_output=True, text=True)
            if shutil.which("mount")
            else None
        )
        if not done or done.returncode:
            pytest.skip("no file system can be mounted here")

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """Return (recipe, contents, results) of a cell made on a disk with room."""
    store, recipe = Store(tmp_path_factory.mktemp("whole")), make("dset+real")
    run.run(recipe, store)
    return recipe, contents(store), results(store)


def test_a_full_disk_is_one_error_and_with_more_room_the_run_goes_on_to_the_same_bytes(
    whole, disk, store
):
    failures, sizes = 0, [24, 48, 72, 96, 128, 192, 256, 512, 1024, 2048, 4096]  # KiB
    for size in sizes:
        disk(f"size={size}k")
        try:
            run.run(whole[0], store)
            break
        except StoreError as error:
            failures += 1
            assert (
                "the disk is full" in str(error)
                and "DATADREAM_STORE" in str(error)
                and "\n" not in str(error)
            )
            contents(store)
    assert (
        failures >= 3
        and contents(store) == whole[1]
        and results(store) == whole[2]
        and not list(store.root.glob("*.partial"))
    )


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_a_limit_on_the_size_of_files_is_the_same_error(whole, store, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StoreError, match="a file may not become that large here"):
            run.run(whole[0], store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    contents(store)
    run.run(whole[0], store)
    assert contents(store) == whole[1] and results(store) == whole[2]


def test_a_read_only_store_is_read_and_not_written(whole, disk, store, make):
    disk("size=8m")
    first = run.run(whole[0], store)
    disk("ro")
    package.verified.clear()
    assert run.run(whole[0], store) == first, "what is there needs no writing"
    for recipe in (make("cls"), make("clip")):
        with pytest.raises(
            StoreError, match="cannot be written.*Read-only file system.*DATADREAM_STORE"
        ):
            run.run(recipe, store)
    disk("rw")
    assert contents(store) == whole[1]
    run.run(make("clip"), store)


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_a_store_without_the_right_to_write_is_the_same_error(store):
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written.*Permission denied"):
        store.make("stage-1", {}, build)


def test_an_error_that_is_not_about_the_store_stays_what_it_is(store):
    def elsewhere(work):
        raise PermissionError(13, "Permission denied", "/elsewhere/photo.jpg")

    for error in (PermissionError, FileNotFoundError):
        with pytest.raises(error):
            store.make(
                "stage-1",
                {},
                elsewhere if error is PermissionError else lambda work: open(work / "missing"),
            )


def test_an_export_to_a_full_disk_leaves_nothing_that_looks_whole(whole, disk, tmp_path):
    full = Store(tmp_path / "room")
    key = run.run(whole[0], full)["artifacts"]["generate"]
    disk("size=8k")
    with pytest.raises(StoreError, match="the disk is full.*choose another target"):
        export(key, tmp_path / "artifacts" / "out", ["imagefolder"], full)
    assert not (tmp_path / "artifacts" / "out" / "imagefolder").exists()
    disk("size=1m")
    assert (
        len(
            list(
                export(key, tmp_path / "artifacts" / "out", ["imagefolder"], full)[0].rglob("*.png")
            )
        )
        == 15
    )


def test_two_that_write_one_record_leave_a_whole_one_and_nothing_else(tmp_path):
    """Two studies may end the same cell at the same time."""

    def write(writer):
        for i in range(200):
            write_json(tmp_path / "record.json", {"writer": writer, "values": [i] * 200})

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, writer) for writer in range(4)]:
            while not done.done():
                with contextlib.suppress(FileNotFoundError):  # the first one is not written yet
                    assert len(json.loads((tmp_path / "record.json").read_text())["values"]) == 200
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    "make_wrong, what",
    [(Path.mkdir, "folder"), (lambda lock: lock.symlink_to(lock.parent / "elsewhere"), "link")],
)
def test_what_lies_in_a_locks_place_is_named(tmp_path, make_wrong, what):
    make_wrong(tmp_path / ".draw-1.lock")
    with (
        pytest.raises(StoreError, match=rf"\.draw-1\.lock is a {what}.*remove it"),
        Store(tmp_path).lock("draw-1"),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_another_process_finished_meanwhile_is_not_taken_apart(store, monkeypatch):
    """A worker that found an artifact missing, and comes to salvage it when it is whole."""
    folder = store.make("stage-1", {}, build)
    another_process(monkeypatch)
    store.salvage("stage-1")
    assert (
        store.done("stage-1") and (folder / "a.txt").exists() and not store.work("stage-1").exists()
    )


def test_what_is_whole_of_a_damaged_artifact_is_there_for_its_build(store, monkeypatch):
    folder, found = store.make("stage-1", {}, build), []
    flip(folder / "a.txt")
    another_process(monkeypatch)
    store.make(
        "stage-1",
        {},
        lambda work: (
            found.extend(sorted(str(p.relative_to(work)) for p in work.rglob("*.txt"))),
            build(work),
        ),
    )
    assert found == ["deep/b.txt"] and store.done("stage-1")
