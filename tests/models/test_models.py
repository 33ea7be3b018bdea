"""Loading the base models, the generator's LoRA through diffusers' own format, and the
classifier's LoRA against its formula.
"""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from datadream.config import Adapt, Classify
from datadream.errors import ConfigError, ModelMissingError
from datadream.models.catalog import GENERATORS
from datadream.models.classifiers import base
from datadream.models.classifiers.base import (
    load_classifier,
    load_classifier_lora,
    save_classifier_lora,
)
from datadream.models.classifiers.clip import Classifier
from datadream.models.classifiers.lora import (
    LORA,
    LoRAAttention,
    LoRAProjection,
    add_classifier_lora,
)
from datadream.models.device import device, dtype_for
from datadream.models.generators.load import generator_of, load_pipeline
from datadream.models.generators.lora import (
    LORA_FILE,
    add_generator_lora,
    merged_lora,
    remove_lora,
    save_generator_lora,
)
from datadream.models.identity import identity

TEXTS = ["a photo of a seven", "a photo of a letter q", "a photo of a one"]


def fresh_pipeline(folder):
    """Return a pipeline as any diffusers user loads it, without this package."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.text_encoder, pipe.vae):
        module.eval()
    return pipe


@torch.no_grad()
def outputs(pipe):
    """Return what the pipeline computes of fixed prompts, latents and timesteps: text features
    and noise prediction.
    """
    tokens = pipe.tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids.to(
        pipe.device
    )
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(pipe.device)
    text = pipe.text_encoder(tokens)[0]
    return text.cpu(), pipe.unet(
        latents, torch.tensor([10, 400, 900], device=pipe.device), text
    ).sample.cpu()


def lora_tensors(pipe):
    """Return every LoRA tensor by part and layer, whatever the adapter is called."""
    found = {}
    for part in ("unet", "text_encoder"):
        for name, value in getattr(pipe, part).named_parameters():
            if "lora_" in name:
                found[f"{part}." + name.replace(".default_0.", ".").replace(".default.", ".")] = (
                    value.detach().cpu().clone()
                )
    return found


def attach(pipe, options):
    """Attach a LoRA whose every tensor is random, the second matrices included, as after a
    training.
    """
    parameters = add_generator_lora(generator_of(pipe), options)
    with torch.no_grad():
        for i, p in enumerate(parameters.values()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return parameters


# The generator.


@pytest.mark.parametrize("rank, alpha", [(4, 4.0), (4, 10.0), (3, 1.0)])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_a_saved_adapter_gives_the_same_numbers_in_a_fresh_pipeline(
    models, tmp_path, rank, alpha, text_encoder
):
    pipe, options = (
        load_pipeline(models.generator),
        Adapt(rank=rank, alpha=alpha, text_encoder=text_encoder),
    )
    base = outputs(pipe)
    try:
        attach(pipe, options)
        trained, tensors = outputs(pipe), lora_tensors(pipe)
        save_generator_lora(generator_of(pipe), tmp_path, options)
    finally:
        remove_lora(generator_of(pipe))

    fresh = fresh_pipeline(models.generator).to(pipe.device)
    fresh.load_lora_weights(tmp_path)
    loaded = lora_tensors(fresh)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert any("text_encoder" in name for name in tensors) == text_encoder
    for after, reloaded in zip(trained, outputs(fresh), strict=True):
        torch.testing.assert_close(reloaded, after, rtol=1e-5, atol=1e-5)
    assert (trained[1] - base[1]).abs().max() > 1e-2, (
        "the adapter does something to the noise prediction"
    )
    assert ((trained[0] - base[0]).abs().max() > 1e-2) == text_encoder
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]


@pytest.mark.parametrize("generator", ["generator", "xl"])
def test_a_prompt_that_stands_in_several_rows_is_encoded_once(models, generator):
    pipe, sizes = load_pipeline(getattr(models, generator)), []
    order = [2, 0, 2, 2, 1, 0]
    once, extra = generator_of(pipe).condition(generator_of(pipe).tokenize(TEXTS), 16)
    handles = [
        encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        for encoder in generator_of(pipe).text_encoders().values()
    ]
    try:
        hidden, more = generator_of(pipe).condition(
            generator_of(pipe).tokenize([TEXTS[i] for i in order]), 16
        )
    finally:
        for handle in handles:
            handle.remove()
    assert len(set(TEXTS)) == 3 and set(sizes) == {3}
    torch.testing.assert_close(hidden, once[order])
    if extra:
        torch.testing.assert_close(more["text_embeds"], extra["text_embeds"][order])
        assert more["time_ids"].shape == (6, 6)


@pytest.mark.parametrize("generator", ["generator", "xl"])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_a_merged_adapter_is_the_loaded_one_and_leaves_the_base_bit_for_bit(
    models, tmp_path, generator, text_encoder
):
    pipe, options = (
        load_pipeline(getattr(models, generator)),
        Adapt(rank=3, alpha=5.0, text_encoder=text_encoder),
    )
    parts = {"unet": pipe.unet, **generator_of(pipe).text_encoders()}

    def features():
        tokens = generator_of(pipe).tokenize(TEXTS)
        with torch.no_grad():
            hidden, extra = generator_of(pipe).condition(tokens, 16)
            noisy = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(
                pipe.device
            )
            return hidden, pipe.unet(noisy, 400, hidden, added_cond_kwargs=extra).sample

    def weights():
        return {
            f"{part}.{name}": p.clone()
            for part, module in parts.items()
            for name, p in module.named_parameters()
        }

    before = weights()
    try:
        attach(pipe, options)
        save_generator_lora(generator_of(pipe), tmp_path, options)
        expected = features()
    finally:
        remove_lora(generator_of(pipe))
    with pytest.raises(RuntimeError, match="stopped"), merged_lora(generator_of(pipe), tmp_path):
        for ours, theirs in zip(features(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        changed = [name for name, p in weights().items() if not torch.equal(p, before[name])]
        assert len(changed) == len(load_file(tmp_path / LORA_FILE)) / 2, (
            "every layer of the adapter and no other"
        )
        raise RuntimeError("stopped")
    after = weights()
    assert after.keys() == before.keys() and all(
        torch.equal(after[name], before[name]) for name in before
    )


def test_an_adapter_of_another_pipeline_is_refused_and_leaves_no_residue(models, tmp_path):
    pipe, other, options = (
        load_pipeline(models.generator),
        load_pipeline(models.xl),
        Adapt(rank=2),
    )
    try:
        attach(other, options)
        save_generator_lora(generator_of(other), tmp_path, options)
    finally:
        remove_lora(generator_of(other))
    before = outputs(pipe)
    with (
        pytest.raises(
            ValueError, match="another pipeline's: StableDiffusionPipeline has no text_encoder_2"
        ),
        merged_lora(generator_of(pipe), tmp_path),
    ):
        pytest.fail("it does not fit")
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(pipe), strict=True))


def test_the_same_adapter_is_the_same_file(models, tmp_path):
    """Two trainings of one recipe must be comparable by a digest of their files."""
    pipe, options, files = load_pipeline(models.generator), Adapt(rank=2, alpha=2.0), set()
    try:
        attach(pipe, options)
        for i in range(8):
            save_generator_lora(generator_of(pipe), tmp_path / str(i), options)
            files.add((tmp_path / str(i) / "pytorch_lora_weights.safetensors").read_bytes())
    finally:
        remove_lora(generator_of(pipe))
    assert len(files) == 1
    assert str(Path(models.generator).parent).encode() not in files.pop(), "no path of this machine"


def test_alpha_and_rank_scale_the_update(models):
    """The noise prediction's change is alpha / rank times that of the bare product, to first
    order.
    """
    pipe, changes = load_pipeline(models.generator), {}
    base = outputs(pipe)[0]
    for alpha in (4.0, 8.0):
        try:
            parameters = attach(pipe, Adapt(rank=4, alpha=alpha))
            with torch.no_grad():
                for p in parameters.values():
                    p.mul_(1e-1)
            changes[alpha] = outputs(pipe)[0] - base
        finally:
            remove_lora(generator_of(pipe))
    torch.testing.assert_close(
        changes[8.0], 2 * changes[4.0], rtol=0.05, atol=0.05 * changes[8.0].abs().max().item()
    )
    assert changes[4.0].abs().max() > 1e-4


def test_the_generators_lora_is_on_the_papers_layers_and_starts_at_nothing(models):
    pipe = load_pipeline(models.generator)
    base = outputs(pipe)
    try:
        parameters = add_generator_lora(generator_of(pipe), Adapt(rank=4, alpha=4.0))
        layers = {name.split(".lora_")[0] for name in parameters}
        attentions = [m for m in pipe.unet.modules() if type(m).__name__ == "Attention"]
        blocks = pipe.text_encoder.config.num_hidden_layers
        assert len(layers) == 4 * len(attentions) + 4 * blocks
        assert {layer.split("attn")[-1].split(".", 1)[1] for layer in layers} == {
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "q_proj",
            "k_proj",
            "v_proj",
            "out_proj",
        }
        everything = [
            p for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters()
        ]
        assert sum(p.requires_grad for p in everything) == len(parameters) == 2 * len(layers)
        assert all(bool(p.any()) == ("lora_A" in name) for name, p in parameters.items()), (
            "A is random, B is zero"
        )
        for before, after in zip(base, outputs(pipe), strict=True):
            assert torch.equal(before, after)
    finally:
        remove_lora(generator_of(pipe))


def test_removing_the_lora_restores_the_base_exactly(models):
    pipe = load_pipeline(models.generator)
    base, names = (
        outputs(pipe),
        [name for part in (pipe.unet, pipe.text_encoder) for name, _ in part.named_parameters()],
    )
    for text_encoder in (True, False, True):
        attach(pipe, Adapt(rank=4, alpha=4.0, text_encoder=text_encoder))
        remove_lora(generator_of(pipe))
        assert all(
            torch.equal(before, after) for before, after in zip(base, outputs(pipe), strict=True)
        )
        assert [
            name for part in (pipe.unet, pipe.text_encoder) for name, _ in part.named_parameters()
        ] == names
        assert not any(
            p.requires_grad for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()
        )


def test_a_generator_is_loaded_once_frozen_and_in_evaluation_mode(models):
    pipe = load_pipeline(models.generator)
    assert load_pipeline(models.generator) is pipe
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


# The classifier's LoRA.


def formula(attention, x, q_delta, v_delta, mask):
    """Multi-head self-attention of x (B, L, D), written out head by head, with updates of the
    query and value weights.
    """
    (weight_q, weight_k, weight_v), (bias_q, bias_k, bias_v) = (
        attention.in_proj_weight.chunk(3),
        attention.in_proj_bias.chunk(3),
    )
    q, k, v = (
        x @ (weight_q + q_delta).T + bias_q,
        x @ weight_k.T + bias_k,
        x @ (weight_v + v_delta).T + bias_v,
    )
    width, heads = x.shape[-1] // attention.num_heads, []
    for h in range(attention.num_heads):
        own = slice(h * width, (h + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)
        heads.append(torch.softmax(scores + (0 if mask is None else mask), -1) @ v[..., own])
    return torch.cat(heads, -1) @ attention.out_proj.weight.T + attention.out_proj.bias


def causal(length):
    """Return open_clip's text mask: minus infinity above the diagonal."""
    return torch.full((length, length), -math.inf).triu(1)


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from([(8, 2), (12, 4), (6, 1)]),
    st.integers(1, 5),
    st.floats(0.5, 40),
    st.booleans(),
    st.booleans(),
)
def test_lora_attention_is_the_hand_written_formula(
    batch, length, sizes, rank, alpha, batch_first, masked
):
    torch.manual_seed(batch + 10 * length)
    attention = nn.MultiheadAttention(*sizes, batch_first=batch_first).double()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    lora = LoRAAttention(attention, rank, alpha, 0.1).double().eval()
    for name in ("q_down", "q_up", "v_down", "v_up"):
        nn.init.normal_(getattr(lora, name))
    x, mask = (
        torch.randn(batch, length, sizes[0], dtype=torch.float64),
        causal(length).double() if masked else None,
    )
    shaped = x if batch_first else x.transpose(0, 1)
    expected = formula(
        attention,
        x,
        alpha / rank * lora.q_up @ lora.q_down,
        alpha / rank * lora.v_up @ lora.v_down,
        mask,
    )
    for learning in (True, False):  # without gradients the update is added to the weight
        with torch.set_grad_enabled(learning):
            out, weights = lora(shaped, shaped, shaped, need_weights=False, attn_mask=mask)
        torch.testing.assert_close(out if batch_first else out.transpose(0, 1), expected)
        assert weights is None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_lora_attention_starts_as_the_attention_that_it_replaces(batch_first, masked):
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    x, mask = torch.randn(5, 5, 16), causal(5) if masked else None
    expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    lora = LoRAAttention(attention, 4, 8.0, 0.1).train()
    torch.testing.assert_close(lora(x, x, x, attn_mask=mask)[0], expected)
    assert lora.q_down.any() and lora.v_down.any(), "a zero in both matrices would never train"


