"""Copies to the device, and the images that stay there."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from datadream.data import decode_cache, transfer
from datadream.data.images import Images


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=6))
def test_tensors_that_travel_together_keep_their_shapes(shapes):
    tensors = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in shapes]
    # The meta device keeps shapes and no values: the copy is the same code as a GPU's.
    moved = transfer.sent_together(tensors, "meta")
    assert [tuple(one.shape) for one in moved] == [tuple(one.shape) for one in tensors]
    assert all(one.is_meta and one.dtype == torch.uint8 for one in moved)


def test_nothing_is_copied_for_the_cpu():
    tensors = [torch.ones(2), torch.ones(3)]
    assert all(a is b for a, b in zip(transfer.sent_together(tensors, "cpu"), tensors, strict=True))
    assert transfer.sent_together([], "cpu") == []


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_places_index_as_their_masks_do(masks):
    values = torch.arange(5)
    rows = [torch.tensor(mask) for mask in masks]
    for mask, own in zip(rows, transfer.places(rows, "cpu"), strict=True):
        assert values[own].tolist() == values[mask].tolist()


def decoded(room):
    images = tuple(np.full((4, 4, 3), i, np.uint8) for i in range(6))
    found = decode_cache.Decoded({False: Images(images, tuple(range(6)))})
    found.near_room = room
    return found


def test_images_stay_on_the_device_while_there_is_room():
    """A CPU has no room there, so the test gives it some: for two images of 48 bytes each."""
    cache, keys = decoded(2 * 48), [(False, i) for i in range(6)]
    first = cache.take(keys)
    assert list(cache.near) == keys[:2] and list(cache.kept) == keys[2:] and cache.near_room == 0
    again = cache.take(keys[::-1])[::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [int(image.max()) for image in again] == list(range(6))


def test_an_image_on_the_device_is_not_decoded_again(monkeypatch):
    cache, keys = decoded(2**20), [(False, i) for i in range(6)]
    cache.take(keys)
    monkeypatch.setattr(cache, "_load", lambda key: 1 / 0)
    assert len(cache.take(keys + keys)) == 12
