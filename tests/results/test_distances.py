"""Distances of feature sets: against torchmetrics, against their plain formulas, and by what
must hold for any features.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from datadream.results import distances
from datadream.results.distances import (
    MEASURES,
    centroid,
    cmmd,
    copying,
    coverage,
    density,
    frechet,
    kid,
    nearest,
    precision,
    recall,
)

BALLS = (precision, recall, density, coverage)


class Identity(torch.nn.Module):
    """Stands for a feature extractor of torchmetrics: what it is given are the features."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x


def draw(seed, n=40, width=6, shift=0.0):
    """Return n features of a law with unequal variances and correlations, moved by `shift`."""
    random = np.random.RandomState(seed)
    return random.randn(n, width) @ np.random.RandomState(9).randn(width, width) + shift


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs(least=7, same_size=False):
    """Return a strategy of two feature sets, of at least `least` images each, and of fewer or
    more than they have features.
    """
    sizes = st.tuples(
        st.integers(0, 10**6), st.integers(least, 30), st.integers(least, 30), st.integers(1, 40)
    )
    return sizes.map(
        lambda s: (draw(s[0], s[1], s[3]), draw(s[0] + 1, s[1] if same_size else s[2], s[3], 0.5))
    )


# Reference values.


@pytest.mark.parametrize("n, m, width", [(60, 40, 5), (12, 9, 32), (2, 3, 4)])
def test_frechet_is_torchmetrics_fid(n, m, width):
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = draw(0, n, width), draw(1, m, width, 0.3)
    reference = FrechetInceptionDistance(feature=Identity(width)).set_dtype(torch.float64)
    for real, features in ((True, x), (False, y)):
        reference.update(torch.tensor(features), real=real)
    assert frechet(x, y) == pytest.approx(float(reference.compute()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
@pytest.mark.parametrize("n, width", [(50, 5), (9, 32)])
def test_kid_is_torchmetrics_on_the_whole_set(n, width):
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = draw(0, n, width), draw(1, n, width, 0.3)
    reference = KernelInceptionDistance(
        feature=Identity(width), subsets=1, subset_size=n
    ).set_dtype(torch.float64)
    for real, features in ((True, x), (False, y)):
        reference.update(torch.tensor(features), real=real)
    assert kid(x, y) == pytest.approx(float(reference.compute()[0]), rel=1e-6)


def test_frechet_of_known_gaussians():
    """Features of exact mean m and standard deviations s on uncorrelated axes: |m|^2 + sum (s_1
    - s_2)^2.
    """
    # Variance 1 on each axis, no covariance.
    cross = np.sqrt(3 / 2) * np.concatenate([np.eye(2), -np.eye(2)])
    assert frechet(cross * [1, 2], cross * [3, 2] + [0, 5]) == pytest.approx(25 + 4)


def test_frechet_holds_where_covariances_are_nearly_singular():
    """A direction of variance 1e-16 beside one of 1: a root of the product of covariances loses
    it, or turns complex.
    """
    scales = 10.0 ** -np.arange(0, 9)
    x = np.random.RandomState(0).randn(200, 9) * scales
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, 2 * x) == pytest.approx(
        float(x.var(0, ddof=1).sum() + (x.mean(0) ** 2).sum()), rel=1e-9
    )


def test_cmmd_is_its_formula():
    x, y = unit(draw(0, 15)), unit(draw(1, 20, shift=1.0))

    def mean(a, b):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in b] for p in a])

    assert cmmd(x, y) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-8)


def in_balls(points, centres, k, closed):
    """Return (points, centres) whether a point is in the ball of a centre that reaches its k-th
    nearest other centre: plainly.
    """
    own = cdist(centres, centres)
    reach = [sorted(np.delete(row, i))[k - 1] for i, row in enumerate(own)]
    found = cdist(points, centres)
    return found <= reach if closed else found < reach


@given(pairs(), st.integers(1, 5))
def test_the_balls_are_counted_as_the_papers_say(sets, k):
    x, y = sets
    assert precision(x, y, k) == in_balls(y, x, k, True).any(1).mean()
    assert recall(x, y, k) == in_balls(x, y, k, True).any(1).mean()
    assert density(x, y, k) == pytest.approx(in_balls(y, x, k, False).sum() / (k * len(y)))
    assert coverage(x, y, k) == in_balls(y, x, k, False).any(0).mean()