def test_only_the_four_matrices_of_q_and_v_are_trained():
    lora = LoRAAttention(nn.MultiheadAttention(16, 4), 3, 6.0, 0.0)
    trainable = {name: tuple(p.shape) for name, p in lora.named_parameters() if p.requires_grad}
    assert trainable == {"q_down": (3, 16), "q_up": (16, 3), "v_down": (3, 16), "v_up": (16, 3)}
    x = torch.randn(4, 2, 16)
    nn.init.normal_(lora.q_up)
    nn.init.normal_(lora.v_up)
    lora(x, x, x)[0].square().sum().backward()
    assert {
        name for name, p in lora.named_parameters() if p.grad is not None and p.grad.any()
    } == set(trainable)


@given(
    st.integers(1, 6),
    st.floats(0.1, 40),
    st.sampled_from(["qv", "qkv"]),
    st.sampled_from(["rank", "sqrt(rank)"]),
    st.integers(0, 99),
)
def test_lora_on_its_targets_is_the_attention_with_these_weights_changed(
    rank, alpha, targets, scaling, seed
):
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    changed, x = copy.deepcopy(attention), torch.randn(2, 5, 8, dtype=torch.float64)
    lora = LoRAAttention(attention, rank, alpha, 0.3, targets, scaling).double().eval()
    randomise({name: p for name, p in lora.named_parameters() if p.requires_grad})
    scale = alpha / rank if scaling == "rank" else alpha / rank**0.5
    with torch.no_grad():
        for name, part in zip("qkv", changed.in_proj_weight.chunk(3), strict=True):
            if name in targets:
                part += scale * getattr(lora, f"{name}_up") @ getattr(lora, f"{name}_down")
    assert not (targets == "qv" and hasattr(lora, "k_up"))
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(lora(x, x, x)[0], changed(x, x, x, need_weights=False)[0])


