"""The paper's ten datasets: each true layout in small, and what one is told when something is
missing or wrong.
"""

import csv
import dataclasses
import hashlib
import json
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from datadream.data import datasets, images, paper_datasets
from datadream.data.folders import CopyWarning
from datadream.errors import DataError
from datadream.methods.recipes import recipe

# Class folders (or what stands for them) in label order; the names are those of the true archives.
CLASSES = {
    "imagenet": ["n01440764", "n01443537", "n01484850"],
    "caltech101": ["Faces", "Leopards", "accordion"],
    "dtd": ["banded", "blotchy", "braided"],
    "eurosat": ["AnnualCrop", "Forest", "SeaLake"],
    "fgvc_aircraft": ["707-320", "F-16A/B", "F/A-18"],
    "pets": ["Abyssinian", "american_bulldog", "Bengal"],
    "cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"],
    "sun397": ["a/abbey", "a/apartment_building/outdoor", "b/bakery/shop"],
    "food101": ["apple_pie", "baklava", "waffles"],
    "flowers102": ["pink primrose", "sweet pea", "tiger lily"],
}
SIZES = (6, 3, 9)  # images in train, val and test of the small copies: two, one and three a class
PLACES = {  # dataset -> layout -> the folder of the images under the data folder
    "caltech101": {
        "torchvision": "caltech101/101_ObjectCategories",
        "coop": "caltech-101/101_ObjectCategories",
    },
    "dtd": {"torchvision": "dtd/dtd/images", "coop": "dtd/images"},
    "eurosat": {"torchvision": "eurosat/2750", "coop": "eurosat/2750"},
    "fgvc_aircraft": {
        "torchvision": "fgvc-aircraft-2013b/data/images",
        "coop": "fgvc_aircraft/images",
    },
    "pets": {"torchvision": "oxford-iiit-pet/images", "coop": "oxford_pets/images"},
    "cars": {"torchvision": "stanford_cars", "coop": "stanford_cars"},
    "sun397": {"torchvision": "SUN397", "coop": "sun397/SUN397"},
    "food101": {"torchvision": "food-101/images", "coop": "food-101/images"},
    "flowers102": {"torchvision": "flowers-102/jpg", "coop": "oxford_flowers/jpg"},
}
SPLIT_BESIDE = {
    "caltech101": "..",
    "dtd": "..",
    "eurosat": "..",
    "pets": "..",
    "cars": ".",
    "sun397": "..",
    "food101": "..",
    "flowers102": "..",
}


def path_of(name, label, number, part):
    """Return the true relative path of image `number` of a class."""
    own = CLASSES[name][label]
    return {
        "caltech101": f"{own}/image_{number:04d}.jpg",
        "dtd": f"{own}/{own}_{number:04d}.jpg",
        "eurosat": f"{own}/{own}_{number}.jpg",
        "pets": f"{own}_{number}.jpg",
        "cars": f"cars_{'test' if part == 'test' else 'train'}/{3 * number + label:05d}.jpg",
        "sun397": f"{own}/sun_{number}.jpg",
        "food101": f"{own}/{number}.jpg",
        "flowers102": f"image_{3 * number + label + 1:05d}.jpg",
        "fgvc_aircraft": f"{3 * number + label:07d}.jpg",
        "imagenet": f"{own}/{own}_{number}.JPEG",
    }[name]


def rows_of(name):
    """Return part -> [(relative path, label)] of the small copy of a dataset."""
    numbers = iter(range(100))
    parts = {
        part: [next(numbers) for _ in range(size // 3)]
        for part, size in zip(("train", "val", "test"), SIZES, strict=True)
    }
    return {
        part: [(path_of(name, label, n, part), label) for label in range(3) for n in some]
        for part, some in parts.items()
    }


def draw(file, tone):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), tone, np.uint8)).save(file, format="JPEG")


