"""Load a generator and a classifier by name, hub id or folder; attach, save and load their LoRA
adapters.
"""

import gc
import json
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from ..config import Classify
from ..errors import ConfigError, ModelMissingError, nearest
from ..store.files import digest, write_json
from .catalog import fetching, hub_id, local, revision

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # paper, section 3.2
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def device():
    """Return the device that everything runs on: the GPU of `use_gpu`, the first one if nothing
    was said, else the CPU.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_gpu(number):
    """Work on this GPU from here on, as CUDA counts; models that lie on another one are loaded
    again when they are asked for.
    """
    if number != torch.cuda.current_device():
        forget_generators()
        gc.collect()
        torch.cuda.empty_cache()  # else the memory stays this worker's
        torch.cuda.set_device(number)


@lru_cache
def _digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [f"{p.relative_to(folder)}:{digest(p)[:12]}" for p in files]


def identity(name, part):
    """Return what a stage's key knows of a model: a digest of a folder's files, whatever it is
    called, or the hub's id and commit.
    """
    folder = local(name, part)
    if folder is not None:
        return _digests(folder)
    # An open_clip name tells the architecture too.
    known = hub_id(name) if part == "generator" else name
    commit = revision(name, part)
    return f"{known}@{commit}" if commit else known


def fetch(recipe):
    """Download the recipe's models that are not in the cache yet, so that every key knows their
    commits before anything is made.
    """
    wanted = [
        (recipe.classifier, "clip", _load_clip),
        *([(recipe.generator, "generator", load_generator)] if recipe.row.generator else []),
    ]
    for name, part, load in wanted:
        if name != "resnet50" and local(name, part) is None and revision(name, part) is None:
            load(name)


def dtype_for(precision, training):
    """Return the dtype of the frozen weights: float32 on a CPU or if `precision` says so; on a GPU
    half.

    To sample, float16 as the released code does; to train, bfloat16 where the GPU has it, which
    needs no loss scaling, else float32.
    """
    if precision == "float32" or device().type == "cpu":
        return torch.float32
    if not training:
        return torch.float16
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    )


def load_generator(name, dtype=torch.float32):
    """Return a Stable Diffusion pipeline (1, 2 or XL) in evaluation mode, frozen, without safety
    checker or progress bar.

    `name` is a row of hub.GENERATORS, a hub id or a folder in diffusers format; everything else
    follows from the pipeline's own configuration; the last two are kept. Raises ModelMissingError
    with the way to get it, ConfigError on a pipeline of another kind.
    """
    return _load_generator(name, dtype)


def forget_generators():
    """Drop the cached pipelines, so that their memory can be used by another."""
    _load_generator.cache_clear()


@lru_cache(maxsize=2)
def _load_generator(name, dtype):
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", between our own bars
    folder, hub = local(name, "generator"), hub_id(name)
    try:
        config = diffusers.DiffusionPipeline.load_config(folder or hub)  # pyright: ignore[reportPrivateImportUsage]
        kind = cast("dict[str, Any]", config)["_class_name"]  # a tuple only where more is asked for
        if kind not in PIPELINES:
            raise ConfigError(
                f"the generator {name!r} is a {kind}; accepted: {', '.join(PIPELINES)}"
            )
        checker = (
            {"safety_checker": None, "requires_safety_checker": False}
            if kind == PIPELINES[0]
            else {}
        )
        # No pickle.
        pipe = getattr(diffusers, kind).from_pretrained(
            folder or hub, dtype=dtype, use_safetensors=True, **checker
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelMissingError(
            f"the generator {name!r} cannot be loaded: {_way(name, folder)}, or set "
            "generator=<folder in diffusers format>; generator='mini' needs no download. Cause: "
            f"{error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, *text_encoders(pipe).values()):
        module.requires_grad_(False).eval()
    # The layout of its convolutions in half precision; two CPU cores gain nothing by it.
    if device().type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe.to(device())


def _way(name, folder):
    if folder:
        return f"its folder {folder} is damaged or in another format; copy or download it again"
    return f"where a network is at hand, {fetching(name)}; point HF_HOME to that cache"


def text_encoders(pipe):
    """Return the pipeline's text encoders by name: one, or Stable Diffusion XL's two."""
    names = ("text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def image_side(pipe, resolution):
    """Return the side of the generator's images in pixels: `resolution`, or for 0 the one that
    the pipeline was trained at.
    """
    return resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor


def tokenize(pipe, texts):
    """Return the token ids of `texts` for each text encoder, a tuple of tensors (texts, length)."""
    tokenizers = [
        getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in text_encoders(pipe)
    ]
    return tuple(
        t(
            texts,
            padding="max_length",
            max_length=t.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(pipe.device)
        for t in tokenizers
    )


def condition(pipe, tokens, side):
    """Return what the UNet is conditioned on: the texts' hidden states, and Stable Diffusion XL's
    pooled text and time ids.

    `tokens` is what `tokenize` returns; XL is told an uncropped image of side `side`, as it is when
    it samples. A prompt that stands in several rows, as all of a class's do, is encoded once.
    """
    encoders = list(text_encoders(pipe).values())
    distinct, rows = torch.unique(torch.stack(tokens, 1), dim=0, return_inverse=True)
    if len(encoders) == 1:
        return encoders[0](distinct[:, 0])[0][rows], None
    outputs = [
        encoder(ids, output_hidden_states=True)
        for encoder, ids in zip(encoders, distinct.unbind(1), strict=True)
    ]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)[rows]
    ids = torch.tensor([[side, side, 0, 0, side, side]], device=hidden.device, dtype=hidden.dtype)
    return hidden, {"text_embeds": outputs[-1][0][rows], "time_ids": ids.expand(len(hidden), -1)}


def make_scheduler(pipe, name):
    """Return a fresh sampler: the pipeline's own for 'pipeline', else a diffusers class on the same
    noise schedule.

    Raises ConfigError on an unknown name.
    """
    import diffusers

    if name == "pipeline":
        return type(pipe.scheduler).from_config(pipe.scheduler.config)
    known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if name not in known:
        raise ConfigError(
            f"generate.scheduler={name!r} is unknown; accepted: 'pipeline' or a scheduler class "
            f"of diffusers{nearest(name, known)} For example DPMSolverMultistepScheduler."
        )
    # Made for pixels, DDIM and DDPM clip what they predict to -1 ... 1 by default, which is no
    # range of latents.
    return getattr(diffusers, name).from_config({"clip_sample": False, **pipe.scheduler.config})


def add_generator_lora(pipe, options):
    """Attach fresh LoRA layers to the UNet and, if asked for, the text encoders; return their
    parameters by name (paper, 3.2).

    They are float32 whatever the frozen weights are.
    """
    from peft import LoraConfig

    def config(targets):
        return LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            init_lora_weights="gaussian",
            target_modules=targets,
        )

    pipe.unet.add_adapter(config(UNET_TARGETS))
    texts = text_encoders(pipe) if options.text_encoder else {}
    for encoder in texts.values():
        encoder.add_adapter(config(TEXT_TARGETS))
    parts = {"unet": pipe.unet, **texts}
    # Else the adapter's file would tell where this machine keeps the base.
    for module in parts.values():
        module.peft_config["default"].base_model_name_or_path = None
    found = {
        f"{part}.{name}": p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def save_generator_lora(pipe, folder, options):
    """Write the attached LoRA so that any diffusers pipeline reads it with
    `load_lora_weights(folder)`, alpha included.
    """
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    modules = {"unet": pipe.unet} | (text_encoders(pipe) if options.text_encoder else {})
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(m))
        for part, m in modules.items()
    }
    type(pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(modules))
    _sort_header(Path(folder) / LORA_FILE)


def _sort_header(file):
    """Write a safetensors header with its entries sorted: the libraries' order is random, and equal
    adapters would differ in bytes.

    So are the names of the adapted layers in its notes, a set that has another order in every
    process.
    """
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    notes = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    notes = {
        name: sorted(value) if isinstance(value, list) else value for name, value in notes.items()
    }
    header["__metadata__"]["lora_adapter_metadata"] = json.dumps(notes, sort_keys=True)
    text = (
        json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        .encode()
        .ljust(length)
    )
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def remove_lora(pipe):
    """Detach every LoRA layer from the pipeline, restoring the base model."""
    pipe.unload_lora_weights()


@contextmanager
def merged_lora(pipe, *folders):
    """Add the adapters in `folders`, of `save_generator_lora`, to the pipeline's own weights, and
    put those back at the end.

    W + alpha / rank * B A is one product a layer and no module is exchanged, so a swap is cheap,
    sampling costs what the base costs, and the weights afterwards are the base's bit for bit.
    Several have equal shares of one (LoFT: two of a half). Raises ValueError on an adapter of
    another pipeline.
    """
    originals = {}
    try:
        for folder in folders:
            _merge(pipe, folder, 1 / len(folders), originals)
        yield pipe
    finally:
        for weight, original in originals.items():
            weight.data.copy_(original)


def _merge(pipe, folder, share, originals):
    """Add `share` of an adapter to the weights, keeping in `originals` what they were."""
    with safe_open(Path(folder) / LORA_FILE, "pt", device=str(pipe.device)) as file:
        notes = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name in (n for n in tensors if n.endswith(".down.weight")):
        part, _, layer = name.rpartition(".lora")[0].partition(".")
        try:
            weight = getattr(pipe, part).get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise ValueError(
                f"the adapter in {folder} is another pipeline's: {type(pipe).__name__} has no "
                f"{part}.{layer}"
            ) from error
        originals.setdefault(weight, weight.detach().clone())
        scale = share * notes[f"{part}.lora_alpha"] / notes[f"{part}.r"]
        weight.data.copy_(
            weight.float()
            + scale * (tensors[name.replace(".down.", ".up.")].float() @ tensors[name].float())
        )


def _register_lora(module, width, rank):
    for name in ("q", "v"):
        down = torch.empty(rank, width)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        module.register_parameter(f"{name}_down", nn.Parameter(down))
        module.register_parameter(f"{name}_up", nn.Parameter(torch.zeros(width, rank)))


def _project(module, x, weight, bias):
    """Return q, k, v (..., D) of x (..., D) by the fused `weight` (3 D, D), with the low-rank
    updates of q and v.

    Where nothing is dropped or learned the updates are added to the weight, which costs one product
    of the size of `weight`.
    """
    if not (module.training or torch.is_grad_enabled()):
        q, v = module.q_up @ module.q_down, module.v_up @ module.v_down
        return F.linear(
            x, weight + module.scale * torch.cat([q, torch.zeros_like(q), v]), bias
        ).chunk(3, -1)
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    dropped = module.dropout(x)
    q = q + module.scale * (dropped @ module.q_down.T @ module.q_up.T)
    v = v + module.scale * (dropped @ module.v_down.T @ module.v_up.T)
    return q, k, v


class LoRAProjection(nn.Module):
    """The same low-rank updates for a fused linear q, k, v projection, as timm's attention has
    it (SigLIP's image tower).
    """

    def __init__(self, linear, rank, alpha, dropout):
        super().__init__()
        self.base, self.scale, self.dropout = (
            linear.requires_grad_(False),
            alpha / rank,
            nn.Dropout(dropout),
        )
        _register_lora(self, linear.in_features, rank)

    def forward(self, x):
        """Return the projections (..., 3 D) of x (..., D)."""
        return torch.cat(_project(self, x, self.base.weight, self.base.bias), -1)


class LoRAAttention(nn.Module):
    """A frozen nn.MultiheadAttention with trainable low-rank updates of its query and value
    projections only (paper, 3.4).

    q = x W_q' + b_q + (alpha / rank) * drop(x) A_q' B_q', v alike; k and the output projection are
    untouched. B starts at zero.
    """

    def __init__(self, attention, rank, alpha, dropout):
        super().__init__()
        if not attention._qkv_same_embed_dim or attention.bias_k is not None:
            raise ValueError(
                "LoRAAttention needs one width for query, key and value, and no bias_k"
            )
        self.base, self.scale, self.dropout = (
            attention.requires_grad_(False),
            alpha / rank,
            nn.Dropout(dropout),
        )
        _register_lora(self, attention.embed_dim, rank)

    def forward(self, query, key, value, need_weights=False, attn_mask=None):
        """Return (self-attention output, None) for x = query = key = value, (B, L, D) or (L, B,
        D) as the base has it.
        """
        x = query if self.base.batch_first else query.transpose(0, 1)
        q, k, v = _project(self, x, self.base.in_proj_weight, self.base.in_proj_bias)
        q, k, v = (t.unflatten(-1, (self.base.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        )
        out = self.base.out_proj(out)
        return (out if self.base.batch_first else out.transpose(0, 1)), None


class Classifier(nn.Module):
    """An open_clip model as a classifier: logits = exp(logit_scale) * cosine(image, text of the
    class's prompt) (paper, 3.4).
    """

    mean: torch.Tensor
    std: torch.Tensor
    mixed = False  # whether products are in bfloat16; weights and logits are float32 either way

    def __init__(self, clip, tokenizer, mean, std):
        super().__init__()
        self.clip, self.tokenizer = clip.requires_grad_(False), tokenizer
        self.size = (
            clip.visual.image_size[0]
            if isinstance(clip.visual.image_size, tuple)
            else clip.visual.image_size
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prompts(self, texts):
        """Return the token ids of one prompt per class, (classes, length), without the padding that
        no text needs.

        In a causal tower a token sees only those before it, so what follows the end of a text
        changes nothing that is read: the paper's prompts have about ten tokens of CLIP's 77. Other
        towers keep their padding.
        """
        ids = self.tokenizer(list(texts)).to(self.mean.device)
        tower, _, pool, end = self._text_tower()
        ends = None
        if pool == "argmax":
            ends = ids.argmax(1)
        elif pool == "eos" and end is not None:
            ends = (ids == end).int().argmax(1)
        causal = (
            getattr(tower, "attn_mask", None) is not None
            and getattr(tower, "cls_emb", None) is None
        )
        return ids if ends is None or not causal else ids[:, : int(ends.max()) + 1]

    def _text_tower(self):
        """Return (text tower, its prefix in the state, its pooling, the id that ends a text);
        open_clip keeps it apart or in the CLIP itself.
        """
        if hasattr(self.clip, "text"):
            return (
                self.clip.text,
                "text.",
                getattr(self.clip.text, "pool_type", None),
                getattr(self.clip.text, "eos_id", None),
            )
        return self.clip, "", self.clip.text_pool_type, self.clip.text_eos_id

    def _encode_text(self, tokens):
        tower, prefix, _, _ = self._text_tower()
        length = tokens.shape[1]
        if length == getattr(tower, "context_length", length):
            return self.clip.encode_text(tokens, normalize=True)
        short = {
            f"{prefix}positional_embedding": tower.positional_embedding[:length],
            f"{prefix}attn_mask": tower.attn_mask[:length, :length],
        }
        return torch.func.functional_call(self.clip, short, kwargs={"text": tokens})[1]

    def text(self, tokens):
        """Return the unit features (classes, D) of token ids (classes, length): they stay the
        same until the weights change.
        """
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.mixed):
            return self._encode_text(tokens).float()

    def image(self, images):
        """Return the unit features (B, D) of images (B, 3, S, S) in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.clip.encode_image((images - self.mean) / self.std, normalize=True).float()

    def score(self, images, text):
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1] and the classes' `text`
        features.
        """
        return self.clip.logit_scale.exp() * self.image(images) @ text.T

    def forward(self, images, tokens):
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1] and token ids (classes,
        length).
        """
        return self.score(images, self.text(tokens))

    def attach(self, options):
        """Add LoRA as `options` say and return the trainable parameters by name."""
        return add_classifier_lora(self, options.rank, options.alpha, options.dropout)

    def state(self):
        """Return what training changes, name -> tensor: the LoRA."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class ResNet(nn.Module):
    """torchvision's ResNet-50 from random weights, the paper's second classifier: it has no text
    tower, and all of it is trained.
    """

    size, mixed = 224, False
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes):
        from torchvision.models import resnet50

        super().__init__()
        self.net = resnet50(weights=None, num_classes=classes)
        # ImageNet's.
        for name, values in {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def prompts(self, texts):
        """Return one index per class, which stands for the prompt that this classifier does not
        read.
        """
        return torch.arange(len(list(texts)), device=self.mean.device)

    def text(self, tokens):
        """Return what `prompts` returned: there is no text to encode."""
        return tokens

    def score(self, images, text):
        """Return logits (B, classes) for images (B, 3, S, S) in [0, 1]; `text` has no say."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.net((images - self.mean) / self.std).float()

    def forward(self, images, tokens):
        """Return `score`; `tokens` is what `prompts` returned."""
        return self.score(images, tokens)

    def attach(self, options):
        """Return all parameters by name; LoRA needs trained weights to start from."""
        return dict(self.named_parameters())

    def state(self):
        """Return what training changes, name -> tensor: the parameters and the batch
        normalisations' running statistics.
        """
        return self.state_dict()


def load_classifier(name, classes=None, precision="auto"):
    """Return a classifier, frozen but for what its `attach` makes trainable; a GPU multiplies in
    bfloat16 unless `precision` forbids it.

    `name` is 'mini', a folder in open_clip's layout, 'hf-hub:<id>', '<architecture>/<weights>', or
    'resnet50', which starts from random weights and needs the number of `classes`. Raises
    ModelMissingError, with the way to get it, on a model that cannot be loaded or that open_clip
    does not know, and ConfigError on 'resnet50' where an untrained classifier is judged.
    """
    if name == "resnet50" and classes is None:
        raise ConfigError(
            "classifier='resnet50' starts from random weights and judges nothing untrained; leave "
            "out method 'clip'"
        )
    model = ResNet(classes) if name == "resnet50" else _load_clip(name)
    model.mixed = dtype_for(precision, training=True) is torch.bfloat16
    return model.to(device())


def _load_clip(name):
    import open_clip

    folder = local(name, "clip")
    whole = f"local-dir:{folder}" if folder else name if name.startswith("hf-hub:") else None
    architecture, slash, weights = (whole, "/", None) if whole else name.partition("/")
    if not slash or weights == "":
        raise ModelMissingError(
            f"the classifier {name!r} names no weights, and random ones would judge nothing. Give "
            "'mini', a folder in open_clip's layout, or '<architecture>/<weights>' from "
            "open_clip.list_pretrained(), e.g. 'ViT-B-16-quickgelu/openai'"
        )
    if weights:
        _check_activation(architecture, weights)
    try:
        clip, _, _ = open_clip.create_model_and_transforms(architecture, pretrained=weights)
        tokenizer = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelMissingError(
            f"the classifier {name!r} cannot be loaded. Give 'mini', a folder in open_clip's "
            "layout, or '<architecture>/<weights>' from open_clip.list_pretrained(). Where a "
            f"network is at hand, {fetching(name)}; point HF_HOME to that cache. Cause: {error}"
        ) from error
    config = open_clip.get_model_preprocess_cfg(clip)
    return Classifier(clip.eval(), tokenizer, config["mean"], config["std"])


def _check_activation(architecture, weights):
    """Raise ConfigError where weights trained with QuickGELU would run with another activation:
    accuracy would be silently wrong.
    """
    import open_clip

    wanted = open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)
    built = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    if wanted and not built:
        raise ConfigError(
            f"the weights {weights!r} were trained with QuickGELU, which {architecture!r} does "
            f"not use; give '{architecture}-quickgelu/{weights}'"
        )