def test_dropout_is_before_the_update_only_and_off_in_evaluation():
    lora = LoRAAttention(nn.MultiheadAttention(16, 4, batch_first=True), 3, 6.0, 1.0)
    nn.init.normal_(lora.q_up)
    nn.init.normal_(lora.v_up)
    x = torch.randn(2, 4, 16)
    plain = lora.base(x, x, x, need_weights=False)[0]
    # Dropout 1 leaves the frozen path alone.
    torch.testing.assert_close(lora.train()(x, x, x)[0], plain)
    assert not torch.allclose(lora.eval()(x, x, x)[0], plain)


def test_an_attention_with_other_inputs_is_refused():
    with pytest.raises(ValueError, match="one width"):
        LoRAAttention(nn.MultiheadAttention(16, 4, kdim=8), 2, 2.0, 0.0)


def adapted(models, seed=0, **changes):
    """Return a fresh tiny classifier with LoRA, its parameters, and the same classifier without."""
    torch.manual_seed(seed)
    model = load_classifier(models.classifier)
    return (
        model,
        add_classifier_lora(model, **{"rank": 3, "alpha": 6.0, "dropout": 0.1, **changes}),
        load_classifier(models.classifier),
    )


def randomise(parameters):
    """Fill LoRA parameters with noise, as after a training."""
    with torch.no_grad():
        for i, p in enumerate(parameters.values()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)


