"""The batch that fits the device: it halves where memory ends, and a search keeps the fastest."""

import weakref
from unittest import mock

import pytest
import torch
from conftest import generate
from hypothesis import given
from hypothesis import strategies as st

from datadream.pipeline import generate as package
from datadream.store.artifacts import Store
from datadream.training import batch_size
from datadream.training.batch_size import SMALLEST, BatchSize
from datadream.training.loop import Shares, _backward


def device(limit, seconds):
    """Return (what makes n images, the sizes that it made, a clock): more than `limit` images do
    not fit; `seconds(n)` pass.
    """
    clock, made = [0.0], []

    def make(n):
        if n > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        clock[0] += seconds(n)
        made.append(n)
        return [object()] * n

    return make, made, lambda: clock[0]


@pytest.mark.parametrize(
    "error, ended",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.08 GiB"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"), True),
        (RuntimeError("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError(3), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_says_that_memory_ended(error, ended):
    assert batch_size.out_of_memory(error) == ended == BatchSize(2).halve(error)


class Activations:
    """What a node of the graph keeps for its backward pass, and a weak reference can watch."""


class Backwards(torch.autograd.Function):
    """Doubles its input, and runs out of memory in its backward pass where `limit` is exceeded."""

    @staticmethod
    def forward(ctx, x, limit, held):
        ctx.limit, ctx.kept = limit, Activations()
        held.append(weakref.ref(ctx.kept))
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        if len(grad) > ctx.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * grad, None, None


def wrapped(error):
    """Raise an error of a library that was caused by another, whose frames hold the tensors too."""
    raise torch.OutOfMemoryError("CUDA out of memory") from error


@pytest.mark.parametrize("where", ["forward", "backward", "wrapped", "evaluation"])
def test_what_did_not_fit_is_freed_before_the_halves_are_tried(monkeypatch, where):
    """A graph that an error's frames hold would still fill the card when the halves are tried."""
    held, seen = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: seen.append([one() is None for one in held])
    )
    weight, batch = torch.nn.Parameter(torch.ones(8, 4)), BatchSize(8)

    def of(part):
        activations = (weight[: len(part)] * part).exp()
        if where == "backward":
            return Backwards.apply(activations, 2, held).sum()
        held.append(weakref.ref(activations))
        if len(part) > 2:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError as error:
                if where == "wrapped":
                    wrapped(error)
                raise
        return activations if where == "evaluation" else activations.sum()

    images = torch.ones(8, 4)
    if where == "evaluation":
        found = torch.cat(list(batch.each([images], of)))
        assert torch.equal(found, images.exp())
    else:
        _backward(
            lambda step: Shares(8, lambda rows: of(images[rows])),
            *(0, 0, torch.optim.AdamW([weight]), batch, None),
        )
    assert batch.size == 2 and seen == [[True], [True, True]]


def test_all_who_look_at_images_share_one_loop_of_parts_that_fit(monkeypatch, shots, make, store):
    """The judge, the reader of the redraws, the heads and the distances; values are the same."""
    from datadream.models.classifiers import clip
    from datadream.models.classifiers.frozen import Frozen
    from datadream.models.classifiers.untouched import Untouched
    from datadream.pipeline.evaluate import predict
    from datadream.results.features import features

    pictures, reader = [shots.open(i) for i in range(6)], Untouched(make().classifier, ["a", "b"])
    frozen = Frozen(reader.model, ["a", "b"])
    view = torch.zeros(6, 3, reader.model.size, reader.model.size, dtype=torch.uint8)
    for i in range(6):
        view[i] = 40 * i

    def looked(stored):
        kinds = reader.features(pictures), frozen.features(shots).numpy()
        judged = predict(reader.model, reader.model.prompts(["a", "b"]), [view])
        return *kinds, judged, features(shots, "clip", make(), stored)

    def within(method):
        def limited(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(self, images)

        return limited

    whole = looked(store)
    for name in ("image", "features"):
        monkeypatch.setattr(clip.Classifier, name, within(getattr(clip.Classifier, name)))
    for one, other in zip(whole, looked(Store(store.root / "small")), strict=True):
        assert other == pytest.approx(one, abs=1e-6)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 700))
