"""Adaptations that are no plain LoRA: heads that share a matrix (ChimeraLoRA) and a learnt token
(DA-Fusion).
"""

import dataclasses
import functools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import Killed, adapt, adapter_key, dies_at
from conftest import generate as make_set
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from datadream.data.datasets import TEMPLATES, load_dataset
from datadream.data.synthetic_set import read_synthetic_set
from datadream.errors import ConfigError, DataError
from datadream.methods.base import Adapter, Draw, Support
from datadream.methods.checked import draws, tuning_prompts
from datadream.methods.datadream import ClassWise
from datadream.methods.distinct import require_distinct
from datadream.methods.recipes import recipe
from datadream.methods.units import groups
from datadream.models.generators.base import Attached
from datadream.models.generators.heads import head_file
from datadream.models.generators.inversion import TOKEN_FILE
from datadream.models.generators.kinds import KINDS
from datadream.models.generators.load import load_generator
from datadream.models.generators.tokens import placeholder, tokens_of
from datadream.models.generators.words import Words
from datadream.pipeline import adapt as package
from datadream.pipeline.adapt import adapter_work, diffusion_loss
from datadream.pipeline.stages import Cell
from datadream.store.artifacts import Store
from datadream.training.batch_size import BatchSize
from datadream.training.loop import fit

KIND = {"chimera": "heads", "dafusion": "token"}
MNIST = load_dataset("mnist")


def contents(folder):
    """Return the bytes of an adapter's or a set's files but its manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {f.relative_to(folder): f.read_bytes() for f in files if f.name != "manifest.json"}


def fresh(name):
    """Return a pipeline of diffusers' own, which none of ours has touched."""
    return StableDiffusionPipeline.from_pretrained(
        name, safety_checker=None, requires_safety_checker=False
    )


@torch.no_grad()
def predict(pipe, text, noisy):
    """Return what a UNet makes of some noise and a prompt."""
    hidden = pipe.encode_prompt(text, pipe.device, 1, False)[0].expand(len(noisy), -1, -1)
    return pipe.unet(noisy, 5, hidden).sample


@pytest.fixture
def noisy():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


# Heads.


def test_each_head_is_a_lora_that_load_lora_weights_reads(make, dataset, store, noisy):
    one = make("chimera", shots=3)
    folder = adapt(one, dataset, store, 1)
    names = [head_file(i) for i in range(3)]
    assert sorted(f.name for f in folder.iterdir()) == [*names, "manifest.json"]
    tensors = [load_file(folder / name) for name in names]
    for name in tensors[0]:
        same = [torch.equal(tensors[0][name], other[name]) for other in tensors[1:]]
        assert all(same) if ".down." in name else not any(same), "one A, and a B each"
    generator, text = load_generator(one.generator), "a photo of a fox"
    base = predict(generator.pipe, text, noisy)
    for i, name in enumerate(names):
        loaded = fresh(one.generator)
        loaded.load_lora_weights(folder, weight_name=name)
        with KINDS["heads"].loaded(generator, folder, weights=np.eye(3)[i].tolist()):
            merged = predict(generator.pipe, text, noisy)
        torch.testing.assert_close(predict(loaded, text, noisy), merged, atol=1e-3, rtol=1e-3)
        assert (merged - base).abs().max() > 0.1


def test_heads_are_mixed_by_their_weights_and_leave_the_base_bit_for_bit(make, dataset, store):
    one = make("chimera", shots=3)
    folder, generator = adapt(one, dataset, store, 0), load_generator(one.generator)
    base = {name: p.clone() for name, p in generator.network.named_parameters()}

    def change(weights=()):
        with KINDS["heads"].loaded(generator, folder, weights=weights):
            return {n: p - base[n] for n, p in generator.network.named_parameters()}

    alone = [change(row) for row in np.eye(3).tolist()]

    @settings(max_examples=10)
    @given(weights=st.lists(st.floats(0, 2), min_size=3, max_size=3))
    def check(weights):
        for name, found in change(weights).items():
            expected = sum(w * delta[name] for w, delta in zip(weights, alone, strict=True))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    check()
    for name, found in change().items():
        expected = sum(delta[name] for delta in alone) / 3
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(p, base[n]) for n, p in generator.network.named_parameters())