def logits(model, seed=0):
    """Return the logits of three random images and three prompts."""
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(
        model.mean.device
    )
    with torch.no_grad():
        return model.eval()(images, model.prompts(TEXTS)).cpu()


def test_the_classifiers_lora_is_on_q_and_v_of_every_block_of_both_towers(models):
    model, parameters, untouched = adapted(models)
    blocks = [f"clip.visual.transformer.resblocks.{i}.attn" for i in range(2)] + [
        "clip.transformer.resblocks.0.attn"
    ]
    assert set(parameters) == {
        f"{block}.{part}_{side}" for block in blocks for part in "qv" for side in ("down", "up")
    }
    assert sum(p.numel() for p in parameters.values()) == 4 * 3 * (2 * 32 + 16)
    torch.testing.assert_close(logits(model), logits(untouched))
    randomise(parameters)
    assert not torch.allclose(logits(model), logits(untouched), atol=1e-2)


def test_every_part_of_the_lora_learns_from_the_loss(models):
    model, parameters, _untouched = adapted(models)
    randomise(parameters)
    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in parameters}
    images, tokens = torch.rand(3, 3, 16, 16).to(model.mean.device), model.prompts(TEXTS)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(images, tokens).diagonal().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values()), (
        "both towers, both projections, both matrices"
    )
    optimiser.step()
    assert all(
        torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen
    )


