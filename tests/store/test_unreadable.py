"""What is there and cannot be read is not damaged, what is written has the umask's mode, and places
to write are tried before anything is computed: what several users of one store rely on.
"""

import errno
import json
import os
import stat

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datadream import doctor
from datadream.cli import main
from datadream.data.png import is_whole, save_png
from datadream.engines import on_ray
from datadream.errors import DataError
from datadream.paths import atomic_write, paths, umask_mode
from datadream.photos import classify_files, demonstration
from datadream.publish import freeze
from datadream.publish.export import export
from datadream.results import features
from datadream.results.record import read_record
from datadream.results.records import load_records
from datadream.store import address, artifacts, files, gc
from datadream.store.artifacts import Store
from datadream.store.files import StoreError, write_json
from datadream.store.open import open_store
from datadream.study import outcome, papermill_runs, run
from datadream.training.checkpoint import load_state, save_state
from datadream.training.curve import Curve

FAULTS = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE]


def build(folder):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)


def snapshot(root):
    """Return path -> (content, time) of all files but locks."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def hide(monkeypatch):
    """Return hide(path, number): from now on it cannot be opened or listed, as another user's."""

    def hidden(path, number=errno.EACCES):
        def refusing(real):
            def opened(file, *args, **kwargs):
                if not isinstance(file, int) and os.fspath(file) == str(path):
                    raise OSError(number, os.strerror(number), str(path))
                return real(file, *args, **kwargs)

            return opened

        for module, name in (("builtins", "open"), ("io", "open"), ("os", "listdir")):
            place = __import__(module)
            monkeypatch.setattr(place, name, refusing(getattr(place, name)))
        monkeypatch.setattr(os, "scandir", refusing(os.scandir))
        artifacts.verified.clear()

    return hidden


# Unreadable is not damaged.


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("name", ["a.txt", "manifest.json"])
def test_an_artifact_that_cannot_be_read_is_neither_removed_nor_made_again(
    store, hide, name, number, monkeypatch
):
    folder, calls = store.make("stage-1", {}, build), []
    before = snapshot(store.root)
    with monkeypatch.context():
        hide(folder / name, number)
        for attempt in (
            lambda: store.done("stage-1"),
            lambda: store.make("stage-1", {}, calls.append),
            lambda: store.salvage("stage-1"),
        ):
            with pytest.raises(
                StoreError, match=f"{name} is there and cannot be read.*nothing was"
            ):
                attempt()
    monkeypatch.undo()
    assert not calls and snapshot(store.root) == before


def test_a_missing_file_is_still_damage(store):
    folder = store.make("stage-1", {}, build)
    (folder / "a.txt").unlink()
    (folder / "a.txt").mkdir()
    assert not store.done("stage-1")
    (folder / "a.txt").rmdir()
    assert store.make("stage-1", {}, build) and store.done("stage-1")


def test_of_a_damaged_artifact_nothing_moves_while_one_file_cannot_be_read(
    store, hide, monkeypatch
):
    folder = store.make("stage-1", {}, build)
    (folder / "a.txt").write_text("A.TXT")
    before = snapshot(store.root)
    hide(folder / "b.txt")
    with pytest.raises(StoreError, match=r"b\.txt is there and cannot be read"):
        store.make("stage-1", {}, build)
    monkeypatch.undo()
    assert snapshot(store.root) == before


@pytest.mark.parametrize("number", FAULTS)
def test_a_record_that_cannot_be_read_is_not_called_damaged_nor_written_again(
    make, store, hide, number, monkeypatch
):
    record = run.run(make("clip"), store)
    file, before = store.records / f"{record['key']}.json", snapshot(store.root)
    hide(file, number)
    for attempt in (
        lambda: read_record(file),
        lambda: run.run(make("clip"), store),
        lambda: load_records([file]),
        lambda: gc.unused(store, days=0),
    ):
        with pytest.raises(StoreError, match="cannot be read"):
            attempt()
    monkeypatch.undo()
    assert snapshot(store.root) == before
    file.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read_record(file)


def test_a_folder_of_records_that_cannot_be_read_is_not_an_empty_one(store, hide):
    """Else `gc` would find that nothing is needed, and a table would have no rows."""
    store.make("generate-0123456789abcdef", {}, build)
    store.save(store.records / "record-1.json", {"artifacts": {"generate": "generate-" + "0" * 16}})
    hide(store.records)
    for attempt in (lambda: gc.unused(store, days=0), lambda: load_records(store.records)):
        with pytest.raises(StoreError, match="records is there and cannot be read"):
            attempt()
    assert main(["gc", "--older-than", "0", "--yes"]) == 2
    assert store.folder("generate-0123456789abcdef").exists()