def test_each_shot_goes_through_its_own_head(make, noisy):
    one, generator = make("chimera"), load_generator(make("chimera").generator)
    words = generator.condition(generator.tokenize(["a fox"] * 3), 16)
    times = torch.full((3,), 5)
    with KINDS["heads"].attached(generator, one.adapt, 0, 4) as own:
        ups = {n: p for n, p in own.parameters.items() if n.endswith(".up")}
        assert all(not p.any() and p.shape[0] == 4 for p in ups.values())
        assert own.rates == dict.fromkeys(ups, 10.0) and 2 * len(ups) == len(own.parameters)
        with torch.no_grad():
            for value in ups.values():
                value.normal_()
        own.select(torch.tensor([2, 0, 3]))
        whole = generator.predict(noisy, times, words)
        for row, shot in enumerate([2, 0, 3]):
            own.select(torch.tensor([shot]))
            text = words[0][:1], None
            alone = generator.predict(noisy[row : row + 1], times[:1], text)
            torch.testing.assert_close(alone[0], whole[row], atol=1e-4, rtol=1e-4)
        own.select(torch.tensor([2, 0, 3]))
        generator.predict(noisy, times, words).square().mean().backward()
        moved = [[bool(p.grad[i].any()) for i in range(4)] for p in ups.values()]
        assert moved == [[True, False, True, True]] * len(ups)
        own.select(torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="3 images, and 2 are selected"):
            generator.predict(noisy, times, words)
    assert not any(module._forward_hooks for module in generator.network.modules())


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), shots=st.sampled_from([1, 2, 4, 16]), label=st.integers(0, 9))
def test_every_image_mixes_the_heads_of_its_class_anew(seed, shots, label):
    support = Support(recipe(method="chimera", seed=seed, shots=shots), MNIST)
    made = draws(support, label)
    for one in made:
        assert one.adapters == (Adapter(label),) and one.prompt == support.prompt(label)
        assert len(one.weights) == shots and min(one.weights) >= 0
        assert sum(one.weights) == pytest.approx(1, abs=1e-5)
    if shots == 1:
        assert {one.weights for one in made} == {(1.0,)}
        assert len(groups(support, label)) == 1, "so they share batches"
    else:
        assert len({one.weights for one in made}) == len(made) == len(groups(support, label))
        means = np.mean([one.weights for one in made], 0)
        assert np.abs(means - 1 / shots).max() < 0.15


def test_weights_are_as_many_as_heads(make, dataset, registered):
    class Wrong(ClassWise):
        def draw(self, support, label, index, rng):
            return Draw("a", (Adapter(label),), weights=(1.0,))

    registered(Wrong("wrong", "Wrong", "#882255"))
    options = {"adapt.kind": "heads", "adapt.text_encoder": False}
    with pytest.raises(ConfigError, match="weights=.*1 adapters, 3 in all.*'heads'"):
        draws(Support(make("wrong", options, shots=3), dataset), 0)
    assert len(draws(Support(make("wrong", shots=3), dataset), 0)) == 5
    with pytest.raises(ConfigError, match="0 in all, since adapt.kind='token'"):
        draws(Support(make("wrong", {"adapt.kind": "token", "adapt.word": "a"}), dataset), 0)


# A token.