def test_logits_are_the_scaled_cosine(models):
    model = load_classifier(models.classifier)
    images, tokens = (
        torch.rand(3, 3, 16, 16).to(model.mean.device),
        model.tokenizer(TEXTS).to(model.mean.device),
    )
    with torch.no_grad():
        model.clip.logit_scale.fill_(math.log(7.0))
        # The tiny mean and deviation are 0.5.
        picture, text = (model.clip.encode_image(images * 2 - 1), model.clip.encode_text(tokens))
        expected = 7.0 * torch.cosine_similarity(picture[:, None], text[None], dim=-1)
        torch.testing.assert_close(model(images, tokens), expected)


def test_products_in_bfloat16_leave_weights_gradients_and_logits_in_float32(models):
    model, texts = load_classifier(models.classifier), TEXTS
    parameters = model.attach(Classify(dropout=0.0))
    images, tokens = torch.rand(4, 3, 16, 16), model.prompts(texts)
    whole = model(images, tokens)
    model.mixed = True
    half = model(images, tokens)
    half.sum().backward()
    assert half.dtype == torch.float32 and all(
        p.dtype == p.grad.dtype == torch.float32 for p in parameters.values()
    )
    assert not torch.equal(half, whole)
    torch.testing.assert_close(
        half, whole, rtol=0.05, atol=0.05 * float(whole.detach().abs().max())
    )


@pytest.mark.parametrize(
    "cuda, precision, mixed",
    [(True, "auto", True), (True, "float32", False), (False, "auto", False)],
)
def test_the_classifier_multiplies_in_half_precision_on_a_gpu_only(
    models, monkeypatch, cuda, precision, mixed
):
    monkeypatch.setattr(
        base,
        "dtype_for",
        lambda precision, training: (
            torch.bfloat16 if cuda and precision == "auto" else torch.float32
        ),
    )
    assert load_classifier(models.classifier, precision=precision).mixed is mixed


def small_clip(custom, **text):
    """Return a small open_clip model of random weights, its text tower in the model itself or
    apart (`custom`).
    """
    import open_clip

    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    return kind(
        16,
        vision,
        {"context_length": 20, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2, **text},
    ).eval()


@pytest.mark.parametrize("custom", [False, True])
# These read the padding.
@pytest.mark.parametrize(
    "text, length",
    [
        ({}, 7),
        ({"pool_type": "eos", "eos_id": 49}, 7),
        ({"pool_type": "last"}, 20),
        ({"no_causal_mask": True}, 20),
    ],
)
def test_padding_is_left_out_where_it_changes_nothing(custom, text, length):
    ids = torch.zeros(3, 20, dtype=torch.long)
    for row, end in zip(ids, (3, 6, 4), strict=True):
        row[:end] = torch.randint(1, 49, (end,))
        row[end] = 49
    model = Classifier(small_clip(custom, **text), lambda texts: ids, (0.5,) * 3, (0.5,) * 3)
    model.attach(Classify())
    model.eval()
    for name, p in model.named_parameters():
        if name.endswith("_up"):
            p.data.normal_()
    tokens, pictures = model.prompts(["a", "b", "c"]), torch.rand(2, 3, 16, 16)
    assert tokens.shape == (3, length)
    torch.testing.assert_close(model(pictures, tokens), model(pictures, ids))
    gradients = [
        torch.autograd.grad(model(pictures, given).logsumexp(1).sum(), list(model.state().values()))
        for given in (tokens, ids)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_scale_of_the_logits_is_frozen(models):
    model, parameters, _ = adapted(models)
    assert not model.clip.logit_scale.requires_grad
    assert not any("logit_scale" in name for name in parameters)


def test_a_saved_classifier_adapter_gives_the_same_logits(models, tmp_path):
    model, parameters, untouched = adapted(models)
    randomise(parameters)
    config = {
        "classifier": models.classifier,
        "rank": 3,
        "alpha": 6.0,
        "dropout": 0.1,
        "classes": ["x"],
        "prompts": ["a photo of a x"],
    }
    save_classifier_lora(model, tmp_path, config)
    reloaded, read = load_classifier_lora(tmp_path)
    assert torch.equal(logits(reloaded), logits(model)) and not torch.allclose(
        logits(reloaded), logits(untouched)
    )
    assert not reloaded.training and read == config
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter.json",
        "adapter.safetensors",
    ]
    assert set(load_file(tmp_path / "adapter.safetensors")) == set(parameters), (
        "the adapter alone, not the model"
    )


