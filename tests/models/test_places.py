"""What `doctor`, `download` and a run say of one and the same model: all three agree."""

import json
import shutil

import pytest
import torch

from datadream import doctor
from datadream.cli import main
from datadream.errors import ModelMissingError
from datadream.models import catalog
from datadream.models.catalog import absent, variant
from datadream.models.classifiers.clip import load_clip
from datadream.models.generators.load import load_pipeline


def only_variant(source, target, parts, kind="fp16"):
    """Copy a pipeline whose weights of these parts have only a variant's name."""
    shutil.copytree(source, target)
    for part in parts:
        for file in (target / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{kind}.safetensors"))
    return str(target)


@pytest.mark.parametrize(
    "parts, kind",
    [
        (["unet", "vae", "text_encoder"], "fp16"),
        (["vae"], "fp16"),  # diffusers takes the plain file of the others
        (["unet"], "bf16"),
    ],
)
def test_weights_of_a_variant_alone_are_loaded(models, tmp_path, parts, kind):
    name = only_variant(models.generator, tmp_path / "half", parts, kind)
    assert (
        absent(name, "generator") == "" and variant(name) == kind and main(["download", name]) == 0
    )
    one, other = load_pipeline(name), load_pipeline(models.generator)
    for part in ("unet", "vae", "text_encoder"):
        pairs = zip(getattr(one, part).parameters(), getattr(other, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_plain_weights_beside_a_variant_are_taken(models, tmp_path):
    shutil.copytree(models.generator, tmp_path / "both")
    (file,) = (tmp_path / "both" / "unet").glob("*.safetensors")
    shutil.copy2(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    assert variant(str(tmp_path / "both")) is None and variant(models.generator) is None
    assert variant("nobody/thing") is None


def cached(models, monkeypatch, tmp_path, parts=(), without=None):
    """Put the tiny pipeline into a hub's cache as SD 2.1's base, as `download` leaves it."""
    from huggingface_hub import constants

    hub = catalog.GENERATORS["sd2.1-base"].hub
    folder = tmp_path / "hub" / f"models--{hub.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    only_variant(models.generator, snapshot, parts)
    if without:
        shutil.rmtree(snapshot / without)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def state(what):
    (found,) = [check for check in doctor.examine() if check.what == what]
    return found.state, found.detail


@pytest.mark.parametrize("parts", [[], ["unet", "vae", "text_encoder"]])
def test_the_doctor_says_ok_of_what_a_run_loads(models, monkeypatch, tmp_path, parts):
    cached(models, monkeypatch, tmp_path, parts)
    monkeypatch.setattr(
        "huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    assert state("generator sd2.1-base")[0] == "ok"


def test_the_doctor_says_which_part_a_cached_model_lacks(models, monkeypatch, tmp_path):
    cached(models, monkeypatch, tmp_path, without="vae")
    kind, detail = state("generator sd2.1-base")
    assert kind == "optional" and "no weights" in detail and " vae" in detail
    assert "download sd2.1-base" in detail


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_download_and_run_say_alike_what_a_folder_lacks(models, tmp_path, capsys, part):
    shutil.copytree(models.generator, tmp_path / "halfway")
    for file in (tmp_path / "halfway" / part).glob("*.safetensors"):
        file.unlink()
    name = str(tmp_path / "halfway")
    assert main(["download", name]) == 2 and f" in {part}; copy" in capsys.readouterr().err
    with pytest.raises(ModelMissingError, match=f" in {part}; copy or download it again"):
        load_pipeline(name)


def test_a_classifiers_folder_without_weights_is_not_on_this_machine(models, tmp_path, capsys):
    shutil.copytree(models.classifier, tmp_path / "clip")
    assert absent(str(tmp_path / "clip"), "clip") == ""
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    assert "has no weights" in absent(str(tmp_path / "clip"), "clip")


@pytest.mark.parametrize("load, part", [(load_pipeline, "generator"), (load_clip, "clip")])
def test_a_single_file_is_no_model_to_download(tmp_path, capsys, load, part):
    file = tmp_path / "my model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(ModelMissingError) as caught:
        load(str(file))
    for message in (str(caught.value), absent(str(file), part)):
        assert "is a single file" in message and "folder" in message
        assert "datadream download" not in message and "HF_HOME" not in message
    assert main(["download", str(file)]) == 2
    assert "is a single file" in capsys.readouterr().err


@pytest.mark.parametrize("load, part", [(load_pipeline, "generator"), (load_clip, "clip")])
@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "~/models/sd"])
def test_a_path_of_nothing_is_no_model_to_download(load, part, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissingError, match="there is no folder"):
        load(name)
    assert "there is no folder" in absent(name, part)


def test_a_repository_in_half_precision_alone_is_downloaded(monkeypatch):
    import diffusers

    asked = []

    def download(hub, variant=None, **options):
        asked.append(variant)
        if variant is None:
            raise OSError("no file named diffusion_pytorch_model.safetensors")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert main(["download", "somebody/half"]) == 0 and asked == [None, "fp16"]


def test_the_index_of_a_sharded_network_is_a_weight(tmp_path):
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in catalog.WEIGHTS["generator"]
    unet = tmp_path / "unet"
    unet.mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "X"]}))
    for i in (1, 2):
        (unet / f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors").touch()
    assert absent(str(tmp_path), "generator") == "" and variant(str(tmp_path)) == "fp16"