def test_a_batch_that_does_not_fit_halves_until_it_does(fixed, limit, count):
    make, made, _ = device(limit, lambda n: 1.0)
    size, left = BatchSize(fixed), count
    with mock.patch.object(batch_size.gc, "collect"):  # a tenth of a second each
        while left:
            left -= len(size.run(make, left))
    assert sum(made) == count and max(made) <= limit
    assert (size.size == fixed) == (not size.notes), (
        "it stays as given, or the notes say why it does not"
    )
    assert size.size == fixed or size.size > limit // 4, "it is halved no further than needed"


def test_one_image_that_does_not_fit_is_an_error():
    size = BatchSize(4)
    with pytest.raises(torch.OutOfMemoryError):
        size.run(device(0, lambda n: 1.0)[0], 4)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def make(n):
        raise RuntimeError("shapes do not match")

    size = BatchSize(4)
    with pytest.raises(RuntimeError, match="shapes"):
        size.run(make, 2)
    assert size.size == 4


@pytest.mark.parametrize(
    "overhead, limit, most, found",
    [
        (1.0, 1000, None, 128),
        (0.0, 1000, None, SMALLEST),
        (1.0, 40, None, 32),
        (1.0, 1000, 100, 100),
        (1.0, 1000, 4, 4),
    ],
)
def test_a_search_doubles_while_that_pays_and_fits(monkeypatch, overhead, limit, most, found):
    """Each batch costs `overhead` and 0.1 s an image: the larger, the faster, but less and less so.
    Nothing that was made is lost.

    Slices of `most` images end the search: none is larger.
    """
    make, made, clock = device(limit, lambda n: overhead + 0.1 * n)
    monkeypatch.setattr(batch_size.time, "perf_counter", clock)
    size = BatchSize(0)
    for _ in range(12):
        left = most or 1000
        while left:
            left -= len(size.run(make, left, most))
    assert size.size == found and sum(made) == 12 * (most or 1000)
    assert made[:3] == [SMALLEST, SMALLEST, 2 * SMALLEST] or found == 4
    assert len(size.notes) == 1 and str(found) in size.notes[0]


def test_a_size_is_judged_by_its_second_batch(monkeypatch):
    """The first one of a size may be compiled for, and would make every larger size look slow."""
    seen, clock = set(), [0.0]

    def make(n):
        clock[0] += 1 + 0.01 * n + (0 if n in seen else 60)
        seen.add(n)
        return [object()] * n

    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock[0])
    size = BatchSize(0)
    for _ in range(8):
        size.run(make, 10**6)
    assert size.size > 4 * SMALLEST


def test_what_one_slice_found_out_holds_for_the_next(make):
    searched = make("base", {"generate.batch": 0})
    assert package.batch_size(searched) is package.batch_size(
        make("base+real", {"generate.batch": 0}, seed=4)
    )
    assert package.batch_size(searched) is not package.batch_size(
        make("base", {"generate.batch": 0, "generate.images": 2})
    ), "whose slices are smaller"
    assert package.batch_size(searched) is not package.batch_size(
        make("base", {"generate.batch": 0, "generate.compile": True})
    )
    assert package.batch_size(make("base")) is not package.batch_size(make("base")), (
        "a given size is given anew"
    )


def test_a_generation_goes_on_with_smaller_batches_and_says_so(
    make, dataset, shots, tmp_path, monkeypatch
):
    recipe, sample = make("base", {"generate.batch": 4}), package.sample

    def small(pipe, text, seeds, *rest):
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(pipe, text, seeds, *rest)

    monkeypatch.setattr(package, "sample", small)
    store = Store(tmp_path)
    folder = generate(recipe, dataset, store)
    assert len(list(folder.rglob("*.png"))) == 15
    assert store.manifest(folder.name)["batches"] == [
        "out of memory with 4 images at once, went on with 2"
    ]