def test_a_lora_on_key_too_is_saved_and_loaded(models, tmp_path):
    options = Classify(rank=3, alpha=6.0, targets="qkv", scaling="sqrt(rank)")
    model = load_classifier(models.classifier)
    randomise(model.attach(options))
    told = {name: getattr(options, name) for name in LORA}
    save_classifier_lora(
        model, tmp_path, {"classifier": models.classifier, "classes": ["x"], **told}
    )
    torch.testing.assert_close(logits(load_classifier_lora(tmp_path)[0]), logits(model))
    assert sum("k_down" in name for name in load_file(tmp_path / "adapter.safetensors")) == 3


def test_an_adapter_of_another_classifier_is_refused(models, tmp_path):
    model, _parameters, _ = adapted(models)
    save_classifier_lora(
        model,
        tmp_path,
        {
            "classifier": models.classifier,
            "rank": 3,
            "alpha": 6.0,
            "dropout": 0.1,
            "classes": ["x"],
        },
    )
    tensors = load_file(tmp_path / "adapter.safetensors")
    lost = sorted(tensors)[0]
    save_file(
        {name: value for name, value in tensors.items() if name != lost},
        tmp_path / "adapter.safetensors",
    )
    with pytest.raises(ValueError, match=lost):
        load_classifier_lora(tmp_path)


def vit_b_16():
    """Return ViT-B/16 without memory or weights."""
    import open_clip

    with torch.device("meta"):
        return Classifier(
            open_clip.CLIP(**open_clip.get_model_config("ViT-B-16")), None, [0.5] * 3, [0.5] * 3
        )


def test_the_papers_classifier_trains_983040_numbers():
    """Rank 16 on q and v: 12 vision blocks of width 768 and 12 text blocks of width 512, two
    matrices each.
    """
    parameters = add_classifier_lora(vit_b_16(), 16, 32.0, 0.1)
    assert sum(p.numel() for p in parameters.values()) == 983_040 == 12 * 2 * 2 * 16 * (768 + 512)


@pytest.mark.parametrize(
    "name, count",
    [
        ("ViT-L-14", 4 * 16 * (24 * 1024 + 12 * 768)),
        ("ViT-B-16-SigLIP", 4 * 16 * 12 * (768 + 768)),
        ("ViT-B-32-quickgelu", 983_040),
    ],
)
def test_other_two_tower_classifiers_get_lora_in_every_block(name, count):
    """SigLIP's image tower is timm's, whose attention has one fused projection."""
    import open_clip

    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        model = Classifier(kind(**config), None, [0.5] * 3, [0.5] * 3)
    parameters = add_classifier_lora(model, 16, 32.0, 0.1)
    assert sum(p.numel() for p in parameters.values()) == count


@given(st.integers(1, 6), st.floats(0.5, 8.0), st.integers(0, 1000))
def test_lora_on_a_fused_projection_is_the_formula(rank, alpha, seed):
    torch.manual_seed(seed)
    linear, x = nn.Linear(12, 36), torch.randn(2, 5, 12)
    lora = LoRAProjection(linear, rank, alpha, 0.0)
    nn.init.normal_(lora.q_up), nn.init.normal_(lora.v_up)
    q, k, v = linear(x).chunk(3, -1)
    expected = torch.cat(
        [
            q + alpha / rank * x @ lora.q_down.T @ lora.q_up.T,
            k,
            v + alpha / rank * x @ lora.v_down.T @ lora.v_up.T,
        ],
        -1,
    )
    torch.testing.assert_close(lora(x), expected)


@pytest.mark.parametrize(
    "name, better",
    [
        ("ViT-B-16/openai", "ViT-B-16-quickgelu/openai"),
        ("ViT-L-14/openai", "ViT-L-14-quickgelu/openai"),
    ],
)
def test_weights_that_need_quickgelu_are_refused_without_it(name, better):
    """open_clip only warns, and accuracy is silently wrong."""
    with pytest.raises(ConfigError, match=f"QuickGELU.*'{better}'"):
        load_classifier(name)


def test_a_captioning_decoder_is_no_tower_and_gets_no_lora():
    import open_clip

    config = open_clip.get_model_config("coca_ViT-B-32")
    config.pop("custom_text", None)
    with torch.device("meta"):
        model = Classifier(open_clip.CoCa(**config), None, (0.5,) * 3, (0.5,) * 3)
        found = add_classifier_lora(model, 2, 2.0, 0.0)
    assert found and not any("decoder" in name for name in found)


