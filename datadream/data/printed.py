"""Printed characters: the only data that the embedded base models were trained on."""

import importlib.resources
import math
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ..seeds import forked_rng
from .datasets import DIGITS

CHARACTERS = string.digits + string.ascii_uppercase
NAMES = DIGITS + tuple(f"letter {c}" for c in string.ascii_lowercase)  # in the order of CHARACTERS
# Openly licensed families (OFL or Apache) that the `fonts` extra installs; none is handwriting or a
# script face.
FAMILIES = (
    "abel",
    "acme",
    "alegreya_sans",
    "alfa_slab_one",
    "antic_slab",
    "archivo_narrow",
    "arvo",
    "atkinson_hyperlegible",
    "barlow_condensed",
    "bitter",
    "chakra_petch",
    "comfortaa",
    "crimson_text",
    "dm_mono",
    "dm_serif_display",
    "dosis",
    "exo_2",
    "fira_code",
    "fredoka",
    "hammersmith_one",
    "ibm_plex_mono",
    "ibm_plex_serif",
    "inconsolata",
    "josefin_sans",
    "jost",
    "karla",
    "libre_baskerville",
    "manrope",
    "maven_pro",
    "montserrat",
    "nunito",
    "oswald",
    "oxygen",
    "play",
    "pt_sans",
    "pt_serif",
    "questrial",
    "quicksand",
    "rajdhani",
    "roboto_slab",
    "rubik",
    "sanchez",
    "share_tech",
    "signika",
    "slabo_27px",
    "source_code_pro",
    "space_mono",
    "spectral",
    "teko",
    "titillium_web",
    "varela_round",
    "viga",
    "work_sans",
    "yanone_kaffeesatz",
    "zilla_slab",
)
HELD_OUT = FAMILIES[::8]  # never trained on: used only to measure zero-shot CLIP
SIDE = 32  # of the embedded models' images, in pixels
SIZE = 2 * SIDE  # of a stored glyph mask, so that warps are finer than the final image
# The variety of print on which models learn to read.
READING: dict[str, Any] = dict(warp=0.03, strokes=0.3, scale=0.2, shear=0.2, rotate=12)


