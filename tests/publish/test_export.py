"""Export: what datasets and torchvision read back, the card, and what is refused."""

import json
import re
import tarfile

import numpy as np
import pytest
import yaml
from conftest import CLASSES
from PIL import Image

from datadream.cli import main
from datadream.config import as_dict
from datadream.errors import ConfigError
from datadream.publish.export import FORMATS, export
from datadream.store.artifacts import Store
from datadream.study import run


@pytest.fixture(scope="module")
def made(make, tmp_path_factory):
    """Return (store, key, rows of its metadata, the exported folders by format) of one small
    synthetic set.
    """
    store = Store(tmp_path_factory.mktemp("store"))
    key = run.run(make("dset"), store)["artifacts"]["generate"]
    folders = export(key, tmp_path_factory.mktemp("out") / "set", store=store)
    rows = [
        json.loads(line)
        for line in (store.folder(key) / "train" / "metadata.jsonl").read_text().splitlines()
    ]
    return store, key, rows, dict(zip(FORMATS, folders, strict=True))


def pixels(store, key, row):
    return np.asarray(Image.open(store.folder(key) / "train" / row["file_name"]).convert("RGB"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what datasets caches out of the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", FORMATS)
def test_datasets_reads_every_format_back(made, form, tmp_path):
    from datasets import load_dataset

    store, key, rows, folders = made
    loaded = load_dataset(str(folders[form]), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(rows) == 15
    image, label = {
        "imagefolder": ("image", "label"),
        "webdataset": ("png", "cls"),
        "parquet": ("image", "label"),
    }[form]
    found = sorted(
        (int(row[label]), np.asarray(row[image].convert("RGB")).tobytes()) for row in loaded
    )
    assert found == sorted((row["label"], pixels(store, key, row).tobytes()) for row in rows)
    if form != "webdataset":
        assert (
            loaded.features["label"].names == list(CLASSES)
            and loaded[0]["prompt"] == f"a photo of a {CLASSES[0]}"
        )
    example = (folders[form] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert set(re.sub(r"\(.*?\)|,", "", example.split("columns: ")[1]).split()) == set(
        loaded.features
    ) - {"__key__", "__url__"}
    scope = {}
    exec(example.replace("path/to", str(folders[form].parent)), scope)
    assert len(scope["images"]) == 15, "the card's own lines read it"


def test_torchvision_reads_the_image_folder_back(made):
    from torchvision.datasets import ImageFolder

    _store, _key, _rows, folders = made
    loaded = ImageFolder(folders["imagefolder"] / "train")
    assert loaded.classes == sorted(CLASSES) and len(loaded) == 15


def test_shards_are_cut_and_the_same_bytes_again(made, tmp_path, monkeypatch):
    from datadream.publish import export as package

    store, key, _rows, _folders = made
    monkeypatch.setattr(package, "SHARD", 6)
    one, two = (export(key, tmp_path / name, ["webdataset"], store)[0] for name in "ab")
    names = sorted(p.name for p in one.glob("*.tar"))
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    with tarfile.open(one / names[2]) as tar:
        assert tar.getnames() == [
            f"{n:08d}.{suffix}" for n in (12, 13, 14) for suffix in ("png", "cls", "json")
        ]


@pytest.mark.parametrize("form", FORMATS)
def test_the_card_tells_method_licence_recipe_and_faults(made, form, models):
    _store, key, _rows, folders = made
    text = (folders[form] / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (
        front["class_names"] == dict(enumerate(CLASSES))
        and "synthetic" in front["tags"]
        and front["license"] == "unknown"
    )
    assert "&quot;" not in text
    for word in (
        "15 images of 3 classes",
        "ECCV 2024",
        "licence",
        "one adapter (DataDream (dataset)",
        "adapt.rank",
        "guidance",
        "Seed of the study: 0",
        "2 real images per class",
        "Known limitations",
        key,
    ):
        assert word in text


def test_a_class_name_is_never_markup_in_the_card(make, tmp_path, store):
    from conftest import write_classes
    from huggingface_hub import DatasetCard
    from markdown_it import MarkdownIt

    names = ['`` a"b: [x](y)', "<script>alert(1)</script>".replace("/", "∕"), "- {y} \U0001f436"]
    write_classes(tmp_path / "photos", names, 6)
    key = run.run(make("base", folder=str(tmp_path / "photos")), store)["artifacts"]["generate"]
    text = (export(key, tmp_path / "out", ["imagefolder"], store)[0] / "README.md").read_text()
    card = DatasetCard(text)  # as the hub reads it
    assert sorted(card.data.class_names.values()) == sorted(names)
    page = MarkdownIt().render(card.text)
    assert "<script>" not in page and "<a " not in page and "&quot;a photo of a" in page


def test_what_cannot_be_exported_is_refused(made, tmp_path):
    store, key, _, folders = made
    with pytest.raises(ConfigError, match=f"'generate-0' is not a finished synthetic set.*{key}"):
        export("generate-0", tmp_path, store=store)
    with pytest.raises(ConfigError, match="format 'parket' is unknown.*Did you mean 'parquet'"):
        export(key, tmp_path, ["parket"], store)
    with pytest.raises(ConfigError, match="licence 'CC BY 4.0' is not an identifier.*cc-by-4.0"):
        export(key, tmp_path, ["parquet"], store, licence="CC BY 4.0")
    with pytest.raises(ConfigError, match="exists already"):
        export(key, folders["parquet"].parent, ["parquet"], store)


def test_the_command_line_exports(made, tmp_path, monkeypatch, capsys):
    store, key, _, _ = made
    monkeypatch.setenv("DATADREAM_STORE", str(store.root))
    assert (
        main(
            ["export", key, str(tmp_path / "out"), "--format", "webdataset", "--license", "cc0-1.0"]
        )
        == 0
    )
    text = (tmp_path / "out" / "webdataset" / "README.md").read_text()
    assert (
        yaml.safe_load(text.split("---")[1])["license"] == "cc0-1.0"
        and "Licence of these images: cc0-1.0" in text
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "webdataset")
    assert main(["export", "generate-0", str(tmp_path / "out")]) == 2


def test_without_the_package_for_parquet_nothing_is_written(made, tmp_path, monkeypatch):
    from datadream.publish import export as package

    store, key, _, _ = made
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install datasets.*--format imagefolder"):
        export(key, tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()
    folder, _ = export(key, tmp_path / "out", ["imagefolder", "webdataset"], store)
    assert (folder / "train" / "metadata.jsonl").is_file()


def test_the_card_of_a_users_own_photos_knows_its_recipe(make, tmp_path, store):
    """`photos.keep` measures nothing, so that there is no record to read the recipe from."""
    from datadream import photos

    chosen = make("dset+real")
    fields = {
        "overrides": {name: value for name, value in as_dict(chosen).items() if "." in name},
        "shots": 2,
        "resolution": 16,
        "generator": chosen.generator,
        "classifier": chosen.classifier,
    }
    set_folder = photos.train_and_keep(chosen.folder, store=store, **fields)[0]
    text = (
        export(set_folder.name, tmp_path / "out", ["imagefolder"], store)[0] / "README.md"
    ).read_text()
    assert text.count("unknown") == 1, "the licence"
    assert "adapt.rank" in text and "2 real images per class of a folder of photos" in text


def test_the_labels_of_torchvision_are_ours_whatever_the_names(make, tmp_path, store):
    """An umlaut is written as `_` in a folder's name, which sorts elsewhere."""
    from conftest import write_classes
    from datasets import load_dataset
    from torchvision.datasets import ImageFolder

    names = ["Zebra", "apple", "\u00c4pfel"]
    write_classes(tmp_path / "photos", names, 6)
    key = run.run(make("base", folder=str(tmp_path / "photos")), store)["artifacts"]["generate"]
    folder = export(key, tmp_path / "out", ["imagefolder"], store)[0]
    loaded = ImageFolder(folder / "train")
    order = list(json.loads((folder / "classes.json").read_text()).items())
    assert [own for own, _ in order] == loaded.classes
    assert [name for _, name in order] == sorted(names)
    read = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == sorted(names)
    ours = {np.asarray(row["image"].convert("RGB")).tobytes(): row["label"] for row in read}
    assert len(ours) == 15
    for image, label in loaded:
        assert ours[np.asarray(image).tobytes()] == label
    assert "the sort order of the folders" in (folder / "README.md").read_text()
