"""Images that a worker keeps: within their room, those wanted last, and each tenant its own."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.engine.image_cache import ImageCache, Kept
from cutline.cloud.telemetry.observer import Observer

ROW = 4 * 8  # bytes


def image(rows: int) -> Kept:
    return Kept((0, 0), torch.zeros(rows, 8))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=40), st.randoms(use_true_random=False))
def test_it_keeps_what_was_wanted_last_within_its_room(puts: list[tuple[int, int]], dice: random.Random) -> None:
    """Against a list of what there should be."""

    class Watching(Observer):
        held = 0

        def keeping(self, held: int) -> None:
            self.held = held

    watching = Watching()
    image_cache, expected = ImageCache(8 * ROW, observer=watching), OrderedDict[int, int]()
    for number, rows in puts:
        image_cache.put(image_cache.key("", bytes([number])), image(rows))
        expected.pop(number, None)
        expected[number] = rows
        while sum(expected.values()) > 8:
            expected.popitem(last=False)
        wanted = dice.randrange(6)
        assert (image_cache.find(image_cache.key("", bytes([wanted]))) is not None) == (wanted in expected)
        if wanted in expected:
            expected.move_to_end(wanted)
        assert image_cache.held == watching.held == sum(expected.values()) * ROW


def test_what_is_larger_than_the_room_drives_nothing_out() -> None:
    image_cache = ImageCache(4 * ROW)
    image_cache.put(image_cache.key("", b"a"), image(3))
    image_cache.put(image_cache.key("", b"b"), image(5))
    assert image_cache.find(image_cache.key("", b"b")) is None
    assert image_cache.find(image_cache.key("", b"a")) is not None
    assert not ImageCache(0).keeps


@pytest.mark.threat("caches")
def test_a_key_is_one_tenants_in_one_process() -> None:
    image_cache, again = ImageCache(8 * ROW), ImageCache(8 * ROW)
    assert (
        len({image_cache.key(tenant, b"digest") for tenant in ("", "a", "b", "a/b")} | {again.key("a", b"digest")}) == 5
    )
    image_cache.put(image_cache.key("a", b"digest"), image(1))
    assert image_cache.find(image_cache.key("b", b"digest")) is None
    assert image_cache.find(image_cache.key("a", b"digest")) is not None