def test_balls_by_hand():
    """On a line: the balls of 0, 1 and 3 with k = 1 reach 1, 1 and 2."""
    real, synthetic = np.array([[0.0], [1.0], [3.0]]), np.array([[-0.5], [1.5], [5.0], [9.0]])
    assert precision(real, synthetic, 1) == 3 / 4, "5 lies on the border of the ball about 3"
    assert density(real, synthetic, 1) == 3 / 4, (
        "-0.5 is in one ball, 1.5 in two, and a border is outside"
    )
    assert coverage(real, synthetic, 1) == 1
    assert recall(real, synthetic, 1) == 1, (
        "the balls of -0.5 and 1.5 reach 2, and 3 lies within 5's 3.5"
    )


# What must hold for any features.


@given(pairs())
def test_identical_sets_have_no_distance(sets):
    x, _ = sets
    scale = (x * x).mean()
    assert frechet(x, x) == pytest.approx(0, abs=1e-9 * scale * x.shape[1])
    assert cmmd(unit(x), unit(x)) == pytest.approx(0, abs=1e-9)
    assert [f(x, x) for f in BALLS] == [1, 1, 1, 1]
    assert centroid(x, x) == pytest.approx(1)
    assert kid(x, x) < 1e-9 * scale**3, (
        "unbiased: an image's kernel with itself is missing within, and counted across"
    )