def test_evas_attention_is_refused_with_its_reason():
    class EvaAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

    clip = small_clip(custom=True)
    clip.visual.add_module("attn", EvaAttention())
    with pytest.raises(ConfigError, match="EVA.*choose another"):
        add_classifier_lora(Classifier(clip, None, (0.5,) * 3, (0.5,) * 3), 2, 2.0, 0.0)


def test_a_resnet_is_trained_whole_and_has_no_zero_shot():
    model = load_classifier("resnet50", 5)
    parameters = model.attach(Classify())
    # Torchvision's count for 1,000.
    assert (
        sum(p.numel() for p in parameters.values())
        == 25_557_032 - 2048 * 1000 - 1000 + 2048 * 5 + 5
    )
    assert model(torch.rand(2, 3, 64, 64), model.prompts(["a", "b", "c", "d", "e"])).shape == (2, 5)
    with pytest.raises(ConfigError, match="leave out method 'clip'"):
        load_classifier("resnet50")


def test_a_classifier_with_a_tower_that_is_no_transformer_is_refused():
    """CLIP with a ResNet has attention in the text tower only; half a method must not pass for
    the whole.
    """
    import open_clip

    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    model = Classifier(open_clip.CLIP(16, vision, text), None, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="two transformer towers"):
        add_classifier_lora(model, 2, 2.0, 0.0)


# Which model a name means, and what is said when there is none.


@pytest.mark.parametrize(
    "name", ["nobody/no-such-generator", "some/folder/that/is/not/there", "", "empty", "halfway"]
)
def test_a_missing_generator_is_named_with_the_way_to_get_it(models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copytree(models.generator, tmp_path / "halfway")
    # A download that was cut off.
    (tmp_path / "halfway" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelMissingError) as caught:
        load_pipeline(name)
    way = (
        ["has no weights", "download it again"]
        if name in ("empty", "halfway")
        else ["datadream download", "HF_HOME"]
    )
    for word in (repr(name), "generator=", "'mini'", *way):
        assert word in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_generator_with_a_truncated_file_is_named(models, tmp_path, part):
    shutil.copytree(models.generator, tmp_path / "truncated")
    (file,) = (tmp_path / "truncated" / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelMissingError, match="truncated"):
        load_pipeline(str(tmp_path / "truncated"))


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-quickgelu/openai",
        "ViT-B-16/no-such-weights",
        "ViT-Z-99/openai",
        "hf-hub:nobody/no-such-clip",
        "some/folder/that/is/not/there",
        "",
        "empty",
    ],
)
def test_a_missing_classifier_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelMissingError) as caught:
        load_classifier(name)
    for word in (
        repr(name),
        "'mini'",
        "open_clip.list_pretrained()",
        *(["HF_HOME"] if name else []),
    ):
        assert word in str(caught.value)


def test_a_classifier_without_weights_is_never_silently_random(monkeypatch):
    """open_clip gives random weights where none are named; a study on them would look like a bad
    method.
    """
    import open_clip

    monkeypatch.setattr(
        open_clip,
        "create_model_and_transforms",
        lambda *args, **options: pytest.fail("random weights were accepted"),
    )
    with pytest.raises((ModelMissingError, ValueError), match="ViT-B-16"):
        load_classifier("ViT-B-16")


@pytest.mark.parametrize("change", ["weights", "config"])
def test_the_identity_of_a_folder_follows_its_content(models, tmp_path, change):
    whole, other = tmp_path / "one" / "model", tmp_path / "two" / "model"
    shutil.copytree(models.generator, whole)
    shutil.copytree(whole, other)
    assert identity(str(whole), "generator") == identity(str(other), "generator"), (
        "a moved folder is the same model"
    )
    shutil.copytree(whole, tmp_path / "three" / "model")
    if change == "config":
        file = tmp_path / "three" / "model" / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "beta_end": 0.5}))
    else:
        (file,) = (tmp_path / "three" / "model" / "unet").glob("diffusion_pytorch_model.*")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert identity(str(tmp_path / "three" / "model"), "generator") != identity(
        str(whole), "generator"
    )


