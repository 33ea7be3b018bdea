"""CLIP-LoRA (Zanella and Ben Ayed, 2024, arXiv 2405.18541): real images only, another LoRA.

As in the released code: LoRA on query, key and value of every block of both towers, rank 2, scale
alpha / sqrt(rank) with alpha 1, dropout 0.25, AdamW with weight decay 0.01 and a cosine to 1e-6
without warm-up, batches of 32, one prompt per class, and the last weights. Images are cropped and
flipped, but neither mixed nor changed in colour. Nothing is tuned on validation images.

Different here: the number of steps. The code takes 500 times the shots, whatever the number of
classes; here as many images are shown as to every other method, since longer training alone could
decide a comparison (`classify.steps` sets another number). The mini profile keeps its own crops and
flips nothing, as for all methods; its learning rate is the best of 2e-3, 4e-3 and 8e-3 on
validation images of MNIST, seed 5, with 4 and with 16 shots.
"""

from .base import CROPS_ALONE, Method

LORA = {
    "classify.targets": "qkv",
    "classify.rank": 2,
    "classify.alpha": 1.0,
    "classify.scaling": "sqrt(rank)",
    "classify.dropout": 0.25,
    "classify.minimum_lr": 1e-6,
    "classify.weight_decay": 1e-2,
    "classify.batch": 32,
    "classify.warmup": 0,
    **CROPS_ALONE,
}
SETTINGS = {
    "paper": {**LORA, "classify.lr": 2e-4, "classify.crop_low": 0.08},
    "mini": {**LORA, "classify.lr": 8e-3},
}
METHODS = (
    Method(
        "cliplora", "CLIP-LoRA", "#aa66ff", "zanella2024cliplora", real=True, generates=False,
        settings=SETTINGS,
    ),
)  # fmt: skip
