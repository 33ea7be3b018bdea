"""A store on an address: the bytes and records of a folder, what a kill or damage costs, two
machines, and what gc removes.
"""

import importlib.util
import json
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import fsspec
import pytest
from conftest import Killed, dies_at, make_at_once
from fsspec.registry import known_implementations

from datadream.cli import main
from datadream.doctor import examine
from datadream.engines import on_ray
from datadream.errors import ConfigError
from datadream.paths import copies, paths, relative_to_home
from datadream.pipeline import generate
from datadream.pipeline.stages import Cell
from datadream.results import records
from datadream.results.record import record_file
from datadream.store import artifacts as package
from datadream.store.address import RemoteStore
from datadream.store.artifacts import Store
from datadream.store.files import StoreError, digest
from datadream.store.gc import clear, listing, object_time, unused
from datadream.store.keys import key
from datadream.store.open import open_store
from datadream.study import run

LONE = "generate-0123456789abcdef"
KINDS = ["memory", "file", "s3"]


@pytest.fixture(autouse=True)
def short(tmp_path, monkeypatch):
    """Keep copies away from a user's."""
    monkeypatch.setenv("DATADREAM_CACHE", str(tmp_path / "one"))


@pytest.fixture(scope="module")
def s3():
    """Return the address of an empty bucket on an S3 server of this process."""
    missing = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"an S3 server and its client need {', '.join(missing)}: pip install 's3fs' "
            "'moto[s3,server]'"
        )
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        server.stop()


@pytest.fixture
def address(request, tmp_path):
    """Return an address on which nothing lies, in memory unless a test names other KINDS."""
    kind = getattr(request, "param", "memory")
    if kind == "file":
        return f"file://{tmp_path}/address"
    return f"{request.getfixturevalue('s3') if kind == 's3' else 'memory:/'}/{uuid.uuid4().hex}"


@pytest.fixture
def machine(tmp_path, monkeypatch, address):
    """Return machine(name): the store on the address as a machine of that name sees it, whose
    process has verified nothing yet.
    """

    def become(name):
        monkeypatch.setenv("DATADREAM_CACHE", str(tmp_path / name))
        monkeypatch.setattr(package, "verified", {})
        monkeypatch.setattr("datadream.store.address.verified", package.verified)
        return open_store(address)

    return become


@pytest.fixture(scope="module")
def plain(make, tmp_path_factory):
    """Return (recipe, store, record) of a cell made in a folder."""
    store, recipe = Store(tmp_path_factory.mktemp("plain")), make("dset+real")
    return recipe, store, run.run(recipe, store)


def build(folder, text="content"):
    """Write a file and a file in a sub-folder."""
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)
    (folder / "deep" / "b.txt").write_text(text * 2)


def forbidden(*_, **__):
    raise AssertionError("this was made before")


def said(record):
    """Return what a record says beside times."""
    return {name: record[name] for name in ("key", "recipe", "result", "curve", "artifacts")}


def digests(store, keys):
    return {artifact: store.manifest(artifact)["files"] for artifact in keys}


@pytest.mark.parametrize("address", KINDS, indirect=True)
def test_a_cell_gives_the_record_and_the_bytes_of_a_folder(plain, machine, monkeypatch):
    recipe, folder, wanted = plain
    store = machine("one")
    record = run.run(recipe, store)
    keys = record["artifacts"].values()
    assert said(record) == said(wanted) and digests(store, keys) == digests(folder, keys)
    sizes = store.objects()
    for artifact in keys:
        for name, (size, sha) in store.manifest(artifact)["files"].items():
            assert (
                sizes[f"{artifact}/{name}"] == size and digest(store.folder(artifact) / name) == sha
            )
    assert not [name for name in sizes if ".part" in name or name.endswith(".lease")], (
        "nothing is left of the making"
    )
    other = machine("two")
    monkeypatch.setattr(Store, "_build", forbidden)
    assert other.root != store.root and run.find([recipe], other)["key"].tolist() == [record["key"]]
    assert run.run(recipe, other) == record


