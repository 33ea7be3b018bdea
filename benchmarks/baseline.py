"""The baseline: each stage in the released code's way, from the paper's public record.

Every image is opened, resized and encoded in float32 at every step; prompts are tokenised at every
step; the pipeline is loaded from disk for every class and samples ten images at once; the
classifier's images are decoded and augmented one by one, all class texts are encoded with their
padding at every step, and the whole test set is evaluated after every epoch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from datadream.data.augment import BLUR, blur_kernel
from datadream.models.classifiers.base import load_classifier
from datadream.models.classifiers.lora import add_classifier_lora
from datadream.training.schedule import cosine_schedule

BATCH = 10  # images that the released generation script samples at once


def load_pipeline(folder, device):
    """Load the pipeline in `folder` from disk."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False).eval()
    return pipe


def adapt(pipe, parameters, files, texts, options, side, steps, rows_at=None):
    """Train the attached LoRA for `steps` optimiser steps; return the losses.

    `files` are image files and `texts` their prompts. `rows_at(step)` gives the positions of a
    step's images; by default they are used in turn.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=options.lr, weight_decay=options.weight_decay, eps=options.eps
    )
    view = v2.Compose(
        [
            v2.Resize(side, InterpolationMode.BILINEAR),
            v2.RandomCrop(side),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = options.lr * cosine_schedule(step, steps, options.warmup)
        rows = (
            rows_at(step)
            if rows_at
            else [(step * options.batch + i) % len(files) for i in range(options.batch)]
        )
        images = torch.stack([view(decode(files[i])) for i in rows]).to(pipe.device)
        ids = pipe.tokenizer(
            [texts[i] for i in rows], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(pipe.device)
        with torch.no_grad():
            latents = pipe.vae.encode(images).latent_dist.sample() * pipe.vae.config.scaling_factor
        noise, times = (
            torch.randn_like(latents),
            torch.randint(scheduler.config.num_train_timesteps, (len(rows),), device=pipe.device),
        )
        out = pipe.unet(
            scheduler.add_noise(latents, noise, times), times, pipe.text_encoder(ids)[0]
        ).sample
        loss = F.mse_loss(out, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip)
        optimiser.step()
        losses.append(loss.item())
    return losses


def adapted(folder, adapter, device):
    """Load the pipeline with a class's adapter, both from disk."""
    pipe = load_pipeline(folder, device)
    if device.type == "cuda":
        pipe = pipe.to(torch.float16)
    pipe.load_lora_weights(adapter)
    return pipe


def generate(folder, adapter, text, images, options, side, target, device):
    """Write `images` images of a class, loading the pipeline and the adapter from disk."""
    pipe = adapted(folder, adapter, device)
    for start in range(0, images, BATCH):
        count = min(BATCH, images - start)
        made = pipe(
            [text] * count,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            height=side,
            width=side,
        ).images
        for i, image in enumerate(made):
            image.save(target / f"{start + i}.png")


def decode(file):
    """Return the image in a file."""
    with Image.open(file) as image:
        return image.convert("RGB")


def augmentation(options, size):
    """Return the classifier's augmentation of one PIL image."""
    jitter = v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)
    return v2.Compose(
        [
            *([v2.RandAugment()] if options.randaugment else []),
            v2.RandomResizedCrop(
                size, (options.crop_low, 1.0), interpolation=InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(options.flip),
            v2.RandomApply([jitter], options.jitter),
            v2.RandomGrayscale(options.grayscale),
            v2.RandomApply([v2.GaussianBlur(blur_kernel(size), BLUR)], options.blur),
            v2.RandomSolarize(128, options.solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


class Files(torch.utils.data.Dataset):
    """Image files and labels; each is decoded and transformed on access."""

    def __init__(self, files, labels, view):
        self.files, self.labels, self.view = files, labels, view

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.view(decode(self.files[i])), self.labels[i]


def classifier(name, options):
    """Return the CLIP with its LoRA, and the LoRA's parameters."""
    model = load_classifier(name)
    return model, add_classifier_lora(model, options.rank, options.alpha, options.dropout)


def train_epoch(model, parameters, train, test, texts, options, workers):
    """Train on the files `train` for one epoch and evaluate on all of `test`.

    Returns (losses, accuracy).
    """
    device, size = model.mean.device, model.size
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=options.lr, weight_decay=options.weight_decay
    )
    plain = v2.Compose(
        [
            v2.Resize(size, InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    loader = torch.utils.data.DataLoader(
        Files(*train, augmentation(options, size)),
        options.batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )
    mixers, losses, hits = (
        (v2.CutMix(num_classes=len(texts)), v2.MixUp(num_classes=len(texts))),
        [],
        [],
    )
    model.train()
    for images, labels in loader:
        if torch.rand(()) < options.mix:
            images, labels = mixers[int(torch.rand(()) < 0.5)](images, labels)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            logits = model(images.to(device), model.tokenizer(texts).to(device))
            loss = F.cross_entropy(logits, labels.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        for images, labels in torch.utils.data.DataLoader(
            Files(*test, plain), options.batch, num_workers=workers
        ):
            hits += (
                model(images.to(device), model.tokenizer(texts).to(device)).argmax(1).cpu()
                == labels
            ).tolist()
    return losses, float(np.mean(hits))
