"""A model that some later stage cannot use is refused before the first stage has made anything."""

import shutil

import pytest
import torch
from conftest import CLIP

from datadream.errors import ConfigError
from datadream.mini import base, tokens
from datadream.pipeline.stages import Cell
from datadream.study.run import run, run_cells

CONVOLUTIONS = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}


@pytest.fixture
def convolutional(models, tmp_path, monkeypatch):
    """Return the folder of a CLIP whose image tower is a ResNet, which the LoRA cannot adapt."""
    import open_clip

    folder = tmp_path / "convolutional"
    shutil.copytree(models.classifier, folder)
    tokenizer = tokens.clip_tokenizer(folder, CLIP["text_cfg"]["context_length"])
    text = {name: CLIP["text_cfg"][name] for name in ("context_length", "width", "heads", "layers")}
    torch.manual_seed(0)
    model = open_clip.CLIP(
        CLIP["embed_dim"], CONVOLUTIONS, dict(text, vocab_size=len(tokenizer)), quick_gelu=True
    )
    monkeypatch.setattr(base, "CLIP", CLIP | {"vision_cfg": CONVOLUTIONS})
    base.save_clip(folder, model, tokenizer)
    return str(folder)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_classifier_that_cannot_be_adapted_is_refused_before_anything_is_made(
    make, store, convolutional, engine
):
    recipe = make("dset", {"classifier": convolutional})
    with pytest.raises(ConfigError, match="classifier='.*convolutional'.*two transformer towers"):
        run_cells([recipe], store, engine=engine)
    assert not [name for name in store.keys() if name != "records"], "no stage has begun"


def test_the_same_classifier_judges_where_nothing_is_trained(make, store, convolutional):
    record = run(make("clip", {"classifier": convolutional}), store)
    assert 0 <= record["result"]["test"]["top1"] <= 1


def test_redraws_that_nobody_can_judge_are_refused_before_an_adapter_is_trained(make, store):
    overrides = {"classifier": "resnet50", "generate.redraws": 2}
    with pytest.raises(ConfigError, match=r"generate.redraws=2.*'resnet50'.*generate.redraws=0"):
        run(make("dset", overrides), store)
    assert not [name for name in store.keys() if name.startswith(("adapt", "generate"))]


def test_what_an_engine_asks_beforehand_is_what_a_cell_asks(make, store):
    cell = Cell(make("dset", {"generate.scheduler": "PNDMSchedular"}))
    with pytest.raises(ConfigError, match="Did you mean 'PNDMScheduler'"):
        cell.require_runnable(store)


def test_asking_takes_no_random_number(make, store):
    Cell(make("dset")).require_runnable(store)  # loads the models
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    from datadream.models.classifiers.base import require_adaptable

    require_adaptable.cache_clear()
    require_adaptable(make("dset").classifier)
    assert torch.equal(torch.rand(1), expected)