def test_the_environment_names_the_address(make, address, machine, monkeypatch):
    store = machine("one")
    monkeypatch.setenv("DATADREAM_STORE", address)
    assert (
        isinstance(open_store(), RemoteStore)
        and open_store().address == address
        and open_store().root == store.root == paths()["store"] == copies(address)
    )
    assert relative_to_home(store.root) == address and records.load_records().empty
    run.run(make("clip"))
    assert len(records.load_records()) == 1
    other = machine("two")
    assert len(records.load_records()) == 1 and list(other.records.iterdir())


def test_copies_lie_in_the_user_s_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("DATADREAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert copies("s3://a").parent == tmp_path / "datadream" and copies("s3://a") != copies(
        "s3://b"
    )


@pytest.mark.parametrize("address", KINDS, indirect=True)
@pytest.mark.parametrize("call", [1, 2, 3], ids=["a file", "another", "the manifest"])
def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_that_is_taken_for_done(
    machine, monkeypatch, call
):
    store = machine("one")
    with monkeypatch.context() as patch:
        patch.setattr(store.fs, "put_file", dies_at(store.fs.put_file, call))
        with pytest.raises(Killed):
            store.make("stage-1", {}, build)
    for name in ("one", "two"):
        assert not machine(name).whole("stage-1") and not machine(name).done("stage-1")
    machine("one").make("stage-1", {}, forbidden)  # it was made, and only had to be uploaded
    store = machine("two")
    folder = store.make("stage-1", {}, forbidden)
    assert (folder / "deep" / "b.txt").read_text() == "contentcontent"
    assert sorted(store.objects()) == [
        "stage-1/a.txt",
        "stage-1/deep/b.txt",
        "stage-1/manifest.json",
    ]