def _towers(clip):
    """Return the modules of the image tower and of the text tower; a captioning decoder, as
    CoCa's, belongs to neither.
    """
    return [
        *clip.visual.modules(),
        *(clip.text if hasattr(clip, "text") else clip.transformer).modules(),
    ]


def add_classifier_lora(model, rank, alpha, dropout):
    """Add LoRA to q and v of every self-attention of both towers, open_clip's or timm's; return
    the trainable parameters by name.
    """
    for module in _towers(model.clip):
        if type(module).__name__ == "EvaAttention":
            raise ConfigError(
                "EVA's attention reads its weights apart from its layers, which LoRA cannot "
                "change; choose another image tower, e.g. 'ViT-B-16-quickgelu/openai'"
            )
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention and name == "attn" and hasattr(module, "ln_1"):
                setattr(
                    module, name, LoRAAttention(child, rank, alpha, dropout).to(model.mean.device)
                )
            elif (
                name == "qkv"
                and isinstance(child, nn.Linear)
                and child.out_features == 3 * child.in_features
            ):
                setattr(
                    module, name, LoRAProjection(child, rank, alpha, dropout).to(model.mean.device)
                )
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    visual = [name for name in found if ".visual." in name]
    if not visual or len(visual) == len(found):
        raise ValueError(
            "the classifier has a tower without transformer blocks, and LoRA adapts both; choose "
            "an open_clip model with two transformer towers, e.g. 'ViT-B-16-quickgelu/openai'"
        )
    return found


def save_classifier_lora(model, folder, config):
    """Write what training changed as safetensors beside its JSON config (classifier, precision,
    rank, alpha, dropout, classes, prompts).
    """
    from safetensors.torch import save_file

    save_file(
        {name: value.detach().cpu().contiguous() for name, value in model.state().items()},
        Path(folder) / "adapter.safetensors",
    )
    write_json(Path(folder) / "adapter.json", config)


def load_classifier_lora(folder):
    """Return (Classifier with the adapter of `folder`, its config): what `save_classifier_lora`
    wrote.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "adapter.json").read_text())
    model = load_classifier(
        config["classifier"], len(config["classes"]), config.get("precision", "auto")
    )
    model.attach(Classify(rank=config["rank"], alpha=config["alpha"], dropout=config["dropout"]))
    state = model.state()
    tensors = load_file(Path(folder) / "adapter.safetensors", device=str(model.mean.device))
    if set(tensors) != set(state):
        raise ValueError(
            f"the adapter in {folder} does not fit {config['classifier']!r}: "
            f"{sorted(set(tensors) ^ set(state))[:3]} differ"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
    return model.eval(), config
