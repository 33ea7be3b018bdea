"""Bad input: every case of the table in bad_input.py ends as it says, and so do further ones
that hypothesis makes.
"""

import contextlib
import json
from collections import Counter
from pathlib import Path

import bad_input
import pytest
from bad_input import CASES, SPAN, coded
from conftest import draw_image, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st

from datadream import config
from datadream.data import folders, images
from datadream.errors import ConfigError, DataError, printable
from datadream.methods import recipes
from datadream.publish import export
from datadream.store import keys
from datadream.store.artifacts import Store
from datadream.study import named_runs, run, samples


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """Return (recipe, store, record) of one finished cell, which no test changes."""
    store = Store(tmp_path_factory.mktemp("finished"))
    one = make("real")
    return one, store, run.run(one, store)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.group}: {case.name}" for case in CASES])
def test_bad_input_ends_as_the_table_says(case, tmp_path, finished):
    assert bad_input.attempt(case, tmp_path, finished) == case.end


def test_odd_class_names_go_through_the_whole_study(make, tmp_path, store):
    names = ['a "b": [x]', "<img src=x>", "$(touch ran)", "\U0001f431", "$\\frac$"]
    write_classes(tmp_path / "photos", names, 6)
    recipe = make("base+real", folder=str(tmp_path / "photos"))
    key = run.run(recipe, store)["artifacts"]["generate"]
    assert sorted(images for images in samples.sample_rows([recipe], store)) == [
        "Real few shots",
        "Untuned generator",
    ]
    assert len(list((store.folder(key) / "train").glob("*/*.png"))) == 25
    rows = [
        json.loads(line)
        for line in (store.folder(key) / "train" / "metadata.jsonl").read_text().splitlines()
    ]
    assert {row["class"] for row in rows} == set(names)


# Further ones of each class, made by hypothesis.
EXAMPLES = {"image files": 150, "class names and prompts": 100, "recipes": 100, "study files": 100}

FORMS = {
    form: coded(draw_image(0, 9), form) for form in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
}
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12)


@settings(max_examples=EXAMPLES["image files"])
@given(st.sampled_from(sorted(FORMS)), EDITS, st.integers(0, 10**6))
def test_a_file_with_changed_bytes_is_an_image_or_a_data_error(tmp_path, form, edits, cut):
    content = bytearray(FORMS[form])
    for place, value in edits:
        content[place % min(len(content), 200 if place % 2 else len(content))] = value
    (tmp_path / "x.png").write_bytes(content[:cut] if cut % 3 == 0 else content)
    with contextlib.suppress(DataError):
        assert images.Images((str(tmp_path / "x.png"),), (0,)).open(0).mode == "RGB"


@settings(max_examples=EXAMPLES["class names and prompts"])
@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=4))
def test_any_class_names_are_refused_or_stay_text(names):
    if folders.name_faults(names):
        return
    safe = folders.class_folders(names)
    assert len({f.lower() for f in safe}) == len(names) and all(
        f == Path(f).name and f.isascii() for f in safe
    )
    for name in names:
        assert json.loads(SPAN.fullmatch(export._text(name))[2]) == name, "all of it is code"


@settings(max_examples=EXAMPLES["recipes"])
@given(
    st.dictionaries(
        st.sampled_from(sorted(config.as_dict(recipes.recipe()))),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.integers(), max_size=2)
        | st.binary(max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_any_settings_are_a_recipe_with_a_key_or_a_config_error(values):
    try:
        one = recipes.recipe(overrides=values)
    except ConfigError as error:
        assert printable(str(error))
    else:
        assert keys.key("x", recipe=one).startswith("x-")


@settings(max_examples=EXAMPLES["study files"])
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "runs: ",
                "smoke: ",
                "{",
                "}",
                "[",
                "]",
                "&a ",
                "*a",
                "<<: ",
                "!!int ",
                "!!python/name:os.system ",
                "x: ",
                "\n",
                "- ",
                "1",
            ]
        ),
        max_size=14,
    ).map("".join)
)
def test_any_study_file_is_a_study_or_a_config_error(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with contextlib.suppress(ConfigError):
        assert set(named_runs.load_study(tmp_path / "study.yaml")) == {"runs", "smoke"}


def test_the_table_has_no_case_twice():
    groups = Counter(case.group for case in CASES)
    assert (
        len({(case.group, case.name) for case in CASES}) == len(CASES)
        and len(groups) == 11
        and min(groups.values()) >= 6
    )