DAMAGES = {
    "truncated": ("a.txt", b"cont"),
    "empty": ("a.txt", b""),
    "one bit": ("a.txt", b"conten\x75"),
    "deep": ("deep/b.txt", b"contentcontenT"),
    "deleted": ("a.txt", None),
    "no manifest": ("manifest.json", None),
    "half a manifest": ("manifest.json", b'{"key": "stage-1", "fi'),
    "outside": (
        "manifest.json",
        json.dumps({"seconds": 1.0, "files": {"../../b.txt": [1, "0"]}}).encode(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_noticed_and_only_that_artifact_is_made_again(machine, damage):
    store = machine("one")
    for artifact in ("stage-1", "stage-2"):
        store.make(artifact, {}, build)
    name, content = DAMAGES[damage]
    if content is None:
        store.fs.rm(store.at("stage-1", name))
    else:
        store.fs.pipe_file(store.at("stage-1", name), content)
    other, calls = machine("two"), []
    assert not other.done("stage-1") and other.done("stage-2")
    for artifact in ("stage-1", "stage-2"):
        folder = other.make(artifact, {}, lambda work: (calls.append(work.name), build(work)))
        assert (folder / "a.txt").read_text() == "content"
    assert calls == ["stage-1.partial"]
    assert all(machine("three").done(artifact) for artifact in ("stage-1", "stage-2"))


@pytest.mark.parametrize("address", ["s3"], indirect=True)
def test_a_damaged_object_in_a_bucket_is_noticed(machine):
    store, calls = machine("one"), []
    store.make("stage-1", {}, build)
    store.fs.pipe_file(store.at("stage-1", "a.txt"), b"conten\x75")
    folder = machine("two").make("stage-1", {}, lambda work: (calls.append(1), build(work)))
    assert (
        calls and (folder / "a.txt").read_text() == "content" and machine("three").done("stage-1")
    )


def test_several_that_find_one_artifact_damaged_fetch_what_is_whole_at_once(machine):
    """As the slices of a set do, each in a process of its own."""
    store = machine("one")
    store.make(
        "stage-1",
        {},
        lambda work: [(work / f"{i}.txt").write_text("content" * 1000) for i in range(30)],
    )
    store.fs.pipe_file(store.at("stage-1", "7.txt"), b"short")
    others = [machine("two") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(other.salvage, "stage-1") for other in others]:
            done.result()
    found = sorted(path.name for path in others[0].work("stage-1").iterdir())
    assert found == sorted(f"{i}.txt" for i in range(30) if i != 7)


def test_a_machine_with_a_good_copy_uploads_it_again(machine):
    store = machine("one")
    store.make("stage-1", {}, build)
    store.fs.pipe_file(store.at("stage-1", "a.txt"), b"cont")
    assert not store.done("stage-1")
    store.make("stage-1", {}, forbidden)
    assert machine("two").done("stage-1")


def test_a_damaged_copy_is_fetched_again(machine):
    store = machine("one")
    folder = store.make("stage-1", {}, build)
    (folder / "a.txt").write_text("contenu")
    assert store.done("stage-1") and (folder / "a.txt").read_text() == "content"


def test_another_version_of_the_same_size_is_fetched(machine):
    """Another device may compute other bytes: what is on the address counts."""
    machine("one").make("stage-1", {}, build)
    other = machine("two")
    other.drop("stage-1")
    other.make("stage-1", {}, lambda work: build(work, "CONTENT"))
    store = machine("one")
    assert store.done("stage-1") and (store.folder("stage-1") / "a.txt").read_text() == "CONTENT"


def test_two_machines_that_need_one_artifact_make_the_same(tmp_path):
    _, folders = make_at_once(tmp_path, f"file://{tmp_path}/store")
    assert all(
        folder.is_relative_to(tmp_path / name) for name, folder in zip("xy", folders, strict=True)
    )
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["stage-1"]
    (one, two) = (
        {p.name: p.read_bytes() for p in f.iterdir() if p.suffix != ".json"} for f in folders
    )
    assert one == two


def test_what_another_machine_has_uploaded_meanwhile_is_not_taken_away(machine):
    """Someone may be reading it."""
    store, other = machine("one"), machine("two")

    def both(work):
        build(work)
        other.make("stage-1", {}, build)

    before = []
    store.make("stage-1", {}, lambda work: (both(work), before.append(other.manifest("stage-1"))))
    assert store.manifest("stage-1") == before[0] and machine("three").done("stage-1")


# The slices of a cluster.


@pytest.fixture
def sliced(make, address, machine):
    """Return the tasks of a class-wise cell of which all but the cell itself were done, each on
    a machine of its own.
    """
    todo = on_ray.tasks([make("cls")], machine("driver"))
    *parts, cell = todo.values()
    for number, task in enumerate(parts):
        machine(f"worker {number}")
        on_ray.work(task, address)
    return SimpleNamespace(parts=parts, cell=cell)


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_a_slice_of_another_machine_is_found_and_not_made_again(
    make, sliced, address, machine, monkeypatch, tmp_path
):
    assert [task.kind for task in sliced.parts] == ["adapt"] * 3 + ["slice"] * 3
    store = machine("last")
    monkeypatch.setattr(generate, "drawing", forbidden)
    on_ray.work(sliced.parts[-1], address)
    on_ray.work(sliced.cell, address)
    assert not [name for name in store.objects() if ".partial" in name], (
        "the parts are of no more use"
    )
    monkeypatch.undo()
    folder = Store(tmp_path / "folder")
    wanted = run.run(make("cls"), folder)
    record = json.loads(store.refresh(store.records / sliced.cell.name).read_text())
    assert said(record) == said(wanted)
    assert digests(store, record["artifacts"].values()) == digests(
        folder, wanted["artifacts"].values()
    )


def test_a_damaged_slice_is_sampled_again(make, sliced, address, machine, monkeypatch, tmp_path):
    store, labels = machine("last"), []
    image = next(
        name for name in store.objects() if name.endswith("/000003.png") and "truck" in name
    )
    store.fs.pipe_file(store.at(image), store.fs.cat_file(store.at(image))[:-1] + b"x")
    drawing = generate.drawing
    monkeypatch.setattr(
        generate, "drawing", lambda *args: (labels.append(args[2]), drawing(*args))[1]
    )
    on_ray.work(sliced.cell, address)
    assert labels == [1]
    record = json.loads(store.refresh(store.records / sliced.cell.name).read_text())
    folder = Store(tmp_path / "folder")
    artifact = run.run(make("cls"), folder)["artifacts"]["generate"]
    assert (
        digests(store, [artifact]) == digests(folder, [artifact])
        and record["artifacts"]["generate"] == artifact
    )


# Addresses that cannot be used.


def test_a_missing_package_is_one_clear_error(monkeypatch, capsys):
    row = {"class": "no_such_package.FileSystem", "err": "Install no_such_package"}
    monkeypatch.setitem(known_implementations, "lake", row)
    monkeypatch.setenv("DATADREAM_STORE", "lake://bucket/prefix")
    with pytest.raises(
        ConfigError,
        match="lake://bucket/prefix needs the package no_such_package.*pip install "
        "no_such_package.*DATADREAM_STORE",
    ):
        open_store()
    assert main(["gc", "--older-than", "0"]) == 2 and capsys.readouterr().err.count("error:") == 1
    (check,) = [check for check in examine() if check.what == "store"]
    assert check.state == "problem" and "pip install no_such_package" in check.detail


def test_an_unknown_protocol_names_the_accepted_ones():
    with pytest.raises(
        ConfigError,
        match="'lakes', which fsspec does not know; give one such as s3://.*DATADREAM_STORE",
    ):
        open_store("lakes://bucket/prefix")


@pytest.mark.parametrize("function", ["cat_file", "find", "put_file", "pipe_file"])
def test_an_address_that_cannot_be_reached_is_not_taken_for_an_empty_one(
    machine, monkeypatch, function
):
    store, calls = machine("one"), []
    store.make("stage-1", {}, build)

    def fail(*_, **__):
        raise ConnectionError("no network")

    key_ = "stage-2" if function in ("put_file", "pipe_file") else "stage-1"
    monkeypatch.setattr(type(store.fs), function, fail)
    with pytest.raises(
        StoreError,
        match=f"{store.address} cannot be read or written .ConnectionError: no "
        "network.*credentials",
    ):
        machine("two").make(key_, {}, lambda work: (calls.append(1), build(work)))
    assert len(calls) == (function == "put_file"), "nothing is computed that cannot be put there"


def test_a_full_disk_of_this_machine_is_not_the_address_s_fault(machine, monkeypatch):
    machine("one").make("stage-1", {}, build)
    store = machine("two")

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(type(store.fs), "get_file", full)
    with pytest.raises(
        StoreError, match=f"{store.root} cannot take more: the disk is full.*DATADREAM_CACHE"
    ):
        store.done("stage-1")


def test_the_doctor_tells_of_the_address(monkeypatch, address, machine):
    store = machine("one")
    store.make(LONE, {}, build)
    monkeypatch.setenv("DATADREAM_STORE", address)
    (check,) = [check for check in examine() if check.what == "store"]
    assert (
        check.state == "ok"
        and address in check.detail
        and "1 artifacts" in check.detail
        and str(store.root) in check.detail
    )
    assert sorted(store.objects()) == [
        f"{LONE}/{name}" for name in ("a.txt", "deep/b.txt", "manifest.json")
    ]


# What may go.


@pytest.fixture
def filled(make, address, machine, monkeypatch):
    """Return a store on the address with a finished cell, an artifact that no record names, half
    an upload, a part, a lease of an older version, and a stranger.
    """
    store = machine("one")
    run.run(make("clip"), store)
    store.make(LONE, {}, lambda work: (work / "a.bin").write_bytes(bytes(500_000)))
    for name in (
        "adapt-0123456789abcdef/half.bin",
        "generate-1123456789abcdef.partial/train/a.png",
        "train-0123456789abcdef.lease",
        "notes.txt",
    ):
        store.fs.pipe_file(store.at(name), b"dead-1 5")
    monkeypatch.setenv("DATADREAM_STORE", address)
    return store


GOES = {
    LONE: "artifact",
    "adapt-0123456789abcdef": "unfinished",
    "generate-1123456789abcdef.partial": "unfinished",
    "train-0123456789abcdef.lease": "lock",
}


@pytest.mark.parametrize("address", KINDS, indirect=True)
def test_gc_lists_and_removes_what_no_record_needs(filled, machine):
    before = filled.objects()
    found = unused(filled, days=0)
    assert {entry.path.name: entry.kind for entry in found if entry.away} == GOES
    assert [entry.path.name for entry in found if entry.kind == "copy"] == [LONE]
    text = listing(filled, found)
    assert filled.address in text and f"0.50 MB  artifact    {LONE}" in text
    clear(filled, found, days=0)
    assert filled.objects() == {
        name: size for name, size in before.items() if name.partition("/")[0] not in GOES
    }
    assert (
        not filled.folder(LONE).exists()
        and unused(filled, days=0) == []
        and len(records.load_records()) == 1
    )


def test_gc_asks_first(filled, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert (
        main(["gc", "--older-than", "0"]) == 0
        and "nothing was removed" in capsys.readouterr().out
        and filled.done(LONE)
    )
    assert main(["gc", "--older-than", "0", "--yes"]) == 0 and not filled.done(LONE)


@pytest.mark.parametrize("address", KINDS, indirect=True)
def test_gc_spares_what_another_machine_may_have_just_made(filled):
    """No machine sees another's locks: the age of an object is what tells."""
    assert [entry for entry in unused(filled) if entry.away] == []
    times = map(object_time, filled.listed().values())
    assert all(abs(time.time() - told) < 3600 for told in times)


@pytest.mark.parametrize(
    "info",
    [
        {"created": 86400.0},
        {"mtime": 86400},
        {"LastModified": datetime(1970, 1, 2, tzinfo=UTC)},
        {"created": datetime(1970, 1, 2)},
        {"updated": "1970-01-02T00:00:00Z"},
    ],
)
def test_the_time_of_an_object_is_read_from_what_its_file_system_tells(info):
    assert object_time(info) == 86400.0 and time.time() - object_time({}) < 60


def test_an_address_that_cannot_be_written_can_be_read(make, machine, monkeypatch):
    """Where nothing can be written, nothing is marked."""
    store, recipe = machine("one"), make("clip")
    record = run.run(recipe, store)

    def refuse(*_, **__):
        raise PermissionError("access denied")

    other = machine("two")
    for name in ("put_file", "pipe_file"):
        monkeypatch.setattr(type(store.fs), name, refuse)
    assert run.run(recipe, other) == record
    with pytest.raises(
        StoreError, match="cannot be read or written .PermissionError: access denied"
    ):
        other.make("stage-1", {}, forbidden)


def test_what_another_machine_removed_is_removed_here(make, machine):
    recipe, store = make("clip"), machine("one")
    record = run.run(recipe, store)
    file = record_file(Cell(recipe), store)
    store.fs.rm(store.at("records", file.name))
    assert file.exists() and store.refresh_all(store.records) == [] and not file.exists()
    with pytest.raises(LookupError, match=f"no record in {store.address}"):
        run.find([recipe], store)
    assert (
        run.run(recipe, store)["key"] == record["key"]
        and len(store.refresh_all(store.records)) == 1
    )


def test_the_keys_of_an_address_are_those_of_a_folder(machine, tmp_path):
    for store in (machine("one"), Store(tmp_path / "folder")):
        assert store.keys() == []
        for name in ("stage-2", "stage-1"):
            store.make(name, {}, build)
        assert store.keys() == ["stage-1", "stage-2"] and key("stage") not in store.keys()