def matplotlib_fonts() -> list[Path]:
    """List the upright and slanted text faces inside matplotlib, sorted.

    They belong to DejaVu, STIX and Computer Modern.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmb10", "cmr10", "cmss10", "cmtt10")
    return sorted(
        p for name in names for p in folder.glob(f"{name}.ttf") if "Display" not in p.stem
    )


def family_fonts(family: str, most: int = 4) -> list[Path]:
    """List up to `most` faces of a `fontpkg-*` family; regular, bold and italic come first.

    Raises ModuleNotFoundError with the install command if the family's package is missing.
    """
    try:
        folder = Path(str(importlib.resources.files(f"fontpkg_{family}"))) / "files"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the font family {family!r} is not installed: pip install 'datadream[fonts]'"
        ) from error
    files = sorted(p for p in folder.iterdir() if p.suffix in {".ttf", ".otf"})
    rank = {style: i for i, style in enumerate(("Regular", "Bold", "Italic", "Light"))}
    return sorted(files, key=lambda p: (rank.get(p.stem.split("-")[-1].split("[")[0], 9), p.name))[
        :most
    ]


def faces(paths: Iterable[str | Path]) -> list[ImageFont.FreeTypeFont]:
    """Load fonts: one from a static file, up to three weights from a variable one."""
    found = []
    for path in paths:
        font = ImageFont.truetype(str(path), SIZE)
        try:
            axes: list[Any] = list(font.get_variation_axes())
        except OSError:  # a static font has no axes
            found.append(font)
            continue
        weight = next(
            (i for i, axis in enumerate(axes) if axis["name"] in (b"Weight", b"weight")), None
        )
        for share in (0.15, 0.5, 0.9) if weight is not None else (None,):
            font = ImageFont.truetype(str(path), SIZE)
            values = [axis["default"] for axis in axes]
            if weight is not None and share is not None:
                low, high = axes[weight]["minimum"], axes[weight]["maximum"]
                values[weight] = low + share * (high - low)
            font.set_variation_by_axes(values)
            found.append(font)
    return found


def glyph(font: ImageFont.FreeTypeFont, character: str, height: int = 44) -> np.ndarray:
    """Draw one character as a SIZE x SIZE uint8 mask.

    Its bounding box is centred and scaled to `height` pixels, keeping the aspect ratio. Raises
    ValueError if the font draws nothing.
    """
    canvas = Image.new("L", (3 * SIZE, 3 * SIZE))
    ImageDraw.Draw(canvas).text((SIZE, SIZE), character, font=font, fill=255)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font {font.getname()} draws nothing for {character!r}")
    ink = canvas.crop(box)
    scale = min(height / ink.height, 0.85 * SIZE / ink.width)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))),
        Image.Resampling.LANCZOS,
    )
    out = Image.new("L", (SIZE, SIZE))
    out.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return np.asarray(out)


def glyph_bank(
    families: Iterable[str] = tuple(f for f in FAMILIES if f not in HELD_OUT),
    with_matplotlib: bool = True,
) -> torch.Tensor:
    """Draw all glyphs as a uint8 tensor (faces, 36 characters, SIZE, SIZE), in a fixed order."""
    paths = [p for family in families for p in family_fonts(family)] + (
        matplotlib_fonts() if with_matplotlib else []
    )
    return torch.from_numpy(
        np.stack([[glyph(font, c) for c in CHARACTERS] for font in faces(paths)])
    )


def distort(
    masks: torch.Tensor,
    size: int = SIDE,
    rotate: float = 8.0,
    shear: float = 0.15,
    scale: float = 0.15,
    shift: float = 0.08,
    warp: float = 0.0,
) -> torch.Tensor:
    """Draw masks (B, 1, H, W) in [0, 1] under random affine maps and a smooth random warp.

    Returns (B, 1, size, size). `rotate` is in degrees, `shift` and `warp` in canvas widths
    (standard deviation for the warp), the others are relative.
    """
    n = len(masks)

    def uniform(limit: float) -> torch.Tensor:
        return (2 * torch.rand(n) - 1) * limit

    angle, slant = uniform(math.radians(rotate)), uniform(shear)
    sx, sy = torch.exp(uniform(scale)), torch.exp(uniform(scale))
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack(
        [
            torch.stack([cos / sx, (sin + slant) / sy, 2 * uniform(shift)], 1),
            torch.stack([-sin / sx, cos / sy, 2 * uniform(shift)], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [n, 1, 2 * size, 2 * size], align_corners=False)
    if warp:
        field = torch.randn(n, 2, 5, 5) * (2 * warp) * torch.rand(n, 1, 1, 1)
        field = F.interpolate(field, size=2 * size, mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    # Sampled at twice the size and averaged; otherwise thin strokes alias.
    return F.avg_pool2d(F.grid_sample(masks, grid, align_corners=False), 2)


def restroke(masks: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """Thin or thicken the strokes of a random `share` of masks (B, 1, H, W).

    Erodes or dilates by one or two pixels.
    """
    out = masks.clone()
    for rows in torch.randperm(len(masks))[: int(share * len(masks))].chunk(4):
        kernel = 3 + 2 * int(torch.rand(()) < 0.4)
        sign = 1 if torch.rand(()) < 0.5 else -1
        out[rows] = sign * F.max_pool2d(sign * masks[rows], kernel, 1, kernel // 2)
    return out


def tone(
    masks: torch.Tensor, light: torch.Tensor, contrast: float = 0.4, extreme: float = 0.4
) -> torch.Tensor:
    """Colour masks (B, 1, H, W) with grey tones: RGB images (B, 3, H, W) in [0, 1].

    `light` (B,) says which are light on dark. The tones differ by at least `contrast`; a share
    `extreme` is pure black and white.
    """
    n = len(masks)
    gap = contrast + (1 - contrast) * torch.rand(n)
    low = torch.rand(n) * (1 - gap)
    dark, bright = low, low + gap
    pure = torch.rand(n) < extreme
    dark, bright = dark.masked_fill(pure, 0.0), bright.masked_fill(pure, 1.0)
    ink, ground = torch.where(light, bright, dark), torch.where(light, dark, bright)
    image = ground.view(-1, 1, 1, 1) + (ink - ground).view(-1, 1, 1, 1) * masks
    return image.expand(-1, 3, -1, -1).contiguous()


def captions(labels: Iterable[Any], light: Iterable[Any], detailed: Iterable[Any]) -> list[str]:
    """Return one caption per label (0..35), with its tones if `detailed` is true.

    The arguments are tensors (B,), or lists of the same length.
    """
    tones = {True: "light {} on a dark background", False: "dark {} on a light background"}
    names = [NAMES[int(i)] for i in labels]
    return [
        f"a photo of a {tones[bool(b)].format(n) if d else n}"
        for n, b, d in zip(names, light, detailed, strict=True)
    ]


def draw(
    bank: torch.Tensor,
    n: int,
    warp: float = 0.02,
    strokes: float = 0.0,
    labels: torch.Tensor | None = None,
    **affine: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw n random printed characters: images, labels and light-on-dark flags.

    Images are (n, 3, 32, 32) in [0, 1], labels (n,) in 0..35, random unless given, and flags (n,).
    `affine` goes to `distort`; `strokes` is the share for `restroke`.
    """
    labels = torch.randint(len(CHARACTERS), (n,)) if labels is None else labels
    masks = bank[torch.randint(len(bank), (n,)), labels].unsqueeze(1).float() / 255
    masks = distort(restroke(masks, strokes) if strokes else masks, warp=warp, **affine)
    light = torch.rand(n) < 0.5
    return tone(masks, light), labels, light


def examples(bank: torch.Tensor, label: int, n: int, seed: int = 0) -> torch.Tensor:
    """Draw n training images (n, 3, 32, 32) of one character, reproducibly by `seed`."""
    with forked_rng():
        torch.manual_seed(1000 * seed + label)
        return draw(bank, n, labels=torch.full((n,), label))[0]