def test_weights_that_are_a_pickle_are_refused(models, tmp_path, monkeypatch):
    """How models were shared before safetensors."""
    shutil.copytree(models.generator, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a pickle was loaded"))
    with pytest.raises(ModelMissingError, match=r"has no weights \(\*\.safetensors\) in unet"):
        load_pipeline(str(tmp_path / "model"))


def test_the_identity_of_a_hub_model_is_its_id():
    assert identity("nobody/no-such-generator", "generator") == "nobody/no-such-generator"
    assert identity("sd1.5", "generator") == "stable-diffusion-v1-5/stable-diffusion-v1-5", (
        "a row of the table is the model behind it"
    )


# What two tests find in the hub's cache, a line each.
OFFLINE = """
from datadream.methods.recipes import recipe
from datadream.models import catalog
from datadream.models.download import fetch
from datadream.models.generators import ip_adapter
from datadream.models.generators.load import load_pipeline
from datadream.models.identity import identity
fetch(recipe(generator="nobody/tiny"), True)
loaded = load_pipeline("nobody/tiny")
print("pipeline", loaded.unet.config.sample_size, identity("nobody/tiny", "generator"))
name, part = "ip-adapter-plus_sd15", "ip-adapter"
folder = ip_adapter.ip_adapter_folder(name)
print("adapter", identity(name, part), catalog.absent(name, part) == "", folder.name)
(folder / catalog.IP_FILES[2]).unlink()
print("incomplete", catalog.absent(name, part))
"""


@pytest.fixture(scope="module")
def offline(models, tmp_path_factory):
    """Return the lines of OFFLINE by their first words, with models in the layout of HF_HOME.

    In a process of its own, since the hub's library reads the variable once.
    """
    home = tmp_path_factory.mktemp("home")
    for name, source in {
        "models--nobody--tiny": models.generator,
        "models--h94--IP-Adapter": models.ip_adapter,
    }.items():
        folder = home / "hub" / name
        shutil.copytree(source, folder / "snapshots" / ("c" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("c" * 40)
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_a_hub_model_in_the_cache_loads_offline_and_is_known_by_its_commit(offline):
    assert offline["pipeline"].split() == ["8", f"nobody/tiny@{'c' * 40}"]


def test_an_ip_adapter_in_the_hub_s_cache_is_found_and_known_by_its_commit(offline):
    assert offline["adapter"].split() == [f"h94/IP-Adapter@{'c' * 40}", "True", "c" * 40]
    assert (
        "has no models/image_encoder/model.safetensors; `python -m datadream download"
        in offline["incomplete"]
    )


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "mini"])
def test_a_model_of_the_table_that_is_not_there_is_named_with_size_and_licence(name):
    with pytest.raises(ModelMissingError) as caught:
        load_pipeline(name)
    row = GENERATORS[name]
    for word in (
        f"datadream download {name}",
        row.hub,
        f"{row.gigabytes:g} GB",
        row.licence,
        "HF_HOME",
        "'mini'",
    ):
        assert word in str(caught.value)


def test_a_pipeline_of_another_kind_is_refused(models, tmp_path):
    shutil.copytree(models.generator, tmp_path / "flux")
    file = tmp_path / "flux" / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "FluxPipeline"}))
    with pytest.raises(
        ConfigError,
        match="is a FluxPipeline; accepted: StableDiffusionPipeline, StableDiffusionXLPipeline",
    ):
        load_pipeline(str(tmp_path / "flux"))


def test_the_side_of_the_images_is_the_pipeline_s_own_unless_given(models):
    pipe = load_pipeline(models.generator)
    assert (
        generator_of(pipe).side(0) == 16
        and generator_of(pipe).side(24) == 24
        and generator_of(load_pipeline("mini")).side(0) == 32
    )


@pytest.mark.parametrize(
    "cuda, bf16, precision, training, expected",
    [
        (False, False, "auto", True, torch.float32),
        (True, True, "auto", True, torch.bfloat16),
        (True, False, "auto", True, torch.float32),
        (True, True, "auto", False, torch.float16),
        (True, True, "float32", False, torch.float32),
        (True, True, "float32", True, torch.float32),
    ],
)
def test_half_precision_where_the_device_has_it(
    monkeypatch, cuda, bf16, precision, training, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    assert dtype_for(precision, training) is expected


def test_the_embedded_models_load_and_fit_each_other():
    pipe, model = load_pipeline("mini"), load_classifier("mini")
    assert pipe.vae.config.sample_size == model.size == 32
    texts = [f"a photo of a {name}" for name in ("zero", "seven", "nine")]
    ids = model.prompts(texts).tolist()
    assert ids == [
        row[: len(ids[0])] for row in pipe.tokenizer(texts, padding="max_length").input_ids
    ]
    assert isinstance(identity("mini", "generator"), list), (
        "the key of an artifact knows which embedded weights made it"
    )


@pytest.mark.parametrize("available, kind", [(True, "cuda"), (False, "cpu")])
def test_everything_runs_on_the_gpu_if_there_is_one(monkeypatch, available, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device().type == kind