def build(root, name, layout, split="coop"):
    """Write a small copy of a dataset in its true layout; the tone of an image tells its class."""
    folder, rows = root / PLACES[name][layout], rows_of(name)
    for part in rows.values():
        for path, label in part:
            draw(folder / path, 40 + 80 * label)
    if name == "fgvc_aircraft":
        for part, some in rows.items():
            lines = [f"{path.removesuffix('.jpg')} {CLASSES[name][label]}" for path, label in some]
            (folder.parent / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
        return folder
    beside = (folder / SPLIT_BESIDE[name]).resolve()
    if split == "coop":
        content = {
            part: [[path, label, CLASSES[name][label].lower()] for path, label in some]
            for part, some in rows.items()
        }
        (beside / paper_datasets.SOURCES[name].split).write_text(json.dumps(content))
    if split == "disef":
        with open(beside / "split_coop.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "filename", "class"])
            # DISEF sorts the pets into folders; their images lie flat where torchvision unpacks
            # them.
            writer.writerows(
                [
                    part,
                    f"{CLASSES[name][label]}/{path}" if name == "pets" else path,
                    CLASSES[name][label],
                ]
                for part, some in rows.items()
                for path, label in some
            )
    if name == "flowers102":
        numbers = {int(path[6:11]): label for some in rows.values() for path, label in some}
        savemat(
            beside / "imagelabels.mat",
            {"labels": np.array([[numbers.get(i + 1, 0) + 1 for i in range(max(numbers))]])},
        )
    return folder


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Make the tables as small as the copies, and return the data folder."""
    monkeypatch.setenv("DATADREAM_DATA", str(tmp_path / "data"))
    for name, source in paper_datasets.SOURCES.items():
        monkeypatch.setitem(paper_datasets.SOURCES, name, dataclasses.replace(source, sizes=SIZES))
    return tmp_path / "data"


CASES = [
    (name, layout, split)
    for name, layouts in PLACES.items()
    for layout in layouts
    for split in ("coop", "disef")
    if split == "coop" or name not in ("fgvc_aircraft", "cars")
]


@pytest.mark.parametrize("name, layout, split", CASES)
def test_each_true_layout_is_read_with_the_labels_of_the_paper(small, name, layout, split):
    build(small, name, layout, split)
    parts = paper_datasets.read_paper_dataset(name, tuple(CLASSES[name]))
    assert [len(part) for part in parts] == list(SIZES)
    for part in parts:
        for i, label in enumerate(part.labels):
            assert abs(int(np.asarray(part.open(i)).mean()) - (40 + 80 * label)) < 4
    assert len({source for part in parts for source in part.sources}) == sum(SIZES)


def test_imagenet_validates_on_training_images_and_is_tested_on_the_official_validation(
    small, monkeypatch
):
    monkeypatch.setattr(paper_datasets, "HELD_OUT", 1)
    monkeypatch.setitem(
        paper_datasets.SOURCES,
        "imagenet",
        dataclasses.replace(paper_datasets.SOURCES["imagenet"], sizes=(12, 0, 9)),
    )
    for part, count in (("train", 4), ("val", 3)):
        for label, own in enumerate(CLASSES["imagenet"]):
            for i in range(count):
                draw(
                    small / "imagenet" / "images" / part / own / f"{own}_{i}.JPEG", 40 + 80 * label
                )
    train, val, test = paper_datasets.read_paper_dataset("imagenet", tuple(CLASSES["imagenet"]))
    assert [len(train), len(val), len(test)] == [9, 3, 9]
    assert all("/train/" in source for source in train.sources + val.sources) and all(
        "/val/" in source for source in test.sources
    )
    assert not set(train.sources) & set(val.sources)


def test_a_folder_of_the_users_own_is_taken_for_the_dataset(small, tmp_path):
    build(tmp_path / "elsewhere", "dtd", "coop")
    assert (
        len(
            paper_datasets.read_paper_dataset(
                "dtd", tuple(CLASSES["dtd"]), str(tmp_path / "elsewhere" / "dtd")
            )[0]
        )
        == 6
    )


# As people have them.


def read(name):
    return paper_datasets.read_paper_dataset(name, tuple(CLASSES[name]))


def nest(folder):
    """Move what a folder holds into one of the same name within it."""
    inner = folder.with_name(f"{folder.name}-inner")
    folder.rename(inner)
    folder.mkdir()
    inner.rename(folder / folder.name)


def nestings(name, layout):
    """Return the folders of a layout that an archive may nest once more."""
    place = PLACES[name][layout]
    inner = ["cars_train", "cars_test"] if name == "cars" else []
    return [place, place.partition("/")[0], *(f"{place}/{own}" for own in inner)]


NESTED = [
    (name, layout, place)
    for name, layouts in PLACES.items()
    for layout in layouts
    for place in dict.fromkeys(nestings(name, layout))
]


@pytest.mark.parametrize("name, layout, place", NESTED)
def test_a_folder_that_is_nested_once_more_is_read_and_found_alike(
    small, monkeypatch, name, layout, place
):
    monkeypatch.setattr(paper_datasets, "class_names", lambda name: tuple(CLASSES[name]))
    build(small, name, layout)
    flat = read(name)
    assert paper_datasets.lacking(name) == ""
    nest(small / place)
    assert paper_datasets.lacking(name) == "", "what the doctor and the plan say"
    nested = read(name)
    assert [part.labels for part in nested] == [part.labels for part in flat]
    assert [part.stamp for part in nested] == [part.stamp for part in flat], "the same keys"


def test_imagenets_parts_may_be_nested_once_more(small, monkeypatch):
    monkeypatch.setattr(paper_datasets, "HELD_OUT", 1)
    sized = dataclasses.replace(paper_datasets.SOURCES["imagenet"], sizes=(6, 0, 6))
    monkeypatch.setitem(paper_datasets.SOURCES, "imagenet", sized)
    for part in ("train", "val"):
        for own in CLASSES["imagenet"]:
            for i in range(2):
                draw(small / "imagenet" / part / own / f"{own}_{i}.JPEG", 9)
    flat = read("imagenet")
    for part in ("train", "val"):
        nest(small / "imagenet" / part)
    assert [part.stamp for part in read("imagenet")] == [part.stamp for part in flat]


def test_the_labels_of_flowers_are_found_beside_a_nested_folder(small):
    build(small, "flowers102", "torchvision", split="disef")
    flat = read("flowers102")
    nest(small / "flowers-102" / "jpg")
    assert [part.labels for part in read("flowers102")] == [part.labels for part in flat]


def test_a_folder_of_the_users_own_may_be_nested_too(small, tmp_path):
    build(tmp_path / "elsewhere", "dtd", "coop")
    nest(tmp_path / "elsewhere" / "dtd")
    place = str(tmp_path / "elsewhere" / "dtd")
    assert len(paper_datasets.read_paper_dataset("dtd", tuple(CLASSES["dtd"]), place)[0]) == 6


def test_the_doctor_knows_that_a_list_of_variants_is_missing(small):
    folder = build(small, "fgvc_aircraft", "torchvision")
    (folder.parent / "images_variant_val.txt").unlink()
    assert "images_variant_val.txt is missing" in paper_datasets.lacking("fgvc_aircraft")


@pytest.mark.parametrize("name", ["cars", "dtd"])
def test_the_doctor_knows_that_the_images_are_incomplete(small, monkeypatch, name):
    monkeypatch.setattr(paper_datasets, "class_names", lambda name: tuple(CLASSES[name]))
    folder = build(small, name, "coop")
    (folder / path_of(name, 0, 0, "train")).unlink()
    with pytest.raises(DataError) as caught:
        read(name)
    assert paper_datasets.lacking(name) == str(caught.value) and "incomplete" in str(caught.value)


BACKSLASHES = [
    (name, split)
    for name in PLACES
    for split in ("coop", "disef")
    if name != "fgvc_aircraft" and (split == "coop" or name != "cars")
]


@pytest.mark.parametrize("name, split", BACKSLASHES)
def test_a_split_with_backslashes_names_the_same_images(small, name, split):
    folder = build(small, name, "coop", split)
    plain = read(name)
    names = (paper_datasets.SOURCES[name].split, paper_datasets.DISEF)
    (file,) = [f for own in names if (f := (folder / SPLIT_BESIDE[name] / own)).exists()]
    for rows in rows_of(name).values():
        for path, _ in rows:
            there = path.replace("/", "\\")
            new = there if split == "disef" else there.replace("\\", "\\\\")
            file.write_text(file.read_text().replace(path, new))
    assert "/" not in name and [part.stamp for part in read(name)] == [p.stamp for p in plain]


def test_images_without_folders_from_a_windows_archive_are_found(small):
    folder = build(small, "dtd", "coop")
    labels = [part.labels for part in read("dtd")]
    for file in list(folder.rglob("*.jpg")):
        file.rename(folder / str(file.relative_to(folder)).replace("/", "\\"))
    assert [part.labels for part in read("dtd")] == labels


def classes_in_the_split(small, name, spell):
    """Write the small copy with DISEF's split, its column of classes spelt by `spell(label)`."""
    folder = build(small, name, "coop", split="disef")
    (folder.parent / "imagelabels.mat").unlink(missing_ok=True)
    beside = (folder / SPLIT_BESIDE[name]).resolve()
    with open(beside / "split_coop.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "filename", "class"])
        for part, some in rows_of(name).items():
            writer.writerows([part, path, spell(label)] for path, label in some)


@pytest.mark.parametrize("name", ["flowers102", "cars"])
@pytest.mark.parametrize(
    "spell",
    [
        lambda own, label: own,
        lambda own, label: own.replace(" ", "_").upper(),
        lambda own, label: label,
        lambda own, label: label + 1,
    ],
    ids=["names", "spelt otherwise", "from 0", "from 1"],
)
def test_a_split_that_has_the_classes_needs_no_second_file(small, name, spell):
    classes_in_the_split(small, name, lambda label: spell(CLASSES[name][label], label))
    for part in read(name):
        for i, label in enumerate(part.labels):
            assert abs(int(np.asarray(part.open(i)).mean()) - (40 + 80 * label)) < 4


@pytest.mark.parametrize("name, way", [("flowers102", "imagelabels.mat"), ("cars", "split_zhou")])
@pytest.mark.parametrize("spell", [lambda label: "dandelion", lambda label: ""])
def test_a_split_with_strange_classes_says_what_it_needs(small, name, way, spell):
    classes_in_the_split(small, name, spell)
    with pytest.raises(DataError, match=f"split_coop.csv does not tell the class .*{way}"):
        read(name)


# What one is told.


@pytest.mark.parametrize("name", list(paper_datasets.SOURCES))
def test_a_dataset_that_is_not_there_is_named_with_what_to_fetch_and_where_to_put_it(small, name):
    source = paper_datasets.SOURCES[name]
    with pytest.raises(DataError) as caught:
        datasets.load_dataset(name)
    message = str(caught.value)
    assert (
        str(small / source.folders[0]) in message
        and "DATADREAM_DATA" in message
        and "`folder`" in message
    )
    assert (f"datadream download {name}" if source.torchvision else source.fetch) in message
    assert not source.split or source.split in message
    assert (paper_datasets.DISEF in message) == bool(source.split and source.disef), (
        "its list for cars does not tell the classes"
    )


def test_a_missing_split_says_which_file_and_where(small):
    build(small, "food101", "coop", split=None)
    with pytest.raises(DataError, match="split_zhou_Food101.json .*split_coop.csv.*food-101"):
        paper_datasets.read_paper_dataset("food101", tuple(CLASSES["food101"]))


def damaged(small, change):
    """Write the small DTD and change its split file's content."""
    folder = build(small, "dtd", "coop")
    file = folder.parent / paper_datasets.SOURCES["dtd"].split
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(changed if isinstance(changed, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        paper_datasets.read_paper_dataset("dtd", tuple(CLASSES["dtd"]))
    return str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: "{", ["split_zhou_DescribableTextures.json", "not a split file of CoOp"]),
        (lambda c: c.pop("val"), ["not a split file of CoOp", "'val'"]),
        (lambda c: c["train"].pop(), ["train part of dtd has 5 images", "says 6"]),
        (
            lambda c: [row.__setitem__(1, 0) for row in c["test"]] and None,
            ["test part of dtd has 1 classes", "the paper's has 3"],
        ),
        (
            lambda c: c["train"][0].__setitem__(0, "../../secret.jpg"),
            ["'../../secret.jpg'", "outside"],
        ),
        (
            lambda c: c["val"][0].__setitem__(0, "banded/lost.jpg"),
            ["banded/lost.jpg", "incomplete"],
        ),
    ],
)
def test_a_split_that_does_not_fit_says_why(small, change, words):
    message = damaged(small, change)
    assert all(word in message for word in words), message


def test_an_unknown_variant_is_named(small):
    folder = build(small, "fgvc_aircraft", "coop")
    file = folder.parent / "images_variant_val.txt"
    file.write_text(file.read_text().replace("F-16A/B", "F-16C"))
    with pytest.raises(DataError, match="'F-16C', which is none of the 3"):
        paper_datasets.read_paper_dataset("fgvc_aircraft", tuple(CLASSES["fgvc_aircraft"]))


def test_a_flat_validation_folder_of_imagenet_says_what_to_do(small):
    for own in CLASSES["imagenet"]:
        draw(small / "imagenet" / "train" / own / "a.JPEG", 9)
    draw(small / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", 9)
    with pytest.raises(DataError, match="the validation archive is flat"):
        paper_datasets.read_paper_dataset("imagenet", tuple(CLASSES["imagenet"]))


@pytest.mark.parametrize("name", ["imagenet", "cars", "sun397"])
def test_what_cannot_be_downloaded_says_what_to_get(small, name):
    with pytest.raises(
        DataError,
        match=f"{name} cannot be downloaded; get .*{paper_datasets.SOURCES[name].folders[0]}",
    ):
        paper_datasets.download(name)


@pytest.mark.parametrize(
    "name", [name for name, source in paper_datasets.SOURCES.items() if source.torchvision]
)
def test_torchvision_is_asked_for_the_rest(small, monkeypatch, name):
    from torchvision import datasets

    asked = []
    monkeypatch.setattr(
        datasets,
        paper_datasets.SOURCES[name].torchvision,
        lambda root, download: asked.append((root, download)),
    )
    assert paper_datasets.download(name) == small / paper_datasets.SOURCES[name].folders[
        0
    ] and asked == [(str(small), True)]

    def offline(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, paper_datasets.SOURCES[name].torchvision, offline)
    with pytest.raises(DataError, match=f"could not download {name} .no route to host.*CoOp"):
        paper_datasets.download(name)


# The table.


def test_the_ten_datasets_are_the_paper_s():
    counts = {
        "imagenet": 1000,
        "caltech101": 100,
        "dtd": 47,
        "eurosat": 10,
        "fgvc_aircraft": 100,
        "pets": 37,
        "cars": 196,
        "sun397": 397,
        "food101": 101,
        "flowers102": 102,
    }
    assert {name: len(datasets.DATASETS[name].classes) for name in paper_datasets.SOURCES} == counts
    assert all(len(set(datasets.DATASETS[name].classes)) == count for name, count in counts.items())


@pytest.mark.parametrize(
    "name, label, text",
    [
        ("imagenet", 0, "a photo of a tench"),
        ("caltech101", 3, "a photo of a accordion"),
        ("fgvc_aircraft", 0, "a aircraft photo of a 707-320"),
        ("cars", 0, "a car photo of a AM General Hummer SUV 2000"),
        ("eurosat", 0, "a satellite photo of a AnnualCrop"),
        ("food101", 0, "a food photo of a apple_pie"),
        ("dtd", 0, "a texture photo of a banded"),
        ("pets", 0, "a pet photo of a Abyssinian"),
        ("flowers102", 0, "a flower photo of a pink primrose"),
        ("sun397", 0, "a scene photo of a abbey"),
    ],
)
def test_the_prompts_are_the_paper_s_to_the_letter(name, label, text):
    row = datasets.DATASETS[name]
    assert datasets.prompt(row.noun, row.classes[label]) == text


def test_readable_names_are_words():
    assert paper_datasets.readable("eurosat", ("AnnualCrop",) * 10)[0] == "annual crop land"
    assert paper_datasets.readable("food101", ("apple_pie", "pho")) == ("apple pie", "pho")
    assert (
        datasets.load_dataset("mnist", names="readable").classes
        == datasets.load_dataset("mnist").classes
    )


def test_the_noun_of_a_users_images_is_theirs(folder):
    assert (
        datasets.load_dataset("folder", folder, noun="bird").noun == "bird"
        and datasets.load_dataset("folder", folder).noun == ""
    )


def test_the_few_shots_of_the_released_code_are_read_also_where_a_name_has_a_slash(
    tmp_path, dataset
):
    classes = ("F-16A/B", "F/A-18", "Yak-42")
    for label, name in enumerate(classes):
        for i in range(2):
            draw(tmp_path / "real_train_fewshot" / "seed0" / name / f"{i}.jpg", 50 * label)
    shots = paper_datasets.read_shots(str(tmp_path / "real_train_fewshot" / "seed0"), classes)
    assert shots.labels == (0, 0, 1, 1, 2, 2)
    with pytest.raises(DataError, match="no images for class 'Su-27'"):
        paper_datasets.read_shots(
            str(tmp_path / "real_train_fewshot" / "seed0"), (*classes, "Su-27")
        )


def test_a_recipe_takes_the_few_shots_of_a_folder(tmp_path, folder, make):
    whole = datasets.load_dataset("folder", folder)
    for label, name in enumerate(whole.classes):
        for i in range(3):
            draw(tmp_path / name / f"{i}.jpg", 50 * label)
    chosen = datasets.load_for(make("real", shots_folder=str(tmp_path)))
    assert all(
        source.startswith(str(tmp_path)) for source in datasets.few_shots(chosen, 2, 0).sources
    )
    assert chosen.test.sources == whole.test.sources


def test_few_shots_that_are_files_of_the_paper_s_test_part_are_named(small, tmp_path, monkeypatch):
    """Alike in size alone, or files that only the pool has, are none."""
    classes = tuple(CLASSES["dtd"])
    read = partial(paper_datasets.read_paper_dataset, "dtd", classes)
    monkeypatch.setitem(
        datasets.DATASETS, "dtd", datasets.Row(read, "texture", classes, "", "optional")
    )
    rows, root = rows_of("dtd"), build(small, "dtd", "coop")
    for number, (path, _) in enumerate(row for part in rows.values() for row in part):
        (root / path).write_bytes(f"image {number:03d}".encode())
    for part in ("train", "test"):
        shots = tmp_path / f"{part} shots"
        for path, label in rows[part]:
            (shots / classes[label]).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, shots / classes[label])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CopyWarning)
        datasets.load_dataset("dtd", shots_folder=str(tmp_path / "train shots"))
    with pytest.warns(CopyWarning, match="9 few shots of 9 are in the test part.*same file as"):
        datasets.load_dataset("dtd", shots_folder=str(tmp_path / "test shots"))


@pytest.mark.parametrize(
    "shots, validation, per_class", [(16, 4, 2), (1, 4, 1), (2, 0, 2), (2, 1, 1)]
)
def test_validation_images_are_as_few_as_the_shots(dataset, shots, validation, per_class):
    """The folder's validation part has two images a class."""
    one = recipe("paper", dataset="folder", shots=shots, validation=validation)
    drawn = datasets.validation_images(one, dataset)
    assert np.bincount(drawn.labels).tolist() == [per_class] * 3 and set(drawn.sources) <= set(
        dataset.val.sources
    )
    assert datasets.validation_images(one, dataset) is drawn, "hashed once"


def test_a_large_set_is_fingerprinted_by_its_list(small):
    folder = build(small, "dtd", "coop")
    first = images.fingerprint(paper_datasets.read_paper_dataset("dtd", tuple(CLASSES["dtd"]))[2])
    assert (
        images.fingerprint(paper_datasets.read_paper_dataset("dtd", tuple(CLASSES["dtd"]))[2])
        == first
    )
    draw(folder / path_of("dtd", 0, 5, "test"), 200)
    (folder / path_of("dtd", 0, 5, "test")).write_bytes(
        (folder / path_of("dtd", 0, 5, "test")).read_bytes() + b" "
    )
    assert (
        images.fingerprint(paper_datasets.read_paper_dataset("dtd", tuple(CLASSES["dtd"]))[2])
        != first
    )


@pytest.mark.parametrize("name", ["dtd", "eurosat", "flowers102", "food101"])
def test_the_released_protocol_tests_three_datasets_on_their_train_part(small, monkeypatch, name):
    build(small, name, "coop")
    monkeypatch.setitem(
        datasets.DATASETS,
        name,
        dataclasses.replace(
            datasets.DATASETS[name],
            read=lambda folder: paper_datasets.read_paper_dataset(name, tuple(CLASSES[name])),
            classes=tuple(CLASSES[name]),
        ),
    )
    faulty, strict = (
        datasets.load_for(recipe("paper", dataset=name, protocol=protocol))
        for protocol in ("released", "strict")
    )
    assert (faulty.test.sources == faulty.train.sources) == (name != "food101")
    assert not set(strict.test.sources) & set(strict.train.sources)


# SHA-256 of the prompts of all classes, one a line: they pin every name of the paper's code, in its
# order and spelling.
PROMPTS = {
    "imagenet": "ede9d1300d88b4c4",
    "caltech101": "73082eaad029d160",
    "dtd": "3287938b702109e1",
    "eurosat": "bb1a8e8c54ca8718",
    "fgvc_aircraft": "e324f7115382a792",
    "pets": "67b12030288fcb6d",
    "cars": "2b218d639da59f88",
    "sun397": "4fc4e5df9e0388a8",
    "food101": "ee6ed1c1606b0c00",
    "flowers102": "88a9292c5bf57f37",
}


@pytest.mark.parametrize("name", paper_datasets.SOURCES)
def test_every_prompt_of_a_dataset_is_pinned(name):
    text = "\n".join(
        datasets.prompt(paper_datasets.SOURCES[name].noun, own)
        for own in paper_datasets.class_names(name)
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PROMPTS[name]
