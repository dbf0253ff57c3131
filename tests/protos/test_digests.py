"""Digests of images are the same on both sides of the wire, and say all that makes one image another."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutline.core.wire import Wire
from cutline.protos.codec import agent_from_wire, agent_to_wire
from cutline.protos.digests import as_received, image_digest, rows_digest
from cutline.protos.messages import Boundary

ROWS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def test_an_image_is_hashed_as_documented() -> None:
    assert image_digest(b"\x89PNG") == hashlib.sha256(b"image\x00\x89PNG").digest()


def test_rows_are_hashed_as_documented() -> None:
    data = b"decoder.0\0int8\x003\x004\0" + b"".join(struct.pack("<f", one) for one in ROWS.flat)
    assert rows_digest("decoder.0", Wire.INT8, (3, 4), ROWS) == hashlib.sha256(data).digest()


def received(rows: NDArray[np.float32], wire: Wire, step: int) -> NDArray[np.float32]:
    """What a worker has of rows that an agent sends, so many a message."""
    pieces = [Boundary(rows[start : start + step], last=True, wire=wire) for start in range(0, len(rows), step)]
    come = [agent_from_wire(agent_to_wire(piece)) for piece in pieces]
    return np.concatenate([one.rows for one in come if isinstance(one, Boundary)])


@settings(deadline=None)
@given(
    count=st.integers(1, 40),
    width=st.integers(1, 33),
    wire=st.sampled_from(Wire),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    step=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_both_sides_work_out_the_same_however_it_is_sent(
    count: int, width: int, wire: Wire, scale: float, step: int, seed: int
) -> None:
    rows = (np.random.default_rng(seed).standard_normal((count, width)) * scale).astype(np.float32)
    rows[0, 0] = -0.0
    ours = rows_digest("vision.2", wire, (0, 0), as_received(rows, wire))
    theirs = received(rows, wire, step)
    assert rows_digest("vision.2", wire, (0, 0), theirs) == ours
    assert rows_digest("vision.2", wire, (0, 0), np.asfortranarray(theirs)) == ours


@pytest.mark.threat("caches")
def test_whatever_differs_makes_another_digest() -> None:
    other = ROWS.copy()
    other[3, 2] = np.nextafter(other[3, 2], np.float32(9))
    found = {
        rows_digest("vision.1", Wire.FLOAT32, (1, 2), ROWS),
        rows_digest("vision.2", Wire.FLOAT32, (1, 2), ROWS),
        rows_digest("vision.1", Wire.INT8, (1, 2), ROWS),
        rows_digest("vision.1", Wire.FLOAT32, (2, 1), ROWS),
        rows_digest("vision.1", Wire.FLOAT32, (1, 2), other),
        rows_digest("vision.1", Wire.FLOAT32, (1, 2), ROWS[:-1]),
        image_digest(ROWS.tobytes()),
    }
    assert len(found) == 7