def test_a_folder_on_an_address_that_cannot_be_read_is_not_an_empty_one(
    tmp_path, monkeypatch, hide
):
    monkeypatch.setenv("DATADREAM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "there"
    store = address.RemoteStore(f"file://{place}")
    store.make("generate-0123456789abcdef", {}, build)
    store.save(store.records / "record-1.json", {"artifacts": {}})
    hide(place / "records")
    with pytest.raises(StoreError, match="cannot be read or written .PermissionError"):
        gc.unused(store, days=0)
    assert (place / "generate-0123456789abcdef" / "manifest.json").exists()


def test_a_checkpoint_that_cannot_be_read_is_not_begun_anew(tmp_path, hide):
    file = tmp_path / "checkpoint.safetensors"
    save_state(file, {"a": torch.ones(2)}, 7)
    hide(file)
    with pytest.raises(StoreError, match="cannot be read"):
        load_state(file)
    assert file.exists() and load_state(tmp_path / "none.safetensors") is None


def test_neither_curve_nor_image_that_cannot_be_read_is_taken_for_a_cut_one(tmp_path, hide):
    save_png(Image.new("RGB", (4, 4)), tmp_path / "0.png")
    (tmp_path / "curve.json").write_text("[]")
    hide(tmp_path / "0.png")
    hide(tmp_path / "curve.json")
    with pytest.raises(StoreError, match=r"0\.png is there"):
        is_whole(tmp_path / "0.png")
    with pytest.raises(StoreError, match=r"curve\.json is there"):
        Curve(tmp_path, tmp_path / "checkpoint.safetensors")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    assert not is_whole(tmp_path / "cut.png") and not is_whole(tmp_path / "none.png")


def test_neither_page_nor_outcome_that_cannot_be_read_counts_as_none(tmp_path, monkeypatch, hide):
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    runs = paths()["runs"]
    runs.mkdir(parents=True)
    row = {"run": "mnist", "status": "done", "minutes": 1.0, "note": "a page"}
    outcome.save(row, {"mnist"})
    (runs / "mnist.ipynb").write_text("{}")
    before = outcome.status_file().read_bytes()
    hide(runs / "mnist.ipynb")
    hide(outcome.status_file())
    with pytest.raises(StoreError, match=r"mnist\.ipynb is there"):
        papermill_runs._finished(runs / "mnist.ipynb", "x")
    with pytest.raises(StoreError, match=r"mnist\.ipynb is there"):
        freeze._finished("mnist", {})
    outcome.save({**row, "run": "optdigits"}, {"mnist", "optdigits"})  # says so, and goes on
    monkeypatch.undo()
    assert (runs / "status.json").read_bytes() == before


def test_a_classifier_that_cannot_be_read_is_not_called_half(tmp_path, hide):
    (tmp_path / "adapter.json").write_text("{}")
    (tmp_path / "adapter.safetensors").write_text("")
    hide(tmp_path / "adapter.safetensors")
    with pytest.raises(StoreError, match=r"adapter\.safetensors is there and cannot be read"):
        classify_files(tmp_path, [])


# Files get the mode that the umask gives.


@pytest.fixture(params=[0o002, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_modes(root, umask):
    """Return the files and folders below a folder whose mode is not the umask's; locks have the
    right to write of their folder.
    """
    found = []
    for path in root.rglob("*"):
        given = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.suffix != ".lock" and stat.S_IMODE(path.stat().st_mode) & 0o777 != given:
            found.append((path.name, oct(path.stat().st_mode)))
    return found


def test_all_that_a_cell_its_features_and_its_export_write_have_the_umasks_mode(
    make, tmp_path, umask
):
    store = Store(tmp_path / "own")
    record = run.run(make("dset+real", {"classify.select": "validation"}), store)
    made = store.folder(record["artifacts"]["generate"])
    assert {"adapt0", "train", "judge"} <= set(record["artifacts"])
    features.features(
        features.Images(tuple(map(str, sorted(made.rglob("*.png")))), (0,) * 15), "clip",
        make("dset+real"), store,
    )  # fmt: skip
    export(made.name, tmp_path / "out", None, store)
    assert not wrong_modes(store.root, umask) and not wrong_modes(tmp_path / "out", umask)


def test_what_libraries_and_methods_of_ones_own_write_has_the_umasks_mode(store, tmp_path, umask):
    def library(work):
        save_file({"a": torch.ones(2)}, work / "a.safetensors")
        os.chmod(work / "a.safetensors", 0o600)
        (work / "deep").mkdir(mode=0o700)
        (work / "deep" / "b.txt").write_text("b")

    store.make("stage-1", {}, library)
    save_state(store.root / "c.safetensors", {"a": torch.ones(2)}, 1)
    write_json(store.root / "d.json", {})
    with atomic_write(store.root / "e.png") as part:
        Image.new("RGB", (2, 2)).save(part, format="PNG")
    assert not wrong_modes(store.root, umask) and store.done("stage-1")


def test_the_base_models_have_the_umasks_mode(tmp_path, umask):
    from conftest import build_classifier, build_generator

    build_generator(tmp_path / "models" / "generator")
    build_classifier(tmp_path / "models" / "clip")
    assert not wrong_modes(tmp_path / "models" / "generator", umask)
    assert not wrong_modes(tmp_path / "models" / "clip", umask)


def test_a_mode_that_lets_others_in_stays(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    file.chmod(0o640)
    umask_mode(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and len(list(tmp_path.iterdir())) == 1


# Places to write, and the guard, are tried before anything is computed.


def closed(monkeypatch, folder, number=errno.EACCES):
    """Let no new file be made in a folder."""
    real = files.part_of

    def part_of(path):
        if os.path.dirname(path) == str(folder):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(files, "part_of", part_of)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cell_whose_record_could_not_be_written_computes_nothing(
    make, store, monkeypatch, number
):
    store.records.mkdir(parents=True)
    closed(monkeypatch, store.records, number)
    with pytest.raises(StoreError, match="cannot be written.*records"):
        run.run(make("dset"), store)
    with pytest.raises(StoreError, match="cannot be written.*records"):
        run.run_cells([make("dset")], store)
    assert store.keys() == ["records"]


def test_a_study_whose_pages_could_not_be_written_does_not_begin(tmp_path, monkeypatch):
    runs = tmp_path / "book" / "runs"
    runs.mkdir(parents=True)
    monkeypatch.setenv("DATADREAM_HOME", str(tmp_path))
    monkeypatch.setattr(papermill_runs, "choose", lambda *args: {"mnist": {"notebook": "dataset"}})
    monkeypatch.setattr(papermill_runs, "load_study", lambda file: {"runs": {}})
    closed(monkeypatch, runs)
    with pytest.raises(StoreError, match="runs cannot be written.*DATADREAM_HOME"):
        papermill_runs.run_study()


def test_another_users_unfinished_work_is_tried_before_it_is_gone_on_with(store, monkeypatch):
    calls = []
    (store.work("stage-1") / "deep").mkdir(parents=True)
    closed(monkeypatch, store.work("stage-1") / "deep")
    with pytest.raises(StoreError, match=r"cannot be written.*stage-1\.partial/deep"):
        store.make("stage-1", {}, calls.append)
    assert not calls


def unlockable(monkeypatch, store):
    """Let the lock of `gc` be another user's."""
    real = Store.lock

    def lock(self, name):
        if name == artifacts.CLEARING:
            file = str(self.root / f".{name}.lock")
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        return real(self, name)

    monkeypatch.setattr(Store, "lock", lock)


def test_a_run_that_cannot_be_marked_reads_what_is_done_and_makes_nothing(make, store, monkeypatch):
    record = run.run(make("clip"), store)
    unlockable(monkeypatch, store)
    assert run.run(make("clip"), store) == record
    assert len(run.find([make("clip")], store)) == 1
    assert len(run.run_cells([make("clip")], store)) == 1
    before = store.keys()
    for attempt in (
        lambda: run.run(make("dset"), store),
        lambda: run.run_cells([make("dset"), make("clip")], store),
        lambda: _in_use(store, lambda: store.make_part("stage-1", "0-0", [], list)),
        lambda: _in_use(
            store, lambda: on_ray._require_places(on_ray.tasks([make("dset")], store), store)
        ),
    ):
        with pytest.raises(StoreError, match=r"\.clearing\.lock.*could not be marked.*gc"):
            attempt()
    assert store.keys() == before
    _in_use(store, lambda: on_ray._require_places(on_ray.tasks([make("clip")], store), store))


def _in_use(store, act):
    with store.in_use():
        act()


def test_gc_removes_what_it_may_and_ends_with_an_error_for_the_rest(monkeypatch, capsys):
    store, real = open_store(), gc.remove
    for number in "01":
        store.make(f"generate-000000000000000{number}", {}, build)

    def remove(path):
        if path.name.endswith("00"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real(path)

    monkeypatch.setattr(gc, "remove", remove)
    assert main(["gc", "--older-than", "0", "--yes"]) == 2
    assert "1 entries could not be removed, the first" in capsys.readouterr().err
    assert [name for name in store.keys() if name.startswith("generate")] == [
        "generate-0000000000000000"
    ]


def test_the_photos_of_the_demonstration_are_read_where_they_are_there(monkeypatch):
    folder = demonstration(2, 2)
    before = snapshot(open_store().root)
    assert len(before) == 4 and demonstration(2, 2) == folder
    assert snapshot(open_store().root) == before


# The doctor.


def test_the_doctor_names_what_other_users_left(make, monkeypatch):
    store = open_store()
    record = run.run(make("clip"), store)
    (ok,) = doctor._folder(store)
    assert ok.state == "ok" and "can be read and written" in ok.detail
    hidden = store.folder(record["artifacts"]["judge"]) / "result.json"
    shut = {hidden, store.records, store.root / ".clearing.lock"}
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p not in shut and real(p, mode))
    found = [check for check in doctor.examine() if check.what == "store"]
    text = "\n".join(check.detail for check in found)
    assert {check.state for check in found} == {"problem"} and main(["doctor"]) == 1
    for words in ("result.json", "records cannot be written", "clearing.lock cannot", "chmod -R"):
        assert words in text


def test_an_old_record_stays_readable(store):
    store.save(store.records / "record-1.json", {"artifacts": {}})
    assert json.loads((store.records / "record-1.json").read_text()) == {"artifacts": {}}
