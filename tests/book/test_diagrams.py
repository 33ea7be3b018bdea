"""The hand-drawn diagrams: their text, and whether the method's agrees with the code."""

import re

import pytest
from conftest import ROOT

from datadream.config import Recipe
from datadream.pipeline.stages import STAGES

DIAGRAMS = sorted((ROOT / "book" / "diagrams").glob("*.svg"))
PAGE = (ROOT / "book" / "method.md").read_text()
TEXTS = re.findall(r"<text[^>]*>([^<]+)</text>", (DIAGRAMS[0].parent / "method.svg").read_text())


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.name)
def test_a_diagram_is_as_wide_as_a_phone_and_its_text_large_enough(path):
    picture = path.read_text()
    assert 'class="diagram"' in picture and 'viewBox="0 0 360 ' in picture
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', picture)]
    assert sizes and min(sizes) >= 11


def test_the_picture_of_the_method_has_the_stages_of_its_page():
    stages = [text for text in TEXTS if re.match(r"\d ", text)]
    assert stages == [" ".join(found) for found in re.findall(r"^## (\d)\. (.+)$", PAGE, re.M)]
    rows = re.findall(r"^\| (\d)\. .*`(\w+)` \|", PAGE, re.M)
    assert rows == [(str(i), stage.name) for i, stage in enumerate(STAGES, 1)]
    assert len(rows) == len(stages)


def test_the_picture_of_the_method_has_the_settings_of_the_paper():
    paper = Recipe()
    weight = paper.classify.real_weight
    assert f"equation 3; λ = {weight} in the paper" in TEXTS and f"$\\lambda = {weight}$" in PAGE
    assert f"a scale $w$, which is {paper.generate.guidance:g} in the paper" in PAGE
    # LoRA is on the attention of both networks of the generator, and on q and v of both towers.
    assert paper.adapt.text_encoder and TEXTS.count("attention") == 2
    assert paper.classify.targets == "qv" and TEXTS.count("query and value") == 2