def test_kid_is_zero_on_average_and_not_at_least():
    values = [kid(draw(2 * i, 30), draw(2 * i + 1, 30)) for i in range(300)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


@given(pairs())
def test_a_distance_has_no_direction_and_a_ball_has(sets):
    x, y = sets
    for f in (frechet, kid, centroid):
        assert f(x, y) == pytest.approx(f(y, x), rel=1e-6, abs=1e-9)
    assert cmmd(unit(x), unit(y)) == pytest.approx(cmmd(unit(y), unit(x)), abs=1e-9)


@pytest.mark.parametrize(
    "n, m, width, shift, k",
    [(40, 40, 6, 0.3, 3), (30, 70, 3, 0.0, 5), (70, 30, 12, 1.0, 2), (25, 25, 40, 0.1, 5)],
)
def test_the_balls_are_those_of_the_prdc_package(n, m, width, shift, k):
    """The code of Naeem et al., 2020, on the same features."""
    from prdc import compute_prdc

    x, y = draw(n, n)[:, :1] + draw(n + 1, n, width), draw(m + 2, m, width) + shift
    wanted = compute_prdc(real_features=x, fake_features=y, nearest_k=k)
    found = {f.__name__: f(x, y, k) for f in (precision, recall, density, coverage)}
    assert (
        found == pytest.approx(wanted)
        and 0 < min(found.values())
        and found["precision"] != found["recall"]
    )


@given(pairs(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(sets, random):
    x, y = sets
    mixed = [s[random.sample(range(len(s)), len(s))] for s in sets]
    for f in (frechet, kid, centroid, *BALLS):
        assert f(*mixed) == pytest.approx(f(x, y), rel=1e-6, abs=1e-9)
    assert cmmd(*map(unit, mixed)) == pytest.approx(cmmd(unit(x), unit(y)), abs=1e-9)


@given(pairs(same_size=True), st.floats(0.5, 4), st.floats(1.1, 3))
def test_a_larger_shift_is_farther(sets, shift, times):
    x, _ = sets
    direction = np.eye(x.shape[1])[0]
    assert frechet(x, x + times * shift * direction) > frechet(x, x + shift * direction)
    near, far = (x + s * 10 * np.ptp(x) * direction for s in (0, 1))
    assert [f(x, near) for f in BALLS] == [1, 1, 1, 1] and [f(x, far) for f in BALLS] == [
        0,
        0,
        0,
        0,
    ]


def test_a_kernel_s_distance_grows_with_a_shift():
    x, y = draw(0, 200), draw(1, 200)
    values = [kid(x, y + s) for s in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    x = unit(draw(0, 30) * 0.1 + np.eye(6)[0])
    values = [cmmd(x, unit(x + s * np.eye(6)[1])) for s in (0.0, 0.2, 0.5, 1.0)]
    assert values == sorted(values) and values[0] < 1e-9 < values[1]


@pytest.mark.parametrize("name", MEASURES)
def test_a_block_at_a_time_gives_the_same(name, monkeypatch):
    x, y = unit(draw(0, 23)), unit(draw(1, 31, shift=0.5))
    whole = MEASURES[name].function(x, y)
    monkeypatch.setattr(distances, "BLOCK", 70)  # two or three rows
    assert MEASURES[name].function(x, y) == pytest.approx(whole, rel=1e-9, abs=1e-9)


def test_coverage_of_equal_laws_depends_on_the_sizes():
    n, m, k = 120, 40, 5
    expected = 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    values = [coverage(draw(2 * i, n), draw(2 * i + 1, m), k) for i in range(100)]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / 10)
    assert 1 - np.prod([(2340 - i) / (2500 - i) for i in range(1, 6)]) == pytest.approx(
        0.28, abs=0.005
    )
    assert 1 - np.prod([(2340 - i) / (3340 - i) for i in range(1, 6)]) == pytest.approx(
        0.83, abs=0.005
    )


def test_equal_images_are_in_each_other_s_balls():
    """Four copies of an image have a reach of 0, and the copy's distance, a difference of
    products, must then be 0 as well.
    """
    x = np.repeat(draw(0, 5) * 1e3 + 1e6, 4, axis=0)
    assert precision(x, x) == recall(x, x) == 1


# Copying.


def test_the_nearest_shot_is_by_cosine():
    shots = np.array([[1.0, 0.0], [0.0, 10.0]])
    index, similarity = nearest([[3.0, 4.0], [2.0, 0.1]], shots)
    assert index.tolist() == [1, 0]
    assert similarity == pytest.approx([0.8, 2 / np.hypot(2, 0.1)])


def test_a_copy_is_told_from_a_fresh_image():
    shots, held_out = draw(0, 16), draw(1, 400)
    copies, fresh = shots[np.arange(200) % 16] + 1e-3 * draw(2, 200), draw(3, 400)
    found = copying(held_out, copies, shots)
    assert (
        found["closer"] == 1
        and found["nearest"] == pytest.approx(1, abs=1e-4)
        and found["nearest_real"] < 0.99
    )
    assert 0.01 < copying(held_out, fresh, shots)["closer"] < 0.12
    assert copying(held_out, fresh, shots, 0.5)["closer"] == pytest.approx(0.5, abs=0.15)


# Messages.


@pytest.mark.parametrize(
    "real, synthetic, words",
    [
        (
            np.zeros(3),
            np.zeros((3, 2)),
            r"real features have shape \(3,\); give \(images, features\)",
        ),
        (np.zeros((3, 0)), np.zeros((3, 2)), r"shape \(3, 0\)"),
        (np.zeros((3, 2)), np.zeros((1, 2)), r"synthetic features are of 1 image\(s\).*2 or more"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "synthetic features of image 0 are not finite"),
        (np.zeros((3, 2)), np.zeros((3, 4)), "real features are 2 wide and the synthetic ones 4"),
    ],
)
def test_what_cannot_be_compared_is_named(real, synthetic, words):
    for f in (frechet, kid):
        with pytest.raises(ValueError, match=words):
            f(real, synthetic)


@pytest.mark.parametrize("function", BALLS)
def test_too_few_images_for_the_neighbours(function):
    with pytest.raises(
        ValueError, match=r"synthetic features are of 3 image\(s\); this measure needs 4 or more"
    ):
        function(draw(0, 9), draw(1, 3), k=3)


def test_features_of_the_wrong_length_or_without_direction():
    with pytest.raises(ValueError, match="length 5; CMMD needs unit features"):
        cmmd([[1.0, 0.0]], [[3.0, 4.0]])
    with pytest.raises(ValueError, match="zero and has no direction"):
        nearest([[0.0, 0.0]], [[3.0, 4.0]])
    with pytest.raises(ValueError, match="few-shot features are of 0"):
        nearest([[1.0, 0.0]], np.zeros((0, 2)))


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_runs_on_the_least_that_it_says(name):
    least = MEASURES[name].least
    assert np.isfinite(MEASURES[name].function(unit(draw(0, least)), unit(draw(1, least))))