def test_the_token_is_what_load_textual_inversion_reads_and_nothing_else_changes(
    make, dataset, store
):
    one = make("dafusion", {"adapt.steps": 4, "adapt.lr": 0.05})
    generator = load_generator(one.generator)
    encoder, tokenizer = generator.pipe.text_encoder, generator.pipe.tokenizer
    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    known, table = dict(tokenizer.get_vocab()), encoder.get_input_embeddings()
    folder = adapt(one, dataset, store, 2)
    (learnt,) = load_file(folder / TOKEN_FILE).values()
    assert sorted(f.name for f in folder.iterdir()) == [TOKEN_FILE, "manifest.json"]
    (start,) = tokenizer("the", add_special_tokens=False).input_ids
    assert (learnt - table.weight[start]).abs().max() > 1e-2

    texts = ["a photo of a <class-2>", "<class-2> and a fox", "a photo of a fox"]
    with KINDS["token"].loaded(generator, folder):
        ours = generator.embed(texts, one.generate)["prompt_embeds"]
        trained = generator.condition(generator.tokenize(texts), 16)[0]
    loaded = fresh(one.generator)
    loaded.load_textual_inversion(folder)
    theirs = loaded.encode_prompt(texts, "cpu", 1, False)[0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(trained, theirs)
    plain = generator.embed(texts, one.generate)["prompt_embeds"]
    assert torch.equal(plain[2], ours[2]) and (plain[0] - ours[0]).abs().max() > 1e-3

    assert generator.pipe.tokenizer is tokenizer and tokenizer.get_vocab() == known
    assert encoder.get_input_embeddings() is table
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    if loaded.text_encoder.get_input_embeddings().num_embeddings == len(table.weight) + 1:
        rows = loaded.text_encoder.get_input_embeddings().weight
        assert torch.equal(rows[:-1], table.weight), "diffusers changes no other row either"


def test_each_step_takes_a_template_at_random(make, dataset):
    support = Support(make("dafusion", shots=3), dataset)
    texts = tuning_prompts(support, Adapter(1))
    assert len(texts) == 3 and {*map(len, texts)} == {len(TEMPLATES)}
    assert all("<class-1>" in text for one in texts for text in one)
    generator = load_generator(support.recipe.generator)
    with KINDS["token"].attached(generator, support.recipe.adapt, 1, 3):
        words = Words(generator, texts, 7)
        every = generator.tokenize(texts[0])[0].tolist()
        number = generator.pipe.tokenizer.convert_tokens_to_ids("<class-1>")
    seen = [words.at([0, 1, 2], step)[0] for step in range(60)]
    assert all(number in row for rows in seen for row in rows.tolist())
    for image in range(3):
        used = Counter(every.index(rows[image].tolist()) for rows in seen)
        assert len(used) == len(TEMPLATES) and max(used.values()) < 30
    assert any(not torch.equal(rows[0], rows[1]) for rows in seen)
    for step, rows in enumerate(seen):
        assert torch.equal(words.at([2], step)[0][0], rows[2]), "whatever the micro-batch"


@settings(max_examples=12)
@given(shots=st.sampled_from([1, 2, 4, 16]), label=st.integers(0, 9), n=st.sampled_from([40, 100]))
def test_an_edit_starts_from_a_shot_of_its_class_at_four_strengths(shots, label, n):
    made = recipe(method="dafusion", shots=shots, overrides={"generate.images": n})
    support = Support(made, MNIST)
    found = draws(support, label)
    assert [one.start for one in found] == [i % shots for i in range(n)]
    assert all(one.source is None and not one.label for one in found)
    assert Counter(one.strengths for one in found) == {
        (strength,): n // 4 for strength in (1.0, 0.75, 0.5, 0.25)
    }
    assert {one.prompt for one in found} == {f"a photo of a {placeholder(label)}"}
    assert len(groups(support, label)) == 4, "a strength's images share batches"


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_strengths_are_whole_numbers_of_steps(profile):
    one = recipe(profile, method="dafusion")
    assert all((one.generate.steps * s) % 1 == 0 for s in (1.0, 0.75, 0.5, 0.25))
    assert one.generate.steps >= 10 and one.generate.guidance == 7.5


def test_the_steps_do_not_depend_on_the_shots(make, dataset):
    for shots in (1, 4):
        support = Support(make("dafusion", {"adapt.steps": 7}, shots=shots), dataset)
        assert adapter_work(support, Adapter(0))[1:] == (7, 7 * shots)
    assert recipe("paper", method="dafusion", shots=2).adapt.length(2) == 1000
    assert recipe("paper", method="dset").adapt.length(160) == 200 * 20


def test_prompts_with_tokens_are_told_apart_as_the_generator_will_read_them(make, dataset):
    require_distinct(Support(make("dafusion"), dataset))
    texts = [f"a photo of a {placeholder(y)}" for y in (1, 11, 12)]
    rows = tokens_of("mini", texts)
    assert len(set(rows)) == 3 and {len(row) for row in rows} == {7}, "a token each"
    last, cut = (dataclasses.replace(dataset, noun=" ".join(["white"] * n)) for n in (17, 18))
    require_distinct(Support(make("dafusion"), last))  # as pieces, tokens would be cut here
    with pytest.raises(DataError, match="are the same to the"):
        require_distinct(Support(make("dafusion"), cut))


# What is refused.


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("chimera", {"adapt.text_encoder": True}, "adapt.text_encoder=False"),
        ("dafusion", {"adapt.word": "handwritten seven"}, "'handwritten seven' is 2 tokens"),
        ("dafusion", {"adapt.word": ""}, "adapt.word='' is 0 tokens"),
        ("dafusion", {"generator": "xl", "resolution": 0}, "has 2 .text_encoder, text_encoder_2"),
    ],
)
def test_what_a_kind_cannot_do_is_refused_before_anything_is_made(
    make, models, dataset, store, method, options, message
):
    if "generator" in options:
        options = {**options, "generator": models.xl}
    cell = Cell(make(method, options), dataset)
    with pytest.raises(ConfigError, match=message):
        cell.make("generate", store)
    with pytest.raises(ConfigError, match=message):
        cell.make("adapt", store, cell.adapters[0])
    assert not [folder for folder in store.root.glob("adapt-*") if store.done(folder.name)]


