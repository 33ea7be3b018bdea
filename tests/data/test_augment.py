"""The batched augmentation against torchvision's own operations and draws, image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from datadream.data import augment
from datadream.data.augment import Augmentation
from datadream.methods.recipes import recipe

OFF = {f"classify.{name}": 0.0 for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
OFF |= {"classify.randaugment": False, "classify.crop_low": 1.0}


def pictures(count, height=20, width=28, seed=0):
    """Return smooth random images (count, 3, height, width), uint8."""
    noise = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return (255 * TF.resize(noise, [height, width], antialias=True)).byte()


def augmented(images, seed=0, size=16, **changes):
    """Return the images after the augmentation of `changes` to no augmentation at all."""
    torch.manual_seed(seed)
    return Augmentation(
        recipe(
            overrides=OFF | {f"classify.{name}": value for name, value in changes.items()}
        ).classify,
        size,
    )(list(images))


def torchvisions(options, size):
    """Return torchvision's transform of one image that the batched one stands for, in the
    released code's order.
    """
    jitter = v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)
    return v2.Compose(
        [
            *([v2.RandAugment()] if options.randaugment else []),
            v2.RandomResizedCrop(
                size,
                (options.crop_low, 1.0),
                interpolation=InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(options.flip),
            v2.RandomApply([jitter], options.jitter),
            v2.RandomGrayscale(options.grayscale),
            v2.RandomApply(
                [v2.GaussianBlur(max(3, size // 10 // 2 * 2 + 1), augment.BLUR)], options.blur
            ),
            v2.RandomSolarize(128, options.solarize),
        ]
    )


# RandAugment.


@pytest.mark.parametrize("name", augment.OPERATIONS)
@pytest.mark.parametrize("way", [1, -1])
def test_an_operation_is_torchvisions_at_its_default_magnitude(name, way):
    theirs, batch = v2.RandAugment(), pictures(3)
    strengths, signed = theirs._AUGMENTATION_SPACE[name]
    assert signed == (name not in augment.ONE_WAY)
    values = strengths(31, *batch.shape[-2:])
    strength = 0.0 if values is None else float(values[theirs.magnitude]) * (way if signed else 1)
    expected = [
        theirs._apply_image_or_video_transform(
            x, name, strength, InterpolationMode.NEAREST, {torch.Tensor: None}
        )
        for x in batch
    ]
    difference = (augment.OPERATIONS[name](batch, way).int() - torch.stack(expected).int()).abs()
    # Its strength is a float32, ours is not.
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def test_every_operation_is_drawn_equally_often_and_both_ways(monkeypatch):
    assert set(augment.OPERATIONS) == set(v2.RandAugment._AUGMENTATION_SPACE)
    seen = {}

    def count(name):
        def operation(images, way):
            seen[name, way] = seen.get((name, way), 0) + len(images)
            return images

        return operation

    monkeypatch.setattr(augment, "OPERATIONS", {name: count(name) for name in augment.OPERATIONS})
    torch.manual_seed(0)
    augment.rand_augment(torch.zeros(7000, 3, 2, 2, dtype=torch.uint8))
    each = {
        name: sum(n for (other, _), n in seen.items() if other == name)
        for name in augment.OPERATIONS
    }
    # 1000 expected, a standard deviation of 30.
    assert sum(each.values()) == 14000 and all(850 < n < 1150 for n in each.values())
    assert all(seen[name, -1] > 400 for name in augment.OPERATIONS if name not in augment.ONE_WAY)


# The crop.


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 99))
def test_boxes_lie_in_the_image(height, width, low, seed):
    torch.manual_seed(seed)
    boxes = augment.draw_boxes(40, height, width, low)
    top, left, tall, wide = boxes.T
    assert torch.equal(boxes, boxes.round()) and (tall >= 1).all() and (wide >= 1).all()
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + tall <= height).all()
        and (left + wide <= width).all()
    )


# The last is wider than any accepted ratio.
@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (40, 200)])
def test_boxes_are_distributed_as_torchvisions(shape):
    theirs, image, n = v2.RandomResizedCrop(16, (0.25, 1.0)), torch.zeros(3, *shape), 3000
    torch.manual_seed(0)
    rows = [theirs.make_params([image]) for _ in range(n)]
    expected = np.array(
        [[row[k] for k in ("top", "left", "height", "width")] for row in rows], float
    )
    ours = augment.draw_boxes(n, *shape, 0.25).numpy()
    for column in range(4):
        for share in (10, 50, 90):
            one, other = (
                np.percentile(ours[:, column], share),
                np.percentile(expected[:, column], share),
            )
            assert abs(one - other) <= 0.04 * max(shape), (column, share, one, other)
    np.testing.assert_allclose(
        ours.mean(0),
        expected.mean(0),
        atol=4 * np.maximum(expected.std(0), 0.1).max() / np.sqrt(n) * 1.5,
    )


@given(st.integers(4, 40), st.integers(4, 40), st.integers(4, 40), st.integers(0, 99))
def test_a_crop_is_torchvisions_antialiased_bicubic_one(height, width, size, seed):
    batch = pictures(3, height, width, seed)
    torch.manual_seed(seed)
    boxes = augment.draw_boxes(3, height, width, 0.3).int().tolist()
    torch.manual_seed(seed)
    ours = augment.random_resized_crop(batch, size, 0.3, flip=0.0)
    expected = [
        TF.resized_crop(x.float(), *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
        for x, box in zip(batch, boxes, strict=True)
    ]
    # Ours is rounded to whole tones.
    assert (255 * ours - torch.stack(expected).clamp(0, 255)).abs().max() <= 0.51


def test_a_flip_mirrors_the_crop_and_nothing_else():
    batch = pictures(6)
    plain, flipped = augmented(batch), augmented(batch, flip=1.0)
    # A sum in another order may round to the next tone.
    torch.testing.assert_close(flipped, plain.flip(-1), rtol=0, atol=1.01 / 255)
    half = augmented(pictures(1).expand(400, -1, -1, -1), flip=0.5)
    assert 150 < (half - plain[0]).abs().amax((1, 2, 3)).gt(0.02).sum() < 250


# Colours.


def views(count=6):
    """Return images in [0, 1], with grey, black, white and pure colours among them."""
    images = pictures(count, 16, 16).float() / 255
    images[0, :, :4], images[0, :, 4:8], images[1, 0], images[2] = 0.0, 1.0, 1.0, images[2].mean()
    return images


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (augment._brightness, TF.adjust_brightness, (0.6, 1.0, 1.4)),
        (augment._contrast, TF.adjust_contrast, (0.6, 1.0, 1.4)),
        (augment._saturation, TF.adjust_saturation, (0.8, 1.0, 1.2)),
        (augment._hue, TF.adjust_hue, (-0.5, -0.1, 0.0, 0.07, 0.5)),
    ],
)
def test_a_change_of_colour_is_torchvisions(ours, theirs, factors):
    images = views()
    strength = torch.tensor([factors[i % len(factors)] for i in range(len(images))])
    expected = torch.stack([theirs(x, float(f)) for x, f in zip(images, strength, strict=True)])
    torch.testing.assert_close(
        ours(images, strength.view(-1, 1, 1, 1)), expected, rtol=0, atol=2e-5
    )


def test_jitter_draws_each_strength_in_its_range_and_the_four_in_any_order(monkeypatch):
    drawn, orders = {}, []
    for name in ("_brightness", "_contrast", "_saturation", "_hue"):

        def change(images, factor, name=name):
            drawn.setdefault(name, []).append(factor.flatten())
            orders.append((name, images[:, 0, 0, 0].clone()))
            return images

        monkeypatch.setattr(augment, name, change)
    torch.manual_seed(0)
    augment.color_jitter(
        torch.arange(2000.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone(), 0.4, 0.3, 0.2, 0.1
    )
    for name, middle, strength in (
        ("_brightness", 1, 0.4),
        ("_contrast", 1, 0.3),
        ("_saturation", 1, 0.2),
        ("_hue", 0, 0.1),
    ):
        values = torch.cat(drawn[name])
        assert (
            len(values) == 2000
            and values.min() >= middle - strength
            and values.max() <= middle + strength
        )
        assert (
            abs(values.mean() - middle) < 0.1 * strength
            and abs(values.std() - strength / 3**0.5) < 0.1 * strength
        )
    sequences = {}
    for name, ids in orders:
        for i in ids.tolist():
            sequences.setdefault(i, []).append(name)
    assert len({tuple(s) for s in sequences.values()}) == 24 and all(
        len(s) == 4 for s in sequences.values()
    )


@pytest.mark.parametrize("kernel", [3, 5, 23])
def test_the_blur_is_torchvisions(kernel):
    images, sigma = pictures(4, 32, 32).float() / 255, torch.tensor([0.1, 0.7, 1.3, 2.0])
    expected = torch.stack(
        [
            TF.gaussian_blur(x, [kernel] * 2, [float(s)] * 2)
            for x, s in zip(images, sigma, strict=True)
        ]
    )
    torch.testing.assert_close(
        augment.gaussian_blur(images, kernel, sigma), expected, rtol=0, atol=1e-5
    )


# The whole.


def test_augmentation_follows_its_probabilities():
    images = pictures(8)
    plain = augmented(images)
    assert (
        plain.shape == (8, 3, 16, 16)
        and plain.dtype == torch.float32
        and 0 <= plain.min()
        and plain.max() <= 1
    )
    gray = augmented(images, grayscale=1.0)
    assert torch.equal(gray[:, 0], gray[:, 1]) and not torch.equal(plain[:, 0], plain[:, 1])
    assert torch.equal(
        augmented(images, solarize=1.0), torch.where(plain >= 128 / 255, 1 - plain, plain)
    )
    for changes in ({"jitter": 1.0}, {"blur": 1.0}, {"randaugment": True}):
        assert not torch.equal(augmented(images, **changes), plain)
    many = augmented(images[:1].expand(600, -1, -1, -1), grayscale=0.2)
    assert 80 < (many[:, 0] == many[:, 1]).all((1, 2)).sum() < 160


def test_images_of_several_shapes_keep_their_places():
    tones = [10, 60, 110, 160, 210]
    images = [
        torch.full((3, 8 + 4 * (i % 2), 12), tone, dtype=torch.uint8)
        for i, tone in enumerate(tones)
    ]
    seen = augmented(images, flip=0.5, crop_low=0.3)
    assert (255 * seen.mean((1, 2, 3))).round().tolist() == tones


def test_the_same_state_gives_the_same_views_and_the_caller_keeps_its_images():
    images = pictures(5)
    kept = images.clone()
    changes = {
        "randaugment": True,
        "flip": 0.5,
        "jitter": 0.8,
        "grayscale": 0.2,
        "blur": 0.2,
        "solarize": 0.2,
        "crop_low": 0.25,
    }
    one, again, other = (
        augmented(images, **changes),
        augmented(images, **changes),
        augmented(images, seed=1, **changes),
    )
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(images, kept)


def test_the_moments_are_those_of_torchvision_image_by_image():
    """Mean and deviation over images and channels of 1,500 views of two pictures, with the
    paper's augmentation in full.
    """
    options, source = recipe("paper").classify, pictures(2, 40, 56)
    torch.manual_seed(0)
    theirs = torchvisions(options, 32)
    expected = torch.stack([theirs(source[i % 2]) for i in range(1500)]).float() / 255
    ours = Augmentation(options, 32)([source[i % 2] for i in range(1500)])
    for which in (0, 1):
        one, other = ours[which::2], expected[which::2]
        deviation = other.mean((2, 3)).std(0)
        assert (
            (one.mean((0, 2, 3)) - other.mean((0, 2, 3))).abs() < 4.5 * deviation * (2 / 750) ** 0.5
        ).all()
        torch.testing.assert_close(one.mean((2, 3)).std(0), deviation, rtol=0.12, atol=0)
        torch.testing.assert_close(
            one.std((2, 3)).mean(0), other.std((2, 3)).mean(0), rtol=0.05, atol=0
        )


def test_the_operations_come_in_the_released_codes_order(monkeypatch):
    order = []

    def note(name, change):
        return lambda *args, **options: (order.append(name), change(*args, **options))[1]

    for name in ("rand_augment", "random_resized_crop", "color_jitter", "gaussian_blur"):
        monkeypatch.setattr(augment, name, note(name, getattr(augment, name)))
    monkeypatch.setattr(augment.TF, "rgb_to_grayscale", note("grayscale", TF.rgb_to_grayscale))
    monkeypatch.setattr(augment.torch, "where", note("where", torch.where))
    augmented(
        pictures(4), randaugment=True, flip=1.0, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0
    )
    steps = list(dict.fromkeys(reversed(order)))[::-1]  # the last call of each
    assert [name for name in steps if name != "where"] == [
        "rand_augment",
        "random_resized_crop",
        "color_jitter",
        "grayscale",
        "gaussian_blur",
    ]
    assert order[-1] == "where", "solarize comes last"


def test_a_camera_s_pictures_are_cropped_a_few_at_once_to_the_same_views(monkeypatch):
    """As floats a batch of them would fill the memory; what each draws is the batch's."""
    source, most = pictures(7, 40, 56), []
    options = {"randaugment": True, "flip": 0.5, "jitter": 1.0}
    whole = augmented(source, seed=3, **options)
    crop = augment.random_resized_crop
    monkeypatch.setattr(
        augment,
        "random_resized_crop",
        lambda batch, *rest: (most.append(len(batch)), crop(batch, *rest))[1],
    )
    monkeypatch.setattr(augment, "AT_ONCE", 3 * source[0].nbytes)
    torch.testing.assert_close(augmented(source, seed=3, **options), whole)
    assert most == [3, 3, 1]


def test_the_papers_parameters():
    options = recipe("paper").classify
    values = {
        name: getattr(options, name)
        for name in (
            "crop_low",
            "flip",
            "jitter",
            "brightness",
            "contrast",
            "saturation",
            "hue",
            "grayscale",
            "blur",
            "solarize",
            "mix",
            "randaugment",
        )
    }
    assert values == {
        "crop_low": 0.25,
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale": 0.2,
        "blur": 0.2,
        "solarize": 0.2,
        "mix": 0.2,
        "randaugment": True,
    }
    assert (
        augment.BLUR == (0.1, 2.0)
        and augment.THRESHOLD == 128 / 255
        and Augmentation(options, 224).kernel == 23
    )
