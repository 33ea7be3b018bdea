"""The models by name: what is said where one cannot be fetched."""

import logging
import shlex

import huggingface_hub.constants
import pytest

from datadream.cli import main
from datadream.data import paper_datasets
from datadream.errors import ConfigError, ModelMissingError
from datadream.models import catalog, download

ADVICE = "pass 'local_files_only=False' as input"


@pytest.fixture
def no_network(monkeypatch):
    """Let diffusers and open_clip fail as they do without a network: a log line per attempt, and
    an error that gives advice.
    """
    import diffusers
    import open_clip

    def fail(*args, **options):
        try:
            raise OSError("[Errno -2] Name or service not known\nmore")
        except OSError as error:
            logging.getLogger("huggingface_hub").error("Retrying in 8s")
            raise OSError(
                f"To enable downloads, {ADVICE}. Check out the root cause in the stacktrace above."
            ) from error

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fail)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.parametrize(
    "name, repository, field",
    [
        ("sd2.1-base", "models--sd2-community--stable-diffusion-2-1-base", "generator"),
        ("nobody/thing", "models--nobody--thing", "generator"),
        (
            "ViT-B-16-quickgelu/openai",
            "models--timm--vit_base_patch16_clip_224.openai",
            "classifier",
        ),
        ("hf-hub:nobody/clip", "models--nobody--clip", "classifier"),
        ("ip-adapter-plus_sd15", "models--h94--IP-Adapter", "generate.image_prompts"),
    ],
)
def test_a_download_without_a_network_says_why_and_what_to_do_by_hand(
    no_network, capsys, caplog, name, repository, field
):
    assert main(["download", name]) == 2
    error = capsys.readouterr().err
    for words in (
        f"the model '{name}' was not downloaded: [Errno -2] Name or service not known.",
        f"the folder {repository}",
        download.cache(),
        "HF_HOME",
        f"set {field}=<folder",
    ):
        assert words in error
    assert (f"{field}='mini' needs no download" in error) == (field != "generate.image_prompts")
    assert ADVICE not in error and error.count("\n") == 1 and not caplog.records, (
        "the libraries' own words stay out"
    )
    logging.getLogger("huggingface_hub").error("heard")
    assert caplog.messages == ["heard"], "the log is silent during the download only"


def test_a_forbidden_network_is_the_reason(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelMissingError, match="HF_HUB_OFFLINE is set"):
        download.download_model("nobody/thing")


def test_weights_that_open_clip_does_not_have_are_no_matter_of_the_network():
    with pytest.raises(
        ConfigError,
        match="no weights 'openia' for 'ViT-B-16-quickgelu'; accepted: .*Did you mean 'openai'",
    ):
        download.download_model("ViT-B-16-quickgelu/openia")
    with pytest.raises(ConfigError, match="give 'ViT-B-16-quickgelu/openai'"):
        download.download_model("ViT-B-16/openai")


@pytest.mark.parametrize("name", ["mini", "resnet50"])
def test_what_needs_no_download_asks_for_none(no_network, name):
    assert main(["download", name]) == 0


@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_a_dataset_that_cannot_be_downloaded_says_where_to_put_it(
    monkeypatch, tmp_path, capsys, name
):
    from torchvision import datasets

    def offline(root, download):
        raise OSError("no route to host")

    source = paper_datasets.SOURCES[name]
    monkeypatch.setenv("DATADREAM_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, source.torchvision, offline)
    assert main(["download", name]) == 2
    error = capsys.readouterr().err
    for words in (
        "no route to host",
        paper_datasets.COOP,
        str(tmp_path / source.folders[0] / source.images[0]),
        source.split,
        "DATADREAM_DATA",
    ):
        assert words in error


def test_a_command_to_copy_is_one_argument_whatever_the_name_is():
    words = catalog.absent("my models/it's; touch ran", "generator")
    assert shlex.split(words.split("`")[1]) == [
        "python",
        "-m",
        "datadream",
        "download",
        "my models/it's; touch ran",
    ]
    assert catalog.fetching("sd2.1-base").startswith(
        "`python -m datadream download sd2.1-base` fetches it ("
    )