def test_heads_work_with_two_text_encoders(make, models, dataset, store):
    one = make("chimera", {"generator": models.xl, "resolution": 0})
    assert len(read_synthetic_set(make_set(one, dataset, store))) == 15


# Both kinds.


@pytest.mark.parametrize("method", KIND)
@pytest.mark.parametrize("call", [2, 5])
def test_a_killed_adaptation_continues_to_the_same_bytes(
    make, dataset, tmp_path, monkeypatch, method, call
):
    monkeypatch.setattr(package, "fit", functools.partial(fit, every=3))
    one = make(method, {"adapt.epochs": 8, "adapt.steps": 0})
    whole = adapt(one, dataset, Store(tmp_path / "whole"), 1)
    store = Store(tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "diffusion_loss", dies_at(diffusion_loss, call))
        with pytest.raises(Killed):
            adapt(one, dataset, store, 1)
    assert not store.done(whole.name)
    torch.manual_seed(call)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            package, "diffusion_loss", lambda *args: (done.append(1), diffusion_loss(*args))[1]
        )
        folder = adapt(one, dataset, store, 1)
    assert contents(folder) == contents(whole) and len(done) == 8 - 3 * ((call - 1) // 3)


@pytest.mark.parametrize("method", KIND)
def test_images_do_not_depend_on_the_batch_size(make, dataset, tmp_path, method):
    folders = [
        make_set(make(method, {"generate.batch": b}), dataset, Store(tmp_path / str(b)))
        for b in (1, 5)
    ]
    one, other = (read_synthetic_set(folder) for folder in folders)
    for i in range(15):
        apart = np.asarray(one.open(i), int) - np.asarray(other.open(i), int)
        assert np.abs(apart).max() <= 1
    rows = (folders[0] / "train" / "metadata.jsonl").read_text().splitlines()
    said = [json.loads(row) for row in rows]
    assert all(("weights" if method == "chimera" else "strength") in row for row in said)


@pytest.mark.parametrize("method", KIND)
def test_a_step_in_parts_has_the_same_gradient(make, dataset, tmp_path, monkeypatch, method):
    one, found = make(method, {"adapt.batch": 4}, shots=4), []
    support, adapter = Support(one, dataset), Adapter(1)
    generator = load_generator(one.generator)
    monkeypatch.setattr(package, "fit", lambda parameters, loss_at, **_: loss_at)
    torch.manual_seed(0)
    with KINDS[KIND[method]].attached(generator, one.adapt, 1, 4) as own:
        for value in own.parameters.values():
            nn.init.normal_(value, std=0.1)
        loss_at = package.tune(
            generator, own, support, adapter.images(support), None, BatchSize(4), (1,), None,
            tuning_prompts(support, adapter),
        )  # fmt: skip
        for micro, checkpointing in ((4, False), (1, False), (3, True)):
            if checkpointing:
                generator.network.enable_gradient_checkpointing()
            torch.manual_seed(1)
            loss, total = loss_at(3), 0.0
            for value in own.parameters.values():
                value.grad = None
            for rows in torch.arange(loss.count).split(micro):  # as `fit` takes them
                part = loss.of(rows)
                part.backward()
                total += part.item()
            found.append([torch.tensor(total), *(v.grad for v in own.parameters.values())])
        generator.network.disable_gradient_checkpointing()
    assert all(grad.any() for grad in found[0][1:])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", KIND)
def test_half_precision_keeps_what_is_trained_in_single(make, dataset, store, monkeypatch, method):
    monkeypatch.setattr(package, "dtype_for", lambda precision, training: torch.bfloat16)
    folder = adapt(make(method), dataset, store, 0)
    for file in folder.glob("*.safetensors"):
        assert all(
            v.dtype == torch.float32 and v.isfinite().all() for v in load_file(file).values()
        )


def test_a_rate_multiplies_the_learning_rate_of_its_parameter():
    values = {name: nn.Parameter(torch.ones(3)) for name in "abc"}
    fit(
        values, lambda step: sum(v.sum() for v in values.values()), steps=1, lr=1e-3,
        weight_decay=0.0, rates={"b": 10.0},
    )  # fmt: skip
    moved = {name: round(1 - value[0].item(), 6) for name, value in values.items()}
    assert moved == {"a": 1e-3, "b": 1e-2, "c": 1e-3}, "Adam's first step is the rate"


def test_a_plain_lora_has_another_rate_for_its_second_matrix_too(make):
    one = make("dset", {"adapt.up_rate": 16.0})
    generator = load_generator(one.generator)
    with KINDS["lora"].attached(generator, one.adapt, None, 6) as own:
        fast = {name for name, rate in own.rates.items() if rate == 16}
        assert fast == {name for name in own.parameters if ".lora_B." in name} != set()
    assert isinstance(own, Attached)


def test_the_keys_hold_what_the_adaptation_depends_on(make, dataset):
    for method, field, values in (
        ("dafusion", "adapt.word", ("a", "photo")),
        ("dafusion", "adapt.steps", (5, 6)),
        ("chimera", "adapt.up_rate", (1.0, 2.0)),
    ):
        own = [adapter_key(make(method, {field: v}), dataset, 0) for v in (None, *values) if v]
        assert len({*own, adapter_key(make(method), dataset, 0)}) == 3, field
    support = Support(make("dafusion"), dataset)
    inputs = package.adapter_inputs(support, Adapter(0))
    assert inputs["adapt"]["word"] == "the" and "adapt" in inputs
    assert {tuple(one) for one in inputs["tuning_prompts"]} == {
        tuple(text.format(noun="", name="<class-0>") for text in TEMPLATES)
    }
    plain = package.adapter_inputs(Support(make("dset"), dataset), Adapter())
    assert not {"kind", "up_rate", "word", "steps"} & set(plain["adapt"])
